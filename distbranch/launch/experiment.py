"""Comparisons: several configurations, each with several seeds, trained one after another or a few at a time.

Every run is an ordinary run in its own directory, so the same command goes on where it was stopped and repeats nothing.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.decision import choose_groups
from distbranch.config import Config, load_config, to_yaml
from distbranch.data.mixture import read_data
from distbranch.engine.metrics import Report
from distbranch.engine.results import read_result
from distbranch.engine.run_directory import RunDirectory, read_lines
from distbranch.errors import UsageError, UserError
from distbranch.launch.prepare import packed, with_absolute_paths


def table(
    configs: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], *, jobs: int, report: Report
) -> Mapping[str, list[dict[str, Any]]]:
    """The results of every configuration for every seed: {config name: [content of result.json, ...]}.

    Args:
        configs: YAML files.
        seeds: each run is named `<config>-seed<seed>`.
        overrides: `key=value`, for all runs.
        jobs: runs at the same time.
        report: called when a run begins and ends.

    Raises:
        UserError: a run failed; the others were finished first.
    """
    runs = [_configured(path, seed, overrides) for path in configs for seed in seeds]
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    for run in {run.data.path: run for run in runs}.values():  # before several runs want it at once
        packed(run, report)
    with ThreadPoolExecutor(jobs) as pool:
        ended = list(pool.map(lambda run: _train(run, report), runs))
    failed = [
        f"{run.run.name} (exit code {code}, see {_log(run)})" for run, code in zip(runs, ended, strict=True) if code
    ]
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs did not end well: {'; '.join(failed)}.")
    results: dict[str, list[dict[str, Any]]] = {}
    for path, run in zip((path for path in configs for _ in seeds), runs, strict=True):
        result = read_result(run.run_directory)
        assert result is not None
        results.setdefault(path.stem, []).append(result.summary)
    return results


def _configured(path: Path, seed: int, overrides: Sequence[str]) -> Config:
    config = load_config(path, [*overrides, f"seed={seed}", f"run.name={path.stem}-seed{seed}"])
    return with_absolute_paths(config)


def _train(config: Config, report: Report) -> int:
    """Train in a process of its own, so that several can run at once and none inherits the state of another."""
    if read_result(config.run_directory) is not None:
        report({"kind": "finished", "directory": str(config.run_directory)})
        return 0
    report({"kind": "begun", "name": config.run.name})
    file = config.run_directory.with_name(f"{config.run.name}.yaml")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(to_yaml(config))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}). Give another run.directory.") from None
    with _log(config).open("ab") as log:
        code = subprocess.run(
            [sys.executable, "-m", "distbranch", "train", str(file)], stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    report({"kind": "ended", "name": config.run.name, "exit_code": code})
    return code


def _log(config: Config) -> Path:
    return config.run_directory.with_name(f"{config.run.name}.log")


def top_groups(run_directory: Path) -> dict[str, list[list[str]]]:
    """The groups of the first decision of a run under either kind of affinity: {kind: [[task, ...], ...]}.

    Both come from the same statistics of the same thin network, so each is what a run with that kind would have chosen.

    Raises:
        UserError: the run has taken no decision yet.
    """
    files = RunDirectory(run_directory)
    decisions = read_lines(files.decisions)
    if not decisions:
        raise UserError(f"The run {run_directory} has taken no decision yet. Give a run of method.name=branching.")
    first = decisions[0]
    names = [task for group in first["tasks"] for task in group]
    order = [branch for group in first["groups"] for branch in group]
    names = [name for _, name in sorted(zip(order, names, strict=True))]
    seed = load_config(files.config).seed
    with np.load(files.path / first["affinity_file"]) as matrices:
        affinities = {kind: matrices[kind] for kind in ("agreement", "phi")}
    decided = {
        kind: choose_groups(
            affinity,
            alpha=first["alpha"],
            pools_above=first["pools_above"],
            unit_cost=first["unit_cost"],
            max_groups=first["max_groups"],
            seed=seed,
        )
        for kind, affinity in affinities.items()
    }
    return {kind: [[names[task] for task in group] for group in decision.groups] for kind, decision in decided.items()}


def planted_agreement(run_directory: Path) -> float:
    """How well a run's first groups agree with the known groups of its data set: the adjusted Rand index, 1 is equal.

    Raises:
        UserError: no decision yet, or a data set without known groups.
    """
    config = load_config(RunDirectory(run_directory).config)
    info = read_data(config.data)
    if not info.groups:
        raise UserError(f"The data set {info.path} says nothing of groups of tasks. Use one that does: rendered-faces.")
    names = [task.name for task in info.tasks]
    found = top_groups(run_directory)[config.method.affinity]

    def numbered(groups: Iterable[Sequence[str]]) -> list[int]:
        number = {name: index for index, group in enumerate(groups) for name in group}
        return [number[name] for name in names]

    return float(adjusted_rand_score(numbered(info.groups.values()), numbered(found)))


def planted(config: Path, seeds: Sequence[int], overrides: Sequence[str], *, report: Report) -> dict[int, float]:
    """The adjusted Rand index of runs of one configuration, each with data drawn and weights begun from its own seed.

    Raises:
        UserError: a run failed, or the configuration does not say how its data are packed.
    """
    indices = {}
    for seed in seeds:
        base = _configured(config, seed, overrides)
        pack = {**(base.data.pack or {}), "seed": seed}
        data = base.data.model_copy(update={"pack": pack, "path": f"{base.data.path}-seed{seed}"})
        run = base.model_copy(update={"data": data})
        packed(run, report)
        code = _train(run, report)
        if code:
            raise UserError(f"The run {run.run.name} did not end well (exit code {code}, see {_log(run)}).")
        indices[seed] = planted_agreement(run.run_directory)
    return indices
