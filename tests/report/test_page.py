import json
import re
import shutil
import tomllib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from distbranch.engine.run_directory import append_line
from distbranch.errors import UserError
from distbranch.report.console import format_size
from distbranch.report.figure_style import GRID, INK, MUTED, PAPER
from distbranch.report.page import draw_svg, format_duration, render_run, report_run
from distbranch.report.pictures import list_pictures
from distbranch.report.run_files import RunFiles, read_run, read_thin
from distbranch.report.starts import list_repeat_commands, tabulate_starts
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
        "tree", "growth", "groups", "affinity", "costs", "curves", "scores", "tasks",
        "throughput", "means", "decisions", "starts", "settings",
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
        "scores",
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
    sections = ["tree", "curves", "scores", "tasks", "throughput", "means", "starts", "settings"]
    assert parsed(page).sections == sections
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


def test_every_task_has_its_gain_over_a_thin_run(make_run: MakeRun, tmp_path: Path) -> None:
    tasks = list("abcdef")
    folders = [
        make_run(tmp_path / name, tasks=tasks, counts=(), seed=seed)
        for seed, name in enumerate(("thin", "grown"))
    ]
    thin, run = map(read_run, folders)
    page = render_run(run, {"tasks": Figure()}, read_thin(run, folders[0]))
    known = tasks[:-1]  # the last one has no positives, and so no average precision
    now, before = run.get_rows("test"), thin.get_rows("test")
    gains = [now[task]["average_precision"] - before[task]["average_precision"] for task in known]
    better = sum(gain > 0 for gain in gains)
    assert f"that of thin (hollow marks); better on {better} of 5 tasks" in page
    assert all(f">{100 * gain:+.1f}</td>" in page for gain in gains)

    # without being told: the scout of a run is its thin network
    assert read_thin(run, None) is None
    shutil.copytree(folders[0], folders[1] / "scout")
    found = read_thin(run, None)
    assert found is not None
    assert found.get_rows("test") == before


def test_a_run_of_other_tasks_is_nothing_to_be_compared_with(
    make_run: MakeRun, grown_run: Path, tmp_path: Path
) -> None:
    other = make_run(tmp_path / "other", tasks=list("abcdef"), counts=())
    with pytest.raises(UserError, match=r"should be a run that was evaluated on test and tasks of"):
        report_run(grown_run, tmp_path / "page.html", against=other)


def test_the_page_says_when_and_where_a_run_began_and_how_to_repeat_it(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", tasks=list("abcdef"), counts=())
    (run / "environment.json").write_text('{"host": "node7", "commit": "12da64d"}')
    (run / "tensorboard").mkdir()
    for name in ("0000000000.beginning.0", "1700000000.node7.1.0", "1700009999.node8.1.0"):
        (run / "tensorboard" / f"events.out.tfevents.{name}").touch()
    text = " ".join(render_run(read_run(run), {}).split())
    assert "Begun 2023-11-14 22:13 UTC on node7, commit 12da64d." in text
    assert f"distbranch train {run}/config.yaml --fresh" in text


def test_the_page_has_a_row_per_start_and_the_commands_that_bring_its_code_back(
    make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "my run", tasks=list("abcdef"), counts=())
    first = {
        "at": "2026-11-30T17:39:12+00:00", "iteration": 0, "host": "node7", "world_size": 2,
        "commit": "a" * 40 + "+", "uncommitted_sha256": "b" * 64, "packages_sha256": "c" * 64, "data": "d" * 64,
        "command": "distbranch train <mine>.yaml",
    }  # fmt: skip
    second = {**first, "iteration": 2000, "commit": None, "uncommitted_sha256": None}
    environment = {**second, "starts": [first, second]}
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "packages.txt").write_text("numpy==2.0\n")
    cells = tabulate_starts(environment)
    assert list(cells["after step"]) == ["0", "2,000"]
    assert list(cells["commit"]) == ["aaaaaaaaa+", "unknown"]
    assert list(cells["changes"]) == ["bbbbbbbbb", "none"]
    text = " ".join(render_run(read_run(run), {}).split())
    assert "Begun 2026-11-30 17:39 UTC on node7, commit unknown." in text
    assert "<code>distbranch train &lt;mine&gt;.yaml</code>" in text
    quoted = f"'{run}"
    assert list_repeat_commands(read_run(run)) == [
        f"pip install -r {quoted}/packages.txt'",
        f"distbranch train {quoted}/config.yaml' --fresh",
    ]
    (run / "environment.json").write_text(json.dumps({**environment, **first}))
    (run / "uncommitted.diff").write_text("a difference\n")
    assert list_repeat_commands(read_run(run))[:2] == [
        f"git checkout {'a' * 40}",
        f"git apply {quoted}/uncommitted.diff'",
    ]


def test_a_wide_page_stretches_figures_and_a_narrow_one_shrinks_none_until_its_letters_are_lost(
    grown_run: Path,
) -> None:
    svg = draw_svg(draw_tree(read_run(grown_run).layers), "The tree")
    width = re.search(r'width="([\d.]+)pt"', svg)
    assert width is not None
    assert f"max-width: calc(1.5 * {width[1]}pt)" in svg
    assert f"min-width: calc(0.6 * {width[1]}pt)" in svg
    # a telephone's 500 pixels less its margins
    assert 0.6 * float(width[1]) / 0.75 < 470


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
    assert "Top-3 %" in page
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
