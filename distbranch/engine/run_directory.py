"""The run directory: what every command reads and writes.

`config.yaml`, `environment.json`, `tree.json`, `policy.json`, `result.json` are written aside and renamed; `decisions.jsonl`,
`policies.jsonl` and `metrics.jsonl` grow a line at a time, and are cut back to the checkpoint from which a run goes on.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from distbranch.config import Config, differences, load_config, to_yaml
from distbranch.data.mixture import read_data
from distbranch.engine.distributed import Ranks
from distbranch.engine.process_group import num_cores
from distbranch.errors import UserError, reason_of
from distbranch.locks import LockHeldError, hold_lock

PACKAGES = ("distbranch", "torch", "ray", "webdataset", "scikit-learn", "numpy", "safetensors", "simplejpeg", "pillow")

OF_ANOTHER_RUN = "Give another run.name, undo the change, or use --fresh to start over in a new directory."


class RunInUseError(UserError):
    """Another process is training the run."""


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.tree = path / "tree.json"
        self.decisions = path / "decisions.jsonl"
        self.policy = path / "policy.json"
        self.policies = path / "policies.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.affinity = path / "affinity"
        self.model = path / "model"
        self.tensorboard = path / "tensorboard"
        self.profile = path / "profile"
        self.lock = path / ".lock"  # held by the process that trains the run
        self.sign_of_life = path / ".alive"  # touched while the run trains
        self.stop_word = path / "stop"
        self.job = path / "job.json"  # who trains it, if a job does
        self.family = path / "family.json"
        self.relatives = path / "relatives"

    @property
    def holds_training(self) -> bool:
        """Whether any step is on record; a start that was refused leaves a directory without."""
        written = self.metrics.exists() and self.metrics.stat().st_size > 0
        return written or self.result.exists() or any(self.checkpoints.glob("*"))

    def begin(self, config: Config) -> None:
        """Make the directory of a new run, or check that the one there is of the same configuration.

        One of another configuration that holds no training is begun anew.

        Raises:
            UserError: the directory belongs to another configuration (with the differences), or cannot be written.
            RunInUseError: the run of another configuration is being trained, and has not come to anything yet.
        """
        try:
            if self.begins_anew(config):
                with self.locked(patience_s=0):
                    if self._is_vain():
                        self.tree.unlink(missing_ok=True)
                        self.policy.unlink(missing_ok=True)
                        write_atomically(self.config, to_yaml(config))
            self.check(config)
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.config.exists():
                write_atomically(self.config, to_yaml(config))
        except OSError as error:
            raise UserError(
                f"The run directory {self.path} cannot be written ({reason_of(error)}). Give another run.directory, or make room."
            ) from None

    def begins_anew(self, config: Config) -> bool:
        """Whether what is there is of another configuration and came to nothing, so that it makes way for this one."""
        return config.run_url is None and bool(self._differences(config)) and self._is_vain()

    def check(self, config: Config, *, advice: str = OF_ANOTHER_RUN) -> None:
        """Nothing is there, or a run of this configuration.

        Args:
            config: of the run.
            advice: what to do about a run of another configuration.

        Raises:
            UserError: the directory belongs to another configuration (with the differences), or holds other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"The run directory {self.path} is a file. Move it away, or give another run.name.")
        if self.config.exists():
            if different := self._differences(config):
                begun = [key for key in config.begins_from if any(line.startswith(f"{key}:") for line in different)]
                if begun:
                    keys = " and ".join(begun)
                    advice += f" A run that was begun does not read {keys} again: give what was given then, wherever that is now."
                raise UserError(
                    f"The run {self.path} was begun with another configuration ({'; '.join(different)}). {advice}"
                )
        elif self.path.is_dir() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise UserError(
                f"The folder {self.path} holds other files and no run. Give another run.name or run.directory."
            )

    def _differences(self, config: Config) -> list[str]:
        found = differences(load_config(self.config), config) if self.config.exists() else []
        return without_moved_data(found, config, self.data)

    @property
    def data(self) -> str | None:
        """The fingerprint of the data that the run was begun with; None if none is on record."""
        states = sorted(self.checkpoints.glob("step-*/state.json"))  # of versions that did not record it by itself
        for file in (self.environment, *reversed(states)):
            with suppress(FileNotFoundError, NotADirectoryError, ValueError):
                fingerprint = json.loads(file.read_text(encoding="utf-8")).get("data")
                if fingerprint is not None:
                    return str(fingerprint)
        return None

    def _is_vain(self) -> bool:
        """Whether nobody would miss it: no training, no job that may still train it, no relatives in a sweep."""
        return not (self.holds_training or self.job.exists() or self.family.exists())

    @contextmanager
    def locked(self, *, patience_s: float = 5) -> Iterator[None]:
        """Keep a second process from training the same run at the same time; the lock falls with the process."""
        held = ExitStack()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_lock(self.lock, patience_s=patience_s))
        except LockHeldError as error:
            raise RunInUseError(
                f"The run {self.path} is being trained by another process. Wait for it, stop it, or give another run.name.{error.advice}"
            ) from None
        except OSError as error:
            raise UserError(
                f"The run directory {self.path} cannot be written ({reason_of(error)}). Give another run.directory."
            ) from None
        with held:
            yield

    def cut_back(self, iteration: int, num_decisions: int, *, evaluation_is_due: bool = False) -> None:
        """Drop the lines that were written after the checkpoint from which the run goes on.

        An evaluation of the same step is dropped too if it is to be made again: it came after what the checkpoint holds.
        """

        def keep(line: Mapping[str, Any]) -> bool:
            comes_after = evaluation_is_due and line.get("kind") == "evaluation"
            return bool(line.get("iteration", 0) <= iteration - comes_after)

        _keep_lines(self.metrics, keep)
        _keep_lines(self.policies, lambda line: line.get("iteration", 0) <= iteration)
        for decisions in (self.decisions, *self.relatives.glob(f"*/{self.decisions.name}")):
            _keep_lines(decisions, lambda line: line.get("round", 0) <= num_decisions)

    @property
    def precision(self) -> str:
        """Of the forward pass when the run was last trained, bf16 or fp32."""
        try:
            return str(json.loads(self.environment.read_text(encoding="utf-8"))["precision"])
        except (OSError, ValueError, KeyError):
            return "fp32"

    def write_environment(self, ranks: Ranks, rounding: Mapping[str, Any], *, data: str) -> None:
        """Record versions, commit, hardware, world size, threads, precision and the fingerprint of the data of this start."""
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        write_json(
            self.environment,
            {
                "python": platform.python_version(),
                "packages": {name: package_version(name) for name in PACKAGES},
                "commit": _commit(),
                "host": platform.node(),
                "processor": platform.processor() or platform.machine(),
                "cores": num_cores(),
                "gpus": gpus,
                "device": str(ranks.device),
                "world_size": ranks.world_size,
                "threads_per_rank": rounding["threads"],
                "precision": rounding["precision"],
                "data": data,
            },
        )


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


@contextmanager
def created_atomically(path: Path) -> Iterator[RunDirectory]:
    """A new run directory at `path`, which appears with all that is written into it, or not at all."""
    aside = path.with_name(f".preparing-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield RunDirectory(aside)
    aside.rename(path)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: whoever reads sees the old or the new content, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def read_touch_time(path: Path) -> float | None:
    """When a file was last touched, by the clock of its storage; None if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one JSON line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file; a torn last one (the writer was killed) is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    if path.exists():
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in read_lines(path) if keep(line)))


def package_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with '+' if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        run = ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(run, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        status = ["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", "."]
        changed = subprocess.run(status, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
