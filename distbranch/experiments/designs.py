"""Experiments that compare networks: tables, grown ones beside thin ones of equal cost, and beginnings.

A design computes the variants, and says which analysis answers the question (analyses.py).
"""

from collections.abc import Sequence
from pathlib import Path

import pandas
from pandas import DataFrame

from distbranch.config import Config, MethodConfig, differences, load_config
from distbranch.config.reading import parse_override
from distbranch.config.sweep import Setting, SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError, UserError
from distbranch.experiments.analyses import (
    make_spots,
    measure_pace,
    tabulate_equal_cost,
)
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import (
    SPLITS,
    Runs,
    read_curves,
    select_means,
    tabulate_runs,
)
from distbranch.report.experiment_figures import Course, draw_company, draw_courses
from distbranch.sweep.plan import SEED

# Where a command has no --metric. Accuracy says little of rare labels: one that is never predicted is right nearly always.
METRIC = "average_precision"

# The beginning that a thin network shares with a grown one, and the keys in which the thin networks of a line differ from it.
BEGINNING = ("init", "pretrained", "pretrained_channels")
OWN_OF_THE_LINE = ("model.width", "model.width_fraction")

RANDOM = "random"
FROM_WIDE = ("somp", "largest-norm", "random-rows")
DERIVED_FROM_PACE = ("train.evaluate_every", "train.iterations", "optim.decay_every")
NUM_EVALUATIONS = 20  # where the configuration names no number


def load_run_config(file: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run of the experiment, with those overrides that are keys of a run."""
    own = []
    for text in overrides:
        section = parse_override(text)[0].partition(".")[0]
        if section not in SweepConfig.model_fields:
            own.append(text)
    return load_config(file, own)


def check_grows(file: Path, config: Config) -> None:
    """An experiment about decisions is of runs that take one.

    Raises:
        UsageError: the method takes none, or the run ends before.
    """
    method = config.method
    if method.name != "branching":
        raise UsageError(
            f"{file} should be of a network that grows, method.name=branching, found {method.name}."
        )
    if not config.decides:
        raise UsageError(
            f"{file} trains for {config.train.iterations} steps, and its first decision would come after "
            f"{method.steps_to_first}: lower method.first_decision or method.round_iterations."
        )


# ---- networks against each other (tables 1 and 2 of the paper)


def design_table(configs: Sequence[Path], overrides: Sequence[str], *, split: str) -> Experiment:
    """Every configuration with every seed.

    A configuration that begins from the run of another one (`method.pretrained`, `method.groups`, `adashare.policy`) is trained
    after it. If it names that run as the other configuration (`runs/fps-vgg-wide`), each of its seeds begins from the run of the
    same seed.

    Args:
        configs: YAML files; each run is named `<config>-seed<seed>`, and one of that name and configuration is not repeated.
        overrides: `key=value`, for all runs.
        split: `val` or `test`, which the data must have; the table has both.
    """
    variants = make_file_variants(configs)
    folder = build_sweep("table", variants, overrides, among_runs=True).trial_path
    # A folder of every seed's own, which the sweep fills in; the other variant is trained first then (order_in_turns).
    linked = set()
    for variant in variants.values():
        for key, path in load_run_config(Path(variant["base"]), overrides).begins_from.items():
            if Path(path).name in variants:
                variant[key] = str(folder / f"{Path(path).name}-seed{SEED}")
                linked.add(key)
    about = {"experiment": "table"}
    return Experiment("table", about, variants, splits=(split,), derived=linked, among_runs=True)


def make_file_variants(configs: Sequence[Path]) -> Variants:
    """A variant per config file, named as the file."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    return {path.stem: {"base": str(path.absolute())} for path in configs}


# ---- grown networks beside thin ones


def design_equal_cost(
    configs: Sequence[Path],
    widths: Sequence[int],
    overrides: Sequence[str],
    *,
    metric: str,
    split: str,
) -> Experiment:
    """Grown networks beside the thin networks of equal multiply-adds and of equal weights.

    Args:
        configs: of the grown networks, all of one recipe.
        widths: of the thin line, whose networks are trained with the same recipe and the same seeds.
        overrides: `key=value`, for all runs.
        metric: a mean over tasks.
        split: `val` or `test`, of what is shown and drawn; company.csv has both.

    Raises:
        UsageError: networks of different recipes, or none that grows.
    """
    line = make_thin_line(configs, widths, overrides)
    grown = {key: value for key, value in make_file_variants(configs).items() if key not in line}
    if not grown:
        raise UsageError(
            "Give at least one config of a grown network, such as configs/fps-branch-16-2.yaml."
        )
    # What the line has from the recipe follows every override already.
    derived = {key for variant in line.values() for key in variant if key not in OWN_OF_THE_LINE}

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        means = select_means(values, metric, split)
        tables = {
            part: tabulate_equal_cost(select_means(values, metric, part), line, metric)
            for part in SPLITS
        }
        note = (
            f"Grown networks beside the line of thin ones on {split}: the line is linear in the logarithm of the cost between two "
            "neighbouring widths, seed by seed; a difference is grown less thin. A dash: beyond the ends of the line."
        )
        csv = pandas.concat(tables, names=["split"]).reset_index("split")
        figure = draw_company(
            make_spots(means, line), make_spots(means, grown), metric=metric, split=split
        )
        return Findings([note], tables[split], {"company.csv": csv}, {"company.png": figure})

    return Experiment(
        name="company",
        about={"experiment": "company", "metric": metric, "split": split},
        variants={**line, **grown},
        analyse=analyse,
        splits=(split,),
        metric=metric,
        derived=derived,
        among_runs=True,
    )


def make_thin_line(
    configs: Sequence[Path], widths: Sequence[int], overrides: Sequence[str]
) -> Variants:
    """The variants of the thin line: the recipe of the grown networks, without growth, at every width.

    They are named after the data set, such as `fps-thin-16`.

    Raises:
        UsageError: the recipes differ.
    """
    recipes = {path: make_thin(load_run_config(path, overrides)) for path in configs}
    first = next(iter(recipes))
    recipe = recipes[first]
    for path, other in recipes.items():
        different = [text for text in differences(recipe, other) if not text.startswith("run.")]
        if different:
            raise UsageError(
                f"The networks should be trained with the same recipe, but {first} and {path} differ in {'; '.join(different)}. "
                "Compare those of one recipe at a time."
            )
    # As a config of such a network would be called, so that its runs are shared with `experiment table`.
    data_name = "-".join(Path(path).name for path in recipe.data.paths)
    variant: Setting = {"base": str(first.absolute())}
    for section in ("model", "method"):
        values = getattr(recipe, section).model_dump()
        variant |= {f"{section}.{key}": value for key, value in values.items()}
    return {
        f"{data_name}-thin-{width}": {**variant, "model.width": width}
        for width in sorted(set(widths))
    }


def make_thin(config: Config) -> Config:
    """The recipe of a network, without growth and without a width."""
    kept: Setting = {}
    if config.method.init != RANDOM:
        kept = {key: getattr(config.method, key) for key in BEGINNING}
    method = MethodConfig(name="fixed", **kept)
    model = {**config.model.model_dump(), "width": None, "width_fraction": None}
    return load_config(config.model_dump() | {"method": method.model_dump(), "model": model})


# ---- does a pretrained beginning help?


def design_initialisation(
    config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool
) -> Experiment:
    """The same run begun by SOMP, by largest norm, by rows at random and at random (figure 5 of the paper).

    Args:
        config: of the run.
        pretrained: VGG-16 weights or the directory of a finished wide run.
        overrides: `key=value`, for all runs.
        two_thirds: train the SOMP beginning with two thirds of the iterations too, on a schedule of that length.

    Raises:
        UserError: the pretrained network leaves nothing to choose.
    """

    def analyse(runs: Runs) -> Findings:
        chosen = next(run.config for run in runs if run.variant == RANDOM)
        curves = read_curves(runs, METRIC)
        found = measure_pace(curves, RANDOM, chosen.train.iterations)
        note = (
            f"Identical conditions but for the first weights ({chosen.optim.schedule} schedule of {chosen.train.iterations:,} "
            f"iterations, evaluated every {chosen.train.evaluate_every}). To be reached: the last average precision on val of the "
            "random beginning of the same seed. Values in the middle of a schedule whose learning rate still falls are lower than "
            "a schedule that ends there would give: `somp-two-thirds` (--two-thirds) has one of its own."
        )
        goal = found.set_index("variant").loc[RANDOM, "last"]
        courses = [_make_course(variant, runs, curves) for variant in found["variant"]]
        figure = draw_courses(
            courses, metric=METRIC, goal=goal, goal_name="last value of the random beginning"
        )
        csv = curves.rename(columns={"variant": "beginning", "value": f"val_{METRIC}"})
        return Findings([note], found, {"curves.csv": csv}, {"initialisation.png": figure})

    # Of a network of the same widths every choice would be the whole of it; all else is checked when it is read.
    own = load_run_config(config, overrides).model
    file = RunDirectory(pretrained).config
    if file.exists() and load_config(file).model == own:
        raise UserError(
            f"The network in {pretrained} should be wider than those of {config}, for filters are chosen from it, but both are of "
            f"{own.width_text}. Give a wider one, or a smaller model.width."
        )
    return Experiment(
        name=f"initialisation-{config.stem}",
        about={"experiment": "initialisation"},
        variants=make_beginnings(config, pretrained, overrides, two_thirds=two_thirds),
        analyse=analyse,
        splits=("val",),
        metric=METRIC,
        derived=DERIVED_FROM_PACE,
    )


def make_beginnings(
    config: Path, pretrained: Path, overrides: Sequence[str], *, two_thirds: bool
) -> Variants:
    """One variant per beginning, evaluated on val often enough to see when it reaches what."""
    chosen = load_run_config(config, overrides)
    iterations = chosen.train.iterations
    every = chosen.train.evaluate_every
    if not every:
        every = max(1, iterations // NUM_EVALUATIONS)
    elif not any(text.startswith("train.evaluate_every=") for text in overrides):
        # A shorter run keeps the number of points of the curve that its config has, for its pace is read off that curve.
        every = max(1, every * iterations // load_run_config(config, []).train.iterations)
    base: Setting = {"base": str(config.absolute()), "train.evaluate_every": every}
    found: Variants = {}
    for name in FROM_WIDE:
        found[name] = {**base, "method.init": name, "method.pretrained": str(pretrained.absolute())}
    found[RANDOM] = {**base, "method.init": RANDOM, "method.pretrained": None}
    # On a schedule of its own, since a learning rate that still falls keeps a curve low.
    if two_thirds:
        short = {**found["somp"], "train.iterations": round(iterations * 2 / 3)}
        if chosen.optim.schedule == "step":
            short["optim.decay_every"] = max(1, round(chosen.optim.decay_every * 2 / 3))
        found["somp-two-thirds"] = short
    return found


def _make_course(variant: str, runs: Runs, curves: DataFrame) -> Course:
    losses = []
    for run in runs:
        if run.variant == variant:
            lines = DataFrame(run.read_log("train")).dropna(subset="loss")
            losses.append((list(lines["iteration"]), list(lines["loss"])))
    of_seeds = curves[curves["variant"] == variant].groupby("seed", sort=False)
    values = [(list(curve["iteration"]), list(curve["value"])) for _, curve in of_seeds]
    return Course(variant, losses, values)
