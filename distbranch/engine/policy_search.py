"""AdaShare's search as training sees it: what a step trains, what it draws, and the step of the policy itself.

Everything that is drawn belongs to the seed and the step, so a run that is resumed draws what it would have drawn.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from distbranch.adashare.policy import (
    Curriculum,
    compute_execute_probabilities,
    compute_sharing_loss,
    compute_sparsity_loss,
    get_default_loss_weights,
    sample_gumbel_noise,
    sample_soft_decisions,
)
from distbranch.config import Config
from distbranch.data.plan import Turns
from distbranch.data.shards import DatasetInfo
from distbranch.engine.distributed import Ranks, send_to
from distbranch.engine.pixel_shares import share_pixels
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.errors import UserError
from distbranch.maps import AnyLabels, AnyOutputs, concatenate_outputs
from distbranch.models.network import Network
from distbranch.models.norm import NormGroups


class PolicySearch:
    """The course of one search.

    Args:
        config: of the run.
        info: its data; the training samples are divided between weights and policy.
        num_blocks: of the backbone, which are released one by one.

    Raises:
        UserError: one of the two would get no sample.
    """

    def __init__(self, config: Config, info: DatasetInfo, num_blocks: int) -> None:
        self.config = config
        adashare, batch_size = config.adashare, config.train.batch_size
        first, second = _divide_cycle(config, info)
        # Block by block the policy is released, from the heads downwards.
        self.curriculum = Curriculum(
            adashare.warmup_iterations,
            first,
            second,
            num_blocks,
            speed=adashare.cycles_per_block,
            cooling=adashare.cooling,
        )
        before = adashare.warmup_iterations * batch_size
        self.turns = Turns(adashare.weights_part, before, first * batch_size, second * batch_size)
        sparsity, sharing = get_default_loss_weights(len(info.tasks))
        self.sparsity = sparsity if adashare.sparsity is None else adashare.sparsity
        self.sharing = sharing if adashare.sharing is None else adashare.sharing

    def ends_cycle(self, num_steps: int) -> bool:
        """Whether a cycle has just ended after so many steps."""
        since = num_steps - self.curriculum.warmup
        return since > 0 and since % self.curriculum.cycle_steps == 0

    def relax_decisions(self, logits: Tensor, step: int) -> Tensor:
        """What every task executes and skips of the released blocks at a step: [T, n, 2]; the same on every rank."""
        num_tasks, num_blocks, _ = logits.shape
        num_released = self.curriculum.num_released(step)
        noise = send_to(
            logits.device,
            sample_gumbel_noise(num_tasks, num_blocks, seed=self.config.seed, step=step),
        )
        return sample_soft_decisions(
            logits, noise, temperature=self.curriculum.temperature(step), num_released=num_released
        )

    def sample_decisions(self, network: Network, step: int) -> Tensor:
        """The decisions of a step with which the weights are trained: no gradient reaches the policy."""
        return self.relax_decisions(network.policy_logits.detach(), step)

    def train_policy(
        self,
        net: TrainedNetwork,
        ranks: Ranks,
        parts: Sequence[tuple[Tensor, AnyLabels, NormGroups]],
        step: int,
        autocast: AbstractContextManager[Any],
    ) -> tuple[AnyOutputs, Tensor]:
        """One step of the policy, the weights as they are; the outputs [B, O] and the norm of the gradient.

        parts: images [b, 3, H, W], labels [b, T] and groups of images of this rank, pass by pass.
        """
        network = net.network
        leaf = network.policy_logits.detach().requires_grad_()
        # In fp64, so that the order in which passes and ranks are added stays below the rounding of the policy itself.
        gradient = torch.zeros_like(leaf, dtype=torch.float64)
        outputs = []
        batch_size = self.config.train.batch_size
        over_pixels = self.config.loss.over == "pixels"
        shares: list[Tensor] | None = None
        for number, (images, labels, groups) in enumerate(parts):
            with autocast:
                answer = network(images, self.relax_decisions(leaf, step), flat=True, groups=groups)
            assert not isinstance(answer, dict)
            losses = network.tasks.compute_losses(answer, labels)
            if over_pixels and shares is None:
                every = [one for _, one, _ in parts]
                shares = share_pixels(network.tasks, answer, every, ranks, batch_size=batch_size)
            if shares is not None:
                losses = losses * shares[number]
            if not net.weighting.is_plain:
                losses = losses * net.weighting.weigh()
            loss = losses.sum() / batch_size
            gradient += torch.autograd.grad(loss, leaf)[0]
            outputs.append(answer.detach())

        # What the policy costs beside its tasks' losses, which is the same on every rank.
        sparsity = compute_sparsity_loss(leaf, num_released=self.curriculum.num_released(step))
        sharing = compute_sharing_loss(leaf, preset=self.config.adashare.sharing_preset)
        cost = self.sparsity * sparsity + self.sharing * sharing
        gradient = ranks.sum(gradient) + torch.autograd.grad(cost, leaf)[0]
        network.policy_logits.grad = gradient.to(leaf.dtype)
        net.policy_optimizer.step()
        network.policy_logits.grad = None
        return concatenate_outputs(outputs), gradient.norm()

    def progress_fields(self, num_steps: int) -> dict[str, Any]:
        """Where the search stands after so many steps, for the log."""
        last = max(0, num_steps - 1)
        return {
            "phase": self.curriculum.phase(last),
            "cycle": self.curriculum.cycle(last),
            "num_released": self.curriculum.num_released(last),
            "temperature": self.curriculum.temperature(last),
        }


def _divide_cycle(config: Config, info: DatasetInfo) -> tuple[int, int]:
    """Steps of the weights and of the policy in a cycle: as many as are given, else each sees its share of the samples once."""
    adashare = config.adashare
    shares = [_divide_samples(member, adashare.weights_part) for member in info.members]
    if adashare.cycle_iterations is None:
        of_weights, of_policy = map(sum, zip(*shares, strict=True))
        batch_size = config.train.batch_size
        return math.ceil(of_weights / batch_size), math.ceil(of_policy / batch_size)
    steps = round(adashare.cycle_iterations * adashare.weights_part)
    first = min(max(1, steps), adashare.cycle_iterations - 1)
    return first, adashare.cycle_iterations - first


def _divide_samples(info: DatasetInfo, part: float) -> tuple[int, int]:
    """How many training samples of a data set train weights, and how many the policy."""
    num_samples = info.splits["train"].num_samples
    first = int(num_samples * part)
    if not 0 < first < num_samples:
        left_out = "the policy" if first else "the weights"
        raise UserError(
            f"adashare.weights_part={part:g} of the {num_samples} training images of {info.path} leaves none for "
            f"{left_out}. Give more images, or a part nearer to a half."
        )
    return first, num_samples - first


def make_policy_record(
    network: Network, search: PolicySearch | None, num_steps: int
) -> dict[str, Any]:
    """The content of policy.json: tasks, blocks, who executes what, and, of a search, how probable that is [T][L].

    Blocks that were not released in so many steps are executed for sure.
    """
    architecture = network.architecture
    record: dict[str, Any] = {
        "tasks": [task.name for task in architecture.tasks],
        "blocks": list(architecture.backbone.blocks),
        "policy": [[int(executes) for executes in row] for row in network.policy],
    }
    if search is not None:
        probabilities = compute_execute_probabilities(network.policy_logits)
        held = architecture.num_blocks - search.curriculum.num_released(max(0, num_steps - 1))
        probabilities[:, :held] = 1.0
        record["execute_probability"] = probabilities.tolist()
    return record
