"""Tables 1 and 2 of the paper: networks against each other, over seeds, on val and test."""

import json
from collections.abc import Sequence
from pathlib import Path

from distbranch.config.sweep import SweepConfig
from distbranch.engine.metrics import Report
from distbranch.errors import UsageError
from distbranch.launch.experiment.comparison import Runs, experiment_sweep, run_experiment, write_text
from distbranch.launch.sweep.standing import SweepDirectory
from distbranch.report.console import result_markdown


def compare_configs(
    configs: Sequence[Path],
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    name: str,
    jobs: int | None,
    report: Report,
) -> tuple[dict[str, list[dict[str, object]]], Path]:
    """Train every configuration with every seed; the results ({config name: [content of result.json, ...]}) and where they are.

    A configuration that begins from the run of another one (`method.pretrained`, `method.groups`) is trained after it.

    Args:
        configs: YAML files.
        seeds: each run is named `<config>-seed<seed>`, and one of that name and configuration that is there is not repeated.
        overrides: `key=value`, for all runs.
        name: of the directory of the table.
        jobs: runs at the same time; None: as many as fit.
        report: called when a run begins and ends.

    Raises:
        UserError: a run failed; the others were finished first.
    """
    sweep = experiment_sweep(name, variants_of_files(configs), overrides, seeds=seeds, jobs=jobs, among_runs=True)
    runs = run_experiment(sweep, report)
    write_text(sweep.path, "table.md", table_markdown(runs, sweep))
    return results_of(runs), sweep.path


def variants_of_files(configs: Sequence[Path]) -> dict[str, dict[str, str]]:
    """A variant per config file, named as the file."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    return {path.stem: {"base": str(path.absolute())} for path in configs}


def results_of(runs: Runs) -> dict[str, list[dict[str, object]]]:
    """{variant: [content of result.json, with latency_ms, ...]}."""
    return {variant: [dict(run.summary) for run in members] for variant, members in runs.items()}


def table_markdown(runs: Runs, sweep: SweepConfig) -> str:
    """Both splits, and how the latency was measured."""
    results = results_of(runs)
    parts = [f"## {split}\n\n{result_markdown(results, split=split)}" for split in ("test", "val")]
    return (
        f"# {sweep.name}\n\nMeans over tasks; mean ± standard deviation over seeds.\n{latency_note(sweep)}\n\n"
        + "\n".join(parts)
    )


def latency_note(sweep: SweepConfig) -> str:
    """How the latencies of an experiment were measured."""
    about = json.loads(SweepDirectory(sweep.path).latency.read_text())
    return (
        f"Latency: {about['runtime']}, batch norm folded, batch 1, {about['threads']} thread, median of {about['turns']} turns "
        f"in one process on {about['host']}."
    )
