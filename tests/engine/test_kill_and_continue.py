"""Kill and continue: whatever moment a run is killed at, the same command ends with the same bits."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, seeded, train_tiny

Kill = tuple[str, int]  # an event of `_events`, and at which of its occurrences the process dies

# Ten moments: inside a widening (before, in and after the new network), inside a checkpoint (a torn file, no manifest
# yet, not renamed yet, renamed but not synced), inside a step, between the record of a decision and its checkpoint.
# Any step, perhaps while a checkpoint is written; "step" itself is one at which the last one is whole.
UNSAVED_STEP = "step, perhaps while a checkpoint is written"
EVENTS = (
    UNSAVED_STEP,
    "copy state",
    "build network",
    "half a tensor file",
    "half a text file",
    "sync",
    "rename",
    "remove old",
    "half a line",
    "backward",
)
OCCURRENCES = {
    UNSAVED_STEP: 9,
    "sync": 12,
    "half a tensor file": 5,
    "half a text file": 4,
    "rename": 2,
    "remove old": 4,
    "backward": 9,
}


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _events() -> dict[str, tuple[Any, str]]:
    """Where a process can die: the owner and the name of the function during which it does."""
    import torch

    from distbranch import tensor_files
    from distbranch.engine import checkpoint, run_log, trained_network, trainer

    return {
        "step": (trainer.Trainer, "_train_step"),
        UNSAVED_STEP: (trainer.Trainer, "_train_step"),
        "backward": (torch.autograd, "backward"),
        "copy state": (trained_network, "copy_state"),
        "build network": (trained_network.TrainedNetwork, "build"),
        "half a tensor file": (tensor_files, "save_file"),
        "half a text file": (Path, "write_text"),
        "sync": (checkpoint, "_sync"),
        "rename": (Path, "rename"),
        "remove old": (checkpoint.shutil, "rmtree"),
        "half a line": (run_log, "append_line"),
        "evaluate": (trainer.Trainer, "_evaluate_split"),
    }


def train_and_die(config: Mapping[str, Any], kill: Kill, rank: int) -> dict[str, Any]:
    """A job: train, and be killed in the middle of an event, with half of the file written if it is about a file."""
    event, occurrence = kill
    owner, name = _events()[event]
    real = getattr(owner, name)
    left = occurrence

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return real(*arguments, **named)
        if event.startswith("half"):
            real(*arguments, **named)
            file = next(Path(value) for value in arguments if isinstance(value, Path))
            os.truncate(
                file,
                file.stat().st_size // 2 if event != "half a line" else file.stat().st_size - 7,
            )
        if event == "step":
            arguments[0].store.finish_checkpoint()
        _kill()
        return None

    if int(os.environ.get("RANK", "0")) == rank:
        setattr(owner, name, dying)
    return train_tiny(config)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_bits(
    world_size: int,
    tiny_data: Path,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": world_size})
    draw = seeded(world_size)
    num_killed = 0
    for event in draw.sample(EVENTS, len(EVENTS)):
        kill = (event, draw.randint(1, OCCURRENCES.get(event, 1)))
        only_first = event not in (
            UNSAVED_STEP,
            "backward",
            "copy state",
            "build network",
        )  # only rank 0 writes
        rank = 0 if only_first else draw.randrange(world_size)
        ended = ranks.run(train_and_die, world_size=world_size, config=config, kill=kill, rank=rank)
        num_killed += ended[rank].exit_code == -signal.SIGKILL
    assert num_killed == len(EVENTS), (
        "the run ended before all the kills, so it proves less than it says"
    )
    for ended in ranks.call_all(train_tiny, world_size, config=config):
        assert ended["end"] == "done", ended["message"]
    assert_same_content(tmp_path / "tiny", undisturbed(world_size))


def test_a_killed_run_repeats_only_the_steps_since_its_last_checkpoint(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path)
    ranks.run(train_and_die, config=config, kill=("step", 20), rank=0)
    ranks.call(train_tiny, config=config)
    resumed = lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    assert [line["iteration"] for line in resumed] == [15]


def test_a_run_killed_between_a_decision_and_the_evaluation_of_its_step_is_evaluated_there(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.evaluate_every": 7})  # at every decision
    (ended,) = ranks.run(train_and_die, config=config, kill=("evaluate", 2), rank=0)
    assert ended.exit_code == -signal.SIGKILL
    ranks.call(train_tiny, config=config)
    lines = lines_of(tmp_path / "tiny" / "metrics.jsonl", "evaluation")
    assert [line["iteration"] for line in lines if line["split"] == "val"] == [
        7,
        14,
        21,
        28,
        35,
        42,
        48,
    ]
