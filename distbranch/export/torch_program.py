"""A network as a program of `torch.export`: `torch.export.load(FILE).module()(images)` gives {task name: logits}."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from distbranch.models.network import Network
from distbranch.models.units import fold_norms

METADATA_FILE = "distbranch.json"  # `extra_files` of torch.export.load


def trace_network(network: Network, *, input_type: str) -> ExportedProgram:
    """The program of a network, batch norm folded, for batches of any size.

    One with dense tasks takes images of any height and width too, if its units do.
    """
    size = network.architecture.image_size
    example = torch.zeros(
        (2, 3, *size), dtype=torch.uint8 if input_type == "uint8" else torch.float32
    )
    folded = fold_norms(network)
    axes: dict[int, Any] = {0: Dim("batch", min=1)}
    any_size = axes | {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about torch's own insides
        if network.tasks.dense:
            # torch has no question for it but to try: position embeddings, say, are of one size.
            with suppress(torch._dynamo.exc.UserError):
                return torch.export.export(folded, (example,), dynamic_shapes=(any_size,))
        return torch.export.export(folded, (example,), dynamic_shapes=(axes,))


def describe_input(program: ExportedProgram) -> list[str | int]:
    """The shape of the input, with names for what may be of any size: ["batch", 3, "height", "width"]."""
    name = program.graph_signature.user_inputs[0]
    node = next(node for node in program.graph.nodes if node.name == name)
    named = zip(("batch", "colour", "height", "width"), node.meta["val"].shape, strict=True)
    return [size if isinstance(size, int) else axis for axis, size in named]


def with_input_shape(metadata: dict[str, Any], program: ExportedProgram) -> dict[str, Any]:
    """The metadata of a file with the shape that its input has; as they are if they say nothing of it."""
    if "input" not in metadata:
        return metadata
    return metadata | {"input": metadata["input"] | {"shape": describe_input(program)}}


def write(file: Path, network: Network, metadata: dict[str, Any], *, input_type: str) -> None:
    """Write the program with the metadata beside it in the same file."""
    program = trace_network(network, input_type=input_type)
    metadata = with_input_shape(metadata, program)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
    file.write_bytes(content.getvalue())


def read_input_shape(file: Path) -> list[str | int]:
    """That of a written program, see `describe_input`."""
    kept: dict[str, Any] = {METADATA_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(io.BytesIO(file.read_bytes()), extra_files=kept)
    shape: list[str | int] = json.loads(kept[METADATA_FILE])["input"]["shape"]
    return shape


@torch.inference_mode()
def run(file: Path, images: Tensor) -> dict[str, Tensor]:
    """Logits of a written program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits: dict[str, Tensor] = torch.export.load(io.BytesIO(file.read_bytes())).module()(
            images
        )
    return logits
