"""The queue of a sweep on real run directories, with a Tuner that is this test: who is handed out, judged, settled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_files import write_sweep

from distbranch.config import Config, to_yaml
from distbranch.config.sweep import load_sweep
from distbranch.errors import UserError
from distbranch.sweep import queue as queue_module
from distbranch.sweep.plan import list_trials
from distbranch.sweep.queue import FamilyQueue
from distbranch.sweep.shared_prefix import group_by_prefix, trainable_groups
from distbranch.sweep.trial_status import (
    FAILED,
    FINISHED,
    STOPPED_EARLY,
    UNFINISHED,
    SweepDirectory,
)

MakeQueue = Callable[..., FamilyQueue]


@pytest.fixture
def trials(tmp_path: Path) -> list[Config]:
    """Four settings with two seeds."""
    grid = {"model.width": [2, 3], "optim.lr": [0.01, 0.02]}
    return list_trials(load_sweep(write_sweep(tmp_path, grid=grid, seeds=[0, 1])))


@pytest.fixture
def make_queue(trials: list[Config]) -> MakeQueue:
    """A queue over all of them that keeps what it reports in `.events`."""

    def make(**options: Any) -> FamilyQueue:
        directory = SweepDirectory(trials[0].run_directory.parent)
        directory.path.mkdir(parents=True, exist_ok=True)
        events: list[dict[str, Any]] = []
        values = {
            "ready": trainable_groups,
            "directory": directory,
            "concurrency": 2,
            "report": events.append,
            **options,
        }
        queue = FamilyQueue(values.pop("roots", group_by_prefix(trials)), **values)
        queue.events = events
        return queue

    return make


def leader(work: dict[str, Any]) -> Config:
    return Config.model_validate(json.loads(work["leader"]))


def finish(config: Config) -> None:
    (config.run_directory / "result.json").write_text("{}")


def test_every_trial_is_handed_out_once_and_never_more_than_the_concurrency(
    make_queue: MakeQueue, trials: list[Config]
) -> None:
    queue, names = make_queue(), []
    for number in range(0, len(trials), 2):
        pair = {str(number + n): leader(queue.suggest(str(number + n))) for n in range(2)}
        assert queue.suggest("third") is None
        for trial_id, config in pair.items():
            names.append(config.run.name)
            finish(config)
            queue.on_trial_complete(trial_id, {"kind": "ended", "reason": None})
    assert queue.suggest("last") == FamilyQueue.FINISHED
    assert names == [trial.run.name for trial in trials]
    assert [event["status"] for event in queue.events if event["kind"] == "ended"] == [
        FINISHED
    ] * len(trials)


def test_what_fits_is_counted_again_while_the_sweep_runs(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "SECONDS_BETWEEN_COUNTS", 0.0)
    room = 1
    queue = make_queue(concurrency=1, count_room=lambda: room)
    assert queue.suggest("a") is not None
    assert queue.suggest("b") is None
    room = 3  # two nodes join
    assert queue.suggest("b") is not None
    assert queue.suggest("c") is not None
    room = 1  # and are lost
    assert queue.suggest("d") is None


def test_a_trial_that_fails_is_recorded_with_its_reason_and_not_tried_twice(
    make_queue: MakeQueue, trials: list[Config]
) -> None:
    queue = make_queue(roots=group_by_prefix(trials[:2]), concurrency=1)
    queue.suggest("a")
    queue.on_trial_complete("a", {"kind": "ended", "reason": "The loss is not finite."})
    assert leader(queue.suggest("b")).run.name == trials[1].run.name
    queue.on_trial_complete("b", error=True)
    queue.settle_family("b", "out of memory")
    assert queue.suggest("c") == FamilyQueue.FINISHED
    standings = queue.directory.read_statuses(trials[:2])
    assert [(standing.status, standing.reason) for standing in standings.values()] == [
        (FAILED, "The loss is not finite."),
        (FAILED, "out of memory"),
    ]


def test_a_trial_that_does_not_pass_gets_its_stop_word_and_is_settled(
    make_queue: MakeQueue, trials: list[Config]
) -> None:
    queue = make_queue(roots=group_by_prefix(trials[:1]), judge=lambda *_: False)
    config = leader(queue.suggest("a"))
    queue.on_trial_result("a", {"kind": "evaluation", "iteration": 16, "value": 0.25})
    assert (config.run_directory / "stop").exists()
    queue.on_trial_complete("a", {"kind": "ended", "reason": None})
    (standing,) = queue.directory.read_statuses([config]).values()
    assert (standing.status, standing.is_settled) == (STOPPED_EARLY, True)
    assert "0.2500 on val after 16 steps" in standing.reason
    again = make_queue(roots=group_by_prefix(trials[:1]))
    assert again.suggest("a") == FamilyQueue.FINISHED


def test_families_that_become_ready_while_their_leader_trains_join_the_queue(
    tmp_path: Path,
) -> None:
    grid = {"method.alpha": [1.0, 2.0, 4.0]}
    trials = list_trials(load_sweep(write_sweep(tmp_path, grid=grid)))
    directory = SweepDirectory(trials[0].run_directory.parent)
    directory.path.mkdir(parents=True)
    left = list[Config]()

    def forked(root: list[Config]) -> list[list[Config]]:
        families = [
            [config for config in root if config not in left],
            *([config] for config in left),
        ]
        return [
            family for family in families if not (family[0].run_directory / "result.json").exists()
        ]

    events: list[dict[str, Any]] = []
    queue = FamilyQueue(
        [trials], ready=forked, directory=directory, concurrency=3, report=events.append
    )
    assert leader(queue.suggest("a")).run.name == "alpha1-seed3"
    assert queue.suggest("b") is None
    left.append(trials[2])  # it decides otherwise
    queue.on_trial_result("a", {"kind": "decision"})
    assert leader(queue.suggest("b")).run.name == "alpha4-seed3"
    for name in trials[:2]:
        name.run_directory.mkdir()
        finish(name)
    queue.on_trial_complete("a", {"kind": "ended", "reason": None})
    assert queue.suggest("c") is None
    trials[2].run_directory.mkdir()
    finish(trials[2])
    queue.on_trial_complete("b", {"kind": "ended", "reason": None})
    assert queue.suggest("d") == FamilyQueue.FINISHED
    ended = [event["trial"] for event in events if event["kind"] == "ended"]
    assert ended == ["alpha1-seed3", "alpha2-seed3", "alpha4-seed3"]


def test_a_shared_beginning_counts_for_each_trial_and_who_is_alone_is_judged(
    tmp_path: Path,
) -> None:
    grid = {"method.alpha": [1.0, 2.0]}
    first, other = list_trials(
        load_sweep(write_sweep(tmp_path, grid=grid, run={"train.iterations": 4000}))
    )
    directory = SweepDirectory(first.run_directory.parent)
    directory.path.mkdir(parents=True)
    together = [[first, other]]
    judged = list[tuple[str | None, int]]()

    def judge(config: Config, iteration: int, value: float) -> bool:
        judged.append((config.run.name, iteration))
        return value > 0.5

    queue = FamilyQueue(
        [[first, other]],
        ready=lambda _: together,
        directory=directory,
        concurrency=2,
        report=lambda _: None,
        judge=judge,
    )
    queue.suggest("a")
    queue.on_trial_result("a", {"kind": "evaluation", "iteration": 1000, "value": 0.4})
    together[:] = [[first], [other]]
    queue.on_trial_result("a", {"kind": "decision"})
    assert leader(queue.suggest("b")) == other
    queue.on_trial_result("b", {"kind": "evaluation", "iteration": 2500, "value": 0.6})
    for config in (first, other):
        config.run_directory.mkdir()
    queue.on_trial_result("a", {"kind": "evaluation", "iteration": 3000, "value": 0.4})
    names = [first.run.name, other.run.name]
    assert judged == [(names[0], 1000), (names[1], 1000), (names[1], 2500), (names[0], 3000)]
    standings = directory.read_statuses([first, other])
    assert [standing.status for standing in standings.values()] == [STOPPED_EARLY, UNFINISHED]
    assert (first.run_directory / "stop").exists()


def test_a_folder_with_other_files_fails_its_trial_and_no_other(
    make_queue: MakeQueue, trials: list[Config]
) -> None:
    trials[0].run_directory.mkdir(parents=True)
    (trials[0].run_directory / "notes.txt").write_text("mine")
    queue = make_queue(roots=group_by_prefix(trials[:2]))
    assert leader(queue.suggest("a")).run.name == trials[1].run.name
    (failed,) = [event for event in queue.events if event["kind"] == "ended"]
    assert (failed["trial"], failed["status"]) == (trials[0].run.name, FAILED)
    assert "holds other files and no run" in failed["reason"]


def test_a_closed_queue_hands_out_nothing_and_waits_for_what_runs(make_queue: MakeQueue) -> None:
    queue = make_queue()
    queue.suggest("a")
    queue.closed = True
    assert queue.suggest("b") is None
    queue.on_trial_complete("a", {"kind": "ended", "reason": None})
    assert queue.suggest("c") == FamilyQueue.FINISHED
    assert [event["status"] for event in queue.events if event["kind"] == "ended"] == [UNFINISHED]


def test_what_stands_on_the_disk_decides_whatever_ended_before(trials: list[Config]) -> None:
    directory = SweepDirectory(trials[0].run_directory.parent)
    name = str(trials[0].run.name)
    trials[0].run_directory.mkdir(parents=True)
    (trials[0].run_directory / "config.yaml").write_text(to_yaml(trials[0]))
    assert directory.read_statuses(trials[:1])[name].status == UNFINISHED
    directory.record_end(name, FAILED, "no room")
    assert directory.read_statuses(trials[:1])[name].reason == "no room"
    directory.record_end(name, UNFINISHED)
    assert directory.read_statuses(trials[:1])[name].status == UNFINISHED
    directory.record_end(name, FAILED, "no room")
    finish(trials[0])
    assert directory.read_statuses(trials[:1])[name].status == FINISHED


def test_a_damaged_family_is_told_as_the_reason(
    make_queue: MakeQueue, trials: list[Config]
) -> None:
    def damaged(_: Any) -> list[list[Config]]:
        raise UserError("family.json is damaged.")

    queue = make_queue(roots=group_by_prefix(trials[:1]), ready=damaged)
    assert queue.suggest("a") == FamilyQueue.FINISHED
    assert (
        queue.directory.read_statuses(trials[:1])[str(trials[0].run.name)].reason
        == "family.json is damaged."
    )
