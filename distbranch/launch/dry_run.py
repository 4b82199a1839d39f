"""What a run would do, without starting anything: sizes, bytes on the wire, resources."""

from dataclasses import dataclass

import torch

from distbranch.config import Config
from distbranch.data.shards import read_dataset
from distbranch.data.sources import parse_options
from distbranch.engine.distributed import wants_gpu
from distbranch.launch.prepare import check_data, must_be_packed, with_absolute_paths
from distbranch.launch.ray_cluster import cluster_address
from distbranch.models.backbones import Architecture
from distbranch.models.cost import multiply_adds, num_parameters, num_weights

FLOAT32, FLOAT64 = 4, 8


@dataclass(frozen=True)
class Plan:
    """Lines of `distbranch train --dry-run`: what is asked about, and the answer."""

    lines: tuple[tuple[str, str], ...]


def plan(config: Config) -> Plan:
    """Check data, configuration and this machine, and count what the run would need.

    Raises:
        UserError: what is not as it should be.
    """
    config = with_absolute_paths(config)
    launch = config.launch
    if must_be_packed(config):
        source = parse_options(config.data.pack or {}).open()
        return Plan(
            (("data", f"{config.data.path} would be packed first ({source.num_samples or 'unknown'} samples)"),)
        )
    info = read_dataset(str(config.data.path))
    check_data(config, info)
    size = config.data.image_size or info.image_size
    thin = Architecture.thin(config.model.backbone, config.model.width, size, info.tasks)
    parameters, num_tasks = num_parameters(thin), len(info.tasks)
    address = cluster_address(launch)
    device = "cuda" if address is None and wants_gpu(launch) else launch.device
    samples = ", ".join(f"{name} {split.num_samples:,}" for name, split in info.splits.items())
    lines = (
        ("data", f"{info.path}: {samples}"),
        ("tasks", f"{num_tasks}"),
        ("images", f"{size[0]}x{size[1]} (height x width)"),
        ("network", f"{config.model.backbone}, width {config.model.width or 'full'}, before any widening"),
        ("parameters", f"{parameters:,} ({num_weights(thin):,} weights with batch norm folded)"),
        ("multiply-adds per image", f"{multiply_adds(thin):,}"),
        ("ranks", f"{launch.workers} on {address or 'this machine'}, device {device}"),
        ("gradients on the wire per step and rank", f"{parameters * FLOAT32:,} bytes"),
        ("margins and losses per step and rank", f"{3 * num_tasks * FLOAT64:,} bytes"),
        ("pair statistics per decision and rank", f"{3 * num_tasks**2 * FLOAT64:,} bytes"),
        ("steps", f"{config.train.iterations:,} of {config.train.batch_size} images"),
        ("run directory", str(config.run_directory)),
        ("torch", torch.__version__),
    )
    return Plan(lines)
