"""Networks beside plain ones of equal cost: the line of one width, and that of two, narrow below and wide above.

Multiply-adds lie in the low layers of a network and weights in the high ones, so a plain network with a width for either half can
cost what a tree costs in both, and is the control that a tree has to beat.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
from pandas import DataFrame

from distbranch.config import Config, differences, load_config
from distbranch.config.network import WIDTHS
from distbranch.config.sweep import Setting
from distbranch.engine.artifact import load_model
from distbranch.engine.results import read_result
from distbranch.errors import UsageError, UserError
from distbranch.experiments.analyses import make_spots, tabulate_equal_cost
from distbranch.experiments.designs import (
    THIN,
    check_references,
    link_beginnings,
    load_run_config,
    make_file_variants,
    make_thin_variant,
)
from distbranch.experiments.pairs import (
    compare_pairs,
    describe_against,
    describe_pair,
    tabulate_pairs,
)
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import COSTS, SPLITS, Runs, select_means, tabulate_runs
from distbranch.models.architecture import Architecture
from distbranch.models.backbone import SMALLEST_IMAGE, Backbone
from distbranch.report.cost_figures import draw_company

# The keys in which the networks of a line differ.
OWN_OF_THE_LINE = tuple(f"model.{key}" for key in WIDTHS)
# The other line beside that of thin networks, as tables and figures name it.
UNEVEN = "uneven"

TwoWidths = tuple[int, int]  # below and above the middle of the units


def design_equal_cost(
    configs: Sequence[Path],
    widths: Sequence[int],
    overrides: Sequence[str],
    *,
    metric: str,
    split: str,
    uneven: Sequence[TwoWidths] = (),
    nearest_to_seed: int | None = None,
    beside: Sequence[Path] = (),
    against: Sequence[str] = (),
) -> Experiment:
    """Grown networks beside plain networks of equal multiply-adds and of equal weights.

    Args:
        configs: of the grown networks, all of one recipe.
        widths: of the thin line, whose networks are trained with the same recipe and the same seeds.
        overrides: `key=value`, for all runs.
        metric: a mean over tasks.
        split: `val` or `test`, of what is shown and drawn; company.csv has both.
        uneven: of the uneven line, likewise trained.
        nearest_to_seed: that line also has the network nearest in both costs to the finished run of every config of this seed.
        beside: configs with recipes of their own, which are shown but not compared at equal cost.
        against: names of networks that all others are compared with in sentences; differences.csv has every pair.

    Raises:
        UsageError: networks of different recipes, or none that grows, or nothing of a name in `against`.
        UserError: a run to which the nearest network is asked for has not finished.
    """
    thin = make_thin_line(configs, widths, overrides)
    grown = {key: value for key, value in make_file_variants(configs).items() if key not in thin}
    if not grown:
        raise UsageError(
            "Give at least one config of a grown network, such as configs/fps-branch-16-2.yaml."
        )
    pairs = list(uneven)
    if nearest_to_seed is not None:
        pairs += choose_nearest(grown, overrides, nearest_to_seed)
    lines = {THIN: thin}
    if pairs:
        lines[UNEVEN] = make_uneven_line(configs, pairs, overrides)
    plain = {key: value for line in lines.values() for key, value in line.items()}
    files = {**grown, **make_file_variants(beside)}
    files = {key: value for key, value in files.items() if key not in plain}
    # What a line has from the recipe follows every override already.
    derived = {key for variant in plain.values() for key in variant if key not in OWN_OF_THE_LINE}
    derived |= link_beginnings(files, {**plain, **files}, overrides)
    variants = {**plain, **files}
    check_references(against, variants)
    shown = f"{_name_data(load_run_config(configs[0], overrides))}-"

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        compared = values[~values["variant"].isin(files.keys() - grown.keys())]
        tables = {
            part: tabulate_equal_cost(select_means(compared, metric, part), lines, metric)
            for part in SPLITS
        }
        note = (
            f"Networks beside the lines of plain ones on {split}: a line is linear in the logarithm of the cost between two neighbours, "
            "seed by seed; a difference is the network less the line. A dash: beyond the ends of the line."
        )
        csv = pandas.concat(tables, names=["split"]).reset_index("split")
        sentences = describe_nearest(values, grown, lines.get(UNEVEN, {}), metric, split)
        sentences += describe_against(values, list(variants), against, metric, split)
        means = select_means(values, metric, split)
        figure = draw_company(
            {line: make_spots(means, lines[line], prefix=f"{shown}{line}-") for line in lines},
            make_spots(means, files, prefix=shown),
            metric=metric,
            split=split,
        )
        return Findings(
            [*sentences, note],
            tables[split],
            {"company.csv": csv, **tabulate_pairs(values, list(variants), metric)},
            {"company.png": figure},
            metric,
        )

    return Experiment(
        name="company",
        about={"experiment": "company", "metric": metric, "split": split},
        variants=variants,
        analyse=analyse,
        splits=(split,),
        metric=metric,
        derived=derived,
        among_runs=True,
    )


# ---- the lines


def make_thin_line(
    configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str]
) -> Variants:
    """The variants of the thin line: the recipe of the grown networks, without growth, at every width.

    They are named after the data set, such as `fps-thin-16`.

    Raises:
        UsageError: the recipes differ.
    """
    name, variant = _read_common_recipe(configs, overrides)
    return {
        f"{name}-{THIN}-{width}": {**variant, "model.width": width} for width in sorted(set(widths))
    }


def make_uneven_line(
    configs: Sequence[Path], pairs: Sequence[TwoWidths], overrides: Sequence[str]
) -> Variants:
    """The same at two widths each: one below the middle of the units, the other from there on; such as `fps-uneven-16-36`.

    Raises:
        UsageError: the recipes differ.
    """
    name, variant = _read_common_recipe(configs, overrides)
    backbone = load_run_config(configs[0], overrides).model.backbone
    return {
        f"{name}-{UNEVEN}-{below}-{above}": {
            **variant,
            "model.widths": list(list_uneven_widths(backbone, below, above)),
        }
        for below, above in sorted(set(pairs))
    }


def list_uneven_widths(backbone: str, below: int, above: int) -> tuple[int, ...]:
    """The widths of all units: those of the thin network of width `below` up to the middle, then those of width `above`.

    The middle of either VGG is conv4_1. Fully connected layers have twice the width, as in every thin network.

    Example:
        >>> list_uneven_widths("vgg9", 16, 36)
        (16, 16, 16, 16, 36, 36, 72, 72)
    """
    size = (SMALLEST_IMAGE, SMALLEST_IMAGE)  # on which no width depends
    lower, upper = [Backbone(backbone, size, width).plans for width in (below, above)]
    middle = len(lower) // 2
    return tuple(plan.width for plan in (*lower[:middle], *upper[middle:]))


def _read_common_recipe(configs: Sequence[Path], overrides: Sequence[str]) -> tuple[str, Setting]:
    """The name of the data set, and the variant of a plain network without a width."""
    recipes = {path: _make_plain(load_run_config(path, overrides)) for path in configs}
    first = next(iter(recipes))
    recipe = recipes[first]
    for path, other in recipes.items():
        different = [text for text in differences(recipe, other) if not text.startswith("run.")]
        if different:
            raise UsageError(
                f"The networks should be trained with the same recipe, but {first} and {path} differ in {'; '.join(different)}. "
                "Compare those of one recipe at a time; one of another recipe can stand --beside."
            )
    variant = make_thin_variant(first, overrides) | dict.fromkeys(OWN_OF_THE_LINE)
    return _name_data(recipe), variant


def _name_data(config: Config) -> str:
    """As a config of such a network would be called, so that its runs are shared with `experiment table`."""
    return "-".join(Path(path).name for path in config.data.paths)


def _make_plain(config: Config) -> Config:
    """The recipe of a network, without growth and without a width."""
    method = config.method.without_branches
    model = {**config.model.model_dump(), **dict.fromkeys(WIDTHS)}
    return load_config(config.model_dump() | {"method": method.model_dump(), "model": model})


# ---- the nearest plain network


def choose_nearest(variants: Variants, overrides: Sequence[str], seed: int) -> list[TwoWidths]:
    """The two widths of the plain network that is nearest in both costs to the finished run of each variant.

    Raises:
        UserError: a run has not finished.
    """
    folder = build_sweep("runs", variants, overrides, among_runs=True).trial_path
    pairs = []
    for name in variants:
        run = folder / f"{name}-seed{seed}"
        if read_result(run) is None:
            raise UserError(
                f"The plain network nearest to {name} is chosen by the cost of {run}, which has not finished. Train it first: the same "
                "command without `nearest` does."
            )
        pairs.append(choose_two_widths(load_model(run)[0].architecture))
    return pairs


def choose_two_widths(architecture: Architecture) -> TwoWidths:
    """Of all networks with two widths that whose multiply-adds and weights are nearest to those of a tree.

    Nearest is the least sum of squares of the logarithms of both ratios.
    """
    thin = architecture.shared_by(architecture.tasks)
    narrowest = replace(thin.backbone, width=1, width_fraction=None, widths=None).plans
    # At width 1 a unit has as many copies as the width may be at most.
    most = [(plan.full_width or plan.width) // plan.width for plan in narrowest]
    middle = len(most) // 2
    below, above = np.mgrid[1 : min(most[:middle]) + 1, 1 : min(most[middle:]) + 1]

    # A layer costs the product of its width and of that before it, the first one and the heads one width alone, and heads of dense
    # tasks have layers of no such width: six networks tell the costs of all. None has equal widths, which spare a ResNet a projection.
    samples = [(2, 3), (3, 5), (5, 2), (4, 7), (7, 3), (8, 6)]
    costs = []
    for pair in samples:
        widths = list_uneven_widths(thin.backbone.source, *pair)
        backbone = replace(thin.backbone, width=None, width_fraction=None, widths=widths)
        costs.append(_list_costs(replace(thin, backbone=backbone)))
    coefficients = np.linalg.solve(_list_products(*np.transpose(samples)), costs)
    ratios = _list_products(below, above) @ coefficients / _list_costs(architecture)
    nearest = np.argmin((np.log(ratios) ** 2).sum(axis=-1))
    return int(below.flat[nearest]), int(above.flat[nearest])


def _list_products(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Of two widths [...] what costs are sums of, [..., 6]."""
    ones = np.ones_like(below)
    return np.stack([ones, below, above, below**2, below * above, above**2], axis=-1)


def _list_costs(architecture: Architecture) -> list[int]:
    cost = architecture.cost()
    return [getattr(cost, name) for name in COSTS]


def describe_nearest(
    values: DataFrame, variants: Iterable[str], uneven: Iterable[str], metric: str, split: str
) -> list[str]:
    """Of each network a sentence about the uneven one that is nearest to it in both costs."""
    costs = np.log(select_means(values, metric, split).groupby("variant")[list(COSTS)].mean())
    sentences = []
    known = costs[costs.index.isin(list(uneven))]
    for name in variants:
        if known.empty:
            return []
        distances = ((known - costs.loc[name]) ** 2).sum(axis="columns")
        nearest = distances.idxmin()
        (row,) = compare_pairs(values, [(name, nearest)], metric, split).to_dict("records")
        ratios = np.exp(costs.loc[nearest] - costs.loc[name])
        sentences.append(
            f"{describe_pair(row, metric)}, the uneven plain network nearest to it, of {ratios['multiply_adds']:.2f} times its "
            f"multiply-adds and {ratios['weights']:.2f} times its weights."
        )
    return sentences
