"""The network with its optimiser and its DDP wrapper: three things that are only ever rebuilt together, from named tensors."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distbranch.branching.routing import SHARED
from distbranch.branching.tree import Split
from distbranch.config import Config
from distbranch.config.training import LossConfig
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks, compute_fingerprint
from distbranch.engine.frozen_parts import KeptRows, list_frozen
from distbranch.engine.gradient_aggregation import (
    GradientAggregation,
    SharedWeights,
    group_by_tasks,
)
from distbranch.engine.loss_weighting import LossWeighting, make_weighting
from distbranch.engine.optimizer_and_schedule import (
    build_optimizer,
    build_policy_optimizer,
    list_slots,
    load_slots,
    shorten_memory,
)
from distbranch.losses import build_task_set
from distbranch.models.architecture import Architecture
from distbranch.models.delta import copy_state, draw_deltas
from distbranch.models.network import Network
from distbranch.models.norm import BatchNorm

_BUFFER_SYNC = "forward_sync_buffers"  # the argument of DDP, of another name before torch 2.13
if _BUFFER_SYNC not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFER_SYNC = "broadcast_buffers"
WEIGHTING = (
    "loss_weighting."  # before the names of what a weighting holds, beside those of the network
)
AGGREGATION = "gradient_aggregation."  # likewise
SEARCH_MOMENTUM = 0.9  # of the weights' SGD in AdaShare's search


class TrainedNetwork:
    """What one rank trains. `is_final` says that no further widening follows, which is when compiling pays.

    `average`: of weights and running statistics by name (`train.ema`); empty if there is none.
    `alternates`: whether weights and policy of AdaShare are trained in turns, for which the weights have another optimiser.
    `loss`: that of `config` with weights of labels in numbers (`label_weights.with_counted_weights`).
    `aggregation`: how gradients of tasks become one; None: as their sum, which DDP takes over the ranks.
    `new_tasks`: those that `train.only: new` trains.
    """

    network: Network
    groups: list[SharedWeights]
    norms: list[BatchNorm]
    optimizer: torch.optim.Optimizer
    policy_optimizer: torch.optim.Optimizer
    wrapped: nn.Module
    average: dict[str, Tensor]

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        preprocessing: Preprocessing,
        *,
        is_final: bool,
        loss: LossConfig | None = None,
    ) -> None:
        self.config = config
        self.loss = loss or config.loss
        self.ranks = ranks
        self.preprocessing = preprocessing
        self.is_final = is_final
        self.alternates = False
        self.new_tasks: tuple[str, ...] = ()
        self._kept_rows: KeptRows | None = None
        self._weighting: LossWeighting | None = None
        self.aggregation: GradientAggregation | None = None
        if config.loss.aggregation != "none":
            self.aggregation = GradientAggregation(config.loss.aggregation, config.seed)

    @property
    def weighting(self) -> LossWeighting:
        """What the losses are multiplied by; it outlives the networks of a run."""
        assert self._weighting is not None
        return self._weighting

    def begin(
        self,
        architecture: Architecture,
        seed: int,
        *,
        overwrite: Callable[[Network], None] | None = None,
    ) -> None:
        """Random weights (He et al. 2015), the same on every rank; `overwrite` puts others into the network that was drawn."""
        network = Network(architecture, self.preprocessing.mean, self.preprocessing.std)
        network.init(torch.Generator().manual_seed(seed))
        if overwrite is not None:  # on one rank: a tie may fall otherwise on another processor
            self.ranks.run_on_rank_zero(lambda: overwrite(network))
            network.to(self.ranks.device)
            self.ranks.broadcast_tensors(list(network.state_dict().values()))
        self.build(architecture, network.state_dict(), {})

    def build(
        self,
        architecture: Architecture,
        model: Mapping[str, Tensor],
        slots: Mapping[str, Tensor],
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """A new network, optimiser and wrapper; `slots` are the optimiser's tensors as `parameter:slot`.

        average: by name; of a new run that of `model`.
        """
        network = Network(architecture, self.preprocessing.mean, self.preprocessing.std)
        network.tasks = build_task_set(architecture.tasks, self.loss)
        network.load_state_dict(dict(model))
        self.network = network.to(self.ranks.device)  # channels last, as made
        self.network.train()
        self._load_average(model if average is None else average)
        only = self.config.train.only
        if only != "all":
            self.network.freeze(list_frozen(architecture, only, self.new_tasks))
        if only == "new" and self.network.heads is not None:
            self._kept_rows = KeptRows(self.network, self.new_tasks)
        norms = [module for module in self.network.modules() if isinstance(module, BatchNorm)]
        self.norms = [norm for norm in norms if norm.training]  # those of frozen units never are
        self.groups = group_by_tasks(self.network) if self.aggregation is not None else []
        if self._weighting is None:
            trained = self.new_tasks if only == "new" else None
            weighting = make_weighting(self.config.loss, architecture.tasks, trained)
            self._weighting = weighting.to(self.ranks.device)
        self.optimizer = self._build_weights_optimizer()
        if self._searches:
            self.policy_optimizer = build_policy_optimizer(
                self.network.policy_logits, self.config.adashare.policy_lr
            )
        for optimizer in self._optimizers():
            load_slots(optimizer, self.network, slots)
        of_weighting = [(key, value) for key, value in slots.items() if key.startswith(WEIGHTING)]
        own_slots = {key.removeprefix(WEIGHTING): value for key, value in of_weighting}
        load_slots(self.optimizer, self.weighting, own_slots)
        self.wrap()

    def step(self) -> None:
        """One step of the optimiser of the weights."""
        self.optimizer.step()
        if self._kept_rows is not None:
            self._kept_rows.restore()

    def _load_average(self, values: Mapping[str, Tensor]) -> None:
        self._averaged: dict[str, Tensor] = {}
        if self.config.train.ema:
            state = self.network.state_dict().items()
            self._averaged = {name: one for name, one in state if one.is_floating_point()}
        # In the layout of the weights, so that one call moves all of them.
        self.average = {
            name: torch.empty_like(one).copy_(values[name]) for name, one in self._averaged.items()
        }

    def update_average(self, num_steps: int) -> None:
        """Take in weights and running statistics as they are after so many steps."""
        if not self.average:
            return
        decay = min(self.config.train.ema, (1 + num_steps) / (10 + num_steps))
        own = list(self._averaged.values())
        torch._foreach_lerp_(list(self.average.values()), own, 1 - decay)

    def served_weights(self) -> dict[str, Tensor]:
        """The state that is evaluated, by name: averaged where there is an average."""
        return self.network.state_dict() | self.average

    @contextmanager
    def served(self) -> Iterator[None]:
        """The network has the weights that are evaluated within the block."""
        if not self.average:
            yield
            return
        own = {name: one.clone() for name, one in self.network.state_dict().items()}
        self.network.load_state_dict(self.served_weights())
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def end_with(self, weights: Mapping[str, Tensor]) -> None:
        """Training is over, and these are the weights of its network."""
        self.network.load_state_dict(dict(weights))
        self.average = {}

    def alternate(self) -> None:
        """Begin to train weights and policy in turns: the weights with SGD, whatever trained them before."""
        self.alternates = True
        self.optimizer = self._build_weights_optimizer()

    def _build_weights_optimizer(self) -> torch.optim.Optimizer:
        optim = self.config.optim
        if self.alternates:
            rate = self.config.adashare.weights_lr
            optim = optim.model_copy(
                update={"name": "sgd", "momentum": SEARCH_MOMENTUM, "lr": rate}
            )
        return build_optimizer(
            self.network,
            optim,
            self.weighting.trained,
            baseline=self.network.baseline,
            mixing_rate=self.config.method.mixing_rate,
        )

    @property
    def _searches(self) -> bool:
        return self.network.architecture.searches

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer, self.policy_optimizer] if self._searches else [self.optimizer]

    def widen(self, *splits: Split) -> None:
        """Replace the network by a wider one: weights, running statistics and optimiser slots are copied by branch name.

        With `method.birth: fresh` the branches of the layers that divide are drawn anew, and the optimiser knows nothing of them,
        as it knows nothing of differences that are born; with `optim.inherited_steps` it knows less of the copies. `perturbed`
        branches are the mean of both (shrink and perturb, Ash and Adams 2020).

        Args:
            splits: of the layers that follow each other from the active one down.
        """
        old = self.network.architecture
        tree = old.tree
        for split in splits:
            tree = tree.split(split)
        new = old.with_tree(tree)
        differences = draw_deltas(old, new, self.config.seed)
        model = copy_state(self.network.state_dict(), old, new) | differences
        average = copy_state(self.average, old, new) | differences
        slots = copy_state(self.slots(), old, new)
        unknown = {}
        if slots:
            unknown = {f"{name}:momentum_buffer": value for name, value in differences.items()}

        prefixes = tuple(f"units.{tree.layers[split.layer - 1]}." for split in splits)
        newborn = [name for name in model if name.startswith(prefixes)]
        optim, birth = self.config.optim, self.config.method.birth
        drawn = {} if birth == "copies" else self._draw(new)
        if birth == "perturbed":
            numbers = [name for name in newborn if model[name].is_floating_point()]
            drawn |= {name: (model[name] + drawn[name]) / 2 for name in numbers}
        if drawn:
            model |= {name: drawn[name] for name in newborn}
            average |= {name: drawn[name] for name in newborn}
        if birth == "fresh":
            unknown |= {key: value for key, value in slots.items() if key.startswith(prefixes)}
            slots = {key: value for key, value in slots.items() if key not in unknown}
        elif optim.inherited_steps is not None:
            # The gradient of a weight that branches share stays the sum over all tasks.
            copies = [name for name in newborn if name.split(".")[2] != SHARED]
            slots = shorten_memory(slots, copies, optim.inherited_steps, optim)
        # Its fused step wants the momentum of all or of none.
        if isinstance(self.optimizer, torch.optim.SGD):
            slots |= {key: torch.zeros_like(value) for key, value in unknown.items()}
        self.build(new, model, slots, average)

    def _draw(self, architecture: Architecture) -> dict[str, Tensor]:
        """The state of a newly drawn network, the same on every rank, and another one at every widening."""
        sequence = np.random.SeedSequence([self.config.seed, len(architecture.splits)])
        network = Network(architecture, self.preprocessing.mean, self.preprocessing.std)
        network.init(torch.Generator().manual_seed(int(sequence.generate_state(1)[0])))
        return network.state_dict()

    def wrap(self) -> None:
        """A fresh DDP wrapper: parameters added to an old one would silently never be synchronised."""
        self.wrapped = self.network
        # Where gradients are aggregated its ranks sum the rows of every task instead.
        if self.ranks.world_size > 1 and self.aggregation is None:
            device_ids = [self.ranks.device] if self.ranks.device.type == "cuda" else None
            no_buffer_sync: dict[str, Any] = {_BUFFER_SYNC: False}
            self.wrapped = DistributedDataParallel(
                self.network,
                device_ids=device_ids,
                init_sync=False,  # it would overwrite a rank that differs, which must be told instead
                gradient_as_bucket_view=True,
                **no_buffer_sync,  # running statistics are summed over all ranks
            )
        self._replica = self.wrapped
        if self.config.train.compile and self.is_final:
            torch.compiler.reset()
            self.wrapped = torch.compile(self.wrapped)  # type: ignore[assignment]

    def no_sync(self) -> AbstractContextManager[None]:
        """For all but the last part of an accumulated step."""
        if isinstance(self._replica, DistributedDataParallel):
            return self._replica.no_sync()
        return nullcontext()

    def slots(self) -> dict[str, Tensor]:
        """The optimiser's tensors as `parameter:slot`."""
        slots: dict[str, Tensor] = {}
        for optimizer in self._optimizers():
            slots |= list_slots(optimizer, self.network)
        for key, value in list_slots(self.optimizer, self.weighting).items():
            slots[WEIGHTING + key] = value
        return slots

    def loss_tensors(self) -> dict[str, Tensor]:
        """What weighting and aggregation remember from step to step, by name; nothing if they remember nothing."""
        tensors = {WEIGHTING + key: value for key, value in self.weighting.state_tensors().items()}
        if self.aggregation is not None:
            for key, value in self.aggregation.memory.items():
                tensors[AGGREGATION + key] = value
        return tensors

    def load_loss_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `loss_tensors`."""
        of_weighting = {}
        for key, value in tensors.items():
            if key.startswith(WEIGHTING):
                of_weighting[key.removeprefix(WEIGHTING)] = value
            elif self.aggregation is not None:
                self.aggregation.memory[key.removeprefix(AGGREGATION)] = value.clone()
        self.weighting.load_tensors(of_weighting)

    def fingerprint(self) -> str:
        """A hash over tree, weights, running statistics, their average, optimiser slots, and what a weighting of losses has learned."""
        tree = json.dumps(self.network.architecture.tree.to_json())
        tensors = self.network.state_dict() | self.slots()
        for key, value in self.weighting.state_tensors().items():
            tensors[WEIGHTING + key] = value
        for key, value in self.average.items():
            tensors[f"average.{key}"] = value
        return compute_fingerprint(tree, tensors)

    def first_not_finite(self) -> str | None:
        """The name of a tensor with a NaN or an infinity in it."""
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                return name
        return None
