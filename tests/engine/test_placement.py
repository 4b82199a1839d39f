"""Which rank gets which GPU, how ranks on GPUs talk, and what is told of ranks that were placed wrongly.

There is no GPU here: what torch says about GPUs is faked, and so is NCCL; gloo is real.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rank_server import RankServer, launcher_environment

from distbranch.config import LaunchConfig
from distbranch.engine import process_group
from distbranch.engine.distributed import Ranks
from distbranch.engine.lost_ranks import LostRankError, describe_rank_failure
from distbranch.engine.process_group import join_ranks
from distbranch.errors import UserError

DUPLICATE = """\
NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, invalid usage (run with NCCL_DEBUG=WARN for details)
ncclInvalidUsage: This usually reflects invalid usage of NCCL library.
Last error:
Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000
"""


def fake_gpus(num_gpus: int) -> list[Any]:
    """Let torch find so many GPUs; returns those that are chosen."""
    chosen: list[Any] = []
    torch.cuda.is_available = lambda: num_gpus > 0  # type: ignore[assignment]
    torch.cuda.device_count = lambda: num_gpus  # type: ignore[assignment]
    torch.cuda.set_device = chosen.append  # type: ignore[assignment]
    return chosen


def take_places(
    num_gpus: int, launch: Mapping[str, Any], words_of_nccl: str = ""
) -> dict[str, Any]:
    """A job: the device of this rank, and by what the ranks talk; NCCL refuses with `words_of_nccl`."""
    chosen, made = fake_gpus(num_gpus), []
    real = dist.init_process_group

    def make(backend: str, **options: Any) -> None:
        made.append((backend, str(options.get("device_id")), [str(device) for device in chosen]))
        if words_of_nccl:
            raise dist.DistBackendError(words_of_nccl)
        real("gloo", timeout=options["timeout"])

    dist.init_process_group = make
    try:
        with join_ranks(LaunchConfig(**launch)) as here:
            pass
    except UserError as error:
        return {"message": str(error), "kind": type(error).__name__}
    return {"device": str(here.device), "made": made}


@pytest.mark.parametrize(
    ("world_size", "num_gpus", "part", "devices"),
    [
        (2, 2, 1.0, ["cuda:0", "cuda:1"]),
        (2, 4, 1.0, ["cuda:0", "cuda:1"]),
        (4, 2, 0.5, ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]),
        (3, 2, 0.5, ["cuda:0", "cuda:0", "cuda:1"]),
        (3, 1, 1 / 3, ["cuda:0", "cuda:0", "cuda:0"]),
        (2, 1, 1.0, ["cuda:0", "cuda:0"]),  # every process sees a GPU of its own
    ],
)
def test_ranks_fill_the_gpus_of_a_machine_before_they_talk(
    world_size: int, num_gpus: int, part: float, devices: list[str], ranks: RankServer
) -> None:
    launch = {"gpus_per_worker": part}
    found = ranks.call_all(take_places, world_size, num_gpus=num_gpus, launch=launch)
    assert [one["device"] for one in found] == devices
    for one, device in zip(found, devices, strict=True):
        how = ("nccl", device, [device, device]) if part == 1 else ("gloo", "None", [device])
        assert one["made"] == [
            how
        ]  # the device is chosen in the main thread, and in that which meets the others


@pytest.mark.parametrize(
    ("world_size", "num_gpus", "part", "words"),
    [
        (3, 2, 1.0, ("3 ranks on", "launch.gpus_per_worker=1 need 3 GPU(s), and it has 2")),
        (
            3,
            1,
            0.5,
            (
                "launch.gpus_per_worker=0.5 need 2 GPU(s), and it has 1",
                "a smaller launch.gpus_per_worker",
            ),
        ),
    ],
)
def test_more_ranks_than_gpus_are_refused_on_every_rank(
    world_size: int, num_gpus: int, part: float, words: tuple[str, ...], ranks: RankServer
) -> None:
    for one in ranks.call_all(
        take_places, world_size, num_gpus=num_gpus, launch={"gpus_per_worker": part}
    ):
        assert all(word in one["message"] for word in words), one


def test_two_ranks_on_one_gpu_without_a_word_of_it_are_a_mistake_and_not_a_lost_rank(
    ranks: RankServer,
) -> None:
    for one in ranks.call_all(take_places, 2, num_gpus=1, launch={}, words_of_nccl=DUPLICATE):
        assert one["kind"] == "UserError"
        assert (
            "(Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000)"
            in one["message"]
        )
        assert (
            "Start one rank per GPU, or let ranks share them with launch.gpus_per_worker=0.5"
            in one["message"]
        )


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (dist.DistBackendError(DUPLICATE), UserError),
        (RuntimeError("Distributed package doesn't have NCCL built in"), UserError),
        (
            dist.DistBackendError(
                "NCCL error ... ncclInvalidArgument: Invalid value for an argument."
            ),
            UserError,
        ),
        (torch.AcceleratorError("CUDA error: invalid device ordinal", 101), UserError),
        (
            dist.DistBackendError(
                "NCCL error ... ncclRemoteError: A call failed possibly due to a network error"
            ),
            LostRankError,
        ),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
            LostRankError,
        ),
    ],
)
def test_mistakes_of_placement_are_told_from_lost_ranks(
    error: Exception, kind: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("distbranch.engine.lost_ranks.SECONDS_TO_BE_NAMED", 0)
    monkeypatch.setattr("distbranch.engine.lost_ranks._ask_store", lambda _: "")
    told = describe_rank_failure(
        error, Ranks(1, 2, torch.device("cpu")), timeout_min=1, notes=tmp_path
    )
    assert type(told) is kind
    assert str(told).count(". ") <= 2


def test_a_gpu_that_the_launcher_chose_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert process_group._choose_device(LaunchConfig()) == torch.device("cuda", 5)


def settings_of_kernels(num_gpus: int) -> dict[str, Any]:
    """A job: how products are made before, in and after a run."""
    fake_gpus(num_gpus)

    def settings() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    before = settings()
    with join_ranks(LaunchConfig()):
        inside = settings()
    return {"before": before, "inside": inside, "after": settings()}


@pytest.mark.parametrize(("num_gpus", "inside"), [(0, ("highest", False)), (1, ("high", True))])
def test_fast_kernels_are_for_gpus_and_for_the_run_alone(
    num_gpus: int, inside: tuple[str, bool], ranks: RankServer
) -> None:
    plain = ("highest", False)
    assert ranks.call(settings_of_kernels, num_gpus=num_gpus) == {
        "before": plain,
        "inside": inside,
        "after": plain,
    }


def test_a_rank_on_a_gpu_gets_the_cores_of_its_share_for_decoding_and_one_on_a_cpu_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distbranch.engine import loaders

    monkeypatch.setattr(loaders, "num_cores", lambda: 32)
    found = {}
    for num_local in (1, 4, 32):
        for name, value in launcher_environment(0, num_local).items():
            monkeypatch.setenv(name, value)
        found[num_local] = [
            loaders.choose_num_processes(Ranks(0, 1, torch.device(kind)))
            for kind in ("cpu", "cuda")
        ]
    assert found == {1: [0, 8], 4: [0, 7], 32: [0, 1]}
