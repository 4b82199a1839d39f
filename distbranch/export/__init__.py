"""A trained network as one file for serving: ONNX, or a program of `torch.export`; neither needs this package to be run.

Every file is compared with the network on images before it takes its name, so a file that is there is a file that agrees.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distbranch.config import load_config
from distbranch.config.paths import check_can_be_written
from distbranch.data.loader import eval_loader
from distbranch.data.mixture import read_data
from distbranch.engine.artifact import Preprocessing, load_model
from distbranch.engine.predict import Predictor
from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.engine.run_start import check_has_ended
from distbranch.errors import UsageError, UserError
from distbranch.extras import require
from distbranch.kinds import KINDS
from distbranch.models.architecture import num_weights
from distbranch.models.network import Network, restrict
from distbranch.tasks import split_task_names

LONGEST_STEM = 80
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
INPUT_TYPES = ("uint8", "float")
PRECISIONS = ("fp32", "fp16", "int8")
TOLERANCE = 1e-4  # of logits, relative to the largest where that is above 1
NUM_IMAGES = 16
RESIZING = (  # what `decode_to_size` does, in packing to a size and in training as in every prediction
    "A JPEG of this height and width is taken as it is. A larger one is scaled while it is decoded, by the DCT, to the smallest "
    "multiple of 1/8 that is no smaller than they are; then it is resized by Pillow's bilinear filter."
)


@dataclass(frozen=True)
class Exported:
    """What was written. `images` says on which images it was compared, `difference` is the largest one of the logits.

    `scores`: of a lower precision, by task, its first metric on val before and after (`low_precision.compare_scores`).
    `has_thresholds`: False where a binary task is answered with a probability alone.
    """

    file: Path
    num_tasks: int
    weights: int
    num_bytes: int
    images: str
    difference: float
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    has_thresholds: bool = True


def export(
    run: Path,
    *,
    file_format: str = "onnx",
    tasks: Sequence[str] | None = None,
    out: Path | None = None,
    input_type: str = "uint8",
    precision: str = "fp32",
    tolerance: float | None = None,
    triton: Path | None = None,
) -> Exported:
    """Write the network of a finished run, batch norm folded, with the branches that `tasks` need (None: all).

    Args:
        run: the run directory.
        file_format: `onnx`, or `torch` for a program of `torch.export`.
        tasks: their names, one or several (between commas) per item.
        out: the file; `model/model.onnx` or `.pt2` in the run directory if None.
        input_type: `uint8` [B, 3, H, W] in 0..255, normalised inside, or `float`, normalised outside.
        precision: of weights and sums within an ONNX file, `fp32`, `fp16` or `int8`; the scores of every task on val before and
            after are written beside the file (`.scores.json`).
        tolerance: with a lower precision, the most of a task's first metric that may be lost, as a part of it; None: anything.
        triton: a repository of models of NVIDIA's Triton, in which the file and its `config.pbtxt` come to be.

    Raises:
        UserError: the run has not ended, a task it does not have, a file that cannot be written, or one that does not agree
            with the network.
        UsageError: an unknown format or input type, or a file that ends as those of the other format.
    """
    _check_options(file_format, input_type, precision, tolerance, out, triton)
    if file_format == "onnx":
        require_onnx()
    network, preprocessing = _load_exportable(run)
    of_all_tasks = network
    if tasks is not None:
        tasks = split_task_names(tasks, network.tasks.names)
        network = restrict(network, tasks)
    out = out or _choose_place(run, file_format, tasks, precision, triton)
    check_can_be_written(out)
    val = None
    if precision != "fp32":
        from distbranch.export import low_precision

        val = low_precision.read_val(run, precision)
    images, described = _choose_images(run, preprocessing)
    write, check = (_write_onnx, _run_onnx) if file_format == "onnx" else (_write_torch, _run_torch)
    scores = {}
    with _replace_when_written(out) as aside:
        write(aside, network, _describe_model(network, preprocessing, input_type), input_type)
        parts = [images, images[:1]]  # together and alone, since the batch is of any size
        if network.tasks.dense and _takes_any_size(aside, file_format):
            parts.append(_crop_images(images))
        measure = partial(
            _largest_difference,
            network,
            parts,
            lambda part: check(aside, part, preprocessing, input_type),
        )
        difference = measure()
        _check_difference(difference, out)
        if val is not None:
            low_precision.lower_precision(aside, precision, val[0], preprocessing)
            difference = measure()
            scores = low_precision.compare_scores(of_all_tasks, aside, *val)
            low_precision.check_scores(scores, precision, difference, tolerance)
    if scores:
        write_json(out.with_suffix(".scores.json"), {"precision": precision, "tasks": scores})
    if triton is not None:
        from distbranch.export.triton import write_triton_config

        write_triton_config(out)
    weights = num_weights(network.architecture)
    num_bytes = out.stat().st_size
    is_binary = any(task.kind == "binary" for task in network.tasks.tasks)
    return Exported(
        out,
        len(network.tasks.tasks),
        weights,
        num_bytes,
        described,
        difference,
        scores,
        has_thresholds=network.thresholds is not None or not is_binary,
    )


def _check_options(
    file_format: str,
    input_type: str,
    precision: str,
    tolerance: float | None,
    out: Path | None,
    triton: Path | None,
) -> None:
    choices = {
        "format": (file_format, tuple(SUFFIXES)),
        "input": (input_type, INPUT_TYPES),
        "precision": (precision, PRECISIONS),
    }
    for name, (found, known) in choices.items():
        if found not in known:
            raise UsageError(f"The {name} must be one of {', '.join(known)}, found {found!r}.")
    if out is not None and out.suffix.lower() in {*SUFFIXES.values()} - {SUFFIXES[file_format]}:
        raise UsageError(
            f"A file of the format {file_format} should end in {SUFFIXES[file_format]}, found {out}. Give the other --format or --out."
        )
    if file_format != "onnx" and (precision != "fp32" or triton is not None):
        raise UsageError(
            f"--precision and --triton are for --format onnx, found {file_format}. Leave them out."
        )
    if tolerance is not None and precision == "fp32":
        raise UsageError("--tolerance is about what --precision fp16 or int8 loses. Give one.")
    if out is not None and triton is not None:
        raise UsageError(
            "--triton says where the file comes to be, and --out too. Leave one of them out."
        )


def _choose_place(
    run: Path, file_format: str, tasks: Sequence[str] | None, precision: str, triton: Path | None
) -> Path:
    """Where a file stands for which nobody named a place."""
    if triton is not None:
        from distbranch.export.triton import locate_triton_file

        return locate_triton_file(triton, run.resolve().name)
    stem = default_stem(tasks)
    if precision != "fp32":
        stem += f"-{precision}"
    return run / "model" / f"{stem}{SUFFIXES[file_format]}"


def load_predictor(place: Path) -> tuple[Predictor, Preprocessing]:
    """What predicts: the network of a run directory, or an .onnx file through ONNX Runtime.

    Raises:
        UserError: neither is there, or it cannot be read.
    """
    if place.suffix.lower() != SUFFIXES["onnx"] and not place.is_file():
        return load_model(place)
    require("onnxruntime", "export", "An ONNX file")
    from distbranch.export.onnx_model import OnnxModel

    model = OnnxModel(place)
    return model, model.preprocessing


def require_onnx() -> None:
    """All that writing an ONNX file and running it takes, asked for before anything is begun."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "export", "An ONNX file")


def default_stem(tasks: Sequence[str] | None) -> str:
    """The name, without suffix, of a file that is given none; tasks as they were asked for."""
    if tasks is None:
        return "model"
    named = "".join(
        letter if letter.isalnum() or letter in "-_" else "_" for letter in "-".join(tasks)
    )
    if len(named) > LONGEST_STEM:  # lists that begin alike should not share a file
        digest = hashlib.sha256("\n".join(tasks).encode()).hexdigest()[:8]
        named = f"{named[:LONGEST_STEM]}-{digest}"
    return f"model-{named}"


def _describe_model(
    network: Network, preprocessing: Preprocessing, input_type: str
) -> dict[str, Any]:
    height, width = preprocessing.image_size
    kinds = dict.fromkeys(task.kind for task in network.tasks.tasks)
    meanings = [f"{KINDS[kind].meaning} if {kind}" for kind in kinds]
    what = "logits per task"
    if network.tasks.dense:
        what += ", of dense tasks a map as high and wide as the input"
    chosen = {}
    if network.thresholds is not None:
        chosen["thresholds"] = network.thresholds
    numbers = "0..255" if input_type == "uint8" else "(pixel / 255 - mean) / std"
    return {
        "format": "distbranch-export",
        "version": 1,
        "input": {
            "type": input_type,
            "shape": ["batch", 3, height, width],
            "colours": "RGB",
            "values": numbers,
        },
        "preprocessing": preprocessing.to_json(),
        "resizing": RESIZING,
        "tasks": [task.to_json() for task in network.tasks.tasks],
        "outputs": f"{what}: {', '.join(meanings)}",
        "tree": network.architecture.tree.to_json(),
        **chosen,
    }


def _choose_images(run: Path, preprocessing: Preprocessing) -> tuple[Tensor, str]:
    """Images to compare on, uint8 [n, 3, H, W], and where they are from; random ones if the data are not at hand."""
    size = preprocessing.image_size
    try:
        info = read_data(load_config(RunDirectory(run).config).data).members[0]
        split = next(name for name in ("val", "test", "train") if name in info.splits)
        batches = eval_loader(
            info, split, batch_size=NUM_IMAGES, image_size=size, decoder=preprocessing.decoder
        )
        batch = next(batches)
        if not batch.error and len(batch.images):
            return batch.images, f"{len(batch.images)} images of {split} of {info.path}"
    except (UserError, StopIteration):  # the data may be gone long after the run
        pass
    images = torch.randint(
        0,
        256,
        (NUM_IMAGES, 3, *size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    return images, f"{NUM_IMAGES} random images, since those of the run's data set cannot be read"


@contextmanager
def _replace_when_written(out: Path) -> Iterator[Path]:
    """A file beside `out` that takes its name if all goes well and vanishes otherwise."""
    aside = out.with_name(f".{os.getpid()}-{out.name}")
    try:
        yield aside
        aside.replace(out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror}). Give another file with --out."
        ) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _load_exportable(run: Path) -> tuple[Network, Preprocessing]:
    check_has_ended(run, "is exported")
    network, preprocessing = load_model(run)
    if network.baseline is not None:
        raise UserError(
            f"A network of method.name={network.architecture.baseline} is there to compare with and is not exported. Give a run with a "
            "tree or a policy."
        )
    return network, preprocessing


def _check_difference(difference: float, out: Path) -> None:
    # Written so that NaN fails, too.
    if not difference <= TOLERANCE:
        raise UserError(
            f"The exported network differs from the trained one by {difference:.2g}, more than {TOLERANCE:g}, so "
            f"{out} is not kept. Its weights are beyond what float32 carries; train with a smaller optim.lr."
        )


def _write_onnx(file: Path, network: Network, metadata: dict[str, Any], input_type: str) -> None:
    from distbranch.export.onnx_graph import onnx_bytes

    file.write_bytes(onnx_bytes(network, metadata, input_type=input_type))


def _run_onnx(file: Path, images: Tensor, _: Preprocessing, __: str) -> dict[str, Tensor]:
    from distbranch.export.onnx_model import OnnxModel

    return OnnxModel(file)(images)


def _write_torch(file: Path, network: Network, metadata: dict[str, Any], input_type: str) -> None:
    from distbranch.export.torch_program import write

    write(file, network, metadata, input_type=input_type)


def _run_torch(
    file: Path, images: Tensor, preprocessing: Preprocessing, input_type: str
) -> dict[str, Tensor]:
    from distbranch.export.torch_program import run

    return run(file, images if input_type == "uint8" else preprocessing.normalise_images(images))


def _takes_any_size(file: Path, file_format: str) -> bool:
    if file_format == "onnx":
        from distbranch.export.onnx_model import OnnxModel

        shape = OnnxModel(file).input_shape
    else:
        from distbranch.export.torch_program import read_input_shape

        shape = read_input_shape(file)
    return not isinstance(shape[2], int)


def _crop_images(images: Tensor) -> Tensor:
    """The first two images in another size, which no stride divides: three quarters of the height and of the width, and odd."""
    height, width = (3 * size // 8 * 2 + 1 for size in images.shape[-2:])
    return images[:2, :, :height, :width].contiguous()


@torch.inference_mode()
def _largest_difference(
    network: Network, parts: Sequence[Tensor], exported: Callable[[Tensor], dict[str, Tensor]]
) -> float:
    """Over all tasks and parts, which are images [n, 3, H, W]."""
    largest = 0.0
    for part in parts:
        expected, found = network(part), exported(part)
        for name, logits in expected.items():
            if found[name].shape != logits.shape:
                return float("inf")
            scale = max(1.0, float(logits.abs().max()))
            difference = float((found[name] - logits).abs().max()) / scale
            largest = max(largest, difference) if difference == difference else float("inf")
    return largest
