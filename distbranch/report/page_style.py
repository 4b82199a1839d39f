"""The look of the page: colours for light and dark, tiles, tables with bars. Inline, so that the page works offline and alone."""

CSS = """
:root { color-scheme: light dark; --ink: #1b2430; --muted: #68707a; --grid: #d9dde2; --paper: #fefefd; --back: #f3f4f2;
        --accent: #3b6fb6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --muted: #9aa3ad; --grid: #3a424c; --paper: #181d23; --back: #101418; --accent: #7da8e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 0; font-size: 30px; letter-spacing: -0.01em; }
h2 { margin: 0 0 4px; font-size: 19px; }
p.lead, p.note { color: var(--muted); margin: 2px 0 14px; max-width: 90ch; }
section { background: var(--paper); border: 1px solid var(--grid); border-radius: 12px; padding: 18px 20px; margin: 18px 0;
          overflow-x: auto; }
.notice { border-left: 5px solid #e0702b; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { background: var(--paper); border: 1px solid var(--grid); border-radius: 12px; padding: 12px 14px; }
.tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tile span { color: var(--muted); font-size: 13px; }
.figure svg { display: block; width: 100%; height: auto; }
.figure img { display: block; max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--grid); padding: 6px 10px; }
td { border-bottom: 1px solid var(--grid); padding: 4px 10px; vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
th[data-sort] { cursor: pointer; }
th[data-sort]:hover { color: var(--ink); }
td.bar { min-width: 150px; white-space: nowrap; }
.rail { display: inline-block; width: calc(100% - 56px); min-width: 80px; height: 10px; margin-right: 8px; border-radius: 3px;
        background: var(--grid); }
.rail i { display: block; height: 100%; border-radius: 3px; }
.chip { display: inline-block; min-width: 22px; padding: 0 6px; border-radius: 11px; font-size: 12px; font-weight: 700;
        line-height: 20px; text-align: center; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: var(--back); border-radius: 8px; padding: 12px; font-size: 13px; }
footer { color: var(--muted); font-size: 13px; }
@media print { body { background: none; } section { break-inside: avoid; } }
"""

# Click on a column head of the task table to sort by it; a second click turns the order round.
SCRIPT = """
document.querySelectorAll("th[data-sort]").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const down = head.dataset.sort !== "down"; head.dataset.sort = down ? "down" : "up";
  const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => a - b || String(a).localeCompare(String(b));
  [...body.rows].sort((a, b) => (down ? -1 : 1) * order(value(a), value(b))).forEach(row => body.append(row));
}));
"""
