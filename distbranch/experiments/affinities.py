"""All kinds of affinity on one finished network: the groups that each would make, how alike they are, and what trees of them are worth.

The network is the scout. Trees have the same groups in a block of layers, from one up to the top, and are trained from scratch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from pandas import DataFrame
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

from distbranch.branching.affinity import AFFINITIES
from distbranch.branching.grouping import Groups, Matrix, cluster_branches, label_branches
from distbranch.branching.tree import build_tree_of_groups
from distbranch.config import load_config
from distbranch.config.sweep import Setting
from distbranch.data.shards import DatasetInfo
from distbranch.engine.affinities import MEASURED, MeasuredAffinity
from distbranch.engine.affinities.measure import measure_affinity
from distbranch.engine.distributed import Ranks
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_log import Report
from distbranch.errors import UserError
from distbranch.experiments.analyses import describe_differences, summarise_differences
from distbranch.experiments.designs import METRIC, OF_BEGINNINGS, THIN, make_thin_variant
from distbranch.experiments.groupings import NOTE, choose_permutations, measure_losses
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import Runs, select_means, tabulate_runs
from distbranch.experiments.scouts import check_kinds, choose_layer, read_scout
from distbranch.models.network import Network
from distbranch.report.experiment_figures import draw_affinities

SHOWN_FIRST = ("importance",)  # by its groups all matrices are ordered
PLANTED = "planted"  # the known groups of a data set, among the kinds


def design_affinities(
    config: Path,
    overrides: Sequence[str],
    *,
    scout: Path,
    kinds: Sequence[str],
    num_groups: int,
    split_from: str | None,
    permutations: int,
    split: str,
    has_own_scout: bool,
    metric: str = METRIC,
    report: Report,
) -> Experiment:
    """What every kind makes of a scout, and with `permutations` what its trees are worth beside their permutations.

    Args:
        config: of the trees; its network should be of the scout's units.
        overrides: `key=value`, for all runs.
        scout: a finished run that all tasks share.
        kinds: of affinity, in the order in which they are shown; all if empty.
        num_groups: how many every kind makes.
        split_from: the lowest unit with branches; the middle one of the network if None.
        permutations: of every tree; 0: no tree is trained.
        split: `val` or `test`.
        has_own_scout: whether the scout is the run THIN of this experiment, which is compared too then.
        metric: a mean over tasks, of the trees.
        report: called with how many kinds are measured.

    Raises:
        UserError: the scout is no finished run, or has branches.
        UsageError: no such kind or unit, or a number of groups that is not possible.
    """
    thin = make_thin_variant(config, overrides)  # which loads the plug-ins
    kinds = list(dict.fromkeys(kinds or [*SHOWN_FIRST, *MEASURED, *AFFINITIES]))
    check_kinds(kinds)
    # Overrides that the trees would not follow are refused before minutes of measuring.
    build_sweep("affinities", {THIN: thin}, overrides, derived=OF_BEGINNINGS)
    network, info = read_scout(scout)
    layer = choose_layer(network.architecture, num_groups, split_from)
    lowest, names = network.routing.units[layer - 1], network.tasks.names
    measured = measure_kinds(network, info, scout, layer, kinds, report)
    groups = {kind: group_tasks(one.matrix, num_groups) for kind, one in measured.items()}

    variants: Variants = {}
    if has_own_scout or not permutations:
        variants[THIN] = thin
    if permutations:
        variants |= make_tree_variants(thin, network, lowest, groups, permutations)

    def analyse(runs: Runs) -> Findings:
        title = f"{scout.absolute().name}: {num_groups} groups from {lowest} on"
        found = describe_kinds(measured, groups, names, read_planted(info, names), title=title)
        if not permutations:
            return found
        table, sentences = compare_with_permuted(runs, kinds, split, metric)
        csv = {**found.csv, "trees.csv": table}
        sentences = [*found.sentences, *sentences, NOTE]
        return replace(found, sentences=sentences, table=table, csv=csv, metric=metric)

    about = {
        "experiment": "affinities",
        "scout": str(scout.absolute()),
        "kinds": kinds,
        "groups": num_groups,
        "split_from": lowest,
        "split": split,
    }
    return Experiment(
        name=f"affinities-{config.stem}",
        about=about,
        variants=variants,
        analyse=analyse,
        splits=(split,) if permutations else (),
        metric=metric if permutations else None,
        derived=OF_BEGINNINGS,
        trains=has_own_scout or bool(permutations),
    )


def make_tree_variants(
    thin: Setting, network: Network, lowest: str, groups: Mapping[str, Groups], permutations: int
) -> Variants:
    """The tree of every kind with its groups from the unit `lowest` up to the top, and permuted ones, all from scratch."""
    variants: Variants = {}
    names = network.tasks.names
    for kind, found in groups.items():
        named = [[names[task] for task in group] for group in found]
        tree = build_tree_of_groups(network.routing.units, names, {lowest: named})
        given = {**thin, "method.groups": {lowest: named}}
        variants[kind] = given
        for number in choose_permutations(tree, permutations, what=f"The tree of {kind}"):
            variants[f"{kind}-permuted-{number}"] = {**given, "method.permutation": number}
    return variants


# ---- what every kind makes of it


def measure_kinds(
    network: Network,
    info: DatasetInfo,
    scout: Path,
    layer: int,
    kinds: Sequence[str],
    report: Report,
) -> dict[str, MeasuredAffinity]:
    """Every kind, on the same sample of the training split, in this process."""
    config = load_config(RunDirectory(scout).config)
    ranks = Ranks.alone()
    network.to(ranks.device)
    found = {}
    for number, kind in enumerate(kinds):
        report({"kind": "measuring", "done": number, "total": len(kinds)})
        found[kind] = measure_affinity(kind, network, layer, info, config, ranks)
    report({"kind": "measuring", "done": len(kinds), "total": len(kinds)})
    return found


def group_tasks(affinity: Matrix, num_groups: int) -> Groups:
    """The groups of spectral clustering with the least separation cost (Eq. 11).

    Raises:
        UserError: the affinity falls into fewer groups.
    """
    found = dict(cluster_branches(affinity, num_groups, seed=0))
    if num_groups not in found:
        raise UserError(
            f"An affinity of this network does not fall into {num_groups} groups, found {max(found)}. Give fewer --groups."
        )
    return found[num_groups]


def describe_kinds(
    measured: Mapping[str, MeasuredAffinity],
    groups: Mapping[str, Groups],
    names: Sequence[str],
    planted: Groups,
    *,
    title: str,
) -> Findings:
    """A sentence per kind with its groups, how alike the kinds are as a table, and a figure of all.

    Args:
        measured: by kind.
        groups: of every kind.
        names: of the tasks.
        planted: the known groups of the data set, shown as one more kind; none if empty.
        title: of the figure.
    """
    matrices = {kind: one.matrix for kind, one in measured.items()}
    sentences = []
    for kind, one in measured.items():
        about = f"{kind}, {one.num_samples:,} samples in {one.seconds:.1f} s"
        sentences.append(f"{about}: {describe_groups(groups[kind], names)}")
    if planted:
        labels = label_branches(planted)
        matrices[PLANTED] = (labels[:, None] == labels).astype(np.float64)
        groups = {**groups, PLANTED: planted}
    pairs = compare_kinds(matrices, groups)
    named = {}
    for kind, found in groups.items():
        named[kind] = tuple(tuple(names[task] for task in group) for group in found)
    figure = draw_affinities(matrices, list(names), named, pairs, title=title)
    csv = {"groups.csv": _tabulate_groups(groups, names), "agreement.csv": pairs}
    return Findings(sentences, pairs, csv, {"affinities.png": figure})


def read_planted(info: DatasetInfo, names: Sequence[str]) -> Groups:
    """The known groups of the data set, as numbers of tasks; none if it does not say of every task."""
    numbers = {name: number for number, name in enumerate(names)}
    groups = [
        [numbers[name] for name in group if name in numbers] for group in info.groups.values()
    ]
    if sum(map(len, groups)) != len(names):
        return ()
    return tuple(tuple(group) for group in groups if group)


def compare_kinds(matrices: Mapping[str, Matrix], groups: Mapping[str, Groups]) -> DataFrame:
    """How alike two kinds are, of every two.

    Returns:
        kind, beside, adjusted_rand_index (of their groups: 1 is equal, 0 is chance), rank_correlation (Spearman, over pairs of
        tasks).
    """
    rows = []
    for one, other in combinations(matrices, 2):
        pairs = np.triu_indices(len(matrices[one]), 1)
        ranks = spearmanr(matrices[one][pairs], matrices[other][pairs])
        rows.append(
            {
                "kind": one,
                "beside": other,
                "adjusted_rand_index": adjusted_rand_score(
                    label_branches(groups[one]), label_branches(groups[other])
                ),
                "rank_correlation": float(ranks.statistic),
            }
        )
    return DataFrame(rows, columns=["kind", "beside", "adjusted_rand_index", "rank_correlation"])


def describe_groups(groups: Groups, names: Sequence[str]) -> str:
    """The tasks of every group, the largest first, with strokes between groups."""
    largest_first = sorted(groups, key=len, reverse=True)
    texts = [", ".join(names[task] for task in group) for group in largest_first]
    return " | ".join(texts)


def _tabulate_groups(groups: Mapping[str, Groups], names: Sequence[str]) -> DataFrame:
    """A row per task: the number of its group under every kind."""
    table = DataFrame({"task": names})
    for kind, found in groups.items():
        table[kind] = label_branches(found)
    return table


# ---- what trees of it are worth


def compare_with_permuted(
    runs: Runs, kinds: Sequence[str], split: str, metric: str
) -> tuple[DataFrame, list[str]]:
    """A row per kind: its tree, its permuted trees, and the difference; with a sentence for each.

    Returns:
        kind, seeds, the metric, permuted_<metric>, what `summarise_differences` says (learned less permuted;
        permutations are its repetitions), multiply_adds. A thin network among the runs is a row without permutations.
    """
    values = tabulate_runs(runs)
    means = select_means(values, metric, split)
    rows, sentences = [], []
    for kind in [THIN, *kinds]:
        own = means[means["variant"] == kind]
        if own.empty:
            continue
        row = {"kind": kind, "seeds": len(own), metric: own["value"].mean()}
        row[f"{metric}_sd"] = own["value"].std()
        is_permuted = means["variant"].str.startswith(f"{kind}-permuted-")
        if is_permuted.any():
            permuted = means[is_permuted]["variant"].unique()
            row[f"permuted_{metric}"] = means[is_permuted]["value"].mean()
            differences = measure_losses(values, metric, split, learned=kind, permuted=permuted)
            found = summarise_differences(differences)
            shown = ("difference", "difference_sd", "tasks_higher", "tasks_lower", "p_value")
            row |= {key: found[key] for key in shown if key in found}
            about = {"one": f"the tree of {kind}", "other": "a permuted tree"}
            sentences.append(
                describe_differences(differences, metric, **about, repetition="permutations")
            )
        row["multiply_adds"] = own["multiply_adds"].mean()
        rows.append(row)
    order = ["kind", "seeds", metric, f"{metric}_sd", f"permuted_{metric}", "difference"]
    order += ["difference_sd", "tasks_higher", "tasks_lower", "p_value", "multiply_adds"]
    return DataFrame(rows).reindex(columns=order), sentences
