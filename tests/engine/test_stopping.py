"""Stopped by a signal: a checkpoint, the right exit code, and the same command goes on as if nothing had been."""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rank_server import RankServer
from tiny_runs import ITERATIONS, assert_same_content, config_of

from distbranch.engine.checkpoint import load_newest


def command_line(arguments: list[str], *, stop_at: int | None = None, stop_signal: int = 0) -> None:
    """A job: `python -m distbranch ...`, which receives a signal during one of its steps."""
    from distbranch.engine import training_step
    from distbranch.launch import local

    local.log_decision = lambda *_: None
    real = training_step.TrainingStep._forward_and_backward

    def step(self: training_step.TrainingStep, *batch: object) -> None:
        if self.progress.iteration + 1 == stop_at and self.ranks.rank == self.ranks.world_size - 1:
            os.kill(os.getpid(), stop_signal)
        real(self, *batch)  # type: ignore[arg-type]

    training_step.TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    sys.argv = ["distbranch", *arguments]
    runpy.run_module("distbranch", run_name="__main__")


def _written(config: dict[str, object], folder: Path) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    return str(file)


# The ranks agree one step later. After step 14 a decision is due, after step 16 a logged line and an evaluation.
@pytest.mark.parametrize(
    ("world_size", "name", "asked_in", "exit_code"),
    [
        (1, "SIGTERM", 13, 75),
        (1, "SIGUSR2", 14, 75),
        (1, "SIGINT", 15, 130),
        (2, "SIGTERM", 13, 75),
        (2, "SIGUSR2", ITERATIONS - 1, 0),
    ],
)
def test_after_a_signal_the_same_command_resumes_to_the_same_bits(
    world_size: int,
    name: str,
    asked_in: int,
    exit_code: int,
    tiny_data: Path,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    config = _written(config_of(tiny_data, tmp_path, **{"launch.workers": world_size}), tmp_path)
    ended = ranks.run(
        command_line,
        world_size=world_size,
        arguments=["train", config],
        stop_at=asked_in,
        stop_signal=int(signal.Signals[name]),
    )
    assert [one.exit_code for one in ended] == [exit_code] * world_size, ended[0].output
    checkpoint = load_newest(tmp_path / "tiny" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["progress"]["iteration"] == asked_in + 1
    if exit_code:
        assert "everything is saved" in " ".join(ended[0].output.split())
        again = ranks.run(command_line, world_size=world_size, arguments=["train", config])
        assert [one.exit_code for one in again] == [0] * world_size, again[0].output
    assert_same_content(tmp_path / "tiny", undisturbed(world_size))
