"""One optimiser step of the weights, or of AdaShare's policy, and the sums over all ranks that go with it.

Margins, counts and losses are summed behind the backward pass and settled at the next step, or when somebody asks for them.
"""

import math
import socket
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from distbranch.config import TrainConfig
from distbranch.engine.distributed import Pending, Ranks
from distbranch.engine.gauges import describe_slowest
from distbranch.engine.gradient_aggregation import TaskGradients
from distbranch.engine.optimizer_and_schedule import compute_learning_rate, set_learning_rate
from distbranch.engine.pixel_shares import share_pixels
from distbranch.engine.training_state import TrainingState
from distbranch.errors import SharedError
from distbranch.maps import AnyLabels, split_labels
from distbranch.models.norm import NormGroups, take_step_sums, update_running_statistics

Part = tuple[
    Tensor, AnyLabels, NormGroups
]  # images, labels, and which of the images are normalised together


class TrainingStep:
    """Trains the network of a state with this rank's share of one batch at a time."""

    def __init__(self, state: TrainingState) -> None:
        self.state = state
        self.config = state.config
        self.ranks = state.ranks
        self.progress = state.progress
        self.net = state.net
        self.stats = state.stats
        self.window = state.window
        labels = state.info.splits["train"].labels
        # Counts are of whole images, of which a part may be without a label (data.crop, data.scale, data.shift).
        has_dense = bool(self.net.network.tasks.dense)
        self.has_gaps = has_dense or any(counts.get("unlabelled", 0) for counts in labels.values())
        self._norm_plan = NormPlan(self.config.train, self.ranks)
        self._hosts = self.ranks.gather(socket.gethostname())
        self._began_at: float | None = None
        # Of every rank, and of how many steps.
        self._rank_seconds = torch.zeros(
            self.ranks.world_size, dtype=torch.float64, device=self.ranks.device
        )
        self._num_timed = 0
        self._sums: Pending | None = None
        self._losses_after: Pending | None = (
            None  # of the step's images, for a weighting that compares
        )

    def start_clock(self) -> None:
        """Call before the batch is asked for: from here on a rank is alone until the sums over all ranks begin."""
        self._began_at = time.perf_counter()

    def measure_ranks(self) -> dict[str, Any]:
        """Seconds of a step that a rank spends alone, in the mean over the steps since the last call: the median, and the slowest rank.

        What follows the beginning of the sums takes all ranks equally long, for they wait for each other. On GPUs it is the time until
        the step is launched: waiting for data, and a host that is slow.
        """
        seconds = (self._rank_seconds / max(1, self._num_timed)).tolist()
        self._rank_seconds.zero_()
        self._num_timed = 0
        return describe_slowest(seconds, self._hosts)

    def train(self, images: Tensor, labels: AnyLabels, indices: Tensor) -> tuple[float, Tensor]:
        """One step; the learning rate and the norm of the gradient.

        images: uint8 [b, 3, H, W]; labels: [b, T]; indices: int64 [b] on the host, positions in the stream of samples.
        """
        parts = self._divide_batch(images, labels, indices)
        search, iteration = self.state.search, self.progress.iteration
        if search is not None and search.curriculum.phase(iteration) == "policy":
            return self._train_policy(parts, labels)

        # 1. The learning rate. After the warm-up of a search the weights have a constant one.
        if search is not None and search.curriculum.phase(iteration) == "weights":
            if not self.net.alternates:
                self.net.alternate()
            rate = self.config.adashare.weights_lr
        else:
            start = self.progress.schedule_start
            end = search.curriculum.warmup if search else self.config.train.iterations
            rate = compute_learning_rate(
                self.config.optim, iteration=iteration, schedule_start=start, iterations=end
            )
        set_learning_rate(self.net.optimizer, rate)

        # 2. The gradient, averaged over all ranks, and that of a weighting that is learned.
        self._forward_and_backward(parts, labels)
        weighting = self.net.weighting
        if not weighting.is_fixed:
            weighting.learn(*self._receive_losses(), iteration + 1)

        # 3. The step.
        norm = clip_grad_norm_(
            self.net.network.parameters(), self.config.train.clip_norm, foreach=True
        )
        self.net.step()
        if weighting.compares_losses:
            self._losses_after = self.ranks.start_sum(self._sum_losses(parts))
        return rate, norm

    def _train_policy(self, parts: list[Part], labels: AnyLabels) -> tuple[float, Tensor]:
        """One step of AdaShare's policy; its learning rate and the norm of its gradient."""
        search, tasks = self.state.search, self.net.network.tasks
        assert search is not None
        autocast = torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.state.bf16)
        outputs, norm = search.train_policy(
            self.net, self.ranks, parts, self.progress.iteration, autocast
        )
        losses = tasks.compute_losses(outputs, labels)
        margins = tasks.compute_margins(outputs, labels, losses)
        self._start_step_sums(margins, labels, losses.sum(dim=0, dtype=torch.float64))
        return self.config.adashare.policy_lr, norm

    def _divide_batch(self, images: Tensor, labels: AnyLabels, indices: Tensor) -> list[Part]:
        """The passes of a step; one may be empty where samples were left out, for the other ranks make it all the same."""
        # Passes are slices of the share: of a batch in order, samples of a pass follow each other.
        groups = self._norm_plan.group_images(indices)
        sizes = [sum(one.sizes) for one in groups]
        return list(
            zip(torch.split(images, sizes), split_labels(labels, sizes), groups, strict=True)
        )

    def _forward_and_backward(self, parts: list[Part], labels: AnyLabels) -> None:
        """The gradient of the global batch in every parameter; the last backward pass hides all sums over ranks."""
        search, tasks = self.state.search, self.net.network.tasks
        # DDP averages over the ranks: this makes the step that of the mean over the global batch, also of uneven shares.
        scale = self.ranks.world_size / self.config.train.batch_size
        aggregation, weighting = self.net.aggregation, self.net.weighting
        by_task = TaskGradients(self.net.groups)
        margins: list[Tensor] = []
        loss_sums = torch.zeros(tasks.num_tasks, dtype=torch.float64, device=self.ranks.device)
        options: dict[str, Tensor] = {}
        if search is not None:
            options["decisions"] = search.sample_decisions(
                self.net.network, self.progress.iteration
            )
        self.net.optimizer.zero_grad(set_to_none=True)
        over_pixels = self.config.loss.over == "pixels"
        shares: list[Tensor] | None = None
        weights = self._weigh_before(parts, labels)

        for number, (images, part_labels, groups) in enumerate(parts):
            is_last = number == len(parts) - 1
            with nullcontext() if is_last else self.net.no_sync():
                # Forward.
                with torch.autocast(
                    self.ranks.device.type, torch.bfloat16, enabled=self.state.bf16
                ):
                    outputs = self.net.wrapped(images, flat=True, groups=groups, **options)

                # Losses, and the margins that the affinities are made of.
                losses = tasks.compute_losses(outputs, part_labels)
                margins.append(
                    tasks.compute_margins(outputs.detach(), part_labels, losses.detach())
                )
                loss_sums += losses.detach().sum(dim=0, dtype=torch.float64)

                # The sums begin before the last backward pass, which is long enough for them.
                if is_last:
                    self._start_step_sums(torch.cat(margins), labels, loss_sums)
                if over_pixels and shares is None:
                    every = [one for _, one, _ in parts]
                    shares = share_pixels(
                        tasks, outputs, every, self.ranks, batch_size=self.config.train.batch_size
                    )
                if shares is not None:
                    losses = losses * shares[number]
                if weighting.needs_losses and weights is None:
                    weights = weighting.weigh(*self._receive_losses())
                if weights is not None:
                    losses = losses * weights
                if aggregation is None:
                    loss = losses.sum() * scale
                    if is_last and (penalty := self.net.network.compute_penalty()) is not None:
                        loss = loss + penalty  # of the step, and on every rank the same
                    torch.autograd.backward(loss)
                else:
                    by_task.add_pass(losses.sum(dim=0) / self.config.train.batch_size)

        if aggregation is not None:
            by_task.sum_over_ranks(self.ranks)
            by_task.set_gradients(aggregation.weigh(by_task, self.ranks, self.progress.iteration))

    def _weigh_before(self, parts: list[Part], labels: AnyLabels) -> Tensor | None:
        """The weights [T] of the losses of a step before its first pass; None if all are 1, or if the losses of its only pass tell."""
        weighting = self.net.weighting
        if weighting.is_plain:
            return None
        if not weighting.needs_losses:
            return weighting.weigh()
        if len(parts) == 1:
            return None
        # Each pass goes back before the next one begins, so losses of the whole batch cost a forward pass beforehand.
        losses = self._sum_losses(parts)
        counts = (~labels.isnan()).sum(dim=0)
        losses, counts = self.ranks.sum(torch.cat([losses, counts.to(losses)])).chunk(2)
        return weighting.weigh(self._normalise_losses(losses), counts)

    @torch.no_grad()
    def _sum_losses(self, parts: list[Part]) -> Tensor:
        """The sums of the losses [T] over this rank's images, as the network answers now in training."""
        tasks = self.net.network.tasks
        sums = torch.zeros(tasks.num_tasks, dtype=torch.float64, device=self.ranks.device)
        for images, labels, groups in parts:
            with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.state.bf16):
                outputs = self.net.network(images, flat=True, groups=groups)
            sums += tasks.compute_losses(outputs, labels).sum(dim=0, dtype=torch.float64)
        if self.net.norms:
            take_step_sums(self.net.norms)  # which are no part of a step
        return sums

    def _receive_losses(self) -> tuple[Tensor, Tensor]:
        """The losses [T] of the batch as a weighting sees them, and the numbers of labels, from the message that is under way."""
        assert self._sums is not None
        num_tasks = self.net.network.tasks.num_tasks
        _, counts, losses = self._sums.wait()[: 3 * num_tasks].chunk(3)
        return self._normalise_losses(losses), counts

    def _normalise_losses(self, sums: Tensor) -> Tensor:
        return (sums * self.net.weighting.given / self.config.train.batch_size).float()

    def _start_step_sums(self, margins: Tensor, labels: AnyLabels, losses: Tensor) -> None:
        """Add this rank's pairs, and begin the sums over all ranks.

        Margins, counts and losses [3T], images [1], seconds of every rank alone [W], norm statistics.
        """
        observed = ~labels.isnan() if self.has_gaps else None
        if self.progress.growing:
            self.stats.add_pairs(margins, observed)
        margin_sums = self.stats.margin_sums(margins, observed)
        self.window.add_own_losses(losses)
        num_images = margin_sums.new_full((1,), len(labels))
        # One message for all of them: its price is the number of messages, not of bytes.
        parts = [margin_sums, losses, num_images, self._stop_clock(margin_sums)]
        if self.net.norms:  # else there is nothing to sum, as in a network of layer norms
            parts.append(take_step_sums(self.net.norms))
        message = torch.cat(parts)
        self._sums = self.ranks.start_sum(message)

    def _stop_clock(self, like: Tensor) -> Tensor:
        """The seconds that this rank was alone in this step, at its place among those of all ranks [W], which are 0."""
        seconds = like.new_zeros(self.ranks.world_size)
        if self._began_at is not None:
            seconds[self.ranks.rank] = time.perf_counter() - self._began_at
            self._began_at = None
        return seconds

    def wait_for_step_sums(self) -> None:
        """Take in the sums of the step before: margins, losses, and the running statistics, then the same on all ranks."""
        if self._sums is None:
            return
        sums = self._sums.wait()
        self._sums = None
        num_tasks, iteration = self.net.network.tasks.num_tasks, self.progress.iteration

        # The message as `_start_step_sums` laid it out.
        sizes = [2 * num_tasks, num_tasks, 1, self.ranks.world_size]
        rest = len(sums) - sum(sizes)
        margin_sums, losses, num_images, seconds, norm_sums = torch.split(sums, [*sizes, rest])
        self._rank_seconds += seconds
        self._num_timed += 1

        if self.net.norms:
            update_running_statistics(self.net.norms, norm_sums, num_images.squeeze())
        self.net.update_average(iteration)
        if self.progress.growing:
            self.stats.add_margins(margin_sums)
        if self._losses_after is not None:
            after = self._normalise_losses(self._losses_after.wait())
            self.net.weighting.compare(after)
            self._losses_after = None
        counts = margin_sums[num_tasks:]
        self.window.add_losses(losses, counts, iteration, num_samples=self.config.train.batch_size)
        # A GPU would have to be awaited for this look, so there it comes with the logged steps, which wait anyway.
        if self.ranks.device.type == "cpu" or iteration % self.config.train.log_every == 0:
            self.check_losses()

    def check_losses(self) -> None:
        """Refuse a loss that was not finite, on all ranks.

        Raises:
            SharedError: with its task, its step and the ranks where it was met.
        """
        found = self.window.find_first_not_finite()
        if found is None:
            return
        step, task = found
        met = self.ranks.gather((bool(self.window.own_not_finite), self.ranks.place))
        where = ""
        if self.ranks.world_size > 1:
            places = [place for is_bad, place in met if is_bad]
            where = f" ({', '.join(places[:3])})"  # enough to find the machine
        name = self.net.network.tasks.names[task]
        remedy = self.ranks.run_on_rank_zero(self.state.describe_remedy)
        raise SharedError(
            f"The loss of task '{name}' is not finite at step {step}{where}. {remedy}"
        )


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
        own = next(team for team in teams if ranks.rank in team)
        self._first_group = starts[own.start] // self.group_size  # of the team, in every pass
        last_group = math.ceil(starts[own.stop] / self.group_size)
        self._num_groups = last_group - self._first_group
        self._sum_over_team = ranks.sum_in_team(teams)

    def group_images(self, indices: torch.Tensor) -> list[NormGroups]:
        """The groups of every pass, for a batch of these positions in the stream of samples, int64 [b] on the host.

        Samples that were left out are missing in it; they are missing in their group, too.
        """
        pass_size = self.batch_size // self.num_passes
        passes, positions = np.divmod(indices.numpy() % self.batch_size, pass_size)
        own = positions // self.group_size - self._first_group
        cells = passes * self._num_groups + own
        counts = np.bincount(cells, minlength=self.num_passes * self._num_groups)
        by_pass = counts.reshape(self.num_passes, self._num_groups).tolist()
        return [NormGroups(tuple(sizes), self._sum_over_team) for sizes in by_pass]


def find_teams(starts: Sequence[int], group_size: int) -> list[range]:
    """The ranks that share groups, directly or by way of each other; `starts` [W + 1]: where the share of every rank begins."""
    borders = [rank for rank, start in enumerate(starts) if start % group_size == 0]
    last = len(starts) - 1
    if last not in borders:
        borders.append(last)
    return [range(first, after) for first, after in pairwise(borders)]
