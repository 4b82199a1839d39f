"""Comparisons: several configurations, each with several seeds, trained one after another or a few at a time.

Every run is an ordinary run in its own directory, so the same command goes on where it was stopped and repeats nothing.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distbranch.config import Config, load_config
from distbranch.engine.metrics import Report
from distbranch.engine.session import read_result
from distbranch.errors import UserError
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
    packed(runs[0], report)  # once, before several runs want it
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
    file.parent.mkdir(parents=True, exist_ok=True)
    from distbranch.config import to_yaml

    file.write_text(to_yaml(config))
    with _log(config).open("ab") as log:
        code = subprocess.run(
            [sys.executable, "-m", "distbranch", "train", str(file)], stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    report({"kind": "ended", "name": config.run.name, "exit_code": code})
    return code


def _log(config: Config) -> Path:
    return config.run_directory.with_name(f"{config.run.name}.log")
