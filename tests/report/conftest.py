"""Run directories as the engine writes them, made up: 40 tasks, 15 layers, a tree that grew in several rounds."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distbranch.models.backbone import Backbone

VGG16 = list(Backbone("vgg16", (224, 224)).names)
# fmt: off
TASKS = [
    "Men", "Women", "Kids", "Apparel", "Accessories", "Footwear", "Personal_Care", "Topwear", "Bottomwear", "Shoes",
    "Bags", "Watches", "Innerwear", "Jewellery", "Open_Footwear", "Tshirts", "Shirts", "Casual_Shoes", "Sports_Shoes",
    "Kurtas", "Tops", "Handbags", "Heels", "Sunglasses", "Black", "White", "Blue", "Brown", "Grey", "Red", "Green",
    "Pink", "Purple", "Yellow", "Summer", "Winter", "Casual", "Sports", "Ethnic", "Formal",
]
CELEBA = [
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
]
# fmt: on


@pytest.fixture(scope="session")
def grown_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 tasks with six decisions; only to be read."""
    return write_run(tmp_path_factory.mktemp("runs") / "fps-branch-16-2")


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """The function that writes a run: `make_run(folder, tasks=, counts=, finished=)`."""
    return write_run


@pytest.fixture
def task_names() -> list[str]:
    """The tasks of `grown_run`, in their order."""
    return list(TASKS)


def write_run(
    folder: Path,
    *,
    tasks: Sequence[str] = TASKS,
    counts: Sequence[int] = (9, 6, 4, 3, 2, 1),
    iterations: int = 4000,
    round_iterations: int = 250,
    finished: bool = True,
    seed: int = 0,
) -> Path:
    """Write a run whose layers, from the top down, were split into `counts` branches; no counts = no decisions."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    layers = {name: [list(tasks)] for name in VGG16}
    decisions, above = [], [[task] for task in tasks]
    planted = (
        rng.permutation(np.arange(len(tasks)) % max(counts[0], 1))
        if counts
        else np.zeros(len(tasks), int)
    )
    (folder / "affinity").mkdir(exist_ok=True)
    for number, count in enumerate(counts, start=1):
        layer = len(VGG16) - number + 1
        groups = _groups(len(above), count, planted if number == 1 else None, rng)
        branches = [[task for branch in group for task in above[branch]] for group in groups]
        decisions.append(
            _decision(number, number * round_iterations, layer, groups, branches, len(above))
        )
        _write_affinity(folder / decisions[-1]["affinity_file"], planted, number, rng)
        if count > 1:
            layers[VGG16[layer - 1]], above = branches, branches
    tree = {
        "tree": {"layers": VGG16, "num_tasks": len(tasks), "splits": []},
        "layers": [{"name": name, "branches": branches} for name, branches in layers.items()],
        "splits": [
            {"layer": line["layer"], "groups": line["groups"]}
            for line in decisions
            if line["num_groups"] > 1
        ],
    }
    method = "branching" if counts else "fixed"
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nrun:\n  name: {folder.name}\n  directory: runs\nmodel:\n  backbone: vgg16\n  width: 16\n"
        f"method:\n  name: {method}\n  affinity: phi\n  alpha: 2.0\ntrain:\n  iterations: {iterations}\n  batch_size: 64\n"
    )
    (folder / "tree.json").write_text(json.dumps(tree))
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11.2", "torch": "2.13.0", "world_size": 2})
    )
    (folder / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in decisions))
    done = iterations if finished else iterations // 3
    lines = _metrics(tasks, iterations, done, round_iterations, len(counts), rng)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        scores = {
            split: _scores(tasks, 1.0, np.random.default_rng(seed + 7)) for split in ("val", "test")
        }
        (folder / "result.json").write_text(
            json.dumps(_result(folder.name, method, scores, counts, iterations, seed))
        )
    return folder


def _groups(
    num_branches: int, count: int, planted: np.ndarray | None, rng: np.random.Generator
) -> list[list[int]]:
    label = planted if planted is not None else rng.permutation(np.arange(num_branches) % count)
    return [np.flatnonzero(label == group).tolist() for group in range(count)]


def _decision(
    number: int,
    iteration: int,
    layer: int,
    groups: list[list[int]],
    branches: list[list[str]],
    num_above: int,
) -> dict[str, Any]:
    pools = {15: 0, 14: 0, 13: 1, 12: 1, 11: 1, 10: 2, 9: 2, 8: 2}.get(layer, 3)
    chosen, cap = len(groups), min(num_above, 20)
    unit, scale = (
        2**pools / 64,
        chosen / 1.6,
    )  # so that the smallest total lies at the number chosen
    height = (unit * scale / 2.0) * math.exp(1.6) if chosen > 1 else 0.6 * unit
    separation = {str(d): height * math.exp(-d / scale) for d in range(1, cap + 1)}
    costs = {d: (int(d) - 1) * unit + 2.0 * value for d, value in separation.items()}
    return {
        "round": number, "iteration": iteration, "epoch": iteration / 325, "layer": layer, "layer_name": VGG16[layer - 1],
        "num_groups": chosen, "groups": groups, "tasks": branches, "costs": costs, "separation": separation, "alpha": 2.0,
        "pools_above": pools, "unit_cost": 1 / 64, "max_groups": 64, "affinity_kind": "phi",
        "affinity_file": f"affinity/round-{number:02d}.npz", "tree_hash": "ab12", "pairs_never_seen": 0, "seconds": 0.08,
    }  # fmt: skip


def _write_affinity(path: Path, planted: np.ndarray, number: int, rng: np.random.Generator) -> None:
    same = planted[:, None] == planted[None, :]
    noise = rng.normal(0, 0.04, same.shape)
    phi = np.clip(0.52 + 0.2 * same + (noise + noise.T) / 2, 0, 1)
    agreement = np.clip(0.6 + 0.15 * same + (noise + noise.T), 0, 1)
    for matrix in (phi, agreement):
        np.fill_diagonal(matrix, 1)
    np.savez(path, agreement=agreement, phi=phi, branch_affinity=np.eye(3))


def _scores(tasks: Sequence[str], progress: float, rng: np.random.Generator) -> dict[str, Any]:
    level = rng.uniform(0.45, 0.98, len(tasks)) * (0.5 + 0.5 * progress)
    per_task = {
        task: {
            "accuracy": min(0.999, 0.8 + 0.2 * value),
            "balanced_accuracy": 0.5 + 0.5 * float(value),
            "average_precision": float(value),
            "num_labelled": 4000,
            "num_positive": int(rng.integers(30, 2500)),
        }
        for task, value in zip(tasks, level, strict=True)
    }
    per_task[tasks[-1]] |= {"average_precision": None, "balanced_accuracy": None, "num_positive": 0}
    names = ("accuracy", "balanced_accuracy", "average_precision")
    mean = {
        n: float(np.mean([row[n] for row in per_task.values() if row[n] is not None]))
        for n in names
    }
    return {"tasks": per_task, "mean": {**mean, "top10_recall": mean["average_precision"] ** 0.5}}


def _metrics(
    tasks: Sequence[str],
    iterations: int,
    done: int,
    round_iterations: int,
    num_rounds: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(20, done + 1, 20):
        loss = 4 + 8 * math.exp(-step / 600) + rng.normal(0, 0.25)
        rounds = min(num_rounds, step // round_iterations)
        line = {
            "kind": "train",
            "iteration": step,
            "epoch": step / 325,
            "loss": loss,
            "round": rounds + 1,
        }
        line |= {
            "learning_rate": 1e-3 * (1 + math.cos(math.pi * step / iterations)),
            "gradient_norm": 2.0,
        }
        line |= {
            "samples_per_second": 600 - 60 * rounds + rng.normal(0, 15),
            "data_wait": abs(rng.normal(0.01, 0.01)),
        }
        lines.append(
            line | {"task_loss": dict.fromkeys(tasks, loss / len(tasks)), "active_layer": "fc6"}
        )
        if step % 500 == 0:
            scores = _scores(tasks, 1 - math.exp(-step / 1200), np.random.default_rng(3))
            lines.append(
                {
                    "kind": "evaluation",
                    "iteration": step,
                    "split": "val",
                    "loss": loss * 1.1,
                    **scores,
                }
            )
    lines.insert(30, {"kind": "resumed", "iteration": 600, "world_size": 2})
    lines.append(
        {"kind": "bad_samples", "iteration": done, "counts": {"broken-image": 2, "truncated": 1}}
    )
    return lines


def _result(
    name: str,
    method: str,
    scores: dict[str, Any],
    counts: Sequence[int],
    iterations: int,
    seed: int,
) -> dict[str, Any]:
    return {
        "name": name, "method": method, "metrics": scores, "weights": 132_536 if counts else 31_992,
        "parameters": 135_040 if counts else 33_300, "multiply_adds": 31_400_000 if counts else 12_500_000,
        "seconds": 601.0, "iterations": iterations, "world_size": 2, "num_groups_top": counts[0] if counts else 1,
        "backbone": "vgg16", "width": 16, "seed": seed,
    }  # fmt: skip
