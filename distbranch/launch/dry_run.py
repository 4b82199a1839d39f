"""What a run would do, without starting anything: sizes, bytes on the wire, resources."""

from dataclasses import dataclass

import torch

from distbranch.config import Config
from distbranch.data.balance import describe_balance
from distbranch.data.shards import DatasetInfo
from distbranch.data.sources import parse_options
from distbranch.engine.initialisation import first_architecture, read_given_tree, read_own_tree
from distbranch.engine.process_group import has_bf16, wants_gpu
from distbranch.engine.run_start import begins_anew, changes_iterations, check_run
from distbranch.engine.scout import make_scout_config
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.prepare import (
    check_data,
    choose_fresh_name,
    download_run,
    is_to_be_packed,
    read_packed_data,
    warn_ignored_settings,
    with_absolute_paths,
)
from distbranch.launch.scaling import (
    FLOAT32,
    FLOAT64,
    Link,
    NormMessages,
    Scale,
    StepTime,
    measure_step,
    norm_messages,
    pair_bytes,
    predict,
)
from distbranch.models.architecture import Architecture, multiply_adds, num_parameters, num_weights


@dataclass(frozen=True)
class Plan:
    """Lines of `distbranch train --dry-run`: what is asked about, and the answer."""

    lines: tuple[tuple[str, str], ...]
    scales: tuple[Scale, ...] = ()


def plan_run(config: Config, link: Link, *, fresh: bool = False) -> Plan:
    """Check data, configuration and this machine, count what the run would need, and predict how it would scale.

    A run that was begun is counted as the tree it has grown to; a `fresh` one is another run.

    Raises:
        UserError: what is not as it should be.
    """
    config = with_absolute_paths(config)
    warn_ignored_settings([config])
    if fresh:
        config = choose_fresh_name(config)
    download_run(config)
    launch = config.launch

    # Before the data are packed nobody knows their tasks, and so not the network.
    if is_to_be_packed(config):
        source = parse_options(config.data.pack or {}).open()
        _check_run_directory(config)
        num_samples = source.num_samples or "unknown"
        told = f"{config.data.path} would be packed first ({num_samples} samples)"
        return Plan((("data", told),))
    info = read_packed_data(config)
    check_data(config, info)
    _check_run_directory(config)

    # The network as it stands: of a run that was begun the tree it has grown to.
    architecture, tree = first_architecture(config, info), read_own_tree(config)
    if tree is not None and not architecture.has_policy:
        architecture = architecture.with_tree(tree)

    # What a step costs here, and what it would send.
    here = torch.device("cuda" if wants_gpu(launch) else "cpu")
    precision = config.train.precision
    if precision == "auto":
        precision = "bf16" if has_bf16(here) else "fp32"
    step = measure_step(config, architecture, device=here, bf16=precision == "bf16")
    share = max(1, config.train.batch_size // launch.most_workers)
    norm = norm_messages(config, architecture)
    # Of a cluster nobody knows before it is joined whether its nodes have GPUs.
    place, device = "this machine", here.type
    if address := cluster_address(launch):
        place, device = address, launch.device
    lines = (
        *(("data", f"{member.path}: {_format_samples(member)}") for member in info.members),
        *_describe_balances(config, info),
        *_describe_network(config, architecture),
        ("ranks", f"{launch.workers} on {place}, device {device}"),
        *_describe_messages(architecture, norm, share),
        *_describe_scout(config, info, step),
        *_describe_later_tree(config, architecture),
        ("steps", f"{config.train.iterations:,} of {config.train.batch_size} images"),
        ("run directory", config.run_url or str(config.run_directory)),
        ("torch", torch.__version__),
        (
            f"a step of one rank's {share} images in {precision}, measured here",
            f"{1000 * step.whole_s:.1f} ms ({1000 * step.forward_s:.1f} ms of it forward)",
        ),
        ("time", f"{describe_duration(estimate_seconds(config, info, step))} on this machine"),
        ("assumed between ranks", f"{link.gbit_s:g} Gbit/s, {link.latency_us:g} us"),
    )
    scales = predict(
        step,
        link,
        num_parameters=num_parameters(architecture),
        num_tasks=len(info.tasks),
        images_per_rank=share,
        norm=norm,
    )
    return Plan(lines, tuple(scales))


def _describe_network(config: Config, architecture: Architecture) -> list[tuple[str, str]]:
    """What it is, and its costs."""
    height, width = architecture.image_size
    backbone = f"{config.model.backbone}, {config.model.width_text}"
    parameters = f"{num_parameters(architecture):,} ({_describe_weights(architecture)})"
    return [
        ("tasks", f"{len(architecture.tasks)}"),
        ("images", f"{height}x{width} (height x width)"),
        ("network", f"{backbone}, {_describe_architecture(architecture)}"),
        ("parameters", parameters),
        ("multiply-adds per image", f"{multiply_adds(architecture):,}"),
        *_describe_dense_heads(architecture),
    ]


def _describe_messages(
    architecture: Architecture, norm: NormMessages, share: int
) -> list[tuple[str, str]]:
    """What a rank with `share` images of a step would send."""
    num_tasks = len(architecture.tasks)
    # Batch norm talks only where a group of its images lies on several ranks: one message forward, one backward.
    norm_bytes = 2 * norm.num_bytes if share < norm.group_size else 0
    norm_told = f"{norm_bytes:,} bytes ({norm.group_size} images a group)"
    gradient_bytes = num_parameters(architecture) * FLOAT32
    return [
        ("gradients on the wire per step and rank", f"{gradient_bytes:,} bytes"),
        ("margins and losses per step and rank", f"{3 * num_tasks * FLOAT64:,} bytes"),
        ("statistics of batch norm per step and rank", norm_told),
        ("pair statistics per decision and rank", f"{pair_bytes(num_tasks):,} bytes"),
    ]


def _describe_balances(config: Config, info: DatasetInfo) -> list[tuple[str, str]]:
    """What data.balance changes in every data set: an epoch stays as long as it is."""
    lines = []
    for member in info.members:
        for name, power in config.data.balance.items():
            counts = member.splits["train"].labels.get(name)
            if counts is not None:
                lines.append(
                    (f"balance of '{name}'", f"{member.path}: {describe_balance(counts, power)}")
                )
    return lines


def _describe_dense_heads(architecture: Architecture) -> list[tuple[str, str]]:
    """What heads take of the numbers above, where they may take the most."""
    if not architecture.dense_tasks:
        return []
    cost = architecture.measure_heads()
    told = f"{cost.parameters:,} of these parameters, {cost.multiply_adds:,} of the multiply-adds"
    return [(f"heads ({architecture.dense_head.name})", told)]


def _describe_scout(config: Config, info: DatasetInfo, step: StepTime) -> list[tuple[str, str]]:
    """Of a run with a scout what that is and costs; `step` is one of the thin network while the scout has not decided."""
    if not config.method.has_scout:
        return []
    if read_own_tree(config) is not None:
        return [("scout", "has decided on the tree")]
    told = (
        f"{config.method.scout}, which decides on the tree first; counted here is the thin network"
    )
    if config.method.scout is None:
        scout = make_scout_config(config)
        cost = first_architecture(scout, info).cost()
        told = (
            f"trained first, {scout.train.iterations:,} steps of {scout.train.batch_size} images at {cost.multiply_adds:,} multiply-adds "
            f"({describe_duration(estimate_seconds(scout, info, step))} more); it decides on the tree, and counted here is the thin "
            "network"
        )
    return [("scout", told)]


def _describe_later_tree(config: Config, network: Architecture) -> list[tuple[str, str]]:
    """Of a run that has yet to take the tree it is given what that costs."""
    if not config.widens or config.decides or network.splits:
        return []
    cost = network.with_tree(read_given_tree(config, network)).cost()
    told = (
        f"taken after step {config.method.widen_at:,}, with {cost.weights:,} weights and {cost.multiply_adds:,} multiply-adds; counted "
        "here is the thin network"
    )
    return [("tree", told)]


def estimate_seconds(config: Config, info: DatasetInfo, step: StepTime) -> float:
    """Seconds of all steps and evaluations; a tree that grows takes longer, and so does reading slow storage."""
    train = config.train
    num_images = {name: split.num_samples for name, split in info.splits.items()}
    evaluated = num_images.get("val", 0) + num_images.get("test", 0)  # at the end
    if train.evaluate_every:
        evaluated += (train.iterations - 1) // train.evaluate_every * num_images.get("val", 0)
    # An evaluation is the forward pass alone, and each rank has its share of the images.
    return train.iterations * step.whole_s + evaluated * step.forward_s / train.batch_size


def describe_duration(seconds: float) -> str:
    """`about 12 minute(s)`, `about 3 h 23 min`."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"about {hours:,} h {minutes} min"
    return f"about {minutes} minute(s)" if minutes else "less than a minute"


def _check_run_directory(config: Config) -> None:
    """Refuse what `train` refuses: a run of another configuration that came to something."""
    if not begins_anew(config) and not changes_iterations(config):
        check_run(config)


def _format_samples(info: DatasetInfo) -> str:
    return ", ".join(f"{name} {split.num_samples:,}" for name, split in info.splits.items())


def _describe_weights(architecture: Architecture) -> str:
    stored = num_weights(architecture)
    if not architecture.has_deltas:
        return f"{stored:,} weights with batch norm folded"
    return f"{stored:,} weights stored, {num_weights(architecture.folded):,} folded for serving"


def _describe_architecture(architecture: Architecture) -> str:
    if architecture.searches:
        return f"a policy to be searched for over {architecture.num_blocks} blocks"
    policy = architecture.policy
    if policy is not None:
        skipped = sum(not executes for row in policy for executes in row)
        return (
            f"{skipped} of {len(policy) * architecture.num_blocks} decisions of tasks skip a block"
        )
    if architecture.backbone.low_rank:
        return "every layer of low rank"
    if architecture.baseline is not None:
        return "a network to compare with, neither a tree nor a policy"
    tree = architecture.tree
    numbers = [str(tree.num_branches(layer)) for layer in range(1, tree.num_layers + 1)]
    return f"branches {'-'.join(numbers)}"
