"""Tables of runs with dense tasks: a part per kind, units, and what is too much for a line."""

from distbranch.metrics import list_metrics
from distbranch.report.console import (
    describe_means,
    describe_metric,
    divide_metrics,
    format_value,
    select_metrics,
)

DEPTH = {"abs_error": 0.2849, "rel_error": 0.087, "rmse": 0.4, "delta1": 0.9}
ROOM = {"miou": 0.701, "pixel_accuracy": 0.91, "mean_class_accuracy": 0.8, "iou:wall": 0.9}
BYTES = {name: 14.2 for name in list_metrics() if name.startswith("byte_")}
NORMALS = {"mean_angle": 17.1234, "below_11_25": 0.5}


def test_every_kind_of_dense_task_has_a_table_of_its_own_behind_those_of_others() -> None:
    parts = divide_metrics([{"accuracy": 0.9, "r2": 0.5}, DEPTH, ROOM, NORMALS])
    assert parts[:2] == [["accuracy"], ["r2"]]
    assert sorted(map(tuple, parts[2:])) == sorted(
        [tuple(DEPTH), ("miou", "pixel_accuracy", "mean_class_accuracy"), tuple(NORMALS)]
    )
    assert max(map(len, divide_metrics([NORMALS | BYTES]))) == 6


def test_a_table_of_dense_tasks_alone_has_no_columns_of_classes() -> None:
    assert select_metrics([ROOM]) == ["miou", "pixel_accuracy", "mean_class_accuracy"]
    assert "balanced_accuracy" in select_metrics([ROOM, {"accuracy": 0.5}])


def test_metres_and_degrees_are_told_with_their_unit_and_three_digits() -> None:
    assert [describe_metric(key) for key in ("miou", "abs_error", "mean_angle", "heat_error")] == [
        "mIoU %",
        "abs. error m",
        "mean angle degrees",
        "heat error",
    ]
    assert format_value("mean_angle", 17.1234, 0.71) == "17.1 \u00b1 0.7"
    assert format_value("abs_error", 0.2849) == "0.285"
    assert format_value("miou", 0.7012) == "70.1"


def test_one_metric_stands_for_a_dense_task_in_the_line_of_an_evaluation() -> None:
    means = describe_means(DEPTH | ROOM | NORMALS)
    assert means == {"abs_error": "0.285", "mean_angle": "17.1", "miou": "70.1"}
