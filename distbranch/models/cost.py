"""What an architecture costs: weights as the paper counts them, all parameters, multiply-adds per image."""

from __future__ import annotations

from distbranch.models.backbones import Architecture, LayerShape
from distbranch.models.low_rank import basis_size, output_basis_size
from distbranch.models.residual import STEM_SIZE, AnyArchitecture, BlockShape, ResidualArchitecture, halved


def num_weights(architecture: AnyArchitecture) -> int:
    """Weights with batch norm folded and biases not counted, heads included: the count of the paper's tables."""
    if isinstance(architecture, ResidualArchitecture):
        stem = _stem_weights(architecture)
        return stem + sum(part[0] for part in _convolutions(architecture)) + _head_weights(architecture)
    layers = sum(_layer_weights(architecture, shape) * count for shape, count in _counted(architecture))
    return layers + _head_weights(architecture)


def num_parameters(architecture: AnyArchitecture) -> int:
    """Everything that is trained: weights, batch norm's scale and shift, the heads' biases."""
    if isinstance(architecture, ResidualArchitecture):
        channels = architecture.stage_widths[0] + sum(part[1] for part in _convolutions(architecture))
        return num_weights(architecture) + 2 * channels + architecture.num_outputs
    norms = sum(2 * shape.width * count for shape, count in _counted(architecture))
    return num_weights(architecture) + norms + architecture.num_outputs


def multiply_adds(architecture: AnyArchitecture) -> int:
    """Multiply-adds of one image's way through all branches (or all ways) and heads; batch norm folded."""
    if isinstance(architecture, ResidualArchitecture):
        height, length = map(halved, architecture.image_size)
        stem = _stem_weights(architecture) * height * length
        return stem + sum(part[2] for part in _convolutions(architecture)) + _head_weights(architecture)
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


def _head_weights(architecture: AnyArchitecture) -> int:
    top, outputs = architecture.shapes[-1].width, architecture.num_outputs
    if isinstance(architecture, Architecture) and architecture.low_rank:
        return output_basis_size(architecture) * (top + outputs)
    return top * outputs


def _stem_weights(architecture: ResidualArchitecture) -> int:
    return 3 * STEM_SIZE**2 * architecture.stage_widths[0]


def _convolutions(architecture: ResidualArchitecture) -> list[tuple[int, int, int]]:
    """Weights, channels of batch norms and multiply-adds of every block: what it executes for some way, and its projection."""
    found = []
    for number, shape in enumerate(architecture.shapes):
        coming, executing = architecture.num_ways(number)
        function, projection = _function_weights(shape), shape.num_inputs * shape.width * shape.projects
        channels = shape.width * (2 * (executing > 0) + shape.projects)
        positions = shape.height * shape.length
        products = positions * (function * executing + projection * coming)
        found.append((function * (executing > 0) + projection, channels, products))
    return found


def _function_weights(shape: BlockShape) -> int:
    return 9 * (shape.num_inputs + shape.width) * shape.width
