// What a reader has read: marked by the reader, kept in this browser and nowhere else.
//
// A link to a lecture gets a tick in the navigation and inside an element with `data-progress`, which
// also says how many of its lectures are done. `data-continue` shows where the reader stopped.
(() => {
  const KEY = "progress";
  const { base } = JSON.parse(document.getElementById("__config").textContent);
  const root = new URL(base.replace(/\/?$/, "/"), location);
  const known = new Map(lectures.map(([name, title, minutes]) => [name, { title, minutes }]));

  let state = { done: [], last: null };
  const load = () => {
    try {
      state = { done: [], last: null, ...JSON.parse(localStorage.getItem(KEY)) };
    } catch {
      // no storage, as in some private windows: what is marked lasts as long as the tab
    }
  };
  const save = () => {
    try {
      localStorage.setItem(KEY, JSON.stringify(state));
    } catch {}
  };

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const nameOf = (link) => link.href.replace(root.href, "").replace(/\/(index\.html)?$/, "");
  const here = () => document.querySelector(".lecture-end")?.dataset.lecture;
  const counted = (names) => {
    const left = names.filter((name) => !state.done.includes(name));
    const minutes = left.reduce((sum, name) => sum + known.get(name).minutes, 0);
    const rest = minutes > 90 ? `${Math.round(minutes / 60)} hours` : `${minutes} minutes`;
    const read = `${names.length - left.length} of ${names.length} lectures done`;
    return left.length ? `${read}, about ${rest} to read` : read;
  };

  const forget = () =>
    make("button", {
      type: "button",
      className: "progress-forget",
      textContent: "Forget my progress",
      onclick: () => {
        state = { done: [], last: null };
        try {
          localStorage.removeItem(KEY);
        } catch {}
        render();
        document.querySelector("main h1")?.setAttribute("tabindex", "-1");
        document.querySelector("main h1")?.focus();
      },
    });

  const tick = () => {
    for (const link of document.querySelectorAll(".md-nav--primary a.md-nav__link, [data-progress] a")) {
      const done = !link.hash && state.done.includes(nameOf(link));
      const mark = link.querySelector(".progress-tick");
      if (done && !mark) {
        const made = make("span", { className: "progress-tick", role: "img", ariaLabel: "done" });
        (link.querySelector(".md-ellipsis") ?? link).append(made);
      }
      if (!done) mark?.remove();
    }
  };

  const count = () => {
    for (const part of document.querySelectorAll("[data-progress]")) {
      part.querySelector(":scope > .progress-count")?.remove();
      const links = [...part.querySelectorAll("a")].filter((link) => !link.hash).map(nameOf);
      const names = [...new Set(links)].filter((name) => known.has(name));
      const done = names.filter((name) => state.done.includes(name)).length;
      if (!done) continue;
      const bar = make("progress", { max: names.length, value: done, ariaLabel: "Lectures done" });
      part.prepend(make("p", { className: "progress-count" }, bar, counted(names), " ", forget()));
    }
  };

  const end = () => {
    const place = document.querySelector(".lecture-end");
    if (!place) return;
    const name = here();
    const done = state.done.includes(name);
    let button = place.querySelector(".progress-done");
    if (!button) {
      button = make("button", { type: "button", className: "md-button progress-done" });
      button.onclick = () => {
        const others = state.done.filter((other) => other !== name);
        state.done = others.length < state.done.length ? others : [...others, name];
        save();
        render();
      };
      place.append(make("p", {}, button, make("span", { className: "progress-said", role: "status" })));
    }
    button.ariaPressed = done;
    button.textContent = done ? "Done" : "Mark this lecture as done";
    button.nextSibling.textContent = state.done.length ? counted([...known.keys()]) : "";
  };

  const resume = () => {
    const place = document.querySelector("[data-continue]");
    if (!place) return;
    const names = [...known.keys()];
    const { name, section, heading } = state.last ?? {};
    const read = state.done.includes(name);
    // past a lecture that is done, the first one after it that is not
    const next = read ? names.slice(names.indexOf(name)).find((other) => !state.done.includes(other)) : name;
    place.hidden = !known.has(next);
    if (place.hidden) return place.replaceChildren();
    const at = !read && section ? `#${section}` : "";
    const text = known.get(next).title + (at ? `: ${heading}` : "");
    const link = make("a", { href: new URL(`${next}/${at}`, root).href, textContent: text });
    place.replaceChildren(read ? "Next for you: " : "Continue where you stopped: ", link, ". ", forget());
  };

  const render = () => {
    tick();
    count();
    end();
    resume();
  };

  const stoppedAt = () => {
    const name = here();
    if (!name) return;
    const above = [...document.querySelectorAll("article h2[id]")].filter(
      (heading) => heading.getBoundingClientRect().top < innerHeight / 2,
    );
    const section = above.at(-1)?.id ?? "";
    const heading = above.at(-1)?.firstChild?.textContent ?? "";
    if (state.last?.name === name && state.last.section === section) return;
    state.last = { name, section, heading };
    save();
  };

  let waiting;
  addEventListener("scroll", () => {
    clearTimeout(waiting);
    waiting = setTimeout(stoppedAt, 200);
  }, { passive: true });
  addEventListener("storage", ({ key }) => {
    if (key !== KEY) return;
    load();
    render();
  });
  load();
  document$.subscribe(() => {
    clearTimeout(waiting);
    if (state.last?.name !== here()) stoppedAt();
    render();
  });
})();
