"""Forks: runs that differ only at decisions are trained as one until they decide differently, with the same bits as alone."""

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny, without_times

from distbranch.branching.affinity import AffinityStats
from distbranch.config import Config, MethodConfig, load_config
from distbranch.engine.forks import Family, make_member_config, read_family, write_family
from distbranch.engine.round_decision import decide_round
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import begin_run
from distbranch.models.architecture import Architecture
from distbranch.tasks import Task

# Decisions and evaluations are due after every 7 steps; an evaluation follows the same step's decision.
SHARED = {
    "method.max_branches": 2,
    "method.unit_cost": 0.005,
    "train.iterations": 23,
    "train.evaluate_every": 7,
}
FORK = 7
ALPHAS = (
    0.0,
    0.5,
    2.0,
)  # the first one keeps one branch at its first decision, the others do not part before the end


def member_of(data: Path, folder: Path, alpha: float, **dotted: Any) -> Config:
    """The configuration of one of the runs, named after its alpha."""
    return load_config(
        config_of(
            data,
            folder,
            **SHARED,
            **{"method.alpha": alpha, "run.name": f"alpha-{alpha:g}"} | dotted,
        )
    )


def lead(family: Sequence[Config]) -> Config:
    """Make the first run the leader of the others; its configuration."""
    leader, *others = family
    files = RunDirectory(leader.run_directory)
    begin_run(leader)
    write_family(files, {str(other.run.name): other.method for other in others}, None)
    return leader


def training_and_scores(run: Path) -> list[Any]:
    """What metrics.jsonl says of training and evaluations, without what depends on the clock."""
    clock = ("samples_per_second", "data_wait", "seconds_alone")
    lines = [
        line for line in lines_of(run / "metrics.jsonl") if line["kind"] in ("train", "evaluation")
    ]
    return [
        without_times({key: value for key, value in line.items() if key not in clock})
        for line in lines
    ]


def train_each(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A job: train several runs one after another; how they ended."""
    return [train_tiny(config)["end"] for config in configs]


def test_forked_runs_have_the_same_bits_as_runs_that_were_trained_alone(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    alone = [member_of(tiny_data, tmp_path / "alone", alpha) for alpha in ALPHAS[:2]]
    family = [member_of(tiny_data, tmp_path / "shared", alpha) for alpha in ALPHAS]
    # What a run took of an earlier one is on record in each.
    RunDirectory(lead(family).run_directory).from_run.write_text("{}")
    # The second of the family is only continued: the leader leaves it a directory with its beginning and its relatives.
    configs = [config.model_dump() for config in (*alone, *family[:2])]
    assert ranks.call(train_each, configs=configs) == ["done"] * 4

    assert [line["iteration"] for line in _forks(family[0])] == [FORK]
    assert not _forks(family[1])
    assert RunDirectory(family[1].run_directory).from_run.exists()
    for one, other in zip(family, alone, strict=False):
        assert_same_content(one.run_directory, other.run_directory)
        assert training_and_scores(one.run_directory) == training_and_scores(other.run_directory)
    relatives, origin = read_family(RunDirectory(family[1].run_directory))
    assert list(relatives) == ["alpha-2"]  # it never left
    assert origin is not None
    assert (origin.run, origin.iteration) == ("alpha-0", FORK)
    assert (
        0
        < origin.seconds
        < json.loads((family[1].run_directory / "result.json").read_text())["seconds"]
    )
    own, leaders = (
        lines_of(file)
        for file in sorted(family[1].run_directory.rglob("decisions.jsonl"), reverse=True)
    )
    assert [line["alpha"] for line in own] == [2.0] * 3
    assert [line["alpha"] for line in leaders] == [0.5] * 3
    assert [line["groups"] for line in own] == [line["groups"] for line in leaders]


def _forks(config: Config) -> list[dict[str, Any]]:
    metrics = config.run_directory / "metrics.jsonl"
    return lines_of(metrics, "forked") if metrics.exists() else []


# Moments of a fork in their order, and whether those who leave have their directory by then: inside the directory that is
# made aside, before it gets its name, before and after the family is written anew, before the leader's next checkpoint.
MOMENTS = {
    "copy_as": False,
    "save_checkpoint": False,
    "rename": False,
    "write_family": True,
    "rmtree": True,
    "record_decision": True,
}


def train_and_die_at_a_fork(config: Mapping[str, Any], moment: str) -> None:
    """A job: train, and be killed just before one moment of the first fork."""
    from distbranch.engine import forks

    owner = {"record_decision": Family, "rename": Path, "rmtree": forks.shutil}.get(moment, forks)
    is_meant = {
        "rename": lambda path: path.name.startswith(".preparing-"),
        "write_family": lambda files: not files.path.name.startswith(".preparing-"),
        "rmtree": lambda path: "relatives" in path.parts,
    }.get(moment, lambda _: True)
    real = getattr(owner, moment)

    def dying(first: Any, *arguments: Any, **named: Any) -> Any:
        if is_meant(first):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(first, *arguments, **named)

    setattr(owner, moment, dying)
    train_tiny(config)


def test_a_leader_killed_at_every_moment_of_a_fork_resumes_to_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    alone = [member_of(tiny_data, tmp_path / "alone", alpha) for alpha in ALPHAS[:2]]
    family = [member_of(tiny_data, tmp_path / "shared", alpha) for alpha in ALPHAS[:2]]
    leader = lead(family)
    for moment, left in MOMENTS.items():
        ended = ranks.run(train_and_die_at_a_fork, config=leader.model_dump(), moment=moment)
        assert ended[0].exit_code == -signal.SIGKILL, f"{moment}: {ended[0].output}"
        assert family[1].run_directory.exists() == left, moment
        assert not (leader.run_directory / "checkpoints" / f"step-{FORK:08d}").exists()
    configs = [config.model_dump() for config in (*alone, *family)]
    assert ranks.call(train_each, configs=configs) == ["done"] * 4
    for one, other in zip(family, alone, strict=True):
        assert_same_content(one.run_directory, other.run_directory)
        assert training_and_scores(one.run_directory) == training_and_scores(other.run_directory)
    assert not list((tmp_path / "shared").glob(".preparing-*"))


def kill_at_step(config: Mapping[str, Any], step: int) -> None:
    """A job: train, and be killed in a step."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def dying(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *batch)

    TrainingStep._forward_and_backward = dying  # type: ignore[method-assign]
    train_tiny(config)


def test_a_run_killed_before_its_first_own_checkpoint_decides_again_from_that_of_the_fork(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    """Its decision and evaluation of the fork's step were written already when it dies in the next one."""
    rarely = {"train.checkpoint_every": 50}
    alone = member_of(tiny_data, tmp_path / "alone", 0.5, **rarely)
    family = [member_of(tiny_data, tmp_path / "shared", alpha, **rarely) for alpha in ALPHAS[:2]]
    leader = lead(family)
    assert ranks.call(train_each, configs=[alone.model_dump(), leader.model_dump()]) == ["done"] * 2
    for _ in range(2):
        (ended,) = ranks.run(kill_at_step, config=family[1].model_dump(), step=FORK + 1)
        assert ended.exit_code == -signal.SIGKILL, ended.output
    assert len(lines_of(family[1].run_directory / "decisions.jsonl")) == 1
    assert ranks.call(train_each, configs=[family[1].model_dump()]) == ["done"]
    assert_same_content(family[1].run_directory, alone.run_directory)
    assert training_and_scores(family[1].run_directory) == training_and_scores(alone.run_directory)


def random_statistics(num_tasks: int) -> AffinityStats:
    """Statistics of random margins, one half of the tasks more alike than the other."""
    draw = torch.Generator().manual_seed(2)
    stats = AffinityStats(num_tasks)
    common = torch.randn(400, 1, generator=draw) * (torch.arange(num_tasks) < num_tasks // 2)
    for part in (common + torch.randn(400, num_tasks, generator=draw)).sigmoid().split(40):
        stats.update(part)
    return stats


def test_relatives_decide_as_each_would_alone(tmp_path: Path) -> None:
    architecture = Architecture.thin(
        "vgg9", 8, (32, 32), tuple(Task(f"task {number}") for number in range(10))
    )
    stats = random_statistics(10)
    changes: list[dict[str, Any]] = [
        {"alpha": 1.0},
        {"alpha": 0.0},
        {"alpha": 3.0, "unit_cost": 0.3},
        {"alpha": 3.0, "max_branches": 2},
        {"alpha": 1.0, "affinity": "phi"},
    ]
    methods = [MethodConfig(**change) for change in changes]
    together = decide_round(stats, architecture, methods, seed=4)
    assert len({ruling.record["num_groups"] for ruling in together}) > 2
    for method, ruling in zip(methods, together, strict=True):
        (alone,) = decide_round(stats, architecture, [method], seed=4)
        assert without_times(ruling.record) == without_times(alone.record)
        assert (ruling.record["search"], ruling.record["moves"] >= 0) == ("spectral + moves", True)
        assert str(ruling.record["num_groups"]) in ruling.record["costs"]
        assert all(
            np.array_equal(ruling.matrices[name], alone.matrices[name]) for name in alone.matrices
        )


def test_runs_part_over_whether_to_test_again_even_if_both_keep_one_branch() -> None:
    architecture = Architecture.thin(
        "vgg9", 8, (32, 32), tuple(Task(f"task {number}") for number in range(4))
    )
    methods = [
        MethodConfig(alpha=0.0, when_no_split="freeze"),
        MethodConfig(alpha=0.0, when_no_split="retry"),
    ]
    rulings = decide_round(random_statistics(4), architecture, methods, seed=0)
    courses = [(ruling.split, ruling.grows) for ruling in rulings]
    assert courses == [(None, False), (None, True)]


def test_a_run_alone_has_no_relatives_and_a_family_is_read_as_it_was_written(
    tmp_path: Path,
) -> None:
    files = RunDirectory(tmp_path)
    assert read_family(files) == ({}, None)
    config = load_config({"run": {"name": "one", "directory": str(tmp_path)}})
    method = MethodConfig(alpha=0.25, max_branches=None, when_no_split="retry")
    write_family(files, {"two": method}, None)
    assert read_family(files) == ({"two": method}, None)
    other = make_member_config(config, "two", method)
    assert (other.run.name, other.run.directory, other.method) == ("two", str(tmp_path), method)
    assert other.train == config.train
