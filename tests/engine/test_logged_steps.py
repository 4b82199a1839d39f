"""What a run logs and saves between its steps, on one rank in this process."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TASKS, config_of, lines_of

from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.checkpoint import load_newest
from distbranch.engine.distributed import Ranks
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import begin_run
from distbranch.engine.session import build_trainer
from distbranch.engine.step_window import StepWindow
from distbranch.engine.tensorboard_log import DrawDecision, write_tensorboard
from distbranch.engine.trainer import Trainer
from distbranch.errors import SharedError


def trainer_of(
    data: Path, folder: Path, draw: DrawDecision | None = None, **changes: Any
) -> Trainer:
    config = load_config(config_of(data, folder, **changes))
    begin_run(config)
    return build_trainer(
        config,
        Ranks(0, 1, torch.device("cpu")),
        read_dataset(data),
        report=lambda _: None,
        draw=draw,
    )


def test_a_logged_loss_is_the_mean_of_its_steps_whatever_is_done_between_them(
    tiny_data: Path, tmp_path: Path
) -> None:
    losses: dict[int, list[float]] = {}
    for every in (1, 8):  # a decision after step 7, evaluations after 3 and 6
        changes = {"train.iterations": 8, "train.log_every": every, "train.evaluate_every": 3}
        trainer = trainer_of(tiny_data, tmp_path / str(every), **changes)
        trainer.run()
        losses[every] = [
            line["loss"]
            for line in lines_of(RunDirectory(trainer.config.run_directory).metrics, "train")
        ]
    assert len(losses[1]) == 8
    assert losses[8] == pytest.approx([sum(losses[1]) / 8], rel=1e-9)


def test_the_loss_is_per_sample_and_that_of_a_task_per_label() -> None:
    window = StepWindow(2, torch.device("cpu"))
    window.add_losses(torch.tensor([6.0, 0.0]), torch.tensor([3.0, 0.0]), 1, num_samples=4)
    window.restart_clock()
    kept = StepWindow(2, torch.device("cpu"))
    kept.load_json(window.to_json())
    for one in (window, kept):
        one.add_losses(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]), 2, num_samples=4)
        found = one.measure_and_reset(("a", "b"))
        assert (found["loss"], found["task_loss"]) == (1.0, {"a": 2.0, "b": None})
        assert (one.num_samples, float(one.losses.sum())) == (0, 0.0)


def test_a_picture_that_cannot_be_drawn_costs_a_warning_and_not_the_run(
    tiny_data: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("distbranch"), "propagate", True)

    def draw(*_: Any) -> None:
        raise ValueError("Expected \\sqrt")

    trainer = trainer_of(
        tiny_data, tmp_path, draw, **{"train.iterations": 8, "track": ["tensorboard"]}
    )
    trainer.run()
    assert trainer.state.architecture.tree.splits
    told = [
        record.getMessage()
        for record in caplog.records
        if "could not be drawn" in record.getMessage()
    ]
    assert len(told) == 1
    assert "round 1" in told[0]
    files = RunDirectory(trainer.config.run_directory)
    files.tensorboard.rename(tmp_path / "lost")
    write_tensorboard(files, draw)
    assert files.tensorboard.exists()


def test_a_network_without_finite_outputs_is_told_before_it_is_scored(
    tiny_data: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tiny_data, tmp_path, **{"train.iterations": 4})
    with torch.no_grad():
        trainer.net.network.heads.weight[0] = torch.nan
    with pytest.raises(
        SharedError,
        match=r"weights are not finite after step 0 \(first in heads.weight\).* Lower optim.lr",
    ):
        trainer._evaluate_split("val")
    with torch.no_grad():
        trainer.net.network.heads.weight[0] = 3e38
    with pytest.raises(SharedError, match=r"outputs .* on 'val' are not finite .*'cell-0'"):
        trainer._evaluate_split("val")


def test_only_a_run_that_still_decides_keeps_affinities_in_its_checkpoints(
    tiny_data: Path, tmp_path: Path
) -> None:
    for method, names in (
        ("fixed", set()),
        ("branching", {"rank-0/margins", "rank-0/full", "rank-0/gap"}),
    ):
        changes = {"train.iterations": 6, "method.name": method}
        trainer_of(tiny_data, tmp_path / method, **changes).checkpoints.save()
        found = load_newest(tmp_path / method / "tiny" / "checkpoints")
        assert found is not None
        assert found.tensors["affinity"].keys() == names
        again = trainer_of(tiny_data, tmp_path / method, **changes)
        assert again.state.was_resumed
        assert again.state.stats.num_tasks == len(TASKS)
