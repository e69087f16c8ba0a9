import { bytes, copyMs, fill, number, percent, picture, set, show, significant, time } from "./common.js";

const SM = 2 ** 18; // bytes of registers, and of L1
const x = (size) => 92 + (Math.log2(size) - 14) * 20.5;
const y = (ms) => 342 - (Math.log10(ms) + 3) * 43;
const tbps = (rate) => `${significant(rate)}\u00a0TB/s`;

picture("memory", ({ inputs, parts, recorded }) => {
  const { curve, full, launch, sms, l2, levels } = recorded;

  const place = (size) => {
    if (size <= SM) return "the registers of one SM would hold it.";
    if (size <= sms * SM) return `the registers of all ${sms} SMs together would hold it.`;
    if (size <= levels[2].holds) return "L2 holds it, the SMs do not.";
    return size <= l2 ? "it is at the edge of L2." : "only HBM holds it all.";
  };

  return () => {
    // two steps to a power of two: 1, 1.5, 2, 3, 4 …
    const step = Number(inputs.size.value);
    const size = 2 ** (step >> 1) * (step % 2 ? 1.5 : 1);
    const ms = copyMs(curve, 2 * size);
    show(inputs.size, parts.size, bytes(size));
    for (const [i, level] of levels.entries()) {
      set(parts[`level${i}`], { class: size <= level.holds ? "dg-c dg-c-line" : "dg-surface dg-line" });
    }
    set(parts.line, { d: `M${x(size)} 26 V352` });
    set(parts.point, { cx: x(size), cy: y(ms) });
    set(parts.here, { x: Math.min(440, Math.max(120, x(size))) });
    parts.here.textContent = bytes(size);
    // beside the curve, on the side that it leaves free
    const early = x(size) < 200;
    set(parts.time, { x: x(size) + (early ? 12 : -12), y: y(ms) - 10 });
    set(parts.time, { "text-anchor": early ? "start" : "end" });
    parts.time.textContent = time(ms);
    fill(
      parts.reads,
      levels.map(({ name, holds, tbps: rate, ns }) => {
        if (size > holds) return [name, "does not fit"];
        if (!rate) return [name, "no time at all"];
        return [name, `${time(ns * 1e-6 + (size / rate) * 1e-9)} at ${tbps(rate)}`];
      }),
    );
    const share = ((2 * size) / ms / full) * 1e-7;
    const paid = ms < 2 * launch ? ", and you pay for the launch" : "";
    parts.says.textContent =
      `${bytes(size)}, ${number(size / 4)} float32 numbers: ${place(size)} ` +
      `A pass that reads it and writes as much takes ${time(ms)}, ` +
      `${percent(share)} of memory’s full speed${paid}.`;
  };
});
