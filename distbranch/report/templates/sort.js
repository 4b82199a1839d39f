// Click on a column head to sort by it; a second click turns the order round.
document.querySelectorAll("th[data-sort]").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.dataset.sort !== "down"; head.dataset.sort = down ? "down" : "up";
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => a - b || String(a).localeCompare(String(b));
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b))).forEach(row => body.append(row));
}));
