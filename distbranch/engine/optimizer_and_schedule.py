"""The optimiser, its named slots, and the learning rate as a pure function of the step.

Slots are carried by parameter name (`units.fc7.2.product.weight:exp_avg`), so that they can be copied with their branch.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distbranch.config import OptimConfig

SECOND_BETA = 0.999  # of Adam and AdamW; their first one is `optim.momentum`
POLICY_WEIGHT_DECAY = 5e-4


def build_optimizer(network: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimiser over all weights; fused, which is several times faster than a loop over them.

    Weight decay falls on convolutions and products alone: norms and biases, which have one dimension, are left as they are.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    parameters: list[dict[str, Any]] = [
        {"params": matrices},
        {"params": vectors, "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **options)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, betas=(config.momentum, SECOND_BETA), **options)


def build_policy_optimizer(logits: nn.Parameter, lr: float) -> torch.optim.Optimizer:
    """That of AdaShare's policy, with the weight decay of its authors."""
    return torch.optim.Adam([logits], lr=lr, weight_decay=POLICY_WEIGHT_DECAY)


def list_slots(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's tensors as `parameter:slot`."""
    slots: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                slots[f"{name}:{slot}"] = value.detach()
    return slots


def load_slots(
    optimizer: torch.optim.Optimizer, network: nn.Module, slots: Mapping[str, Tensor]
) -> None:
    """Put named tensors into a new optimiser, each in the memory layout of its parameter (fused steps need that).

    Those of parameters that it does not have are left out.
    """
    own_parameters = {
        id(parameter) for group in optimizer.param_groups for parameter in group["params"]
    }
    parameters = {
        name: one for name, one in network.named_parameters() if id(one) in own_parameters
    }
    for key, value in slots.items():
        name, _, slot = key.rpartition(":")
        if name not in parameters:
            continue
        parameter = parameters[name]
        if value.shape == parameter.shape:
            own = torch.empty_like(parameter, requires_grad=False).copy_(value)
        elif optimizer.defaults.get(
            "fused"
        ):  # the step count of Adam, where the fused kernel counts it
            own = value.clone().to(parameter.device)
        else:  # on the CPU it can be read without a wait for the GPU
            own = value.clone().to("cpu")
        optimizer.state[parameter][slot] = own


def compute_learning_rate(
    config: OptimConfig, *, iteration: int, schedule_start: int, iterations: int
) -> float:
    """The rate of step `iteration` (counted from 0) of a schedule that began at `schedule_start` and ends at `iterations`."""
    since = iteration - schedule_start
    rate = config.lr
    if config.schedule == "step":
        rate *= config.decay_factor ** (since // config.decay_every)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * since / max(1, iterations - schedule_start)))
    if iteration < config.warmup:
        rate *= (iteration + 1) / config.warmup
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
