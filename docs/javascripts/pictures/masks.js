import { number, percent, picture, set, shape, show } from "./common.js";

const PER_LINE = 16;
const left = (i) => 16 + (i % PER_LINE) * 28;
const top = (i) => 28 + Math.floor(i / PER_LINE) * 56;

picture("masks", ({ inputs, parts }) => {
  const lane = (i, n, block, lanes) => {
    const series = "ac"[Math.floor(i / block) % 2];
    const box = { x: left(i), y: top(i), width: 26, height: 26 };
    const middle = { x: left(i) + 13, y: top(i) + 18, "font-size": 15, "text-anchor": "middle" };
    if (i < n) {
      return [
        shape("rect", { class: `dg-${series} dg-${series}-line`, ...box }),
        shape("text", { class: "dg-text dg-mono", ...middle }, i),
      ];
    }
    const off = i < lanes;
    return [
      shape("rect", { class: off ? "dg-none dg-b-line dg-dash" : "dg-surface", ...box }),
      shape("text", { class: "dg-muted", ...middle }, off ? "off" : "·"),
    ];
  };

  // a drag along the strip moves its end
  const drag = (event) => {
    if (!event.buttons) return;
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      parts.lanes.getScreenCTM().inverse(),
    );
    const column = Math.min(PER_LINE, Math.max(1, Math.ceil((at.x - 16) / 28)));
    const line = Math.min(3, Math.max(0, Math.floor((at.y - 10) / 56)));
    inputs.n.value = line * PER_LINE + column;
    inputs.n.dispatchEvent(new Event("input", { bubbles: true }));
  };
  parts.lanes.addEventListener("pointerdown", drag);
  parts.lanes.addEventListener("pointermove", drag);

  return () => {
    const n = Number(inputs.n.value);
    const block = 2 ** inputs.block.value;
    const programs = Math.ceil(n / block);
    const lanes = programs * block;
    show(inputs.n, parts.n, number(n));
    show(inputs.block, parts.block, number(block));
    const drawn = [];
    for (let i = 0; i < 64; i++) {
      drawn.push(...lane(i, n, block, lanes));
      if (i % block === 0 && i < lanes) {
        const name = { 1: "", 2: "pid " }[block] ?? "program ";
        const place = { class: "dg-text", x: left(i), y: top(i) - 6, "font-size": 15 };
        drawn.push(shape("text", place, name + i / block));
      }
    }
    parts.lanes.replaceChildren(...drawn);
    set(parts.end, { d: `M${left(n - 1) + 27} ${top(n - 1) - 4} v34` });
    const idle = lanes - n;
    parts.says.textContent =
      `${programs} program${programs > 1 ? "s have" : " has"} ${lanes} lanes, ` +
      `${idle || "none"} of them idle: ${percent((idle / lanes) * 100)}. ` +
      `The last one, program ${programs - 1}, has offs ${lanes - block} to ${lanes - 1} ` +
      `and the mask offs < ${n}. ` +
      `With one warp each they take ${number(programs * 32)} threads.`;
  };
});
