"""A finished run without some of its tasks, as a run directory of its own: every command takes it as any other."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from distbranch.config import load_config, to_yaml
from distbranch.data.mixture import read_data
from distbranch.engine.artifact import load_model, save_model
from distbranch.engine.evaluate import find_scored
from distbranch.engine.policy_search import make_policy_record
from distbranch.engine.results import RunResult, describe_network, make_result, write_tree
from distbranch.engine.run_directory import (
    created_atomically,
    get_finished_run,
    write_json,
)
from distbranch.engine.session import evaluate_run
from distbranch.errors import UserError
from distbranch.models.network import restrict
from distbranch.plugins import keep_copies
from distbranch.tasks import split_task_names


def restrict_run(
    run: Path, out: Path, *, tasks: Sequence[str] | None = None, without: Sequence[str] = ()
) -> RunResult:
    """Make a run of some tasks of a finished run, with the branches that these need, evaluated on the data of that run.

    Args:
        run: the finished run.
        out: the new run directory.
        tasks: those that are kept; None: all of them.
        without: those of them that are not.

    Raises:
        UserError: the run has not finished or has no such task, `out` is there, or the data cannot be read.
    """
    files = get_finished_run(run, "RUN")
    if out.exists():
        raise UserError(
            f"{out} should be a new run directory, found that it exists. Give another one."
        )
    network, preprocessing = load_model(run)
    known = network.tasks.names
    given = known if tasks is None else split_task_names(tasks, known)
    removed = split_task_names(without, known)
    restrict(network, [*given, *removed])  # says which of them there is not
    network = restrict(network, [name for name in given if name not in removed])

    directory = str(out.absolute().parent)
    config = load_config(files.config, {"run.name": out.name, "run.directory": directory})
    architecture = network.architecture
    summary = json.loads(files.result.read_text())
    with created_atomically(out) as new:
        keep_copies(new.path, config.plugins)
        new.config.write_text(to_yaml(config), encoding="utf-8")
        save_model(new.model, network, preprocessing)
        write_tree(new, architecture)
        if architecture.has_policy:
            write_json(new.policy, make_policy_record(network, None, summary["iterations"]))
        for file in files.provenance:  # which data it is of, and in which precision it computes
            if file.exists():
                shutil.copy(file, new.path)
        # Of several data sets those that are left may lack a split.
        scored = find_scored(read_data(config.data), network.tasks.names)
        splits = [split for split in summary["metrics"] if split in scored]
        metrics = {split: evaluate_run(new.path, split) for split in splits}
        summary |= {"name": out.name, "metrics": metrics, "restricted_from": str(run.absolute())}
        summary.pop("folded_weights", None)  # it was loaded with whole weights
        summary |= describe_network(architecture)
        write_json(new.result, summary)
    return make_result(architecture.tree, out, summary)
