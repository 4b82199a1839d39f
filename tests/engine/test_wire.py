"""What travels between ranks: tensors as they lie in memory and to those who need them, and nothing large as a pickle."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, train_tiny

from distbranch.config import load_config
from distbranch.engine import distributed
from distbranch.engine.process_group import join_ranks

LARGEST_PICKLE = 20_000  # bytes: plain values, however large the network
WIDE = {
    "model.width": 32,
    "train.iterations": 10,
    "train.keep_checkpoints": 99,
    "launch.workers": 2,
}


def train_and_weigh_pickles(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: train, and count the bytes of every object that was pickled for other ranks."""
    from torch.distributed import distributed_c10d

    real, sizes = distributed_c10d._object_to_tensor, []

    def weigh(*arguments: Any) -> Any:
        found = real(*arguments)
        sizes.append(found[0].numel())
        return found

    distributed_c10d._object_to_tensor = weigh
    return {**train_tiny(config), "sizes": sizes}


def test_no_pickle_of_a_run_or_its_restart_grows_with_the_network_and_the_bits_are_the_same(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    whole = ranks.call_all(
        train_and_weigh_pickles, 2, config=config_of(tiny_data, tmp_path / "whole", **WIDE)
    )
    run = tmp_path / "again" / "tiny"
    shutil.copytree(tmp_path / "whole" / "tiny", run)
    (run / "result.json").unlink()
    shutil.rmtree(
        run / "checkpoints" / "step-00000010"
    )  # as if it had been killed after the first decision
    again = ranks.call_all(
        train_and_weigh_pickles, 2, config=config_of(tiny_data, tmp_path / "again", **WIDE)
    )
    assert "resumed" in {event["kind"] for event in again[0]["events"]}
    newest = run / "checkpoints" / "step-00000007"
    assert sum(file.stat().st_size for file in newest.glob("*.safetensors")) > 20 * LARGEST_PICKLE
    for ended in (*whole, *again):
        assert ended["end"] == "done", ended["message"]
        assert 0 < max(ended["sizes"]) < LARGEST_PICKLE
    assert_same_content(run, tmp_path / "whole" / "tiny")


def many_tensors(config: Mapping[str, Any], message_bytes: int) -> dict[str, Any]:
    """A job: tensors of several kinds, sizes and layouts after a broadcast, and the numbers of values in its messages."""
    import torch.distributed as dist

    distributed.MESSAGE_BYTES = message_bytes
    real, sent = dist.broadcast, []

    def broadcast(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        sent.append((str(tensor.dtype), tensor.numel()))
        return real(tensor, *arguments, **more)

    with join_ranks(load_config(config).launch) as here:
        dist.broadcast = broadcast
        seed = here.rank
        draw = torch.Generator().manual_seed(seed)
        tensors = [
            *(torch.rand(size, generator=draw) for size in (3, 40, 5, 0)),
            torch.rand(4, 3, 5, 5, generator=draw).to(memory_format=torch.channels_last),
            torch.rand(6, 4, generator=draw).T,
            torch.rand(2, generator=draw, dtype=torch.float64),
            torch.tensor(seed),
            torch.nn.Parameter(torch.rand(30, generator=draw)),
            torch.tensor([bool(seed), not seed]),
        ]
        addresses = [tensor.data_ptr() for tensor in tensors]
        here.broadcast_tensors(tensors)
        assert [tensor.data_ptr() for tensor in tensors] == addresses
        return {"values": [tensor.tolist() for tensor in tensors], "sent": sent}


@pytest.mark.parametrize(("message_bytes", "num_messages"), [(1, 10), (200, 7), (1_000_000, 4)])
def test_tensors_of_any_kind_are_those_of_rank_zero_after_a_broadcast_in_few_messages(
    message_bytes: int, num_messages: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = {"config": config_of(tiny_data, tmp_path), "message_bytes": message_bytes}
    first, *others = ranks.call_all(many_tensors, 3, **arguments)
    assert first["values"][7] == 0
    for other in others:
        assert other == first
    assert len(first["sent"]) == num_messages
    widths = {"torch.float32": 4, "torch.float64": 8, "torch.int64": 8, "torch.bool": 1}
    largest = max(count * widths[dtype] for dtype, count in first["sent"])
    assert largest <= max(message_bytes, 1200)  # the largest tensor, which is a message of its own


def rows_of_ranks(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job: rows gathered on rank 0, a sum there, and parts handed out by it."""
    with join_ranks(load_config(config).launch) as here:
        own = torch.full((here.rank, 2), float(here.rank))  # rank 0 has no row
        parts = (
            [torch.tensor([10 * rank]) for rank in range(here.world_size)] if here.is_first else []
        )
        return {
            "rows": [rows.tolist() for rows in here.gather_rows(own)],
            "sum": here.sum_on_rank_zero(torch.tensor([10.0**here.rank])).tolist(),
            "part": here.scatter(parts, torch.empty(1, dtype=torch.int64)).item(),
        }


def test_rows_go_to_rank_zero_alone_and_parts_to_their_ranks(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call_all(rows_of_ranks, 3, config=config_of(tiny_data, tmp_path))
    assert found[0]["rows"] == [[], [[1, 1]], [[2, 2], [2, 2]]]
    assert found[0]["sum"] == [111]
    assert [one["rows"] for one in found[1:]] == [[], []]
    assert [one["part"] for one in found] == [0, 10, 20]
    assert ranks.call(rows_of_ranks, config=config_of(tiny_data, tmp_path)) == {
        "rows": [[]],
        "sum": [1],
        "part": 0,
    }
