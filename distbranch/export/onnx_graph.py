"""A network as an ONNX file, by torch's own exporter: one output per task, of the task's name."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from distbranch.errors import UserError
from distbranch.export.onnx_model import METADATA_KEY
from distbranch.export.torch_program import trace_network, with_input_shape
from distbranch.models.network import Network

LARGEST_BYTES = 2_000_000_000  # of one protobuf file


def onnx_bytes(network: Network, metadata: dict[str, Any], *, input_type: str) -> bytes:
    """The file of a network. `input_type`: `uint8` (normalised inside) or `float` (normalised outside).

    Raises:
        UserError: the network is too large for one file.
    """
    num_bytes = sum(parameter.numel() * 4 for parameter in network.parameters())
    if num_bytes > LARGEST_BYTES:
        raise UserError(
            f"An ONNX file holds at most 2 GB, but the weights of this network take {num_bytes / 1e9:.1f} GB. "
            "Use --format torch, or --tasks to export fewer branches."
        )
    program = trace_network(network, input_type=input_type)
    metadata = with_input_shape(metadata, program)
    with silence_exporters():
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    assert exported is not None
    model: Any = exported.model_proto
    _name_outputs(model.graph, network.tasks.names)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(metadata))
    content: bytes = model.SerializeToString()
    return content


def _name_outputs(graph: Any, task_names: Sequence[str]) -> None:
    """Name input and outputs; what is inside gets a prefix that no task has, for a task may be called like a node."""
    prefix = "net/"
    while any(name.startswith(prefix) for name in task_names):
        prefix = "_" + prefix
    input_name = "images"
    while input_name in task_names:
        input_name += "_"
    names = {graph.input[0].name: input_name}
    for output, task in zip(graph.output, task_names, strict=True):
        names[output.name] = task
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, prefix + value.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [
                name and names.get(name, prefix + name) for name in ends
            ]  # an input that is left out has no name


@contextmanager
def silence_exporters() -> Iterator[None]:
    """Without what exporters and converters tell about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
