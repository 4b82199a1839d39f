"""The trials of a sweep: ordinary runs with names of their own, the same ones every time."""

from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_sweep

from distbranch.config import load_config, to_yaml
from distbranch.config.sweep import SweepConfig, load_sweep
from distbranch.data.shards import read_dataset
from distbranch.errors import UsageError
from distbranch.sweep.plan import get_config_value, list_trials
from distbranch.sweep.tuning import measure_size_class

SPACE = {
    "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.width": {"low": 2, "high": 9, "int": True},
    "data.image_size": {"choices": [[32, 32], [48, 64], None]},
}


def test_a_grid_is_all_combinations_with_every_seed_and_readable_names(tmp_path: Path) -> None:
    sweep = load_sweep(
        write_sweep(tmp_path, grid={"model.width": [2, 3], "method.alpha": [0.5, 2]}, seeds=[0, 1])
    )
    trials = list_trials(sweep)
    assert [trial.run.name for trial in trials] == [
        f"width{width}-alpha{alpha}-seed{seed}"
        for width in (2, 3)
        for alpha in ("0.5", "2")
        for seed in (0, 1)
    ]
    assert {(trial.model.width, trial.method.alpha, trial.seed) for trial in trials} == {
        (width, alpha, seed) for width in (2, 3) for alpha in (0.5, 2.0) for seed in (0, 1)
    }


def test_every_trial_is_an_ordinary_run_in_the_directory_of_the_sweep(tmp_path: Path) -> None:
    sweep = load_sweep(
        write_sweep(tmp_path, grid={"model.width": [2]}, workers_per_trial=2, cpus_per_trial=3)
    )
    (trial,) = list_trials(sweep)
    assert trial.run_directory == tmp_path / "runs" / "tiny" / "width2-seed3"
    assert (trial.launch.workers, trial.launch.cpus_per_worker, trial.launch.device) == (
        2,
        1.5,
        "cpu",
    )
    assert Path(str(trial.data.path)).is_absolute()
    file = tmp_path / "trial.yaml"
    file.write_text(to_yaml(trial))
    assert load_config(file) == trial


def test_draws_are_in_range_repeatable_and_stay_when_more_are_asked_for(tmp_path: Path) -> None:
    def drawn(num_trials: int, seed: int = 0) -> list[dict[str, object]]:
        file = write_sweep(
            tmp_path, search="random", num_trials=num_trials, space=SPACE, search_seed=seed
        )
        return [trial.model_dump() for trial in list_trials(load_sweep(file))]

    few, many, others = drawn(5), drawn(60), drawn(5, seed=1)
    assert many[:5] == few
    assert others != few
    assert len({trial["run"]["name"] for trial in many}) == 60  # type: ignore[index]
    rates = [trial["optim"]["lr"] for trial in many]  # type: ignore[index]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert (
        10 < sum(rate < 1e-3 for rate in rates) < 50
    )  # evenly on a logarithmic scale: about half below the middle
    assert {trial["model"]["width"] for trial in many} == set(range(2, 10))  # type: ignore[index]
    assert {trial["data"]["image_size"] for trial in many} == {(32, 32), (48, 64), None}  # type: ignore[index]


def test_no_setting_is_drawn_twice(tmp_path: Path) -> None:
    def widths(num_trials: int) -> list[int | None]:
        space = {"model.width": {"choices": [2, 4, 8]}}
        file = write_sweep(tmp_path, search="random", num_trials=num_trials, space=space)
        return [trial.model.width for trial in list_trials(load_sweep(file))]

    assert sorted(map(int, filter(None, widths(3)))) == [2, 4, 8]
    assert widths(2) == widths(3)[:2]
    with pytest.raises(UsageError, match=r"found num_trials=4 and 3 settings\. Lower num_trials"):
        widths(4)


def test_names_stay_unique_where_values_look_alike(tmp_path: Path) -> None:
    rates = [0.1234567, 0.1234568, 1e18, 1e-18]
    trials = list_trials(load_sweep(write_sweep(tmp_path, grid={"optim.lr": rates})))
    assert len({trial.run.name for trial in trials}) == 4
    assert [trial.run.name for trial in trials[2:]] == ["lr1e18-seed3", "lr1e-18-seed3"]
    assert [get_config_value(trial, "optim.lr") for trial in trials] == rates


ALIKE: dict[str, list[Any]] = {
    "data.path": ["/d/set a", "/d/set-a", "/d/set/a", "/d/set:a"],
    "optim.lr": [0.1234567, 0.1234568, 0.123457],
    "data.image_size": [[32, 321], [323, 210], None],
    "data.mean": [[0.1234567, 0.5, 0.5], [0.1234568, 0.5, 0.5]],
    "data.cache_directory": ["5", "-5", "none", None, "true", "a b", "a-b"],
    "method.groups": [{"conv1": [["a", "b"]]}, {"conv1": [["a"], ["b"]]}, "conv1"],
    "method.name": ["fixed", "branching", "independent"],
}


@pytest.mark.parametrize("key", ALIKE)
def test_the_name_of_a_value_is_its_own_in_whatever_order_and_company_it_is_given(
    key: str, tmp_path: Path
) -> None:
    values = ALIKE[key]

    def names(given: list[Any]) -> dict[str, str]:
        run = {"method.name": "fixed"} if key == "method.groups" else {}
        trials = list_trials(
            load_sweep(write_sweep(tmp_path, run=run, grid={key: given}, seeds=[0]))
        )
        return {
            repr(value): str(trial.run.name) for value, trial in zip(given, trials, strict=True)
        }

    together = names(values)
    assert len(set(together.values())) == len(values)
    assert names(values[::-1]) == together
    for value in values:
        assert names([value])[repr(value)] == together[repr(value)]


def test_values_whose_text_is_theirs_alone_keep_their_short_names(tmp_path: Path) -> None:
    grid = {
        "optim.lr": [0.01],
        "method.init": ["random"],
        "model.width": [16],
        "data.image_size": [[32, 48]],
    }
    grid |= {"data.flip": [True], "method.max_branches": [None]}
    (trial,) = list_trials(load_sweep(write_sweep(tmp_path, grid=grid)))
    assert (
        trial.run.name
        == "lr0.01-init-random-width16-image-size32x48-fliptrue-max-branchesnone-seed3"
    )


def test_settings_of_the_same_last_word_are_told_apart_when_their_keys_change_places(
    tmp_path: Path,
) -> None:
    def named(grid: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        base = {"data.pack": {"source": "faces", "seed": 5}}
        trials = list_trials(load_sweep(write_sweep(tmp_path, run=base, grid=grid)))
        return {
            str(trial.run.name): (trial.seed, (trial.data.pack or {})["seed"]) for trial in trials
        }

    one = named({"data.pack.seed": [0, 1], "seed": [0, 1]})
    other = named({"seed": [0, 1], "data.pack.seed": [0, 1]})
    assert len(one) == len(other) == 4
    assert all(one[name] == other[name] for name in one.keys() & other.keys())


@pytest.mark.parametrize("key", ["data.path", "data.cache_directory"])
def test_a_run_that_an_earlier_release_began_is_found_by_its_configuration(
    key: str, tmp_path: Path
) -> None:
    def sweep(values: list[str]) -> SweepConfig:
        return load_sweep(write_sweep(tmp_path, grid={key: values}, seeds=[0]))

    new = {value: str(list_trials(sweep([value]))[0].run.name) for value in ("set a", "set+a")}
    (trial,) = list_trials(sweep(["set+a"]))
    short = f"{key.partition('.')[2].replace('_', '-')}-set-a-seed0"  # of both
    before = trial.model_copy(update={"run": trial.run.model_copy(update={"name": short})})
    before.run_directory.mkdir(parents=True)
    (before.run_directory / "config.yaml").write_text(to_yaml(before))
    for order in (["set a", "set+a"], ["set+a", "set a"]):
        names = {
            value: str(found.run.name)
            for value, found in zip(order, list_trials(sweep(order)), strict=True)
        }
        assert names == {"set a": new["set a"], "set+a": short}


def test_a_value_that_is_longer_than_a_name_may_be_is_planned_again_when_the_sweep_is_there(
    tmp_path: Path,
) -> None:
    sweep = load_sweep(write_sweep(tmp_path, grid={"data.path": [f"/{'folder/' * 40}a", "/b"]}))
    sweep.path.mkdir(parents=True)
    assert [len(str(trial.run.name)) <= 80 for trial in list_trials(sweep)] == [True, True]


def test_what_cannot_be_done_is_told_before_anything_starts(tmp_path: Path) -> None:
    grid, stopping = {"model.width": [2]}, {"grace": 4}
    file = write_sweep(
        tmp_path, run={"train.evaluate_every": 0}, grid=grid, early_stopping=stopping
    )
    with pytest.raises(UsageError, match=r"give train\.evaluate_every"):
        list_trials(load_sweep(file))
    with pytest.raises(
        UsageError, match=r"launch\.device=cuda needs to know how many: give `gpus_per_trial`"
    ):
        list_trials(load_sweep(write_sweep(tmp_path, run={"launch.device": "cuda"}, grid=grid)))


def test_optuna_has_no_list_of_trials(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path, search="optuna", num_trials=2, space=SPACE))
    with pytest.raises(UsageError, match="cannot be listed before"):
        list_trials(sweep)


def test_widths_are_size_classes_and_what_acts_at_decisions_is_not(
    tmp_path: Path, tiny_data: Path
) -> None:
    grid = {"model.width": [4, 8, 16], "method.alpha": [0.5, 4]}
    trials = list_trials(load_sweep(write_sweep(tmp_path, tiny_data, grid=grid)))
    info = read_dataset(str(tiny_data))
    classes = {trial.model.width: set[int]() for trial in trials}
    for trial in trials:
        classes[trial.model.width].add(measure_size_class(trial, info))
    assert [len(found) for found in classes.values()] == [1, 1, 1]
    assert len(set.union(*classes.values())) == 3


@pytest.mark.parametrize(
    "file",
    sorted((Path(__file__).parents[2] / "configs").glob("sweep-*.yaml")),
    ids=lambda f: f.stem,
)
def test_the_sweeps_of_the_project_are_valid(file: Path) -> None:
    sweep = load_sweep(file)
    assert sweep.path.name == file.stem
    assert len({trial.run.name for trial in list_trials(sweep)}) >= 4
