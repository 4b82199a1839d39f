"""What samples weigh where the loss of dense tasks is the mean over all labelled pixels of a batch (`loss.over: pixels`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distbranch.engine.distributed import Ranks
from distbranch.maps import AnyLabels, AnyOutputs
from distbranch.tasks import TaskSet


def share_pixels(
    tasks: TaskSet,
    outputs: AnyOutputs,
    labels: Sequence[AnyLabels],
    ranks: Ranks,
    *,
    batch_size: int,
) -> list[Tensor]:
    """Of every pass what its losses [b, T] are multiplied by before they are added and divided by the size of the batch.

    The loss of sample i, a mean over its n_i pixels, becomes n_i batch_size / n of it, with all n pixels of the batch on all ranks:
    one message. Tasks with one label per image have 1.

    Args:
        tasks: of the network.
        outputs: of any pass, for their size.
        labels: of every pass of this rank.
        ranks: this process among the others, all of which call it.
        batch_size: images over all ranks.
    """
    counts = [tasks.count_loss_pixels(outputs, part) for part in labels]
    totals = ranks.sum(torch.cat(counts).sum(dim=0))
    # Not all that is above 0 is 1 and more: pixels count as much as their class weighs.
    scale = batch_size / torch.where(totals > 0, totals, 1)
    shares = []
    for own in counts:
        share = torch.ones(len(own), tasks.num_tasks, device=own.device)
        # Column by column: a list of them would have to be on the device first.
        for column, of_task in zip(tasks.dense, (own * scale).float().unbind(dim=1), strict=True):
            share[:, column] = of_task
        shares.append(share)
    return shares
