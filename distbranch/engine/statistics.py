"""The affinity statistics of the ranks in a checkpoint, and what each rank takes up from them.

Between ranks they are one row of numbers each, which rank 0 alone receives and hands out.
"""

import torch
from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.engine.checkpoint import Checkpoint
from distbranch.engine.distributed import Ranks

AFFINITY = "affinity"  # the file of a checkpoint


def tensors_of_ranks(stats: AffinityStats, ranks: Ranks) -> dict[str, Tensor]:
    """On rank 0 the sums of every rank as `rank-0/agree`, ...; all must call it. Pair sums differ, margins do not."""
    every = ranks.gather_rows(_as_row(stats).unsqueeze(0))
    tensors: dict[str, Tensor] = {}
    for rank, row in enumerate(every):
        tensors |= {f"rank-{rank}/{name}": value for name, value in _by_name(row[0], stats).items()}
    return tensors


def own_statistics(blank: AffinityStats, checkpoint: Checkpoint, ranks: Ranks) -> AffinityStats:
    """This rank's sums: as they were on the same number of ranks; else all pair sums go to rank 0, none to the others.

    `blank` if the checkpoint has none, which is that of a run that takes no further decision.

    Args:
        blank: of the run's tasks.
        checkpoint: on rank 0 with the sums of all ranks; what the others have of them is not looked at.
        ranks: this process among the others; all must call it.
    """
    saved = checkpoint.tensors.get(AFFINITY, {})
    if not ranks.broadcast(bool(saved)):
        return blank
    parts = _rows_for_ranks(blank, checkpoint, ranks) if ranks.is_first else []
    own = ranks.scatter(parts, torch.empty_like(_as_row(blank)))
    blank.load_state_dict(_by_name(own, blank))
    return blank


def _rows_for_ranks(blank: AffinityStats, checkpoint: Checkpoint, ranks: Ranks) -> list[Tensor]:
    saved = checkpoint.tensors[AFFINITY]
    num_saved = int(checkpoint.state["world_size"])

    def of_rank(rank: int) -> AffinityStats:
        stats = AffinityStats(blank.num_tasks, blank.decay)
        stats.load_state_dict({name: saved[f"rank-{rank}/{name}"] for name in stats.state_dict()})
        return stats

    if num_saved == ranks.world_size:
        return [_as_row(of_rank(rank)) for rank in range(num_saved)]
    first = of_rank(0)
    total = sum((of_rank(rank).pair_sums() for rank in range(1, num_saved)), first.pair_sums())
    nothing = _as_row(first.with_pair_sums(torch.zeros_like(total)))
    return [_as_row(first.with_pair_sums(total)), *[nothing] * (ranks.world_size - 1)]


def _as_row(stats: AffinityStats) -> Tensor:
    return torch.cat([value.reshape(-1).cpu() for value in stats.state_dict().values()])


def _by_name(row: Tensor, stats: AffinityStats) -> dict[str, Tensor]:
    """The inverse of `_as_row`, without a copy."""
    like = stats.state_dict()
    parts = torch.split(row, [value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}
