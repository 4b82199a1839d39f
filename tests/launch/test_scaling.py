"""The predicted scaling follows from the ring all-reduce and a measured step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import config_of

from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.initialisation import first_architecture
from distbranch.launch.dry_run import describe_duration, estimate_seconds
from distbranch.launch.scaling import (
    BUCKET_BYTES,
    Link,
    NormMessages,
    StepTime,
    measure_step,
    pair_bytes,
    predict,
)

STEP = StepTime(forward_s=0.050, whole_s=0.100)
WHOLE = NormMessages(num_layers=15, num_bytes=15_000, group_size=32)  # of 32 images a rank


def test_a_ring_sends_every_byte_almost_twice() -> None:
    link = Link(gbit_s=8, latency_us=0)
    assert link.all_reduce_s(10**9, 1) == 0
    assert link.all_reduce_s(10**9, 2) == pytest.approx(1.0)
    assert link.all_reduce_s(10**9, 1024) == pytest.approx(2.0, rel=1e-2)
    assert Link(gbit_s=8, latency_us=10).all_reduce_s(0, 11) == pytest.approx(20 * 10e-6)


def test_a_small_gradient_costs_its_last_bucket_and_a_large_one_what_exceeds_the_backward_pass() -> (
    None
):
    link = Link(gbit_s=8, latency_us=0)
    small = predict(
        STEP, link, num_parameters=1_000_000, num_tasks=40, images_per_rank=32, norm=WHOLE
    )
    assert small[1].step_s == pytest.approx(0.100 + 0.004)
    large = predict(
        STEP, link, num_parameters=100_000_000, num_tasks=40, images_per_rank=32, norm=WHOLE
    )
    assert large[1].step_s == pytest.approx(0.100 + 0.400 - 0.050)
    assert large[1].step_s - 0.100 > link.all_reduce_s(BUCKET_BYTES, 2)


def test_efficiency_is_one_alone_and_never_rises_with_the_ranks() -> None:
    scales = predict(
        STEP, Link(), num_parameters=200_000, num_tasks=40, images_per_rank=32, norm=WHOLE
    )
    assert [scale.num_ranks for scale in scales][-1] == 1024
    assert scales[0].efficiency == 1
    assert scales[0].images_per_s == pytest.approx(320)
    assert scales[0].decision_s == 0
    efficiencies = [scale.efficiency for scale in scales]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert all(
        scale.images_per_s == pytest.approx(320 * scale.num_ranks * scale.efficiency)
        for scale in scales
    )
    assert scales[-1].decision_s == pytest.approx(Link().all_reduce_s(pair_bytes(40), 1024))


def test_ranks_with_a_part_of_a_group_wait_twice_at_every_layer_for_those_of_their_group_alone() -> (
    None
):
    link = Link(gbit_s=8, latency_us=10)
    assert WHOLE.wait_s(link, 1024, images_per_rank=32) == 0
    assert WHOLE.wait_s(link, 1, images_per_rank=4) == 0
    eight = 2 * 15 * link.all_reduce_s(1000, 8)
    assert WHOLE.wait_s(link, 8, images_per_rank=4) == pytest.approx(eight)
    assert WHOLE.wait_s(link, 1024, images_per_rank=4) == pytest.approx(eight)


def test_the_time_of_a_run_is_that_of_its_steps_and_evaluations(tiny_data: Path) -> None:
    dotted = {"train.iterations": 6000, "train.evaluate_every": 2000}
    config = load_config(config_of(tiny_data, "runs"), dotted)
    info = read_dataset(tiny_data)
    seconds = estimate_seconds(config, info, STEP)
    images = 3 * info.splits["val"].num_samples + info.splits["test"].num_samples
    assert seconds == pytest.approx(6000 * 0.100 + images * 0.050 / config.train.batch_size)
    assert describe_duration(seconds) == "about 10 minute(s)"
    assert describe_duration(29) == "less than a minute"
    assert describe_duration(12_180) == "about 3 h 23 min"


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_is_measured_in_the_precision_of_the_run(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool
) -> None:
    config = load_config(config_of(tiny_data, "runs"), {})
    architecture = first_architecture(config, read_dataset(tiny_data))
    seen = set()
    compute: Callable[..., torch.Tensor] = torch.nn.functional.conv2d

    def conv2d(*args: Any, **options: Any) -> torch.Tensor:
        outputs = compute(*args, **options)
        seen.add(outputs.dtype)
        return outputs

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    measure_step(config, architecture, device=torch.device("cpu"), bf16=bf16)
    assert seen == {torch.bfloat16 if bf16 else torch.float32}
