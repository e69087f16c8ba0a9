// What the pictures that move share. Without a script each is a drawing, its caption and an answer.

// Sets up the picture of that name, on this page and on each that instant navigation brings.
// `start` gets the form's inputs, the elements marked data-part and what was recorded; it returns
// the function that draws the state of the inputs.
export const picture = (name, start) =>
  document$.subscribe(() => {
    const figure = document.getElementById(`picture-${name}`);
    if (!figure || figure.dataset.ready) return;
    figure.dataset.ready = "true";
    const form = figure.querySelector("form");
    const marked = [...figure.querySelectorAll("[data-part]")];
    const parts = Object.fromEntries(marked.map((element) => [element.dataset.part, element]));
    const recorded = JSON.parse(form.dataset.recorded ?? "{}");
    const draw = start({ inputs: form.elements, parts, recorded });
    form.addEventListener("input", draw);
    form.addEventListener("submit", (event) => event.preventDefault());
    draw();
  });

// An element of a drawing.
export const shape = (tag, attributes, text = "") => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};

export const set = (element, attributes) => {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
};

// A table's body, from rows of text.
export const fill = (body, rows) =>
  body.replaceChildren(
    ...rows.map((cells) => {
      const row = document.createElement("tr");
      for (const cell of cells) row.insertCell().textContent = cell;
      return row;
    }),
  );

// The value of a slider whose label shows it, in words that a screen reader says, too.
export const show = (input, element, text) => {
  element.textContent = text;
  input.ariaValueText = text;
};

// Numbers as scripts/rows.py writes them.

export const number = (value, decimals = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });

export const significant = (value, digits = 3) => {
  if (!value) return "0";
  const exponent = Number(value.toExponential(digits - 1).split("e")[1]);
  return number(value, Math.max(0, digits - 1 - exponent));
};

export const time = (ms) => {
  const power = ms < 1e-3 ? 2 : ms < 1 ? 1 : 0;
  return `${significant(ms * 1e3 ** power)}\u00a0${["ms", "µs", "ns"][power]}`;
};

export const percent = (value) => `${value.toFixed(0)}\u00a0%`;

export const bytes = (value) => {
  const power = value >= 1 ? Math.min(4, Math.floor(Math.log2(value) / 10)) : 0;
  const scaled = value / 1024 ** power;
  const text = scaled >= 100 ? number(scaled) : Number(scaled.toPrecision(3));
  return `${text}\u00a0${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
};

// Time to copy, from recorded pairs of bytes moved and ms: linear between two, the last line goes
// on, and the smallest is the cost of a launch.
export const copyMs = (curve, moved) => {
  if (moved <= curve[0][0]) return curve[0][1];
  const found = curve.findIndex(([size]) => moved <= size);
  const above = found < 0 ? curve.length - 1 : found;
  const [[low, lowMs], [high, highMs]] = [curve[above - 1], curve[above]];
  return lowMs + ((moved - low) / (high - low)) * (highMs - lowMs);
};
