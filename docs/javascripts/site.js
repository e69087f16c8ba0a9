// The theme's search takes every word for the beginning of one: the "is" of a question finds "issue".
// So words that say nothing do not reach its worker; the last one is left, for it may go on. A letter or a
// number by itself is to be found whole (that is what ^1 does), and the marks of a pasted message are no
// operators of the search.
(() => {
  const silent =
    "a an and any are as at be by can could do does doesn't for from get has have how i if in into is it its me my" +
    " not of on or should so take takes than that the their then there these they this to too was what what's when where which who" +
    " why will with would you your";
  const said = new RegExp(`(^|\\s)(?:(?:${silent.replaceAll(" ", "|")})\\s+)+`, "gi");
  const plain = (question) => {
    if (question.includes('"')) return question;
    const words = question.replace(/['’]s(?=\s|$)/g, "").replace(/[:,;?!()[\]{}=<>@…]/g, " ");
    // alone, a letter is what a word begins with
    return words.replace(said, "$1").replace(/(\s)(\d+|\p{L})(?=\s|$)/gu, "$1$2^1");
  };
  const post = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (message, ...others) {
    const asked = message?.type === 2 && typeof message.data === "string";
    return post.call(this, asked ? { ...message, data: plain(message.data) } : message, ...others);
  };
})();

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
  addEventListener("resize", complete);
  document$.subscribe(() => {
    name(".md-search", () => "Search");
    const menu = document.querySelector('.md-header__button[for="__drawer"]');
    Object.assign(menu, { tabIndex: 0, role: "button", ariaLabel: "Menu" });
    complete();
    new MutationObserver(complete).observe(document.querySelector(".md-content"), {
      childList: true,
      subtree: true,
    });
  });
})();
