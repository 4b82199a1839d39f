"""Which images of an optimiser step are normalised together: arithmetic on their positions in the global batch.

Groups are stretches of `train.norm_batch` positions. Ranks whose shares end inside a group are a team with their neighbours.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distbranch.config import TrainConfig
from distbranch.engine.distributed import Ranks
from distbranch.models.norm import NormGroups


class NormPlan:
    """The passes of this rank's share of a batch, and the groups of each. All ranks must make it together.

    Args:
        train: says the sizes of batch and groups, and the number of passes.
        ranks: this process among the others.
    """

    def __init__(self, train: TrainConfig, ranks: Ranks) -> None:
        self.batch_size = train.batch_size
        self.num_passes = train.accumulate
        self.group_size = min(train.norm_batch, train.batch_size)
        pass_size = self.batch_size // self.num_passes
        starts = [rank * pass_size // ranks.world_size for rank in range(ranks.world_size + 1)]
        teams = find_teams(starts, self.group_size)
        (own,) = [team for team in teams if ranks.rank in team]
        self._first_group = starts[own.start] // self.group_size  # of the team, in every pass
        self._num_groups = -(-starts[own.stop] // self.group_size) - self._first_group
        self._sum_over_team = ranks.sum_in_team(teams)

    def groups(self, indices: torch.Tensor) -> list[NormGroups]:
        """The groups of every pass, for a batch of these positions in the stream of samples, int64 [b] on the host.

        Samples that were left out are missing in it; they are missing in their group, too.
        """
        pass_size = self.batch_size // self.num_passes
        passes, positions = np.divmod(indices.numpy() % self.batch_size, pass_size)
        own = positions // self.group_size - self._first_group
        counts = np.bincount(passes * self._num_groups + own, minlength=self.num_passes * self._num_groups)
        return [
            NormGroups(tuple(sizes), self._sum_over_team)
            for sizes in counts.reshape(self.num_passes, self._num_groups).tolist()
        ]


def find_teams(starts: Sequence[int], group_size: int) -> list[range]:
    """The ranks that share groups, directly or by way of each other; `starts` [W + 1]: where the share of every rank begins."""
    borders = [rank for rank, start in enumerate(starts[:-1]) if start % group_size == 0]
    return [range(first, last) for first, last in zip(borders, [*borders[1:], len(starts) - 1], strict=True)]
