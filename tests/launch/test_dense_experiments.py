"""The comparison of dense tasks: what is trained, Delta by hand on runs made up with known numbers, errors of which less is better."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pandas import DataFrame
from test_experiments import check_findings, listed, made_up
from tiny_rooms import pack_tiny_rooms, rooms_config
from tiny_runs import pack_tiny

from distbranch.errors import UsageError, UserError
from distbranch.experiments import dense, policies
from distbranch.experiments.analyses import compare_methods, describe_differences, format_table
from distbranch.experiments.deltas import tabulate_deltas
from distbranch.experiments.pairs import describe_against
from distbranch.experiments.runner import Experiment, build_sweep
from distbranch.experiments.runs import Run, tabulate_runs
from distbranch.sweep.plan import group_trials_by_variant

SEARCH_AND_EIGHT = 10  # with the most probable policy


def rooms_run(seed: int, miou: float, angle: float, *, cost: float = 1000) -> Run:
    """A finished run of a task of classes and of one of normals, equally good on val and test."""
    run = made_up(seed, weights=cost)
    rows = {
        "seg": {"miou": miou, "pixel_accuracy": miou},
        "normals": {"mean_angle": angle, "median_angle": angle, "below_30": 0.5},
    }
    mean = {**rows["seg"], **rows["normals"]}
    for split in ("val", "test"):
        run.summary["metrics"][split] = {"tasks": rows, "mean": mean}
    run.summary["head_weights"] = run.summary["head_multiply_adds"] = 400
    return run


# ---- Delta


def test_delta_is_the_mean_over_tasks_of_that_over_their_metrics_and_of_errors_less_is_better() -> (
    None
):
    single = listed({"single-task": [rooms_run(0, 0.5, 18), rooms_run(1, 0.5, 22)]})
    (row,) = tabulate_deltas([rooms_run(0, 0.6, 15)], single, "test").to_dict("records")
    assert row["delta"] == pytest.approx(np.mean([0.2, np.mean([0.25, 0.25, 0])]))
    assert row["delta_first"] == pytest.approx(np.mean([0.2, 0.25]))
    spread = tabulate_deltas(single, single, "test")["delta"]
    assert spread.mean() == pytest.approx(0)
    assert spread.std() > 0


def test_a_delta_against_zero_is_unknown_and_the_reason_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    single = listed({"single-task": [rooms_run(0, 0.0, 18)]})
    assert tabulate_deltas(single, single, "val")["delta"].isna().all()
    assert "There is no Delta: the baseline should have miou of the task 'seg'" in caplog.text


def test_the_table_has_the_first_metrics_first_costs_without_heads_and_the_best_policy_on_val(
    tmp_path: Path,
) -> None:
    known = {
        "single-task": [rooms_run(0, 0.5, 20), rooms_run(1, 0.5, 20)],
        "adashare-search": [rooms_run(0, 0.9, 1), rooms_run(1, 0.9, 1)],
        "adashare-policy-0": [rooms_run(0, 0.6, 20), rooms_run(1, 0.5, 25)],
        "adashare-policy-1": [rooms_run(0, 0.5, 25), rooms_run(1, 0.6, 20)],
    }
    experiment = Experiment(
        "x", {}, {}, analyse=lambda runs: dense.analyse_dense(runs, "test", ["A note."])
    )
    findings = check_findings(experiment, listed(known), tmp_path)
    table = findings.table.set_index("network")
    assert list(table.index) == [*(name for name in known if "search" not in name), dense.BEST]
    best = table.loc[dense.BEST]
    assert (best["miou"], best["miou_sd"], best["mean_angle"]) == (pytest.approx(0.6), 0, 20)
    assert (best["backbone_weights"], best["backbone_multiply_adds"]) == (600, 99_600)
    head = list(format_table(findings.table)[0])
    assert head[:8] == [
        *("network", "seeds", "Delta %", "first %"),
        *("multiply adds", "multiply adds without heads", "weights", "weights without heads"),
    ]
    assert head[8:10] == ["mean angle degrees", "mIoU %"]
    assert "A note." in findings.sentences
    assert "Seed 1: of AdaShare's policies adashare-policy-1 is the best on val." in (
        findings.sentences
    )


def test_of_dense_tasks_the_best_policy_has_the_highest_delta_against_hard_sharing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policies, "count_skips", lambda _: 0)
    runs = {
        "search": [rooms_run(0, 0.9, 1)],
        "shared": [rooms_run(0, 0.5, 20)],
        "policy-0": [rooms_run(0, 0.5, 30)],
        "policy-1": [rooms_run(0, 0.5, 19)],
    }
    found = policies.tabulate_networks(listed(runs), "delta")
    assert list(found["best_on_val"]) == ["", "", "best"]
    (sentence,) = policies.describe_policies(found, "test", "delta")
    assert "Delta against hard sharing on test" in sentence
    assert "policy-1 with +1.7 %; hard sharing +0.0 %" in sentence


# ---- errors of which less is better


def test_differences_of_errors_are_in_their_unit_and_less_is_better() -> None:
    runs = listed(
        {
            "one": [rooms_run(seed, 0.5, 20 + seed) for seed in range(3)],
            "two": [rooms_run(seed, 0.5, 18.5 + seed) for seed in range(3)],
        }
    )
    values = tabulate_runs(runs)
    row = format_table(compare_methods(values, "mean_angle", "test"), "mean_angle")[1]
    assert row["difference, degrees"] == "-1.50"
    assert row["mean angle degrees"] == "19.5 ± 1.0"
    told = describe_against(values, ["one", "two"], ["one"], "mean_angle", "test")
    assert told[0] == "two is 1.50 degrees below one (95 %: 1.50 to 1.50, 3 seeds)."
    assert "Mean angle on test (less is better), mean over tasks" in told[1]


def test_of_an_error_the_tree_with_less_of_it_is_the_better_one() -> None:
    draw = np.random.default_rng(0)
    lost = -draw.uniform(1, 2, (12, 2))
    text = describe_differences(
        DataFrame(lost, columns=["a", "b"]),
        "mean_angle",
        one="the learned tree",
        other="a permuted tree",
        repetition="permutations",
    )
    assert "degrees in the mean, above zero in 0 of 2 permutations" in text
    assert text.endswith("by the ranks of the tasks the learned tree is better.")


# ---- what is trained


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a tree on tiny rooms with known groups, and `search.yaml` beside it."""
    folder = tmp_path_factory.mktemp("dense")
    pack_tiny_rooms(folder / "data")
    content = (folder / "data" / "dataset.json").read_text()
    groups = '"groups": {"a": ["seg", "bright"], "b": ["depth", "normals"], "c": ["edges"]}'
    (folder / "data" / "dataset.json").write_text(content.replace('"groups": {}', groups))
    assert groups in (folder / "data" / "dataset.json").read_text()
    values = rooms_config(
        folder / "data", "runs", **{"method": {"name": "branching", "alpha": 0.5}}
    )
    values["method"] |= {"first_decision": 2, "round_iterations": 2, "lowest": "block2_1"}
    kept = {key: part for key, part in values.items() if key not in ("run", "seed")}
    (folder / "tree.yaml").write_text(yaml.safe_dump(kept))
    kept["method"] = {"name": "adashare"}
    kept["adashare"] = {"warmup_iterations": 2, "cycles_per_block": 1}
    kept |= {"data": {"path": "elsewhere"}, "optim": {"name": "adam", "lr": 0.5}}
    kept["train"] = {"iterations": 9}
    (folder / "search.yaml").write_text(yaml.safe_dump(kept))
    return folder / "tree.yaml"


def design(recipe: Path, own: Sequence[str] = (), **options: Any) -> Experiment:
    chosen = dense.DenseOptions(split="val", **options)
    return dense.design_dense(recipe, own, chosen, report=lambda _: None)


def test_every_method_has_the_recipe_and_a_method_of_its_own(recipe: Path) -> None:
    own = ["method.alpha=0.25", "adashare.cycles_per_block=2", "train.batch_size=8"]
    search = recipe.with_name("search.yaml")
    experiment = design(recipe, own, search=search, permutations=2, iterations=5)
    sweep = build_sweep("x", experiment.variants, own, seeds=[1], derived=experiment.derived)
    trials = {name: trial for name, (trial,) in group_trials_by_variant(sweep).items()}
    assert len(trials) == 6 + 3 + 3 + SEARCH_AND_EIGHT
    assert {trial.train.batch_size for trial in trials.values()} == {8}
    searched = trials.pop("adashare-search")
    assert (searched.train.iterations, searched.adashare.cycles_per_block) == (9, 2)
    assert (searched.optim.lr, searched.data) == (0.5, trials["single-task"].data)
    assert {trial.optim.lr for trial in trials.values()} == {0.01}
    assert {trial.train.iterations for trial in trials.values()} == {5}
    methods = {name: trial.method for name, trial in trials.items()}
    assert methods["single-task"].name == "independent"
    assert methods["hard-sharing"].keeps_thin
    assert methods["tree-importance"].affinity == "importance"
    assert (methods["tree-phi"].alpha, methods["tree-phi"].lowest) == (0.25, "block2_1")
    assert methods["groups"].groups == {
        "block4_1": [["seg", "bright"], ["depth", "normals"], ["edges"]]
    }
    assert methods["groups"].permutation is None
    numbers = {methods[name].permutation for name in methods if "permuted" in name}
    assert len(numbers) == 2
    assert trials["adashare-policy-7"].adashare.policy_number == 7
    assert str(trials["adashare-most-probable"].adashare.policy).endswith("adashare-search-seed1")


def test_what_is_left_out_is_told(recipe: Path) -> None:
    experiment = design(recipe, methods=["hard-sharing", "adashare"])
    assert list(experiment.variants) == ["single-task", "hard-sharing"]
    runs = listed({name: [rooms_run(0, 0.5, 20)] for name in experiment.variants})
    assert "tree.yaml is no search" in experiment.analyse(runs).sentences[1]


def test_other_methods_and_data_without_dense_tasks_are_refused(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--methods should be of single-task, hard-sharing, "):
        design(recipe, methods=["multi-task"])
    with pytest.raises(UsageError, match="--split-from should be a unit of the network"):
        design(recipe, methods=["groups"], split_from="conv4_1")
    pack_tiny(tmp_path / "data")
    with pytest.raises(UserError, match="should have dense tasks"):
        design(recipe, [f"data.path={tmp_path / 'data'}"])


def test_differences_in_several_units_are_told_with_their_own() -> None:
    rows = [
        {"metric": "miou", "task": "segmentation", "difference": -0.012},
        {"metric": "rmse", "task": "depth", "difference": 0.025},
    ]
    cells = [list(row.values()) for row in format_table(DataFrame(rows))]
    assert [row[0] for row in cells] == ["miou, points", "rmse, m"]
    assert list(format_table(DataFrame(rows))[0])[2] == "difference"
    assert list(format_table(DataFrame(rows[:1]))[0])[2] == "difference, points"
