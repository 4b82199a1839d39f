// Click on a column head to sort by it; a second click turns the order round.
const units = { k: 1e3, M: 1e6, G: 1e9 };
// "● 74.5 ± 0.7" is 74.5, "12.50 M" is 12,500,000, "3.5 kg" is 3.5, and what is unknown comes before every number.
function value(cell) {
  const text = cell.textContent.trim().replace("● ", "").replaceAll(",", "");
  const number = text.match(/^(-?[\d.]+(?:e[+-]\d+)?)(?: ± [\d.]+)?(?: ([^\d\s]\S*))?$/);
  return text === "–" ? -Infinity : number ? number[1] * (units[number[2]] ?? 1) : text;
}
document.querySelectorAll("th[data-sort]").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.dataset.sort !== "down"; head.dataset.sort = down ? "down" : "up";
  const order = (a, b) => a - b || String(a).localeCompare(String(b));
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(value(a.cells[column]), value(b.cells[column])))
    .forEach(row => body.append(row));
}));
