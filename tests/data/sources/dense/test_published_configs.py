"""The configs of the published experiments train on files in the formats that they name, as small networks for a few steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dense_areas import draw_picture
from PIL import Image
from test_adashare_nyuv2 import write as write_nyuv2
from test_cityscapes import write as write_cityscapes
from test_nyuv2 import write as write_official_nyuv2
from test_taskonomy import write as write_taskonomy
from tiny_runs import train_tiny

from distbranch.config import load_config
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task

CONFIGS = Path(__file__).parents[4] / "configs"
BUILDINGS = {"hanson": "train", "merom": "train", "darden": "val", "ihlen": "test"}
SMALL = {
    "model.width": 4,
    "train.batch_size": 2,
    "train.norm_batch": 2,
    "train.iterations": 4,
    "train.evaluate_every": 0,
    "adashare.warmup_iterations": 1,
    "adashare.weights_part": 0.5,
    "adashare.cycle_iterations": 2,
    "launch.workers": 1,
    "launch.device": "cpu",
    "launch.threads": 1,
}


def train_small(name: str, folder: Path, **changes: Any) -> None:
    own = {"run.directory": str(folder / "runs")}
    config = load_config(CONFIGS / f"{name}.yaml", SMALL | own | changes)
    ended = train_tiny(config.model_dump())
    assert ended["end"] == "done", ended["message"]


@pytest.mark.parametrize(
    ("name", "source", "write", "options"),
    [
        ("nyuv2-2-adashare", "adashare-nyuv2", write_nyuv2, {"tasks": "segmentation,normals"}),
        ("nyuv2-3-adashare", "adashare-nyuv2", write_nyuv2, {}),
        (
            "cityscapes-2-adashare",
            "cityscapes",
            lambda root: write_cityscapes(root, "labelIds"),
            {},
        ),
        (
            "taskonomy-5-adashare",
            "taskonomy",
            lambda root: write_taskonomy(root, buildings=BUILDINGS),
            {},
        ),
    ],
)
def test_a_published_experiment_searches_on_files_of_its_format(
    name: str,
    source: str,
    write: Callable[[Path], Path],
    options: dict[str, str],
    tmp_path: Path,
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    root = str(write(given))
    options = {"source": source, "root": root, "image_size": "32x48", **options}
    if source != "taskonomy":
        options["val"] = "0"  # of two frames
    changes = {"data.path": str(tmp_path / "data"), "data.pack": options}
    # The published head has four convolutions that are many times what they see here.
    train_small(name, tmp_path, **changes, **{"model.head_width": 4, "data.crop": [32, 32]})


def test_three_tasks_are_two_where_the_official_file_of_nyuv2_has_no_normals(
    tmp_path: Path,
) -> None:
    root = str(write_official_nyuv2(tmp_path))
    pack_options = {"source": "nyuv2", "root": root, "image_size": "32x48", "val": "0"}
    changes = {"data.path": str(tmp_path / "data"), "data.pack": pack_options}
    changes |= {"loss.weights": {"segmentation": 1, "depth": 3}, "metrics.byte_angles": False}
    changes |= {"model.head_width": 4, "data.crop": [32, 32]}
    train_small("nyuv2-3-adashare", tmp_path, **changes)


def test_domains_of_one_task_each_are_searched_together(tmp_path: Path) -> None:
    config = load_config(CONFIGS / "domainnet-6-adashare.yaml")
    for path in config.data.paths:
        domain = Path(path).name
        task = Task(domain, "categorical", ("anvil", "zigzag"))
        pack(draw_domain(task, tmp_path), tmp_path / domain, (task,))
    paths = [str(tmp_path / Path(path).name) for path in config.data.paths]
    changes = {"data.path": paths, "data.crop": [32, 32], "model.pretrained": None}
    train_small("domainnet-6-adashare", tmp_path, **changes)


def draw_domain(task: Task, folder: Path) -> Iterator[Sample]:
    """Two pictures, one of each class."""
    for number, name in enumerate(task.classes):
        file = folder / "picture.jpg"
        Image.fromarray(draw_picture(number)).resize((48, 32)).save(file)
        yield Sample(f"{task.name}-{number}", "train", file.read_bytes(), {task.name: name})
