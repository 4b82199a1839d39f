"""Names of any script are drawn with whatever font has their letters; where none has, one warning says so."""

import io
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from distbranch.report import figure_style
from distbranch.report.figure_style import STYLE, list_font_families, render_in_style
from distbranch.report.figures import draw_affinity, draw_task_table
from distbranch.report.layers import LayerBranches, format_name
from distbranch.report.page import draw_svg
from distbranch.report.sharing_figures import draw_groups, draw_policy
from distbranch.report.tree_figure import draw_tree

PRIVATE = "\uf8fe\uf8fd"  # letters of no alphabet: they stand for those of a script without a font
FAMILY = "Unifont"  # one of those that are looked for
NAMES = (PRIVATE, f"{PRIVATE} glasses", "line\nbreak", "tab\there", "$x_1", "plain")
LAYERS = (LayerBranches("conv", (NAMES,)), LayerBranches("fc", (NAMES[:2], NAMES[2:4], NAMES[4:])))


def figures() -> Iterator[Figure]:
    groups = LAYERS[-1].branches
    scores = {
        "tasks": {
            name: {"accuracy": 0.5, "average_precision": 0.5, "num_positive": 3} for name in NAMES
        }
    }
    yield draw_tree(LAYERS, title=f"{PRIVATE} run")
    yield draw_groups(LAYERS)
    yield draw_affinity({"phi": np.full((6, 6), 0.5)}, list(NAMES), groups)
    yield draw_task_table(scores, groups, title=f"{PRIVATE}: test")
    blocks = ["block1_1", "block1_2"]
    yield draw_policy({"tasks": list(NAMES), "blocks": blocks, "policy": [[1, 0]] * 6})


@pytest.fixture
def font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A font that is installed while a test runs; its letters are filled squares, a whole em wide."""
    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 1000), (1000, 1000), (1000, 0)):
        (pen.moveTo if (x, y) == (0, 0) else pen.lineTo)((x, y))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap(dict.fromkeys(map(ord, PRIVATE), "square"))
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": FAMILY, "styleName": "Regular", "psName": "Squares"})
    builder.setupOS2(sTypoAscender=1000)
    builder.setupPost()
    file = tmp_path / "squares.ttf"
    builder.save(file)
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(file)
    list_font_families.cache_clear()
    monkeypatch.setitem(STYLE, "font.family", list_font_families())
    yield file
    list_font_families.cache_clear()


def rendered(figure: Figure) -> str:
    """The figure drawn as pixels and as SVG; returns the latter."""
    FigureCanvasAgg(figure)
    figure.savefig(io.BytesIO(), format="png")
    return draw_svg(figure, "a figure")


def test_a_font_that_is_installed_draws_what_the_usual_one_lacks(
    font: Path, recwarn: pytest.WarningsRecorder
) -> None:
    assert FAMILY in list_font_families()
    for figure in figures():
        with render_in_style():
            assert "Squares-" in rendered(
                figure
            )  # the letters of an SVG are paths, named by their font
    assert not [one for one in recwarn.list if "Glyph" in str(one.message)]


def test_letters_without_a_font_are_one_warning_over_all_figures(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    figure_style._warn_of_missing_font.cache_clear()
    for figure in figures():
        with render_in_style():
            rendered(figure)
    assert [record.message for record in caplog.records] == [
        record.message
        for record in caplog.records
        if "figures show boxes in their place" in record.message
    ]
    assert len(caplog.records) == 1
    assert not recwarn.list


def test_other_warnings_pass() -> None:
    with pytest.warns(UserWarning, match="something else"), render_in_style():
        warnings.warn("something else", stacklevel=1)


def test_a_name_is_one_line() -> None:
    assert [format_name(name) for name in ("a_b", "line\nbreak", "tab\t\there ", "_x_", "two\r\n\r\nlines")] == [
        "a b", "line break", "tab here", "x", "two lines"
    ]  # fmt: skip


def test_the_fonts_of_whoever_imports_the_package_stay_as_they_are() -> None:
    said = "import matplotlib; before = dict(matplotlib.rcParams); import distbranch.report.page, distbranch.report.sweep_page; "
    said += "assert dict(matplotlib.rcParams) == before"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", said]).returncode == 0
