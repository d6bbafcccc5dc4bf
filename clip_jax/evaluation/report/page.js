"use strict";
// The page is whole without this: it adds sorting, filters and a choice of theme.

function value(row, column) {
  const cell = row.cells[column];
  const key = cell.dataset.v;
  return key === undefined ? cell.textContent.trim() : Number(key);
}

function compare(a, b) {
  const numbers = typeof a === "number" && typeof b === "number";
  if (numbers) return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const before = heading.getAttribute("aria-sort");
  const first = heading.classList.contains("n") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  for (const cell of heading.parentNode.cells) cell.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const dash = (key) => key === "–";
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => (dash(a) || dash(b) ? dash(a) - dash(b) : sign * compare(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(table, heading));
  }
}

for (const field of document.querySelectorAll("input.filter")) {
  field.hidden = false;
  const rows = [...field.parentNode.querySelectorAll("tbody tr")];
  const texts = rows.map((row) => row.cells[0].textContent.toLowerCase());
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    rows.forEach((row, i) => { row.hidden = !texts[i].includes(wanted); });
  });
}

const folded = document.querySelectorAll("details.more"); // charts, which a print shows
window.addEventListener("beforeprint", () => folded.forEach((part) => { part.open = true; }));

const THEMES = ["auto", "dark", "light"];
const theme = document.getElementById("theme");

function storage(act) {
  try { return act(window.localStorage); } catch { return null; } // not where files have none
}

function choose(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  theme.textContent = `Theme: ${name}`;
  theme.dataset.now = name;
}

const kept = storage((s) => s.getItem("clip_jax_theme"));
choose(THEMES.includes(kept) ? kept : "auto");
theme.hidden = false;
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme.dataset.now) + 1) % THEMES.length];
  choose(next);
  storage((s) => s.setItem("clip_jax_theme", next));
});
