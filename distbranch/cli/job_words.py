"""What a job is to run, from the words after `--`: read as the command line itself reads them, and checked before anything is submitted.

A config file and overrides alone are `train`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from distbranch.cli.terminal import given_plugins
from distbranch.config.packaged import find_config
from distbranch.config.paths import is_remote
from distbranch.errors import UsageError, UserError
from distbranch.plugins import is_module

if TYPE_CHECKING:  # loads torch
    from distbranch.config.sweep import SweepConfig
    from distbranch.launch.job_command import JobCommand

# Of commands that train nothing: which of their arguments are folders or files, that on which they work first.
PLACES = {
    "evaluate": ("run", "data", "out"),
    "predict": ("run", "out"),
    "export": ("run", "out", "triton"),
    "report": ("run", "out", "against"),
    "doctor": ("storage",),
}
JOBS = ("train", "sweep", "experiment", *PLACES)
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class JobWords:
    """A command as it was typed: its name, the words after `distbranch`, its arguments, and what would run it."""

    name: str
    words: tuple[str, ...]
    arguments: Arguments
    run: Callable[[], object] = field(repr=False)


def read_job_words(words: Sequence[str]) -> JobWords:
    """Read what comes after `--`, or a config file and overrides.

    Raises:
        UsageError: no command that can be a job, or arguments that it does not take.
    """
    from distbranch.cli import app

    group = typer.main.get_command(app)
    words = [*words]
    if not words:
        raise UsageError(
            f"Give the config file of a run, or after -- what the job runs, one of {', '.join(JOBS)}."
        )
    if words[0] not in group.commands:  # type: ignore[attr-defined]  # it is a group
        _check_config_file(words[0])
        words.insert(0, "train")
    if words[0] not in JOBS:
        raise UsageError(
            f"`{words[0]}` makes no job: after -- comes one of {', '.join(JOBS)}. Run it where you are."
        )

    # Down to the command itself, which may be one of a group.
    command: Any = group
    context: Any = None
    path: list[str] = []
    rest = words
    while hasattr(command, "commands"):
        context = command.context_class(
            command, info_name=command.name or "distbranch", parent=context
        )
        if not rest or rest[0] not in command.commands:
            known = ", ".join(f"{' '.join([*path, name])}" for name in command.commands)
            raise UsageError(
                f"What a job runs should be one of {known}, found '{' '.join(words)}'."
            )
        path.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    context = command.make_context(path[-1], [*rest], parent=context)
    for option in ("dry_run", "help_config"):
        if context.params.get(option):
            raise UsageError(
                f"--{option.replace('_', '-')} after -- would be done by the job: give --dry-run before -- to see what would be "
                "submitted, or run the command where you are."
            )
    plugins = [word for plugin in given_plugins for word in ("--plugin", plugin)]
    return JobWords(
        " ".join(path),
        (*plugins, *words),
        context.params,
        lambda: command.invoke(context),
    )


def _check_config_file(word: str) -> None:
    """A word that is neither a command nor a file is told as both; a file that is absent as a file."""
    if Path(word).suffix in (".yaml", ".yml") or find_config(Path(word)).exists():
        return
    raise UsageError(
        f"What a job runs should be the config file of a run, or after -- one of {', '.join(JOBS)}, found '{word}'."
    )


def read_train(given: JobWords) -> tuple[Path, list[str]]:
    """Config file and overrides of a run; `--fresh` chooses its name here, where the job would choose one at every start."""
    from distbranch.config import load_config
    from distbranch.launch.prepare import choose_fresh_name, with_absolute_paths

    config, overrides = given.arguments["config"], [*given.arguments["overrides"]]
    if config is None:
        raise UsageError("Give a config file, or a config of the package such as quickstart.")
    if given.arguments["fresh"]:
        chosen = choose_fresh_name(with_absolute_paths(load_config(config, overrides)))
        overrides.append(f"run.name={chosen.run.name}")
    return Path(config), overrides


def make_job_command(given: JobWords, *, looks_at_data: bool) -> "JobCommand":
    """What is known of any command but `train`, of which all arguments are checked.

    Args:
        given: the command.
        looks_at_data: whether this machine has the data, so that what the command says of them is checked too.

    Raises:
        UsageError: a configuration that is not valid, or a run that this command does not take.
        UserError: no such run, or data that are not as they should be.
    """
    if given.name in PLACES:
        return _make_run_command(given)
    from distbranch.config.sweep import load_sweep
    from distbranch.experiments.runner import plan_experiment

    arguments = given.arguments
    if given.name == "sweep":
        jobs = [f"concurrency={arguments['jobs']}"] if arguments["jobs"] else []
        return _make_sweep_command(
            given,
            load_sweep(arguments["config"], [*arguments["overrides"], *jobs]),
            [Path(arguments["config"])],
            looks_at_data=looks_at_data,
        )
    configs = [Path(word) for word in given.words if Path(word).suffix in (".yaml", ".yml")]
    return _make_sweep_command(
        given, plan_experiment(given.run), configs, looks_at_data=looks_at_data
    )


def _make_sweep_command(
    given: JobWords, sweep: "SweepConfig", configs: Sequence[Path], *, looks_at_data: bool
) -> "JobCommand":
    from distbranch.config import load_config
    from distbranch.config.reading import read_with_bases
    from distbranch.launch.job_command import JobCommand
    from distbranch.launch.on_ray.address import hide_ray_variables
    from distbranch.launch.prepare import list_run_paths
    from distbranch.sweep.plan import list_trials, load_base_config
    from distbranch.sweep.run import describe_plan

    # Which cluster a trial joins is the job's business.
    with hide_ray_variables():
        base_config = load_base_config(sweep)
        if looks_at_data and not any(map(is_remote, base_config.data.paths)):
            describe_plan(sweep)
        elif sweep.search != "optuna":
            list_trials(sweep)

    # As they were typed: a relative place is another one where the job runs.
    key = "directory" if given.name == "sweep" else "run.directory"
    places = [(key, sweep.directory)]
    if sweep.trial_directory not in (None, sweep.directory):
        places.append(("trial_directory", str(sweep.trial_directory)))
    files = dict.fromkeys([*configs, *map(Path, filterfalse(is_module, given_plugins))])
    for variant in sweep.variants.values() or [{}]:
        own = dict(variant)
        base = Path(own.pop("base", None) or str(sweep.base))
        files |= dict.fromkeys(file for file, _ in read_with_bases(base))
        typed = load_config(base, {**sweep.overrides, **own})
        places += [place for place in list_run_paths(typed) if place[0] != "run.directory"]
    return JobCommand(
        given.name,
        given.words,
        str(sweep.path),
        launch=base_config.launch,
        configs=list(files),
        places=list(dict.fromkeys(places)),
    )


def _make_run_command(given: JobWords) -> "JobCommand":
    from distbranch.launch.job_command import JobCommand

    run = str(given.arguments[PLACES[given.name][0]])
    if not is_remote(run) and Path(run).suffix == ".onnx":
        raise UsageError(
            f"A job keeps its log in the directory of a run, so `{given.name}` takes one, found the file {run}."
        )
    places = []
    for key in PLACES[given.name]:
        place = given.arguments.get(key)
        if place is not None:
            places.append((key if key == "run" else f"--{key}", str(place)))
    place = run if is_remote(run) else str(Path(run).absolute())
    return JobCommand(given.name, given.words, place, places=places)


def check_run_is_there(command: "JobCommand") -> None:
    """The run that is asked about, or the sweep, is there.

    Raises:
        UserError: it is not.
    """
    if command.launch is not None or command.is_remote or command.name == "doctor":
        return
    names = ["config.yaml"]
    if command.name == "report":
        names.append("sweep.yaml")
    if not any((Path(command.place) / name).exists() for name in names):
        raise UserError(
            f"`{command.name}` should be given a run directory, which holds {' or '.join(names)}, found {command.place}."
        )
