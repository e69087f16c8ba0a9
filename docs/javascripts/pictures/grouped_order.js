import { number, picture, set, shape, show } from "./common.js";

const SIZE = 16; // tiles along M, and along N
const at = (i) => 70 + 22 * i;

// Row and column of a program's tile, as matmul_kernel of the autotuning lecture finds them.
export const tile = (pid, group) => {
  const band = Math.floor(pid / (group * SIZE));
  const height = Math.min(SIZE - band * group, group);
  const within = pid % (group * SIZE);
  return [band * group + (within % height), Math.floor(within / height)];
};

// The bands of A and of B that programs `first` to, not including, `end` touch.
export const touched = (first, end, group) => {
  const [rows, columns] = [new Set(), new Set()];
  for (let pid = first; pid < end; pid++) {
    const [m, n] = tile(pid, group);
    rows.add(m);
    columns.add(n);
  }
  return { rows, columns, loads: rows.size + columns.size };
};

// Loads of all waves, one after the other.
export const total = (wave, group) => {
  let loads = 0;
  for (let first = 0; first < SIZE ** 2; first += wave) loads += touched(first, first + wave, group).loads;
  return loads;
};

picture("grouped_order", ({ inputs, parts }) => {
  const cell = (x, y, width, height) => shape("rect", { x, y, width, height });
  const all = [...Array(SIZE).keys()];
  const rows = all.map((i) => cell(26, at(i), 22, 20));
  const columns = all.map((i) => cell(at(i), 26, 20, 22));
  const tiles = all.map((m) => all.map((n) => cell(at(n), at(m), 20, 20)));
  parts.bands.replaceChildren(...rows, ...columns);
  parts.tiles.replaceChildren(...tiles.flat());
  let timer = 0;

  const go = (to) => {
    inputs.started.value = to;
    inputs.started.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    inputs.play.textContent = "Play";
  };
  const started = () => Number(inputs.started.value);
  inputs.back.addEventListener("click", () => go(started() - 1));
  inputs.next.addEventListener("click", () => go(started() + 1));
  inputs.whole.addEventListener("click", () => {
    const wave = 2 ** inputs.wave.value;
    go((Math.floor(started() / wave) + 1) * wave);
  });
  inputs.play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
  inputs.play.addEventListener("click", () => {
    if (timer) return stop();
    if (started() === SIZE ** 2) go(1);
    inputs.play.textContent = "Stop";
    timer = setInterval(() => {
      if (!inputs.play.isConnected || started() === SIZE ** 2) stop();
      else go(started() + 1);
    }, 150);
  });

  return () => {
    const group = Number(inputs.group.value);
    const wave = 2 ** inputs.wave.value;
    const end = started();
    const first = Math.floor((end - 1) / wave) * wave;
    const now = touched(first, end, group);
    show(inputs.group, parts.group, number(group));
    show(inputs.wave, parts.wave, number(wave));
    parts.started.textContent = end;
    inputs.back.disabled = end === 1;
    inputs.next.disabled = inputs.whole.disabled = end === SIZE ** 2;

    const lit = (element, series) =>
      set(element, { class: series ? `dg-${series} dg-${series}-line` : "dg-surface dg-line" });
    for (const i of all) {
      lit(rows[i], now.rows.has(i) && "b");
      lit(columns[i], now.columns.has(i) && "c");
    }
    for (const element of tiles.flat()) set(element, { class: "dg-surface" });
    const points = [];
    for (let pid = 0; pid < end; pid++) {
      const [m, n] = tile(pid, group);
      lit(tiles[m][n], pid >= first && "a");
      if (pid >= first) points.push(`${at(n) + 10} ${at(m) + 10}`);
    }
    set(parts.order, { d: `M${points.join(" ")} ` });
    const [cx, cy] = points.at(-1).split(" ");
    set(parts.last, { cx, cy });

    const count = end - first;
    const who = count > 1 ? `Programs ${first} to ${end - 1} run together. They touch` : `Program ${first} touches`;
    const bands = `${now.rows.size} band${now.rows.size > 1 ? "s" : ""} of A`;
    const alone = count > 1 ? `, where each alone would need ${2 * count}` : "";
    parts.says.textContent =
      `${who} ${bands} and ${now.columns.size} of B: ${now.loads} loads from HBM${alone}. ` +
      `All ${SIZE ** 2 / wave} waves: ${total(wave, group)} loads; ` +
      `row by row (GROUP_M = 1) they are ${total(wave, 1)}.`;
  };
});
