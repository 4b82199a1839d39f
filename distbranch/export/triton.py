"""What NVIDIA's Triton Inference Server wants beside an ONNX file: `REPOSITORY/NAME/1/model.onnx` and `config.pbtxt`.

The text is that of the message ModelConfig (https://github.com/triton-inference-server/common, protobuf/model_config.proto).
"""

import json
from pathlib import Path
from typing import Any

from distbranch.export.onnx_model import OnnxModel

TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}
MOST_IMAGES = 32  # in a batch that Triton puts together
VERSION = "1"


def locate_triton_file(repository: Path, name: str) -> Path:
    """Where the file of a model stands in a repository of models."""
    return repository / name / VERSION / "model.onnx"


def write_triton_config(file: Path) -> Path:
    """Write config.pbtxt for a file that stands as `locate_triton_file` says; its path."""
    session = OnnxModel(file).session
    folder = file.parent.parent
    lines = [
        f"name: {json.dumps(folder.name, ensure_ascii=False)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MOST_IMAGES}",
        *map(_describe_input, session.get_inputs()),
        *map(_describe_output, session.get_outputs()),
        "dynamic_batching { }",
    ]
    config = folder / "config.pbtxt"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return config


def _describe_input(value: Any) -> str:
    return f"input {{ {_describe_value(value)} }}"


def _describe_output(value: Any) -> str:
    described = _describe_value(value)
    # Triton has no value without a dimension beside that of the batch: it is told of one that is taken away.
    if len(value.shape) == 1:
        described += " reshape { shape: [ ] }"
    return f"output {{ {described} }}"


def _describe_value(value: Any) -> str:
    """Without the dimension of the batch; -1 is any size."""
    sizes = [str(size) if isinstance(size, int) else "-1" for size in value.shape[1:]] or ["1"]
    name = json.dumps(value.name, ensure_ascii=False)
    return f"name: {name} data_type: {TYPES[value.type]} dims: [ {', '.join(sizes)} ]"
