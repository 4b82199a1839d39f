"""Every setting of a run: nested pydantic models with a help text, a default and a range each.

User input is checked here, once; past this border nobody re-checks.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from distbranch.config.data import DataConfig
from distbranch.config.network import (
    BASELINES,
    AdaShareConfig,
    Count,
    MethodConfig,
    ModelConfig,
    Place,
    Positive,
    PositiveOrZero,
    Section,
)
from distbranch.config.paths import copy_of, expand_places, is_remote, join_url
from distbranch.config.training import LossConfig, OptimConfig, TrainConfig
from distbranch.config.unread import list_ignored
from distbranch.errors import UserError
from distbranch.plugins import load_plugins, make_absolute

Tracker = Literal["tensorboard", "wandb", "mlflow"]

# A run that is resumed may change these: they say where it computes, what it writes and how much it bears, not what it learns.
# Every other difference would make it another run.
KEYS_FREE_TO_CHANGE = (
    "plugins",  # by their sha256 they are compared, not by where they lie
    "run.directory",
    "data.pack",
    "data.workers",
    "data.prefetch",
    "data.cache_directory",
    "data.cache_gib",
    "data.on_bad_sample",
    "data.max_bad_samples",
    "train.accumulate",
    "train.log_every",
    "train.profile",
    "track",
    "launch.",
)


def _check_writable_place(directory: str) -> str:
    # Data may be read from http, but nobody can write there.
    if is_remote(directory) and not re.match(r"(s3|gs)://[^/?]", directory):
        raise ValueError(
            f"should be a folder that all nodes see or a URL such as s3://BUCKET/runs or gs://BUCKET/runs, found {directory}"
        )
    return directory


def _check_folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"should be made of letters, digits, '.', '_' and '-', found '{name}'")
    return name


class RunConfig(Section):
    """Where the run lives."""

    name: Annotated[str, AfterValidator(_check_folder_name)] | None = None
    """Name of the run directory; the config file's name if empty."""
    directory: Annotated[Place, AfterValidator(_check_writable_place)] = "runs"
    """Folder (shared by all nodes) or URL (s3, gs) in which the run directory is made; of a URL every process keeps a copy."""


class MetricsConfig(Section):
    """What is measured beside the usual metrics."""

    byte_angles: bool = False
    """Of normals: also the angles between bytes that AdaShare publishes, which are no angles of surfaces (byte_mean_angle, ...)."""


class LaunchConfig(Section):
    """Where the ranks run. What is computed stays the same but for rounding, which `threads`, `device` and the number of ranks change.

    Rounding is enough for another tree after thousands of steps; a run resumed with another one says so.
    """

    workers: int | tuple[int, int] = Field(1, json_schema_extra={"range": ">= 1 | [>= 1, >= 1]"})
    """Ranks. 1: this process, or as many as torchrun started; more: Ray Train, or torchrun with as many; [least, most]: as many
    as Ray has room for."""
    address: str | None = None
    """An existing Ray cluster: HOST:6379, `auto`, or `local` to start one here; empty: that of RAY_ADDRESS, else `local`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: GPUs if there are any. On GPUs fp32 is multiplied in TF32, by cuDNN's fastest kernels."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray sets aside for each worker."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """GPUs for each worker on GPUs; a part of one shares it (ranks then talk by gloo, which is slow)."""
    placement: Literal["pack", "spread"] = "pack"
    """Workers on few nodes (less traffic between them) or on as many as there are."""
    wait_for_nodes_min: PositiveOrZero = 0.0
    """Minutes to wait for nodes to join (an autoscaler is asked for them)."""
    resize_every_min: Positive = 1.0
    """With [least, most]: minutes between two looks for more nodes."""
    threads: Count | None = None
    """Threads per rank; cores / ranks of the machine if empty, whatever OMP_NUM_THREADS says, which torchrun and Ray set too.
    Another number rounds differently: give one if other machines should repeat the results."""
    timeout_min: Positive = 10.0
    """Minutes that a rank waits for the others."""
    max_failures: int = Field(3, ge=-1)
    """Restarts after a lost worker; -1: without limit."""

    @field_validator("workers", mode="before")
    @classmethod
    def _is_a_number_of_ranks(cls, workers: Any) -> Any:
        numbers = [workers, workers]
        if isinstance(workers, list | tuple) and len(workers) == 2:
            numbers = list(workers)
        # Not isinstance, by which `true` would be 1.
        are_whole = [type(number) is int for number in numbers]
        if not all(are_whole) or not 1 <= numbers[0] <= numbers[1]:
            raise ValueError(
                f"should be a whole number from 1, or [least, most] of them, found {workers!r}"
            )
        return workers

    @property
    def least_workers(self) -> int:
        """Ranks with which the run still continues."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def most_workers(self) -> int:
        """Ranks with which the run begins if the cluster has room for them."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


class Config(Section):
    """The whole configuration of one run."""

    # First, so that what is chosen by name is there when the other sections are checked.
    plugins: tuple[str, ...] = ()
    """Python files, or modules, of your own that register affinities, decisions, backbones, kinds of tasks, losses or optimisers
    (distbranch/PLUGINS.md)."""
    # 63 bits: torch and JSON readers hold it as a signed integer.
    seed: int = Field(0, ge=0, le=2**63 - 1)
    """Seed of everything: weights, order of samples, clustering."""
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    adashare: AdaShareConfig = AdaShareConfig()
    train: TrainConfig = TrainConfig()
    loss: LossConfig = LossConfig()
    metrics: MetricsConfig = MetricsConfig()
    optim: OptimConfig = OptimConfig()
    launch: LaunchConfig = LaunchConfig()
    track: tuple[Tracker, ...] = Field(
        ("tensorboard",), json_schema_extra={"range": "[tensorboard | wandb | mlflow, ...]"}
    )
    """Where the lines of metrics.jsonl are shown too: TensorBoard's files in the run directory, and the trackers Weights & Biases
    (extra `wandb`) and MLflow (extra `mlflow`), which are set up by variables of their own (cluster/monitoring.md); [] for none."""

    @field_validator("track", mode="before")
    @classmethod
    def _are_trackers(cls, track: Any) -> Any:
        names = [track] if isinstance(track, str) else track
        known = get_args(Tracker)
        if names is None:
            return ()
        if not isinstance(names, list | tuple) or not set(map(str, names)) <= set(known):
            raise ValueError(
                f"should be a list of {', '.join(known)}, or [] for none, found {track!r}"
            )
        return tuple(dict.fromkeys(names))

    @field_validator("plugins", mode="before")
    @classmethod
    def _are_loaded(cls, plugins: Any) -> Any:
        names = [plugins] if isinstance(plugins, str) else plugins
        if names is None:
            return ()
        if not isinstance(names, list | tuple) or not all(
            isinstance(name, str) and name for name in names
        ):
            raise ValueError(
                f"should be Python files or modules, such as [mine.py] or package.module, found {plugins!r}"
            )
        # Each once, in the order in which they are given.
        found = tuple(dict.fromkeys(map(make_absolute, expand_places(list(names)))))
        try:
            load_plugins(found)
        except UserError as error:  # a part of the sentence about all keys
            raise ValueError(str(error).removesuffix(".")) from None
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        name = self.method.name
        backbone = self.model.backbone
        if self.train.batch_size < self.launch.most_workers * self.train.accumulate:
            raise ValueError(
                f"train.batch_size should give every rank an image per pass; {self.train.batch_size} images "
                f"over launch.workers={self.launch.most_workers} and train.accumulate={self.train.accumulate} do not"
            )
        # The paper gives numbers of basis filters for VGG-16 alone.
        if name == "low-rank" and backbone != "vgg16":
            raise ValueError(
                f"method.name=low-rank has the basis filters of the paper for model.backbone=vgg16, found {backbone}"
            )
        if name in BASELINES and not backbone.startswith("resnet"):
            raise ValueError(
                f"method.name={name} mixes tasks stage by stage of a ResNet, found model.backbone={backbone}; use resnet18, resnet34 "
                "or resnet50"
            )
        if self.method.init != "random" and not backbone.startswith("vgg"):
            raise ValueError(
                f"method.init={self.method.init} chooses filters for model.backbone=vgg16 or vgg9, found {backbone}; leave it out, "
                "and give weights of the same network in model.pretrained"
            )
        # A setting that would be ignored in silence is taken for a wrong method.name.
        if name != "adashare" and self.adashare != AdaShareConfig():
            raise ValueError(
                f"the section adashare is for method.name=adashare, found {name}; leave it out"
            )
        if self.searches and (self.train.judges_evaluations or self.train.ema):
            raise ValueError(
                "a search for a policy ends with what its last cycle found: leave out train.keep, train.patience and train.ema, and "
                "give them to the run that trains with the policy (adashare.policy)"
            )
        self._has_a_loss_that_suits()
        self._begins_from_a_run_that_is_read()
        self._trains_what_it_has()
        return self

    def _begins_from_a_run_that_is_read(self) -> None:
        method, run = self.method, self.model.from_run
        if run is None:
            return
        if method.name not in ("fixed", "branching") or method.has_scout:
            raise ValueError(
                f"model.from_run={run} takes tree or policy of that run: use method.name=fixed to train them further or branching to "
                f"grow on, found method.name={method.name}"
                + (" with method.begin=anew" if method.has_scout else "")
            )
        others = {
            "model.pretrained": self.model.pretrained is not None,
            f"method.init={method.init}": method.init != "random",
            "method.groups": method.groups is not None,
        }
        given = [key for key, is_given in others.items() if is_given]
        if given:
            raise ValueError(
                f"model.from_run={run} brings tree and weights, so {' and '.join(given)} would be ignored; leave one of them out"
            )
        if method.branches == "delta":
            raise ValueError(
                f"model.from_run={run} brings whole weights for every branch, found method.branches=delta; leave it out"
            )

    def _trains_what_it_has(self) -> None:
        only, method = self.train.only, self.method
        if method.split_from is not None and not method.has_scout and only != "new":
            raise ValueError(
                f"method.split_from={method.split_from} would be ignored: it is read with method.begin=anew, or with train.only=new"
            )
        if only == "all":
            return
        is_pretrained = self.model.pretrained is not None or method.begins_from_pretrained
        if only == "new" and self.model.from_run is None:
            raise ValueError(
                "train.only=new trains what tasks add to an earlier run: give model.from_run"
            )
        if self.model.from_run is None and not is_pretrained:
            raise ValueError(
                "train.only=heads would train heads over random units: give model.from_run, or pretrained weights in model.pretrained"
            )
        if self.widens or method.name in ("branching", "adashare", "independent", *BASELINES):
            raise ValueError(
                f"train.only={only} keeps the units as they are: use method.name=fixed without method.widen_at, found "
                f"method.name={method.name}"
            )
        if self.loss.aggregation != "none":
            raise ValueError(
                f"loss.aggregation={self.loss.aggregation} is of weights that tasks share, and with train.only={only} none are "
                "trained; leave it out"
            )
        if only == "new" and self.loss.weighting != "fixed":
            raise ValueError(
                f"loss.weighting={self.loss.weighting} would weigh tasks that train.only=new keeps as they are; leave it out"
            )

    def _has_a_loss_that_suits(self) -> None:
        loss = self.loss
        if self.searches and (loss.weighting != "fixed" or loss.aggregation != "none"):
            raise ValueError(
                "a search for a policy trains weights and policy in turns with fixed weights of the losses (loss.weights), found "
                f"loss.weighting={loss.weighting} and loss.aggregation={loss.aggregation}; leave them out, and give them to the run "
                "that trains with the policy (adashare.policy)"
            )
        if loss.aggregation == "none":
            return
        if self.method.name in ("independent", *BASELINES):
            raise ValueError(
                f"loss.aggregation={loss.aggregation} is of branches that tasks share in a tree or by a policy, and "
                f"method.name={self.method.name} has none; leave it out"
            )
        if self.train.compile:
            raise ValueError(
                f"loss.aggregation={loss.aggregation} goes back through a network once per task, which a compiled one does not allow; "
                "leave train.compile out"
            )

    @property
    def begins_from(self) -> dict[str, str]:
        """The paths of other runs, or of files, from which the run begins, by key."""
        given = {
            "model.pretrained": self.model.pretrained_file,
            "model.from_run": self.model.from_run,
            "method.pretrained": self.method.pretrained,
            "method.groups": self.method.groups,
            "method.scout": self.method.scout,
            "adashare.policy": self.adashare.policy,
        }
        # Groups written out in the configuration are no path.
        return {key: path for key, path in given.items() if isinstance(path, str)}

    @property
    def searches(self) -> bool:
        """Whether the run searches for a policy of AdaShare."""
        return self.method.name == "adashare" and self.adashare.policy is None

    @property
    def decides(self) -> bool:
        """Whether the run takes any decision while it trains: one is taken only if steps come after it."""
        return self.method.grows and self.method.steps_to_first < self.train.iterations

    @property
    def widens(self) -> bool:
        """Whether layers may divide while the run trains: by its decisions, or because it is given when they do."""
        given = self.method.widen_at
        return self.decides or (given is not None and given < self.train.iterations)

    @property
    def inherits_memory(self) -> bool:
        """Whether branches are born to which an Adam leaves what it knows of the one that they were made from."""
        is_adam = self.optim.name in ("adam", "adamw")
        return self.widens and is_adam and self.method.birth != "fresh"

    @property
    def ignored(self) -> tuple[str, ...]:
        """A sentence for every setting that is given and has no effect."""
        return list_ignored(self)

    @property
    def run_directory(self) -> Path:
        """The run's folder: `run.directory` / `run.name`, or this machine's copy of it where that is at a URL."""
        directory = Path(self.run.directory)
        if is_remote(self.run.directory):
            directory = copy_of(self.run.directory, "training")
        return directory / (self.run.name or "run")

    @property
    def run_url(self) -> str | None:
        """Where the run directory is at a URL; None for one on a disk."""
        if not is_remote(self.run.directory):
            return None
        return join_url(self.run.directory, self.run.name or "run")
