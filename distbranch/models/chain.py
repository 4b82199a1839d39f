"""The parts of a module that pass one tensor on, found by tracing its forward with its children as single steps.

A module is divided where only one tensor crosses between two steps of its forward; a part of which that is not true inside (a
residual block, a branch) stays whole, and so does a module whose own children are plain layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx, nn

Kind = Literal["block", "layer", "light"]


@dataclass(frozen=True)
class Part:
    """A step of a chain.

    path: of its (first) module.
    kind: `block`: of several layers; `layer`: one product; `light`: without weights to speak of (a norm, an activation, pooling).
    """

    path: str
    module: nn.Module
    kind: Kind


def divide(
    module: nn.Module, path: str = "", *, opaque: Sequence[Callable[..., object]] = ()
) -> list[Part]:
    """The parts of a module, whose composition is the module, first one first; one part if it is no chain.

    Args:
        module: that of the path "" is divided wherever one tensor crosses.
        path: of the module.
        opaque: functions that are no further traced.
    """
    kind = _kind_of(module)
    segments = [] if kind != "block" else _cut(module, opaque)
    if not segments or (path and _stays_whole(module, segments)):
        return [Part(path, module, kind)]
    parts = []
    for segment in segments:
        child = segment.child
        if child is None:
            parts.append(Part(_join(path, segment.name), segment.build(), segment.kind))
        else:
            parts += divide(child, _join(path, segment.name), opaque=opaque)
    return parts


def group_parts(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts by unit: light ones join what is before them, and plain layers below the first block are one unit, the stem.

    Where these are most of all (VGG), each is a unit.
    """
    kinds = [part.kind for part in parts]
    first_block = kinds.index("block") if "block" in kinds else 0
    num_heavy = len(kinds) - kinds.count("light")
    if 2 * kinds[:first_block].count("layer") > num_heavy:
        first_block = 0
    units: list[list[Part]] = []
    has_product = False  # in the last unit
    for number, part in enumerate(parts):
        is_new = part.kind != "light" and has_product and number >= first_block
        if is_new or not units:
            units.append([])
            has_product = False
        units[-1].append(part)
        has_product = has_product or part.kind != "light"
    return units


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_large(weight: Tensor) -> bool:
    return sum(size > 1 for size in weight.shape) > 1


def _kind_of(module: nn.Module) -> Kind:
    if not any(_is_large(weight) for weight in module.parameters()):
        return "light"
    is_plain = isinstance(module, nn.Conv2d | nn.Linear) or not any(module.children())
    return "layer" if is_plain else "block"


# ---- cutting


class _ChildTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return True


@dataclass(frozen=True)
class _Segment:
    """The steps `nodes` of a module's forward, which need nothing of the steps before but the value of `source`."""

    module: nn.Module
    source: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """Of its first child that is called, or of its first step."""
        calls = [node for node in self.nodes if node.op == "call_module"]
        heavy = [node for node in calls if _kind_of(_get_module(self.module, node)) != "light"]
        chosen = next(iter(heavy or calls), None)
        return "steps" if chosen is None else str(chosen.target)

    @property
    def child(self) -> nn.Module | None:
        """The one child that these steps call with one tensor and with nothing else."""
        (node, *others) = self.nodes
        rest = [*node.args[1:], *node.kwargs.values()]
        if others or node.op != "call_module" or any(value is not None for value in rest):
            return None
        return _get_module(self.module, node) if node.args[:1] == (self.source,) else None

    @property
    def kind(self) -> Kind:
        """Steps between the children have no weights to speak of, though they may add a position embedding."""
        calls = [node for node in self.nodes if node.op == "call_module"]
        is_light = all(_kind_of(_get_module(self.module, node)) == "light" for node in calls)
        return "light" if is_light else "block"

    def build(self) -> nn.Module:
        """A module of these steps, which holds the children that they call."""
        graph = fx.Graph()
        copies = {self.source: graph.placeholder("x")}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:
                for needed in node.all_input_nodes:
                    copy(needed)
                copies[node] = graph.node_copy(node, copies.__getitem__)
            return copies[node]

        for node in self.nodes:
            copy(node)
        graph.output(copies[self.nodes[-1]])
        return fx.GraphModule(self.module, graph, "Steps")


def _get_module(module: nn.Module, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _cut(module: nn.Module, opaque: Sequence[Callable[..., object]]) -> list[_Segment]:
    """The forward of a module in the most segments between which one value crosses; empty if it cannot be traced."""
    tracer = _ChildTracer(autowrap_functions=tuple(opaque), param_shapes_constant=True)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    try:
        graph = tracer.trace(module, concrete_args=defaults or None)
    except Exception:  # forwards of whatever models: one that cannot be traced is no chain
        return []
    (source, *_) = (node for node in graph.nodes if node.op == "placeholder")
    output = next(node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        return []

    steps: list[fx.Node] = []  # those that depend on the input, in order
    reached = {source}
    for node in graph.nodes:
        if node.op != "output" and reached.intersection(node.all_input_nodes):
            reached.add(node)
            steps.append(node)
    place = {node: number for number, node in enumerate(steps)} | {output: len(steps)}

    segments = []
    start = 0
    crossing = {source}
    for number, step in enumerate(steps):
        crossing.add(step)
        crossing = {
            node for node in crossing if any(place.get(user, -1) > number for user in node.users)
        }
        # Steps that call no module stay together.
        is_last_of_steps = step.op == "call_module" or _is_module(steps[number + 1 : number + 2])
        if crossing == {step} and is_last_of_steps:
            segments.append(_Segment(module, source, tuple(steps[start : number + 1])))
            source = step
            start = number + 1
    return segments if start == len(steps) else []


def _is_module(following: Sequence[fx.Node]) -> bool:
    return not following or following[0].op == "call_module"


def _stays_whole(module: nn.Module, segments: Sequence[_Segment]) -> bool:
    """Whether something branches inside, or its layers belong together: those of a class of its own, or but one."""
    heavy = [segment for segment in segments if segment.kind != "light"]
    children = [segment.child for segment in heavy]
    kinds = [_kind_of(child) for child in children if child is not None]
    if len(kinds) < len(children) or not kinds:
        return True
    if "layer" not in kinds:
        return False
    return not isinstance(module, nn.Sequential) or len(kinds) == 1
