"use strict";
// Sorts the table of classes. The order is in the address, so it can be bookmarked: #sort=top1, #sort=-top1 (falling).
(() => {
  const table = document.getElementById("class-table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const compareNames = new Intl.Collator("en", { numeric: true }).compare;

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell.classList.contains("number")) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };

  const sort = (column, falling) => {
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "string" ? compareNames(a, b) : a - b;
      return falling ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
    heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };

  const follow = () => {
    const match = /^#sort=(-?)(\w+)$/.exec(location.hash);
    const column = match ? heads.findIndex((head) => head.dataset.key === match[2]) : -1;
    if (column >= 0) sort(column, match[1] === "-");
  };

  heads.forEach((head) => {
    head.querySelector("button").addEventListener("click", () => {
      const again = head.getAttribute("aria-sort") === "ascending";
      location.hash = `sort=${again ? "-" : ""}${head.dataset.key}`;
    });
  });
  addEventListener("hashchange", follow);
  follow();

  const filter = document.getElementById("filter");
  filter.addEventListener("input", () => {
    const text = filter.value.toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[1].textContent.toLowerCase().includes(text);
      shown += !row.hidden;
    }
    document.getElementById("shown").textContent = `${shown} classes`;
  });
})();
