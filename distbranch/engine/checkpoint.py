"""Checkpoints: a folder of safetensors and JSON per step, written aside, synced, renamed, and verified before use.

No pickle anywhere. A folder without a manifest whose hashes hold does not count, so a process may be killed at any moment.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distbranch.engine.distributed import Ranks
from distbranch.errors import UserError, reason_of
from distbranch.permissions import DeniedError, explain_damage
from distbranch.tensor_files import load_tensors, save_tensors

logger = logging.getLogger("distbranch")
MANIFEST = "manifest.json"
STATE = "state.json"
AVERAGE = "average"  # the file of averaged weights (`train.ema`)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to be resumed: plain values, and named tensors by file (`model`, `optimizer`, `affinity`)."""

    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


def save_checkpoint(folder: Path, iteration: int, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `checkpoint` as `folder/step-XXXXXXXX` and remove all but the newest `keep`.

    Raises:
        UserError: the folder cannot be written (full, read-only); earlier checkpoints are untouched.
    """
    final = folder / f"step-{iteration:08d}"
    aside = folder / f".writing-{iteration:08d}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, tensors in checkpoint.tensors.items():
            save_tensors(aside / f"{name}.safetensors", tensors)
        (aside / STATE).write_text(json.dumps(checkpoint.state, indent=1))
        # Last of all: without it the others do not count.
        hashes = {path.name: _sha256(path) for path in sorted(aside.iterdir())}
        manifest = {"format": "distbranch-checkpoint", "version": 1, "sha256": hashes}
        (aside / MANIFEST).write_text(json.dumps(manifest, indent=1))
        # A rename may reach the disk before what it renames, so all of that goes there first.
        for path in (*aside.iterdir(), aside):
            _sync(path)
        if (
            final.exists()
        ):  # a damaged one of the same step, which was passed over when the run was resumed
            shutil.rmtree(final)
        aside.rename(final)
        _sync(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"The checkpoint of step {iteration} could not be written to {folder} ({reason_of(error)}). "
            "Earlier checkpoints are intact; make room or give another run.directory, then run the same command again."
        ) from None
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints, the newest last. A folder that may not be read is an error, and not (as for `glob`) an empty one."""
    if not folder.exists():
        return []
    return sorted(path for path in folder.iterdir() if path.name.startswith("step-"))


def read_step(checkpoint: Path) -> int:
    """After how many steps a checkpoint was written; its folder says so."""
    return int(checkpoint.name.removeprefix("step-"))


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, None if there is none at all; damaged ones are passed over with a warning.

    Raises:
        UserError: all are damaged.
        DeniedError: one may not be read; it may be good, so none before it is taken in its place.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except DeniedError:
            raise
        except UserError as error:
            logger.warning("%s", error)
    if paths:
        raise UserError(
            f"None of the {len(paths)} checkpoint(s) in {folder} can be used; each is damaged. Put back a good one from a copy, "
            "remove that folder to begin at step 0, or use --fresh to begin in a new directory."
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        UserError: a file is missing, cut or changed.
        DeniedError: a file may not be read.
    """
    tensors = {}
    # Every byte is hashed before any is believed: seconds against weights that were trained for hours.
    with explain_damage(f"The checkpoint {path} is damaged", "It is passed over."):
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["sha256"].items():
            if _sha256(path / name) != expected:
                raise ValueError(f"{name} is not what was written")
        state = json.loads((path / STATE).read_text())
        for name in manifest["sha256"]:
            if name.endswith(".safetensors"):
                tensors[Path(name).stem] = load_tensors(path / name)
    return Checkpoint(state, tensors)


def set_damaged_aside(folder: Path, *, newest_good: int) -> None:
    """Rename checkpoints newer than the one a run is resumed from, which are damaged; remove what a killed write left."""
    for path in list_checkpoints(folder):
        if read_step(path) > newest_good:
            path.rename(path.with_name(f"damaged-{path.name}"))
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)


def share_checkpoint(
    checkpoint: Checkpoint | None, ranks: Ranks, *, but_for: str
) -> Checkpoint | None:
    """Rank 0's checkpoint on every rank: plain values as an object, tensors as they lie in memory, one copy on each rank.

    The tensors of the file `but_for` stay with rank 0 alone.
    """
    # A pickle of the tensors themselves would be a second copy of them on every rank.
    described: Any = None
    if checkpoint is not None:
        shapes: dict[str, Any] = {}
        for file, tensors in checkpoint.tensors.items():
            if file != but_for:
                shapes[file] = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        described = Checkpoint(checkpoint.state, shapes)
    described = ranks.broadcast(described)
    if described is None:
        return None
    if checkpoint is None:
        blank = {}
        for file, members in described.tensors.items():
            blank[file] = {
                name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in members.items()
            }
        checkpoint = Checkpoint(described.state, blank)
    for file in described.tensors:
        ranks.broadcast_tensors(list(checkpoint.tensors[file].values()))
    return checkpoint


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
