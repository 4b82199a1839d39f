"""What runs of version 1 wrote, which had a network of its own for trees, for low rank and for policies, as what is written now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distbranch.models.backbone import BLOCKS, Backbone


def is_earlier(architecture: Mapping[str, Any]) -> bool:
    """Whether the JSON of an architecture is that of version 1."""
    return "version" not in architecture


def rename_earlier(
    architecture: Mapping[str, Any], state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON of an architecture and tensors by name (weights, or slots of an optimiser), both of version 1, as those of now."""
    fields = ("image_size", "width", "width_fraction", "low_rank")
    values = {"source": architecture["backbone"]}
    values |= {
        name: architecture[name] for name in fields if name in architecture
    }  # the first runs had no fractions
    backbone = Backbone.from_json(values)
    policy = architecture.get("policy")
    new = {
        "version": 2,
        "backbone": backbone.to_json(),
        "tasks": architecture["tasks"],
        "splits": architecture["tree"]["splits"] if "tree" in architecture else [],
        "policy": policy,
        "searches": backbone.source in BLOCKS and policy is None,
    }

    def rename(name: str) -> str:
        # layers.fc6.1.linear.weight, of low rank layers.fc6.basis.weight, stem.conv.weight, blocks.3.first.conv.weight
        name = re.sub(r"^layers\.(\w+)\.(\d+)\.", r"units.\1.\2.", name)
        name = re.sub(r"^layers\.(\w+)\.(basis|combination)\.", r"units.\1.0.product.\2.", name)
        name = re.sub(r"^layers\.(\w+)\.norm\.", r"units.\1.0.norm.", name)
        name = re.sub(r"^stem\.", "units.stem.0.", name)
        name = re.sub(
            r"^blocks\.(\d+)\.", lambda found: f"units.{backbone.blocks[int(found[1])]}.0.", name
        )
        # In the slots of an optimiser the name of the slot follows, `...conv.weight:exp_avg`.
        return re.sub(r"\.(conv|linear)\.(weight|bias)\b", r".product.\2", name)

    return new, {rename(name): value for name, value in state.items()}
