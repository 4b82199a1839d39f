"""An exported ONNX file in float16 or int8, by ONNX Runtime's own converters, and what that costs every task on val."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from distbranch.config import Config, load_config
from distbranch.data.loader import eval_loader
from distbranch.data.mixture import read_data
from distbranch.data.shards import DatasetInfo
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.distributed import Ranks
from distbranch.engine.evaluate import Scores, evaluate_split
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.export.onnx_graph import silence_exporters
from distbranch.export.onnx_model import OnnxModel
from distbranch.kinds import KINDS
from distbranch.maps import AnyOutputs, Outputs
from distbranch.models.network import Network

SPLIT = "val"
NAMED = 5  # tasks in a refusal
# 256 images, for the ranges of activations; ONNX Runtime advises 100 or more.
NUM_BATCHES = 16
BATCH_SIZE = 16


def read_val(run: Path, precision: str) -> tuple[DatasetInfo, Config]:
    """The data of a run, which have a val, and its configuration, asked for before anything is written.

    Raises:
        UserError: they cannot be read, or have no val.
    """
    config = load_config(RunDirectory(run).config)
    try:
        info = read_data(config.data)
    except UserError as error:
        raise UserError(
            f"What --precision {precision} loses is measured on the run's data, which cannot be read: {error}"
        ) from None
    if SPLIT not in info.splits:
        raise UserError(
            f"What --precision {precision} loses is measured on {SPLIT}, but {info.path} has {', '.join(info.splits)} alone. "
            "Export without --precision."
        )
    return info, config


def check_scores(
    scores: Mapping[str, Mapping[str, Any]],
    precision: str,
    difference: float,
    tolerance: float | None,
) -> None:
    """Raises UserError for outputs that are not finite, and for tasks that lose more than `tolerance`."""
    if not math.isfinite(difference):
        raise UserError(
            f"In {precision} the outputs of the network are not finite, so the file is not kept. Export in another --precision."
        )
    threshold = math.inf if tolerance is None else tolerance
    worst = sorted(scores, key=lambda task: scores[task]["loss"], reverse=True)
    lost = [task for task in worst if scores[task]["loss"] > threshold]
    if lost:
        shown = ", ".join(f"{task} {scores[task]['loss']:.1%}" for task in lost[:NAMED])
        raise UserError(
            f"In {precision} {len(lost)} of {len(scores)} tasks lose more than {threshold:.1%} of their score on val ({shown}), so the "
            "file is not kept. Give a larger --tolerance or another --precision."
        )


def lower_precision(
    file: Path, precision: str, info: DatasetInfo, preprocessing: Preprocessing
) -> None:
    """Rewrite an exported file: `fp16`, or `int8` (weights per channel, activations by their range on images of val).

    Input and outputs keep their types.
    """
    whole = onnx.load(file)
    with silence_exporters():
        if precision == "fp16":
            lower = convert_float_to_float16(whole, keep_io_types=True)
            onnx.save(lower, file)
        else:
            reader = _Images(OnnxModel(file), info, preprocessing)
            quantize_static(whole, file, reader, per_channel=True)
    lower = onnx.load(file)
    if not lower.metadata_props:
        lower.metadata_props.extend(whole.metadata_props)
        onnx.save(lower, file)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Images of val as the input of a file, batch by batch."""

    def __init__(self, model: OnnxModel, info: DatasetInfo, preprocessing: Preprocessing) -> None:
        self.model = model
        self.batches = _read_images(info, preprocessing)

    def get_next(self) -> dict[str, Any] | None:
        """The next input by its name; None at the end."""
        images = next(self.batches, None)
        return None if images is None else self.model.make_input(images)


def _read_images(info: DatasetInfo, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Of every data set as many."""
    members = [member for member in info.members if SPLIT in member.splits]
    for member in members:
        batches = eval_loader(
            member,
            SPLIT,
            batch_size=BATCH_SIZE,
            image_size=preprocessing.image_size,
            decoder=preprocessing.decoder,
            on_bad_sample="skip",
        )
        for batch in islice(batches, max(1, NUM_BATCHES // len(members))):
            if len(batch.images):
                yield batch.images


def compare_scores(
    network: Network, file: Path, info: DatasetInfo, config: Config
) -> dict[str, dict[str, Any]]:
    """By task of the file its first metric on val, of the network and of the file: {"metric", "before", "after", "loss"}.

    `loss` is what is lost as a part of `before`: 0.01 is one per cent, of errors one more per cent; below 0 something is gained.
    """
    ranks = Ranks.alone()
    network.to(ranks.device)

    def score() -> Scores:
        size = config.train.eval_batch_size
        return evaluate_split(network, info, SPLIT, ranks, config.data, batch_size=size)

    model = OnnxModel(file)
    before = score()["tasks"]
    with answered_by(network, model):
        after = score()["tasks"]
    compared = {}
    for task in model.tasks.tasks:
        for name, metric in KINDS[task.kind].metrics.items():
            first, then = before[task.name].get(name), after[task.name].get(name)
            if first is None or then is None:
                continue
            lost = then - first if metric.lower_is_better else first - then
            part = lost / max(abs(first), 1e-12)
            compared[task.name] = {"metric": name, "before": first, "after": then, "loss": part}
            break
    return compared


@contextmanager
def answered_by(network: Network, model: OnnxModel) -> Iterator[None]:
    """Within the block the network gives the outputs of a file, for the tasks that the file has."""

    def replace_outputs(_: Network, images: tuple[Tensor], outputs: AnyOutputs) -> AnyOutputs:
        maps: dict[str, Tensor] = {}
        logits = outputs
        if isinstance(outputs, Outputs):
            maps.update(outputs.maps)
            logits = outputs.logits
        assert isinstance(logits, Tensor)
        for name, own in model(images[0].cpu()).items():
            if name in maps:
                maps[name] = own.to(maps[name])
            else:
                logits[:, network.tasks.columns[name]] = own.view(len(own), -1).to(logits)
        return Outputs(logits, maps) if maps else logits

    handle = network.register_forward_hook(replace_outputs)
    try:
        yield
    finally:
        handle.remove()
