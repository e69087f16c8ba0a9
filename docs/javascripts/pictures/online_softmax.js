import { fill, picture, set, shape, show, significant } from "./common.js";

const LOWEST = -Number.MAX_VALUE; // finite, as in the lecture's kernel
const value = (x) => (x === LOWEST ? "lowest" : String(x).replace("-", "−").replace("Infinity", "inf"));
// As much of it as a cell has room for.
const short = (x) => {
  const shorter = [value(x), value(Number(x.toPrecision(4))), x.toExponential(0)];
  return shorter.find((text) => text.length <= 6) ?? "…";
};

// Up to eight numbers of a text; null where it holds something else.
export const numbers = (text) => {
  const words = text.split(/[\s,;]+/).filter(Boolean);
  const found = words.map((word) => Number(word.replace(/^([+-]?)inf$/i, "$1Infinity").replace("−", "-")));
  const fine = found.length > 0 && found.length <= 8 && found.every((x) => x < Infinity);
  return fine ? found : null;
};

// The state after each tile: the maximum of the tile and so far, what the old sum is multiplied
// by, and the sum.
export const online = (row, width) => {
  const steps = [];
  let [m, s] = [LOWEST, 0];
  for (let start = 0; start < row.length; start += width) {
    const tile = row.slice(start, start + width);
    const most = Math.max(...tile);
    const larger = Math.max(m, most);
    const factor = Math.exp(m - larger);
    s = tile.reduce((sum, x) => sum + Math.exp(x - larger), s * factor);
    m = larger;
    steps.push({ most, m, factor, s });
  }
  return steps;
};

export const twoPasses = (row) => {
  const m = Math.max(...row);
  return { m, s: row.reduce((sum, x) => sum + Math.exp(x - m), 0) };
};

picture("online_softmax", ({ inputs, parts }) => {
  const bars = [...Array(8).keys()].map((i) => shape("rect", { x: 30 + 56 * i, width: 28 }));
  parts.bars.replaceChildren(...bars);
  let shown = inputs.row.value;
  const go = (to) => {
    inputs.step.value = to;
    inputs.step.dispatchEvent(new Event("input", { bubbles: true }));
  };
  inputs.back.addEventListener("click", () => go(Number(inputs.step.value) - 1));
  inputs.next.addEventListener("click", () => {
    const step = Number(inputs.step.value);
    go(step < inputs.step.max ? step + 1 : 0);
  });

  const end = (row, { m, s }) => {
    const both = twoPasses(row);
    const differ = row.map((x) => Math.abs(Math.exp(x - m) / s - Math.exp(x - both.m) / both.s));
    if (!s) return "Every entry is masked: the sum is 0, and the outputs are NaN, as in PyTorch.";
    const error = Math.max(...differ);
    const apart = error ? ` The outputs differ by rounding, ${error.toExponential(0)} at most.` : "";
    const naive = row.some((x) => x > 709) ? " Without the maximum the sum would be infinite." : "";
    return (
      `The row is read: m\u00a0=\u00a0${value(m)}, s\u00a0=\u00a0${significant(s)}. ` +
      "Two passes, the maximum first and then the sum, " +
      `give m\u00a0=\u00a0${value(both.m)}, s\u00a0=\u00a0${significant(both.s)}.${apart}${naive}`
    );
  };

  const say = (row, width, steps, step) => {
    if (step === steps.length) return end(row, steps.at(-1));
    if (!step) return "Nothing is read: the sum is 0. What will the first tile make of it?";
    const { m, factor, s } = steps[step - 1];
    const before = steps[step - 2];
    const rise =
      !before || before.m === m
        ? `Tile ${step} leaves the maximum at ${value(m)}: the sum grows to ${significant(s)}.`
        : `Tile ${step} raises the maximum from ${value(before.m)} to ${value(m)}: ` +
          `the old sum, ${significant(before.s)}, is multiplied by ${significant(factor)}.`;
    return before ? rise : `Tile 1 sets the maximum to ${value(m)} and the sum to ${significant(s)}.`;
  };

  return (event) => {
    if (event?.target === inputs.preset && inputs.preset.value) inputs.row.value = inputs.preset.value.trim();
    const row = numbers(inputs.row.value);
    inputs.row.ariaInvalid = String(!row);
    if (!row) {
      parts.says.textContent = "Write one to eight numbers with spaces between, such as 1 3 2 -inf.";
      return;
    }
    const known = [...inputs.preset.options].find((o) => o.value && o.value.trim() === inputs.row.value.trim());
    inputs.preset.value = known?.value ?? "";
    const width = Number(inputs.width.value);
    const steps = online(row, width);
    inputs.step.max = steps.length;
    // another row begins anew
    if (shown !== inputs.row.value || event?.target === inputs.width) inputs.step.value = 0;
    shown = inputs.row.value;
    const step = Number(inputs.step.value);
    const state = steps[step - 1] ?? { m: LOWEST, s: 0, factor: 0 };
    show(inputs.step, parts.step, `${step} of ${steps.length}`);
    inputs.back.disabled = step === 0;
    inputs.next.textContent = step < steps.length ? "Read a tile" : "Read again";

    const middle = { "font-size": 15, "text-anchor": "middle" };
    const [cells, terms, tiles] = [[], [], []];
    for (const [i, x] of row.entries()) {
      const read = i < step * width;
      const fresh = read && i >= (step - 1) * width && step < steps.length;
      const kind = fresh ? "dg-b dg-b-line" : read ? "dg-a dg-a-line" : "dg-none dg-line";
      cells.push(shape("rect", { class: kind, x: 16 + 56 * i, y: 30, width: 56, height: 34 }));
      cells.push(shape("text", { class: "dg-text dg-mono", x: 44 + 56 * i, y: 52, ...middle }, short(x)));
      const term = read ? Math.exp(x - state.m) : 0;
      const text = { class: "dg-muted dg-mono", x: 44 + 56 * i, y: 238, ...middle };
      terms.push(shape("text", text, read ? term.toFixed(2) : ""));
      if (i % width === 0) {
        const name = `tile ${i / width + 1}`;
        tiles.push(shape("text", { class: "dg-muted", x: 16 + 56 * i, y: 20, "font-size": 15 }, name));
        tiles.push(shape("path", { class: "dg-line dg-none dg-thick", d: `M${16 + 56 * i} 26 v42` }));
      }
    }
    parts.cells.replaceChildren(...cells);
    parts.terms.replaceChildren(...terms);
    parts.tiles.replaceChildren(...tiles);
    for (const [i, bar] of bars.entries()) {
      const height = i < Math.min(row.length, step * width) ? 120 * Math.exp(row[i] - state.m) : 0;
      const kind = height ? "dg-c dg-c-line" : "dg-none";
      set(bar, { class: kind, y: Number((220 - height).toFixed(2)), height: Number(height.toFixed(2)) });
    }
    const factor = (i) => (i ? `×\u00a0${significant(steps[i].factor)}` : "–");
    parts.m.textContent = step ? value(state.m) : "–";
    parts.factor.textContent = step ? factor(step - 1) : "–";
    parts.s.textContent = step ? significant(state.s) : "0";
    fill(
      parts.steps,
      steps
        .map(({ most, m, s }, i) => [String(i + 1), value(most), value(m), factor(i), significant(s)])
        .map((cells, i) => (i < step ? cells : [cells[0], "", "", "", ""])),
    );
    parts.says.textContent = say(row, width, steps, step);
  };
});
