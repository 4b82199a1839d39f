"""A network as a program of `torch.export`: `torch.export.load(FILE).module()(images)` gives {task name: logits}."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from distbranch.models.network import Network
from distbranch.models.units import fold_norms

METADATA_FILE = "distbranch.json"  # `extra_files` of torch.export.load


def trace_network(network: Network, *, input_type: str) -> ExportedProgram:
    """The program of a network, batch norm folded, for batches of any size."""
    size = network.architecture.image_size
    example = torch.zeros(
        (2, 3, *size), dtype=torch.uint8 if input_type == "uint8" else torch.float32
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own insides
        return torch.export.export(
            fold_norms(network), (example,), dynamic_shapes=({0: Dim("batch", min=1)},)
        )


def write(file: Path, network: Network, metadata: dict[str, Any], *, input_type: str) -> None:
    """Write the program with the metadata beside it in the same file."""
    program = trace_network(network, input_type=input_type)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
    file.write_bytes(content.getvalue())


@torch.inference_mode()
def run(file: Path, images: Tensor) -> dict[str, Tensor]:
    """Logits of a written program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: dict[str, Tensor] = torch.export.load(io.BytesIO(file.read_bytes())).module()(
            images
        )
    return logits
