"""What an architecture costs: weights as the paper counts them, all parameters, multiply-adds per image."""

from __future__ import annotations

from distbranch.models.backbones import Architecture, LayerShape
from distbranch.models.low_rank import basis_size, output_basis_size


def num_weights(architecture: Architecture) -> int:
    """Weights with batch norm folded and biases not counted, heads included: the count of the paper's tables."""
    layers = sum(_layer_weights(architecture, shape) * count for shape, count in _counted(architecture))
    return layers + _head_weights(architecture)


def num_parameters(architecture: Architecture) -> int:
    """Everything that is trained: weights, batch norm's scale and shift, the heads' biases."""
    norms = sum(2 * shape.width * count for shape, count in _counted(architecture))
    return num_weights(architecture) + norms + architecture.num_outputs


def multiply_adds(architecture: Architecture) -> int:
    """Multiply-adds of one image's way through all branches and heads; batch norm folded."""
    layers = sum(
        _layer_weights(architecture, shape) * shape.height * shape.length * count
        for shape, count in _counted(architecture)
    )
    return layers + _head_weights(architecture)


def _counted(architecture: Architecture) -> list[tuple[LayerShape, int]]:
    """Every layer's shape and its number of branches."""
    return [
        (shape, architecture.tree.num_branches(number)) for number, shape in enumerate(architecture.shapes, start=1)
    ]


def _layer_weights(architecture: Architecture, shape: LayerShape) -> int:
    inputs = shape.num_inputs * (9 if shape.layer.kind == "conv" else 1)
    return basis_size(shape) * (inputs + shape.width) if architecture.low_rank else inputs * shape.width


def _head_weights(architecture: Architecture) -> int:
    top, outputs = architecture.shapes[-1].width, architecture.num_outputs
    return output_basis_size(architecture) * (top + outputs) if architecture.low_rank else top * outputs
