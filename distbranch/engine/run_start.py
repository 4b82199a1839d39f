"""What a start of a run checks and records: that its directory is of the same configuration and data, and the machine."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distbranch.config import Config, differences, load_config, to_yaml
from distbranch.config.paths import hide_secrets
from distbranch.config.reading import flatten_config
from distbranch.data.mixture import read_data
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import DESCRIPTION
from distbranch.engine.checkpoint import list_checkpoints, read_step
from distbranch.engine.cores import num_cores
from distbranch.engine.distributed import Ranks
from distbranch.engine.provenance import (
    describe_code,
    describe_command,
    format_packages,
    keep_text,
    list_changes,
    list_packages,
    list_starts,
    read_source,
)
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.run_directory import (
    RunDirectory,
    append_line,
    write_atomically,
    write_json,
)
from distbranch.errors import UserError, reason_of
from distbranch.plugins import hash_plugins, keep_copies, list_changed_plugins

logger = logging.getLogger("distbranch")
PACKAGES = (
    "distbranch",
    "torch",
    "ray",
    "webdataset",
    "scikit-learn",
    "numpy",
    "safetensors",
    "simplejpeg",
    "pillow",
)
OF_ANOTHER_RUN = (
    "Give another run.name, undo the change, or use --fresh to start over in a new directory."
)


def begin_run(config: Config) -> None:
    """Make the directory of a new run, or check that the one there is of the same configuration.

    One of another configuration that holds no training is begun anew, and one of other `train.iterations` is resumed up to these.

    Raises:
        UserError: the directory belongs to another configuration (with the differences), or cannot be written.
        RunInUseError: the run of another configuration is being trained, and has not come to anything yet.
    """
    files = RunDirectory(config.run_directory)
    try:
        if begins_anew(config):
            # Another process may have begun to train it since: looked at again under the lock.
            with files.locked(patience_s=0):
                if files.is_dispensable:
                    of_network = (files.tree, files.given_tree, files.policy, files.from_run)
                    for file in (*of_network, files.decisions, *files.provenance):
                        file.unlink(missing_ok=True)
                    shutil.rmtree(files.scout, ignore_errors=True)
                    write_config(files, config)
        if changes_iterations(config):
            with files.locked(patience_s=0):
                _change_iterations(files, config)
        check_run(config)
        files.path.mkdir(parents=True, exist_ok=True)
        if not files.config.exists():
            write_config(files, config)
    except OSError as error:
        raise UserError(
            f"The run directory {files.path} cannot be written ({reason_of(error)}). Give another run.directory, or make room."
        ) from None


def write_config(files: RunDirectory, config: Config) -> None:
    """Write config.yaml, and copies of the plug-ins that it names."""
    keep_copies(files.path, config.plugins)
    write_atomically(files.config, to_yaml(config))


def begins_anew(config: Config) -> bool:
    """Whether what is there is of another configuration and trained nothing, so that it makes way for this one."""
    files = RunDirectory(config.run_directory)
    return (
        config.run_url is None and bool(_list_differences(files, config)) and files.is_dispensable
    )


def changes_iterations(config: Config) -> bool:
    """Whether the run that is there was begun with other `train.iterations` and is the same in all else.

    With more of them it is trained further, finished or not; with fewer one that has not ended does so, where its last checkpoint
    is or later. One that has ended, or whose scout has steps in proportion, needs a checkpoint to be resumed from.
    """
    files = RunDirectory(config.run_directory)
    if not files.config.exists() or files.family.exists():
        return False
    keys = [line.partition(":")[0] for line in _list_differences(files, config)]
    if keys != ["train.iterations"]:
        return False
    saved = list_checkpoints(files.checkpoints)
    if (files.result.exists() or files.scout.exists()) and not saved:
        return False
    if load_config(files.config).train.iterations < config.train.iterations:
        return True
    return (
        bool(saved)
        and not files.result.exists()
        and read_step(saved[-1]) <= config.train.iterations
    )


def _change_iterations(files: RunDirectory, config: Config) -> None:
    """Make the run one that has not ended, of other steps; it is resumed from its last checkpoint."""
    before, now = load_config(files.config).train.iterations, config.train.iterations
    if config.optim.schedule == "cosine":
        logger.warning(
            "train.iterations was %d and is %d: the rates of optim.schedule=cosine were those of the earlier course so far, and are "
            "those of the new one from here on.",
            before,
            now,
        )
    if files.result.exists() and "ended_by" in json.loads(files.result.read_text()):
        logger.warning(
            "train.patience ended the run %s, so more train.iterations do not train it further.",
            files.path,
        )
    # At a URL whoever trained the run ends at its next upload; of ranks on several machines the first alone writes there.
    url = config.run_url if os.environ.get("RANK", "0") == "0" else None
    remote_run = RemoteRun(url, files.path)
    remote_run.publish_owner()
    # The network too, for it would be taken for that of the last step.
    network = files.model / DESCRIPTION
    for file in (files.result, network):
        file.unlink(missing_ok=True)
    shutil.rmtree(files.answers, ignore_errors=True)  # which are those of that network
    dropped = [path.relative_to(files.path) for path in (files.result, network, files.answers)]
    remote_run.upload_files(*map(str, dropped))
    saved = list_checkpoints(files.checkpoints)
    if saved:
        line = {
            "kind": "iterations",
            "iteration": read_step(saved[-1]),
            "before": before,
        }
        append_line(files.metrics, {**line, "iterations": now})
    write_config(files, config)
    remote_run.upload()


def check_has_ended(run: Path, purpose: str) -> None:
    """Only a finished run serves this purpose, such as `is exported`.

    Raises:
        UserError: it has not ended; with both ways to have it end.
    """
    files = RunDirectory(run)
    if files.result.exists() or not files.config.exists():
        return
    saved = list_checkpoints(files.checkpoints)
    command = f"distbranch train {files.config}"
    to_end_here = ""
    if saved:
        to_end_here = (
            f", or end it where it stands: `{command} train.iterations={read_step(saved[-1])}`"
        )
    raise UserError(
        f"The run {run} has not ended yet, and only a finished one {purpose}. Resume it: `{command}`{to_end_here}."
    )


def check_run(config: Config, *, advice: str = OF_ANOTHER_RUN) -> None:
    """Nothing is there, or a run of this configuration; `advice` says what to do about another one.

    Raises:
        UserError: the directory belongs to another configuration (with the differences), or holds other files.
    """
    files = RunDirectory(config.run_directory)
    if files.path.exists() and not files.path.is_dir():
        raise UserError(
            f"The run directory {files.path} is a file. Move it away, or give another run.name."
        )
    if files.path.is_dir() and not files.config.exists():
        # Hidden files are our own locks, or a desktop's.
        if any(not entry.name.startswith(".") for entry in files.path.iterdir()):
            raise UserError(
                f"The folder {files.path} holds other files and no run. Give another run.name or run.directory."
            )
        return
    different = _list_differences(files, config)
    if not different:
        return
    changed = {line.partition(":")[0] for line in different}
    begun = [key for key in config.begins_from if key in changed]
    if begun:
        keys = " and ".join(begun)
        advice += f" A run that was begun does not read {keys} again: give what was given then, wherever that is now."
    raise UserError(
        f"The run {files.path} was begun with another configuration ({'; '.join(different)}). {advice}"
    )


def _list_differences(files: RunDirectory, config: Config) -> list[str]:
    if not files.config.exists():
        return []
    # First: this process may lack what the other configuration chooses by name.
    changed = list_changed_plugins(files.path, config.plugins)
    if changed:
        return changed
    return without_moved_data(differences(load_config(files.config), config), config, files.data)


def without_moved_data(different: list[str], config: Config, *begun_with: str | None) -> list[str]:
    """The differences of two configurations without that in data.path, if the same data lie there: what counts is their fingerprint.

    Args:
        different: see `config.differences`.
        config: the new one.
        begun_with: fingerprints on record, all of which have to be that of the new one's data.
    """
    moved = [line for line in different if line.startswith("data.path:")]
    if not moved or not begun_with or None in begun_with:
        return different
    try:
        fingerprint = read_data(config.data).fingerprint
    except UserError:  # which whoever reads the data meets again
        return different
    others = [line for line in different if line not in moved]
    if set(begun_with) == {fingerprint}:
        return others
    return [*others, *(f"{line}, where other data are" for line in moved)]


def write_environment(
    files: RunDirectory,
    ranks: Ranks,
    rounding: Mapping[str, Any],
    *,
    info: DatasetInfo,
    iteration: int,
    pretrained: str | None,
    plugins: Sequence[str] = (),
    label_weights: Mapping[str, Any] | None = None,
) -> None:
    """Record of this start: code, packages, command, hardware, ranks, rounding, and which data and weights it is of.

    What differs from the start before is told in a warning, if steps were trained since; `starts` lists all of them.

    Args:
        files: of the run; `uncommitted.diff` and `packages.txt` are written too.
        ranks: this process among the others.
        rounding: see `choose_rounding`.
        info: the packed data.
        iteration: the steps that were trained before.
        pretrained: the sha256 of the weights file that the run began from.
        plugins: loaded ones, whose sha256 is recorded too.
        label_weights: as counted, in numbers.
    """
    what = {
        "command": describe_command(),
        "host": platform.node(),
        **describe_code(),
        "data": info.fingerprint,
        "device": str(ranks.device),
        "world_size": ranks.world_size,
    }
    environment = {
        **what,
        "packages": {name: read_package_version(name) for name in PACKAGES},
        "processor": platform.processor() or platform.machine(),
        "cores": num_cores(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "threads_per_rank": rounding["threads"],
        "precision": rounding["precision"],
        "datasets": {hide_secrets(one.path): one.fingerprint for one in info.members},
        "plugins": hash_plugins(plugins),
        "pretrained_sha256": pretrained,
    }
    if label_weights:  # a key that only such runs have
        environment["label_weights"] = label_weights

    before = files.last_start
    if iteration > 0:
        _warn_of_changes(files, what, f"is resumed after {iteration:,} steps")
    now = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "iteration": iteration, **what}
    environment["starts"] = [*list_starts(before), now]
    keep_text(files.uncommitted, read_source().diff)
    keep_text(files.packages, format_packages())
    write_json(files.environment, environment)


def warn_written_secrets(configs: Iterable[Config]) -> None:
    """Warn once of the keys whose URLs hold what nobody else should read: a run keeps them, for it resumes from them."""
    keys = {
        key
        for config in configs
        for key, value in flatten_config(config).items()
        if hide_secrets(str(value)) != str(value)
    }
    if keys and os.environ.get("RANK", "0") == "0":
        logger.warning(
            "The URL of %s holds a secret, which stands in config.yaml, so that whoever may read the run directory has it; what is "
            "shown or sent has *** in its place. Credentials of the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS) are written nowhere.",
            " and ".join(sorted(keys)),
        )


def warn_of_other_origin(config_file: Path, config: Config) -> None:
    """Say in what a new run differs in code, packages or data from the one whose config.yaml it is begun with."""
    files = RunDirectory(config_file.absolute().parent)
    is_other = files.path.resolve() != config.run_directory.resolve()
    is_new = is_other and not RunDirectory(config.run_directory).holds_training
    if config_file.name == files.config.name and is_new and files.last_start:
        now = {**describe_code(), "data": read_data(config.data).fingerprint}
        _warn_of_changes(files, now, f"is trained again as {config.run.name}")


def _warn_of_changes(files: RunDirectory, now: Mapping[str, Any], what: str) -> None:
    """Say in one sentence in what code, packages or data differ from those of the last start."""
    known = files.packages.read_text(encoding="utf-8").split() if files.packages.exists() else ()
    changes = list_changes(files.last_start, now, known, list_packages())
    if changes:
        logger.warning(
            "The run %s %s with other code, packages or data (%s), so its numbers may differ.",
            files.path,
            what,
            ", ".join(changes),
        )


def hash_pretrained(config: Config, files: RunDirectory, *, is_beginning: bool) -> str | None:
    """The sha256 of the weights file that the run begins from; of a resumed run, which needs the file no more, the one on record."""
    if not is_beginning:
        return files.pretrained
    place = config.model.pretrained_file or config.method.pretrained
    if place is None or not Path(place).is_file():
        return None
    return file_sha256(Path(place))


def read_package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
