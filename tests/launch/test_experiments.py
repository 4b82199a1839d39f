"""What experiments read off their runs, on runs made up with known numbers; and one of them as a person starts it."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import yaml
from scipy.stats import wilcoxon
from sklearn.metrics import adjusted_rand_score
from tiny_runs import config_of
from tiny_world import assert_one_sentence, run_command

from distbranch.branching.tree import Split, Tree
from distbranch.config import differences, load_config
from distbranch.config.sweep import SweepConfig
from distbranch.engine.initialisation import order_by_number
from distbranch.errors import UsageError, UserError
from distbranch.experiments import (
    affinities,
    births,
    designs,
    equal_cost,
    groupings,
    policies,
    runner,
    scouts,
)
from distbranch.experiments.analyses import (
    compare_methods,
    describe_differences,
    find_first_reach,
    format_markdown,
    format_table,
    interpolate_at_cost,
    measure_pace,
    summarise_differences,
    tabulate_equal_cost,
)
from distbranch.experiments.runner import build_sweep, check_same_comparison, run_experiment
from distbranch.experiments.runs import (
    Run,
    check_defined,
    read_curves,
    read_runs,
    restrict_to_common_tasks,
    select_means,
    split_by_data_set,
    tabulate_runs,
)
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import Backbone
from distbranch.models.dense_heads import HeadPlan
from distbranch.report.experiment_figures import save_figure
from distbranch.sweep import run as sweep_run
from distbranch.sweep import tuning
from distbranch.sweep.plan import group_trials_by_variant, list_trials, order_in_turns
from distbranch.sweep.tuning import train_trial
from distbranch.tasks import Task

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TASKS = [f"task-{number}" for number in range(12)]


def made_up(
    seed: int = 0,
    *,
    value: float = 0.7,
    weights: float = 1000,
    tasks: Mapping[str, float] | None = None,
    **dotted: Any,
) -> Run:
    """A finished run: all that is compared of it is given. Multiply-adds are a hundred times the weights."""
    config = load_config(config_of("data", "runs", seed=seed, **dotted))
    scores = {"mean": {"average_precision": value, "accuracy": value}}
    rows = {
        task: {"average_precision": worth, "accuracy": worth}
        for task, worth in (tasks or {}).items()
    }
    metrics = {"val": scores, "test": {**scores, "tasks": rows}}
    sizes = {"weights": weights, "parameters": weights, "multiply_adds": 100 * weights}
    return Run("", config, {"metrics": metrics, **sizes, "num_groups_top": 1})


def listed(runs: Mapping[str, Sequence[Run]]) -> list[Run]:
    """The runs, each as one of its variant."""
    return [replace(run, variant=variant) for variant, members in runs.items() for run in members]


# ---- what an experiment is made of


def test_an_experiment_takes_overrides_as_a_run_and_as_a_sweep_do(tmp_path: Path) -> None:
    given = [
        "run.directory=/runs",
        "launch.workers=2",
        "concurrency=3",
        "train.iterations=7",
        "data.path=/data",
    ]
    sweep = build_sweep(
        "mine", {"a": {"base": str(CONFIGS / "fps-thin-16.yaml")}}, given, seeds=[4], jobs=None
    )
    assert (sweep.path, sweep.workers_per_trial, sweep.concurrency) == (Path("/runs/mine"), 2, 3)
    (trial,) = list_trials(sweep)
    assert (trial.run_directory, trial.train.iterations) == (Path("/runs/mine/a-seed4"), 7)
    among = build_sweep("mine", sweep.variants, given, seeds=[4], jobs=None, among_runs=True)
    assert list_trials(among)[0].run_directory == Path("/runs/a-seed4")


def test_the_thin_line_of_a_grown_network_is_the_ordinary_thin_run() -> None:
    data = "data.path=/data/fps"
    line = equal_cost.make_thin_line([CONFIGS / "fps-branch-16-2.yaml"], [24, 16], [data])
    assert list(line) == ["fps-thin-16", "fps-thin-24"]
    trial = list_trials(build_sweep("c", line, [data], seeds=[0], jobs=1, among_runs=True))[0]
    thin = load_config(CONFIGS / "fps-thin-16.yaml", [data, "seed=0"])
    assert [line for line in differences(thin, trial) if not line.startswith("run.name")] == []


def test_the_uneven_line_of_a_grown_network_is_the_ordinary_uneven_run() -> None:
    data = "data.path=/data/fps"
    line = equal_cost.make_uneven_line([CONFIGS / "fps-branch-16-2.yaml"], [(16, 33)], [data])
    (trial,) = list_trials(build_sweep("c", line, [data], seeds=[0], jobs=1, among_runs=True))
    plain = load_config(CONFIGS / f"{next(iter(line))}.yaml", [data, "seed=0"])
    assert [line for line in differences(plain, trial) if not line.startswith("run.name")] == []


def test_a_url_among_the_overrides_stays_a_url(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/data"
    config = str(CONFIGS / "fps-thin-16.yaml")
    ended = run_command(
        ["experiment", "table", config, f"data.path={url}", f"run.directory={tmp_path}"]
    )
    assert_one_sentence(ended, 1, (url,))


def test_networks_of_different_recipes_are_not_compared(tmp_path: Path) -> None:
    for name, lr in (("one", 0.1), ("two", 0.2)):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{path: data}}\noptim: {{lr: {lr}}}\n")
    with pytest.raises(
        UsageError,
        match=r"same recipe, but .*one.yaml and .*two.yaml differ in optim.lr: 0.1 -> 0.2",
    ):
        equal_cost.make_thin_line([tmp_path / "one.yaml", tmp_path / "two.yaml"], [8, 16], [])


def test_each_seed_begins_from_the_run_of_its_own_seed(two_configs: list[Path]) -> None:
    overrides = ["run.directory=other"]
    variants = designs.design_table(two_configs, overrides, split="test").variants
    sweep = build_sweep("t", variants, overrides, seeds=[0, 5], jobs=None, among_runs=True)
    thin, turns = group_trials_by_variant(sweep)["thin"], order_in_turns(list_trials(sweep))
    runs = Path("other").absolute()
    assert [trial.method.pretrained for trial in thin] == [
        str(runs / f"wide-seed{seed}") for seed in (0, 5)
    ]
    assert turns[1] == thin


def test_a_scout_that_another_variant_trains_as_well_is_that_run(tmp_path: Path) -> None:
    recipe = "data: {path: data}\nmodel: {width: 8}\ntrain: {iterations: 40}\n"
    thin, anew = tmp_path / "thin.yaml", tmp_path / "anew.yaml"
    thin.write_text(f"{recipe}method: {{name: fixed}}\n")
    begin = "method: {name: branching, begin: anew, split_from: conv4_1"
    anew.write_text(f"{recipe}{begin}}}\n")
    shorter = tmp_path / "shorter.yaml"
    shorter.write_text(f"{recipe}{begin}, scout_iterations: 20}}\n")
    overrides = ["run.directory=other"]
    variants = designs.design_table([anew, thin, shorter], overrides, split="test").variants
    sweep = build_sweep("t", variants, overrides, seeds=[0, 5], jobs=None, among_runs=True)
    trials = group_trials_by_variant(sweep)
    runs = Path("other").absolute()
    scouts = [trial.method.scout for trial in trials["anew"]]
    assert scouts == [str(runs / f"thin-seed{seed}") for seed in (0, 5)]
    assert [trial.method.scout for trial in trials["shorter"]] == [None, None]
    assert order_in_turns(list_trials(sweep))[1] == trials["anew"]


def test_a_joint_network_stands_beside_separate_ones_on_the_tasks_of_each_data_set() -> None:
    def scores(*tasks: str) -> dict[str, Any]:
        rows = {task: {"accuracy": 0.5, "num_labelled": 9} for task in tasks}
        return {
            "tasks": rows | {"unlabelled": {"accuracy": None, "num_labelled": 0}},
            "mean": {"accuracy": len(tasks) / 10},
        }

    joint = {**scores("a", "b", "c"), "datasets": {"one": scores("a", "b"), "two": scores("c")}}
    for part in joint["datasets"].values():
        del part["tasks"]["unlabelled"]
    given = {"joint": joint, "alone": scores("a", "b"), "other": scores("d")}
    config = load_config(config_of("data", "runs"))
    runs = {
        name: Run(name, config, {"metrics": {"test": part}, "weights": 5})
        for name, part in given.items()
    }
    found = split_by_data_set(list(runs.values()), "test")
    assert list(found.pop("")) == ["joint", "alone", "other"]
    means = {
        name: {n: r[0]["metrics"]["test"]["mean"]["accuracy"] for n, r in part.items()}
        for name, part in found.items()
    }
    assert means == {"one": {"joint": 0.2, "alone": 0.2}, "two": {"joint": 0.1}}
    assert found["one"]["joint"][0]["weights"] == 5
    assert list(split_by_data_set([runs["alone"]], "test")) == [""]


def test_means_are_compared_over_the_tasks_that_have_the_metric_in_every_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run(value: float, tasks: dict[str, float | None]) -> Run:
        rows = {
            task: {"average_precision": worth, "accuracy": 0.5} for task, worth in tasks.items()
        }
        means = {"average_precision": value, "accuracy": 0.5, "top3": None}
        metrics = {"test": {"mean": means, "tasks": rows}}
        return Run(
            "", load_config(config_of("data", "runs")), {"metrics": metrics, "tasks": list(tasks)}
        )

    before = run(0.8, {"plain": 0.6, "always": 1.0})  # as an earlier release had it
    runs = {
        "before": [before],
        "now": [run(0.7, {"plain": 0.7, "always": None})],
        "other": [run(0.9, {"x": 0.9})],
    }
    found = restrict_to_common_tasks(listed(runs))
    means = {run.variant: run.get_mean("average_precision", "test") for run in found}
    assert means == {"before": 0.6, "now": 0.7, "other": 0.9}
    assert before.get_mean("average_precision", "test") == 0.8, "what was read is left as it is"
    assert "over the 1 tasks that have it in all runs; always have it in some only" in caplog.text
    none = restrict_to_common_tasks([run(0.5, {"t": 0.5}), run(0.4, {"t": None})])
    with pytest.raises(UserError, match="no task has average_precision on test in all of them"):
        check_defined(none, "average_precision", ("test",))
    check_defined(none, "accuracy", ("test",))


# ---- fair company


def test_the_thin_line_is_linear_in_the_logarithm_of_the_cost_and_ends_where_it_ends() -> None:
    line = pandas.Series({100.0: 0.5, 10_000.0: 0.7, 1_000.0: 0.65})
    assert interpolate_at_cost(1_000, line) == 0.65
    assert interpolate_at_cost(10**2.5, line) == pytest.approx((0.5 + 0.65) / 2)
    assert np.isnan(interpolate_at_cost(99.9, line))
    assert np.isnan(interpolate_at_cost(10_001, line))
    assert np.isnan(interpolate_at_cost(5, pandas.Series(dtype=float)))


def test_a_grown_network_is_compared_with_the_line_of_its_own_seed() -> None:
    line = {
        f"thin-{width}": [
            made_up(seed, value=0.5 + 0.1 * step + 0.02 * seed, weights=10**step) for seed in (0, 1)
        ]
        for step, width in ((2, 8), (3, 16))
    }
    grown = {"tree": [made_up(seed, value=0.8 + 0.03 * seed, weights=10**2.5) for seed in (0, 1)]}
    means = select_means(tabulate_runs(listed(line | grown)), "average_precision", "val")
    found = tabulate_equal_cost(means, {"thin": line}, "average_precision")
    by_madds, by_weights = found.to_dict("records")
    assert by_weights["line_average_precision"] == pytest.approx(0.75 + 0.01)
    assert by_weights["difference"] == pytest.approx((0.05 + 0.06) / 2)
    assert by_weights["difference_sd"] == pytest.approx(0.01 / np.sqrt(2))
    assert (by_madds["own_cost"], by_madds["difference"]) == pytest.approx(
        (10**4.5, by_weights["difference"])
    )
    assert "| +5.50 ± 0.71 |" in format_markdown(found)
    far = select_means(
        tabulate_runs(listed(line | {"tree": [made_up(weights=9_999)]})), "average_precision", "val"
    )
    beyond = tabulate_equal_cost(far, {"thin": line}, "average_precision")
    assert beyond["difference"].isna().all()


# ---- grouping


def test_reductions_are_counted_over_tasks_and_tested_as_pairs() -> None:
    rng = np.random.default_rng(0)
    base = dict.fromkeys(TASKS, 0.8)
    lost = {
        task: 0.01 * (number - 2) for number, task in enumerate(TASKS)
    }  # two gain, one is as before, nine lose
    learned = [
        made_up(seed, tasks={task: base[task] + 0.1 * seed for task in TASKS}) for seed in (0, 1)
    ]
    noise = rng.normal(0, 1e-6, len(TASKS))
    permuted = [
        [
            made_up(
                s,
                tasks={
                    t: base[t] + 0.1 * s - lost[t] + sign * n
                    for t, n in zip(TASKS, noise, strict=True)
                },
            )
            for s in (1, 0)
        ]
        for sign in (1, -1)
    ]
    runs = {"learned": learned, "permuted-1": permuted[0], "permuted-2": permuted[1]}
    found = groupings.measure_losses(
        tabulate_runs(listed(runs)), "accuracy", "test", learned="learned", permuted=list(runs)[1:]
    )
    assert found.mean(axis="columns").to_dict() == pytest.approx(lost, abs=1e-12)
    assert found.loc["task-5", "permuted-1"] == pytest.approx(lost["task-5"] - noise[5])
    rounded = found.mean(axis="columns").round(9).to_frame()
    summary = summarise_differences(rounded)
    assert (summary["tasks"], summary["tasks_higher"], summary["tasks_lower"]) == (12, 9, 2)
    assert summary["p_value"] == pytest.approx(wilcoxon([lost[task] for task in TASKS]).pvalue)
    assert summary["difference"] == pytest.approx(0.035)
    text = describe_learned(rounded)
    assert "+3.50 points in the mean, above zero in 1 of 1 permutations" in text
    assert "Learned is higher on 9 of 12 tasks (9 in all permutations) and lower on 2 (2)" in text
    assert "by the ranks of the tasks learned is better" in text
    assert "other way round" not in text
    trees = summarise_differences(pandas.DataFrame([[0.1, -0.1, 0.3], [0.1, 0.0, -0.1]]))
    assert (trees["repetitions"], trees["repetitions_higher"], trees["tasks_always_higher"]) == (
        3,
        2,
        0,
    )


def describe_learned(lost: pandas.DataFrame) -> str:
    return describe_differences(
        lost, "accuracy", one="learned", other="permuted", repetition="permutations"
    )


def test_where_few_tasks_lose_much_the_ranks_are_told_and_not_the_mean() -> None:
    many = {f"gains-{number}": [-0.001 - number * 1e-6] for number in range(36)}
    few = {f"loses-{number}": [0.1 + number * 1e-6] for number in range(4)}
    lost = pandas.DataFrame(many | few).T
    summary = summarise_differences(lost)
    assert summary["difference"] > 0
    assert summary["p_value"] < 0.001
    assert (
        "the ranks of the tasks permuted is better, though by the mean it is the other way"
        in describe_learned(lost)
    )


def test_equal_trees_show_no_difference() -> None:
    runs = [made_up(tasks=dict.fromkeys(TASKS, 0.8))]
    values = tabulate_runs(listed({"learned": runs, "permuted-1": runs, "permuted-2": runs}))
    permuted = ["permuted-1", "permuted-2"]
    lost = groupings.measure_losses(
        values, "accuracy", "test", learned="learned", permuted=permuted
    )
    summary = summarise_differences(lost)
    assert (summary["tasks_higher"], summary["tasks_lower"], summary["p_value"]) == (0, 0, 1.0)
    assert "no difference" in describe_learned(lost)


def test_only_the_grown_tree_of_a_finished_run_is_permuted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="should be a finished run, found none"):
        groupings.make_permutations(run, 2, "val")
    (run / "result.json").write_text(json.dumps({"metrics": {}}))
    (run / "tree.json").write_text(json.dumps({"tree": Tree(("conv", "fc"), 3).to_json()}))
    with pytest.raises(UserError, match="has no branches, so there is nothing to permute"):
        groupings.make_permutations(run, 2, "val")


def finished(run: Path, tree: Tree) -> Path:
    run.mkdir()
    (run / "config.yaml").write_text("data: {path: data}\n")
    (run / "result.json").write_text(json.dumps({"metrics": {"val": {}}}))
    (run / "tree.json").write_text(json.dumps({"tree": tree.to_json()}))
    return run


def test_a_tree_that_a_run_took_late_is_trained_from_scratch(tmp_path: Path) -> None:
    halves = Tree(("conv", "fc"), 4).split(Split(2, ((0, 1), (2, 3))))
    run = finished(tmp_path / "run", halves)
    late = {"name": "fixed", "groups": str(run), "widen_at": 3, "birth": "fresh"}
    grown = {"name": "branching", "lowest": "conv2_1"}
    for method in (late, grown):
        (run / "config.yaml").write_text(json.dumps({"data": {"path": "data"}, "method": method}))
        variants = groupings.make_permutations(run, 1, "val")
        for trial in list_trials(build_sweep("g", variants, [], seeds=[0], jobs=None)):
            assert (trial.method.widen_at, trial.method.birth) == (None, "copies")
            assert (trial.method.lowest, trial.method.groups) == (None, str(run))


def test_permutations_are_those_that_put_other_tasks_together(tmp_path: Path) -> None:
    halves = Tree(("conv", "fc"), 4).split(Split(2, ((0, 1), (2, 3))))
    run = finished(tmp_path / "run", halves)
    variants = groupings.make_permutations(run, 2, "val")
    orders = [
        order_by_number(variant["method.permutation"], 4)
        for variant in variants.values()
        if variant["method.permutation"]
    ]
    together = [
        {frozenset(branch) for branch in halves.permuted(order).branches(2)} for order in orders
    ]
    assert len(together) == 2
    assert together[0] != together[1]
    assert {frozenset((0, 1)), frozenset((2, 3))} not in together
    assert variants["learned"]["method.permutation"] is None
    with pytest.raises(UserError, match="has 2 permutations that put other tasks together"):
        groupings.make_permutations(run, 3, "val")


def test_a_split_that_the_data_lack_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / "run", Tree(("conv", "fc"), 4).split(Split(2, ((0, 1), (2, 3)))))
    with pytest.raises(UserError, match="have no split 'test'"):
        groupings.design_grouping(run, 2, split="test")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_permuted_trees_are_trained_here_and_not_where_the_run_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / "run", Tree(("conv", "fc"), 4).split(Split(2, ((0, 1), (2, 3)))))
    (run / "config.yaml").write_text(
        "data: {path: absent}\nlaunch: {address: '10.0.0.7:6379', device: cuda}\n"
    )
    experiment = groupings.design_grouping(run, 2, split="val")
    with pytest.raises(UserError, match="absent does not exist"):
        run_experiment(experiment, [], seeds=None, jobs=1, report=print)


# ---- initialisation


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(10, 0.2), (20, 0.4), (30, 0.6)], 25.0),
        ([(10, 0.5), (20, 0.4)], 10.0),
        ([(10, 0.2), (20, 0.6), (30, 0.3)], 17.5),
        ([(10, 0.2), (20, 0.4)], np.nan),
        ([], np.nan),
    ],
)
def test_a_curve_reaches_a_goal_on_the_line_between_two_evaluations(
    curve: Sequence[tuple[int, float]], expected: float
) -> None:
    table = pandas.DataFrame(curve, columns=["iteration", "value"])
    assert find_first_reach(table, 0.5) == pytest.approx(expected, abs=0, nan_ok=True)


def logged(folder: Path, seed: int, values: Sequence[float]) -> Run:
    """A run with an evaluation every 10 of 40 iterations."""
    run = made_up(
        seed, **{"run.directory": str(folder), "run.name": f"seed{seed}", "train.iterations": 40}
    )
    run.config.run_directory.mkdir(parents=True)
    lines = [
        {
            "kind": "evaluation",
            "iteration": 10 * step,
            "split": "val",
            "mean": {"average_precision": value},
        }
        for step, value in enumerate(values, start=1)
    ]
    lines += [{"kind": "train", "iteration": step, "loss": 1 / step} for step in range(1, 41)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {**lines[0], "split": "test"}])
    (run.config.run_directory / "metrics.jsonl").write_text(text)
    return run


def test_the_pace_of_a_beginning_is_measured_against_the_random_one_of_the_same_seed(
    tmp_path: Path,
) -> None:
    random = [
        logged(tmp_path / "random", seed, [0.1, 0.2, 0.3, 0.5 + 0.1 * seed]) for seed in (0, 1, 2)
    ]
    somp = [
        logged(tmp_path / "somp", 0, [0.4, 0.6, 0.6, 0.7]),
        logged(tmp_path / "somp", 1, [0.4, 0.5, 0.7, 0.8]),
    ]
    somp.append(logged(tmp_path / "somp", 2, [0.1, 0.2, 0.3, 0.4]))  # never reaches 0.7
    curves = read_curves(listed({"somp": somp, "random": random}), "average_precision")
    found = measure_pace(curves, "random", 40)
    of_somp, of_random = found.to_dict("records")
    assert (of_somp["seeds"], of_somp["reached"]) == (3, 2)
    assert of_somp["iterations"] == pytest.approx((15 + 25) / 2)
    assert of_somp["share"] == pytest.approx(0.5)
    assert of_somp["last"] == pytest.approx((0.7 + 0.8 + 0.4) / 3)
    assert of_random["share"] == 1.0
    assert "| somp | 63.3 ± 20.8 | 3 | 2 | 20 | 0.50 |" in format_markdown(found)


def test_beginnings_differ_in_nothing_but_the_first_weights() -> None:
    config = CONFIGS / "fps-thin-16.yaml"
    variants = designs.make_beginnings(
        config, Path("/wide"), ["train.iterations=300"], two_thirds=True
    )
    data = ["data.path=/data/fps", "train.iterations=300"]
    trials = list_trials(
        build_sweep("i", variants, data, seeds=[0], jobs=None, derived=designs.DERIVED_FROM_PACE)
    )
    assert [trial.method.init for trial in trials] == [
        "somp",
        "largest-norm",
        "random-rows",
        "random",
        "somp",
    ]
    assert {trial.train.evaluate_every for trial in trials} == {15}
    for trial in trials[:4]:
        keys = {line.partition(":")[0] for line in differences(trials[0], trial)}
        assert keys <= {"run.name", "method.init", "method.pretrained"}
    assert trials[4].train.iterations == 200
    stepped = designs.make_beginnings(
        config, Path("/wide"), ["optim.schedule=step"], two_thirds=True
    )
    assert stepped["somp-two-thirds"]["optim.decay_every"] == round(
        load_config(config).optim.decay_every * 2 / 3
    )


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("affinities {branch} method.alpha=8", "by the variants thin"),
        ("births {branch} --groups tree.json method.branches=delta", "by the variants scratch, thin, copies-150"),
        ("births {branch} --groups tree.json seed=8", "seed is varied and also fixed; say it once"),
        ("initialisation {thin} --pretrained {wide} method.init=random", "by the variants somp, largest-norm, random-rows;"),
        ("company {branch} method.alpha=8 model.width=24", "by the variants nowhere-thin-8, nowhere-thin-12"),
        ("planted {planted} seed=8", "seed=8 is given for all runs"),
    ],
)  # fmt: skip
def test_an_override_that_an_experiment_would_not_follow_is_refused(
    command: str, said: str, tmp_path: Path
) -> None:
    files = {
        name: CONFIGS / f"fps-{file}.yaml"
        for name, file in (("branch", "branch-16-2"), ("thin", "thin-16"))
    }
    text = command.format(**files, planted=CONFIGS / "quickstart.yaml", wide=tmp_path / "wide")
    ended = run_command(
        ["experiment", *text.split(), "data.path=nowhere", f"run.directory={tmp_path}"]
    )
    assert_one_sentence(ended, 2, (said,))
    assert list(tmp_path.iterdir()) == []


def test_what_an_experiment_makes_of_an_override_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[SweepConfig] = []

    def stop(sweep: SweepConfig, _: Any, **__: Any) -> None:
        swept.append(sweep)
        raise UserError("enough")

    def sweep_of_experiment(
        experiment: runner.Experiment, seeds: Sequence[int] | None
    ) -> SweepConfig:
        with pytest.raises(UserError, match="enough"):
            run_experiment(experiment, said, seeds=seeds, jobs=None, report=print)
        return swept[-1]

    monkeypatch.setattr(runner, "train_variants", stop)
    said = [
        "train.iterations=1200",
        "optim.warmup=72",
        "train.evaluate_every=100",
        "data.path=nowhere",
    ]
    beginnings = designs.design_initialisation(
        CONFIGS / "fps-thin-16.yaml", tmp_path, said, two_thirds=True
    )
    trials = list_trials(sweep_of_experiment(beginnings, [0]))
    assert [trial.train.iterations for trial in trials] == [1200] * 4 + [800]
    assert {trial.train.evaluate_every for trial in trials} == {100}
    said.append("method.alpha=8")
    company = equal_cost.design_equal_cost(
        [CONFIGS / "fps-branch-16-2.yaml"], [8, 16], said, metric="accuracy", split="val"
    )
    trials = list_trials(sweep_of_experiment(company, [0]))
    assert [trial.method.alpha for trial in trials if trial.method.name == "branching"] == [8]
    said = ["data.path=else", "data.pack.samples=9"]
    sweep_of_experiment(
        groupings.design_planted_truth(CONFIGS / "quickstart.yaml", [4], said), None
    )
    (trial,) = list_trials(swept[-1])
    assert (Path(str(trial.data.path)).name, trial.data.pack) == (
        "else-seed4",
        {**(trial.data.pack or {}), "samples": 9},
    )


# ---- births


def test_births_differ_from_the_tree_from_scratch_in_when_and_how_it_is_taken_alone(
    tmp_path: Path,
) -> None:
    config, own = CONFIGS / "fps-branch-16-2.yaml", ["data.path=/data", "train.iterations=900"]
    experiment = births.design_births(config, tmp_path, [600, 300, 300], own, split="val")
    trials = list_trials(build_sweep("b", experiment.variants, own, seeds=[0], jobs=None))
    found = dict(zip(experiment.variants, trials, strict=True))
    scratch = found.pop("scratch")
    assert (scratch.method.name, scratch.method.groups) == ("fixed", str(tmp_path))
    changed = {}
    for name, trial in found.items():
        lines = [line for line in differences(scratch, trial) if not line.startswith("run.")]
        changed[name] = {line.partition(":")[0] for line in lines}
    at = "method.widen_at"
    expected = {
        "copies": {at},
        "forgetful": {at, "optim.inherited_steps"},
        "perturbed": {at, "method.birth"},
        "fresh": {at, "method.birth"},
        "restart": {at, "optim.when_widened"},
    }
    assert changed == {"thin": {"method.groups"}} | {
        f"{name}-{step}": keys for step in (300, 600) for name, keys in expected.items()
    }
    for step in (0, 900):
        with pytest.raises(UsageError, match=rf"--at .* 1 to 899, .* 900, found \[{step}\]"):
            births.make_births(config, tmp_path, [300, step], own)


def test_what_late_birth_costs_is_told_against_the_tree_from_scratch(tmp_path: Path) -> None:
    experiment = births.design_births(
        CONFIGS / "fps-thin-16.yaml", tmp_path, [300], [], split="test"
    )
    worth = {"scratch": 0.7, "thin": 0.5, "copies-300": 0.6}
    runs = {
        name: [
            made_up(seed, value=value + seed / 10, tasks=dict.fromkeys(TASKS, value + seed / 10))
            for seed in (0, 1)
        ]
        for name, value in worth.items()
    }
    found = experiment.analyse(listed(runs))
    assert found.table is not None
    table = found.table.set_index("method")["difference"]
    assert table.drop("scratch").to_dict() == pytest.approx({"thin": -0.2, "copies-300": -0.1})
    assert set(found.csv["births.csv"]["split"]) == {"val", "test"}


# ---- affinities


def test_kinds_are_alike_by_their_groups_and_by_the_order_of_pairs() -> None:
    draw = np.random.default_rng(1).random((6, 6))
    one = (draw + draw.T) / 2
    groups = {"a": ((0, 1), (2, 3, 4, 5)), "b": ((2, 3, 4, 5), (0, 1)), "c": ((0, 2, 4), (1, 3, 5))}
    table = affinities.compare_kinds({"a": one, "b": one**2, "c": -one}, groups)
    rows = {(row["kind"], row["beside"]): row for row in table.to_dict("records")}
    assert rows["a", "b"]["adjusted_rand_index"] == 1
    assert rows["a", "b"]["rank_correlation"] == pytest.approx(1)
    assert rows["a", "c"]["rank_correlation"] == pytest.approx(-1)
    expected = adjusted_rand_score([0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1])
    assert rows["a", "c"]["adjusted_rand_index"] == pytest.approx(expected)


def test_kinds_are_compared_on_one_scout_and_their_trees_with_permuted_ones(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config_of(tiny_data, "runs", **{"train.iterations": 4, "train.evaluate_every": 0})
    kept = {key: part for key, part in values.items() if key not in ("run", "seed")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.chdir(tmp_path)
    trained = train_in_this_process(monkeypatch)
    config, own = Path("tiny.yaml"), ["launch.workers=1"]
    options: dict[str, Any] = {"jobs": None, "name": None, "report": lambda _: None}
    of_scout = {**options, "seed": 3, "splits": ["test"]}
    wanted: dict[str, Any] = {
        "kinds": ["importance", "phi"],
        "num_groups": 2,
        "split_from": None,
    }
    for changed in ({"kinds": ["fi"]}, {"num_groups": 9}, {"split_from": "conv9"}):
        with pytest.raises((UserError, UsageError)):
            scouts.train_scout(config, own, **(wanted | changed), **of_scout)
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "experiment.json").write_text('{"experiment": "births"}')
    with pytest.raises(UserError, match="results of another comparison"):
        scouts.train_scout(config, own, **wanted, **(of_scout | {"name": "taken"}))
    assert not trained
    scout = scouts.train_scout(config, own, **wanted, **of_scout)
    assert load_config(scout / "config.yaml").method.keeps_thin

    told: list[dict[str, Any]] = []

    def design(permutations: int) -> runner.Experiment:
        return affinities.design_affinities(
            config,
            own,
            **wanted,
            scout=scout,
            permutations=permutations,
            split="test",
            has_own_scout=True,
            report=told.append,
        )

    findings, _, place = run_experiment(design(0), own, seeds=[3], **options)
    assert [(event["kind"], event["done"], event["total"]) for event in told] == [
        ("measuring", number, 2) for number in range(3)
    ]
    assert trained == ["thin-seed3"]
    assert [text.split(",")[0] for text in findings.sentences] == ["importance", "phi"]
    assert {file.name for file in place.iterdir()} >= {"table.md", *findings.files}

    with_trees = design(1)
    names = [name.rpartition("-permuted")[0] or name for name in with_trees.variants]
    assert names == ["thin", "importance", "importance", "phi", "phi"]
    groups = pandas.read_csv(place / "groups.csv").groupby("phi")["task"].apply(set)
    ((layer, given),) = with_trees.variants["phi"]["method.groups"].items()
    assert layer == "conv4_1"
    assert list(map(set, given)) == list(groups)
    findings = check_findings(with_trees, runs_of(with_trees), tmp_path)
    assert list(findings.table["kind"]) == ["thin", "importance", "phi"]
    # The permuted tree of every kind is made up to be 0.02 better.
    assert list(findings.table["difference"][1:]) == pytest.approx([-0.02, -0.02])


# ---- policies


def test_the_best_policy_is_that_which_is_best_on_val_whatever_it_is_on_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = {
        name: made_up(value=value)
        for name, value in (("policy-0", 0.7), ("policy-1", 0.6), ("policy-2", 0.9))
    }
    runs["policy-1"].summary["metrics"]["val"]["mean"]["average_precision"] = 0.95
    for name in runs:
        runs[name].summary["metrics"]["test"] = {
            "mean": {"average_precision": runs[name].get_mean("accuracy", "test")}
        }
    monkeypatch.setattr(policies, "count_skips", lambda _: 0)
    known = {"search": made_up(value=0.99), "shared": made_up(value=0.98), **runs}
    found = policies.tabulate_networks([replace(run, variant=name) for name, run in known.items()])
    (best,) = found[found["best_on_val"] == "best"].to_dict("records")
    assert (best["network"], best["test_average_precision"]) == ("policy-1", 0.6)
    (text,) = policies.describe_policies(found, "test")
    assert (
        "3 policies, average precision on test 70.0 % in the median (60.0 to 90.0); the best on val is policy-1"
        in text
    )


def test_policies_are_drawn_from_one_search_and_trained_beside_hard_sharing(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = config_of(
        tiny_data, "runs", **{"model.backbone": "resnet18", "method": {"name": "adashare"}}
    )
    values["adashare"] = {"warmup_iterations": 2, "cycles_per_block": 1}
    values["train"] |= {"iterations": 22, "evaluate_every": 0}
    kept = {key: part for key, part in values.items() if key not in ("run", "seed")}
    (tmp_path / "ada.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.chdir(tmp_path)
    trained = train_in_this_process(monkeypatch)
    own = ["launch.workers=1"]
    experiment = policies.design_policies(Path("ada.yaml"), 2, own, iterations=4, split="test")
    for _ in range(2):  # nothing is repeated
        findings, _, place = run_experiment(
            experiment, own, seeds=[0], jobs=None, report=lambda _: None
        )
        assert trained[:2] == ["search-seed0", "shared-seed0"]
        assert trained[2:] == ["most-probable-seed0", "policy-0-seed0", "policy-1-seed0"]
    table = findings.csv["policies.csv"]
    assert list(table["network"]) == ["shared", "most-probable", "policy-0", "policy-1"]
    with_policy = [*place.glob("most-probable-*/config.yaml"), *place.glob("policy-*/config.yaml")]
    assert [load_config(file).train.iterations for file in with_policy] == [4, 4, 4]
    (best,) = table.loc[table["best_on_val"] == "best", "network"]
    assert f"the best on val is {best} with" in (place / "table.md").read_text()
    assert (place / "policies.png").stat().st_size > 5000
    info = json.loads((tiny_data / "dataset.json").read_text())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text(
        json.dumps(info | {"splits": {"train": info["splits"]["train"]}})
    )
    elsewhere = ["launch.workers=1", "data.path=data"]
    other = policies.design_policies(
        Path("ada.yaml"), 2, elsewhere, iterations=4, split="test", name="other"
    )
    with pytest.raises(
        UserError, match="should have the split 'val', on which the runs are compared"
    ):
        run_experiment(other, elsewhere, seeds=[0], jobs=None, report=lambda _: None)
    with pytest.raises(UsageError, match="should be of a search"):
        policies.design_policies(CONFIGS / "fps-thin-16.yaml", 2, [], iterations=None, split="test")


# ---- all of an analysis


def runs_of(experiment: runner.Experiment, seeds: Sequence[int] = (0, 1)) -> list[Run]:
    """A made-up run of every variant and seed, the later the larger and the better, with tasks on both splits."""
    runs = []
    for number, variant in enumerate(experiment.variants):
        for seed in seeds:
            worth = 0.6 + 0.02 * number + 0.01 * seed
            run = made_up(
                seed, value=worth, weights=1000 * (1 + number), tasks=dict.fromkeys(TASKS, worth)
            )
            run.summary["metrics"]["val"] = run.summary["metrics"]["test"]
            runs.append(replace(run, variant=variant))
    return runs


def check_findings(
    experiment: runner.Experiment, runs: Sequence[Run], folder: Path
) -> runner.Findings:
    """What an analysis finds is shown and written without a gap."""
    findings = experiment.analyse(runs)
    assert findings.table is not None
    assert format_markdown(findings.table).count("\n") == len(findings.table) + 2
    for name, table in findings.csv.items():
        assert len(table.to_csv(index=False).splitlines()) == len(table) + 1, name
    for name, figure in findings.figures.items():
        save_figure(figure, folder / name)
        assert (folder / name).stat().st_size > 5000
    return findings


def test_grown_networks_stand_beside_the_line_in_table_and_figure(tmp_path: Path) -> None:
    config = CONFIGS / "fps-branch-16-2.yaml"
    own = ["data.path=/data/fps"]
    experiment = equal_cost.design_equal_cost(
        [config], [8, 16, 32], own, metric="accuracy", split="val"
    )
    runs = runs_of(experiment)
    grown = [
        replace(run, summary={**run.summary, "weights": 1500, "multiply_adds": 150_000})
        for run in runs[-2:]
    ]
    findings = check_findings(experiment, [*runs[:-2], *grown], tmp_path)
    gain = 0.06 - 0.02 * np.log(1.5) / np.log(2)
    for column in ("difference", "low", "high"):  # seeds differ in nothing else
        assert list(findings.table[column]) == pytest.approx([gain] * 2)
    assert set(findings.csv["company.csv"]["split"]) == {"val", "test"}
    assert len(findings.csv["differences.csv"]) == 2 * 6


def test_a_table_tells_differences_from_the_networks_that_were_named_and_writes_every_pair() -> (
    None
):
    files = [CONFIGS / f"fps-{name}.yaml" for name in ("thin-16", "thin-32", "branch-16-2")]
    experiment = designs.design_table(files, [], split="test", against=["fps-thin-32"])
    findings = experiment.analyse(runs_of(experiment, seeds=(0, 1, 2)))
    assert [sentence[:46] for sentence in findings.sentences[:-1]] == [
        "fps-thin-16 is 2.0 points below fps-thin-32 (9",
        "fps-branch-16-2 is 2.0 points above fps-thin-3",
    ]
    table = findings.csv["differences.csv"]
    assert list(table["network"]) == ["fps-thin-32", "fps-branch-16-2", "fps-branch-16-2"] * 2
    assert list(table["difference"]) == pytest.approx([0.02, 0.04, 0.02] * 2)
    assert (table["repetitions"] == 3).all()


def test_plain_networks_of_two_widths_are_a_second_line(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("base: branch.yaml\noptim: {lr: 0.5}\n")
    (tmp_path / "branch.yaml").write_text("data: {path: /data/fps}\nmodel: {backbone: vgg9}\n")
    experiment = equal_cost.design_equal_cost(
        [tmp_path / "branch.yaml"],
        [8, 16],
        [],
        metric="accuracy",
        split="val",
        uneven=[(8, 24), (8, 12)],
        beside=[tmp_path / "wide.yaml"],
        against=["fps-thin-16"],
    )
    names = ["fps-thin-8", "fps-thin-16", "fps-uneven-8-12", "fps-uneven-8-24", "branch", "wide"]
    assert list(experiment.variants) == names
    assert experiment.variants["fps-uneven-8-24"]["model.widths"] == [8] * 4 + [24, 24, 48, 48]
    costs = dict(zip(names, (1000, 2000, 1000, 3000, 1700, 9000), strict=True))
    runs = []
    for run in runs_of(experiment):
        sizes = {"weights": costs[run.variant], "multiply_adds": 100 * costs[run.variant]}
        runs.append(replace(run, summary={**run.summary, **sizes}))
    findings = check_findings(experiment, runs, tmp_path)
    found = findings.table.set_index(["network", "line", "cost"])
    assert "wide" not in found.index, "it has another recipe"
    assert found.loc[("branch", "uneven", "weights"), "difference"] == pytest.approx(
        0.04 - 0.02 * np.log(1.7) / np.log(3)
    )
    assert ("fps-uneven-8-12", "thin", "weights") in found.index
    assert ("fps-uneven-8-12", "uneven", "weights") not in found.index
    nearest, *compared, _, _ = findings.sentences
    assert nearest.startswith(
        "branch is 4.0 points above fps-uneven-8-12 (95 %: 4.0 to 4.0, 2 seeds), the uneven plain network nearest to it, of 0.59"
    )
    assert len(compared) == 5
    assert compared[0].startswith("fps-thin-8 is 2.0 points below fps-thin-16 (95 %: 2.0 to 2.0")
    with pytest.raises(UsageError, match="--against should name networks of this experiment"):
        designs.design_table([tmp_path / "wide.yaml"], [], split="val", against=["thin"])


@pytest.mark.parametrize(
    ("backbone", "pair"), [("vgg9", (7, 19)), ("resnet18", (64, 2)), ("resnet50", (9, 14))]
)
def test_of_what_costs_as_much_as_a_plain_network_that_one_is_the_nearest(
    backbone: str, pair: tuple[int, int]
) -> None:
    widths = equal_cost.list_uneven_widths(backbone, *pair)
    planted = Architecture(Backbone(backbone, (32, 32), widths=widths), (Task("a"), Task("b")))
    assert equal_cost.choose_two_widths(planted) == pair


def test_the_nearest_plain_network_of_dense_tasks_has_their_heads_too() -> None:
    tasks = (Task("depth", "depth"), Task("edges", "heat"))
    widths = equal_cost.list_uneven_widths("resnet18", 20, 33)
    backbone = Backbone("resnet18", (64, 64), widths=widths, output_stride=8)
    planted = Architecture(backbone, tasks, dense_head=HeadPlan("light", 32))
    assert equal_cost.choose_two_widths(planted) == (20, 33)


def test_a_plain_network_of_two_widths_costs_what_a_tree_costs_in_both() -> None:
    tasks = tuple(Task(name) for name in "abcdef")
    thin = Architecture(Backbone("vgg9", (32, 32), 16), tasks)
    tree = thin.tree.split(Split(8, ((0, 1), (2, 3), (4, 5))))
    for layer in (7, 6, 5):
        tree = tree.split(Split(layer, ((0,), (1,), (2,))))
    widths = equal_cost.list_uneven_widths(
        "vgg9", *equal_cost.choose_two_widths(thin.with_tree(tree))
    )
    plain = Architecture(Backbone("vgg9", (32, 32), widths=widths), tasks)
    assert widths[0] < widths[4] / 1.5
    for cost in ("weights", "multiply_adds"):
        ratio = getattr(plain.cost(), cost) / getattr(thin.with_tree(tree).cost(), cost)
        assert ratio == pytest.approx(1, abs=0.05)


def test_the_nearest_plain_network_is_asked_for_once_the_tree_is_known(tmp_path: Path) -> None:
    config = str(CONFIGS / "fps-branch-16-2.yaml")
    own = ["data.path=/data/fps", f"run.directory={tmp_path}"]
    ended = run_command(["experiment", "company", config, *own, "--uneven", "16:32,nearest"])
    assert_one_sentence(ended, 1, ("fps-branch-16-2-seed0, which has not finished", "`nearest`"))
    ended = run_command(["experiment", "company", config, *own, "--uneven", "16"])
    assert_one_sentence(ended, 2, ("16:32,16:48", "found '16'"))


def test_what_permuting_costs_is_told_for_both_metrics(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", Tree(("conv", "fc"), 4).split(Split(2, ((0, 1), (2, 3)))))
    experiment = groupings.design_grouping(run, 2, split="val")
    findings = check_findings(experiment, runs_of(experiment), tmp_path)
    assert (
        "The learned tree is higher on 0 of 12 tasks (0 in all permutations) and lower on 12"
        in findings.sentences[0]
    )
    assert list(findings.table["metric"].unique()) == ["accuracy", "average_precision"]
    assert set(findings.csv["tasks.csv"].columns) > set(experiment.variants) - {"learned"}


def test_the_pace_of_all_beginnings_is_told_in_a_table_and_a_figure(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {path: data}\ntrain: {iterations: 40}\n")
    experiment = designs.design_initialisation(
        tmp_path / "c.yaml", tmp_path / "wide", [], two_thirds=True
    )
    values = [0.1, 0.2, 0.3, 0.5]
    runs = [
        replace(logged(tmp_path / variant, 0, values), variant=variant)
        for variant in experiment.variants
    ]
    findings = check_findings(experiment, runs, tmp_path)
    assert list(findings.table["variant"]) == [
        "somp",
        "largest-norm",
        "random-rows",
        "random",
        "somp-two-thirds",
    ]
    assert list(findings.csv["curves.csv"].columns) == [
        "beginning",
        "seed",
        "iteration",
        "val_average_precision",
    ]


# ---- finished runs beside each other


def write_finished_run(folder: Path, name: str, seed: int, tasks: Mapping[str, float]) -> Path:
    run = made_up(seed, value=float(np.mean(list(tasks.values()))), tasks=tasks)
    (folder / name).mkdir()
    values = config_of("data", str(folder), seed=seed, **{"run.name": name})
    (folder / name / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / name / "tree.json").write_text(
        json.dumps({"tree": Tree(("conv", "fc"), len(tasks)).to_json()})
    )
    (folder / name / "result.json").write_text(json.dumps({**run.summary, "tasks": list(tasks)}))
    return folder / name


@pytest.fixture
def two_methods(tmp_path: Path) -> list[Path]:
    """Method `b` is 0.02 higher than `a` on every task but the last, where it is 0.04 lower; in seed 1 all is 0.01 more."""
    base = {"x": 0.5, "y": 0.6, "z": 0.7}
    gain = {"x": 0.02, "y": 0.02, "z": -0.04}
    found = []
    for seed in (0, 1, 2):
        tasks = {t: v + 0.1 * seed for t, v in base.items()}
        found.append(write_finished_run(tmp_path, f"a-seed{seed}", seed, tasks))
    for seed in (1, 0):
        tasks = {t: v + 0.1 * seed + gain[t] + 0.01 * seed for t, v in base.items()}
        found.append(write_finished_run(tmp_path, f"b-seed{seed}", seed, tasks))
    return found


def test_methods_are_compared_by_differences_of_equal_seeds_and_tasks(
    two_methods: list[Path],
) -> None:
    runs = read_runs(two_methods)
    assert [(run.variant, run.seed) for run in runs] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("b", 0),
    ]
    first, second = compare_methods(tabulate_runs(runs), "average_precision", "test").to_dict(
        "records"
    )
    assert (first["seeds"], first["average_precision"]) == (3, pytest.approx(0.7))
    assert first["average_precision_sd"] == pytest.approx(0.1)
    assert np.isnan(first["difference"])
    assert (second["paired_seeds"], second["tasks_higher"], second["tasks_lower"]) == (2, 2, 1)
    assert second["difference"] == pytest.approx((0.0 + 0.01) / 2), (
        "seed 2 of the reference has no partner"
    )
    assert second["difference_sd"] == pytest.approx(0.01 / np.sqrt(2))


def test_methods_without_a_common_seed_have_no_difference(two_methods: list[Path]) -> None:
    runs = read_runs([two_methods[2], two_methods[3]])
    table = compare_methods(tabulate_runs(runs), "average_precision", "test")
    assert format_table(table)[1]["difference, points"] == "\u2013"


def test_finished_runs_are_compared_on_the_terminal_as_csv_and_as_markdown(
    two_methods: list[Path],
) -> None:
    runs = [str(run) for run in two_methods]
    assert "+0.50 ± 0.71" in run_command(["compare", *runs]).out
    as_csv = run_command(["compare", *runs, "--csv", "--split", "val"]).out.splitlines()
    assert as_csv[0].startswith(
        "method,seeds,average_precision,average_precision_sd,paired_seeds,difference,"
    )
    assert len(as_csv) == 3
    as_markdown = run_command(["compare", *runs, "--markdown"]).out
    assert "| b | 2 | 65.5 ± 7.8 | 2 | +0.50 ± 0.71 | -5.85 to +6.85 | 2 | 1 |" in as_markdown


def test_only_finished_runs_are_compared_and_each_once(
    two_methods: list[Path], tmp_path: Path
) -> None:
    assert_one_sentence(
        run_command(["compare", str(tmp_path)]), 1, ("should be a finished run, found none",)
    )
    twice = [str(two_methods[0])] * 2
    assert_one_sentence(
        run_command(["compare", *twice]), 2, ("Two runs are named a and have seed 0",)
    )


# ---- one as a person starts it


@pytest.fixture
def two_configs(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """`thin.yaml`, which begins from the run of `wide.yaml`, in the current folder."""
    wide = config_of(
        tiny_data, "runs", **{"model.width": 8, "method.name": "fixed", "train.iterations": 2}
    )
    thin = config_of(tiny_data, "runs", **{"train.iterations": 4, "method.round_iterations": 2})
    thin["method"] |= {
        "init": "somp",
        "pretrained": "runs/wide",
    }  # the run of `wide.yaml` with the same seed
    for name, values in (("wide", wide), ("thin", thin)):
        values["train"]["evaluate_every"] = 0
        kept = {key: part for key, part in values.items() if key not in ("run", "seed")}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.chdir(tmp_path)
    return [tmp_path / "thin.yaml", tmp_path / "wide.yaml"]


def train_in_this_process(monkeypatch: pytest.MonkeyPatch, broken: str = "") -> list[str]:
    """Instead of Ray: every trial of a turn is trained here; the names in order. `broken` fails."""
    trained: list[str] = []

    def train_roots(
        sweep: Any,
        roots: Sequence[Sequence[Any]],
        known: Any,
        directory: Any,
        report: Any,
        propose: Any,
    ) -> None:
        for config in (config for root in roots for config in root):
            trained.append(config.run.name)
            if config.run.name == broken:
                directory.record_end(broken, "failed", "it broke")
            else:
                train_trial(config, lambda _: None)

    monkeypatch.setattr(tuning, "train_roots", train_roots)
    monkeypatch.setattr(sweep_run, "open_sweep_cluster", lambda *_: nullcontext())
    return trained


def run_table(configs: Sequence[Path], seeds: Sequence[int] = (0,)) -> tuple[Any, Path]:
    own = ["launch.workers=1"]
    experiment = designs.design_table(configs, own, split="test")
    _, runs, place = run_experiment(experiment, own, seeds=seeds, jobs=None, report=lambda _: None)
    return runs, place


def test_a_table_trains_what_begins_from_another_run_after_it_and_repeats_nothing(
    two_configs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_in_this_process(monkeypatch)
    for configs in (two_configs, two_configs[::-1]):
        results, place = run_table(configs)
        assert trained == ["wide-seed0", "thin-seed0"]
        assert [run.variant for run in results] == [config.stem for config in configs]
    assert place == Path("runs/table").absolute()
    assert (place / "results.csv").read_text().count("finished") == 2
    text = (place / "table.md").read_text()
    assert text.count("| thin | 1 |") == text.count("| wide | 1 |") == 2
    assert "latency ms" in text


def test_another_comparison_does_not_overwrite_a_table(
    two_configs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_in_this_process(monkeypatch)
    _, place = run_table(two_configs)
    assert (place / "table.png").is_file(), "both fronts"
    before = {
        name: (place / name).read_text() for name in ("results.csv", "table.md", "experiment.json")
    }
    for configs, seeds in (([two_configs[1]], [0]), (two_configs, [1])):
        with pytest.raises(
            UserError,
            match=r"table holds the results of another comparison, of thin-seed0.* Give another --name",
        ):
            run_table(configs, seeds)
    with pytest.raises(
        UserError,
        match=r"another comparison, with experiment=table, metric=.*; they would be overwritten",
    ):
        check_same_comparison(
            build_sweep(
                "table",
                designs.make_file_variants(two_configs),
                [],
                seeds=[0],
                jobs=None,
                among_runs=True,
            ),
            {"experiment": "company", "split": "test"},
        )
    assert {name: (place / name).read_text() for name in before} == before
    assert trained == ["wide-seed0", "thin-seed0"], "refused before anything is trained"
    results, again = run_table(two_configs, [0, 1])
    assert again == place
    assert [run.variant for run in results] == ["thin", "thin", "wide", "wide"]
    assert trained[2:] == ["wide-seed1", "thin-seed1"], "what was compared before is not repeated"


def test_what_begins_from_a_run_that_failed_fails_with_the_reason(
    two_configs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_in_this_process(monkeypatch, broken="wide-seed0")
    with pytest.raises(
        UserError,
        match=r"2 of 2 runs did not finish: thin-seed0 \(failed\) method.pretrained=.*wide-seed0",
    ):
        run_table(two_configs)
    assert trained == ["wide-seed0"]
