"""Plug-ins: Python files and modules of a user's own, which register what a configuration then chooses by name.

The validator of the key `plugins` loads them, so they are there wherever a configuration is. Each is loaded once per process and
known by the sha256 of its file; a run keeps a copy of what it was begun with.
"""

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from distbranch.errors import UsageError, UserError, reason_of
from distbranch.registry import copy_entries, restore_entries

MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
COPIES = "plugins"  # the folder in a run directory
RECORD = "plugins.json"  # in that folder
DIGITS = 12  # of a sha256, for people
# Loaded before a plug-in, so that what it adds is told from what they bring.
REGISTERING = (
    "distbranch.branching.affinity",
    "distbranch.engine.optimizer_and_schedule",
    "distbranch.engine.round_decision",
    "distbranch.kinds",
    "distbranch.losses",
    "distbranch.models.backbone",
)

logger = logging.getLogger("distbranch")


@dataclass(frozen=True)
class Plugin:
    """What was read of one plug-in.

    name: the absolute path of a file, or `package.module`.
    file: where its source was read.
    is_sent: by another process; this machine may hold something else under that path.
    """

    name: str
    file: str
    source: bytes
    is_sent: bool = False

    @property
    def sha256(self) -> str:
        """Of its source."""
        return hashlib.sha256(self.source).hexdigest()


_loaded: dict[str, Plugin] = {}  # of this process, by name


# ---- loading


def load_plugins(names: Iterable[str]) -> None:
    """Load what is not loaded yet, in order.

    Raises:
        UserError: a file or module that is absent or fails, or a file that has changed since this process loaded it.
    """
    for name in names:
        known = _loaded.get(name)
        # A job's uploaded copy may vanish under a process that has it.
        if known is None or (not known.is_sent and os.path.exists(known.file)):
            _load_once(read_plugin(name))


def receive_plugins(sent: Iterable[Mapping[str, Any]]) -> None:
    """Load what another process has sent (`send_plugins`), whatever this machine holds under those paths."""
    for values in sent:
        _load_once(Plugin(**{**values, "is_sent": True}))


def send_plugins() -> list[dict[str, Any]]:
    """All plug-ins that this process has loaded, with their source, for a process on another machine."""
    return [asdict(plugin) for plugin in _loaded.values()]


def hash_plugins(names: Iterable[str]) -> dict[str, str]:
    """The sha256 of loaded plug-ins, by name."""
    return {name: _loaded[name].sha256 for name in names}


def _load_once(plugin: Plugin) -> None:
    before = _loaded.get(plugin.name)
    if before is not None and before.sha256 != plugin.sha256:
        raise UserError(
            f"The plug-in {plugin.name} has changed since this process loaded it, and what it registered then cannot be taken back. "
            "Start again in a new process (of a notebook: restart its kernel)."
        )
    # The same file by another path, or a run's copy of it, registers nothing again.
    if plugin.sha256 not in hash_plugins(_loaded).values():
        _load(plugin)
    _loaded[plugin.name] = plugin


def read_plugin(name: str) -> Plugin:
    """The source of a plug-in; nothing is run but the packages above a module.

    Raises:
        UsageError: it is not there.
        UserError: it cannot be read.
    """
    file = _find_module_file(name) if is_module(name) else name
    try:
        return Plugin(name, file, Path(file).read_bytes())
    except FileNotFoundError:
        raise UsageError(
            f"The plug-in {name} does not exist on {platform.node()}. Give a file that is there, for several machines on storage that "
            "all of them see."
        ) from None
    except OSError as error:
        raise UserError(f"The plug-in {name} cannot be read ({reason_of(error)}).") from None


def is_module(name: str) -> bool:
    """Whether a plug-in is named as `package.module` and not by its file."""
    return MODULE.fullmatch(name) is not None and not name.endswith(".py")


def make_absolute(name: str) -> str:
    """A plug-in's name as a run records it; a relative path is one in the working directory."""
    return name if is_module(name) else os.path.abspath(name)


def _find_module_file(name: str) -> str:
    if os.getcwd() not in sys.path:  # the installed command does not look where it is typed
        sys.path.append(os.getcwd())
    try:
        spec = importlib.util.find_spec(name)
    except Exception as error:  # of any kind: packages above it are run
        raise UserError(
            f"The plug-in {name} cannot be found ({type(error).__name__}: {reason_of(error)}). Give the path of a file that ends in "
            ".py, or a module that Python finds."
        ) from None
    if spec is None or not spec.has_location or spec.origin is None:
        raise UsageError(
            f"The plug-in {name} is neither a file nor a module that Python finds. Give the path of a file that ends in .py, or "
            "install the package."
        )
    return spec.origin


def _load(plugin: Plugin) -> None:
    """Run a plug-in; one that fails leaves nothing registered."""
    for module in REGISTERING:
        importlib.import_module(module)
    before = copy_entries()
    was_there = plugin.name in sys.modules
    try:
        _run(plugin)
    except (Exception, SystemExit) as error:  # of any kind: it is somebody's program
        restore_entries(before)
        raise UserError(f"The plug-in {_describe_error(error, plugin)}.") from None
    if copy_entries() == before and not was_there:
        logger.warning(
            "The plug-in %s registers nothing, so it has no effect; see distbranch/PLUGINS.md for what can be registered.",
            plugin.name,
        )


def _run(plugin: Plugin) -> None:
    if is_module(plugin.name) and not plugin.is_sent:
        importlib.import_module(plugin.name)
        return
    # A name of its own, so that a file `random.py` takes nobody's place.
    name = plugin.name
    if not is_module(name):
        name = f"distbranch_plugin_{Path(name).stem}_{plugin.sha256[:DIGITS]}"
    module = ModuleType(name)
    module.__file__ = plugin.file
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        exec(compile(plugin.source, plugin.file, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise


# ---- errors


def _describe_error(error: BaseException, plugin: Plugin) -> str:
    """`FILE, line N: what went wrong`; the line is the last one within the plug-in."""
    if isinstance(error, SyntaxError) and error.filename == plugin.file:
        return f"{plugin.file}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == plugin.file]
    place = f", line {lines[-1]}" if lines else ""
    words = " ".join(str(error).split()).rstrip(".")
    if not isinstance(error, UserError):  # which are sentences
        words = f"{type(error).__name__}: {words}".removesuffix(": ")
    return f"{plugin.file}{place}: {words}"


def describe_plugin_failure(error: BaseException) -> str | None:
    """A sentence about an error that was raised while a plug-in's code ran; None if none did."""
    files = {plugin.file: plugin for plugin in _loaded.values()}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            return f"The plug-in {_describe_error(error, files[frame.filename])}."
    return None


# ---- paths


def locate_plugins(value: Any, folder: Path) -> Any:
    """The plug-ins that a config file in `folder` names, with absolute paths; what is no name or list of names stays as it is.

    A relative path is looked for in the folder, then in the working directory. Beside a run's config.yaml lie copies of what the
    run was begun with: one is taken where the plug-in is gone or has changed.
    """
    if not isinstance(value, str | list | tuple):
        return value
    names = [value] if isinstance(value, str) else value
    copies = {one["plugin"]: one for one in read_record(folder)}
    return [_locate(name, folder, copies) for name in names]


def _locate(name: Any, folder: Path, copies: Mapping[str, Mapping[str, str]]) -> Any:
    if not isinstance(name, str) or not name:
        return name
    place = make_absolute(name)
    if not is_module(name) and (folder / name).exists():
        place = os.path.abspath(folder / name)
    if name not in copies:
        return place
    return _choose_copy(place, folder, copies[name])


def _choose_copy(place: str, folder: Path, kept: Mapping[str, str]) -> str:
    """The plug-in at `place` if it is what was kept, else the copy."""
    try:
        if read_plugin(place).sha256 == kept["sha256"]:
            return place
        reason = "has changed since"
    except UserError:
        reason = "is not there any longer"
    copy = folder / COPIES / kept["file"]
    if read_plugin(str(copy)).sha256 != kept["sha256"]:
        raise UserError(
            f"{copy}, the run's copy of the plug-in {place}, should have the sha256 {kept['sha256'][:DIGITS]}..., and was changed. "
            "Put the file back."
        )
    _warn_of_copy(folder, place, reason)
    return os.path.abspath(copy)


@cache
def _warn_of_copy(run_directory: Path, plugin: str, reason: str) -> None:
    """Once, although a command reads a configuration several times."""
    logger.warning(
        "The run %s was begun with the plug-in %s, which %s: the copy in the run directory is used.",
        run_directory,
        plugin,
        reason,
    )


# ---- what a run keeps


def keep_copies(run_directory: Path, names: Sequence[str]) -> None:
    """Write copies of loaded plug-ins into a run directory, and a record of them; where there are none, remove earlier ones."""
    folder = run_directory / COPIES
    if not names:
        shutil.rmtree(folder, ignore_errors=True)
        return
    folder.mkdir(exist_ok=True)
    record = []
    for number, name in enumerate(names):
        plugin = _loaded[name]
        # Two files of one name in different folders are two plug-ins.
        file = f"{number}-{Path(plugin.file).name.removeprefix(f'{number}-')}"
        copy = folder / file
        if not copy.exists() or copy.read_bytes() != plugin.source:
            copy.write_bytes(plugin.source)
        record.append({"plugin": name, "file": file, "sha256": plugin.sha256})
    aside = folder / f".{RECORD}"
    aside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    aside.replace(folder / RECORD)


def read_record(run_directory: Path) -> list[dict[str, str]]:
    """The plug-ins that a run was begun with: `plugin`, `file` (of its copy) and `sha256`."""
    file = run_directory / COPIES / RECORD
    try:
        return list(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({reason_of(error)}). Put it back.") from None


def list_changed_plugins(run_directory: Path, names: Sequence[str]) -> list[str]:
    """What makes these plug-ins others than those that the run was begun with; where their files lie does not count."""
    before = {one["sha256"]: one["plugin"] for one in read_record(run_directory)}
    now = {sha256: name for name, sha256 in hash_plugins(names).items()}
    gone = [f"{before[one]} ({one[:DIGITS]})" for one in before if one not in now]
    new = [f"{now[one]} ({one[:DIGITS]})" for one in now if one not in before]
    if not gone and not new:
        return []
    return [f"plugins: {', '.join(gone) or 'none'} -> {', '.join(new) or 'none'}, by sha256"]
