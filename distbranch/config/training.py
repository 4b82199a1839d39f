"""The settings of training: its length and bookkeeping, the optimiser, and what is minimised."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from distbranch.config.names import Optimiser, check_name, describe_names
from distbranch.config.network import (
    Count,
    CountOrZero,
    Positive,
    PositiveOrZero,
    Section,
)


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
