"""Widening (Eq. 3-5): the state of a wider network, made by copying tensors by branch name; the function computed stays the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from distbranch.branching.tree import Tree


def widen(state: Mapping[str, Tensor], old: Tree, new: Tree) -> dict[str, Tensor]:
    """The state of the network of `new`, every branch a copy of the one that served its tasks in `old`.

    Args:
        state: tensors by name; `layers.<layer>.<branch>.<rest>` are copied per branch, all others as they are. It may be a
            network's state or one slot of an optimiser (momentum, say) keyed by parameter name.
        old: the tree of `state`.
        new: `old` with further splits.
    """
    origins = {name: _origins(old, new, layer) for layer, name in enumerate(new.layers, start=1)}
    copies: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith("layers."):
            copies[key] = value.clone()
            continue
        _, name, branch, rest = key.split(".", 3)
        for number, origin in enumerate(origins[name]):
            if origin == int(branch):
                copies[f"layers.{name}.{number}.{rest}"] = value.clone()
    return copies


def _origins(old: Tree, new: Tree, layer: int) -> list[int]:
    """For every branch of a layer of the new tree, the branch of the old tree that served all its tasks."""
    before = [set(tasks) for tasks in old.branches(layer)]
    origins = []
    for tasks in new.branches(layer):
        serving = [number for number, served in enumerate(before) if served.issuperset(tasks)]
        if not serving:
            raise ValueError(
                f"Widening only divides branches, but tasks {list(tasks)} share layer {new.layers[layer - 1]} in the new tree "
                f"and did not in the old one. Give a tree that is the old one with further splits."
            )
        origins.append(serving[0])
    return origins
