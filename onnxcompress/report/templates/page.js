
"use strict";

// Tables sort by the column whose head is pressed; numbers the largest first.
const value = (row, column) => row.cells[column].textContent.trim();
const numeric = (text) => parseFloat(text.replaceAll(",", ""));

function sort(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numbers = rows.every((row) => !value(row, column) || !isNaN(numeric(value(row, column))));
  const before = heads[column].getAttribute("aria-sort");
  const first = numbers && column ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = before === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (!x || !y) return !x - !y;
    return sign * (numbers ? numeric(x) - numeric(y) : x.localeCompare(y));
  });
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", order);
  body.append(...rows);
}

for (const table of document.querySelectorAll(".sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, column));
    head.append(button);
  });
}

// The bars: which layer is meant is told below them, and the order can be changed.
const figure = document.getElementById("layers");
if (figure) {
  const svg = figure.querySelector("svg");
  const network = [...svg.querySelectorAll(".layer")];
  const rows = [...document.getElementById("table").tBodies[0].rows];
  const places = network.map((layer) => layer.getAttribute("transform"));
  const error = (layer) => Number(layer.dataset.error);
  const orders = {
    "network order": network,
    "worst first": [...network].sort((a, b) => error(b) - error(a)),
  };
  let shown = network;
  let current = -1;

  const told = document.createElement("p");
  told.className = "told";
  told.setAttribute("aria-live", "polite");
  told.textContent = "Point at a column, tap it, or move with the arrow keys.";
  svg.after(told);

  const tell = (place) => {
    document.querySelectorAll(".on").forEach((element) => element.classList.remove("on"));
    current = place;
    const layer = shown[place];
    layer.classList.add("on");
    rows[network.indexOf(layer)].classList.add("on");
    told.textContent = layer.querySelector("title").textContent;
  };

  const bar = document.createElement("div");
  bar.className = "order";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Order of the columns");
  for (const [name, order] of Object.entries(orders)) {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-pressed", order === network);
    button.addEventListener("click", () => {
      shown = order;
      shown.forEach((layer, place) => layer.setAttribute("transform", places[place]));
      for (const one of bar.children) one.setAttribute("aria-pressed", one === button);
    });
    bar.append(button);
  }
  svg.before(bar);

  network.forEach((layer) => {
    layer.addEventListener("mouseenter", () => tell(shown.indexOf(layer)));
    layer.addEventListener("click", () =>
      rows[network.indexOf(layer)].scrollIntoView({ block: "center", behavior: "smooth" }));
  });
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("keydown", (event) => {
    const last = shown.length - 1;
    const steps = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    tell(Math.min(Math.max(steps[event.key], 0), last));
  });
}
