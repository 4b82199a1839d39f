"""Writes `dataset.json`, the indexes and the labels of tars that others made, of which not a byte is copied.

Every tar is read once (`scan`). What its label files say becomes a table of one row per sample, which is understood as that of
`data pack csv`, so that kinds, missing labels, numbers and tags mean the same however images come.
"""

import csv
import json
import logging
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from distbranch.config.paths import is_remote
from distbranch.data.indexing.label_columns import (
    KeyedTable,
    check_kinds,
    check_places,
    choose_columns,
    find_tar_splits,
)
from distbranch.data.indexing.options import (
    IndexOptions,
    MappedTask,
    choose_column_options,
    read_mapping,
)
from distbranch.data.indexing.scan import FoundSample, Scan, TarScanner, read_scan
from distbranch.data.indexing.tars import list_tars, name_tars
from distbranch.data.number_tasks import measure_tasks
from distbranch.data.pack import (
    SPLITS,
    count_copies,
    find_copies,
    without_unused,
    write_dataset,
    write_tables,
)
from distbranch.data.shard_writer import LabelTally, file_sha256, write_labels
from distbranch.data.shards import (
    DATASET_FILE,
    DatasetInfo,
    LeftOut,
    Sample,
    Shard,
    SplitInfo,
    read_dataset,
)
from distbranch.data.sources import LARGE, list_remarks
from distbranch.data.sources.csv import CsvOptions
from distbranch.data.sources.label_table import LearntTable, learn_table
from distbranch.data.sources.source import Row
from distbranch.data.sources.tables import Problems, read_table
from distbranch.errors import UserError
from distbranch.locks import hold_lock
from distbranch.tasks import Task

logger = logging.getLogger("distbranch")

WORK = ".indexing"  # what is known of the tars until all is done
READERS = 4  # tars that are read at a time: one stream of a distant store fills no network
NAME_COLUMN = "__key__"  # as webdataset calls it
NUM_ENDINGS = 8
REPAIR = "Repair them, or leave such samples out with --on-bad-image skip (on_bad_image)."


@dataclass(frozen=True)
class Request:
    """What is asked for: the tars with their names and, if these say so, their splits; the options, and tables of labels by key."""

    names: Mapping[str, str]
    options: IndexOptions
    mapping: Mapping[str, MappedTask]
    splits: Mapping[str, list[str]]
    tables: Sequence[KeyedTable]


@dataclass
class Survey:
    """What all tars hold together: columns of labels, where labels are and are not (see `Scan`), whether keys repeat, what is left out."""

    scans: list[Path] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    found: set[str] = field(default_factory=set)
    fields: dict[str, None] = field(default_factory=dict)
    keys_repeat: bool = False
    sizes: dict[tuple[int, ...], str] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def index_shards(
    shards: Sequence[str],
    out: str | os.PathLike[str],
    options: IndexOptions,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetInfo:
    """Makes a data set in the folder `out` of tars that stay where they are; `progress` is told how many of them were read.

    `shards`: paths and URLs, with stars and braces, or folders. A finished data set of the same shards and options is returned as
    it is. What was read of the tars stays in `out`/.indexing until all is done.
    Raises UserError for tars that cannot be read or hold no samples, for labels as `data pack csv` does, and a disk that is full.
    """
    if is_remote(os.fspath(out)):
        raise UserError(
            f"OUT should be a folder of this machine, found {out}. Its files may be copied to a URL."
        )
    out = Path(out).absolute()
    tars = list_tars(shards)
    described = _describe_source(shards, tars, options)
    try:
        finished = _find_finished(out, described)
        if finished is not None:
            return finished
        work = out / WORK
        work.mkdir(parents=True, exist_ok=True)
        with hold_lock(work / "lock"):
            finished = _find_finished(out, described)
            if finished is not None:
                return finished
            problems = Problems(Path(" ".join(shards)))
            request = _read_request(tars, options, problems)
            survey = _survey_tars(request, work, problems, progress or (lambda *_: None))
            info = _write_dataset(out, request, survey, described)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"The index cannot be written to {out}: {error.strerror or error}. Give a folder that can be written, on a disk with room."
        ) from error
    for remark in list_remarks(info):
        logger.warning(remark)
    return info


def _read_request(tars: Sequence[str], options: IndexOptions, problems: Problems) -> Request:
    """All that can be found out before the tars are read, which may take days."""
    splits = find_tar_splits(tars, options, problems)
    problems.raise_all()
    mapping = {}
    if options.mapping is not None:
        mapping = read_mapping(options.mapping)
    tables = [KeyedTable.read(path, options) for path in options.tables]
    return Request(name_tars(tars), options, mapping, splits, tables)


def _describe_source(
    shards: Sequence[str], tars: Sequence[str], options: IndexOptions
) -> dict[str, Any]:
    """As it comes back from JSON."""
    files = [*options.tables, *filter(None, [options.mapping])]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} does not exist.")
    checksums = {f"{file}_sha256": file_sha256(file) for file in files}
    described = {**options.describe(**checksums), "shards": list(shards), "num_tars": len(tars)}
    values: dict[str, Any] = json.loads(json.dumps(described))
    return values


def _find_finished(out: Path, described: Mapping[str, Any]) -> DatasetInfo | None:
    if not (out / DATASET_FILE).exists():
        return None
    info = read_dataset(out)
    if without_unused(info.source) != without_unused(described):
        raise UserError(
            f"{out} holds a data set already that was made otherwise, so nothing was written. Give another folder, or remove its "
            f"{DATASET_FILE}."
        )
    return info


def _survey_tars(
    request: Request,
    work: Path,
    problems: Problems,
    progress: Callable[[int, int], None],
) -> Survey:
    """Reads all tars that were not read before. Raises UserError that names those that cannot be, and their samples."""
    survey = Survey()
    options = request.options
    tars = list(request.names)
    keys: set[int] = set()  # hashes of them, as in `pack`
    stop = Event()
    scanner = TarScanner(work, options.label_files, options.image_suffix, stop)
    with ThreadPoolExecutor(READERS, "distbranch-index") as pool:
        waiting = [pool.submit(scanner.scan, place) for place in tars]
        try:
            for number, (place, scanned) in enumerate(zip(tars, waiting, strict=True)):
                progress(number, len(tars))
                try:
                    path = scanned.result()
                except UserError as error:
                    problems.add(f"{place}: {error}", "Repair it, or leave it out of SHARDS.")
                    continue
                scan = read_scan(path)
                if number == 0:
                    _check_first(scan, options)
                survey.scans.append(path)
                survey.found.update(scan.found)
                survey.fields |= dict.fromkeys(scan.fields)
                _survey_samples(scan, options, survey, keys, problems)
            progress(len(tars), len(tars))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    problems.raise_all()
    check_places(options.label_files, survey.found, list(survey.fields), problems)
    problems.raise_all()
    return survey


def _check_first(scan: Scan, options: IndexOptions) -> None:
    """Before thousands of others are read that are like it."""
    if any(not sample.kind for sample in scan.samples):
        return
    common = Counter(scan.endings).most_common(NUM_ENDINGS)
    found = ", ".join(f"{count:,} {ending}" for ending, count in common) or "nothing"
    why = ""
    if scan.samples:
        why = f" Of '{scan.samples[0].key}': {scan.samples[0].why}."
    raise UserError(
        f"{scan.place} has no sample that can be used: each should have an image and labels ({', '.join(options.labels)}) of one key, "
        f"which ends at the first dot of a file's name; the files end with: {found}.{why}"
    )


def _survey_samples(
    scan: Scan, options: IndexOptions, survey: Survey, keys: set[int], problems: Problems
) -> None:
    for sample in scan.samples:
        if not sample.kind:
            survey.columns |= dict.fromkeys(sample.cells)
            survey.keys_repeat |= hash(sample.key) in keys
            keys.add(hash(sample.key))
            if len(survey.sizes) < 2:
                survey.sizes.setdefault(tuple(sample.size), sample.key)
            continue
        survey.left_out.append(LeftOut(sample.key, sample.kind, scan.place, sample.why))
        if options.on_bad_image == "fail":
            problems.add(f"{scan.place}, '{sample.key}': {sample.why}", REPAIR)


def _list_samples(survey: Survey, request: Request) -> Iterator[tuple[Scan, str, FoundSample]]:
    """Every sample that can be used, with a name that no other has."""
    for path in survey.scans:
        scan = read_scan(path)
        for sample in scan.samples:
            if not sample.kind:
                # Keys often begin anew in every tar.
                name = sample.key
                if survey.keys_repeat:
                    name = f"{request.names[scan.place]}/{sample.key}"
                yield scan, name, sample


def _learn_labels(path: Path, request: Request, survey: Survey) -> LearntTable:
    """The tasks, and a row for each sample that has labels. They are written to the table `path`, in which people find lines."""
    problems = Problems(path)
    options, mapping = request.options, request.mapping
    columns = choose_columns(survey.columns, request.tables, options, mapping, problems)
    problems.raise_all()
    # JSON may hold halves of letters, which no text has.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        own_split = ["split"] if request.splits else []
        writer.writerow([NAME_COLUMN, *columns, *own_split])
        for scan, name, sample in _list_samples(survey, request):
            cells = dict(sample.cells)
            absent = [table for table in request.tables if not table.add_cells(name, cells)]
            if absent:
                why = f"{absent[0].path} has no row of it"
                survey.left_out.append(LeftOut(name, "missing-label", scan.place, why))
                if options.on_bad_image == "fail":
                    problems.add(f"'{name}': {why}", REPAIR)
                continue
            row = [column.read(cells, name, problems) for column in columns.values()]
            writer.writerow([name, *row, *request.splits.get(scan.place, [])])
    for table in request.tables:
        table.warn_unused()
    problems.raise_all()
    of_table = CsvOptions(
        images=path.parent,
        table=path,
        delimiter=",",
        encoding="utf-8",
        image_column=NAME_COLUMN,
        **choose_column_options(options, mapping),
    )
    learnt = learn_table(of_table, read_table(of_table, problems), problems)
    check_kinds(learnt.tasks, mapping)
    return learnt


def _write_dataset(
    out: Path, request: Request, survey: Survey, described: Mapping[str, Any]
) -> DatasetInfo:
    learnt = _learn_labels(out / WORK / "labels.csv", request, survey)
    written: list[Path] = []
    try:
        splits = _write_splits(out, request, survey, learnt.rows, learnt.tasks, written)
        tasks = measure_tasks(learnt.tasks, splits)
        # Those at a URL would have to be read once more for it; `data check` does.
        copies = []
        if not any(map(is_remote, request.names)):
            copies = find_copies(out, splits)
        write_tables(out, survey.left_out, copies)
        info = DatasetInfo(
            path=str(out),
            tasks=tasks,
            groups={},
            splits=splits,
            image_size=_choose_size(survey, request.options),
            source={**described, **learnt.notes},
            skipped=dict(Counter(one.kind for one in survey.left_out)),
            copies=count_copies(copies),
        )
        # Last, for it says that all others are there.
        write_dataset(info, out / WORK / DATASET_FILE)
        (out / WORK / DATASET_FILE).replace(out / DATASET_FILE)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return info


def _write_splits(
    out: Path,
    request: Request,
    survey: Survey,
    rows: Iterator[Row],
    tasks: Sequence[Task],
    written: list[Path],
) -> dict[str, SplitInfo]:
    """An index and a file of labels for every tar and split; `written` grows by their paths."""
    tallies = {name: LabelTally(tasks) for name in SPLITS}
    shards: dict[str, list[Shard]] = {name: [] for name in SPLITS}
    # Samples without a row were left out when the table was written.
    expected = next(rows, None)
    for scan, samples in groupby(_list_samples(survey, request), key=itemgetter(0)):
        parts = {name: _SplitPart() for name in SPLITS}
        for _, name, sample in samples:
            if expected is None or expected.image != name:
                continue
            tallies[expected.split].add_sample(Sample(name, expected.split, b"", expected.labels))
            parts[expected.split].add_sample(sample, write_labels(name, expected.labels))
            expected = next(rows, None)
        for split, part in parts.items():
            if part.index:
                stem = out / f"{split}-{len(shards[split]):06d}"
                shards[split].append(part.write(stem, scan, out))
                written += [Path(f"{stem}.index.npy"), Path(f"{stem}.labels.jsonl")]
    splits = {}
    for name, of_split in shards.items():
        num_samples = sum(shard.num_samples for shard in of_split)
        if num_samples:
            splits[name] = SplitInfo(
                num_samples, tallies[name].to_json(num_samples), tuple(of_split)
            )
    return splits


class _SplitPart:
    """The samples of a tar that are in one split."""

    def __init__(self) -> None:
        self.index: list[tuple[int, ...]] = []
        self._labels = bytearray()

    def add_sample(self, sample: FoundSample, labels: bytes) -> None:
        """Appends a sample and its line of labels."""
        place = (len(self._labels), len(labels), zlib.crc32(labels))
        self.index.append((*sample.image, *place))
        self._labels += labels + b"\n"

    def write(self, stem: Path, scan: Scan, out: Path) -> Shard:
        """Writes the index and the labels."""
        index = BytesIO()
        np.save(index, np.array(self.index, dtype=np.int64))
        contents = {".index.npy": index.getvalue(), ".labels.jsonl": bytes(self._labels)}
        sums = {}
        for ending, content in contents.items():
            with Path(f"{stem}{ending}").open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            sums[ending] = sha256(content).hexdigest()
        tar = scan.place
        if not is_remote(tar) and Path(tar).is_relative_to(out):
            tar = str(Path(tar).relative_to(out))
        return Shard(
            file=tar,
            num_samples=len(self.index),
            num_bytes=scan.num_bytes,
            sha256=scan.sha256,
            index=f"{stem.name}.index.npy",
            index_sha256=sums[".index.npy"],
            labels=f"{stem.name}.labels.jsonl",
            labels_sha256=sums[".labels.jsonl"],
        )


def _choose_size(survey: Survey, options: IndexOptions) -> tuple[int, int]:
    """In which size networks see the images, unless a run says another."""
    if options.image_size is not None:
        return options.image_size
    (height, width), *others = survey.sizes
    if others or max(height, width) > LARGE:
        logger.warning(
            "Networks see all images in %dx%d pixels (height x width), the size of the first, stretched to it when they are read, unless "
            "data.image_size says another. --image-size (image_size) gives the data set another size.",
            height,
            width,
        )
    return height, width
