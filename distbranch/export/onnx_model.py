"""An exported ONNX file as a predictor: it knows its tasks and its preprocessing, and gives logits by ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as problems
from torch import Tensor

from distbranch.engine.artifact import Preprocessing
from distbranch.errors import UserError
from distbranch.tasks import Task, TaskSet

METADATA_KEY = "distbranch"
_UNREADABLE = (
    problems.Fail,
    problems.InvalidArgument,
    problems.InvalidGraph,
    problems.InvalidProtobuf,
    problems.NoModel,
    problems.NoSuchFile,
    problems.NotImplemented,
    problems.RuntimeException,
)


class OnnxModel:
    """The network of an exported file: `model(images uint8 [B, 3, H, W])` gives {task name: logits}; 0 threads: all cores.

    Raises:
        UserError: no such file, not ONNX, or not written by `distbranch export`.
    """

    def __init__(self, file: Path, *, num_threads: int = 0) -> None:
        if not file.is_file():
            raise UserError(
                f"There is no file {file}. Write one: `distbranch export RUN --out {file}`."
            )
        try:
            self.session = open_session(str(file), num_threads=num_threads)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f"{file} is no ONNX file that can be run ({reason}). Export it again."
            ) from None
        found = self.session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if found is None:
            raise UserError(
                f"{file} does not say how images become its input, so `distbranch export` did not write it. "
                "Give a file that it wrote."
            )
        metadata = json.loads(found)
        self.preprocessing = Preprocessing.from_json(metadata["preprocessing"])
        self.tasks = TaskSet([Task.from_json(task) for task in metadata["tasks"]])
        self.thresholds: dict[str, dict[str, Any]] | None = metadata.get("thresholds")
        self.input_shape: list[str | int] = metadata["input"]["shape"]
        self._is_float: bool = metadata["input"]["type"] == "float"
        self._input_name: str = self.session.get_inputs()[0].name

    def make_input(self, images: Tensor) -> dict[str, Any]:
        """What the file takes, by name, for images uint8 [B, 3, H, W]."""
        values = self.preprocessing.normalise_images(images) if self._is_float else images
        return {self._input_name: values.contiguous().numpy()}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by task name: [B] if binary, [B, K] if categorical, [B, K, H, W] if dense. images: uint8 [B, 3, H, W]."""
        outputs = self.session.run(list(self.tasks.names), self.make_input(images))
        return {
            name: torch.from_numpy(output)
            for name, output in zip(self.tasks.names, outputs, strict=True)
        }


def open_session(model: str | bytes, *, num_threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU for a file or its content; 0 threads: as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
