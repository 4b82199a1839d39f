"""A folded network written down as an ONNX graph, node by node: one Conv or Gemm per branch, one output per task.

The graph needs no exporter, which would trace it, so that names, shapes and the opset are what is said here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from distbranch.branching.tree import Tree
from distbranch.errors import UserError
from distbranch.export.onnx_model import METADATA_KEY
from distbranch.models.adashare_net import AdaShareNet, Block, Convolution
from distbranch.models.fold import FoldedNet
from distbranch.tasks import TaskSet

OPSET, IR_VERSION = 17, 8  # read by ONNX Runtime from 1.12 on
LARGEST_BYTES = 2_000_000_000  # of one protobuf file


def onnx_bytes(network: FoldedNet | AdaShareNet, metadata: dict[str, Any], *, input_type: str) -> bytes:
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
    graph = _Graph(network.tasks.names)
    image = graph.image(network, input_type)
    if isinstance(network, AdaShareNet):
        _add_ways(graph, network, image)
    else:
        _add_branches(graph, network, image)
    model = helper.make_model(
        helper.make_graph(graph.nodes, "distbranch", graph.inputs, graph.outputs, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="distbranch",
    )
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    if num_bytes < LARGEST_BYTES // 4:  # the checker copies the model
        onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _add_branches(graph: _Graph, network: FoldedNet, image: str) -> None:
    features = [image]
    layers, is_flat = network.architecture.layers, False
    for layer, branches, parents in zip(layers, network.layers.values(), network.parents, strict=True):
        assert isinstance(branches, nn.ModuleList)
        if layer.kind == "fc" and not is_flat:
            features, is_flat = graph.flat(features), True
        features = [
            graph.branch(f"{layer.name}.{number}", module, features[parent], pool=layer.pool_after)
            for number, (module, parent) in enumerate(zip(branches, parents, strict=True))
        ]
    graph.heads(network.architecture.tree, network.tasks, list(network.heads), features)


def _add_ways(graph: _Graph, network: AdaShareNet, image: str) -> None:
    """A residual network with a policy: every block once per way that executes it, with the same weights."""
    ways: dict[tuple[bool, ...], str] = {(): graph.stem(network.stem, image)}  # by the decisions so far
    for number, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        before = {row[:number] for row in network.policy}
        shortcuts = {
            way: graph.shortcut(f"block{number}.{i}", block, ways[way]) for i, way in enumerate(sorted(before))
        }
        after = sorted({row[: number + 1] for row in network.policy})
        ways = {
            way: graph.block(f"block{number}.{i}", block, ways[way[:-1]], shortcuts[way[:-1]])
            if way[-1]
            else shortcuts[way[:-1]]
            for i, way in enumerate(after)
        }
    tree, columns = network.architecture.tree, list(network.tasks.columns.values())
    heads, features = [], []
    for number, served in enumerate(tree.branches(tree.num_layers)):
        rows = [row for task in served for row in range(columns[task].start, columns[task].stop)]
        head = nn.Linear(network.heads.in_features, len(rows))
        head.weight.data, head.bias.data = network.heads.weight[rows], network.heads.bias[rows]
        heads.append(head)
        features.append(graph.mean(f"mean.{number}", ways[network.policy[served[0]]]))
    graph.heads(tree, network.tasks, heads, features)


class _Graph:
    """Nodes, weights, inputs and outputs so far. Names inside never meet those of tasks, which are the outputs' names."""

    def __init__(self, task_names: Sequence[str]) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._written: dict[nn.Module, list[str]] = {}
        self._prefix = "net/"
        while any(name.startswith(self._prefix) for name in task_names):
            self._prefix = "_" + self._prefix
        self.input_name = "images"
        while self.input_name in task_names:
            self.input_name += "_"

    def image(self, network: FoldedNet | AdaShareNet, input_type: str) -> str:
        """The input [batch, 3, H, W], normalised."""
        height, width = network.architecture.image_size
        kind = TensorProto.UINT8 if input_type == "uint8" else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(self.input_name, kind, ["batch", 3, height, width]))
        if input_type != "uint8":
            return self.input_name
        pixels = self._node("Cast", "pixels", [self.input_name], to=TensorProto.FLOAT)
        scale, shift = 1 / (255 * network.std.double()), -network.mean.double() / network.std.double()
        scaled = self._node("Mul", "scaled", [pixels, self._weight("scale", scale)])
        return self._node("Add", "normalised", [scaled, self._weight("shift", shift)])

    def flat(self, features: list[str]) -> list[str]:
        """[batch, C, h, w] to [batch, C * h * w]."""
        return [self._node("Flatten", f"flat.{number}", [name], axis=1) for number, name in enumerate(features)]

    def branch(self, name: str, module: nn.Module, x: str, *, pool: bool) -> str:
        """One branch of one layer; ReLU comes before the pooling, where the runtime fuses it with the convolution."""
        x = self._layer(name, module, x)
        x = self._node("Relu", f"{name}.relu", [x])
        return self._node("MaxPool", f"{name}.pool", [x], kernel_shape=[2, 2], strides=[2, 2]) if pool else x

    def stem(self, stem: Convolution, image: str) -> str:
        """The first convolution of a residual network, ReLU and the pooling after it."""
        x = self._node("Relu", "stem.relu", [self._layer("stem", stem.conv, image)])
        return self._node("MaxPool", "stem.pool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def shortcut(self, name: str, block: Block, x: str) -> str:
        """The way around a block."""
        return x if block.projection is None else self._layer(f"{name}.projection", block.projection.conv, x)

    def block(self, name: str, block: Block, x: str, shortcut: str) -> str:
        """A block that is executed."""
        assert block.first is not None
        assert block.second is not None
        x = self._node("Relu", f"{name}.first.relu", [self._layer(f"{name}.first", block.first.conv, x)])
        x = self._node("Add", f"{name}.sum", [self._layer(f"{name}.second", block.second.conv, x), shortcut])
        return self._node("Relu", f"{name}.relu", [x])

    def mean(self, name: str, x: str) -> str:
        """[batch, C, h, w] to [batch, C]."""
        return self._node("Flatten", f"{name}.flat", [self._node("GlobalAveragePool", name, [x])], axis=1)

    def heads(self, tree: Tree, tasks: TaskSet, heads: Sequence[nn.Module], features: list[str]) -> None:
        """One product per branch of the top layer; every task takes its outputs out of it: [batch] or [batch, K]."""
        served = tree.branches(tree.num_layers)
        scores = [self._layer(f"heads.{number}", head, features[number]) for number, head in enumerate(heads)]
        parents = tree.parents(tree.num_layers + 1)
        for number, (branch, task) in enumerate(zip(parents, tasks.tasks, strict=True)):
            start = sum(tasks.tasks[other].num_outputs for other in served[branch] if other < number)
            at = np.array(start) if task.kind == "binary" else np.arange(start, start + task.num_outputs)
            picked = self._integers(f"heads.{branch}.outputs.{number}", at)
            self.nodes.append(
                helper.make_node(
                    "Gather", [scores[branch], picked], [task.name], self._prefix + f"task.{number}", axis=1
                )
            )
            shape = ["batch"] if task.kind == "binary" else ["batch", task.num_outputs]
            self.outputs.append(helper.make_tensor_value_info(task.name, TensorProto.FLOAT, shape))

    def _layer(self, name: str, module: nn.Module, x: str) -> str:
        """A convolution or a linear layer; of a low-rank network, its basis and the combination."""
        if isinstance(module, nn.Sequential):
            basis, combination = module
            return self._layer(name, combination, self._layer(f"{name}.basis", basis, x))
        assert isinstance(module, nn.Conv2d | nn.Linear)
        operands = [x, *self._weights_of(name, module)]
        if isinstance(module, nn.Linear):
            return self._node("Gemm", name, operands, transB=1)
        size, margin, stride = list(module.kernel_size), int(module.padding[0]), list(module.stride)
        return self._node("Conv", name, operands, kernel_shape=size, pads=[margin] * 4, strides=stride)

    def _weights_of(self, name: str, module: nn.Conv2d | nn.Linear) -> list[str]:
        """The names of its weight and bias, which are written once however many nodes use them."""
        if module not in self._written:
            given = {"weight": module.weight, "bias": module.bias}
            self._written[module] = [
                self._weight(f"{name}.{key}", value) for key, value in given.items() if value is not None
            ]
        return self._written[module]

    def _node(self, kind: str, name: str, operands: list[str], **attributes: Any) -> str:
        name = self._prefix + name
        self.nodes.append(helper.make_node(kind, operands, [name], name, **attributes))
        return name

    def _weight(self, name: str, value: Tensor | None) -> str:
        assert value is not None
        array = value.detach().to("cpu", torch.float32).contiguous().numpy()
        return self._constant(name, array)

    def _integers(self, name: str, value: NDArray[Any]) -> str:
        return self._constant(name, value.astype(np.int64))

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(array, self._prefix + name))
        return self._prefix + name
