"""The trials of a sweep: each an ordinary run configuration with a short name of its own in the sweep's directory."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, differences, load_config
from distbranch.config.sweep import VARIANT, Range, Setting, SweepConfig
from distbranch.engine.run_directory import SCOUT, RunDirectory
from distbranch.errors import UsageError
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.prepare import with_absolute_paths

Trials = Sequence[Config]
LONGEST_NAME = 80  # characters: tables and legends show names, and a folder's may have 255 bytes
SEED = "{seed}"  # in the path of a run that a trial begins from
DRAWS_PER_TRIAL = 100  # before a space is said to hold no more settings
DIGITS = 4  # of drawn numbers: a trial's name says exactly what it was trained with


def list_trials(sweep: SweepConfig) -> list[Config]:
    """Every trial of a grid or a random search, with absolute paths; the same sweep gives the same list.

    Raises:
        UsageError: Optuna, which chooses as results come; a base or a value that is no valid configuration.
    """
    return [trial for trials in group_trials_by_variant(sweep).values() for trial in trials]


def group_trials_by_variant(sweep: SweepConfig) -> dict[str, list[Config]]:
    """The same by variant: {variant: [trial, ...]}; in a sweep without variants all trials are of one without a name."""
    if sweep.search == "optuna":
        raise UsageError(
            "search: optuna chooses each trial from the results of others, so its trials cannot be listed before. "
            "Use search: grid or random here."
        )
    if sweep.search == "random":
        return {"": make_trials(sweep, draw_random_points(sweep))}
    # The last key varies fastest, as digits do.
    points = [
        dict(zip(sweep.grid, values, strict=True))
        for values in itertools.product(*sweep.grid.values())
    ]
    return {
        variant: make_trials(sweep, points, variant=variant) for variant in sweep.variants or ("",)
    }


def make_trials(
    sweep: SweepConfig, points: Iterable[Setting], *, variant: str = "", first: int = 0
) -> list[Config]:
    """One trial per point ({dotted key: value}) and seed; `first` is the number of the first point.

    Raises:
        UsageError: a value is not valid, with the name of its trial.
    """
    base = load_base_config(sweep, variant)
    trials = []
    for number, point in enumerate(points, start=first):
        values = dict(point)
        if variant:
            values = {VARIANT: variant, **point}
        if "seed" in values:
            trials.append(_make_trial(base, values, sweep, number))
            continue
        trials += [
            _make_trial(base, {**values, "seed": seed}, sweep, number)
            for seed in sweep.seeds or (base.seed,)
        ]
    return trials


def _make_trial(base: Config, values: Setting, sweep: SweepConfig, number: int) -> Config:
    """The trial of these values, under the name of its run that is there already, if an earlier release has begun one.

    A name depends on nothing but the values, so it stays where a grid is given in another order or more values are. Where the
    short text of a value could be that of another one, a digest of all values follows.
    """
    # Of all values in an order of their own, so that the order of a grid's keys does not matter.
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    by_digest = f"trial-{digest}-seed{values['seed']}"
    short = make_trial_name(values)
    name = short
    if sweep.search != "grid":
        # A number is that of one setting.
        short = name = make_trial_name(values, number)
    elif not _says_its_values(values):
        name = f"{short}-{digest}"
    if len(name) > LONGEST_NAME:
        name = by_digest

    # The variant is no key of a run: it is in the base already.
    own = {key: value for key, value in values.items() if key != VARIANT}
    try:
        trial = load_config(base, {**own, "run.name": name})
        # `{seed}` in the path of a run that it begins from stands for its own seed.
        paths = {
            key: path.replace(SEED, str(trial.seed)) for key, path in trial.begins_from.items()
        }
        trial = load_config(trial, paths)
    except UsageError as error:
        raise UsageError(f"The trial {name} is not possible. {error}") from None
    for earlier in (name, short, by_digest):
        if len(earlier) > LONGEST_NAME:  # none was, and a file system may refuse to look
            continue
        before = trial.model_copy(update={"run": trial.run.model_copy(update={"name": earlier})})
        file = RunDirectory(before.run_directory).config
        if not file.exists():
            continue
        if earlier == name:
            return before
        # The same in those keys too that a continued run may change.
        found = load_config(file)
        if load_config(found, own) == found and not differences(found, before):
            return before
    return trial


def make_trial_name(values: Setting, number: int | None = None) -> str:
    """`width16-alpha2-seed0`: the last part of every key with its value, after the variant; drawn trials begin with their number."""
    parts = []
    if number is not None:
        parts.append(f"{number:04d}")
    for key, value in values.items():
        text = str(value)
        if key != VARIANT:
            text = _shorten_key(key) + _shorten_value(value)
        parts.append(text)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")


def _shorten_key(key: str) -> str:
    return key.rpartition(".")[2].replace("_", "-")


def _shorten_value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return f"-{value}"
    if isinstance(value, float):
        return f"{value:g}".replace("e+", "e")
    if isinstance(value, Sequence):
        return "x".join(map(_shorten_value, value))
    return str(value).lower()


def _says_its_values(values: Setting) -> bool:
    """Whether no other values of the same keys have the same short name."""
    keys = [_shorten_key(key) for key in values]
    texts = [value for value in values.values() if isinstance(value, str)]
    # Two keys of one last part, or a text that reads as a key and its value.
    if len(set(keys)) < len(keys) or any(f"-{key}" in text for key in keys for text in texts):
        return False
    return all(key == VARIANT or _is_told_by_its_text(value) for key, value in values.items())


def _is_told_by_its_text(value: Any) -> bool:
    """Whether the short text of a value is that of no other one."""
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", value) is not None
    if isinstance(value, float):
        return float(_shorten_value(value)) == value
    if isinstance(value, list | tuple):
        return len(value) > 1 and all(
            isinstance(part, int | float) and _is_told_by_its_text(part) for part in value
        )
    return value is None or isinstance(value, int)


def draw_random_points(sweep: SweepConfig) -> list[Setting]:
    """`num_trials` different draws; the first ones stay the same where more are asked for later.

    Raises:
        UsageError: the space holds fewer.
    """
    # One generator in one order: a longer search begins with the draws of a shorter one.
    rng = np.random.default_rng(sweep.search_seed)
    wanted = sweep.num_trials or 0
    found: dict[str, Setting] = {}
    for _ in range(DRAWS_PER_TRIAL * wanted):
        point = {key: _draw(span, rng) for key, span in sweep.space.items()}
        found.setdefault(repr(point), point)
        if len(found) == wanted:
            return list(found.values())
    raise UsageError(
        f"num_trials should be at most the number of different settings in `space`, found num_trials={wanted} and "
        f"{len(found)} settings. Lower num_trials, or widen the space; more seeds of a setting are given as `seeds`."
    )


def _draw(span: Range, rng: np.random.Generator) -> Any:
    if span.choices is not None:
        return span.choices[int(rng.integers(len(span.choices)))]
    low, high = span.bounds
    if span.log:
        return round_to_range(span, math.exp(rng.uniform(math.log(low), math.log(high))))
    if span.whole:
        return int(rng.integers(math.ceil(low), math.floor(high) + 1))
    return round_to_range(span, rng.uniform(low, high))


def round_to_range(span: Range, value: float) -> Any:
    """A drawn number as it is used: whole, or with few digits, and within the range."""
    low, high = span.bounds
    if span.whole:
        return min(max(round(value), math.ceil(low)), math.floor(high))
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def load_base_config(sweep: SweepConfig, variant: str = "") -> Config:
    """What all trials (of a variant) have in common, with absolute paths and the resources of a trial.

    Without a variant, and where the sweep has no base, that of the first variant.
    """
    base = _load_with_overrides(sweep, variant)
    launch = base.launch
    if launch.device == "cuda" and not sweep.gpus_per_trial:
        raise UsageError(
            "launch.device=cuda needs to know how many: give `gpus_per_trial`, a fraction if trials share a GPU."
        )
    if sweep.early_stopping and not base.train.evaluate_every:
        raise UsageError(
            "early_stopping judges evaluations: give train.evaluate_every, the steps between two of them."
        )
    cpus = (sweep.cpus_per_trial or sweep.workers_per_trial) / sweep.workers_per_trial
    values: Setting = {
        "run.directory": str(sweep.trial_path),
        "launch.workers": sweep.workers_per_trial,
        "launch.cpus_per_worker": cpus,
        "launch.threads": launch.threads
        or max(1, int(cpus)),  # else every trial would use all cores
        "launch.device": "cuda" if sweep.gpus_per_trial else "cpu",
    }
    if (address := cluster_address(launch)) is not None:
        values["launch.address"] = (
            address  # a trial in a worker of that cluster should not have to find it out
        )
    if sweep.gpus_per_trial:
        values["launch.gpus_per_worker"] = sweep.gpus_per_trial / sweep.workers_per_trial
        if (
            base.data.workers is None
        ):  # of the cores of a trial; the engine would count those of the machine
            values["data.workers"] = max(0, int(cpus) - 1)
    return with_absolute_paths(load_config(base, values))


def _load_with_overrides(sweep: SweepConfig, variant: str) -> Config:
    if not variant and sweep.base is None:
        variant = next(iter(sweep.variants))
    own = dict(sweep.variants.get(variant, {}))
    file = own.pop("base", None) or sweep.base
    try:
        return load_config(str(file), {**sweep.overrides, **own})
    except UsageError as error:
        if not variant:
            raise
        raise UsageError(f"The variant {variant} is not possible. {error}") from None


def begins_from(config: Config) -> set[Path]:
    """The folders of other runs that a run begins from: its pretrained network, its scout, or the tree or policy that it is given."""
    paths = {Path(path).absolute() for path in config.begins_from.values()}
    return paths | {path.parent for path in paths if path.name in ("tree.json", SCOUT)}


def order_in_turns(trials: Trials) -> list[list[Config]]:
    """The trials in the order in which they can be trained: one that begins from the run of another comes in a later turn.

    Raises:
        UsageError: some begin from each other.
    """
    waiting = {trial.run_directory: trial for trial in trials}
    turns: list[list[Config]] = []
    while waiting:
        turn = [trial for trial in waiting.values() if begins_from(trial).isdisjoint(waiting)]
        if not turn:
            names = ", ".join(sorted(folder.name for folder in waiting))
            raise UsageError(
                f"A run cannot begin from one that begins from it, as {names} do. Leave one of them out."
            )
        turns.append(turn)
        for trial in turn:
            del waiting[trial.run_directory]
    return turns


def get_config_value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value
