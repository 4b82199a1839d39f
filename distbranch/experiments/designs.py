"""Experiments that compare networks: tables of configurations, and beginnings.

A design computes the variants, and says which analysis answers the question (analyses.py).
"""

from collections.abc import Sequence
from pathlib import Path

from pandas import DataFrame

from distbranch.config import Config, load_config
from distbranch.config.network import KEYS_OF_BEGINNINGS
from distbranch.config.packaged import find_config
from distbranch.config.reading import differences, parse_override
from distbranch.config.sweep import Setting, SweepConfig
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.scout import make_scout_config
from distbranch.errors import UsageError, UserError
from distbranch.experiments.analyses import make_spots, measure_pace
from distbranch.experiments.pairs import describe_against, tabulate_pairs
from distbranch.experiments.runner import Experiment, Findings, Variants, build_sweep
from distbranch.experiments.runs import Runs, read_curves, select_means, tabulate_runs
from distbranch.report.cost_figures import draw_company
from distbranch.report.experiment_figures import Course, draw_courses
from distbranch.sweep.plan import SEED

# Where a command has no --metric. Accuracy says little of rare labels: one that is never predicted is right nearly always.
METRIC = "average_precision"

RANDOM = "random"
THIN = "thin"  # the network without branches, and the line of such networks
FROM_WIDE = ("somp", "largest-norm", "random-rows")
DERIVED_FROM_PACE = ("train.evaluate_every", "train.iterations", "optim.decay_every")
# What a thin variant has from the overrides; no other key of a method is of use to it.
OF_BEGINNINGS = tuple(f"method.{key}" for key in KEYS_OF_BEGINNINGS)
NUM_EVALUATIONS = 20  # where the configuration names no number


def load_run_config(file: Path, overrides: Sequence[str]) -> Config:
    """The configuration of a run of the experiment, with those overrides that are keys of a run."""
    own = []
    for text in overrides:
        section = parse_override(text)[0].partition(".")[0]
        if section not in SweepConfig.model_fields:
            own.append(text)
    return load_config(file, own)


def make_thin_variant(config: Path, overrides: Sequence[str]) -> Setting:
    """The settings of the configuration's network without growth, at its own width."""
    method = load_run_config(config, overrides).method.without_branches.model_dump()
    settings: Setting = {"base": str(config.absolute())}
    return settings | {f"method.{key}": value for key, value in method.items()}


def check_grows(file: Path, config: Config) -> None:
    """An experiment about decisions is of runs that take one.

    Raises:
        UsageError: the method takes none, or the run ends before.
    """
    method = config.method
    if not method.grows:
        raise UsageError(
            f"{file} should be of a network that grows, method.name=branching with method.begin=grown, found method.name={method.name} "
            f"with method.begin={method.begin}."
        )
    if not config.decides:
        raise UsageError(
            f"{file} trains for {config.train.iterations} steps, and its first decision would come after "
            f"{method.steps_to_first}: lower method.first_decision or method.round_iterations."
        )


# ---- networks against each other (tables 1 and 2 of the paper)


def design_table(
    configs: Sequence[Path],
    overrides: Sequence[str],
    *,
    split: str,
    metric: str = METRIC,
    against: Sequence[str] = (),
) -> Experiment:
    """Every configuration with every seed.

    A configuration that begins from the run of another one (`method.pretrained`, `method.groups`, `adashare.policy`) is trained
    after it. If it names that run as the other configuration (`runs/fps-vgg-wide`), each of its seeds begins from the run of the
    same seed. So does one with a scout that another configuration trains as well.

    Args:
        configs: YAML files; each run is named `<config>-seed<seed>`, and one of that name and configuration is not repeated.
        overrides: `key=value`, for all runs.
        split: `val` or `test`, which the data must have; the table has both.
        metric: of the differences.
        against: names of configurations that all others are compared with in sentences; differences.csv has every pair.

    Raises:
        UsageError: two files of one name, or nothing of a name in `against`.
    """
    variants = make_file_variants(configs)
    check_references(against, variants)
    linked = link_beginnings(variants, variants, overrides)

    def analyse(runs: Runs) -> Findings:
        values = tabulate_runs(runs)
        names = list(variants)
        sentences = describe_against(values, names, against, metric, split)
        figures = {}
        means = select_means(values, metric, split)
        if means["value"].notna().any():
            spots = make_spots(means, names)
            figures["table.png"] = draw_company({}, spots, metric=metric, split=split)
        return Findings(sentences, csv=tabulate_pairs(values, names, metric), figures=figures)

    about = {"experiment": "table", "metric": metric, "split": split}
    return Experiment(
        "table", about, variants, analyse, splits=(split,), derived=linked, among_runs=True
    )


def link_beginnings(variants: Variants, known: Variants, overrides: Sequence[str]) -> set[str]:
    """Let each seed of a variant begin from the run of the same seed of another one, where it names the run so.

    A scout that would be trained, and would be the very run of another variant, is that run.

    Args:
        variants: made from files; changed in place.
        known: all variants.
        overrides: `key=value`, for all runs.

    Returns:
        The keys that were set.
    """
    folder = build_sweep("runs", variants, overrides, among_runs=True).trial_path
    # A folder of every seed's own, which the sweep fills in; the other variant is trained first then (order_in_turns).
    linked = set()
    for variant in variants.values():
        config = load_run_config(Path(variant["base"]), overrides)
        begins = {key: Path(path).name for key, path in config.begins_from.items()}
        if config.method.has_scout and config.method.scout is None:
            scout = find_same_run(make_scout_config(config), known, overrides)
            if scout is not None:
                begins["method.scout"] = scout
                variant["method.scout_iterations"] = None  # it is not trained
                linked.add("method.scout_iterations")
        for key, name in begins.items():
            if name in known:
                variant[key] = str(folder / f"{name}-seed{SEED}")
                linked.add(key)
    return linked


def find_same_run(config: Config, variants: Variants, overrides: Sequence[str]) -> str | None:
    """The name of the variant whose run is this one but for its place; None if there is none."""
    for name, variant in variants.items():
        settings = {key: value for key, value in variant.items() if key != "base"}
        settings["run.name"] = config.run.name
        other = load_config(load_run_config(Path(variant["base"]), overrides), settings)
        if not differences(other, config):
            return name
    return None


def check_references(against: Sequence[str], variants: Variants) -> None:
    """The networks that others are compared with are among those of the experiment.

    Raises:
        UsageError: one is not.
    """
    for name in against:
        if name not in variants:
            raise UsageError(
                f"--against should name networks of this experiment ({', '.join(variants)}), found {name}."
            )


def make_file_variants(configs: Sequence[Path]) -> Variants:
    """A variant per config file, named as the file."""
    names = [path.stem for path in configs]
    if len(set(names)) < len(names):
        raise UsageError(f"The config files should have different names, found {', '.join(names)}.")
    return {path.stem: {"base": str(find_config(path).absolute())} for path in configs}


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
