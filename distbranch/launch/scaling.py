"""How a run would scale: a step measured on this machine, its bytes on the wire, and an assumed network between the ranks.

A ring all-reduce of M bytes over N ranks takes 2 (N - 1) (M / (N * bandwidth) + latency). DDP starts it during the backward
pass, so only what exceeds that pass, but never less than the last bucket's sum, adds to the step. Images per rank stay equal.
Where they are fewer than `train.norm_batch`, every layer waits twice for the statistics of the ranks that make up a group.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.utils import clip_grad_norm_

from distbranch.config import Config
from distbranch.engine.cores import num_cores
from distbranch.engine.optimizer_and_schedule import build_optimizer
from distbranch.kinds import KINDS
from distbranch.kinds.dense import DenseKind
from distbranch.maps import AnyLabels, join_labels
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.models.norm import BatchNorm

FLOAT32, FLOAT64 = 4, 8
BUCKET_BYTES = 25 * 2**20  # of DDP
NUMS_OF_RANKS = (1, 2, 8, 32, 128, 512, 1024)
NUM_STEPS = 5


@dataclass(frozen=True)
class StepTime:
    """Seconds on this machine, of one rank that speaks with nobody: of the forward pass, and of the whole step."""

    forward_s: float
    whole_s: float

    @property
    def backward_s(self) -> float:
        """The backward pass, and the update, which is a few percent of it."""
        return self.whole_s - self.forward_s


@dataclass(frozen=True)
class Link:
    """The network between two ranks: payload bandwidth in Gbit/s and latency in microseconds per message."""

    gbit_s: float = 10.0
    latency_us: float = 50.0

    def all_reduce_s(self, num_bytes: int, num_ranks: int) -> float:
        """Seconds of a ring all-reduce."""
        hops = 2 * (num_ranks - 1)
        return hops * (num_bytes * 8 / num_ranks / (self.gbit_s * 1e9) + self.latency_us * 1e-6)


@dataclass(frozen=True)
class NormMessages:
    """What ranks tell each other of batch norm: `num_layers` messages forward and as many backward, `num_bytes` in all of either.

    group_size: images that are normalised together.
    """

    num_layers: int
    num_bytes: int
    group_size: int

    def wait_s(self, link: Link, num_ranks: int, images_per_rank: int) -> float:
        """Seconds of a step that ranks wait for them; none where a rank has whole groups."""
        if not self.num_layers:  # of layer norms, which talk to nobody
            return 0.0
        team = min(num_ranks, -(-self.group_size // images_per_rank))
        return 2 * self.num_layers * link.all_reduce_s(self.num_bytes // self.num_layers, team)


@dataclass(frozen=True)
class Scale:
    """What is predicted for one number of ranks; `efficiency` is against one rank that speaks with nobody."""

    num_ranks: int
    step_s: float
    images_per_s: float
    efficiency: float
    decision_s: float


def norm_messages(config: Config, architecture: Architecture) -> NormMessages:
    """Those of a network: one for all branches of a layer, else one for every batch norm."""
    network = Network(architecture)
    norms = []
    num_layers = 0
    for name in architecture.backbone.names:
        copies = network.copies(name)
        own = [part for copy in copies for part in copy.modules() if isinstance(part, BatchNorm)]
        is_one_message = copies[0].has_one_norm and not architecture.has_policy
        num_layers += 1 if is_one_message else len(own)
        norms += own
    # Those of dense heads, and of what mixes tasks.
    in_units = set(map(id, norms))
    others = [one for one in network.modules() if isinstance(one, BatchNorm)]
    others = [one for one in others if id(one) not in in_units]
    num_layers += len(others)
    norms += others
    num_bytes = sum(2 * norm.num_features + 1 for norm in norms) * FLOAT64
    return NormMessages(
        num_layers, num_bytes, min(config.train.norm_batch, config.train.batch_size)
    )


def _make_labels(architecture: Architecture, num_images: int, device: torch.device) -> AnyLabels:
    """Labels of every task; maps of the size of the images, with codes of 0 throughout."""
    maps = {}
    for task in architecture.dense_tasks:
        kind = KINDS[task.kind]
        assert isinstance(kind, DenseKind)
        channels = [kind.channels] if kind.channels > 1 else []
        shape = (num_images, *channels, *architecture.image_size)
        maps[task.name] = torch.zeros(shape, dtype=torch.uint8, device=device)
    return join_labels(torch.zeros(num_images, len(architecture.tasks), device=device), maps)


def measure_step(
    config: Config, architecture: Architecture, *, device: torch.device, bf16: bool
) -> StepTime:
    """Train a few steps of one rank's share on random images, with one rank's threads and the forward pass in bf16 or not."""
    num_images = max(
        2, config.train.batch_size // config.launch.most_workers
    )  # batch norm alone needs two
    network = Network(architecture).to(device).train()
    optimizer = build_optimizer(network, config.optim, baseline=network.baseline)
    images = torch.randint(
        0, 256, (num_images, 3, *architecture.image_size), dtype=torch.uint8, device=device
    )
    labels = _make_labels(architecture, num_images, device)

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = network(images, flat=True)
        return network.tasks.compute_losses(outputs, labels).sum() / num_images

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(forward())
        clip_grad_norm_(network.parameters(), config.train.clip_norm)
        optimizer.step()

    before = torch.get_num_threads()
    torch.set_num_threads(
        config.launch.threads or max(1, num_cores() // config.launch.most_workers)
    )
    measured = StepTime(_measure_call(forward, device), _measure_call(step, device))
    torch.set_num_threads(before)
    return measured


def _measure_call(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; the first one does not count, for memory is set aside and kernels are chosen."""
    times = []
    for _ in range(NUM_STEPS + 1):
        begin = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def predict(
    step: StepTime,
    link: Link,
    *,
    num_parameters: int,
    num_tasks: int,
    images_per_rank: int,
    norm: NormMessages,
) -> list[Scale]:
    """Steps and decisions of 1 to 1,024 ranks, each with `images_per_rank` images."""
    gradient = num_parameters * FLOAT32
    last_bucket = min(gradient, BUCKET_BYTES)
    scales = []
    for ranks in NUMS_OF_RANKS:
        exposed = max(
            link.all_reduce_s(gradient, ranks) - step.backward_s,
            link.all_reduce_s(last_bucket, ranks),
        )
        seconds = step.whole_s + exposed + norm.wait_s(link, ranks, images_per_rank)
        decision = link.all_reduce_s(pair_bytes(num_tasks), ranks)
        scales.append(
            Scale(
                ranks, seconds, ranks * images_per_rank / seconds, step.whole_s / seconds, decision
            )
        )
    return scales


def pair_bytes(num_tasks: int) -> int:
    """Bytes of the pair statistics that are summed once per decision: agreements, pairs and signs."""
    return 3 * num_tasks**2 * FLOAT64
