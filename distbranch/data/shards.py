"""The packed data set: tar shards that any WebDataset reader understands, an index per shard, and `dataset.json`.

A tar says nothing about what it lost: cut at a header it simply ends earlier. So every shard has an index with the
place, size and crc32 of each image, label file and map, and `dataset.json` holds the sha256 of both: who reads, compares.
Tars that others made are read where they lie (`indexing`): their labels stand in a file of ours beside the index.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from distbranch.config.paths import is_remote
from distbranch.errors import UserError, reason_of
from distbranch.kinds import KINDS, LabelValue
from distbranch.permissions import make_denied_error
from distbranch.tasks import Task

DATASET_FILE = "dataset.json"
FORMAT = "distbranch-dataset"
VERSION = 1  # a program refuses those that it does not know
VERSION_OF_MAPS = (
    2  # of a data set with dense tasks, which earlier programs would read without them
)
VERSION_OF_INDEXED = 3  # of tars that others made, whose labels earlier programs would seek in them
BAD_KINDS = ("missing-shard", "truncated", "corrupt", "incomplete", "broken-image", "bad-label")

# [n, 3 (2 + D)] of a shard: image offset, size and crc32, then the same of the label file and of the maps of the D dense tasks,
# in the order of dataset.json; -1 of a map that is not there. Of a tar that others made the label file is a line of `Shard.labels`.
Index = NDArray[np.int64]
Labels = Mapping[str, LabelValue]


@dataclass(eq=False, repr=False)
class BadSample(UserError):  # noqa: N818  # what it names is the sample
    """A sample that cannot be used.

    `kind` is one of BAD_KINDS, `sample` its number inside the shard or its key (None: the whole shard).
    All are given by position: those are an exception's `args`, by which it survives pickling.
    """

    kind: str
    shard: str
    sample: int | str | None
    what: str

    def __str__(self) -> str:
        if self.sample is None:
            return f"Shard {self.shard}: {self.what}"
        return f"Shard {self.shard}, sample {self.sample}: {self.what}"


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    `image`: JPEG bytes; `labels`: 0..1 of a binary task, a class by its name, a number; absent where unlabelled.
    `maps`: of dense tasks PNG bytes of their codes (kinds/dense.py), as large as the image; absent where unlabelled.
    """

    key: str
    split: str
    image: bytes
    labels: Labels
    maps: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """An image that was not packed: its name, its kind (`missing-image`, `broken-image`), where it was named, and why."""

    image: str
    kind: str
    where: str
    why: str


@dataclass(frozen=True)
class Shard:
    """One tar file and its index, with the bytes and sums (hexadecimal) the files had when they were written.

    `labels`: of a tar that others made the file with its labels; `file` may lie elsewhere then, in a folder or at a URL.
    """

    file: str
    num_samples: int
    num_bytes: int
    sha256: str
    index: str
    index_sha256: str
    labels: str = ""
    labels_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """What `dataset.json` says of it."""
        values = asdict(self)
        if not self.labels:
            del values["labels"], values["labels_sha256"]
        return values


@dataclass(frozen=True)
class SplitInfo:
    """The shards of one split and the counts of its labels: {"Shoes": {"1": 5000, "0": 15000, "unlabelled": 7}}.

    Of numbers {"Age": {"count": 20000, "mean": 41.2, "deviation": 11.9, "min": 3.0, "max": 97.0, "unlabelled": 7}}, of maps see
    kinds/map_counts.py.
    """

    num_samples: int
    labels: dict[str, dict[str, int | float]]
    shards: tuple[Shard, ...]

    def to_json(self) -> dict[str, Any]:
        """What `dataset.json` says of it."""
        return {
            "num_samples": self.num_samples,
            "labels": self.labels,
            "shards": [shard.to_json() for shard in self.shards],
        }


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says. `path`: folder or URL; `image_size`: (height, width) in pixels of the first image.

    `skipped` counts what was left out, by kind; `copies` the samples that are exact copies of others.
    Several data sets read as one (`data.mixture`) have `parts`, and `proportions` if they are not to be those of sizes.
    """

    path: str
    tasks: tuple[Task, ...]
    groups: dict[str, tuple[str, ...]]
    splits: dict[str, SplitInfo]
    image_size: tuple[int, int]
    source: dict[str, Any]
    skipped: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    parts: tuple["DatasetInfo", ...] = ()
    proportions: tuple[int, ...] = ()

    @property
    def members(self) -> tuple["DatasetInfo", ...]:
        """The packed data sets: the parts, or this one alone."""
        return self.parts or (self,)

    @property
    def num_samples(self) -> int:
        """Number of samples of all splits."""
        return sum(split.num_samples for split in self.splits.values())

    @property
    def bits(self) -> int | None:
        """How many of their 16 bits deep images use, as it was said when they were packed; None: nothing was said."""
        # Data sets that were packed with different answers have none in common.
        given = {_read_packed_bits(member.source) for member in self.members} - {None}
        return given.pop() if len(given) == 1 else None

    @property
    def fingerprint(self) -> str:
        """A hash over tasks and shards: the same samples in the same places, wherever the data set lies."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        if self.parts:
            # In which proportions they are mixed decides the order of samples, so it belongs to what a run resumes.
            what: list[Any] = [[part.fingerprint for part in self.parts], list(self.proportions)]
        else:
            content = self.to_json()
            for split in content["splits"].values():
                for shard in split["shards"]:
                    # Wherever it lies, it is the tar of this sum.
                    if "labels" in shard:
                        del shard["file"]
            what = [content["tasks"], content["splits"]]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of `dataset.json` (everything but the place)."""
        return {
            "format": FORMAT,
            "version": self._version,
            "source": self.source,
            "image_size": list(self.image_size),
            "tasks": [task.to_json() for task in self.tasks],
            "groups": {name: list(tasks) for name, tasks in self.groups.items()},
            "skipped": self.skipped,
            "copies": self.copies,
            "splits": {name: split.to_json() for name, split in self.splits.items()},
        }

    @property
    def _version(self) -> int:
        if any(shard.labels for split in self.splits.values() for shard in split.shards):
            return VERSION_OF_INDEXED
        return VERSION_OF_MAPS if list_dense_tasks(self.tasks) else VERSION


def split_member(name: str) -> tuple[str, str]:
    """The key of a file in a tar, and what follows its dot: as webdataset has it, a key ends at the first dot of the file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix


def list_dense_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Those with maps, in their order."""
    return [task for task in tasks if task.is_dense]


def _read_packed_bits(source: Mapping[str, Any]) -> int | None:
    """The option of whoever packed the images."""
    while source.get("source") == "label":
        source = source["data"]["source"]  # of a labelled copy that of the original
    bits = source.get("bits")
    return None if bits is None else int(bits)


def join(path: str, file: str) -> str:
    """The place of a file of the data set at `path` (folder or URL), which may be a URL itself."""
    if is_remote(file):
        return file
    if is_remote(path):
        return f"{path.rstrip('/')}/{file}"
    return str(Path(path) / file)


def read_dataset(path_or_url: str | os.PathLike[str]) -> DatasetInfo:
    """Reads `dataset.json` of a packed data set. Raises UserError when it is absent, unreadable, damaged or of another format."""
    path = os.fspath(path_or_url)
    if not is_remote(path):
        path = str(Path(path).absolute())
    place = join(path, DATASET_FILE)
    try:
        with fsspec.open(place, "rb") as file:
            content = file.read()
    except Exception as error:  # every fsspec driver raises errors of its own
        raise _explain_unread(path, place, error) from error
    return _parse_dataset(path, place, content)


def _explain_unread(path: str, place: str, error: Exception) -> UserError:
    if is_remote(path):
        # Over http fsspec takes an address that does not answer for one without files; the cause is what happened.
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())
        return UserError(
            f"{place} cannot be read ({type(cause).__name__}: {said}). Give the URL of a packed data set. If the store asks for "
            "credentials, give them as its tools take them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, "
            "GOOGLE_APPLICATION_CREDENTIALS)."
        )
    if isinstance(error, PermissionError):
        return make_denied_error(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(
            f"{path} does not exist, or it is not a packed data set, which is a folder with a {DATASET_FILE}. Pack one with "
            "'distbranch data pack', or give the folder of one."
        )
    return UserError(f"{place} cannot be read: {reason_of(error)}.")


def _parse_dataset(path: str, place: str, content: bytes) -> DatasetInfo:
    repack = "Pack the data set again with 'distbranch data pack'."
    try:
        data = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{place} is damaged, it is no longer the JSON of a {FORMAT} ({error}). {repack}"
        ) from None
    kind = (data.get("format"), data.get("version"))
    if kind[0] != FORMAT or kind[1] not in (VERSION, VERSION_OF_MAPS, VERSION_OF_INDEXED):
        raise UserError(
            f"{place} is not the description of a packed data set: it should have the format {FORMAT} in version {VERSION} to "
            f"{VERSION_OF_INDEXED}, found {kind[0]} in version {kind[1]}. {repack}"
        )
    _refuse_unknown_kinds(place, data.get("tasks"))
    try:
        return TypeAdapter(DatasetInfo).validate_python({"groups": {}, **data, "path": path})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"{place} is damaged: {field}: {first['msg']}. {repack}") from None


def _refuse_unknown_kinds(place: str, tasks: Any) -> None:
    """Said here and not by the check below, for such a file is not damaged: it needs the plug-in of its kind of task."""
    for task in tasks if isinstance(tasks, list) else ():
        kind = task.get("kind") if isinstance(task, dict) else None
        if isinstance(kind, str) and kind not in KINDS:
            raise UserError(f"{place}: {KINDS.describe_unknown(kind)}")


def parse_labels(content: bytes, tasks: Sequence[Task]) -> NDArray[np.float32]:
    """Labels [T] of one `<key>.json`, as their kinds read them; NaN = unlabelled, and of dense tasks. Raises UserError."""
    try:
        labels = dict(json.loads(content)["labels"])
    except (ValueError, KeyError, TypeError):
        raise UserError("its label file is not JSON with a field 'labels'.") from None
    numbers: list[float] = []
    for task in tasks:
        value = labels.get(task.name, math.nan)
        # Nearly all labels are 0 or 1, which need no call; this runs for every task of every sample.
        if value is not math.nan and (task.classes or value not in (0, 1)):
            value = KINDS[task.kind].read_label(task, value)
        numbers.append(value)
    # Counted first: to compare the names of all tasks takes longer, and it is hardly ever needed.
    if len(labels) > len(numbers) - numbers.count(math.nan):
        unknown = labels.keys() - {task.name for task in tasks}
        if unknown:
            raise UserError(f"it has a label of '{min(unknown)}', which is no task.")
    return np.array(numbers, dtype=np.float32)
