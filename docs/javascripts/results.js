// Makes the results table sortable and filterable; without it the table is plain and complete.
document$.subscribe(() => {
  const table = document.querySelector(".results table");
  if (!table || table.dataset.ready) return;
  table.dataset.ready = "true";
  const body = table.tBodies[0];
  const rows = [...body.rows];

  const label = document.createElement("label");
  label.className = "results-filter";
  label.textContent = "Show rows with ";
  const input = document.createElement("input");
  input.type = "search";
  input.placeholder = "softmax bfloat16";
  const count = document.createElement("output");
  label.append(input, count);
  table.closest(".results").prepend(label);
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  input.addEventListener("input", filter);
  filter();

  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const compare = (a, b) => key(a, column).localeCompare(key(b, column), "en", { numeric: true });
      const numeric = rows.every((row) => Number.isFinite(Number(key(row, column))));
      const order = numeric ? (a, b) => key(a, column) - key(b, column) : compare;
      // dashes last, either way
      const known = (row) => row.cells[column].textContent !== "–";
      body.append(...rows.sort((a, b) => known(b) - known(a) || (down ? order(b, a) : order(a, b))));
    });
  }
});
