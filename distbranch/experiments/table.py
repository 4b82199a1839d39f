"""Tables 1 and 2 of the paper: networks against each other, over seeds, on val and test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distbranch.config.sweep import SweepConfig
from distbranch.engine.metrics import Report
from distbranch.errors import UsageError
from distbranch.experiments.comparison import Runs, config_of, experiment_sweep, run_experiment, write_text
from distbranch.experiments.place import check_place, record_place
from distbranch.report.console import result_markdown
from distbranch.sweep.plan import SEED
from distbranch.sweep.trial_status import SweepDirectory

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # {network: [content of result.json, ...]}


def compare_configs(
    configs: Sequence[Path],
    seeds: Sequence[int],
    overrides: Sequence[str],
    *,
    split: str,
    name: str,
    jobs: int | None,
    report: Report,
) -> tuple[dict[str, list[dict[str, Any]]], Path]:
    """Train every configuration with every seed; the results ({config name: [content of result.json, ...]}) and where they are.

    A configuration that begins from the run of another one (`method.pretrained`, `method.groups`, `adashare.policy`) is trained after it.
    If it names that run as the other configuration (`runs/fps-vgg-wide`), each of its seeds begins from the run of the same seed.

    Args:
        configs: YAML files.
        seeds: each run is named `<config>-seed<seed>`, and one of that name and configuration that is there is not repeated.
        overrides: `key=value`, for all runs.
        split: `val` or `test`, which the data must have; the table has both.
        name: of the directory of the table.
        jobs: runs at the same time; None: as many as fit.
        report: called when a run begins and ends.

    Raises:
        UserError: a run failed; the others were finished first.
    """
    sweep = experiment_sweep(name, variants_of_files(configs), overrides, seeds=seeds, jobs=jobs, among_runs=True)
    sweep = linked(sweep, overrides)
    about = {"experiment": "table"}
    check_place(sweep, about)
    runs = run_experiment(sweep, report, splits=(split,))
    record_place(sweep, about)
    write_text(sweep.path, "table.md", table_markdown(runs, sweep))
    return results_of(runs), sweep.path


def variants_of_files(configs: Sequence[Path]) -> dict[str, dict[str, str]]:
    """A variant per config file, named as the file."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    return {path.stem: {"base": str(path.absolute())} for path in configs}


def linked(sweep: SweepConfig, overrides: Sequence[str]) -> SweepConfig:
    """The sweep, with every variant that begins from the run of another one linked to its run of the same seed."""
    found: dict[str, dict[str, Any]] = {}
    for name, variant in sweep.variants.items():
        given = config_of(Path(variant["base"]), overrides).begins_from
        names = {key: Path(path).name for key, path in given.items()}
        links = {
            key: str(sweep.trial_path / f"{other}-seed{SEED}")
            for key, other in names.items()
            if other in sweep.variants
        }
        found[name] = {**variant, **links}
    return sweep.model_copy(update={"variants": found})


def results_of(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """{variant: [content of result.json, with latency_ms, ...]}."""
    return {variant: [dict(run.summary) for run in members] for variant, members in runs.items()}


def by_data_set(results: Results, split: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Joint networks beside separate ones: for every data set of a joint run, all results on just its tasks.

    Returns:
        {data set: {network: [content of result.json, with the metrics of this data set alone, ...]}}; empty without joint runs.
    """
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    every = [result["metrics"].get(split, {}) for runs in results.values() for result in runs]
    tasks = {name: set(part["tasks"]) for scores in every for name, part in scores.get("datasets", {}).items()}
    for name, own in tasks.items():
        for network, runs in results.items():
            parts = [_part(result["metrics"].get(split, {}), own) for result in runs]
            if all(part is not None for part in parts):
                alone = [{**result, "metrics": {split: part}} for result, part in zip(runs, parts, strict=True)]
                found.setdefault(name, {})[network] = alone
    return found


def _part(scores: Mapping[str, Any], tasks: set[str]) -> Mapping[str, Any] | None:
    """The scores on just these tasks: those of a data set in a joint run, or of a run that has no others with a label."""
    parts: list[Mapping[str, Any]] = [scores, *scores.get("datasets", {}).values()]
    return next((part for part in parts if _labelled(part) == tasks), None)


def _labelled(part: Mapping[str, Any]) -> set[str]:
    return {task for task, row in part.get("tasks", {}).items() if row["num_labelled"]}


def table_markdown(runs: Runs, sweep: SweepConfig) -> str:
    """Both splits, every data set of joint runs by itself, and how the latency was measured."""
    results = results_of(runs)
    parts = [f"# {sweep.name}", "Means over tasks; mean ± standard deviation over seeds.", latency_note(sweep)]
    for split in ("test", "val"):
        parts += [f"## {split}", result_markdown(results, split=split)]
        for name, alone in by_data_set(results, split).items():
            parts += [f"### {split}, the tasks of {name}", result_markdown(alone, split=split)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def latency_note(sweep: SweepConfig) -> str:
    """How the latencies of an experiment were measured."""
    about = json.loads(SweepDirectory(sweep.path).latency.read_text())
    return (
        f"Latency: {about['runtime']}, batch norm folded, batch 1, {about['threads']} thread, median of {about['turns']} turns "
        f"in one process on {about['host']}."
    )
