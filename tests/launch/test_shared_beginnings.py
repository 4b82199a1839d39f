"""Shared beginnings: a family of trials ends with the same bits as if each had been trained alone, and takes fewer steps."""

import itertools
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny, without_times
from torch.utils.tensorboard import SummaryWriter

from distbranch.config import Config, load_config, to_yaml
from distbranch.engine.forks import Origin, read_family, write_family
from distbranch.engine.run_directory import RunDirectory, created_atomically, write_atomically
from distbranch.errors import UserError
from distbranch.sweep import shared_prefix
from distbranch.sweep.shared_prefix import (
    copy_result_to_siblings,
    describe_saving,
    group_by_prefix,
    measure_saving,
    trainable_groups,
)

ITERATIONS = 27
# On one rank: `zero` and `wide` leave the others at the first decision (step 5), `lower` and `low` at later ones, `again` leaves
# `lower` because it tests again where `lower` stops. The last three have the same tree, from two kinds of affinity.
METHODS: dict[str, dict[str, Any]] = {
    "zero": {"alpha": 0.0},
    "low": {"alpha": 0.04},
    "lower": {"alpha": 0.02},
    "again": {"alpha": 0.02, "when_no_split": "retry"},
    "wide": {"alpha": 2.0, "max_branches": 3},
    "two": {"alpha": 2.0},
    "four": {"alpha": 4.0, "unit_cost": 0.001},
    "phi": {"alpha": 8.0, "unit_cost": 0.001, "affinity": "phi"},
}


def trials_in(
    folder: Path, data: Path, names: Sequence[str] = tuple(METHODS), **dotted: Any
) -> list[Config]:
    """The trials of these names."""
    common = {
        "train.iterations": ITERATIONS,
        "train.evaluate_every": 10,
        "train.checkpoint_every": 4,
        "track": ["tensorboard"],
        **dotted,
    }
    method = {"max_branches": 2, "unit_cost": 0.005, "round_iterations": 5}
    return [
        load_config(
            config_of(
                data, folder, **common, **{"run.name": name, "method": method | METHODS[name]}
            )
        )
        for name in names
    ]


# ---- jobs


def train_alone(trials: Sequence[Config]) -> None:
    """A job: train every trial by itself."""
    for trial in trials:
        assert train_tiny(trial.model_dump())["end"] == "done"


def train_leader(trial: Config, steps: Path) -> None:
    """A job: train one run; every step of rank 0 is a byte in the file `steps`."""
    from distbranch.engine.trainer import Trainer

    real = Trainer._train_step

    def step(self: Trainer) -> None:
        real(self)
        if self.ranks.is_first:
            with steps.open("ab") as file:
                file.write(b".")

    Trainer._train_step = step  # type: ignore[method-assign]
    try:
        ended = train_tiny(trial.model_dump())
        assert ended["end"] == "done", ended["message"]
    finally:
        Trainer._train_step = real  # type: ignore[method-assign]


def train_together(
    trials: Sequence[Config], steps: Path, kill: tuple[str, int] | None = None
) -> None:
    """A job: train all trials with shared beginnings, and be killed at the n-th occurrence of an event."""
    from distbranch.engine import forks
    from distbranch.engine.training_step import TrainingStep

    owners: dict[str, Any] = {
        "_forward_and_backward": TrainingStep,
        "save_checkpoint": forks,  # only a fork's
        "send_off_leavers": forks.Family,
        **dict.fromkeys(
            ("write_family", "copy_as", "_link_or_copy", "write_tensorboard", "write_json"),
            shared_prefix,
        ),
    }
    if kill is not None:
        event, left = kill
        real = getattr(owners[event], event)
        countdown = itertools.count(left, -1)

        def dying(*arguments: Any, **named: Any) -> Any:
            if next(countdown) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        setattr(owners[event], event, dying)
    while found := trainable_groups(trials):
        leader = found[0][0]
        if not RunDirectory(leader.run_directory).result.exists():
            train_leader(leader, steps)
        copy_result_to_siblings(leader, draw_alpha)


def draw_alpha(writer: SummaryWriter, record: Any, run_directory: Path) -> None:
    """Draws a decision into TensorBoard in the shortest way."""
    assert (run_directory / record["affinity_file"]).exists()
    writer.add_scalar("decision/alpha", record["alpha"], record["iteration"])


# ---- comparisons


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


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run, but for pace."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag not in ("train/samples_per_second", "train/data_wait", "decision/alpha")
        and not tag.startswith("seconds_alone/")
    }


def assert_as_alone(trials: Sequence[Config], alone: Sequence[Config]) -> None:
    for one, other in zip(trials, alone, strict=True):
        run, reference = one.run_directory, other.run_directory
        assert_same_content(run, reference)
        assert training_and_scores(run) == training_and_scores(reference)
        assert scalars(run) == scalars(reference)
        assert load_config(run / "config.yaml") == one
        assert {line["alpha"] for line in lines_of(run / "decisions.jsonl")} == {one.method.alpha}


@pytest.fixture(scope="module")
def alone(
    tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> list[Config]:
    """All trials, each trained by itself on one rank."""
    trials = trials_in(tmp_path_factory.mktemp("alone"), tiny_data)
    ranks.call(train_alone, trials=trials)
    return trials


def beginning(trial: Config) -> int:
    """How many steps a trial did not train itself."""
    _, origin = read_family(RunDirectory(trial.run_directory))
    return origin.iteration if origin else 0


def depth(trial: Config) -> int:
    """How many forks lie between the first leader and a trial."""
    _, origin = read_family(RunDirectory(trial.run_directory))
    if origin is None:
        return 0
    leader = trial.model_copy(update={"run": trial.run.model_copy(update={"name": origin.run})})
    return depth(leader) + (origin.iteration < trial.train.iterations)


def test_a_family_that_forks_again_and_again_ends_with_the_bits_of_single_trials_and_takes_the_steps_it_says(
    alone: list[Config], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    trials, steps = trials_in(tmp_path, tiny_data), tmp_path / "steps"
    ranks.call(train_together, trials=trials, steps=steps)
    assert_as_alone(trials, alone)
    assert trainable_groups(trials) == []

    assert max(map(depth, trials)) >= 2, "no fork after a fork, so this proves less than it says"
    assert beginning(trials[-1]) == ITERATIONS, (
        "no trial took over a whole result, so this proves less than it says"
    )
    found = measure_saving(trials)
    assert (found["trials"], found["steps_alone"]) == (8, 8 * ITERATIONS)
    assert (
        found["steps"]
        == sum(ITERATIONS - beginning(trial) for trial in trials)
        == len(steps.read_bytes())
    )
    assert found["seconds"] < found["seconds_alone"]
    assert describe_saving(trials).startswith(
        f"Shared beginnings of 8 trials: {found['steps']} steps trained instead of {8 * ITERATIONS}: "
    )
    for trial in trials:
        assert (
            json.loads((trial.run_directory / "result.json").read_text())["name"] == trial.run.name
        )
        assert (trial.run_directory / "environment.json").exists()
    assert _drawn_alphas(trials[-1].run_directory) == [8.0] * len(
        lines_of(trials[-1].run_directory / "decisions.jsonl")
    )


def _drawn_alphas(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return (
        [event.value for event in events.Scalars("decision/alpha")]
        if "decision/alpha" in tags
        else []
    )


def test_two_ranks_share_beginnings_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    names, workers = ("zero", "low", "phi"), {"launch.workers": 2}
    alone = trials_in(tmp_path / "alone", tiny_data, names, **workers)
    for trial in alone:
        ranks.call_all(train_alone, 2, trials=[trial])
    trials, steps = trials_in(tmp_path / "shared", tiny_data, names, **workers), tmp_path / "steps"
    while found := trainable_groups(trials):
        ranks.call_all(train_leader, 2, trial=found[0][0], steps=steps)
        copy_result_to_siblings(found[0][0])
    assert_as_alone(trials, alone)
    assert max(map(depth, trials)) == 2, "no fork after a fork, so this proves less than it says"
    saving = measure_saving(trials)
    assert len(steps.read_bytes()) == saving["steps"] < saving["steps_alone"]


# In the common beginning; at the begin of a family; in forks (before, inside the new directory); in results being shared.
KILLS = (
    ("write_family", 1),
    ("_forward_and_backward", 4),
    ("save_checkpoint", 1),
    ("save_checkpoint", 2),
    ("send_off_leavers", 1),
    ("_link_or_copy", 3),
    ("write_tensorboard", 1),
    ("write_json", 1),
    ("_forward_and_backward", 25),
)


def test_trials_killed_at_any_moment_end_with_the_same_bits_and_none_is_lost_or_repeated(
    alone: list[Config], tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    trials, steps = trials_in(tmp_path, tiny_data), tmp_path / "steps"
    finished: dict[Path, int] = {}
    for kill in KILLS:
        (ended,) = ranks.run(train_together, trials=trials, steps=steps, kill=kill)
        assert ended.exit_code == -signal.SIGKILL, f"{kill}: {ended.output}"
        results = {file: file.stat().st_mtime_ns for file in tmp_path.glob("[!.]*/result.json")}
        assert finished.items() <= results.items()
        finished = results
    assert finished, "no trial had finished before the last kill, so it proves less than it says"
    ranks.call(train_together, trials=trials, steps=steps)
    assert all(file.stat().st_mtime_ns == time for file, time in finished.items())
    assert_as_alone(trials, alone)
    assert trainable_groups(trials) == []
    repeated = len(steps.read_bytes()) - measure_saving(trials)["steps"]
    assert 0 < repeated <= len(KILLS) * 7  # since the last checkpoint each time


# ---- without training


def test_families_are_trials_that_differ_only_in_what_acts_at_decisions(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, tmp_path / "data")
    other_seed = trials_in(tmp_path, tmp_path / "data", ["zero", "lower"], seed=9)
    other_decay = trials_in(tmp_path, tmp_path / "data", ["two"])[0]
    other_decay = other_decay.model_copy(
        update={"method": other_decay.method.model_copy(update={"decay": 0.9})}
    )
    fixed = [_with_method(trial, name="fixed") for trial in trials[:2]]
    mixed = [trials[0], other_seed[0], fixed[0], *trials[1:], other_decay, other_seed[1], fixed[1]]
    assert group_by_prefix(mixed) == [trials, other_seed, [fixed[0]], [other_decay], [fixed[1]]]
    # Those that are decided before the first step never part at a decision.
    anew = {"begin": "anew", "affinity": "importance"}
    decided = [_with_method(trial, alpha=alpha, **anew) for alpha, trial in enumerate(trials[:2])]
    assert group_by_prefix(decided) == [[decided[0]], [decided[1]]]


def _with_method(trial: Config, **changes: Any) -> Config:
    return trial.model_copy(update={"method": trial.method.model_copy(update=changes)})


def test_what_is_ready_is_read_from_the_directories(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, tmp_path / "data", ["zero", "lower", "two"])
    others = trials_in(tmp_path / "", tmp_path / "data", ["four", "phi"], seed=1)
    assert trainable_groups([*trials, *others]) == [trials, others]
    assert trainable_groups([*trials, *others]) == [trials, others]  # nothing is begun twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["four", "zero"]
    _part_from(trials[0], trials[1:])
    assert trainable_groups(trials) == [trials[1:], trials[:1]]
    RunDirectory(trials[0].run_directory).result.touch()
    assert trainable_groups(trials) == [trials[1:]]


def _part_from(leader: Config, leaving: Sequence[Config]) -> None:
    """What a leader does with the directories at a fork, in the same order."""
    first, *others = leaving
    with created_atomically(first.run_directory) as files:
        write_atomically(files.config, to_yaml(first))
        write_family(
            files,
            {str(other.run.name): other.method for other in others},
            Origin(str(leader.run.name), 7, 1.0),
        )
    relatives, origin = read_family(RunDirectory(leader.run_directory))
    gone = {trial.run.name for trial in leaving}
    write_family(
        RunDirectory(leader.run_directory),
        {name: relatives[name] for name in relatives if name not in gone},
        origin,
    )


def test_a_leader_that_forks_in_the_same_moment_loses_no_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, lower, two = trials_in(tmp_path, tmp_path / "data", ["zero", "lower", "two"])
    trainable_groups([zero, lower, two])
    read, parted = shared_prefix.read_family, []

    def read_while_it_forks(files: RunDirectory) -> Any:
        if not parted:  # the directory of `lower` was looked for in vain just before
            parted.append(files)
            _part_from(zero, [lower, two])
        return read(files)

    monkeypatch.setattr(shared_prefix, "read_family", read_while_it_forks)
    assert trainable_groups([lower, two, zero]) == [[lower, two], [zero]]
    assert not (tmp_path / "two").exists()


def test_a_leader_killed_while_some_leave_leads_them_no_more(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, tmp_path / "data", ["zero", "lower", "two"])
    trainable_groups(trials)
    before, _ = read_family(RunDirectory(trials[0].run_directory))
    _part_from(trials[0], trials[1:])
    write_family(
        RunDirectory(trials[0].run_directory), before, None
    )  # as if it had been killed before it did this
    assert trainable_groups(trials) == [trials[1:], trials[:1]]


def test_a_folder_with_other_files_is_refused_before_a_family_begins(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, tmp_path / "data", ["zero", "lower"])
    (tmp_path / "lower").mkdir()
    (tmp_path / "lower" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="lower holds other files and no run"):
        trainable_groups(trials)
    assert not (tmp_path / "zero").exists()
