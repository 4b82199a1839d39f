"""What is planted in rendered rooms is found, in small ones; `experiment planted configs/rooms-tree.yaml` tries rooms of full size."""

from pathlib import Path
from typing import Any

from tiny_runs import lines_of, train_tiny

from distbranch.config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = [["segmentation"], ["depth", "normals"], ["edges", "keypoints"]]


def train_rooms(name: str, folder: Path, seed: int, pack: dict[str, Any], **changes: Any) -> Path:
    """One of the configs, with rooms and weights of a seed that the rooms were not designed with, as one process."""
    file = CONFIGS / f"{name}.yaml"
    own = {
        "seed": seed,
        "data.path": str(folder / "rooms"),
        "data.pack": {**(load_config(file).data.pack or {}), "seed": seed, **pack},
        "run.directory": str(folder),
        "train.evaluate_every": 0,
        "launch.workers": 1,
        "launch.device": "cpu",
    }
    ended = train_tiny(load_config(file, own | changes).model_dump())
    assert ended["end"] == "done", ended["message"]
    return folder / name


def test_three_groups_of_small_rooms_are_those_that_are_difficult_together(tmp_path: Path) -> None:
    # In small pictures three groups cost as much as two, so their number is given here.
    changes = {"method.max_branches": 3, "method.alpha": 1.0, "method.first_decision": 1200}
    changes |= {"model.width": 16, "model.head_width": 16}
    changes |= {"train.iterations": 1201, "optim.schedule": "constant"}
    pack = {"image_size": "48x64", "samples": 600, "val": 2, "test": 2}
    run = train_rooms("rooms-tree", tmp_path, 3, pack, **changes)
    (decision,) = lines_of(run / "decisions.jsonl")
    assert decision["tasks"] == GROUPS
