"""The benchmark of SOMP compares two forms that choose the same rows."""

from bench_somp import bench_somp


def test_both_forms_choose_the_same_rows_and_what_all_would_take_is_in_proportion() -> None:
    whole, part = bench_somp(((64, 200, 12, 12), (96, 40, 20, 5)))
    assert whole.equal_rows
    assert part.equal_rows
    assert (part.matrix, part.num_rows, part.naive_rows) == ("96 x 40", 20, 5)
    assert part.naive_all_seconds == part.naive_seconds * 4
