"""AdaShare's search: the same bits however it is interrupted, what its steps train, and what is trained with its policy."""

import json
import shutil
import signal
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_server import RankServer
from safetensors.torch import load_file
from test_kill_and_continue import train_and_die
from tiny_runs import TASKS, assert_same_content, config_of, lines_of, train_tiny

import distbranch
from distbranch.adashare.policy import sample_policy
from distbranch.config import load_config
from distbranch.data.mixture import read_data
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.initialisation import first_architecture
from distbranch.engine.policy_search import PolicySearch
from distbranch.engine.process_group import join_ranks
from distbranch.engine.trained_network import TrainedNetwork
from distbranch.engine.training_step import NormPlan
from distbranch.export import export, load_predictor
from distbranch.models.network import Network
from distbranch.report.page import report_run

# 201 images in batches of 12: after 5 steps of warm-up every cycle has 14 steps of weights (160 images) and 4 of the policy.
SEARCH = {
    "model.backbone": "resnet18",
    "method": {"name": "adashare"},
    "adashare": {
        "warmup_iterations": 5,
        "cycles_per_block": 1,
        "policy_lr": 0.1,
        "weights_lr": 0.02,
    },
}


def search_config(data: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return config_of(data, folder, **SEARCH | changes)


def trained(config: dict[str, Any]) -> Path:
    ended = train_tiny(config)
    assert ended["end"] == "done", ended["message"]
    return Path(config["run"]["directory"]) / config["run"]["name"]


def refused(config: dict[str, Any], expected: str) -> None:
    ended = train_tiny(config)
    assert ended["end"] == "failed"
    assert "\n" not in ended["message"]
    assert expected in ended["message"]


@pytest.fixture(scope="module")
def search(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search."""
    return trained(search_config(tiny_data, tmp_path_factory.mktemp("search")))


def policy_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "policy.json").read_text())
    return content


# Killed in the warm-up, just after it (it goes on from step 5, its end), among steps of the policy (from 20) and of weights.
def test_a_search_killed_in_every_phase_ends_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    world_size = 2
    whole, config = (
        search_config(tiny_data, tmp_path / name, **{"launch.workers": world_size}) for name in "ab"
    )
    for ended in ranks.call_all(train_tiny, world_size, config=whole):
        assert ended["end"] == "done", ended["message"]
    for step in (3, 8, 17, 2, 12):
        found = ranks.run(
            train_and_die,
            world_size=world_size,
            config=config,
            kill=("step", step),
            rank=0,
        )
        assert found[0].exit_code == -signal.SIGKILL
    for ended in ranks.call_all(train_tiny, world_size, config=config):
        assert ended["end"] == "done", ended["message"]
    resumed = [
        line["iteration"] for line in lines_of(tmp_path / "b" / "tiny" / "metrics.jsonl", "resumed")
    ]
    assert resumed == [5, 20, 20, 30]
    assert_same_content(tmp_path / "b" / "tiny", tmp_path / "a" / "tiny")


def policy_after_steps(config: dict[str, Any]) -> list[Any]:
    """A job: three steps of the policy on one global batch each; the policy then."""
    checked = load_config(config)
    info = read_data(checked.data)
    design = first_architecture(checked, info)
    search = PolicySearch(checked, info, design.num_blocks)
    with join_ranks(checked.launch) as ranks:
        net = TrainedNetwork(
            checked,
            ranks,
            Preprocessing("pil", info.image_size, (0.5,) * 3, (0.2,) * 3),
            is_final=False,
        )
        net.begin(design, seed=1)
        net.network.double()  # rounding would grow with Adam's first steps
        plan = NormPlan(checked.train, ranks)
        for step in (19, 20, 21):
            generator = torch.Generator().manual_seed(step)
            images = torch.randint(
                0, 256, (12, 3, *info.image_size), dtype=torch.uint8, generator=generator
            )
            labels = torch.randint(0, 2, (12, len(info.tasks)), generator=generator).float()
            own = slice(
                ranks.rank * 12 // ranks.world_size, (ranks.rank + 1) * 12 // ranks.world_size
            )
            (groups,) = plan.group_images(torch.arange(12)[own])
            search.train_policy(
                net, ranks, [(images[own], labels[own], groups)], step, nullcontext()
            )
        assert isinstance(net.network, Network)
        return net.network.policy_logits.tolist()  # type: ignore[no-any-return]


def test_a_step_of_the_policy_is_that_of_the_global_batch_on_any_number_of_ranks(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    (alone,) = ranks.call_all(policy_after_steps, 1, config=search_config(tiny_data, tmp_path))
    together = ranks.call_all(
        policy_after_steps, 3, config=search_config(tiny_data, tmp_path, **{"launch.workers": 3})
    )
    assert np.abs(np.array(alone)[:, -1]).min() > 0.01
    assert together[0] == together[1] == together[2]
    assert np.abs(np.array(alone) - np.array(together[0])).max() < 1e-9


def test_steps_of_the_policy_train_it_alone_and_those_of_weights_leave_it(
    tiny_data: Path, tmp_path: Path
) -> None:
    changes = {"train.checkpoint_every": 1, "train.keep_checkpoints": 60, "train.iterations": 26}
    run = trained(search_config(tiny_data, tmp_path, **changes))
    states = [
        load_file(folder / "model.safetensors")
        for folder in sorted((run / "checkpoints").glob("step-*"))
    ]
    for step, (before, after) in enumerate(pairwise(states), start=1):
        of_policy = 19 <= step < 23
        assert torch.equal(before["policy_logits"], after["policy_logits"]) != of_policy, step
        weights = [name for name in before if name.endswith(("product.weight", "heads.weight"))]
        assert all(torch.equal(before[name], after[name]) for name in weights) == of_policy, step
    assert not states[-1]["policy_logits"][:, :7].any(), (
        "only the last block was released in the first cycle"
    )
    assert states[-1]["policy_logits"][:, 7].any()


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, (14, 4)), (10, (8, 2)), (500, (400, 100)), (2, (1, 1))]
)
def test_a_cycle_has_the_steps_that_are_given_and_else_those_of_an_epoch_of_either_part(
    steps: int | None, expected: tuple[int, int], tiny_data: Path, tmp_path: Path
) -> None:
    adashare = {"warmup_iterations": 5, "cycle_iterations": steps, "cooling": 0.9}
    config = load_config(search_config(tiny_data, tmp_path, adashare=adashare))
    found = PolicySearch(config, read_data(config.data), 8).curriculum
    assert (found.weight_steps, found.policy_steps) == expected
    assert found.cooling == 0.9


def test_a_high_price_of_executing_makes_tasks_skip_and_one_of_being_unlike_keeps_them_together(
    tiny_data: Path, tmp_path: Path
) -> None:
    high = {**SEARCH["adashare"], "sparsity": 100.0}  # type: ignore[dict-item]
    sparse = policy_of(trained(search_config(tiny_data, tmp_path / "sparse", adashare=high)))
    released = np.array(sparse["execute_probability"])[:, -2:]
    assert released.max() < 0.5
    assert np.array(sparse["policy"])[:, -2:].sum() == 0
    none = {**SEARCH["adashare"], "sparsity": 0.0, "sharing": 0.0}  # type: ignore[dict-item]
    much = none | {"sharing": 100.0}
    spreads = [
        np.ptp(
            np.array(
                policy_of(trained(search_config(tiny_data, tmp_path / name, adashare=adashare)))[
                    "execute_probability"
                ]
            )[:, -1]
        )
        for name, adashare in (("free", none), ("together", much))
    ]
    assert spreads[1] < spreads[0]


def test_the_network_of_a_search_is_that_of_its_most_probable_decisions(search: Path) -> None:
    found, network = policy_of(search), distbranch.load(search)
    assert [list(map(int, row)) for row in network.policy] == found["policy"]
    assert found["policy"] == [[int(p >= 0.5) for p in row] for row in found["execute_probability"]]
    assert (
        np.array(found["execute_probability"])[:, :-3] == 1
    ).all()  # not released in three cycles
    assert (np.array(found["execute_probability"])[:, -3:] < 1).all()
    outputs = network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert isinstance(outputs, dict)
    assert outputs["kind"].shape == (2, 3)


@pytest.mark.parametrize(
    ("file_format", "tasks"), [("onnx", None), ("onnx", ["kind", "cell-1"]), ("torch", None)]
)
def test_it_is_exported_as_any_network(
    file_format: str, tasks: list[str] | None, search: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"served{'.onnx' if file_format == 'onnx' else '.pt2'}"
    done = export(
        search, file_format=file_format, tasks=tasks, out=out
    )  # compares it with the network
    assert done.num_tasks == len(tasks or TASKS)
    if file_format == "onnx":
        images, (predictor, _) = (
            torch.full((3, 3, 32, 32), 99, dtype=torch.uint8),
            load_predictor(out),
        )
        found, expected = predictor(images), distbranch.load(search)(images)
        for name in tasks or [task.name for task in TASKS]:
            torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-4, atol=1e-5)


def test_its_report_shows_the_policy_and_the_search(search: Path, tmp_path: Path) -> None:
    page = report_run(search, tmp_path / "page.html").read_text()
    assert "Who executes which block" in page
    assert "How the policy was found" in page
    assert "No decision was taken" not in page
    assert {"policy.png", "search.png", "tree.png"} <= {
        file.name for file in (tmp_path / "report").iterdir()
    }


@pytest.mark.parametrize("number", [None, 0, 1])
def test_a_policy_is_trained_with_from_fresh_weights(
    number: int | None, tiny_data: Path, search: Path, tmp_path: Path
) -> None:
    changes = {"adashare": {"policy": str(search), "policy_number": number}, "train.iterations": 8}
    config = search_config(tiny_data, tmp_path, **changes)
    run = trained(config)
    found = policy_of(search)
    expected = found["policy"]
    if number is not None:
        expected = (
            sample_policy(np.array(found["execute_probability"]), number=number)
            .astype(int)
            .tolist()
        )
    assert policy_of(run)["policy"] == expected
    config["train"]["iterations"], config["run"]["name"] = 8, "tiny"
    assert train_tiny(config)["end"] == "done"  # finished: says so


def test_a_run_that_was_begun_no_longer_needs_the_search(
    tiny_data: Path, search: Path, ranks: RankServer, tmp_path: Path
) -> None:
    shutil.copytree(search, tmp_path / "search")
    changes = {
        "adashare": {"policy": str(tmp_path / "search"), "policy_number": 1},
        "train.iterations": 12,
    }
    config = search_config(tiny_data, tmp_path, **changes)
    ranks.run(train_and_die, config=config, kill=("step", 8), rank=0)
    shutil.rmtree(tmp_path / "search")
    assert trained(config)


def test_what_is_no_policy_for_these_tasks_is_refused_in_one_sentence(
    tiny_data: Path, search: Path, tmp_path: Path
) -> None:
    def config(**changes: Any) -> dict[str, Any]:
        return search_config(tiny_data, tmp_path, **{"adashare": {"policy": str(search)}} | changes)

    refused(config(adashare={"policy": str(tmp_path / "nowhere")}), "should be a finished run")
    refused(
        config(**{"model.backbone": "resnet34"}), "of the same tasks and of model.backbone=resnet34"
    )
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text("{}")
    (tmp_path / "half" / "policy.json").write_text("{")
    refused(config(adashare={"policy": str(tmp_path / "half")}), "holds no policy")
    retrained = trained(config(**{"run.name": "again", "train.iterations": 2}))
    refused(config(adashare={"policy": str(retrained), "policy_number": 0}), "holds no policy")
    refused(
        search_config(tiny_data, tmp_path, adashare={"weights_part": 0.001}),
        "leaves none for the weights",
    )
