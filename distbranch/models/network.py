"""The network of an architecture: the copies of every unit, the ways of its routing, and the heads.

It is always built anew from an architecture and a state; nothing is ever grafted onto a living network.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from distbranch.adashare.policy import EXECUTE, SKIP
from distbranch.branching.routing import Node, Policy, Routing
from distbranch.errors import UserError
from distbranch.maps import AnyOutputs, Outputs, resize_maps
from distbranch.models.architecture import Architecture
from distbranch.models.baselines import Baseline
from distbranch.models.delta import DeltaBranches, copy_state, draw_deltas
from distbranch.models.dense_heads import is_output
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.units import (
    Block,
    Unit,
    make_unset,
    run_over_ways,
    run_unit,
    set_memory_format,
)
from distbranch.tasks import TaskSet


class Network(nn.Module):
    """A multi-task network whose units are shared as the architecture's routing says.

    Parameters are named `units.<unit>.<copy>.<rest>`, `heads.weight` [O, F], `heads.bias` [O] (absent if all tasks are dense),
    `dense_heads.<task>.<rest>`, of low rank `head_basis.weight`, of a baseline `baseline.<rest>`, and, while a policy is searched
    for, `policy_logits` [T, L, 2], which take no gradient by themselves; of delta branches see `DeltaBranches`.

    Args:
        architecture: what to build.
        mean: of every colour channel of images in 0..1, to normalise uint8 images.
        std: likewise.
    """

    mean: Tensor
    std: Tensor
    input_scale: Tensor | None
    input_shift: Tensor | None

    def __init__(
        self,
        architecture: Architecture,
        mean: Sequence[float] = (0.5,) * 3,
        std: Sequence[float] = (0.25,) * 3,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self._frozen: list[nn.Module] = []
        self.routing = architecture.routing
        self.tasks = TaskSet(architecture.tasks)
        # By binary task, {"threshold": from which probability on the answer is yes, ...}; None until they were chosen.
        self.thresholds: dict[str, dict[str, Any]] | None = None

        self.units = nn.ModuleDict()
        for number, plan in enumerate(architecture.backbone.plans):
            copies = self.routing.copies(number)
            built = [
                plan.build() if is_executed else plan.build(is_executed=False)
                for is_executed in copies
            ]
            deltas = architecture.deltas(number)
            if deltas:
                self.units[plan.name] = DeltaBranches(built, deltas, architecture.delta_rank or 0)
            else:
                self.units[plan.name] = nn.ModuleList(built)

        width = plan.width
        self.head_basis: nn.Linear | None = None
        if architecture.output_basis is not None:
            self.head_basis = make_unset(nn.Linear, width, architecture.output_basis, bias=False)
            width = architecture.output_basis
        self.heads: nn.Linear | None = None
        if architecture.num_outputs:
            self.heads = make_unset(nn.Linear, width, architecture.num_outputs)
        self.dense_heads = nn.ModuleDict()
        self.has_channels_last = False
        for task in architecture.dense_tasks:
            channels = architecture.map_shape[0]
            self.has_channels_last = architecture.specs[-1].features[0] != channels
            head = architecture.dense_head.build(channels, task.num_outputs)
            self.dense_heads[task.name] = head
        self.serving = self._serve(self.routing.top)
        # Of a search and of a baseline, where every task has its own features.
        self.serving_apart = self._serve(range(self.tasks.num_tasks))
        self.baseline: Baseline | None = None
        if architecture.baseline is not None:
            self.baseline = architecture.make_baseline()

        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))
        scale, shift = architecture.backbone.input_affine or (None, None)
        for name, factors in (("input_scale", scale), ("input_shift", shift)):
            colours = None if factors is None else torch.tensor(factors).view(3, 1, 1)
            self.register_buffer(name, colours, persistent=False)  # the architecture holds them
        if architecture.searches:
            logits = torch.zeros(self.tasks.num_tasks, architecture.num_blocks, 2)
            self.policy_logits = nn.Parameter(logits, requires_grad=False)
        self.init(torch.Generator().manual_seed(0))
        set_memory_format(self, torch.channels_last)

    @torch.no_grad()
    def init(self, generator: torch.Generator) -> None:
        """Draw all weights anew, on the CPU so that every device gets the same: He et al. 2015, fan-in; timm's as timm does.

        Those of delta branches are born of a network without branches.
        """
        if self.architecture.has_deltas:
            self._init_deltas(generator)
            return
        initial = self.architecture.backbone.draw_units(generator)
        for unit, state in initial.items():
            for copy in self.copies(unit):
                copy.load_state_dict({name: state[name] for name in copy.state_dict()})
        for name, module in self.named_modules():
            if initial and name.startswith("units."):
                continue
            if isinstance(module, nn.Conv2d | nn.Linear):
                # No ReLU follows the heads, nor what a basis gives.
                is_last = name == "heads" or name.endswith("basis") or is_output(name)
                gain = 1.0 if is_last else 2.0
                deviation = math.sqrt(gain / module.weight[0].numel())
                module.weight.copy_(
                    torch.randn(module.weight.shape, generator=generator) * deviation
                )
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, BatchNorm):
                module.reset_parameters()
        if self.baseline is not None:
            self.baseline.reset()

    def _init_deltas(self, generator: torch.Generator) -> None:
        architecture = replace(self.architecture, splits=())
        thin = Network(architecture, self.mean.flatten().tolist(), self.std.flatten().tolist())
        thin.init(generator)
        drawn = draw_deltas(architecture, self.architecture, generator.initial_seed())
        self.load_state_dict(copy_state(thin.state_dict(), architecture, self.architecture) | drawn)

    def copies(self, unit: str) -> list[Unit]:
        """The copies of a unit; delta branches have no weights of their own between two runs."""
        copies = self.units[unit]
        if isinstance(copies, DeltaBranches):
            return copies.branches
        return cast(list[Unit], list(cast(nn.ModuleList, copies)))

    def freeze(self, parts: Iterable[str]) -> None:
        """Keep parts, modules by name, as they are: without gradients, and with their running statistics in training too."""
        self._frozen = [self.get_submodule(part) for part in parts]
        for part in self._frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As of any module; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self,
        images: Tensor,
        decisions: Tensor | None = None,
        *,
        flat: bool = False,
        groups: NormGroups | None = None,
    ) -> dict[str, Tensor] | AnyOutputs:
        """Logits of every task by name, of dense ones [B, K, H, W]; if `flat` all of them as one tensor [B, O].

        Where any task is dense these are `Outputs`, whose maps are at the stride of the network.

        images: [B, 3, H, W]; uint8 is normalised here, float is taken as normalised already.
        decisions: of a search [T, n, 2], how much every task executes and skips the last n blocks, while all execute those
            below; None: as its most probable policy says.
        groups: of images that are normalised together in training; None: all of them.
        """
        x = self._enter(images)
        routing, serving = self.routing, self.serving
        if self.baseline is not None:
            features = self.baseline(partial(self._run_some, groups), x, groups)
            serving = self.serving_apart
        elif decisions is not None:
            features = self._run_mixed(x, decisions, groups)
            serving = serving if len(features) == 1 else self.serving_apart
        else:
            if self.architecture.searches:  # where the ways change
                routing = self.architecture.with_policy(self.policy).routing
                serving = self._serve(routing.top).to(x.device)
            features = self._run(x, routing, groups)
        outputs = self._apply_heads(serving, features, groups)
        if flat:
            return outputs
        if isinstance(outputs, Outputs):
            size = images.shape[-2:]
            maps = {name: resize_maps(one, size) for name, one in outputs.maps.items()}
            outputs = Outputs(outputs.logits, maps)
        return self.tasks.split_by_task(outputs)

    def _enter(self, images: Tensor) -> Tensor:
        x = normalise(images, self.mean, self.std)
        if self.input_scale is not None and self.input_shift is not None:
            x = x * self.input_scale + self.input_shift
        return x

    def compute_features(self, images: Tensor) -> list[Tensor]:
        """What the heads read [B, ...], of every node of a tree or a policy."""
        return self._run(self._enter(images), self.routing, None)

    def apply_heads(self, features: Sequence[Tensor]) -> AnyOutputs:
        """All outputs, as of `flat`, from `compute_features`."""
        return self._apply_heads(self.serving, features, None)

    def run_with_features(
        self, images: Tensor, units: Sequence[int]
    ) -> tuple[AnyOutputs, list[list[Tensor]]]:
        """All outputs, as of `flat`, and after each of these units (0..L-1, input first) the features [B, ...] of all nodes.

        Gradients go down to the features of the first of the units and no further.
        """
        features = [self._enter(images)]
        kept = []
        for number, (name, nodes) in enumerate(
            zip(self.routing.units, self.routing.nodes, strict=True)
        ):
            with torch.set_grad_enabled(number > units[0]):
                features = self._run_unit(name, nodes, features, None)
            if number == units[0]:
                features = [x.detach().requires_grad_() for x in features]
            if number in units:
                kept.append(features)
        return self._apply_heads(self.serving, features, None), kept

    def _run(self, x: Tensor, routing: Routing, groups: NormGroups | None) -> list[Tensor]:
        features = [x]
        for name, nodes in zip(routing.units, routing.nodes, strict=True):
            features = self._run_unit(name, nodes, features, groups)
        return features

    def _run_some(
        self, groups: NormGroups | None, features: list[Tensor], units: Sequence[int]
    ) -> list[Tensor]:
        """Some units, by their numbers, over the features before them."""
        for number in units:
            nodes = self.routing.nodes[number]
            features = self._run_unit(self.routing.units[number], nodes, features, groups)
        return features

    def compute_penalty(self) -> Tensor | None:
        """What a baseline adds to the losses, if anything."""
        if self.baseline is None:
            return None
        last = [self.routing.units[units[-1]] for units in self.baseline.stages]
        return self.baseline.penalise([cast(list[Block], self.copies(name)) for name in last])

    def _run_unit(
        self, name: str, nodes: Sequence[Node], features: list[Tensor], groups: NormGroups | None
    ) -> list[Tensor]:
        copies = self.units[name]
        if not isinstance(copies, DeltaBranches):
            return run_unit(self.copies(name), nodes, features, groups)
        with copies.whole_weights():
            return run_unit(copies.branches, nodes, features, groups)

    def _run_mixed(self, x: Tensor, decisions: Tensor, groups: NormGroups | None) -> list[Tensor]:
        """The features of every task, whose last blocks are mixtures of what they compute and of their shortcuts."""
        features = [x]
        place = (
            decisions.shape[1] - self.architecture.num_blocks
        )  # of the next block among the released ones
        for name, may_skip in zip(
            self.routing.units, self.architecture.backbone.may_skip, strict=True
        ):
            ways = range(len(features))
            shortcuts, done = run_over_ways(self.copies(name)[0], ways, ways, features, groups)
            if may_skip and place >= 0:
                shares = decisions[:, place].to(x.dtype)
                features = []
                for task, share in enumerate(shares):
                    way = min(
                        task, len(ways) - 1
                    )  # all tasks share one up to the first released block
                    features.append(share[EXECUTE] * done[way] + share[SKIP] * shortcuts[way])
            else:
                features = list(done.values())
            place += may_skip
        return features

    def _serve(self, node_of_task: Sequence[int]) -> Serving:
        nodes = []
        node_of_map = {}
        for number, (node, task) in enumerate(zip(node_of_task, self.tasks.tasks, strict=True)):
            if number in self.tasks.dense:
                node_of_map[task.name] = node
            else:
                nodes += [node] * task.num_outputs
        return Serving(nodes, node_of_map)

    def _apply_heads(
        self, serving: Serving, features: Sequence[Tensor], groups: NormGroups | None
    ) -> AnyOutputs:
        """The outputs of all tasks, from the features of every node."""
        if not self.tasks.dense:
            return self._multiply_heads(serving, features)
        maps = [self._as_map(x) for x in features]
        answers = {}
        for name, node in serving.node_of_map.items():
            answers[name] = self.dense_heads[name](maps[node], groups)
        return Outputs(self._multiply_heads(serving, maps), answers)

    def _multiply_heads(self, serving: Serving, features: Sequence[Tensor]) -> Tensor:
        if self.heads is None:
            # Of no columns, by a slice: a number of rows would be one for all batches of an exported network.
            return features[0].flatten(1)[:, :0].float()
        tops = []
        for node in serving.nodes:
            x = features[node]
            top = x.mean(dim=(2, 3)) if x.ndim == 4 else x
            tops.append(top if self.head_basis is None else self.head_basis(top))
        outputs: Tensor = serving(self.heads, tops)
        return outputs

    def _as_map(self, x: Tensor) -> Tensor:
        """[B, C, h, w], also of a backbone whose channels are last."""
        return x.permute(0, 3, 1, 2) if self.has_channels_last else x

    @property
    def policy(self) -> Policy:
        """Who executes which block [T][L]: the architecture's policy, or the most probable decisions of the search so far."""
        if self.architecture.policy is not None:
            return self.architecture.policy
        executes = self.policy_logits[:, :, EXECUTE] >= self.policy_logits[:, :, SKIP]
        return tuple(map(tuple, executes.tolist()))

    @property
    def served_architecture(self) -> Architecture:
        """That of the network as it answers: of a search that of its most probable decisions."""
        return (
            self.architecture.with_policy(self.policy)
            if self.architecture.searches
            else self.architecture
        )

    def as_served(self) -> Network:
        """The network as it answers: of a search that of its most probable decisions, with copies of what it needs; else itself."""
        return self.rebuilt(self.served_architecture) if self.architecture.searches else self

    def folded(self) -> Network:
        """The network with whole weights in every branch, as it is served; itself unless it may have delta branches."""
        if self.architecture.delta_rank is None:
            return self
        return self.rebuilt(self.architecture.folded)

    def rebuilt(self, architecture: Architecture, tasks: Sequence[int] | None = None) -> Network:
        """A network with copies of this one's units; `tasks`: of every task of it the number in this one, if not the same.

        Raises:
            ValueError: it is neither wider than this one nor a part of it.
        """
        network = Network(architecture, self.mean.flatten().tolist(), self.std.flatten().tolist())
        state = copy_state(self.state_dict(), self.architecture, architecture, tasks)
        if tasks is not None and self.heads is not None:
            columns: list[int] = []
            for task in tasks:
                if task not in self.tasks.dense:
                    own = self.tasks.columns[self.tasks.names[task]]
                    columns += range(own.start, own.stop)
            state |= {
                f"heads.{key}": value[columns] for key, value in self.heads.state_dict().items()
            }
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        return network.to(self.mean.device).train(self.training)


class Serving(nn.Module):
    """The heads over several nodes, one matrix product per node; it has no weights of its own.

    A product and a sum over all outputs would hold [B, O, F] values: 541 MiB for 1,050 outputs where this takes 17.

    Args:
        node_of_output: of every output, the number of the node that serves it [O].
        node_of_map: of every dense task by name; their heads are modules of their own.
    """

    order: Tensor | None
    place: Tensor | None

    def __init__(
        self, node_of_output: Sequence[int], node_of_map: Mapping[str, int] | None = None
    ) -> None:
        super().__init__()
        self.node_of_map = dict(node_of_map or {})
        order = sorted(
            range(len(node_of_output)), key=node_of_output.__getitem__
        )  # outputs, node by node
        self.nodes = sorted(set(node_of_output))
        self.sizes = [node_of_output.count(node) for node in self.nodes]
        is_sorted = order == list(range(len(order)))  # then nothing has to be moved
        place = sorted(order, key=order.__getitem__)
        self.register_buffer("order", None if is_sorted else torch.tensor(order), persistent=False)
        self.register_buffer("place", None if is_sorted else torch.tensor(place), persistent=False)

    def forward(self, heads: nn.Linear, features: Sequence[Tensor]) -> Tensor:
        """[B, O] from the features [B, F] of each of `nodes`, in the precision of the heads whatever the autocast."""
        with torch.autocast(heads.weight.device.type, enabled=False):
            weight = heads.weight if self.order is None else heads.weight[self.order]
            parts = torch.split(weight, self.sizes)
            products = [
                x.to(part.dtype) @ part.t() for x, part in zip(features, parts, strict=True)
            ]
            outputs = torch.cat(products, dim=1)
            outputs = outputs if self.place is None else outputs[:, self.place]
            return outputs + heads.bias


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images [B, 3, H, W] as normalised floats; float ones are taken as normalised already."""
    if images.dtype == torch.uint8:
        images = images.to(mean.dtype).div_(255).sub_(mean).div_(std)
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def restrict(network: Network, names: Sequence[str]) -> Network:
    """The network of some of its tasks, in the network's order, with the copies and blocks that these need, in eval mode.

    Raises:
        UserError: a task that the network does not have, with the nearest names; or it is low-rank.
    """
    if network.architecture.backbone.low_rank:
        raise UserError(
            "A low-rank network shares every layer and the basis of its outputs among all tasks, so no part of it serves some of "
            "them alone. Leave out --tasks."
        )
    if network.baseline is not None:
        raise UserError(
            f"A network of method.name={network.architecture.baseline} mixes the features of all tasks, so no part of it serves some of "
            "them alone. Leave out --tasks."
        )
    known = network.tasks.names
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:8]
            raise UserError(
                f"The network has no task {name!r}. The nearest of its {len(known)} are: {', '.join(near)}."
            )
    kept = [number for number, name in enumerate(known) if name in names]
    if not kept:
        raise UserError(
            f"At least one task must be given. The network has {len(known)}: {', '.join(known[:8])} ..."
        )
    part = network.rebuilt(network.served_architecture.restricted(kept), kept).eval()
    if network.thresholds is not None:
        part.thresholds = {task: one for task, one in network.thresholds.items() if task in names}
    return part
