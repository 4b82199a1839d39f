"""Every setting of a sweep: run configurations as a base or as variants, and which of their keys take which values.

A sweep file has keys of its own (below); every dotted key of a run may stand in `overrides`, `variants`, `grid` and `space`.
"""

import math
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from distbranch.config.network import Section
from distbranch.config.packaged import find_config
from distbranch.config.paths import expand_places, is_remote
from distbranch.config.reading import (
    MORE_PLUGINS,
    as_yaml,
    describe_unknown_key,
    explain,
    known_keys,
    locate_named_plugins,
    parse_override,
    read_yaml,
    resolve_base,
)
from distbranch.errors import UsageError

VARIANT = "variant"  # beside the dotted keys: which variant a trial is of
# The means over tasks that experiments compare, in the order of every table and legend: of all more is better.
SHARES = ("accuracy", "balanced_accuracy", "average_precision", "top10_recall", "top3", "top5")
# What a network costs, as a search can weigh it against the metric: of all less is better.
SearchedCost = Literal["weights", "folded_weights", "multiply_adds", "latency_ms"]
# The sweep says these of every trial itself.
KEYS_OF_THE_SWEEP = {
    "run.name": "every trial gets its own name",
    "run.directory": "trials live in the sweep's directory; give `directory` and `name`",
    "launch.workers": "give `workers_per_trial`",
    "launch.cpus_per_worker": "give `cpus_per_trial`",
    "launch.gpus_per_worker": "give `gpus_per_trial`",
}


def _check_name(name: str) -> str:
    _ensure(
        re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None,
        f"a name should be made of letters, digits, '.', '_' and '-', found '{name}'",
    )
    return name


def _check_folder(directory: str) -> str:
    expanded: str = expand_places(directory)
    _ensure(
        not is_remote(expanded),
        f"should be a folder that all nodes see (only a single run may live at a URL), found {expanded}",
    )
    return expanded


def _ensure(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)


Name = Annotated[str, AfterValidator(_check_name)]  # of a folder
Folder = Annotated[str, AfterValidator(_check_folder)]
Setting = dict[str, Any]  # {dotted key: value}
Values = Annotated[tuple[Any, ...], Field(min_length=1)]


class Range(Section):
    """The values that one key may take in a random or Optuna search: `choices`, or `low` to `high`."""

    low: float | None = Field(None, description="Smallest value.")
    high: float | None = Field(None, description="Largest value.")
    log: bool = Field(False, description="Draw evenly on a logarithmic scale.")
    whole: bool = Field(False, alias="int", description="Whole numbers only.")
    choices: tuple[Any, ...] | None = Field(
        None, description="A list of values instead of `low` and `high`."
    )

    @model_validator(mode="after")
    def _says_what_to_draw(self) -> Self:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None:
                raise ValueError("give either a list of choices that is not empty, or low and high")
        # Equal bounds are refused too: what does not vary belongs into `overrides`.
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"low should be below high, found low={self.low} and high={self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"low should be above 0 with log: true, found {self.low}")
        elif self.whole and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(
                f"a whole number should lie between low={self.low} and high={self.high} with int: true"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """`low` and `high` of a range without choices."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


class EarlyStopping(Section):
    """Asynchronous successive halving: at each rung a trial trains on only if it is among the best of its size class."""

    grace: int = Field(
        ge=1,
        description="The first rung, in optimiser steps; the next ones are `reduction` times as far.",
    )
    # Hyperband's authors recommend 3 or 4; 3 is kinder to trials that start slowly.
    reduction: float = Field(
        3.0, gt=1, description="One of so many trials of a size class passes a rung."
    )
    metric: str | None = Field(
        None, description="Mean over tasks on val; the sweep's `metric` if empty."
    )


class SweepConfig(Section):
    """The whole configuration of one sweep."""

    base: str | None = Field(
        None,
        description="Config file of a run, relative to the sweep file; not needed where every variant has its own.",
    )
    overrides: Setting = Field(
        {}, description="Dotted keys of the run that differ from the base in all trials."
    )
    variants: dict[Annotated[Name, BeforeValidator(str)], Setting] = Field(
        {},
        description="With search: grid, unlike configurations: name: {dotted key: value, ...}, with a `base` of its own "
        "if that differs; each is combined with all of the grid and all seeds. `{seed}` in a path of `method` is the trial's.",
    )
    name: Name | None = Field(
        None, description="Name of the sweep's directory; the file's name if empty."
    )
    directory: Folder = Field(
        "runs", description="Folder (shared by all nodes) in which the sweep's directory is made."
    )
    trial_directory: Folder | None = Field(
        None,
        description="Folder of the trials' run directories; the sweep's own if empty. A run there that finished under the "
        "name of a trial is that trial, if its configuration is the same.",
    )
    metric: str = Field(
        "average_precision",
        description="What is compared: a mean over tasks, chosen on val. accuracy | balanced_accuracy | average_precision | "
        "top10_recall | top3 | top5; of numbers standardised_error (less is better) | r2 | rank_correlation; of ordered classes "
        "quadratic_kappa; of maps miou | pixel_accuracy, and of less is better rmse | mean_angle | heat_error.",
    )
    seeds: tuple[int, ...] | None = Field(
        None, min_length=1, description="Every setting is trained with each seed."
    )
    grid: dict[str, Values] = Field(
        {}, description="Dotted key of the run: list of values; all combinations."
    )
    search: Literal["grid", "random", "optuna"] = Field(
        "grid", description="How settings are chosen."
    )
    space: dict[str, Range] = Field(
        {}, description="With random and optuna: dotted key: {low, high, log, int} or {choices}."
    )
    cost: SearchedCost | None = Field(
        None,
        description="With optuna: a second objective beside `metric`, so that the search follows their Pareto front. weights | "
        "folded_weights (differences of branches folded in, as `export` writes them) | multiply_adds | latency_ms; the metric alone "
        "if empty.",
    )
    num_trials: int | None = Field(
        None, ge=1, description="With random and optuna: settings (times seeds) in all."
    )
    # 32 bits, as NumPy's old generator, which samplers are seeded with, takes them.
    search_seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the random choices.")
    concurrency: int | None = Field(
        None, ge=1, description="Trials at the same time; as many as fit if empty."
    )
    workers_per_trial: int = Field(
        1, ge=1, description="Ranks of each trial; 1: in the trial's own process."
    )
    cpus_per_trial: float | None = Field(
        None, gt=0, description="CPUs of each trial; one per worker if empty."
    )
    gpus_per_trial: float = Field(
        0,
        ge=0,
        description="GPUs of each trial, at most one per worker; 0.25: four trials share one.",
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="Ends poor trials early: grace, reduction, metric."
    )
    # Two, for a trial that takes its node down with it would be started for ever.
    max_failures: int = Field(
        2,
        ge=0,
        description="Restarts of a trial whose process was lost; an error of its own ends it.",
    )

    @model_validator(mode="after")
    def _is_a_search(self) -> Self:
        if self.search == "grid":
            _ensure(
                not self.space and self.num_trials is None,
                "search: grid takes `grid`; `space` and `num_trials` are of random and optuna",
            )
            _ensure(
                bool(self.grid or self.variants or self.seeds),
                "`grid` should name at least one key, such as model.width: [16, 32]",
            )
        else:
            _ensure(
                not self.grid and not self.variants,
                f"search: {self.search} takes `space`; `grid` and `variants` are of search: grid",
            )
            _ensure(
                bool(self.space),
                "`space` should name at least one key, such as optim.lr: {low: 1e-4, high: 1e-2, log: true}",
            )
            _ensure(self.num_trials is not None, f"search: {self.search} needs `num_trials`")
        # The page of every sweep shows all costs: asked for here it would be without effect.
        _ensure(
            self.cost is None or self.search == "optuna",
            f"`cost` guides search: optuna, found search: {self.search}; leave it out, for the page shows all costs",
        )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        bases = [variant.get("base") for variant in self.variants.values()]
        for base in bases:
            _ensure(
                base is None or isinstance(base, str),
                f"`base` should be the config file of a run, found {base!r}",
            )
        _ensure(
            bool(self.base or (bases and all(bases))),
            "A sweep needs `base`: the config file of a run, relative to the sweep file",
        )
        for key, values in {**self.grid, "seeds": self.seeds or ()}.items():
            _ensure(
                all(values.count(value) == 1 for value in values),
                f"a value of {key} appears twice in {list(values)}",
            )

        # What fixed a varied key would be trained once per value, all alike.
        varied = [*self.grid, *self.space]
        if self.seeds:
            varied.append("seed")
        for place, fixed in (("", self.overrides), *self.variants.items()):
            twice = [key for key in fixed if key in varied]
            by_variant = f" by the variant {place}" * bool(place)
            _ensure(
                not twice, f"{', '.join(twice)} is varied and also fixed{by_variant}; say it once"
            )
        _ensure(
            "seed" not in self.grid or not self.seeds,
            "seed is varied and also fixed by `seeds`; say it once",
        )
        _ensure(
            self.gpus_per_trial <= self.workers_per_trial,
            f"gpus_per_trial should be at most one per worker, found {self.gpus_per_trial:g} for {self.workers_per_trial}",
        )
        return self

    @property
    def path(self) -> Path:
        """The sweep's folder, absolute."""
        return Path(self.directory).absolute() / str(self.name)

    @property
    def trial_path(self) -> Path:
        """The folder of the trials' run directories, absolute: the sweep's own, or one that it shares."""
        return Path(self.trial_directory).absolute() if self.trial_directory else self.path

    @property
    def varied(self) -> tuple[str, ...]:
        """The dotted keys in which trials of one variant differ, the seed last."""
        # The seed is always told: without `seeds` it is that of the base.
        keys = [key for key in (*self.grid, *self.space) if key != "seed"]
        return (*keys, "seed")


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> SweepConfig:
    """Read a sweep file and apply dotted overrides.

    Args:
        path: the YAML file.
        overrides: see `sweep_of`.

    Raises:
        UsageError: an absent or unreadable file, an unknown key (with the nearest ones), a value out of range.
    """
    file = find_config(Path(path))
    values = read_yaml(file)
    # Told apart by keys of their own, for a `base` may stand in both.
    own = SweepConfig.model_fields.keys() - {"base"}
    keys, sections = known_keys()
    if not values.keys() & own and values.keys() & (keys | sections):
        raise UsageError(
            f"{path} is the config of a run: use `distbranch train {path}`, or write a sweep file that names it as `base`."
        )
    values.setdefault("name", file.stem)
    return sweep_of(values, overrides, folder=file.absolute().parent, what=f"The sweep {file}")


def sweep_of(
    values: Setting,
    overrides: Sequence[str] = (),
    *,
    folder: Path,
    what: str,
    derived: Collection[str] = (),
) -> SweepConfig:
    """A sweep from the values of its keys, with dotted overrides.

    Args:
        values: as in a sweep file.
        overrides: `key=value`; keys of the sweep (`concurrency=4`, `grid.model.width=[16,32]`) or of the run, for all trials.
        folder: what relative config files are relative to.
        what: named in errors, such as `The sweep mine.yaml`.
        derived: keys whose values in the variants were made from these overrides.

    Raises:
        UsageError: an unknown key (with the nearest ones), a value out of range, an override that a variant would not follow.
    """
    values = {str(key): value for key, value in values.items()}
    said = dict(map(parse_override, overrides))
    for key, value in said.items():
        _apply_override(values, key, value)
    try:
        sweep = SweepConfig.model_validate(values)
    except ValidationError as error:
        raise _explain(error, what) from None
    _check_run_keys(sweep)
    for key in sweep.overrides:
        if key not in derived and (key in said or f"overrides.{key}" in said):
            _refuse_unheard(key, sweep)

    # Absolute from here on: the sweep's own copy of its settings lies in another folder.
    variants = {}
    for name, variant in sweep.variants.items():
        variants[name] = _with_absolute_files(variant, folder)
    base = _with_absolute_files({"base": sweep.base}, folder)
    everywhere = _with_absolute_files(sweep.overrides, folder)
    return sweep.model_copy(update={**base, "overrides": everywhere, "variants": variants})


def _with_absolute_files(values: Setting, folder: Path) -> Setting:
    """The values with what lies beside the sweep file: `base` and plug-ins."""
    found = dict(values)
    if found.get("base"):
        found["base"] = str(resolve_base(found["base"], folder))
    for key in found.keys() & {"plugins", MORE_PLUGINS}:
        found[key] = locate_named_plugins(found[key], folder)
    return found


def _apply_override(values: Setting, key: str, value: Any) -> None:
    """Set a key of the sweep, or of the run for all trials; in place, but never in a mapping of the caller's."""
    first, _, rest = key.partition(".")
    if first == "variants" and "." in rest:
        path = [first, *rest.split(".", maxsplit=1)]
    elif first in ("grid", "space", "overrides") and rest:
        # `grid.model.width` is the key model.width of the grid: these have dotted keys, not nested ones.
        path = [first, rest]
    elif first in SweepConfig.model_fields:
        path = key.split(".")
    elif first in known_keys()[0] | known_keys()[1] or key == MORE_PLUGINS:
        path = ["overrides", key]
    else:
        path = [key]  # unknown: told below, with the nearest keys of either kind
    # Copied on the way down: the mappings may belong to whoever called.
    for part in path[:-1]:
        below = values.get(part)
        values[part] = dict(below) if isinstance(below, dict) else {}
        values = values[part]
    values[path[-1]] = value


def _explain(error: ValidationError, what: str) -> UsageError:
    """What pydantic found; of an unknown key with the nearest of those that are known there."""
    of_runs, sections = known_keys()
    for problem in error.errors():
        if problem["type"] != "extra_forbidden":
            continue
        *place, key = map(str, problem["loc"])
        if not place and key in of_runs | sections:
            return UsageError(
                f"'{key}' is a key of a run; in a sweep write it under `overrides`, `grid` or `space`."
            )
        # What may stand at each place; a range of `space` is the only one whose place has a name of its own.
        known = {
            (): {*SweepConfig.model_fields, *of_runs},
            ("early_stopping",): set(EarlyStopping.model_fields),
        }
        there = known.get(tuple(place), {"low", "high", "log", "int", "choices"})  # of a range
        dotted = {".".join([*place, name]) for name in there}
        see = f"A sweep has the keys {', '.join(SweepConfig.model_fields)}."
        return UsageError(describe_unknown_key(".".join([*place, key]), dotted, see))
    return explain(error, what)


def _check_run_keys(sweep: SweepConfig) -> None:
    """Checked after the models, which know no keys of runs."""
    of_runs, _ = known_keys()
    of_variants = [key for variant in sweep.variants.values() for key in variant if key != "base"]
    for key in (*sweep.overrides, *sweep.grid, *sweep.space, *of_variants):
        if key in KEYS_OF_THE_SWEEP:
            raise UsageError(f"A sweep does not take '{key}': {KEYS_OF_THE_SWEEP[key]}.")
        if key not in {*of_runs, MORE_PLUGINS} and not key.startswith("data.pack."):
            raise UsageError(describe_unknown_key(key, of_runs))


def _refuse_unheard(key: str, sweep: SweepConfig) -> None:
    """In a file a variant may differ from what is said of all; a command that says it of all means all."""
    value = sweep.overrides[key]
    others = [name for name, variant in sweep.variants.items() if variant.get(key, value) != value]
    if others:
        raise UsageError(
            f"{key}={value} is given for all runs, but {key} is also fixed by the variants {', '.join(others)}; say it once: "
            "leave it out, or change the variants."
        )


def sweep_to_yaml(sweep: SweepConfig) -> str:
    """The complete sweep configuration as YAML."""
    return as_yaml(sweep.model_dump(mode="json", by_alias=True))
