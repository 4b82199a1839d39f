import io

from rich.console import Console

from distbranch.report.console import HEADS, NOT_EVERYWHERE, result_markdown, result_rows, result_table


def result(precision: float, weights: int) -> dict[str, object]:
    mean = {"accuracy": 0.9, "balanced_accuracy": 0.8, "average_precision": precision, "top10_recall": None}
    sizes = {"num_groups_top": 1, "parameters": weights + 100, "weights": weights, "multiply_adds": 12_500_000}
    return {"metrics": {"test": {"mean": mean, "tasks": {}}}, **sizes}


RESULTS = {"thin-16": [result(0.711, 31_992)], "branch-16-2": [result(0.74, 130_000), result(0.75, 132_000)]}


def test_rows_hold_the_mean_and_the_deviation_over_seeds() -> None:
    thin, grown = result_rows(RESULTS)
    assert (thin["seeds"], thin["average_precision"], thin["average_precision_sd"]) == (1, 0.711, None)
    assert abs(grown["average_precision"] - 0.745) < 1e-12
    assert abs(grown["average_precision_sd"] - 0.0070710678) < 1e-9
    assert grown["top10_recall"] is None


def test_the_markdown_table_has_a_row_per_network_and_as_many_cells_as_columns() -> None:
    lines = result_markdown(RESULTS).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {len(HEADS) - len(NOT_EVERYWHERE) + 1}
    assert "74.5 ± 0.7" in lines[3]
    assert "131,000 ± 1,414" in lines[3]
    assert lines[2].endswith("| 31,992 | 12.50 M |")


def test_what_only_some_networks_have_is_a_column_and_a_dash() -> None:
    lines = result_markdown({**RESULTS, "fast": [result(0.7, 5) | {"latency_ms": 1.25}]}).splitlines()
    assert lines[0].endswith("| latency ms |")
    assert [line.rpartition(" | ")[2] for line in lines[2:]] == ["\u2013 |", "\u2013 |", "1.25 |"]


def test_on_a_narrow_terminal_only_the_name_is_folded() -> None:
    for width, results in ((90, RESULTS), (80, {"branch": [result(0.745, 131_000)], "thin-16": [result(0.7, 5)]})):
        screen = Console(file=io.StringIO(), width=width)
        screen.print(result_table(results))
        text = screen.file.getvalue()  # type: ignore[attr-defined]
        assert "\u2026" not in text
        assert all(part in text for part in ("thin-16", "branch", "74.5", "131,000", "12.50M"))
