"""The trials of a sweep: each an ordinary run configuration with a short name of its own in the sweep's directory."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distbranch.config import Config, differences, load_config
from distbranch.config.sweep import VARIANT, Range, SweepConfig
from distbranch.data.shards import DatasetInfo
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.prepare import with_absolute_paths
from distbranch.models.architecture import multiply_adds

LONGEST_NAME = 80
SEED = "{seed}"
DRAWS_PER_TRIAL = 100  # before a space is said to hold no more settings
DIGITS = 4  # of drawn numbers: a trial's name says exactly what it was trained with


def list_trials(sweep: SweepConfig) -> list[Config]:
    """Every trial of a grid or a random search, with absolute paths; the same sweep gives the same list.

    Raises:
        UsageError: Optuna, which chooses as results come; a base or a value that is no valid configuration.
    """
    if sweep.search == "optuna":
        raise UsageError(
            "search: optuna chooses each trial from the results of others, so its trials cannot be listed before. "
            "Use search: grid or random here."
        )
    return make_trials(sweep, list_grid_points(sweep) if sweep.search == "grid" else draw_random_points(sweep))


def make_trials(sweep: SweepConfig, points: Iterable[Mapping[str, Any]], *, first: int = 0) -> list[Config]:
    """One trial per point ({dotted key: value}) and seed; `first` is the number of the first point.

    Raises:
        UsageError: a value is not valid, with the name of its trial.
    """
    return [config for _, config in _named_points(sweep, points, first)]


def group_trials_by_variant(sweep: SweepConfig) -> dict[str, list[Config]]:
    """The trials of every variant of a sweep that has some: {variant: [trial, ...]}."""
    found: dict[str, list[Config]] = {}
    for point, config in _named_points(sweep, list_grid_points(sweep) if sweep.variants else [], 0):
        found.setdefault(point[VARIANT], []).append(config)
    return found


def _named_points(
    sweep: SweepConfig, points: Iterable[Mapping[str, Any]], first: int
) -> Iterator[tuple[Mapping[str, Any], Config]]:
    """Every point with each of its seeds, as a trial."""
    bases = {variant: load_base_config(sweep, variant) for variant in sweep.variants or (None,)}
    varies_seed = "seed" in sweep.grid
    for number, point in enumerate(points, start=first):
        base = bases[point.get(VARIANT)]
        seeds = (None,) if varies_seed else sweep.seeds or (base.seed,)
        for seed in seeds:
            values = dict(point) if seed is None else {**point, "seed": seed}
            name, *earlier = _names(values, number=None if sweep.search == "grid" else number)
            trial = _trial(base, values, name)
            yield point, _as_named_before(trial, earlier, [key for key in values if key != VARIANT])


def _names(values: Mapping[str, Any], number: int | None) -> list[str]:
    """The name of a trial, then those that earlier releases may have given it.

    It depends on nothing but the values, so it stays where a grid is given in another order or more values are: where the short
    text of a value could be that of another one, a digest of all values follows.
    """
    short, digest = make_trial_name(values, number), _digest(values)
    old = [short, f"trial-{digest}-seed{values['seed']}"]
    if len(short) > LONGEST_NAME:
        return old[1:]
    if number is not None or _says_its_values(values):  # a number is that of one setting
        return old[:1]
    long = f"{short}-{digest}"
    return [long if len(long) <= LONGEST_NAME else old[1], *old]


def _as_named_before(trial: Config, earlier: Sequence[str], varied: Sequence[str]) -> Config:
    """The trial under the name of its run that is there already, if an earlier release has begun one."""
    if RunDirectory(trial.run_directory).config.exists():
        return trial
    for name in earlier:
        before = trial.model_copy(update={"run": trial.run.model_copy(update={"name": name})})
        file = RunDirectory(before.run_directory).config
        if file.exists() and _is_run_of(load_config(file), before, varied):
            return before
    return trial


def _is_run_of(found: Config, trial: Config, varied: Sequence[str]) -> bool:
    """Whether a run is that of a trial, in those keys too that a continued run may change."""
    same = all(get_config_value(found, key) == get_config_value(trial, key) for key in varied)
    return same and not differences(found, trial)


def _says_its_values(values: Mapping[str, Any]) -> bool:
    """Whether no other values of the same keys have the same short name."""
    last_parts = [key.rpartition(".")[2].replace("_", "-") for key in values]
    texts = [value for value in values.values() if isinstance(value, str)]
    if len(set(last_parts)) < len(last_parts) or any(f"-{part}" in text for part in last_parts for text in texts):
        return False
    return all(key == VARIANT or _is_told_by_its_text(value) for key, value in values.items())


def _is_told_by_its_text(value: Any) -> bool:
    """Whether the short text of a value is that of no other one."""
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_]([A-Za-z0-9._-]*[A-Za-z0-9_])?", value) is not None
    if isinstance(value, float):
        return float(_short(value)) == value
    if isinstance(value, list | tuple):
        return len(value) > 1 and all(isinstance(part, int | float) and _is_told_by_its_text(part) for part in value)
    return value is None or isinstance(value, int)


def list_grid_points(sweep: SweepConfig) -> list[dict[str, Any]]:
    """All combinations of the grid, of one variant after another; the last key varies fastest."""
    variants: list[dict[str, Any]] = [{VARIANT: name} for name in sweep.variants] or [{}]
    return [
        {**variant, **dict(zip(sweep.grid, values, strict=True))}
        for variant in variants
        for values in itertools.product(*sweep.grid.values())
    ]


def draw_random_points(sweep: SweepConfig) -> list[dict[str, Any]]:
    """`num_trials` different draws; the first ones stay the same where more are asked for later.

    Raises:
        UsageError: the space holds fewer.
    """
    rng, wanted = np.random.default_rng(sweep.search_seed), sweep.num_trials or 0
    found: dict[str, dict[str, Any]] = {}
    for _ in range(DRAWS_PER_TRIAL * wanted):
        point = {key: _drawn(span, rng) for key, span in sweep.space.items()}
        found.setdefault(repr(point), point)
        if len(found) == wanted:
            return list(found.values())
    raise UsageError(
        f"num_trials should be at most the number of different settings in `space`, found num_trials={wanted} and "
        f"{len(found)} settings. Lower num_trials, or widen the space; more seeds of a setting are given as `seeds`."
    )


def round_to_range(span: Range, value: float) -> Any:
    """A drawn number as it is used: whole, or with few digits, and within the range."""
    assert span.low is not None
    assert span.high is not None
    if span.whole:
        return int(min(max(round(value), math.ceil(span.low)), math.floor(span.high)))
    return min(max(float(f"{value:.{DIGITS}g}"), span.low), span.high)


def load_base_config(sweep: SweepConfig, variant: str | None = None) -> Config:
    """What all trials (of a variant) have in common, with absolute paths and the resources of a trial.

    Without a variant, and where the sweep has no base, that of the first variant.
    """
    base = _file_with_overrides(sweep, variant)
    launch = base.launch
    if launch.device == "cuda" and not sweep.gpus_per_trial:
        raise UsageError(
            "launch.device=cuda needs to know how many: give `gpus_per_trial`, a fraction if trials share a GPU."
        )
    if sweep.early_stopping and not base.train.evaluate_every:
        raise UsageError("early_stopping judges evaluations: give train.evaluate_every, the steps between two of them.")
    cpus = (sweep.cpus_per_trial or sweep.workers_per_trial) / sweep.workers_per_trial
    values: dict[str, Any] = {
        "run.directory": str(sweep.trial_path),
        "launch.workers": sweep.workers_per_trial,
        "launch.cpus_per_worker": cpus,
        "launch.threads": launch.threads or max(1, int(cpus)),  # else every trial would use all cores
        "launch.device": "cuda" if sweep.gpus_per_trial else "cpu",
    }
    if (address := cluster_address(launch)) is not None:
        values["launch.address"] = address  # a trial in a worker of that cluster should not have to find it out
    if sweep.gpus_per_trial:
        values["launch.gpus_per_worker"] = sweep.gpus_per_trial / sweep.workers_per_trial
        if base.data.workers is None:  # of the cores of a trial; the engine would count those of the machine
            values["data.workers"] = max(0, int(cpus) - 1)
    return with_absolute_paths(load_config(base, values))


def _file_with_overrides(sweep: SweepConfig, variant: str | None) -> Config:
    if variant is None and sweep.base is None:
        variant = next(iter(sweep.variants))
    if variant is None:
        return load_config(str(sweep.base), sweep.overrides)
    own = dict(sweep.variants[variant])
    file = own.pop("base", None) or sweep.base
    try:
        return load_config(str(file), {**sweep.overrides, **own})
    except UsageError as error:
        raise UsageError(f"The variant {variant} is not possible. {error}") from None


def begins_from(config: Config) -> list[Path]:
    """The folders of other runs that a run begins from: its pretrained network, or the tree or policy that it is given."""
    paths = [Path(path).absolute() for path in config.begins_from.values()]
    return [path.parent if path.name == "tree.json" else path for path in paths]


def order_in_turns(trials: Sequence[Config]) -> list[list[Config]]:
    """The trials in the order in which they can be trained: one that begins from the run of another comes in a later turn.

    Raises:
        UsageError: some begin from each other.
    """
    waiting = {trial.run_directory: trial for trial in trials}
    turns: list[list[Config]] = []
    while waiting:
        turn = [trial for trial in waiting.values() if not any(path in waiting for path in begins_from(trial))]
        if not turn:
            names = ", ".join(sorted(str(trial.run.name) for trial in waiting.values()))
            raise UsageError(f"A run cannot begin from one that begins from it, as {names} do. Leave one of them out.")
        turns.append(turn)
        for trial in turn:
            del waiting[trial.run_directory]
    return turns


def make_trial_name(values: Mapping[str, Any], number: int | None = None) -> str:
    """`width16-alpha2-seed0`: the last part of every key with its value, after the variant; drawn trials begin with their number."""
    parts = [] if number is None else [f"{number:04d}"]
    parts += [
        value if key == VARIANT else key.rpartition(".")[2].replace("_", "-") + _short(value)
        for key, value in values.items()
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")


def get_config_value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def measure_size_class(config: Config, info: DatasetInfo) -> int:
    """Trials that cost about the same before they grow: the octave of their first network's multiply-adds."""
    return round(math.log2(multiply_adds(first_architecture(config, info))))


def _trial(base: Config, values: Mapping[str, Any], name: str) -> Config:
    try:
        trial = load_config(base, {**{key: value for key, value in values.items() if key != VARIANT}, "run.name": name})
        return load_config(trial, _runs_of_its_seed(trial))
    except UsageError as error:
        raise UsageError(f"The trial {name} is not possible. {error}") from None


def _runs_of_its_seed(trial: Config) -> dict[str, str]:
    """`{seed}` in the path of a run that it begins from stands for its own seed."""
    return {key: path.replace(SEED, str(trial.seed)) for key, path in trial.begins_from.items() if SEED in path}


def _digest(values: Mapping[str, Any]) -> str:
    """A name that stays the same where other trials are added."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _drawn(span: Range, rng: np.random.Generator) -> Any:
    if span.choices is not None:
        return span.choices[int(rng.integers(len(span.choices)))]
    assert span.low is not None
    assert span.high is not None
    if span.log:
        return round_to_range(span, math.exp(rng.uniform(math.log(span.low), math.log(span.high))))
    return (
        int(rng.integers(math.ceil(span.low), math.floor(span.high) + 1))
        if span.whole
        else round_to_range(span, rng.uniform(span.low, span.high))
    )


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}".replace("e+", "e")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(_short, value))
    return "none" if value is None else f"-{value}" if isinstance(value, str) else str(value).lower()
