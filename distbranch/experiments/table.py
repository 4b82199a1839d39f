"""Tables 1 and 2 of the paper: networks against each other, over seeds, on val and test."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distbranch.config.sweep import SweepConfig
from distbranch.errors import UsageError
from distbranch.experiments.runner import Experiment, Findings, load_run_config
from distbranch.experiments.runs import Runs
from distbranch.report.console import make_result_markdown
from distbranch.sweep.plan import SEED
from distbranch.sweep.trial_status import SweepDirectory

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # {network: [content of result.json, ...]}


def design_table(configs: Sequence[Path], overrides: Sequence[str], *, split: str) -> Experiment:
    """Every configuration with every seed; found: {config name: [content of result.json, ...]}.

    A configuration that begins from the run of another one (`method.pretrained`, `method.groups`, `adashare.policy`) is trained
    after it. If it names that run as the other configuration (`runs/fps-vgg-wide`), each of its seeds begins from the run of the
    same seed.

    Args:
        configs: YAML files; each run is named `<config>-seed<seed>`, and one of that name and configuration is not repeated.
        overrides: `key=value`, for all runs.
        split: `val` or `test`, which the data must have; the table has both.
    """

    def analyse(runs: Runs, sweep: SweepConfig) -> Findings:
        results = collect_results(runs)
        return Findings(make_result_markdown(results, split=split), table_markdown(runs, sweep), found=results)

    return Experiment(
        name="table",
        about={"experiment": "table"},
        variants=variants_of_files(configs),
        analyse=analyse,
        splits=(split,),
        among_runs=True,
        link=lambda sweep: link_seeds(sweep, overrides),
    )


def variants_of_files(configs: Sequence[Path]) -> dict[str, dict[str, str]]:
    """A variant per config file, named as the file."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    return {path.stem: {"base": str(path.absolute())} for path in configs}


def link_seeds(sweep: SweepConfig, overrides: Sequence[str]) -> SweepConfig:
    """The sweep, with every variant that begins from the run of another one linked to its run of the same seed."""
    linked: dict[str, dict[str, Any]] = {}
    for name, variant in sweep.variants.items():
        linked[name] = dict(variant)
        given = load_run_config(Path(variant["base"]), overrides).begins_from
        for key, path in given.items():
            other = Path(path).name
            if other in sweep.variants:
                linked[name][key] = str(sweep.trial_path / f"{other}-seed{SEED}")
    return sweep.model_copy(update={"variants": linked})


def collect_results(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """{variant: [content of result.json, with latency_ms, ...]}."""
    return {variant: [dict(run.summary) for run in members] for variant, members in runs.items()}


def split_by_data_set(results: Results, split: str) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Joint networks beside separate ones: for every data set of a joint run, all results on just its tasks.

    Returns:
        {data set: {network: [content of result.json, with the metrics of this data set alone, ...]}}; empty without joint runs.
    """
    tasks: dict[str, set[str]] = {}
    for runs in results.values():
        for result in runs:
            of_data_sets = result["metrics"].get(split, {}).get("datasets", {})
            tasks |= {name: set(part["tasks"]) for name, part in of_data_sets.items()}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name, own in tasks.items():
        for network, runs in results.items():
            parts = [_find_part(result["metrics"].get(split, {}), own) for result in runs]
            if None not in parts:
                alone = [{**result, "metrics": {split: part}} for result, part in zip(runs, parts, strict=True)]
                found.setdefault(name, {})[network] = alone
    return found


def _find_part(scores: Mapping[str, Any], tasks: set[str]) -> Mapping[str, Any] | None:
    """The scores on just these tasks: those of a data set in a joint run, or of a run that has no others with a label."""
    parts: list[Mapping[str, Any]] = [scores, *scores.get("datasets", {}).values()]
    for part in parts:
        labelled = {task for task, row in part.get("tasks", {}).items() if row["num_labelled"]}
        if labelled == tasks:
            return part
    return None


def table_markdown(runs: Runs, sweep: SweepConfig) -> str:
    """Both splits, every data set of joint runs by itself, and how the latency was measured."""
    results = collect_results(runs)
    parts = [f"# {sweep.name}", "Means over tasks; mean ± standard deviation over seeds.", describe_latency(sweep)]
    for split in ("test", "val"):
        parts += [f"## {split}", make_result_markdown(results, split=split)]
        for name, alone in split_by_data_set(results, split).items():
            parts += [f"### {split}, the tasks of {name}", make_result_markdown(alone, split=split)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def describe_latency(sweep: SweepConfig) -> str:
    """How the latencies of an experiment were measured."""
    about = json.loads(SweepDirectory(sweep.path).latency.read_text())
    return (
        f"Latency: {about['runtime']}, batch norm folded, batch 1, {about['threads']} thread, median of {about['turns']} turns "
        f"in one process on {about['host']}."
    )
