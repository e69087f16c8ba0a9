import { bytes, copyMs, percent, picture, set, significant, time } from "./common.js";

const x = (intensity) => Math.min(456, Math.max(62, 62 + (Math.log10(intensity) + 2) * 62));
const y = (tflops) => Math.min(310, Math.max(24, 310 - (Math.log10(tflops) + 3) * 44));
const tflops = (value) => `${significant(value)}\u00a0TFLOP/s`;
const SCALE = { "": 0, k: 1, m: 2, g: 3, t: 4 };

// A product such as "3 * 4096^2 * 2", "256 MiB" or "1.5e9"; NaN where it is none.
export const parse = (text) =>
  text
    .toLowerCase()
    .replaceAll(",", "")
    .replaceAll("**", "^")
    .split(/[*×]/)
    .map((factor) => {
      const found = factor.trim().match(/^([\d.]+(?:e\d+)?)(?:\^(\d+))?\s*([kmgt]?)(i?)(?:b|bytes?|flops?)?$/);
      if (!found) return NaN;
      const [, base, power = "1", prefix, binary] = found;
      return base ** power * (binary ? 1024 : 1000) ** SCALE[prefix];
    })
    .reduce((product, factor) => product * factor, 1);

// What bounds work on a card, and the least time it takes.
export const bound = (moved, flops, curve, roof) => {
  const [memory, arithmetic] = [copyMs(curve, moved), (flops / roof) * 1e-9];
  return { memory, arithmetic, least: Math.max(memory, arithmetic) };
};

picture("roofline", ({ inputs, parts, recorded }) => {
  const { curve, tbps, roofs } = recorded;

  const read = (input, empty) => {
    const value = empty && !input.value.trim() ? 0 : parse(input.value);
    const fine = value > 0 || (empty && value === 0);
    input.ariaInvalid = String(!fine);
    return fine ? value : NaN;
  };

  return (event) => {
    if (event?.target === inputs.preset) {
      const chosen = inputs.preset.selectedOptions[0].dataset;
      for (const [key, value] of Object.entries(chosen)) inputs[key].value = value;
    } else if (event) {
      inputs.preset.value = "";
    }
    const [moved, flops, us] = [read(inputs.bytes), read(inputs.flops), read(inputs.us, true)];
    const roof = roofs.find(({ key }) => key === inputs.unit.value).tflops;
    set(parts.roof, { d: `M62 ${y(0.01 * tbps)} L${x(roof / tbps)} ${y(roof)} H456` });
    set(parts.level, { y: y(roof) + 26 });
    parts.level.textContent = tflops(roof);
    if (!(moved && flops) || Number.isNaN(us)) {
      parts.says.textContent = "Write numbers or products, such as 2 * 8192 * 8192 * 2, 256 MiB or 1.5e9.";
      return;
    }
    const { memory, arithmetic, least } = bound(moved, flops, curve, roof);
    const at = x(flops / moved);
    const best = y((flops / least) * 1e-9);
    set(parts.drop, { d: `M${at} 310 V${best}` });
    set(parts.best, { cx: at, cy: best });
    set(parts.own, { cx: at, cy: y(us ? (flops / us) * 1e-6 : 1), display: us ? "inline" : "none" });
    const limit = memory > arithmetic ? "Memory" : "Arithmetic";
    const measured = us ? `; the measured ${time(us / 1e3)} is ${percent((least / us) * 1e5)} of that speed` : "";
    parts.says.textContent =
      `${significant(flops / moved)} FLOPs for each byte; the corner lies at ${significant(roof / tbps)}. ` +
      `${limit} is the limit: moving ${bytes(moved)} takes ${time(memory)}, ` +
      `the arithmetic ${time(arithmetic)}. At best ${time(least)}${measured}.`;
  };
});
