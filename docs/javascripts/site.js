// What the theme leaves out for keyboards and screen readers. Runs again after instant navigation.
(() => {
  const name = (selector, label) => {
    for (const element of document.querySelectorAll(selector)) {
      if (!element.ariaLabel) element.ariaLabel = label(element);
    }
  };
  // a region that scrolls sideways can be reached and moved with the keyboard
  const scrollable = (selector, label) => {
    for (const element of document.querySelectorAll(selector)) {
      if (element.scrollWidth > element.clientWidth) {
        element.tabIndex = 0;
        element.role = "group";
        element.ariaLabel = label;
      }
    }
  };
  const complete = () => {
    name(".md-code__nav", () => "Code block");
    scrollable(".md-typeset__scrollwrap", "Table, scrolls sideways");
    scrollable(".diagram-scroll", "Diagram, scrolls sideways");
    scrollable(".results", "Results, scroll sideways");
    scrollable(".tabbed-labels", "Tabs, scroll sideways");
    scrollable("div.math", "Formula, scrolls sideways");
  };
  document$.subscribe(() => {
    name(".md-search", () => "Search");
    complete();
    new MutationObserver(complete).observe(document.querySelector(".md-content"), {
      childList: true,
      subtree: true,
    });
  });
})();
