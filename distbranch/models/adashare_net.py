"""The network of AdaShare: one residual network, and for every task a way through its blocks, some executed, some skipped.

Features are kept once per way and not per task. In training a block runs once over all the ways that execute it, so that its
batch norm sees the mixture that its running statistics describe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from distbranch.adashare.policy import EXECUTE, SKIP
from distbranch.models.norm import BatchNorm, NormGroups
from distbranch.models.residual import STEM_SIZE, BlockShape, Policy, ResidualArchitecture
from distbranch.models.serving import Serving
from distbranch.models.tree_net import draw_weights, normalise, register_normalisation
from distbranch.tasks import TaskSet


class Convolution(nn.Module):
    """Convolution without bias and batch norm; `fold` makes one convolution with a bias of both, for inference."""

    conv: nn.Conv2d
    norm: BatchNorm | None  # None: folded

    def __init__(self, num_inputs: int, width: int, size: int, stride: int = 1) -> None:
        super().__init__()
        settings = {"stride": stride, "padding": size // 2, "bias": False}
        self.conv = skip_init(nn.Conv2d, num_inputs, width, size, **settings)  # type: ignore[no-untyped-call]
        self.norm = BatchNorm(width)

    def forward(self, x: Tensor, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, C, h, w] to [num_ways * B, C', h', w']."""
        product: Tensor = self.conv(x)
        return product if self.norm is None else self.norm(product, groups, num_ways=num_ways)


class Block(nn.Module):
    """A basic block. Its residual function is absent where no task executes it, its shortcut where that is the identity."""

    def __init__(self, shape: BlockShape, *, is_executed: bool) -> None:
        super().__init__()
        self.first = Convolution(shape.num_inputs, shape.width, 3, shape.stride) if is_executed else None
        self.second = Convolution(shape.width, shape.width, 3) if is_executed else None
        self.projection = Convolution(shape.num_inputs, shape.width, 1, shape.stride) if shape.projects else None

    def shortcut(self, x: Tensor, *, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """[num_ways * B, C, h, w] to [num_ways * B, C', h', w']."""
        return x if self.projection is None else self.projection(x, groups, num_ways)

    def execute(self, x: Tensor, shortcut: Tensor, *, groups: NormGroups | None = None, num_ways: int = 1) -> Tensor:
        """relu(shortcut + f(x))."""
        assert self.first is not None
        assert self.second is not None
        inner = functional.relu(self.first(x, groups, num_ways), inplace=True)
        return functional.relu(shortcut + self.second(inner, groups, num_ways), inplace=True)


class AdaShareNet(nn.Module):
    """A residual network that every task goes through by its own decisions.

    Parameters are named `stem.conv...`, `blocks.<number>.<first|second|projection>.<conv|norm>...`, `heads.weight` [O, F],
    `heads.bias` [O], and, where the architecture has no policy yet, `policy_logits` [T, L, 2], which take no gradient by themselves.

    Args:
        architecture: what to build.
        mean: of every colour channel of images in 0..1, to normalise uint8 images.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, architecture: ResidualArchitecture, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.25,) * 3
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.tasks = TaskSet(architecture.tasks)
        by_block = list(zip(*architecture.executed, strict=True))
        self.stem = Convolution(3, architecture.stage_widths[0], STEM_SIZE, 2)
        self.blocks = nn.ModuleList(
            Block(shape, is_executed=any(executes))
            for shape, executes in zip(architecture.shapes, by_block, strict=True)
        )
        self.heads: nn.Linear = skip_init(nn.Linear, architecture.shapes[-1].width, self.tasks.num_outputs)  # type: ignore[no-untyped-call]
        self.serving = None
        register_normalisation(self, mean, std)
        if architecture.policy is not None:
            ways = list(dict.fromkeys(architecture.policy))
            self.serving = self._serving([ways.index(decisions) for decisions in architecture.policy])
        else:
            logits = torch.zeros(len(architecture.tasks), architecture.num_blocks, 2)
            self.policy_logits = nn.Parameter(logits, requires_grad=False)
        self.init(torch.Generator().manual_seed(0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def init(self, generator: torch.Generator) -> None:
        """Draw all weights anew, on the CPU so that every device gets the same."""
        draw_weights(self, generator, linear=(self.heads,))

    @property
    def searches(self) -> bool:
        """Whether it has logits instead of a policy."""
        return self.architecture.policy is None

    @property
    def policy(self) -> Policy:
        """Who executes which block [T][L]: the architecture's policy, or the most probable decisions of the search so far."""
        if self.architecture.policy is not None:
            return self.architecture.policy
        executes = self.policy_logits[:, :, EXECUTE] >= self.policy_logits[:, :, SKIP]
        return tuple(map(tuple, executes.tolist()))

    @property
    def most_probable_architecture(self) -> ResidualArchitecture:
        """The architecture with `policy`."""
        return self.architecture.with_policy(self.policy)

    def with_most_probable_policy(self) -> AdaShareNet:
        """The network of `policy`, with copies of those weights that it needs."""
        network = AdaShareNet(
            self.most_probable_architecture, self.mean.flatten().tolist(), self.std.flatten().tolist()
        )
        state = self.state_dict()
        network.load_state_dict({name: state[name] for name in network.state_dict()})
        return network.to(self.mean.device).train(self.training)

    def forward(
        self,
        images: Tensor,
        decisions: Tensor | None = None,
        *,
        flat: bool = False,
        groups: NormGroups | None = None,
    ) -> dict[str, Tensor] | Tensor:
        """Logits of every task by name, or all of them as one tensor [B, O] if `flat`.

        images: [B, 3, H, W]; uint8 is normalised here, float is taken as normalised already.
        decisions: [T, n, 2], how much every task executes and skips the last n blocks, while all execute those below; None: as
            `policy` says.
        groups: of images that are normalised together in training; None: all of them.
        """
        executed = self.policy if decisions is None else self.architecture.executed
        x = functional.max_pool2d(functional.relu(self.stem(normalise(images, self.mean, self.std), groups)), 3, 2, 1)
        features, way_of_task = [x], [0] * self.tasks.num_tasks
        for number in range(len(self.blocks)):
            executes = [row[number] for row in executed]
            features, way_of_task = self._pass(number, features, way_of_task, executes, decisions, groups)
        top = [x.mean(dim=(2, 3)) for x in features]
        serving = self.serving
        if serving is None or decisions is not None:  # in a search, where they change
            serving = self._serving(way_of_task).to(self.heads.weight.device)
        outputs = serving(self.heads, top)
        return outputs if flat else self.tasks.split_by_task(outputs)

    def _pass(
        self,
        number: int,
        features: list[Tensor],
        way_of_task: list[int],
        executes: list[bool],
        decisions: Tensor | None,
        groups: NormGroups | None,
    ) -> tuple[list[Tensor], list[int]]:
        """The features after a block, one tensor per way, and the way of every task."""
        block = self.blocks[number]
        assert isinstance(block, Block)
        place = -1 if decisions is None else number - (len(self.blocks) - decisions.shape[1])
        running = sorted({way for way, runs in zip(way_of_task, executes, strict=True) if runs or place >= 0})
        shortcuts = self._over_ways(block.shortcut, groups, features)
        inputs = [features[way] for way in running], [shortcuts[way] for way in running]
        done = dict(zip(running, self._over_ways(block.execute, groups, *inputs), strict=True))
        if place >= 0:
            assert decisions is not None
            shares = decisions[:, place].to(shortcuts[0].dtype)
            mixed = [
                shares[task, EXECUTE] * done[way] + shares[task, SKIP] * shortcuts[way]
                for task, way in enumerate(way_of_task)
            ]
            return mixed, list(range(len(mixed)))
        ways = list(zip(way_of_task, executes, strict=True))
        distinct = list(dict.fromkeys(ways))
        return [done[way] if runs else shortcuts[way] for way, runs in distinct], [distinct.index(way) for way in ways]

    def _over_ways(
        self, function: Callable[..., Tensor], groups: NormGroups | None, *inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """A part of a block over several ways, each with its own inputs [B, ...]; in training as one batch."""
        count = len(inputs[0])
        if not self.training or count < 2:
            return [function(*own, groups=groups, num_ways=1) for own in zip(*inputs, strict=True)]
        joined = [torch.cat(list(tensors)) for tensors in inputs]
        together = function(*joined, groups=groups, num_ways=count)
        return list(torch.unflatten(together, 0, (count, len(together) // count)).unbind())

    def _serving(self, way_of_task: Sequence[int]) -> Serving:
        ways = [way for way, part in zip(way_of_task, self.tasks.tasks, strict=True) for _ in range(part.num_outputs)]
        return Serving(ways)
