import { number, percent, picture, set, show, significant } from "./common.js";

const dollars = (value) => `${value < 0 ? "−" : ""}$${number(Math.abs(value))}`;

// What the whole takes of its time when a share of it becomes so many times as fast (Amdahl).
export const remaining = (share, speedup) => 1 - share + share / speedup;

picture("cost", ({ inputs, parts }) => {
  const rows = [...parts.rows.rows];
  const fields = ["tokens", "rate", "price", "share", "speedup", "days", "day"];

  return (event) => {
    if (event?.target === inputs.op && inputs.op.value) inputs.speedup.value = inputs.op.value;
    if (event?.target === inputs.speedup) inputs.op.value = "";
    const wrong = fields.filter((name) => !inputs[name].value || !inputs[name].checkValidity());
    for (const name of fields) inputs[name].ariaInvalid = String(wrong.includes(name));
    if (wrong.length) {
      const names = wrong.map((name) => inputs[name].labels[0].textContent);
      parts.says.textContent = `Needs a number: ${names.join("; ")}.`;
      return;
    }
    const [tokens, rate, price, points, speedup, days, day] = fields.map((name) => Number(inputs[name].value));
    const share = points / 100;
    const hours = ((tokens * 1e6) / rate / 3600) * (365 / 12);
    const bill = hours * price;
    const left = remaining(share, speedup);
    show(inputs.share, parts.share, percent(points));

    // the longest bar has the full width
    const scale = 448 / Math.max(1, left);
    for (const [name, part] of [["now", share], ["then", share / speedup], ["never", 0]]) {
      set(parts[`${name}-op`], { width: scale * part });
      set(parts[`${name}-rest`], { x: 16 + scale * part, width: scale * (1 - share) });
      parts[name].textContent = `${dollars(bill * (1 - share + part))} a month`;
    }
    for (const [i, row] of rows.entries()) {
      const part = remaining(share, Number(inputs.op.options[i].value));
      row.cells[2].textContent = dollars(bill * (1 - part));
    }
    const saved = bill * (1 - left);
    const work = `${number(days)} days of work, ${dollars(days * day)}, `;
    const back =
      saved > 0 ? `${work}are paid back after ${significant((days * day) / saved)} months.` : `${work}are never paid back.`;
    const formula = `1 / (1 − ${share} + ${share} / ${speedup})`;
    parts.says.textContent =
      `The whole becomes ${significant(1 / left)}× as fast: ${formula}. ` +
      `Of ${number(hours)} GPU-hours a month it ${saved < 0 ? "wastes" : "saves"} ` +
      `${number(Math.abs(hours * (1 - left)))}, ${dollars(Math.abs(saved))} a month ` +
      `and ${dollars(Math.abs(saved) * 12)} a year; ${back}`;
  };
});
