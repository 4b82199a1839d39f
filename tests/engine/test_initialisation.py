"""A run begins from the filters of a wide run, the same on every rank, and needs the wide run no more once it was begun."""

import shutil
from pathlib import Path

import pytest
import torch
from rank_server import RankServer
from safetensors.torch import load_file
from tiny_runs import config_of, train_tiny

from distbranch.config import load_config
from distbranch.engine.artifact import Preprocessing, load_model, save_model
from distbranch.engine.initialisation import begin_from_pretrained
from distbranch.launch.prepare import with_absolute_paths
from distbranch.models.architecture import Architecture
from distbranch.models.network import Network
from distbranch.models.pretrained import wide_network
from distbranch.models.thin_init import Choice, thin_beginning
from distbranch.tasks import Task

STILL = {
    "optim.lr": 1e-12,
    "train.iterations": 2,
    "train.evaluate_every": 0,
    "method.name": "fixed",
}


@pytest.fixture(scope="module")
def wide_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    changes = {
        "method.name": "fixed",
        "model.width": 6,
        "train.iterations": 10,
        "train.evaluate_every": 0,
    }
    assert train_tiny(config_of(tiny_data, folder, **changes))["end"] == "done"
    return folder / "tiny"


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state = load_file(run / "model" / "model.safetensors")
    return {name: value for name, value in state.items() if name.endswith("product.weight")}


@pytest.mark.parametrize("choice", ["somp", "largest-norm"])
def test_a_run_begins_from_the_chosen_filters_of_a_wide_run(
    choice: Choice, wide_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = config_of(
        tiny_data, tmp_path, **STILL, **{"method.init": choice, "method.pretrained": str(wide_run)}
    )
    assert train_tiny(config)["end"] == "done"
    thin, _ = load_model(tmp_path / "tiny")
    expected = thin_beginning(
        wide_network(load_model(wide_run)[0], "wide"), thin.architecture, choice, seed=3
    )
    found = weights_of(tmp_path / "tiny")
    assert found.keys() <= expected.state.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected.state[name])


def test_ranks_begin_with_the_same_filters_as_one_process(
    ranks: RankServer, wide_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    runs = []
    for world_size in (1, 2):
        changes = STILL | {
            "launch.workers": world_size,
            "method.init": "somp",
            "method.pretrained": str(wide_run),
        }
        config = config_of(tiny_data, tmp_path / str(world_size), **changes)
        assert {one["end"] for one in ranks.call_all(train_tiny, world_size, config=config)} == {
            "done"
        }
        runs.append(weights_of(tmp_path / str(world_size) / "tiny"))
    for name, value in runs[0].items():
        torch.testing.assert_close(runs[1][name], value)


def test_a_run_resumes_without_the_network_it_began_from(
    wide_run: Path, tiny_data: Path, tmp_path: Path
) -> None:
    link = tmp_path / "wide"
    link.symlink_to(wide_run)
    changes = STILL | {
        "method.init": "somp",
        "method.pretrained": str(link),
        "train.checkpoint_every": 1,
    }
    config = config_of(tiny_data, tmp_path, **changes)
    assert train_tiny(config)["end"] == "done"
    weights = weights_of(tmp_path / "tiny")
    (tmp_path / "tiny" / "result.json").unlink()
    shutil.rmtree(tmp_path / "tiny" / "model")
    link.unlink()
    assert train_tiny(config)["end"] == "done"
    assert all(
        torch.equal(value, weights[name]) for name, value in weights_of(tmp_path / "tiny").items()
    )
    other = train_tiny(config | {"run": {"name": "other", "directory": str(tmp_path)}})
    assert other["end"] == "failed"
    assert "wide does not exist" in other["message"]


def test_an_exhausted_rank_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocessing = Preprocessing("pil", (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tasks = (Task("one"), Task("other"))
    save_model(
        tmp_path / "model", Network(Architecture.thin("vgg9", 30, (32, 32), tasks)), preprocessing
    )
    (tmp_path / "result.json").write_text("{}")
    config = load_config(
        {"method": {"init": "somp", "pretrained": str(tmp_path)}, "model": {"backbone": "vgg9"}}
    )
    with caplog.at_level("WARNING", logger="distbranch"):
        begin_from_pretrained(
            Network(Architecture.thin("vgg9", 29, (32, 32), tasks)), config
        )  # of 27 inputs
    assert [record.getMessage() for record in caplog.records] == [
        "The wide network has fewer independent filters than the thin one wants, so the unused filters of largest norm fill up: "
        "conv1 (2 of 29)."
    ]


def test_settings_that_the_ranks_find_without_effect_are_told(
    wide_run: Path, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {
        "method.init": "somp",
        "method.pretrained": str(wide_run),
        "method.pretrained_channels": "bgr",
    }
    config = load_config(config_of(tiny_data, tmp_path, **STILL, **given))
    wide, _ = load_model(wide_run)
    begin_from_pretrained(
        Network(Architecture.thin("vgg9", 2, (32, 32), wide.architecture.tasks)), config
    )
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ["method.pretrained_channels=bgr has no effect"]


def test_the_path_of_the_pretrained_network_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(
        {"method": {"init": "somp", "pretrained": "vgg16.pth"}, "data": {"path": "x"}}
    )
    assert with_absolute_paths(config).method.pretrained == str(tmp_path / "vgg16.pth")
