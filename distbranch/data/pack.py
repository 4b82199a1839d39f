"""Packs a stream of labelled images: everything is written into a folder beside the target, renamed at the end.

So a packed folder is always whole. Nothing grows with the number of samples but a hash per key, to find those that occur
twice. What was left out and which images are copies of others stands by name in two more files.
"""

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from distbranch.data.copies import count_copies, find_copies, write_copies
from distbranch.data.images import BrokenImageError, read_image_size
from distbranch.data.shard_writer import ShardWriter
from distbranch.data.shards import DATASET_FILE, DatasetInfo, LeftOut, Sample, SplitInfo, read_dataset
from distbranch.errors import UserError
from distbranch.locks import hold_lock
from distbranch.tasks import Task

__all__ = ["SPLITS", "Sample", "pack"]

SPLITS = ("train", "val", "test")
LEFT_OUT_FILE = "left-out.csv"


def pack(
    samples: Iterable[Sample],
    out: str | os.PathLike[str],
    tasks: Sequence[Task],
    *,
    groups: Mapping[str, Sequence[str]] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped: Mapping[str, int] | None = None,
    left_out: Sequence[LeftOut] = (),
    shard_samples: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Writes the samples, in the order they come, into the new folder `out`, `shard_samples` to a shard.

    `source` says what made the data set; a finished data set with the same source, tasks and shards is returned as it
    is. `skipped` counts what was left out before, `left_out` names what the source leaves out and is read when the samples
    end. `progress` is told the samples so far.
    Raises UserError for a target that holds anything else, a bad label, a key that occurs twice, or a full disk.
    """
    out = Path(out).absolute()
    source = _plain({**(source or {}), "shard_samples": shard_samples})

    def describe(splits: dict[str, SplitInfo], size: tuple[int, int], copies: dict[str, int]) -> DatasetInfo:
        members = {name: tuple(names) for name, names in (groups or {}).items()}
        missing = dict(Counter(skipped or {}) + Counter(one.kind for one in left_out))
        return DatasetInfo(str(out), tuple(tasks), members, splits, size, source, missing, copies)

    try:
        finished = _finished(out, source, tasks)
        if finished is not None:
            return finished
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = out.with_name(f".{out.name}.lock")
        with hold_lock(lock), _renamed_at_the_end(out) as partial:
            finished = _finished(out, source, tasks)  # by whoever held the lock
            if finished is not None:
                return finished
            splits, size = _write(samples, partial, tasks, shard_samples, progress)
            if not splits:
                raise UserError(_why_none(left_out))
            info = describe(splits, size, _list_copies(partial, splits))
            _list_left_out(partial, left_out)
            _write_json(partial / DATASET_FILE, info.to_json())
            return info
    except OSError as error:
        raise UserError(
            f"The data set cannot be written to {out}: {error.strerror or error}. "
            "Give a folder that can be written, on a disk with enough room; nothing was left behind."
        ) from error


@contextmanager
def _renamed_at_the_end(out: Path) -> Iterator[Path]:
    """A new folder beside `out` that takes its place when it holds a data set; whatever happens, it does not stay."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed packing left
    partial.mkdir()
    try:
        yield partial
        if (partial / DATASET_FILE).exists():
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _finished(out: Path, source: Mapping[str, Any], tasks: Sequence[Task]) -> DatasetInfo | None:
    """The data set that is already there, if it is the one asked for; None when there is none."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise UserError(f"{out} is a file. Give a new folder.")
    refusal = f"{out} is not empty, so nothing was packed into it"
    if not (out / DATASET_FILE).is_file():
        raise UserError(f"{refusal}: it holds no packed data set. Give a new folder.")
    info = read_dataset(out)
    if _given(info.source) != _given(source) or info.tasks != tuple(tasks):
        raise UserError(f"{refusal}: it holds a data set packed from another source. Give a new folder or remove it.")
    for shard in (shard for split in info.splits.values() for shard in split.shards):
        if not (out / shard.file).is_file() or (out / shard.file).stat().st_size != shard.num_bytes:
            raise UserError(
                f"{refusal}: its shard {shard.file} is missing or of another size. Remove it to pack again."
            )
    return info


def _write(
    samples: Iterable[Sample],
    folder: Path,
    tasks: Sequence[Task],
    shard_samples: int,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, SplitInfo], tuple[int, int]]:
    """Routes every sample to the writer of its split; returns the splits and the (height, width) of the first image."""
    writers: dict[str, ShardWriter] = {}
    keys: set[int] = set()
    size = (0, 0)
    done = 0
    with ExitStack() as stack:
        for sample in samples:
            if done == 0:
                size = _first_size(sample)
            if sample.split not in writers:
                _check_split(sample)
                writer = ShardWriter(folder, sample.split, tasks, shard_samples=shard_samples)
                writers[sample.split] = stack.enter_context(writer)
            _check_key(sample.key, keys)
            writers[sample.split].write(sample)
            done += 1
            if progress is not None and done % 100 == 0:
                progress(done)
    if progress is not None:
        progress(done)
    return {name: writers[name].info for name in SPLITS if name in writers}, size


def _why_none(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "There is not a single sample to pack. Check the table, the images and the splits."
    first = left_out[0]
    return (
        f"All {len(left_out):,} images were left out, so there is nothing to pack. "
        f"The first of them ({first.where}), '{first.image}': {first.why}."
    )


def _list_copies(folder: Path, splits: Mapping[str, SplitInfo]) -> dict[str, int]:
    """Writes the copies down, if there are any, and counts them."""
    found = find_copies(folder, splits)
    if found:
        write_copies(folder, found)
    return count_copies(found)


def _list_left_out(folder: Path, left_out: Sequence[LeftOut]) -> None:
    if not left_out:
        return
    # Of file names that are not UTF-8 the odd bytes are written as such (`\\udce9`).
    with (folder / LEFT_OUT_FILE).open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "kind", "where", "why"])
        writer.writerows((one.image, one.kind, one.where, one.why) for one in left_out)


def _first_size(sample: Sample) -> tuple[int, int]:
    try:
        return read_image_size(sample.image)
    except BrokenImageError as error:
        raise UserError(f"Sample {sample.key}: {error}.") from None


def _check_split(sample: Sample) -> None:
    if sample.split not in SPLITS:
        raise UserError(f"Sample {sample.key}: the split should be one of {', '.join(SPLITS)}, found '{sample.split}'.")


def _check_key(key: str, keys: set[int]) -> None:
    name = key.rpartition("/")[2]
    if not name or "." in name or key != key.strip("/ "):
        raise UserError(f"The key '{key}' cannot name a sample: it should be a file name without extension and dots.")
    if hash(key) in keys:
        raise UserError(f"Two samples have the key '{key}'. Give every image a name of its own.")
    keys.add(hash(key))


def _given(source: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of a source; an option that came later and is not used makes no other data set."""
    return {key: value for key, value in source.items() if value not in (None, "", [], {})}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value as it comes back from JSON (tuples as lists, paths as text), so that it can be compared with a file."""
    plain: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return plain


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
