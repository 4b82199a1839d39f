from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
from matplotlib.collections import LineCollection
from matplotlib.path import Path as Line
from matplotlib.text import Text

from distbranch.report.cost_figures import Spot, draw_company, draw_deltas
from distbranch.report.figure_style import (
    DARK,
    ORANGE,
    blend_colours,
    choose_text_colour,
    group_colour,
)
from distbranch.report.figures import (
    draw_affinity,
    draw_costs,
    draw_curves,
    draw_scores,
    draw_task_table,
    draw_throughput,
    place_marks,
    sort_tasks,
)
from distbranch.report.pictures import list_pictures
from distbranch.report.run_files import read_run
from distbranch.report.tensorboard import render_pixels


def test_the_matrix_is_ordered_by_group_and_its_diagonal_left_out() -> None:
    affinity = np.array([[1, 0.1, 0.9], [0.1, 1, 0.2], [0.9, 0.2, 1]])
    figure = draw_affinity({"phi": affinity}, ["a", "b", "c"], (("a", "c"), ("b",)))
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown, [[np.nan, 0.9, 0.1], [0.9, np.nan, 0.2], [0.1, 0.2, np.nan]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c", "b"]


def test_white_in_the_matrix_is_independence_whatever_the_values() -> None:
    for affinity in (np.full((4, 4), 0.9), np.full((4, 4), 0.5), np.eye(1)):
        names = list("abcd")[: len(affinity)]
        low, high = (
            draw_affinity({"agreement": affinity}, names, (tuple(names),))
            .axes[0]
            .images[0]
            .get_clim()
        )
        assert low + high == 1.0
        assert low < 0.5 < high


def test_two_hundred_tasks_are_drawn_without_names() -> None:
    names = [f"task_{i}" for i in range(200)]
    figure = draw_affinity(
        {"phi": np.full((200, 200), 0.6)}, names, (tuple(names[:80]), tuple(names[80:]))
    )
    assert not figure.axes[0].get_yticklabels()


def test_names_that_look_like_mathematics_are_drawn_as_they_are(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["price_$5_(10% off)", "price_$x_{", "$\\frac$", "a", "b", "c"]
    run = read_run(make_run(tmp_path / "run", tasks=names, counts=(3, 2)))
    drawn = {name: render_pixels(draw()) for name, draw in list_pictures(run).items()}
    assert {"tree", "groups", "affinity", "tasks"} <= drawn.keys()


def test_the_chosen_number_of_branches_is_marked_on_every_panel(grown_run: Path) -> None:
    decisions = read_run(grown_run).decisions
    panels = [axes for axes in draw_costs(decisions).axes if axes.get_visible()]
    assert len(panels) == len(decisions)
    for axes, decision in zip(panels, decisions, strict=True):
        (mark,) = [line for line in axes.lines if line.get_color() == ORANGE]
        chosen = decision["num_groups"]
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (
            chosen,
            decision["costs"][str(chosen)],
        )


def test_curves_without_evaluations_or_with_a_lost_loss_are_drawn() -> None:
    lines = [
        {"iteration": i, "loss": loss, "learning_rate": 0.1}
        for i, loss in enumerate([3.0, float("nan"), 2.0, None])
    ]
    assert len(draw_curves(lines, []).axes) == 2
    assert len(draw_throughput(lines).axes) == 2


def test_weights_of_losses_are_drawn_where_they_change() -> None:
    lines = [
        {
            "iteration": step,
            "loss": 1.0,
            "learning_rate": 0.1,
            "loss_weights": {"a": 1.0, "b": step},
        }
        for step in (1, 2, 3)
    ]
    panel = draw_curves(lines, []).axes[2]
    assert panel.get_ylabel() == "weights of losses"
    assert {tuple(line.get_ydata()) for line in panel.lines} == {(1, 2, 3)}
    same = [line | {"loss_weights": {"a": 2.0, "b": 1.0}} for line in lines]
    assert len(draw_curves(same, []).axes) == 2


def test_marks_part_shares_near_one_as_far_as_shares_of_equal_odds() -> None:
    low, high, near, best = place_marks("accuracy", [0.8, 8 / 9, 0.99, 1.98 / 1.99])
    assert (low, best) == (0.0, 1.0)
    assert high is not None
    assert near is not None
    np.testing.assert_allclose(best - near, high - low, rtol=0.01)


def test_marks_of_two_runs_lie_on_one_axis_and_what_is_alone_has_none() -> None:
    assert place_marks("r2", [0.5, None], [0.0, 1.0]) == [0.5, None]
    assert place_marks("accuracy", [0.7, None]) == [None, None]
    assert place_marks("accuracy", [0.7, 0.7]) == [None, None]
    assert place_marks("accuracy", [0.0, 1.0]) == [0.0, 1.0]


def test_the_scores_of_a_thin_run_are_dashed_beside_those_of_the_run() -> None:
    ours, thin = (pandas.Series([value, value + 1], index=[1, 2]) for value in (60.0, 50.0))
    figure = draw_scores({"accuracy": ours, "average_precision": ours}, {"accuracy": thin})
    dashed = [[line for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert [list(line.get_ydata()) for line in dashed[0]] == [[50.0, 51.0]]
    assert dashed[1] == []


def test_tasks_are_sorted_by_average_precision_with_the_undefined_last() -> None:
    rows = {
        "a": {"average_precision": 0.2},
        "b": {"average_precision": None},
        "c": {"average_precision": 0.9},
    }
    assert sort_tasks({"tasks": rows}) == ["c", "a", "b"]
    figure = draw_task_table({"tasks": rows}, (("a", "b"),))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["c", "a", "b"]


def test_thirty_groups_have_thirty_colours_with_readable_numbers() -> None:
    colours = [group_colour(number) for number in range(30)]
    assert len(set(colours)) == 30
    assert {choose_text_colour(colour) for colour in colours} == {"#ffffff", DARK}
    assert blend_colours("#000000", "#ffffff", 0.5) == "#808080"


def test_names_of_networks_that_nearly_coincide_cover_neither_each_other_nor_points() -> None:
    def make_spot(name: str, adds: float, weights: float, value: float) -> Spot:
        return Spot(
            name, {"multiply_adds": (adds, None), "weights": (weights, None)}, (value, None)
        )

    line = [
        make_spot(f"thin-{width}", 5e4 * width**2, 120 * width**2, 0.6 + 0.003 * width)
        for width in (8, 16, 32, 64)
    ]
    grown = [
        make_spot(f"branch-{n}", 1.3e7 * (1 + 0.02 * n), 3e4 * (1 + 0.02 * n), 0.65 + 0.004 * n)
        for n in range(4)
    ]
    figure = draw_company({"thin": line}, grown, metric="average_precision", split="test")
    for axes in figure.axes:
        names = [name for name in axes.texts if name.get_visible()]
        assert len(names) == 8
        boxes = [Text.get_window_extent(name) for name in names]
        points = np.concatenate(
            [axes.transData.transform(drawn.get_xydata()) for drawn in axes.lines]
        )
        for box in boxes:
            assert box.count_overlaps(boxes) == 1, "only itself"
            assert not box.count_contains(points)


def test_names_lie_on_no_spread_of_another_network() -> None:
    # As it was with three seeds of dense tasks, where one bar was long and a name stood on it.
    spots = [
        ("single-task", 332e6, 0, 0.002),
        ("hard-sharing", 73.6e6, -0.05, 0.041),
        ("groups", 88.1e6, -0.012, 0.002),
        ("groups-permuted-1", 88.1e6, -0.021, 0.012),
    ]
    made = [
        Spot(name, {"multiply_adds": (adds, None)}, (value, sd)) for name, adds, value, sd in spots
    ]
    figure = draw_deltas({"baselines": made[:2], "given groups": made[2:]}, split="test")
    (axes,) = figure.axes
    bars = [bar for bar in axes.collections if isinstance(bar, LineCollection)]
    parts = [
        Line(axes.transData.transform(part))
        for bar in bars
        for part in bar.get_segments()
        if len(part)
    ]
    assert len(parts) == 4
    names = [name for name in axes.texts if name.get_visible()]
    assert len(names) == 4
    for name in names:
        box = Text.get_window_extent(name)
        assert not any(part.intersects_bbox(box, filled=False) for part in parts), name.get_text()
