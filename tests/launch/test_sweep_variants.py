"""Variants: unlike configurations as an axis of a grid, in a directory that they may share with ordinary runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_files import write_sweep
from tiny_runs import config_of, train_tiny

from distbranch.config import to_yaml
from distbranch.config.sweep import SweepConfig, load_sweep, sweep_to_yaml
from distbranch.errors import UsageError, UserError
from distbranch.report.sweep_files import read_sweep
from distbranch.sweep.plan import group_trials_by_variant, list_trials, order_in_turns
from distbranch.sweep.run import count_workers_asked_for, run_sweep
from distbranch.sweep.shared_prefix import group_by_prefix

VARIANTS = {
    "thin": {"method.name": "fixed"},
    "phi": {"method.affinity": "phi"},
    "wide": {"model.width": 4},
}


def sweep_in(folder: Path, data: Path | str = "data", **keys: Any) -> SweepConfig:
    return load_sweep(write_sweep(folder, data, **{"variants": VARIANTS, "seeds": [0, 1], **keys}))


def test_variants_are_trained_with_every_seed_under_their_own_names(tmp_path: Path) -> None:
    trials = list_trials(sweep_in(tmp_path))
    assert [trial.run.name for trial in trials] == [
        f"{name}-seed{seed}" for name in VARIANTS for seed in (0, 1)
    ]
    assert [(t.method.name, t.method.affinity, t.model.width) for t in trials[::2]] == [
        ("fixed", "agreement", 2), ("branching", "phi", 2), ("branching", "agreement", 4),
    ]  # fmt: skip
    (number,) = list_trials(sweep_in(tmp_path, variants={16: {"model.width": 16}}, seeds=[0]))
    assert number.run.name == "16-seed0"
    crossed = list_trials(sweep_in(tmp_path, grid={"method.alpha": [1, 4]}))
    assert [trial.run.name for trial in crossed[:3]] == [
        "thin-alpha1-seed0",
        "thin-alpha1-seed1",
        "thin-alpha4-seed0",
    ]
    assert len(crossed) == 12


def test_a_variant_may_have_a_base_of_its_own(tmp_path: Path) -> None:
    file = write_sweep(
        tmp_path, variants={"own": {"base": "other.yaml", "optim.lr": 0.5}}, base=None
    )
    other = config_of("data", "runs", **{"model.width": 7, "seed": 11})
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    (trial,) = list_trials(load_sweep(file))
    assert (trial.run.name, trial.model.width, trial.optim.lr) == ("own-seed11", 7, 0.5)
    again = tmp_path / "elsewhere" / "again.yaml"
    again.parent.mkdir()
    again.write_text(sweep_to_yaml(load_sweep(file)))
    assert list_trials(load_sweep(again)) == [trial]


def test_a_command_is_not_heeded_by_some_variants_only(tmp_path: Path) -> None:
    variants = {
        "low": {"method.alpha": 0.5},
        "high": {"method.alpha": 8},
        "cap": {"method.max_branches": 2},
    }
    file = write_sweep(tmp_path, variants=variants, overrides={"method.alpha": 3})
    assert [trial.method.alpha for trial in list_trials(load_sweep(file))] == [
        0.5,
        8,
        3,
    ]  # in a file they may differ
    for given in ("method.alpha=8", "overrides.method.alpha=8"):
        with pytest.raises(
            UsageError,
            match=r"method\.alpha=8 is given for all runs, .* by the variants low; say it once",
        ):
            load_sweep(file, [given])
    trials = list_trials(load_sweep(file, ["method.max_branches=2", "train.iterations=7"]))
    assert {(trial.method.max_branches, trial.train.iterations) for trial in trials} == {(2, 7)}


def test_variants_that_differ_in_how_they_decide_share_their_beginning(tmp_path: Path) -> None:
    variants = {
        "low": {"method.alpha": 0.5},
        "high": {"method.alpha": 8.0, "method.affinity": "phi"},
        **VARIANTS,
    }
    found = group_by_prefix(list_trials(sweep_in(tmp_path, variants=variants, seeds=[0])))
    assert [[trial.run.name for trial in family] for family in found] == [
        ["low-seed0", "high-seed0", "phi-seed0"], ["thin-seed0"], ["wide-seed0"],
    ]  # fmt: skip


def test_a_trial_that_begins_from_another_comes_after_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "tiny"
    variants = {
        "small": {
            "method.init": "somp",
            "method.pretrained": str(runs / "other" / ".." / "wide-seed0"),
        },
        "wide": {"model.width": None, "method.name": "fixed"},
        "smaller": {"method.init": "somp", "method.pretrained": str(runs / "small-seed1")},
    }
    turns = order_in_turns(list_trials(sweep_in(tmp_path, variants=variants)))
    assert [[trial.run.name for trial in turn] for turn in turns] == [
        ["wide-seed0", "wide-seed1"], ["small-seed0", "small-seed1"], ["smaller-seed0", "smaller-seed1"],
    ]  # fmt: skip
    variants["wide"] |= {"method.init": "somp", "method.pretrained": str(runs / "smaller-seed0")}
    with pytest.raises(UsageError, match="begin from one that begins from it, as small-seed"):
        order_in_turns(list_trials(sweep_in(tmp_path, variants=variants)))


def test_a_trial_whose_scout_another_one_trains_comes_after_it(tmp_path: Path) -> None:
    anew = {"method.begin": "anew"}
    scout = str(tmp_path / "runs" / "tiny" / "first-seed{seed}" / "scout")
    variants = {"second": {**anew, "method.scout": scout}, "first": anew}
    turns = order_in_turns(list_trials(sweep_in(tmp_path, variants=variants)))
    names = [{str(trial.run.name).partition("-")[0] for trial in turn} for turn in turns]
    assert names == [{"first"}, {"second"}]


def test_room_is_awaited_for_as_many_trials_as_were_asked_for_and_needed_for_one(
    tmp_path: Path,
) -> None:
    assert count_workers_asked_for(sweep_in(tmp_path, workers_per_trial=2, concurrency=8)) == (
        2,
        16,
    )
    assert count_workers_asked_for(sweep_in(tmp_path)) == (1, 1)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"variants": {"a b": {}}}, "a name should be made of letters, digits, '.', '_' and '-', found 'a b'"),
        ({"variants": {"a": {"model.widht": 2}}}, "'model.widht' is unknown. Did you mean model.width"),
        ({"variants": {"a": 3}}, "variants.a: Input should be a valid dictionary, found 3"),
        ({"variants": ["a"]}, "variants: Input should be a valid dictionary, found ['a']"),
        ({"variants": {"a": {"run.name": "b"}}}, "every trial gets its own name"),
        ({"variants": {"a": {"seed": 3}}}, "seed is varied and also fixed by the variant a"),
        ({"variants": {"a": {"base": "a.yaml"}, "b": {}}, "base": None}, "A sweep needs `base`"),
        ({"search": "random", "num_trials": 2, "space": {"optim.lr": {"low": 1, "high": 2}}}, "`grid` and `variants` are of search"),
    ],
)  # fmt: skip
def test_a_wrong_variant_is_told_in_one_sentence(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        sweep_in(tmp_path, **keys)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finished_run_of_the_name_and_configuration_of_a_trial_is_that_trial(
    tiny_data: Path, tmp_path: Path
) -> None:
    """No Ray is started here: all that the sweep asks for was trained before, as an ordinary run."""
    short = {"method.name": "fixed", "train.iterations": 2, "train.evaluate_every": 0}
    keys = {
        "trial_directory": str(tmp_path / "runs"),
        "run": short,
        "variants": {"thin": {}},
        "seeds": [0],
    }
    sweep = sweep_in(tmp_path, tiny_data, **keys)
    config = config_of(
        tiny_data, tmp_path / "runs", **short, **{"run.name": "thin-seed0", "seed": 0}
    )
    assert train_tiny(config)["end"] == "done"
    written = (tmp_path / "runs" / "thin-seed0" / "result.json").stat().st_mtime_ns

    rows = run_sweep(sweep, lambda _: None)
    assert [(row["trial"], row["variant"], row["status"]) for row in rows] == [
        ("thin-seed0", "thin", "finished")
    ]
    assert rows[0]["latency_ms"] > 0
    assert (tmp_path / "runs" / "thin-seed0" / "result.json").stat().st_mtime_ns == written
    assert read_sweep(tmp_path / "runs" / "tiny").keys == ["variant"]

    other = sweep_in(tmp_path, tiny_data, **{**keys, "variants": {"thin": {"optim.lr": 0.5}}})
    with pytest.raises(
        UserError,
        match=r"thin-seed0 was begun with another configuration \(optim\.lr: 0\.01 -> 0\.5\)\. Give another trial_dir",
    ):
        run_sweep(other, lambda _: None)
    assert group_trials_by_variant(sweep)["thin"] == list_trials(sweep)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"early_stopping": {"grace": 1}, "metric": "top10_recall"}, r"early_stopping\.metric=top10_recall should guide"),
        ({"early_stopping": {"grace": 1, "metric": "top10_recall"}}, r"no task with a defined top10_recall on val"),
        (
            {"search": "optuna", "num_trials": 1, "metric": "top10_recall", "variants": {}, "seeds": None,
             "space": {"optim.lr": {"low": 0.1, "high": 1}}},
            r"^metric=top10_recall should guide the sweep",
        ),
    ],
)  # fmt: skip
def test_what_is_undefined_for_all_tasks_guides_no_sweep(
    keys: dict[str, Any], said: str, tiny_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_sweep(sweep_in(tmp_path, tiny_data, **keys), lambda _: None)
    assert not (tmp_path / "runs").exists()


def test_a_sweep_takes_over_no_run_by_its_name_alone(tiny_data: Path, tmp_path: Path) -> None:
    """A finished trial of an ordinary grid, whose configuration somebody has changed since."""
    short = {"method.name": "fixed", "train.iterations": 2, "train.evaluate_every": 0}
    sweep = load_sweep(
        write_sweep(tmp_path, tiny_data, run=short, grid={"model.width": [2]}, seeds=[0])
    )
    (trial,) = list_trials(sweep)
    trial.run_directory.mkdir(parents=True)
    other = trial.model_copy(update={"optim": trial.optim.model_copy(update={"lr": 0.5})})
    (trial.run_directory / "config.yaml").write_text(to_yaml(other))
    (trial.run_directory / "result.json").write_text("{}")
    with pytest.raises(
        UserError,
        match=r"width2-seed0 was begun with another configuration \(optim\.lr: 0\.5 -> 0\.01\)",
    ):
        run_sweep(sweep, lambda _: None)
    assert not (tmp_path / "runs" / "tiny" / "results.csv").exists()


def test_a_setting_that_no_method_reads_makes_no_other_run(tiny_data: Path, tmp_path: Path) -> None:
    short = {"method.name": "fixed", "train.iterations": 2, "train.evaluate_every": 0}
    keys = {
        "trial_directory": str(tmp_path / "runs"),
        "run": short,
        "variants": {"thin": {}},
        "seeds": [0],
    }
    config = config_of(
        tiny_data, tmp_path / "runs", **short, **{"run.name": "thin-seed0", "seed": 0}
    )
    assert train_tiny(config)["end"] == "done"
    variants = {"thin": {"method.alpha": 9, "method.round_iterations": 100, "optim.decay_every": 3}}
    rows = run_sweep(
        sweep_in(tmp_path, tiny_data, **{**keys, "variants": variants}), lambda _: None
    )
    assert [row["status"] for row in rows] == ["finished"]
    assert train_tiny(config | {"method": {"name": "fixed", "alpha": 0.25}})["end"] == "done"
