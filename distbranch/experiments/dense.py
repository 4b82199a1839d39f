"""AdaShare's comparison for dense tasks: a network per task, one for all, the baselines, trees and policies, one recipe for all.

Everything that is chosen is chosen on val; the table is of another split. `Delta` (deltas.py) is against the networks per task.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
from pandas import DataFrame

from distbranch.branching.tree import build_tree_of_groups
from distbranch.config import AdaShareConfig, Config, OptimConfig, load_config
from distbranch.config.network import BASELINES, KEYS_OF_SCOUTS
from distbranch.config.sweep import Setting
from distbranch.data.shards import DatasetInfo
from distbranch.engine.initialisation import first_architecture, read_given_tree
from distbranch.engine.run_log import Report
from distbranch.errors import UsageError, UserError
from distbranch.experiments.affinities import read_planted
from distbranch.experiments.deltas import DELTAS, tabulate_deltas
from distbranch.experiments.designs import load_run_config
from distbranch.experiments.groupings import choose_permutations
from distbranch.experiments.policies import SEARCH, choose_best, make_drawn_variants
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import COSTS, SPLITS, Run, Runs
from distbranch.launch.prepare import ensure_packed
from distbranch.metrics import DELTA, list_dense_metrics, list_first_metrics, list_metrics
from distbranch.report.console import compute_seed_means
from distbranch.report.cost_figures import Spot, draw_deltas
from distbranch.sweep.plan import SEED

SINGLE = "single-task"
SHARED = "hard-sharing"
# Rows of the table that are one run per seed, by their method.
METHOD_NAMES = {SINGLE: "independent", SHARED: "fixed", **{name: name for name in BASELINES}}
TREE, GROUPS, ADASHARE = "tree", "groups", "adashare"
FAMILIES = (*METHOD_NAMES, TREE, GROUPS, ADASHARE)
AFFINITIES = ("agreement", "phi", "importance")  # of the learned trees
BEST = f"{ADASHARE}-best-on-val"
DELTA_IN_WORDS = (
    "On {split}; mean ± standard deviation over seeds. Delta is against the mean of "
    f"{SINGLE} over its seeds, in percent, better above 0: the mean over tasks of that over their metrics (as AdaShare's paper), and "
    "`first` over the first metric of each task."
)
# What no method but that of the configuration reads.
RESET: Setting = {
    "method.groups": None,
    "method.permutation": None,
    "method.begin": "grown",
    "method.lowest": None,
    "method.widen_at": None,
    **{f"method.{key}": None for key in KEYS_OF_SCOUTS},
    **{f"adashare.{key}": value for key, value in AdaShareConfig().model_dump().items()},
}
# What the variants have from the overrides already.
DERIVED = (*RESET, "train.iterations", *(f"optim.{key}" for key in OptimConfig.model_fields))
LEAST_UNITS = 2  # that the given groups have for themselves: the last ones, where tasks differ most


@dataclass(frozen=True)
class DenseOptions:
    """What is compared.

    Attributes:
        methods: of `FAMILIES`; the networks per task are always trained.
        search: config of AdaShare's search, of which `adashare`, `optim` and `train.iterations` count; that of the experiment if None.
        groups: a tree (run directory or tree.json); the known groups of the data if None.
        split_from: the lowest unit that known groups have for themselves; the last but one if None.
        permutations: of those groups.
        policies: drawn from the search, beside the most probable one.
        iterations: steps of every network but the search; those of the configuration if None.
        split: `val` or `test`, of what is shown and drawn.
    """

    methods: Sequence[str] = FAMILIES
    search: Path | None = None
    groups: Path | None = None
    split_from: str | None = None
    permutations: int = 1
    policies: int = 8
    iterations: int | None = None
    split: str = "test"


def design_dense(
    config: Path,
    overrides: Sequence[str],
    options: DenseOptions,
    *,
    name: str | None = None,
    report: Report,
) -> Experiment:
    """Every method of AdaShare's table with the recipe of a configuration.

    Args:
        config: data, network and recipe; its `method` says how a tree grows.
        overrides: `key=value`, for all runs.
        options: what is compared.
        name: of the experiment's directory.
        report: told of data that are packed first, for their groups are asked for.

    Raises:
        UsageError: unknown methods, or a unit that the network has not.
        UserError: data without dense tasks.
    """
    unknown = [method for method in options.methods if method not in FAMILIES]
    if unknown:
        raise UsageError(
            f"--methods should be of {', '.join(FAMILIES)}, found {', '.join(unknown)}."
        )
    name = name or f"dense-{config.stem}"
    chosen = load_run_config(config, _leave_out_adashare(config, overrides))
    info = ensure_packed(chosen, report)
    if not any(task.is_dense for task in info.tasks):
        raise UserError(
            f"{info.path} should have dense tasks (segmentation, depth, normals, heat), found none. `distbranch experiment table` "
            "compares networks of other tasks."
        )
    plain: Setting = {"base": str(config.absolute()), **RESET}
    if options.iterations is not None:
        plain["train.iterations"] = options.iterations

    variants: Variants = {}
    notes = []
    for method, method_name in METHOD_NAMES.items():
        if method in (SINGLE, *options.methods):
            variants[method] = {**plain, "method.name": method_name}
    if TREE in options.methods:
        variants |= _make_trees(plain, chosen)
    if GROUPS in options.methods:
        found = make_group_variants(plain, chosen, info, options)
        variants |= found
        if not found:
            notes.append("The data say nothing of groups of tasks: give a tree by --groups.")
    if ADASHARE in options.methods:
        search = options.search or config
        found = _make_policies(search, plain, name, overrides, options)
        variants |= found
        if not found:
            notes.append(
                f"AdaShare is left out: {search} is no search (method.name=adashare without adashare.policy); give one by --search."
            )

    def analyse(runs: Runs) -> Findings:
        return analyse_dense(runs, options.split, notes)

    return Experiment(
        name=name,
        about={"experiment": "dense", "split": options.split},
        variants=variants,
        analyse=analyse,
        splits=("val", options.split),
        overrides=(f"metric={choose_metric(info)}",),
        derived=DERIVED,
    )


# ---- what is trained


def _leave_out_adashare(config: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides of a search are for the search alone, which another configuration may describe."""
    if load_config(config).method.name == ADASHARE:
        return list(overrides)
    return [text for text in overrides if not text.startswith(f"{ADASHARE}.")]


def choose_metric(info: DatasetInfo) -> str:
    """The mean by which the report of the runs orders them: the first metric of the first dense task."""
    kinds = list_dense_metrics()
    dense = [task.kind for task in info.tasks if task.is_dense]
    return next(metric for metric in list_first_metrics() if kinds[metric] == dense[0])


def _make_trees(plain: Setting, config: Config) -> Variants:
    """A tree that grows as the configuration says, by each affinity."""
    kept = {"method.lowest": config.method.lowest} if config.method.grows else {}
    return {
        f"{TREE}-{affinity}": {
            **plain,
            **kept,
            "method.name": "branching",
            "method.affinity": affinity,
        }
        for affinity in AFFINITIES
    }


def make_group_variants(
    plain: Setting, config: Config, info: DatasetInfo, options: DenseOptions
) -> Variants:
    """The tree of the given or known groups, from scratch, and permuted ones; none where no groups are known."""
    given = {**plain, "method.name": "fixed"}
    shared = load_config(config, {**_without_base(given)})
    thin = first_architecture(shared, info)
    if options.groups is not None:
        given["method.groups"] = str(options.groups.absolute())
    else:
        names = [task.name for task in info.tasks]
        groups = [[names[task] for task in group] for group in read_planted(info, names)]
        if not groups:
            return {}
        units = thin.routing.units
        lowest = options.split_from or units[-min(LEAST_UNITS, len(units))]
        if lowest not in units:
            raise UsageError(
                f"--split-from should be a unit of the network, found '{lowest}'. It has {', '.join(units)}."
            )
        build_tree_of_groups(units, names, {lowest: groups})
        given["method.groups"] = {lowest: groups}
    tree = read_given_tree(load_config(config, _without_base(given)), thin)

    variants = {GROUPS: given}
    for number in choose_permutations(tree, options.permutations, what="The tree of the groups"):
        variants[f"{GROUPS}-permuted-{number}"] = {**given, "method.permutation": number}
    return variants


def _without_base(settings: Setting) -> Setting:
    return {key: value for key, value in settings.items() if key != "base"}


def _make_policies(
    search: Path, plain: Setting, name: str, overrides: Sequence[str], options: DenseOptions
) -> Variants:
    """A search, its most probable policy and drawn ones, each trained with the recipe of all others; none if it is no search."""
    given = load_run_config(search, overrides)
    if not given.searches:
        return {}
    # How it searches is its own; what it searches for is the network and the tasks of all others.
    own = {f"{ADASHARE}.{key}": value for key, value in given.adashare.model_dump().items()}
    own |= {f"optim.{key}": value for key, value in given.optim.model_dump().items()}
    own |= {"method.name": ADASHARE, "train.iterations": given.train.iterations}
    searched = f"{ADASHARE}-{SEARCH}"
    variants = {searched: {**plain, **own}}
    folder = build_sweep(name, variants, overrides, derived=DERIVED).trial_path

    fresh = {**plain, "method.name": ADASHARE}
    drawn = make_drawn_variants(fresh, folder / f"{searched}-seed{SEED}", options.policies)
    return {**variants, **{f"{ADASHARE}-{key}": value for key, value in drawn.items()}}


# ---- what is found


def analyse_dense(runs: Runs, split: str, notes: Sequence[str] = ()) -> Findings:
    """The table of all networks, with AdaShare's best policy on val as one more, and Delta against multiply-adds."""
    runs = [run for run in runs if run.variant != f"{ADASHARE}-{SEARCH}"]
    single = [run for run in runs if run.variant == SINGLE]
    on_val = tabulate_deltas(runs, single, "val")
    best = choose_best(
        on_val[on_val["variant"].str.startswith(f"{ADASHARE}-")], DELTA, name="variant"
    )
    chosen = [replace(run, variant=BEST) for run in runs if best.get(run.seed) == run.variant]

    tables = {part: tabulate_dense([*runs, *chosen], single, part) for part in SPLITS}
    csv = pandas.concat(tables, names=["split"]).reset_index("split")
    sentences = [DELTA_IN_WORDS.format(split=split), *notes]
    for seed, policy in best.items():
        sentences.append(f"Seed {seed}: of AdaShare's policies {policy} is the best on val.")
    figure = draw_deltas(_make_spots(tables[split]), split=split)
    known = tables[split].columns
    others = [name for name in list_dense_metrics() if name not in list_first_metrics()]
    # The file has all; table.md tells them below.
    shown = tables[split].drop(columns=known.intersection(others))
    return Findings(sentences, shown, {"dense.csv": csv}, {"dense.png": figure})


def tabulate_dense(runs: Runs, single: Runs, split: str) -> DataFrame:
    """A row per network: network, seeds, both Deltas, costs with and without heads, metrics by kind, the first ones first.

    Means over seeds with their `_sd`; metrics are means over the tasks of a kind.
    """
    deltas = tabulate_deltas(runs, single, split)
    names = order_metrics(runs, split)
    rows = []
    for run, delta in zip(runs, deltas.to_dict("records"), strict=True):
        row = {"network": run.variant, **{column: delta[column] for column in DELTAS}}
        row |= measure_costs(run)
        row |= {metric: run.get_mean(metric, split) for metric in names}
        rows.append(row)
    values = DataFrame(rows).set_index("network").astype(float)
    networks = values.groupby("network", sort=False)
    table = compute_seed_means(networks)
    table.insert(0, "seeds", networks.size())
    return table.reset_index()


def split_columns(table: DataFrame | None) -> list[DataFrame]:
    """What stands in one table of a terminal: Delta and costs, then the metrics; each begins with the networks."""
    assert table is not None
    metrics = [name for name in table.columns if name.removesuffix("_sd") in list_dense_metrics()]
    return [table.drop(columns=metrics), table[["network", *metrics]]]


def measure_costs(run: Run) -> dict[str, int]:
    """Weights and multiply-adds, with and without heads."""
    found = {}
    for cost in COSTS:
        found[cost] = run.summary[cost]
        found[f"backbone_{cost}"] = run.summary[cost] - run.summary[f"head_{cost}"]
    return found


def order_metrics(runs: Runs, split: str) -> list[str]:
    """The metrics of dense tasks that any run has a mean of: the first one of each kind, then those of Delta, then the others."""
    metrics = list_metrics()
    known = [
        name
        for name in list_dense_metrics()
        if any(run.get_mean(name, split) is not None for run in runs)
    ]
    # A stable order, so that each part keeps that of every table.
    return sorted(known, key=lambda name: (not metrics[name].is_first, not metrics[name].in_delta))


def _make_spots(table: DataFrame) -> dict[str, list[Spot]]:
    """The networks by what they are, as the legend names it."""
    legend = {GROUPS: "given groups", TREE: "learned trees", ADASHARE: "AdaShare"}
    parts: dict[str, list[Spot]] = {part: [] for part in ("baselines", *legend.values())}
    for row in table.to_dict("records"):
        name = row["network"]
        part = legend.get(name.partition("-")[0], "baselines")
        costs = {cost: (row[cost], None) for cost in COSTS}
        shown = name
        if name.startswith(f"{ADASHARE}-policy-"):  # eight names would cover all others
            shown = ""
        parts[part].append(Spot(shown, costs, (row[DELTA], row[f"{DELTA}_sd"])))
    return parts
