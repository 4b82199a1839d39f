"""Every setting of a run: nested pydantic models with a help text, a default and a range each.

User input is checked here, once; past this border nobody re-checks.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from distbranch.config.names import Optimiser, check_name, describe_names
from distbranch.config.network import (
    BASELINES,
    AdaShareConfig,
    Count,
    CountOrZero,
    MethodConfig,
    ModelConfig,
    Place,
    Positive,
    PositiveOrZero,
    Section,
)
from distbranch.config.paths import copy_of, expand_places, is_remote, join_url
from distbranch.config.unread import list_ignored
from distbranch.errors import UserError
from distbranch.plugins import load_plugins, make_absolute

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


# 32 is what the five pooling layers of VGG-16 leave one position of.
ImageSide = Annotated[int, Field(ge=32)]


Scale = Annotated[float, Field(ge=0.1, le=10)]
Part = Annotated[float, Field(gt=0, le=1)]
Power = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Section):
    """The packed data set (or several, trained together) and how it is read."""

    path: str | tuple[str, ...] | None = None
    """Packed data set: a folder or a URL (http, s3, gs); a list of them for joint training."""
    proportions: tuple[Count, ...] = Field((), json_schema_extra={"range": "[>= 1, ...]"})
    """With a list in `path`: how many samples come from each in turn; by their sizes if empty."""
    pack: dict[str, Any] | None = None
    """How to pack `path` if it is absent: `source` and its options, as for `distbranch data pack`."""
    image_size: tuple[ImageSide, ImageSide] | None = None
    """[height, width] in pixels, at least 32x32; that of the data set if empty."""
    flip: bool = False
    """Mirror training images left to right at random."""
    shift: int = Field(0, ge=0, le=64)
    """Shift training images at random by up to this many pixels."""
    scale: tuple[Scale, Scale] | None = None
    """Enlarge or shrink training images at random by a factor from [least, largest], such as [0.5, 1.5]. The size of batches stays:
    that of `crop`, else of the images, with padding of the mean colour, which no label has."""
    crop: tuple[ImageSide, ImageSide] | None = None
    """[height, width] in pixels of the part of each training image that is seen, at random (smaller images are padded); evaluations
    see whole images."""
    depth_follows_scale: bool = True
    """With `scale`: divide depth by the factor (multiply disparity), as if the camera were so much nearer."""
    decoder: Literal["simplejpeg", "pil"] = "simplejpeg"
    """JPEG decoder (their pixels differ slightly)."""
    workers: int | None = Field(None, ge=0, le=64)
    """Prefetching processes per rank; 0: one thread. Empty: 0 on CPUs; on GPUs the cores of a rank but one, at most 8."""
    prefetch: int = Field(4, ge=1, le=64)
    """Batches prepared ahead (per prefetching process)."""
    shuffle_window: Count = 8
    """How many shards have their samples mixed with each other."""
    on_bad_sample: Literal["fail", "skip"] = "fail"
    """What to do with a sample that cannot be read."""
    max_bad_samples: CountOrZero = 100
    """With `skip`: with more of them training fails, and so does an evaluation."""
    cache_directory: Place | None = None
    """Where shards of a URL are kept; a folder of the user if empty."""
    cache_gib: Positive = 20.0
    """Largest size of that cache in GiB."""
    # Of ImageNet, as the public VGG-16 and ResNet weights were trained with.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per channel, of values in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Per channel, of values in 0..1."""
    balance: dict[str, Power] = Field({}, json_schema_extra={"range": "{TASK: 0..1}"})
    """Show samples of rare classes more often, those of frequent ones less, in an epoch of the same length. 0: as they are, 1: all
    classes of the task equally often; between, in proportion to count^(1 - power). Of several tasks each gets its frequencies as far as
    they can be had at once; unlabelled samples keep their share."""
    augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Change training images by operations drawn at random (extra `augment`)."""
    crop_area: tuple[Part, Part] | None = None
    """Show a part of each training image, of [least, most] of its area at random such as [0.3, 1], enlarged to the size of the whole."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Change brightness, contrast and saturation of training images at random by up to this share (extra `augment`)."""
    mixup: PositiveOrZero = 0.0
    """Average each training image with another, with shares from Beta(mixup, mixup); 0: not at all. The loss of a label is multiplied
    by the share of its image."""
    cutmix: PositiveOrZero = 0.0
    """Put a rectangle of another image into each training image, with shares from Beta(cutmix, cutmix); with `mixup` too, each half of
    the time."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The data sets: none, one or several."""
        if isinstance(self.path, str):
            return (self.path,)
        return self.path or ()

    @field_validator("path", mode="before")
    @classmethod
    def _is_one_place_or_several(cls, path: Any) -> Any:
        if path is None:
            return None
        places = path if isinstance(path, list | tuple) else [path]
        if not places or not all(isinstance(place, str) and place for place in places):
            raise ValueError(f"should be a folder or a URL, or a list of them, found {path!r}")
        # A list of one is no joint training, and the same run as without the brackets.
        return expand_places(places[0] if len(places) == 1 else path)

    @field_validator("scale", "crop_area")
    @classmethod
    def _has_its_ends_in_order(cls, scale: tuple[float, float] | None) -> Any:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError(f"should be [least, largest], found {list(scale)}")
        return scale

    @model_validator(mode="after")
    def _is_cut_in_one_way(self) -> Self:
        given = "data.scale" if self.scale is not None else "data.crop"
        if self.crop_area is not None and (self.scale is not None or self.crop is not None):
            raise ValueError(
                f"data.crop_area and {given} are two ways to show a part of an image, found both; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_data_sets(self) -> Self:
        # One number for one data set says nothing, so at least two are asked for.
        if self.proportions and len(self.proportions) != max(2, len(self.paths)):
            raise ValueError(
                "data.proportions needs a number for every data set of a list in data.path, "
                f"found {len(self.proportions)} for {len(self.paths)}"
            )
        if self.pack is not None and len(self.paths) > 1:
            raise ValueError(
                f"data.pack makes one data set, and data.path names {len(self.paths)}; pack them beforehand with "
                "`distbranch data pack` and leave data.pack out"
            )
        return self


class TrainConfig(Section):
    """The length and the bookkeeping of training."""

    # Length and batch are those of the paper.
    iterations: Count = 60_000
    """Optimiser steps in all."""
    batch_size: int = Field(32, ge=2)
    """Images per optimiser step, over all ranks."""
    # Not "per rank": statistics, and so results, would depend on the number of ranks.
    norm_batch: int = Field(32, ge=2)
    """Images that batch norm normalises together, on however many ranks they are; a smaller batch is one group."""
    accumulate: Count = 1
    """Passes into which one step is divided, to save memory; each has whole groups of `norm_batch`."""
    clip_norm: Positive = 20.0
    """Largest norm of the gradient."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """`bf16`: autocast of the forward pass; `auto`: bf16 if all ranks have it in hardware, decided as the run begins."""
    compile: bool = False
    """torch.compile after the last widening."""
    checkpoint_every: Count = 500
    """Steps between checkpoints (one more at every decision)."""
    # Two at least, for the newest may be damaged.
    keep_checkpoints: int = Field(3, ge=2)
    """Newest checkpoints that are kept."""
    evaluate_every: CountOrZero = 0
    """Steps between evaluations on `val`; 0: only at the end."""
    eval_batch_size: Count = 256
    """Images per evaluation batch and rank."""
    log_every: Count = 50
    """Steps between lines of metrics.jsonl."""
    profile: bool = False
    """Write a torch.profiler trace of 5 steps."""
    only: Literal["all", "heads", "new"] = "all"
    """What is trained. `heads`: the heads over frozen units, running statistics included (a linear probe); `new`: what tasks have
    of their own that model.from_run lacks, a head and copies of the units from `method.split_from` up, while the outputs of all
    other tasks stay what they are."""
    keep: Literal["last", "best"] = "last"
    """Whose weights the run ends with: those of the last step, or of the best evaluation on `val` since the tree became what it is."""
    keep_metric: str | None = None
    """What `keep: best` and `patience` judge by: a mean over tasks, such as average_precision, or `loss`; if empty the first metric
    that the data have."""
    patience: CountOrZero = 0
    """Evaluations on `val` without a better one after which training ends; they count when the tree grows no more. 0: it goes to the
    last step."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of a moving average of weights and running statistics, which is what is evaluated and what the run ends with; after k steps
    at most (1 + k) / (10 + k), so that the first weights are soon forgotten. 0: none."""

    @model_validator(mode="before")
    @classmethod
    def _leaves_out_old_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "sync_batch_norm" not in values:
            return values
        kept = dict(values)
        if kept.pop("sync_batch_norm"):
            raise ValueError(
                "sync_batch_norm was replaced by norm_batch, which says how many images are normalised together, on however many "
                "ranks they are; leave sync_batch_norm out"
            )
        # Configs of finished runs have it, where it was off.
        return kept

    @model_validator(mode="after")
    def _has_evaluations_to_judge_by(self) -> Self:
        if self.judges_evaluations and not self.evaluate_every:
            raise ValueError(
                f"train.keep={self.keep} with train.patience={self.patience} judges evaluations on val while the run trains: give "
                "train.evaluate_every, the steps between two of them"
            )
        return self

    @property
    def judges_evaluations(self) -> bool:
        """Whether the best evaluation on `val` is remembered."""
        return self.keep == "best" or self.patience > 0

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        # A batch smaller than norm_batch is one group.
        whole = min(self.norm_batch, self.batch_size) * self.accumulate
        if self.batch_size % whole:
            whole = self.norm_batch * self.accumulate
            below = self.batch_size // whole * whole
            nearest = f"{below} or {below + whole}" if below else str(whole)
            raise ValueError(
                f"train.batch_size should have whole groups of train.norm_batch={self.norm_batch} images in each of "
                f"train.accumulate={self.accumulate} passes, found {self.batch_size}; the nearest train.batch_size is {nearest}, or "
                "give another train.norm_batch"
            )
        return self


class OptimConfig(Section):
    """The optimiser and its learning rate."""

    name: Optimiser = Field("sgd", json_schema_extra=describe_names("optimiser"))
    """SGD with momentum (the paper), Adam or AdamW."""
    # Rate, momentum, decay and steps are the paper's.
    lr: Positive = 0.001
    """Learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD; of Adam and AdamW the first beta."""
    weight_decay: PositiveOrZero = 5e-4
    """Weight decay, on all but norms and biases."""
    schedule: Literal["step", "cosine", "constant"] = "step"
    """How the learning rate changes with the steps."""
    decay_every: Count = 20_000
    """With `step`: steps after which the rate is multiplied by `decay_factor`."""
    decay_factor: float = Field(0.1, gt=0, le=1)
    """See `decay_every`."""
    warmup: CountOrZero = 0
    """Steps over which the rate rises from zero at the beginning."""
    when_widened: Literal["restart", "continue"] = "restart"
    """The schedule after each widening."""
    inherited_steps: Count | None = None
    """Of Adam and AdamW: as how many steps counts what the copies of a widened layer inherit of its memory; if empty as all that
    were made."""


class LossConfig(Section):
    """What is minimised."""

    functions: dict[str, str] = Field({}, json_schema_extra={"range": "{KIND OF TASK: NAME}"})
    """The loss of a kind of task, such as `{binary: focal}`: `cross-entropy`, `focal` (gamma 2) or `asymmetric` of binary
    and categorical tasks, `cross-entropy` of ordinal ones, `smooth-l1` or `squared-error` of numbers; of dense tasks `absolute`, `log`
    or `berhu` of depth, and one each of segmentation, normals and heat. A kind that is not named has the first of its own."""
    weights: dict[str, Positive] = Field({}, json_schema_extra={"range": "{TASK: > 0}"})
    """What the loss of a task is multiplied by, before any `weighting`; a task that is not named has the weight of its kind: 1, but 3
    of normals and 7 of heat."""
    weighting: Literal["fixed", "uncertainty", "dwa", "famo", "imtl-l", "stch"] = "fixed"
    """Weights that follow the losses (extra `weighting`): learned (`uncertainty`, `imtl-l`), by how fast a loss falls (`dwa`, `famo`),
    or the largest loss first (`stch`)."""
    window: Count = 100
    """Of `dwa`: steps over which losses are averaged, its epoch."""
    aggregation: Literal[
        "none", "pcgrad", "cagrad", "mgda", "upgrad", "aligned-mtl", "imtl-g", "gradvac", "nash-mtl"
    ] = "none"
    """How gradients of tasks that share weights become one (extra `weighting`), for a backward pass per task. `none`: their sum."""
    at: Literal["input", "output"] = "input"
    """Of dense tasks: where outputs and labels meet. `input`: outputs are resized bilinearly to the labels; `output`: labels are
    sampled at the centres of the outputs' pixels, as AdaShare does, which is cheaper and blind to thin things."""
    over: Literal["samples", "pixels"] = "samples"
    """Of dense tasks: what a batch's loss is the mean over. `samples`: of each the mean over its labelled pixels; `pixels`: all
    labelled pixels of the batch, so that a sample with few of them weighs less."""
    class_weights: dict[str, Literal["balanced"] | tuple[Positive, ...]] = Field(
        {}, json_schema_extra={"range": "{TASK: balanced | [> 0, ...]}"}
    )
    """What a sample (of segmentation a pixel) weighs by its class, one weight per class in the order of the data set; `balanced`: n /
    (K n_c), by the counts of the training labels, at most 100."""
    positive_weights: Literal["auto"] | dict[str, Literal["auto"] | Positive] = Field(
        {}, json_schema_extra={"range": "auto | {TASK: auto | > 0}"}
    )
    """Of binary tasks: what a sample weighs whose label is 1; `auto`: as many as there are labels 0 for one of 1 in training, at most
    100. `auto` alone is that of all binary tasks."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of binary and categorical tasks: this part of each label is spread evenly over all classes."""

    @field_validator("functions")
    @classmethod
    def _are_there(cls, functions: dict[str, str]) -> dict[str, str]:
        for kind, name in functions.items():
            check_name(f"{kind}:{name}", what="loss")
        return functions

    @model_validator(mode="after")
    def _smooths_what_can_be(self) -> Self:
        function = self.functions.get("categorical", "cross-entropy")
        if self.label_smoothing and function != "cross-entropy":
            raise ValueError(
                f"label_smoothing={self.label_smoothing:g} is of the cross-entropy of categorical tasks, found "
                f"functions.categorical={function}; leave one of them out"
            )
        return self


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
    """Threads per rank; cores / ranks of the machine if empty. Another number rounds differently: give one if other machines
    should repeat the results."""
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
        return self.widens and is_adam and self.method.birth == "copies"

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
