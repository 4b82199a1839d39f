"""Successive halving within size classes, against a slow reference and planted sweeps."""

import math
from pathlib import Path

import numpy as np
import pytest
from sweep_files import write_sweep

from distbranch.config.sweep import load_sweep
from distbranch.errors import UsageError
from distbranch.sweep import tuning
from distbranch.sweep.plan import load_base_config
from distbranch.sweep.queue import SizeClassHalving
from distbranch.sweep.run import run_sweep


def test_a_small_network_is_never_judged_by_large_ones() -> None:
    halving = SizeClassHalving(grace=10, reduction=2)
    assert all(halving.passes_rung(f"large-{n}", "large", 10, 0.9 + n / 100) for n in range(8))
    small = [halving.passes_rung(f"small-{n}", "small", 10, 0.1 + n / 100) for n in range(8)]
    assert all(small)  # each is the best of its class so far, though worse than every large one
    assert not halving.passes_rung("small-bad", "small", 10, 0.05)


@pytest.mark.parametrize("reduction", [2.0, 3.0, 4.0])
def test_who_passes_is_who_lies_above_the_quantile_of_its_class_and_rung(reduction: float) -> None:
    rng = np.random.default_rng(1)
    halving, seen = (
        SizeClassHalving(grace=5, reduction=reduction),
        dict[tuple[int, int], list[float]](),
    )
    for trial in range(200):
        size, value = int(rng.integers(3)), float(rng.random())
        iteration = 5 * reduction ** int(rng.integers(3))
        rung = round(math.log(iteration / 5, reduction))
        others = seen.setdefault((size, rung), [])
        others.append(value)
        cut = np.quantile(others, 1 - 1 / reduction) if len(others) >= reduction else -1
        assert halving.passes_rung(str(trial), size, round(iteration), value) == (value >= cut)


def test_the_best_of_a_class_always_passes_and_about_one_of_the_reduction_does() -> None:
    rng = np.random.default_rng(2)
    halving = SizeClassHalving(grace=1, reduction=3)
    values = rng.random(300)
    passed = [halving.passes_rung(str(n), 0, 1, value) for n, value in enumerate(values)]
    assert passed[int(values.argmax())]
    assert 0.28 < np.mean(passed) < 0.42


def test_nobody_is_judged_before_the_grace_and_nobody_twice_at_a_rung() -> None:
    halving = SizeClassHalving(grace=10, reduction=2)
    for n in range(5):
        assert halving.passes_rung(f"good-{n}", 0, 9, 0.9)
        assert halving.passes_rung(f"good-{n}", 0, 10, 0.9)
    assert halving.passes_rung("bad", 0, 9, 0.0)
    assert not halving.passes_rung("bad", 0, 10, 0.0)
    assert halving.passes_rung("good-0", 0, 15, 0.0)  # still in the rung at which it has passed
    assert [halving.find_rung(steps) for steps in (9, 10, 19, 20, 40, 79)] == [None, 0, 0, 1, 2, 2]


def test_what_others_reached_with_more_steps_is_not_held_against_a_trial() -> None:
    halving = SizeClassHalving(grace=1000, reduction=3)
    assert all(halving.passes_rung(f"late-{n}", 0, 2500, 0.74 + n / 100) for n in range(3))
    assert all(halving.passes_rung(f"first-{n}", 0, 1000, 0.70 + n / 100) for n in range(3))
    assert not halving.passes_rung("poor", 0, 1000, 0.69)


@pytest.mark.parametrize(("metric", "passing"), [("r2", 0.9), ("standardised_error", 0.1)])
def test_of_an_error_the_trial_that_errs_least_trains_on(
    metric: str, passing: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = {"grace": 1, "reduction": 2}
    grid = {"model.width": [2, 3]}
    sweep = load_sweep(write_sweep(tmp_path, metric=metric, early_stopping=stopping, grid=grid))
    monkeypatch.setattr(tuning, "read_data", lambda _: None)
    monkeypatch.setattr(tuning, "measure_size_class", lambda *_: 0)
    judge = tuning._make_judge(sweep, metric, [])
    base = load_base_config(sweep)

    def passes(name: str, value: float) -> bool:
        named = base.model_copy(update={"run": base.run.model_copy(update={"name": name})})
        return judge(named, 1, value)

    passes("first", 0.5)
    assert [passes(f"{value}", value) for value in (passing, 1 - passing)] == [True, False]


def test_an_unknown_metric_is_answered_with_the_means_there_are(tmp_path: Path) -> None:
    grid = {"model.width": [2, 3]}
    sweep = load_sweep(write_sweep(tmp_path, metric="mean_absolute_error", grid=grid))
    with pytest.raises(
        UsageError, match=r"^metric should be one of .* accuracy, .*standardised_error"
    ):
        run_sweep(sweep, lambda _: None)
