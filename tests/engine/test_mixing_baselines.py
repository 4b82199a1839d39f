"""Networks of other papers are runs like any other: trained, resumed, on ranks, evaluated, and refused where a tree is asked for."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rank_server import RankServer
from safetensors.torch import load_file
from tiny_runs import config_of, train_tiny
from tiny_world import assert_one_sentence, run_command

import distbranch
from distbranch.config import load_config
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UsageError
from distbranch.models.baselines import BASELINES
from distbranch.report.page import report_run
from distbranch.tasks import Task

SHORT = {
    "model": {"backbone": "resnet18", "width": 2, "output_stride": 8},
    "method": {},
    "optim": {"name": "sgd", "lr": 1e-4},
    "train.iterations": 4,
    "train.checkpoint_every": 2,
    "train.evaluate_every": 0,
}


TASKS = (Task("left"), Task("right"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose halves are dark or bright, a task each."""
    draw = np.random.default_rng(5)
    samples = []
    for number in range(44):
        split = "train" if number < 36 else ("val", "test")[number % 2]
        is_bright = draw.random(2) > 0.5
        pixels = (60 + 120 * is_bright).repeat(16)[None, :, None] + draw.integers(
            -50, 50, (32, 32, 1)
        )
        content = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8).repeat(3, axis=2)).save(content, "JPEG")
        labels = {"left": int(is_bright[0]), "right": int(is_bright[1])}
        samples.append(Sample(f"{number:02d}", split, content.getvalue(), labels))
    folder = tmp_path_factory.mktemp("halves") / "data"
    pack(iter(samples), folder, TASKS)
    return folder


def make_config(data: Path, folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    method = {"method": {"name": name}}
    return config_of(data, folder, **(SHORT | method | changes))


def train(data: Path, folder: Path, name: str, **changes: Any) -> Path:
    ended = train_tiny(make_config(data, folder, name, **changes))
    assert ended["end"] == "done", ended
    return folder / "tiny"


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("baselines")
    return {name: train(data, folder / name, name) for name in BASELINES}


@pytest.mark.parametrize("name", BASELINES)
def test_a_run_trains_what_mixes_tasks_and_is_scored(name: str, runs: dict[str, Path]) -> None:
    run = runs[name]
    network = distbranch.load(run)
    assert network.baseline is not None
    result = json.loads((run / "result.json").read_text())
    assert result["weights"] == network.architecture.cost().weights
    assert set(result["metrics"]) == {"val", "test"}
    first = load_file(run / "checkpoints" / "step-00000002" / "model.safetensors")
    moved = [
        key
        for key, value in read_weights(run).items()
        if key.startswith("baseline.")
        and "running" not in key
        and not torch.equal(value, first[key])
    ]
    assert moved


@pytest.mark.parametrize("name", ["nddr", "sluice"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    name: str, runs: dict[str, Path], data: Path
) -> None:
    run = runs[name]
    expected = read_weights(run)
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    assert train(data, run.parent, name) == run
    found = read_weights(run)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["nddr", "sluice"])
def test_two_ranks_train_what_one_does(
    name: str, runs: dict[str, Path], ranks: RankServer, data: Path, tmp_path: Path
) -> None:
    config = make_config(data, tmp_path, name, **{"launch.workers": 2})
    ends = ranks.call_all(train_tiny, 2, config=config)
    assert {one["end"] for one in ends} == {"done"}, ends
    found = read_weights(tmp_path / "tiny")
    for key, value in read_weights(runs[name]).items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)


# ---- what asks for a tree


def test_a_run_is_not_exported(runs: dict[str, Path]) -> None:
    ended = run_command(["export", str(runs["mtan"]), "--format", "torch"])
    assert_one_sentence(ended, 1, ("method.name=mtan", "is not exported"))


def test_a_run_is_no_tree_for_others(runs: dict[str, Path], data: Path, tmp_path: Path) -> None:
    run = runs["cross-stitch"]
    assert not RunDirectory(run).tree.exists()
    changes = {"method": {"name": "fixed", "groups": str(run)}}
    ended = train_tiny(config_of(data, tmp_path, **(SHORT | changes)))
    assert "holds no tree" in ended["message"]
    anew = {"method": {"begin": "anew", "scout": str(runs["mtan"])}}
    ended = train_tiny(config_of(data, tmp_path, **(SHORT | anew)))
    assert "should be a thin network" in ended["message"]


def test_its_report_says_that_it_has_neither_a_tree_nor_a_policy(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    report_run(runs["nddr"], page)
    assert "neither a tree nor a policy: method.name=nddr" in page.read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.name=mtan"], "use resnet18, resnet34 or resnet50"),
        (
            ["method.name=mtan", "model.backbone=timm:resnet18"],
            "found model.backbone=timm:resnet18",
        ),
        (["method.mixing_rate=10"], "mixing_rate=10 is of weights that mix tasks"),
        (
            ["method.name=mtan", "model.backbone=resnet18", "method.mixing_rate=10"],
            "found name=mtan; leave it out",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_config({}, overrides)
