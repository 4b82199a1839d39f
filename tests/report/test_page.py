import re
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from distbranch.engine.run_directory import append_line
from distbranch.errors import UserError
from distbranch.report.console import format_size
from distbranch.report.figure_style import GRID, INK, MUTED, PAPER
from distbranch.report.page import draw_svg, format_duration, render_run, report_run
from distbranch.report.pictures import list_pictures
from distbranch.report.run_files import RunFiles, read_run
from distbranch.report.tree_figure import draw_tree

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "img", "path", "use"}


class Balance(HTMLParser):
    """Raises if a tag is closed that is not open; collects ids of sections and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str | None] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "xlink:href") and value
        ]
        if tag == "section" and "id" in values:
            self.sections.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value for key, value in attrs if key in ("src", "href", "xlink:href") and value
        ]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(page: Path) -> Balance:
    parser = Balance()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_the_page_of_a_grown_run_is_whole_and_needs_nothing_from_outside(
    grown_run: Path, task_names: list[str], tmp_path: Path
) -> None:
    page = report_run(grown_run, tmp_path / "out" / "report.html")
    parser = parsed(page)
    assert parser.sections == [
        "tree", "growth", "groups", "affinity", "costs", "curves", "tasks", "throughput", "means", "decisions", "settings",
    ]  # fmt: skip
    assert all(address.startswith(("#", "data:")) for address in parser.addresses)
    assert "@import" not in page.read_text(encoding="utf-8")
    names = {path.stem for path in (page.parent / "report").glob("*.png")}
    assert names == {
        "tree",
        "growth",
        "groups",
        "affinity",
        "costs",
        "curves",
        "tasks",
        "throughput",
    }
    text = page.read_text(encoding="utf-8")
    assert all(task.replace("_", " ") in text for task in task_names)
    assert "132,536" in text
    assert "2 broken-image, 1 truncated" in text


def test_a_run_without_decisions_has_a_page_that_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    page = report_run(make_run(tmp_path / "thin", tasks=list("abcdef"), counts=()))
    assert page == tmp_path / "thin" / "report.html"
    assert parsed(page).sections == ["tree", "curves", "tasks", "throughput", "means", "settings"]
    assert "No decision was taken" in page.read_text(encoding="utf-8")


def test_a_run_that_took_a_given_tree_later_has_a_page_that_says_when(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path, tasks=list("abcdef"), counts=())
    append_line(run / "metrics.jsonl", {"kind": "widened", "iteration": 300, "tree_hash": "f0"})
    text = report_run(run).read_text(encoding="utf-8")
    assert "Up to step 300 all tasks shared every layer" in text
    assert "No decision was taken" not in text


def test_an_unfinished_run_has_a_page_that_says_how_far_it_is(
    make_run: MakeRun, tmp_path: Path
) -> None:
    page = report_run(
        make_run(tmp_path / "begun", tasks=list("abcdef"), counts=(3, 2), finished=False)
    )
    assert "logged 1333 of 4000 iterations" in page.read_text(encoding="utf-8")
    parsed(page)


def test_a_run_that_has_only_its_configuration_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run: {name: '<just> & begun'}\n")
    page = report_run(tmp_path)
    assert parsed(page).sections == ["settings"]
    assert "&lt;just&gt; &amp; begun" in page.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_one_sentence(grown_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report_run(grown_run, tmp_path / "file" / "report.html")


def test_the_neutral_colours_of_a_figure_come_from_the_page(grown_run: Path) -> None:
    svg = draw_svg(draw_tree(read_run(grown_run).layers), "The <tree>")
    assert not [colour for colour in (INK, MUTED, GRID, PAPER) if colour in svg]
    assert "var(--ink)" in svg
    assert re.match(r'<svg role="img" aria-label="The &lt;tree&gt;"', svg)


def test_numbers_are_shown_as_people_read_them() -> None:
    assert [format_size(value) for value in (132_536, 31_400_000, 15.5e9)] == [
        "132,536",
        "31.40 M",
        "15.50 G",
    ]
    assert [format_duration(value) for value in (45, 601, 12_000)] == [
        "45 s",
        "10 min",
        "3 h 20 min",
    ]


def test_the_means_of_a_joint_run_have_a_row_for_every_data_set_with_top_3_and_top_5() -> None:
    means = {"accuracy": 0.5, "top10_recall": None, "top3": 0.75, "top5": 1.0}
    scores = {
        "mean": means,
        "tasks": {},
        "datasets": {"faces": {"mean": {"accuracy": 0.25}}, "<b>": {"mean": means}},
    }
    run = RunFiles(Path("run"), {}, {}, (), (), (), {"metrics": {"test": scores}})
    page = render_run(run, {})
    rows = [re.sub(r"<[^>]+>", " ", row.split("</tr>")[0]).split() for row in page.split("<tr>")]
    found = {tuple(row[:2]): row for row in rows}
    assert found["test,", "faces"][2:3] == ["25.0"]
    assert found["test,", "&lt;b&gt;"][-2:] == ["75.0", "100.0"]
    assert "top-3 %" in page
    assert "top-10" not in page, "no split has it"


def test_an_exclusive_set_has_a_row_among_the_tasks_with_its_own_accuracy() -> None:
    row = {"accuracy": 0.9, "num_labelled": 3, "num_positive": 1}
    scores = {
        "mean": {"accuracy": 0.9},
        "tasks": {"hat": row},
        "exclusive": {"kind": {"accuracy": 0.61, "top3": 1.0}},
    }
    run = RunFiles(Path("run"), {}, {}, (), (), (), {"metrics": {"test": scores}})
    page = render_run(run, {"tasks": list_pictures(run)["tasks"]()})
    table = page[page.index('<section id="tasks">') : page.index('<section id="means">')]
    assert re.sub(r"<[^>]+>", " ", table.split("<tr>")[-1]).split()[:3] == [
        "kind",
        "(arg-max)",
        "61.0",
    ]


def test_the_templates_are_part_of_the_installed_package() -> None:
    """A wheel holds of the data files only those that pyproject.toml names."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    package = Path(__file__).parents[2] / "distbranch" / "report"
    kept = {
        path
        for pattern in settings["package-data"]["distbranch.report"]
        for path in package.glob(pattern)
    }
    assert (
        kept
        == {path for path in package.rglob("*") if path.suffix in (".html", ".css", ".js")}
        != set()
    )
