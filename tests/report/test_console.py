import io

import numpy as np
from rich.console import Console
from rich.table import Table

from distbranch.report.console import (
    RARE_SIZES,
    SIZES,
    USUAL,
    make_dataset_table,
    make_result_markdown,
    make_result_table,
    make_score_table,
    tabulate_results,
)
from distbranch.report.tables import FoldedName


def result(precision: float, weights: int) -> dict[str, object]:
    mean = {
        "accuracy": 0.9,
        "balanced_accuracy": 0.8,
        "average_precision": precision,
        "top10_recall": None,
    }
    sizes = {
        "num_groups_top": 1,
        "parameters": weights + 100,
        "weights": weights,
        "multiply_adds": 12_500_000,
    }
    return {"metrics": {"test": {"mean": mean, "tasks": {}}}, **sizes}


NUM_SIZES = len(SIZES) - len(RARE_SIZES)
RESULTS = {
    "thin-16": [result(0.711, 31_992)],
    "branch-16-2": [result(0.74, 130_000), result(0.75, 132_000)],
}


def test_rows_hold_the_mean_and_the_deviation_over_seeds() -> None:
    table = tabulate_results(RESULTS)
    thin, grown = table.iloc[0], table.iloc[1]
    assert (thin["seeds"], thin["average_precision"]) == (1, 0.711)
    assert abs(grown["average_precision"] - 0.745) < 1e-12
    assert abs(grown["average_precision_sd"] - 0.0070710678) < 1e-9
    assert np.isnan([thin["average_precision_sd"], grown["top10_recall"]]).all()


def test_the_markdown_table_has_a_row_per_network_and_as_many_cells_as_columns() -> None:
    lines = make_result_markdown(RESULTS).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {1 + len(USUAL) + NUM_SIZES + 2}
    assert "74.5 ± 0.7" in lines[3]
    assert "131,000 ± 1,414" in lines[3]
    assert lines[2].endswith("| 31,992 | 12.50 M |")


def test_what_only_some_networks_have_is_a_column_and_a_dash() -> None:
    lines = make_result_markdown(
        {**RESULTS, "fast": [result(0.7, 5) | {"latency_ms": 1.25}]}
    ).splitlines()
    assert lines[0].endswith("| latency ms |")
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == ["\u2013 |", "\u2013 |", "1.25 |"]


def test_beside_the_stored_weights_of_differences_stand_those_that_are_served() -> None:
    lines = make_result_markdown(
        {**RESULTS, "delta": [result(0.7, 49_456) | {"folded_weights": 79_024}]}
    ).splitlines()
    assert "| weights | folded weights | multiply adds |" in lines[0]
    assert lines[2].endswith("| 31,992 | \u2013 | 12.50 M |")
    assert lines[4].endswith("| 49,456 | 79,024 | 12.50 M |")


def test_on_a_narrow_terminal_only_the_name_is_folded() -> None:
    for width, results in (
        (90, RESULTS),
        (80, {"branch": [result(0.745, 131_000)], "thin-16": [result(0.7, 5)]}),
    ):
        screen = Console(file=io.StringIO(), width=width)
        screen.print(make_result_table(results))
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert "\u2026" not in text
        assert all(part in text for part in ("thin-16", "branch", "74.5", "131,000", "12.50M"))


def shown(table: object, width: int = 80) -> str:
    screen = Console(file=io.StringIO(), width=width)
    screen.print(table)
    return screen.file.getvalue()  # type: ignore[attr-defined,no-any-return]


ROW = {
    "accuracy": 0.9,
    "balanced_accuracy": 0.8,
    "average_precision": 0.5,
    "top10_recall": 1.0,
    "num_labelled": 30,
}
CHOICE = {
    "accuracy": 0.61,
    "balanced_accuracy": 0.5,
    "top3": 0.84,
    "top5": 0.93,
    "num_labelled": 30,
}
MEAN = {"accuracy": 0.8, "balanced_accuracy": 0.7, "average_precision": 0.5, "top10_recall": 1.0}
CLOTHES = {
    "tasks": {"a hat": ROW},
    "exclusive": {"kind": CHOICE},
    "mean": MEAN | {"top3": 0.84, "top5": 0.93},
    "num_samples": 30,
}
FACES = {"tasks": {"smile": ROW}, "mean": MEAN, "num_samples": 1200}
JOINT = CLOTHES | {
    "tasks": CLOTHES["tasks"] | FACES["tasks"],
    "num_samples": 1230,
    "datasets": {"clothes": CLOTHES, "faces": FACES},
}


def test_top_3_and_top_5_stand_in_the_table_where_a_network_has_exclusive_categories() -> None:
    results = {
        "joint-of-clothes-and-faces": [{**result(0.5, 9_000_000), "metrics": {"test": JOINT}}],
        **RESULTS,
    }
    text = shown(make_result_table(results))
    assert all(part in text for part in ("top-3", "84.0", "93.0", "joint", "9.00M", "74.5")), text
    assert "\u2026" not in text
    assert {line.count("|") for line in make_result_markdown(results).splitlines()} == {
        1 + len(USUAL) + 3 + NUM_SIZES + 2
    }, "top-10, top-3 and top-5 too, all but what is rare"
    assert tabulate_results(results)["top3"][0] == 0.84
    assert tabulate_results(RESULTS)["top3"].isna().all()
    assert "top-3" not in make_result_markdown(RESULTS)


def test_a_metric_that_is_undefined_for_all_tasks_is_a_dash_and_no_missing_column() -> None:
    row = {
        "accuracy": 1.0,
        "balanced_accuracy": None,
        "average_precision": None,
        "top10_recall": None,
    }
    scores = {"num_samples": 3, "mean": row, "tasks": {"always": {**row, "num_labelled": 3}}}
    text = shown(make_score_table(scores))
    assert "precision" in text
    assert "top-10" not in text
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["always"] == ["always", "100.0", "\u2013", "\u2013", "3"]
    assert lines["mean"] == ["mean", "100.0", "\u2013", "\u2013", "\u2013"]


def test_an_evaluation_shows_its_exclusive_sets_and_every_data_set_by_itself() -> None:
    text = shown(make_score_table(CLOTHES))
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines["kind"] == [
        "kind",
        "(arg-max)",
        "61.0",
        "50.0",
        "\u2013",
        "\u2013",
        "84.0",
        "93.0",
        "30",
    ]
    assert lines["mean"][1:7] == ["80.0", "70.0", "50.0", "100.0", "84.0", "93.0"]
    lines = {
        line.split()[0]: line.split()
        for line in shown(make_dataset_table(JOINT, split="val")).splitlines()
        if line.strip()
    }
    assert lines["clothes"] == [
        "clothes",
        "30",
        "1",
        "80.0",
        "70.0",
        "50.0",
        "100.0",
        "84.0",
        "93.0",
    ]
    assert lines["faces"][-2:] == ["\u2013", "\u2013"]
    assert lines["all"][:3] == ["all", "1,230", "2"]


def test_a_long_name_is_folded_at_its_hyphens_and_underscores() -> None:
    table = Table("trial", "value")
    table.add_row(FoldedName("width-16-alpha_0.5-seed0"), "0" * 20)
    lines = [
        line.split("│")[1].strip()
        for line in shown(table, width=34).splitlines()
        if line.startswith("│")
    ]
    assert lines == ["width-16-", "alpha_0.5-", "seed0"]
