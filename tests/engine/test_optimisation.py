"""The learning rate as a function of the step, and steps that are divided."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TASKS, config_of

from distbranch.config import OptimConfig, load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.cores import num_cores
from distbranch.engine.distributed import Ranks
from distbranch.engine.optimizer_and_schedule import (
    SECOND_BETA,
    build_optimizer,
    compute_learning_rate,
    list_slots,
    load_slots,
    shorten_memory,
)
from distbranch.engine.run_start import begin_run
from distbranch.engine.session import build_trainer
from distbranch.engine.trainer import Trainer


def _course(iterations: int, *, start: int = 0, first: int = 0, **settings: Any) -> list[float]:
    config = OptimConfig(lr=1.0, **settings)
    return [
        compute_learning_rate(
            config, iteration=iteration, schedule_start=start, iterations=iterations
        )
        for iteration in range(first, iterations)
    ]


def test_a_constant_rate_stays() -> None:
    assert _course(50, schedule="constant") == [1.0] * 50


def test_a_step_schedule_falls_by_the_factor_every_so_many_steps() -> None:
    assert _course(7, schedule="step", decay_every=3, decay_factor=0.5) == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.25,
    ]


def test_a_cosine_falls_from_the_rate_to_nearly_zero_and_is_half_in_the_middle() -> None:
    course = _course(101, schedule="cosine")
    assert course == sorted(course, reverse=True)
    assert course[0] == 1.0
    assert course[-1] == pytest.approx(0, abs=1e-3)
    assert _course(100, schedule="cosine")[50] == pytest.approx(0.5)


def test_a_warm_up_rises_in_equal_steps_and_only_at_the_beginning_of_the_run() -> None:
    assert _course(6, schedule="constant", warmup=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert _course(20, schedule="constant", warmup=4, start=10, first=10) == [1.0] * 10


def _size_of_steps(inherited: int | None) -> list[float]:
    """Of AdamW, in learning rates, where after 300 steps the gradient becomes five times smaller."""
    config = OptimConfig(name="adamw", lr=0.01, weight_decay=0)
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(50, 50, bias=False)
    optimizer = build_optimizer(layer, config)
    sizes = []
    for step in range(340):
        if step == 300 and inherited is not None:
            slots = list_slots(optimizer, layer)
            short = shorten_memory(slots, ["weight"], inherited, config)
            _assert_corrected_averages_are_equal(slots, short, config)
            load_slots(optimizer, layer, short)
        before = layer.weight.detach().clone()
        gradient = torch.randn(50, 50, generator=draw)
        layer.weight.grad = gradient * (0.2 if step >= 300 else 1.0)
        optimizer.step()
        sizes.append((layer.weight.detach() - before).norm().item() / (50 * config.lr))
    return sizes


def _assert_corrected_averages_are_equal(
    slots: dict[str, torch.Tensor], short: dict[str, torch.Tensor], config: OptimConfig
) -> None:
    for slot, beta in (("exp_avg", config.momentum), ("exp_avg_sq", SECOND_BETA)):
        corrected = [
            one[f"weight:{slot}"] / (1 - beta ** one["weight:step"]) for one in (slots, short)
        ]
        torch.testing.assert_close(corrected[0], corrected[1])


def test_a_branch_of_few_tasks_takes_steps_of_full_size_again_if_it_inherits_few_steps() -> None:
    usual = np.mean(_size_of_steps(None)[250:300])
    after = {inherited: np.mean(_size_of_steps(inherited)[320:]) for inherited in (None, 10, 1)}
    assert after[None] < 0.25 * usual
    assert after[1] > 0.6 * usual
    assert after[None] < after[10] < after[1]


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
def test_a_schedule_that_restarts_is_that_of_a_run_which_begins_there(schedule: str) -> None:
    settings = {"schedule": schedule, "decay_every": 4}
    assert _course(30, start=12, first=12, **settings) == _course(18, **settings)


@pytest.mark.parametrize("when", ["restart", "continue"])
def test_the_schedule_of_a_trainer_begins_anew_at_a_widening_only_if_told_so(
    when: str, tiny_data: Path, tmp_path: Path
) -> None:
    trainer = _trainer(tiny_data, tmp_path, **{"optim.when_widened": when, "train.iterations": 8})
    trainer.run()
    assert trainer.net.network.architecture.tree.splits
    assert trainer.progress.schedule_start == (7 if when == "restart" else 0)


def _trainer(data: Path, folder: Path, **changes: Any) -> Trainer:
    config = load_config(config_of(data, folder, **changes))
    begin_run(config)
    return build_trainer(
        config, Ranks(0, 1, torch.device("cpu")), read_dataset(data), report=lambda _: None
    )


def _gradients(
    trainer: Trainer, images: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    parts = trainer.step._divide_batch(images, labels, torch.arange(len(images)))
    trainer.step._forward_and_backward(parts, labels)
    return {
        name: parameter.grad.clone() for name, parameter in trainer.net.network.named_parameters()
    }  # type: ignore[union-attr]


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_the_gradient_of_accumulated_passes_is_that_of_one(
    accumulate: int, tiny_data: Path, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 2, (12, len(TASKS)), generator=generator).float()
    labels[:3, 2] = torch.nan
    pairs = {"train.norm_batch": 2}
    whole = _trainer(tiny_data, tmp_path / "whole", **pairs)
    divided = _trainer(tiny_data, tmp_path / "divided", **pairs, **{"train.accumulate": accumulate})
    expected, found = _gradients(whole, images, labels), _gradients(divided, images, labels)
    assert sum(float(value.abs().sum()) for value in expected.values()) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    for trainer in (whole, divided):
        trainer.step.wait_for_step_sums()
    torch.testing.assert_close(
        divided.state.stats.margins, whole.state.stats.margins, rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(divided._window.losses, whole._window.losses, rtol=1e-6, atol=1e-6)


def test_bf16_trains_on_this_processor_with_a_finite_loss_and_fp32_weights(
    tiny_data: Path, tmp_path: Path
) -> None:
    trainer = _trainer(tiny_data, tmp_path, **{"train.precision": "bf16", "train.iterations": 9})
    first = trainer.net.network.state_dict()["heads.weight"].clone()
    result = trainer.run()
    weights = trainer.net.network.state_dict()["heads.weight"]
    assert result["metrics"]["val"]["loss"] > 0
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert not torch.equal(first, weights)


@pytest.mark.parametrize("kept", [[0], [0, 1], [4, 5, 6, 7], [0, 11]])
def test_a_step_is_made_of_whatever_samples_are_left(
    kept: list[int], tiny_data: Path, tmp_path: Path
) -> None:
    trainer = _trainer(tiny_data, tmp_path, **{"train.norm_batch": 4, "train.accumulate": 3})
    images = torch.randint(0, 256, (len(kept), 3, 32, 32), dtype=torch.uint8)
    trainer.step.train(images, torch.ones(len(kept), len(TASKS)), torch.tensor(kept))
    trainer.step.wait_for_step_sums()
    state = trainer.net.network.state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert state["units.conv1.0.norm.num_batches_tracked"] == 1


def test_a_process_gets_no_more_threads_than_its_container_has_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert num_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert num_cores() == 1
