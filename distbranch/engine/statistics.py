"""The affinity statistics of the ranks in a checkpoint, and what each rank takes up from them."""

import torch
from torch import Tensor

from distbranch.branching.affinity import AffinityStats
from distbranch.engine.checkpoint import Checkpoint
from distbranch.engine.distributed import Ranks


def tensors_of_ranks(stats: AffinityStats, ranks: Ranks) -> dict[str, Tensor]:
    """The sums of every rank as `rank-0/agree`, ...; every rank must call it. Pair sums differ, margins do not."""
    every = ranks.gather({name: value.cpu() for name, value in stats.state_dict().items()})
    return {f"rank-{rank}/{name}": value for rank, own in enumerate(every) for name, value in own.items()}


def own_statistics(blank: AffinityStats, checkpoint: Checkpoint, ranks: Ranks) -> AffinityStats:
    """This rank's sums: as they were on the same number of ranks; else all pair sums go to rank 0, none to the others.

    `blank` if the checkpoint has none, which is that of a run that takes no further decision.
    """
    saved = checkpoint.tensors["affinity"]
    if not saved:
        return blank
    num_saved = int(checkpoint.state["world_size"])

    def of_rank(rank: int) -> AffinityStats:
        stats = AffinityStats(blank.num_tasks, blank.decay, ranks.device)
        stats.load_state_dict({name: saved[f"rank-{rank}/{name}"] for name in stats.state_dict()})
        return stats

    if num_saved == ranks.world_size:
        return of_rank(ranks.rank)
    first = of_rank(0)
    total = sum((of_rank(rank).pair_sums() for rank in range(1, num_saved)), first.pair_sums())
    return first.with_pair_sums(total if ranks.is_first else torch.zeros_like(total))
