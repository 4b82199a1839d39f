"""Soft labels of a teacher (joint training, section 3.3 of the paper): a data set packed anew with the tasks of a finished run.

Images and labels that are there stay as they are. In the splits that are asked for, every sample gets the probability
that the teacher gives each of its tasks; the others stay unlabelled, so that a test set is scored on its own tasks only.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import torch

from distbranch.config import DataConfig, load_config
from distbranch.config.paths import is_remote
from distbranch.data.images import JPEG_START, convert_to_jpeg
from distbranch.data.pack import pack
from distbranch.data.reader import ShardReader, ShardSource
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import BadSample, DatasetInfo, Sample, read_dataset
from distbranch.engine.artifact import WEIGHTS, load_model
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import compute_outputs
from distbranch.engine.run_directory import RunDirectory
from distbranch.engine.run_start import check_has_ended
from distbranch.errors import UserError
from distbranch.kinds import KINDS
from distbranch.models.network import Network

DECIMALS = 4  # in 0..1: finer than any teacher knows, and a third of the bytes

SoftLabels = Mapping[str, float]


def label_with_teacher(
    data: str,
    out: str | os.PathLike[str],
    run: Path,
    *,
    splits: Sequence[str] = ("train",),
    progress: Callable[[int], None] | None = None,
) -> DatasetInfo:
    """Pack the samples of `data` into the new folder `out`, with the tasks of a finished run and its soft labels.

    Args:
        data: a packed data set, folder or URL.
        out: a new folder; the same labelling done before is returned as it is.
        run: the directory of the teacher's run.
        splits: those whose samples get soft labels.
        progress: told the samples so far.

    Raises:
        UserError: an unfinished teacher, one with tasks that are not binary or with a task that the data set has; `out` is the data
            set itself or holds anything else; an unknown split; a sample that cannot be read.
    """
    info = read_dataset(data)
    teacher, preprocessing = load_model(run)
    _check_labelling(info, out, run, teacher, splits)
    config = load_config(RunDirectory(run).config)
    # As the teacher saw its own images; a sample that is left out would shift all soft labels after it.
    as_trained = config.data.model_copy(
        update={"decoder": preprocessing.decoder, "on_bad_sample": "fail"}
    )
    size = config.train.eval_batch_size
    soft = {name: _compute_soft_labels(info, name, teacher, as_trained, size) for name in splits}
    # Shards as large as the largest that there is, so that the new data set is read as the old one is.
    shards = [shard for split in info.splits.values() for shard in split.shards]
    source = {
        "source": "label",
        "data": {"path": info.path, "fingerprint": info.fingerprint, "source": info.source},
        "teacher": {
            "run": str(run.absolute()),
            "weights_sha256": file_sha256(RunDirectory(run).model / WEIGHTS),
        },
        "splits": list(splits),
    }
    return pack(
        _add_soft_labels(info, soft),
        out,
        (*info.tasks, *teacher.tasks.tasks),
        groups=info.groups,
        source=source,
        skipped=info.skipped,
        shard_samples=max(shard.num_samples for shard in shards),
        progress=progress,
    )


def _check_labelling(
    info: DatasetInfo,
    out: str | os.PathLike[str],
    run: Path,
    teacher: Network,
    splits: Sequence[str],
) -> None:
    if not is_remote(info.path) and os.path.realpath(info.path) == os.path.realpath(out):
        raise UserError(
            f"{out} is the data set to be labelled itself. Give a new folder; images are copied into it."
        )
    check_has_ended(run, "is a teacher")
    unknown = [split for split in splits or [""] if split not in info.splits]
    if unknown:
        raise UserError(
            f"{info.path} has no split '{unknown[0]}' to be labelled; it has {', '.join(info.splits)}."
        )
    taught = teacher.tasks.tasks
    others = [f"{task.name} ({task.kind})" for task in taught if not KINDS[task.kind].is_share]
    if others:
        raise UserError(
            f"The teacher {run} has task(s) that are not binary: {', '.join(others[:5])}, and soft labels are of binary ones. "
            "Pack its data set with binary tasks alone (classes by one_task_per_class) and train it again."
        )
    shared = sorted({task.name for task in taught} & {task.name for task in info.tasks})
    if shared:
        raise UserError(
            f"The data set {info.path} has task(s) of the teacher {run} already: {', '.join(shared[:5])}. "
            "Give a teacher for other tasks, or pack one of the data sets with other names (--class-prefix)."
        )


def _add_soft_labels(
    info: DatasetInfo, soft: Mapping[str, Iterator[SoftLabels]]
) -> Iterator[Sample]:
    """Every sample as it is, with the next soft labels of its split."""
    for name, split in info.splits.items():
        extra = soft.get(name, itertools.repeat({}))
        source = ShardSource.from_split(info, name)
        with closing(ShardReader([source], max_open=1)) as reader:
            for number, shard in enumerate(split.shards):
                for sample in range(shard.num_samples):
                    opened = reader.open_shard(number)
                    image, content = opened.read_files(sample)
                    described = json.loads(content)
                    if not isinstance(described.get("key"), str):
                        raise BadSample(
                            "incomplete", shard.file, sample, "its label file has no field 'key'."
                        )
                    labels = {**described["labels"], **next(extra)}
                    # Of tars that others made it may be a PNG, and a shard of ours holds JPEGs.
                    if not image.startswith(JPEG_START):
                        image = convert_to_jpeg(image)
                    maps = opened.read_maps(sample)
                    yield Sample(described["key"], name, image, labels, maps)


@torch.inference_mode()
def _compute_soft_labels(
    info: DatasetInfo, split: str, teacher: Network, data: DataConfig, batch_size: int
) -> Iterator[SoftLabels]:
    """The teacher's probability of each of its tasks, for every sample in order."""
    ranks = Ranks.alone()
    teacher.to(ranks.device)
    for _, outputs in compute_outputs(teacher, info, split, ranks, data, batch_size=batch_size):
        assert isinstance(outputs, torch.Tensor)  # of binary tasks
        answers = teacher.tasks.predict(teacher.tasks.split_by_task(outputs.double()))
        for row in zip(*answers.values(), strict=True):
            named = zip(answers, row, strict=True)
            yield {name: round(cast("float", share), DECIMALS) for name, share in named}
