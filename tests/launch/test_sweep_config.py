"""What a sweep file may say: whatever is wrong with it is one sentence that names the key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_files import write_sweep

from distbranch.config.sweep import load_sweep, sweep_to_yaml
from distbranch.errors import UsageError
from distbranch.sweep.plan import list_trials

GRID = {"grid": {"model.width": [2, 3]}}
SPACE = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "`grid` should name at least one key"),
        ({"grid": {"model.widht": [2]}}, "'model.widht' is unknown. Did you mean model.width"),
        ({**GRID, "concurency": 2}, "'concurency' is unknown. Did you mean concurrency"),
        ({**GRID, "model.width": 2}, "in a sweep write it under `overrides`, `grid` or `space`"),
        ({**GRID, "train": {"iterations": 5}}, "in a sweep write it under `overrides`, `grid` or `space`"),
        ({**GRID, "early_stopping": {"grace": 4, "reductoin": 2}}, "Did you mean early_stopping.reduction"),
        ({**GRID, "early_stopping": 4}, "early_stopping: should hold `key: value` lines, found 4"),
        ({"search": "random", "num_trials": 2, "space": {"optim.lr": {"lo": 1}}}, "Did you mean space.optim.lr.low"),
        ({"grid": {"model.width": []}}, "grid.model.width: Tuple should have at least 1 item"),
        ({"grid": {"model.width": [2, 2]}}, "a value of model.width appears twice"),
        ({"grid": {"method.alpha": [1, 1.0, 2]}}, "a value of method.alpha appears twice in [1, 1.0, 2]"),
        ({"grid": ["model.width"]}, "grid: Input should be a valid dictionary, found ['model.width']"),
        ({"grid": {"run.name": ["a", "b"]}}, "every trial gets its own name"),
        ({**GRID, "overrides": {"launch.workers": 2}}, "give `workers_per_trial`"),
        ({**GRID, "overrides": {"model.width": 4}}, "model.width is varied and also fixed"),
        ({"grid": {"seed": [0, 1]}, "seeds": [0]}, "seed is varied and also fixed"),
        ({**GRID, "seeds": [0], "overrides": {"seed": 1}}, "seed is varied and also fixed"),
        ({**GRID, "seeds": [1, 1]}, "a value of seeds appears twice in [1, 1]"),
        ({**GRID, "num_trials": 4}, "search: grid takes `grid`"),
        ({"search": "random", "num_trials": 4, **GRID}, "search: random takes `space`"),
        ({"search": "random", "space": SPACE}, "search: random needs `num_trials`"),
        ({"search": "optuna", "num_trials": 3}, "`space` should name at least one key"),
        ({"search": "random", "num_trials": 2, "space": {"optim.lr": {"low": 1, "high": 0.1}}}, "low should be below high"),
        (
            {"search": "random", "num_trials": 2, "space": {"optim.lr": {"low": 0, "high": 1, "log": True}}},
            "low should be above 0 with log: true",
        ),
        (
            {"search": "random", "num_trials": 2, "space": {"model.width": {"low": 0.2, "high": 0.9, "int": True}}},
            "space.model.width: a whole number should lie between low=0.2 and high=0.9",
        ),
        ({"search": "random", "num_trials": 2, "space": {"model.width": {"choices": []}}}, "give either a list of choices"),
        ({**GRID, "cost": "weights"}, "`cost` guides search: optuna, found search: grid"),
        (
            {"search": "optuna", "num_trials": 2, "space": SPACE, "cost": "latency"},
            "cost: Input should be 'weights', 'folded_weights', 'multiply_adds' or 'latency_ms', found 'latency'",
        ),
        ({"search": "bayes", **GRID}, "search: Input should be 'grid', 'random' or 'optuna'"),
        ({**GRID, "workers_per_trial": 2, "gpus_per_trial": 3}, "at most one per worker, found 3 for 2"),
        ({**GRID, "trial_directory": "s3://b/runs"}, "trial_directory: should be a folder that all nodes see"),
        ({**GRID, "name": "../up"}, "should be made of letters, digits"),
        ({**GRID, "base": None}, "A sweep needs `base`"),
        ({**GRID, "base": 3}, "base: Input should be a valid string, found 3"),
        ({"variants": {"a": {"base": 3}}}, "`base` should be the config file of a run, found 3"),
        ({**GRID, 1: 2}, "The key '1' is unknown"),
        ({**GRID, "concurrency": 0}, "concurrency: Input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_told_in_one_sentence(
    keys: dict[Any, Any], said: str, tmp_path: Path
) -> None:
    file = write_sweep(tmp_path)
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys, sort_keys=False))
    with pytest.raises(UsageError) as caught:
        load_sweep(file)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"), [("name.x=5", "name: "), ("seeds.x=1", "seeds: "), ("base.x=1", "base: ")]
)
def test_an_override_below_a_value_is_told_in_one_sentence(
    override: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said):
        load_sweep(write_sweep(tmp_path, **{**GRID, "seeds": [0]}), [override])


def test_a_value_that_no_run_takes_is_told_with_its_trial(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, grid={"model.width": [2, 0]}))
    with pytest.raises(UsageError, match=r"The trial width0-seed3 is not possible.*model.width"):
        list_trials(sweep)


def test_an_absent_base_is_told_with_the_files_that_are_there(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, **GRID))
    (tmp_path / "base.yaml").rename(tmp_path / "other.yaml")
    with pytest.raises(UsageError, match=r"base.yaml does not exist. There are: .*other.yaml"):
        list_trials(sweep)


def test_an_override_goes_to_the_sweep_or_to_all_runs_by_its_key(tmp_path: Path) -> None:
    given = [
        "concurrency=3",
        "train.iterations=7",
        "grid.method.alpha=[1, 4]",
        "early_stopping.grace=2",
        "seeds=[5]",
    ]
    sweep = load_sweep(write_sweep(tmp_path, **GRID), given)
    assert sweep.concurrency == 3
    assert sweep.early_stopping is not None
    assert sweep.early_stopping.grace == 2
    assert sweep.varied == ("model.width", "method.alpha", "seed")
    trials = list_trials(sweep)
    assert len(trials) == 4
    assert {(trial.train.iterations, trial.seed) for trial in trials} == {(7, 5)}
    with pytest.raises(
        UsageError, match=r"'iterations' is unknown. Did you mean train\.iterations"
    ):
        load_sweep(write_sweep(tmp_path, **GRID), ["iterations=7"])


def test_what_is_written_is_read_back_as_the_same_sweep(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path, search="random", num_trials=3, space=SPACE | {"model.width": {"choices": [2, 4]}}
    )
    sweep = load_sweep(file)
    again = tmp_path / "again.yaml"
    again.write_text(sweep_to_yaml(sweep))
    assert load_sweep(again) == sweep
