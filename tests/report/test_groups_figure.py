from itertools import pairwise

from matplotlib.patches import FancyBboxPatch
from test_tree_figure import random_tree

from distbranch.report.layers import describe_run, merge_equal_layers
from distbranch.report.sharing_figures import draw_groups


def test_every_branch_of_every_layer_is_one_box_around_its_tasks() -> None:
    for seed in range(3):
        layers = random_tree(40, 9, 15, seed)
        (axes,) = draw_groups(layers).axes
        boxes = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        columns = list(reversed(merge_equal_layers(layers)))
        assert len(boxes) == sum(len(column[0].branches) for column in columns)
        for column in columns:  # heights in order of rows tell how many tasks each box is around
            own, boxes = boxes[: len(column[0].branches)], boxes[len(column[0].branches) :]
            rows = sorted(round((box.get_height() + 0.06) / 0.19) for box in own)
            assert rows == sorted(map(len, column[0].branches))
            spans = sorted((box.get_y(), box.get_y() + box.get_height()) for box in own)
            assert all(above[1] < below[0] for above, below in pairwise(spans))


def test_every_task_and_every_layer_is_named() -> None:
    layers = random_tree(12, 4, 6, 0)
    shown = [text.get_text() for text in draw_groups(layers).axes[0].texts]
    assert {f"Task number {i}" for i in range(12)} <= set(shown)
    assert {
        describe_run(run)[0].replace(" … ", "\n… ") for run in merge_equal_layers(layers)
    } <= set(shown)
