"""The run directory: the names of its files, and how they are written. `run_start` begins one.

`config.yaml`, `environment.json`, `tree.json`, `policy.json`, `result.json` are written atomically; `decisions.jsonl`,
`policies.jsonl` and `metrics.jsonl` grow a line at a time, and are cut back to the checkpoint from which a run resumes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from distbranch.errors import UserError, reason_of
from distbranch.locks import LockHeldError, hold_lock

SCOUT = "scout"


class RunInUseError(UserError):
    """Another process is training the run."""


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.environment = path / "environment.json"
        self.uncommitted = path / "uncommitted.diff"  # how the code differed from its commit
        self.packages = path / "packages.txt"
        self.tree = path / "tree.json"
        self.given_tree = path / "given_tree.json"  # the one that is taken later
        self.from_run = path / "from_run.json"  # what it took of an earlier run
        self.decisions = path / "decisions.jsonl"
        self.policy = path / "policy.json"
        self.policies = path / "policies.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.checkpoints = path / "checkpoints"
        self.affinity = path / "affinity"
        self.model = path / "model"
        self.sample_maps = path / "sample_maps.npz"  # of dense tasks: a few images for the report
        self.answers = path / "answers"  # what `evaluate --out` finds
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers"  # which page of each is the run's, and what it has
        self.gauges = path / "metrics.prom"  # for Prometheus
        self.profile = path / "profile"
        self.lock = path / ".lock"  # held by the process that trains the run
        self.sign_of_life = path / ".alive"  # touched while the run trains
        self.stop_word = path / "stop"
        self.job = path / "job.json"  # who trains it, if a job does
        self.family = path / "family.json"
        self.relatives = path / "relatives"
        self.scout = path / SCOUT  # the run that decided on the tree, if it was trained for that

    @property
    def holds_training(self) -> bool:
        """Whether any step is on record, of the run or of its scout; a start that was refused leaves a directory without."""
        of_scout = self.scout.is_dir() and RunDirectory(self.scout).holds_training
        return of_scout or self.holds_own_training

    @property
    def holds_own_training(self) -> bool:
        """Whether any step of the run itself is on record."""
        written = self.metrics.exists() and self.metrics.stat().st_size > 0
        return written or self.result.exists() or any(self.checkpoints.glob("*"))

    @property
    def is_dispensable(self) -> bool:
        """Whether nobody would miss it: no training, no job that may still train it, no relatives in a sweep."""
        return not (self.holds_training or self.job.exists() or self.family.exists())

    @property
    def data(self) -> str | None:
        """The fingerprint of the data that the run was begun with; None if none is on record."""
        states = sorted(
            self.checkpoints.glob("step-*/state.json")
        )  # of versions that did not record it by itself
        for file in (self.environment, *reversed(states)):
            fingerprint = _read_record(file).get("data")
            if fingerprint is not None:
                return str(fingerprint)
        # A run whose scout is being trained has written nothing of its own yet.
        return RunDirectory(self.scout).data if self.scout.is_dir() else None

    @property
    def last_start(self) -> dict[str, Any]:
        """What the last start recorded of code, packages, data and machine; empty if none is on record."""
        return _read_record(self.environment)

    @property
    def provenance(self) -> tuple[Path, ...]:
        """The files that say what the run is made of, whose names no later start takes away."""
        return (self.environment, self.uncommitted, self.packages)

    @property
    def precision(self) -> str:
        """Of the forward pass when the run was last trained, bf16 or fp32."""
        return str(_read_record(self.environment).get("precision", "fp32"))

    @property
    def pretrained(self) -> str | None:
        """The sha256 of the weights file that the run began from; None if it began from none."""
        return _read_record(self.environment).get("pretrained_sha256")

    @property
    def label_weights(self) -> dict[str, Any]:
        """What labels weighed in training, in numbers, by key of `loss`; nothing where no weights were given."""
        return dict(_read_record(self.environment).get("label_weights", {}))

    @contextmanager
    def locked(self, *, patience_s: float = 5, of_sweep: bool = False) -> Iterator[None]:
        """Keep a second process from training the same run (or sweep) at the same time; the lock falls with the process."""
        what, section = "run", "run."
        if of_sweep:  # whose own keys these are
            what, section = "sweep", ""
        held = ExitStack()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_lock(self.lock, patience_s=patience_s))
        except LockHeldError as error:
            raise RunInUseError(
                f"The {what} {self.path} is being trained by another process. Wait for it, stop it, or give another "
                f"{section}name.{error.advice}"
            ) from None
        except OSError as error:
            raise UserError(
                f"The {what} directory {self.path} cannot be written ({reason_of(error)}). Give another {section}directory."
            ) from None
        with held:
            yield

    def cut_back(
        self, iteration: int, num_decisions: int, *, evaluation_is_due: bool = False
    ) -> None:
        """Drop the lines that were written after the checkpoint from which the run is resumed.

        An evaluation of the same step is dropped too if it is to be made again: it came after what the checkpoint holds.
        """

        def keep_line(line: Mapping[str, Any]) -> bool:
            comes_after = evaluation_is_due and line.get("kind") == "evaluation"
            return bool(line.get("iteration", 0) <= iteration - comes_after)

        for lines in (self.metrics, self.policies):
            _filter_lines(lines, keep_line)
        for decisions in (self.decisions, *self.relatives.glob(f"*/{self.decisions.name}")):
            _filter_lines(decisions, lambda line: line.get("round", 0) <= num_decisions)


def get_finished_run(path: Path, key: str) -> RunDirectory:
    """The run directory that a key of the configuration names.

    Raises:
        UserError: it holds no result.
    """
    files = RunDirectory(path)
    if not files.result.exists():
        raise UserError(
            f"{key}={path} should be a finished run, found none. Train it to its end first."
        )
    return files


def _read_record(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing if there is none, or it cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


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
    with replaced_atomically(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its name if all goes well and vanishes otherwise."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


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
        with suppress(ValueError):
            lines.append(json.loads(text))
    return lines


def read_first_decision(directory: RunDirectory) -> dict[str, Any] | None:
    """The first line of decisions.jsonl; those of a run with a scout are written in one step."""
    return next(iter(read_lines(directory.decisions)), None)


def _filter_lines(path: Path, keep_line: Callable[[dict[str, Any]], bool]) -> None:
    if path.exists():
        kept = filter(keep_line, read_lines(path))
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
