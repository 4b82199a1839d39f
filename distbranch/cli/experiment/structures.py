"""Where structure comes from and what it is worth: groups, affinities, policies, beginnings, births, planted truth."""

from pathlib import Path
from typing import Annotated, Any

import typer

from distbranch.cli.experiment.options import (
    Config,
    Jobs,
    Metric,
    Name,
    Seeds,
    Split,
    check_metric,
    experiment_app,
    run_and_show,
    split_names,
)
from distbranch.cli.terminal import (
    Overrides,
    RunArgument,
    console,
    parse_counts,
    run_folder,
)


@experiment_app.command("grouping")
def experiment_grouping(
    run: RunArgument,
    overrides: Overrides = None,
    permutations: Annotated[int, typer.Option(help="Permuted trees.", min=1)] = 4,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas; that of the run if not given.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Metrics that are compared, separated by commas; accuracy, average precision and the first one of each kind of "
            "dense task if not given."
        ),
    ] = "",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train the learned tree of a run from scratch, and the same tree with its tasks permuted; what do the tasks lose?

    Examples:
    `distbranch experiment grouping runs/fps-branch-16-2-seed0 --permutations 4`
    """
    from distbranch.experiments.groupings import design_grouping

    metrics = [check_metric(one) for one in split_names(metric)]
    experiment = design_grouping(run_folder(run), permutations, split=split, metrics=metrics)
    run_and_show(experiment, overrides or [], seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("affinities")
def experiment_affinities(
    config: Config,
    overrides: Overrides = None,
    scout: Annotated[
        str | None,
        typer.Option(
            help="A finished run that all tasks share; if not given the config's network is trained without branches first."
        ),
    ] = None,
    kinds: Annotated[
        str, typer.Option(help="Kinds of affinity, separated by commas; all if not given.")
    ] = "",
    groups: Annotated[int, typer.Option(help="Groups that every kind makes.", min=2)] = 4,
    split_from: Annotated[
        str | None,
        typer.Option(
            help="Lowest layer with branches, as are all above; the middle one if not given."
        ),
    ] = None,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Train the tree of every kind from scratch, and permuted ones."
        ),
    ] = False,
    permutations: Annotated[
        int, typer.Option(help="With --train: permuted trees of every kind.", min=1)
    ] = 2,
    seeds: Annotated[
        str, typer.Option(help="Seeds, separated by commas; the scout has the first.")
    ] = "0,1,2",
    metric: Metric = "average_precision",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """All kinds of affinity on one finished network: which groups does each make, how alike are they, and what are their trees worth?

    Examples:
    `distbranch experiment affinities configs/fps-branch-16-2.yaml --scout runs/fps-thin-16-seed0 --groups 4 --split-from conv4_1`
    `distbranch experiment affinities configs/fps-branch-16-2.yaml --kinds importance,phi --train --permutations 2 --seeds 0,1,2`
    """
    from distbranch.experiments.affinities import design_affinities
    from distbranch.experiments.scouts import train_scout
    from distbranch.report.progress import ProgressDisplay, SweepDisplay

    own = overrides or []
    first_seed = parse_counts(seeds)[0]
    wanted: dict[str, Any] = {
        "kinds": split_names(kinds),
        "num_groups": groups,
        "split_from": split_from,
    }
    if scout is not None:
        place = run_folder(scout)
    else:
        options: dict[str, Any] = {"jobs": jobs, "name": name, "report": SweepDisplay(console)}
        splits = (split,) if train else ()
        place = train_scout(config, own, **wanted, splits=splits, seed=first_seed, **options)
    with ProgressDisplay(console) as display:
        experiment = design_affinities(
            config,
            own,
            **wanted,
            scout=place,
            permutations=permutations if train else 0,
            split=split,
            has_own_scout=scout is None,
            metric=metric,
            report=display,
        )
    if not train:
        seeds = str(first_seed)
    run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("policies")
def experiment_policies(
    config: Config,
    overrides: Overrides = None,
    policies: Annotated[
        int, typer.Option(help="Policies drawn, beside the most probable one.", min=1)
    ] = 8,
    iterations: Annotated[
        int | None,
        typer.Option(
            help="Steps of training with a policy; those of the search if not given.", min=1
        ),
    ] = None,
    seeds: Seeds = "0",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Search for a policy of AdaShare, draw policies from it, and train each from fresh weights beside hard sharing.

    Examples:
    `distbranch experiment policies configs/fps5-adashare.yaml --policies 8`
    """
    from distbranch.experiments.policies import design_policies

    own = overrides or []
    experiment = design_policies(
        config, policies, own, iterations=iterations, split=split, name=name
    )
    run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("initialisation")
def experiment_initialisation(
    config: Config,
    pretrained: Annotated[
        Path, typer.Option(help="VGG-16 weights, or the directory of a finished wide run.")
    ],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    two_thirds: Annotated[
        bool,
        typer.Option(
            "--two-thirds",
            help="Also: SOMP with two thirds of the iterations, on a schedule of its own.",
        ),
    ] = False,
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Begin the same run by SOMP, by largest norm, from random rows of the wide network and from random weights; compare the curves.

    Examples:
    `distbranch experiment initialisation configs/fps-thin-16.yaml --pretrained runs/fps-vgg-wide-seed0 --two-thirds`
    """
    from distbranch.experiments.designs import design_initialisation

    own = overrides or []
    experiment = design_initialisation(config, pretrained, own, two_thirds=two_thirds)
    run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("births")
def experiment_births(
    config: Config,
    groups: Annotated[
        Path, typer.Option(help="The tree: the directory of a finished run, or its tree.json.")
    ],
    overrides: Overrides = None,
    at: Annotated[
        str, typer.Option(help="Steps at which the tree is taken, separated by commas.")
    ] = "150,300,600",
    seeds: Seeds = "0,1,2",
    split: Split = "test",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train a given tree from scratch, and the same tree taken at later steps by a thin run; what does late birth cost?

    Examples:
    `distbranch experiment births configs/fps-thin-16.yaml --groups runs/fps-branch-16-2-seed0 --at 150,300,600`
    """
    from distbranch.experiments.births import design_births

    own = overrides or []
    experiment = design_births(config, groups, parse_counts(at, "--at"), own, split=split)
    run_and_show(experiment, own, seeds=seeds, jobs=jobs, name=name)


@experiment_app.command("planted")
def experiment_planted(
    config: Annotated[Path, typer.Argument(help="A config that packs rendered faces or rooms.")],
    overrides: Overrides = None,
    seeds: Seeds = "0,1,2",
    jobs: Jobs = None,
    name: Name = None,
) -> None:
    """Train on faces or rooms drawn from several seeds; compare the first groups found with the planted ones.

    Examples:
    - `distbranch experiment planted configs/quickstart.yaml --seeds 0,1,2`
    - `distbranch experiment planted configs/rooms-tree.yaml --seeds 8,9,10,11,12`
    """
    from distbranch.experiments.groupings import design_planted_truth

    own = overrides or []
    # Every seed is a variant of its own, for its data are others.
    experiment = design_planted_truth(config, parse_counts(seeds), own)
    run_and_show(experiment, own, seeds=None, jobs=jobs, name=name)
