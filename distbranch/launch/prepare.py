"""What has to stand before any rank starts: absolute paths, a packed data set, a run directory of this configuration."""

import logging
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distbranch.config import Config, DataConfig, load_config
from distbranch.config.paths import is_remote
from distbranch.config.training import LossConfig
from distbranch.data.balance import check_balance
from distbranch.data.image_operations import FUNCTIONS
from distbranch.data.mixture import read_data
from distbranch.data.shards import DATASET_FILE, DatasetInfo
from distbranch.data.sources import list_changed_options, pack_source, parse_options
from distbranch.engine.best_weights import BestWeights
from distbranch.engine.from_run import add_earlier_tasks
from distbranch.engine.gradient_aggregation import GradientAggregation
from distbranch.engine.initialisation import check_pretrained, first_architecture
from distbranch.engine.loss_weighting import make_weighting
from distbranch.engine.policy_search import PolicySearch
from distbranch.engine.process_group import wants_gpu
from distbranch.engine.remote_run import RemoteRun
from distbranch.engine.run_directory import RunDirectory, RunInUseError
from distbranch.engine.run_log import Report
from distbranch.engine.run_start import begin_run, warn_written_secrets
from distbranch.engine.scout import check_scout
from distbranch.errors import UsageError, UserError
from distbranch.extras import check_installed, require
from distbranch.kinds import KINDS
from distbranch.label_weights import with_counted_weights
from distbranch.launch.on_ray.address import cluster_address
from distbranch.launch.processes import look_until
from distbranch.locks import hold_lock
from distbranch.losses import build_task_set

logger = logging.getLogger("distbranch")
MARKER = "DISTBRANCH_MARKER"  # the environment variable that names the file of `check_marker`
SECONDS_TO_APPEAR = 10.0  # of a new file on NFS, whose clients remember a listing for a few seconds
SECONDS_BETWEEN_LOOKS = 0.5
RAY_COPY = "_ray_pkg_"  # how Ray names the copy of a folder that was submitted with a job


def prepare_run(config: Config, *, fresh: bool, report: Report) -> Config:
    """The resolved configuration of a run whose data set is packed and whose directory is begun.

    Raises:
        UsageError: no data set is named.
        UserError: the data set or the run directory is not as it should be.
    """
    # What needs neither network nor data is checked first.
    config = with_absolute_paths(config)
    refuse_uploaded_paths(list_run_paths(config))
    check_marker()
    warn_ignored_settings([config])
    warn_written_secrets([config])

    # The directory, as the store has it.
    if fresh:
        config = choose_fresh_name(config)
    download_run(config)
    if cluster_address(config.launch) is None:
        wants_gpu(
            config.launch
        )  # says so where a GPU is asked for and absent, before anything is written

    # The data, then the directory: a run is begun only when everything else is as it should be.
    info = ensure_packed(config, report)
    check_data(config, info)
    with hold_lock(create_begin_lock(config.run_directory)):
        begin_run(config)
    return config


def warn_ignored_settings(configs: Iterable[Config]) -> None:
    """Warn once of every setting without effect; of ranks that torchrun started the first one does."""
    if os.environ.get("RANK", "0") == "0":
        for sentence in dict.fromkeys(
            sentence for config in configs for sentence in config.ignored
        ):
            logger.warning("%s", sentence)


def with_absolute_paths(config: Config) -> Config:
    """Every path absolute: workers of a cluster run in directories of their own."""
    if config.data.path is None:
        raise UsageError(
            "The configuration names no data set: give data.path, the folder of a packed one."
        )
    paths = [_make_absolute(path) for path in config.data.paths]
    values: dict[str, Any] = {
        key: os.path.abspath(path) for key, path in config.begins_from.items()
    }
    values["run.directory"] = _make_absolute(config.run.directory)
    values["run.name"] = config.run.name or "run"
    values["data.path"] = paths if len(paths) > 1 else paths[0]
    values["data.cache_directory"] = config.data.cache_directory and os.path.abspath(
        config.data.cache_directory
    )
    return load_config(config, values)


def _make_absolute(path: str) -> str:
    """A path without `..`, so that it is the same text from wherever it was given; a URL as it is."""
    return path if is_remote(path) else os.path.abspath(path)


def list_run_paths(config: Config) -> list[tuple[str, str]]:
    """What a run reads and writes outside the source: keys and paths or URLs."""
    data = [("data.path", path) for path in config.data.paths]
    return [("run.directory", config.run.directory), *data, *config.begins_from.items()]


def refuse_uploaded_paths(places: Iterable[tuple[str, str]]) -> None:
    """A Ray job runs in an uploaded copy of a folder, which is another one on every node and ends with the job.

    Args:
        places: keys and absolute paths or URLs.

    Raises:
        UserError: paths in that copy, all of them.
    """
    for copy in (Path.cwd(), *Path.cwd().parents):
        if copy.name.startswith(RAY_COPY):
            inside = [
                (key, os.path.relpath(path, copy))
                for key, path in places
                if Path(path).is_relative_to(copy)
            ]
            refuse_vanishing_paths(inside, UserError)


def refuse_vanishing_paths(places: Sequence[tuple[str, str]], error: type[UserError]) -> None:
    """Name all the paths that would lie in the uploaded copy of a folder, if there are any."""
    if places:
        key, names = places[0][0], ", ".join(f"{key}={path}" for key, path in places)
        raise error(
            f"{key} should be an absolute path on storage that all nodes see, found {names}, which would lie in the uploaded copy of "
            f"your folder and vanish with the job. Give {key}=/shared/..."
        )


def check_marker() -> None:
    """In a job that another machine submitted: take away the file that it left in the run directory, as the answer.

    Raises:
        UserError: it is not there, so this node and that machine mean different folders by one path; or it cannot be removed.
    """
    marker = os.environ.get(MARKER)
    if not marker:
        return
    folder = Path(marker).parent
    for _ in look_until(SECONDS_TO_APPEAR, SECONDS_BETWEEN_LOOKS):
        with suppress(OSError):
            os.listdir(folder)  # afresh, where a file's absence is remembered for a while (NFS)
            Path(marker).unlink()
            del os.environ[MARKER]  # answered: what else this process trains does not look for it
            return
    raise UserError(
        f"The run directory {folder} is another folder on {socket.gethostname()}, where this job runs, than on the machine that "
        "submitted it, or cannot be written there. Give a run.directory that both see under one path and may write, a URL, or a "
        "folder that only the cluster has."
    )


def ensure_packed(config: Config, report: Report) -> DatasetInfo:
    """The packed data set, made first if it is absent and `data.pack` says how."""
    if not is_to_be_packed(config):
        return read_packed_data(config)
    path = config.data.paths[0]
    source = parse_options(config.data.pack or {}).open()
    info = pack_source(
        source,
        path,
        progress=lambda done: report(
            {"kind": "packing", "done": done, "total": source.num_samples}
        ),
    )
    report({"kind": "packed", "path": path, "num_samples": info.num_samples})
    return info


def read_packed_data(config: Config) -> DatasetInfo:
    """The packed data set that is there.

    Raises:
        UserError: it cannot be read, or was packed otherwise than `data.pack` says.
    """
    info = read_data(config.data)
    different = list_changed_options(config.data.pack or {}, info)
    if different:
        raise UserError(
            f"The data set {info.path} was packed with {', '.join(different)} as data.pack says. "
            "Give another data.path, or remove the folder so that it is packed again."
        )
    return info


def is_to_be_packed(config: Config) -> bool:
    """Whether the data set is absent and the configuration says how to make it."""
    if config.data.pack is None:
        return False
    path = config.data.paths[0]  # `pack` makes one
    return not is_remote(path) and not (Path(path) / DATASET_FILE).exists()


def check_data(config: Config, info: DatasetInfo) -> None:
    """What can be said about data, network and trackers before anything starts."""
    _check_trackers(config)
    for member in info.members:
        if "train" not in member.splits or member.splits["train"].num_samples == 0:
            raise UserError(
                f"The data set {member.path} has no training samples. Pack one with a split named train."
            )
    info = add_earlier_tasks(config, info)
    _warn_absent_kinds(config, info)
    _check_dense_settings(config, info)
    _check_label_weights(config.loss, info)
    make_weighting(config.loss, info.tasks)  # says what is amiss, and is thrown away
    BestWeights(config.train, info)  # likewise
    if config.loss.aggregation != "none":
        GradientAggregation(config.loss.aggregation, config.seed)
    _check_views(config.data, info)
    check_balance(config.data.balance, info)
    num_samples = info.splits["train"].num_samples
    if num_samples < config.launch.most_workers:
        raise UserError(
            f"launch.workers={config.launch.most_workers} ranks need at least as many training samples, "
            f"but {info.path} has {num_samples}. Use fewer workers."
        )
    architecture = first_architecture(config, info)
    if config.searches:
        _check_search(config, info, architecture.num_blocks)
    if not RunDirectory(
        config.run_directory
    ).holds_own_training:  # else it is not needed any longer
        check_pretrained(config, architecture)
    if config.method.has_scout:
        check_scout(config, info)


def _warn_absent_kinds(config: Config, info: DatasetInfo) -> None:
    absent = config.loss.functions.keys() - {task.kind for task in info.tasks}
    if absent:
        logger.warning(
            "loss.functions names the loss of %s tasks, of which %s has none: it has no effect.",
            " and ".join(sorted(absent)),
            info.path,
        )


def _check_dense_settings(config: Config, info: DatasetInfo) -> None:
    """Refuse what is of dense tasks alone where it would change nothing."""
    kinds = {task.kind for task in info.tasks}
    given = {
        "loss.at": config.loss.at != "input",
        "loss.over": config.loss.over != "samples",
        "metrics.byte_angles": config.metrics.byte_angles,
    }
    has_dense = any(KINDS[kind].is_dense for kind in kinds)
    for key, is_given in given.items():
        is_of_normals = key == "metrics.byte_angles"
        is_read = "normals" in kinds if is_of_normals else has_dense
        if is_given and not is_read:
            what = "normals" if is_of_normals else "dense tasks"
            raise UserError(f"{key} is of {what}, of which {info.path} has none: leave it out.")


def _check_label_weights(loss: LossConfig, info: DatasetInfo) -> None:
    """Refuse what would weigh, or smooth, the labels of no task."""
    if loss.label_smoothing and not {task.kind for task in info.tasks} & {"binary", "categorical"}:
        raise UserError(
            f"loss.label_smoothing is of binary and categorical tasks, of which {info.path} has none: leave it out."
        )
    numbers = with_counted_weights(loss, info.tasks, info.splits["train"].labels)
    build_task_set(info.tasks, numbers)  # says what is amiss with numbers of weights


def _check_views(data: DataConfig, info: DatasetInfo) -> None:
    """Refuse what maps cannot follow, a rule for depth where there is none, and a size in which surface normals would point elsewhere."""
    kinds = {task.kind for task in info.tasks}
    followed_by_none = {
        "data.augment": data.augment != "none",
        "data.crop_area": data.crop_area is not None,
        "data.mixup": data.mixup > 0,
        "data.cutmix": data.cutmix > 0,
    }
    has_dense = any(KINDS[kind].is_dense for kind in kinds)
    for key, is_given in followed_by_none.items():
        if is_given and has_dense:
            raise UserError(
                f"{key} changes images in a way that the maps of dense tasks cannot follow, and {info.path} has such: leave it out "
                "(data.flip, data.shift, data.scale, data.crop and data.jitter can be had)."
            )
    if data.augment != "none":
        require(FUNCTIONS, "augment", "data.augment")
    if data.jitter:
        require(FUNCTIONS, "augment", "data.jitter")
    if not data.depth_follows_scale and "depth" not in kinds:
        raise UserError(
            f"data.depth_follows_scale=false is of depth tasks, of which {info.path} has none: leave it out."
        )
    if data.image_size is None or "normals" not in kinds:
        return
    for member in info.members:
        height, width = member.image_size
        fitting = data.image_size[1] * height / width
        # Up to the rounding to whole pixels.
        if abs(fitting - data.image_size[0]) >= 1:
            raise UserError(
                f"data.image_size={list(data.image_size)} would stretch the images of {member.path}, which have {height}x{width} pixels, "
                f"and surface normals would point elsewhere then. Give [{round(fitting)}, {data.image_size[1]}], or leave it out."
            )


def _check_trackers(config: Config) -> None:
    problems = []
    for tracker in config.track:
        try:
            check_installed(tracker, tracker, f"track={tracker}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(" ".join(problems))


def _check_search(config: Config, info: DatasetInfo, num_blocks: int) -> None:
    course = PolicySearch(config, info, num_blocks).curriculum
    released, last = course.num_released(config.train.iterations - 1), course.first_step_with_all
    if released < course.num_blocks:
        logger.warning(
            "The search ends with %d of %d blocks released, so all tasks execute the others: more than %s steps release all of them. "
            "Raise train.iterations, or lower adashare.cycles_per_block or adashare.warmup_iterations.",
            released,
            course.num_blocks,
            f"{last:,}",
        )


def choose_fresh_name(config: Config) -> Config:
    """What --fresh asks for: the first of name, name-2, name-3, ... whose directory does not exist."""
    name, number = config.run.name, 1
    while (
        config.run_directory.exists()
        if config.run_url is None
        else RemoteRun.from_config(config).exists()
    ):
        number += 1
        run = config.run.model_copy(update={"name": f"{name}-{number}"})
        config = config.model_copy(update={"run": run})
    return config


def download_run(config: Config) -> None:
    """Check the store of a run at a URL, and make the copy of this machine equal to what is there.

    Raises:
        UserError: what is wrong with the store, in its own words.
    """
    if config.run_url is None:
        return
    remote_run = RemoteRun.from_config(config)
    remote_run.check_access()
    # Without patience: a run that trains here now writes the copy itself, and whoever wants to train is told so later.
    with (
        hold_lock(create_begin_lock(config.run_directory)),
        suppress(RunInUseError),
        RunDirectory(config.run_directory).locked(patience_s=0),
    ):
        remote_run.download()


def create_begin_lock(directory: Path) -> Path:
    """The file that is locked while a run directory is begun."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = directory.with_name(f".{directory.name}.lock")
        lock.touch()
    except OSError as error:
        raise UserError(
            f"The run directory {directory} cannot be made ({error.strerror or error}). Give another run.directory."
        ) from None
    return lock
