"""The thin network on which kinds of affinity are compared: trained for it, or a finished run, and what may be asked of it."""

from collections.abc import Sequence
from pathlib import Path

from distbranch.branching.affinity import AFFINITIES
from distbranch.config import load_config
from distbranch.data.mixture import read_data
from distbranch.data.shards import DatasetInfo
from distbranch.engine.affinities import MEASURED
from distbranch.engine.artifact import load_model
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Report
from distbranch.errors import UsageError, UserError
from distbranch.experiments.designs import OF_BEGINNINGS, THIN, make_thin_variant
from distbranch.experiments.runner import build_sweep, check_same_comparison, train_variants
from distbranch.launch.prepare import is_to_be_packed, read_packed_data
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.sweep.plan import list_trials


def train_scout(
    config: Path,
    overrides: Sequence[str],
    *,
    kinds: Sequence[str],
    num_groups: int,
    split_from: str | None,
    splits: Sequence[str],
    seed: int,
    jobs: int | None,
    name: str | None,
    report: Report,
) -> Path:
    """Train the thin network of a configuration in the experiment's directory, and return its run directory.

    Args:
        config: of any method; what it says of decisions is left out.
        overrides: `key=value`.
        kinds: as of `design_affinities`, like the next two: what would be refused there is refused before the run.
        num_groups: how many every kind makes.
        split_from: the lowest unit with branches.
        splits: which the data must have for what follows.
        seed: of the run.
        jobs: see `run_experiment`.
        name: of the experiment's directory; None: its own.
        report: told when the run begins and ends.

    Raises:
        UserError: the directory is of another comparison.
        UsageError: no such kind or unit, or a number of groups that is not possible.
    """
    thin = make_thin_variant(config, overrides)
    sweep = build_sweep(
        name or f"affinities-{config.stem}",
        {THIN: thin},
        overrides,
        seeds=[seed],
        jobs=jobs,
        derived=OF_BEGINNINGS,
    )
    (trial,) = list_trials(sweep)
    if read_result(trial.run_directory) is None:
        check_kinds(kinds)
        if not is_to_be_packed(trial):
            info = read_packed_data(trial)
            choose_layer(first_architecture(trial, info), num_groups, split_from)
        # The table of what is trained here would replace that of another experiment.
        check_same_comparison(sweep, {"experiment": "affinities"})
        train_variants(sweep, report, splits=splits)
    return trial.run_directory


def read_scout(scout: Path) -> tuple[Network, DatasetInfo]:
    """The network of a finished run and its data.

    Raises:
        UserError: it has not finished, or its tasks have branches of their own.
    """
    if read_result(scout) is None:
        raise UserError(f"{scout} should be a finished run, found none. Train it to its end first.")
    network, _ = load_model(scout)
    if network.architecture.tree.splits:
        raise UserError(
            f"All tasks should share the network of {scout}, but its tree has grown. Give the run of a thin one, method.name=fixed."
        )
    return network, read_data(load_config(RunDirectory(scout).config).data)


def choose_layer(architecture: Architecture, num_groups: int, split_from: str | None) -> int:
    """The number (1..L) of the lowest unit with branches.

    Raises:
        UsageError: no such unit, or a number of groups that its tasks cannot make.
    """
    num_tasks = len(architecture.tasks)
    if not 2 <= num_groups < num_tasks:
        raise UsageError(
            f"--groups should be from 2 to {num_tasks - 1} for {num_tasks} tasks, found {num_groups}."
        )
    units = architecture.routing.units
    if split_from is None:
        return len(units) // 2 + 1  # conv4_1 of VGG-16, and of VGG-9
    if split_from not in units:
        raise UsageError(
            f"--split-from should be a unit of the network, found '{split_from}'. It has {', '.join(units)}."
        )
    return units.index(split_from) + 1


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse an unknown kind before anything is trained or measured."""
    for kind in kinds:
        if kind not in MEASURED:
            AFFINITIES[kind]
