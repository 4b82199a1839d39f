"""The plug-in file of distbranch/PLUGINS.md, data for its kind of task, and a configuration that chooses all that it registers."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PAGE = Path(__file__).resolve().parents[1] / "distbranch" / "PLUGINS.md"
NUM_SAMPLES = {"train": 48, "val": 16, "test": 16}


def write_page_file(folder: Path, name: str = "mine.py") -> Path:
    """The Python block of the page as a file."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = folder / name
    file.write_text(block)
    return file


def pack_angles(folder: Path) -> None:
    """Pictures of a bright half turned by an angle; two yes or no and the angle. The plug-in must be loaded."""
    from distbranch.data.pack import pack
    from distbranch.tasks import Task

    tasks = [Task("up"), Task("left"), Task("dark"), Task("angle", "angle")]
    pack(_draw_samples(), folder, tasks, shard_samples=20)


def _draw_samples() -> Iterator[Any]:
    from distbranch.data.shards import Sample

    draw = np.random.default_rng(3)
    height, width = np.mgrid[-16:16, -16:16]
    for split, count in NUM_SAMPLES.items():
        for number in range(count):
            angle = float(draw.uniform(0, 360))
            across = height * np.cos(np.deg2rad(angle)) + width * np.sin(np.deg2rad(angle))
            level = int(draw.integers(90, 220))
            pixels = np.where(across > 0, level, 30).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).convert("RGB").save(content, "JPEG")
            labels = {
                "up": int(np.cos(np.deg2rad(angle)) > 0),
                "left": int(np.sin(np.deg2rad(angle)) > 0),
                "dark": int(level < 150),
                "angle": angle,
            }
            yield Sample(f"{split}-{number}", split, content.getvalue(), labels)


def make_config(data: Path, directory: Path, plugin: Path, **launch: Any) -> dict[str, Any]:
    """A run of two decisions that chooses one of each from the page's file."""
    return {
        "plugins": [str(plugin)],
        "track": [],
        "seed": 5,
        "run": {"name": "own", "directory": str(directory)},
        "data": {"path": str(data)},
        "model": {"backbone": "short", "width": 4},
        "method": {
            "affinity": "cubed",
            "decision": "halves",
            "round_iterations": 4,
            "max_branches": 3,
        },
        "train": {
            "iterations": 12,
            "batch_size": 8,
            "checkpoint_every": 3,
            "log_every": 2,
            "eval_batch_size": 8,
        },
        "loss": {"functions": {"binary": "squared"}},
        "optim": {"name": "radam", "lr": 0.01},
        "launch": {"device": "cpu", "threads": 1, "timeout_min": 1, **launch},
    }
