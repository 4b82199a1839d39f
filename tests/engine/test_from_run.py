"""A run that begins from an earlier one: what it takes, what begins fresh, what stays as it is, and what is refused."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from test_kill_and_continue import train_and_die
from tiny_runs import TASKS, assert_same_content, config_of, pack_tiny, train_tiny

from distbranch.api import load
from distbranch.engine.restricted_run import restrict_run
from distbranch.engine.results import read_result
from distbranch.engine.session import evaluate_run, find_thin_baselines
from distbranch.report.pictures import list_pictures
from distbranch.report.run_files import read_run
from distbranch.tasks import Task

OLD = TASKS[:6]
TOP = {"fc6": [["cell-0", "cell-1", "cell-2"], ["cell-3", "cell-4", "cell-5"]]}
SHORT: dict[str, Any] = {
    "method": {"name": "fixed"},
    "train.iterations": 6,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 2,
    "optim.schedule": "constant",
}


@pytest.fixture(scope="module")
def data_of_old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data without the last two tasks."""
    return Path(pack_tiny(tmp_path_factory.mktemp("old") / "data", OLD).path)


@pytest.fixture(scope="module")
def earlier(data_of_old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of these tasks, with two branches at the top."""
    return _train(data_of_old, tmp_path_factory.mktemp("earlier"), {"method.groups": TOP})


def _config(data: Path, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in SHORT.items() if key != "method"} | dict(changes)
    method = {"name": values.pop("method.name", "fixed")}
    return config_of(data, folder, **({"method": method} | values))


def _train(data: Path, folder: Path, changes: Mapping[str, Any]) -> Path:
    ended = train_tiny(_config(data, folder, changes))
    assert ended["end"] == "done", ended["message"]
    return folder / "tiny"


def _refusal(data: Path, folder: Path, changes: Mapping[str, Any]) -> str:
    ended = train_tiny(_config(data, folder, changes))
    assert ended["end"] == "failed", ended
    return str(ended["message"])


def _branches(run: Path, unit: str = "fc6") -> list[list[str]]:
    layers = json.loads((run / "tree.json").read_text())["layers"]
    return next(layer["branches"] for layer in layers if layer["name"] == unit)


def _record(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "from_run.json").read_text()))


def _images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=generator)


# ---- what is taken


def test_a_fixed_run_begins_with_tree_and_weights_of_the_earlier_one(
    data_of_old: Path, earlier: Path, tmp_path: Path
) -> None:
    # At a rate so small that nothing moves by more than rounding.
    still = {"model.from_run": str(earlier), "train.iterations": 1, "optim.lr": 1e-12}
    run = _train(data_of_old, tmp_path, still)
    assert _branches(run) == TOP["fc6"]
    before, after = load(earlier).state_dict(), load(run).state_dict()
    assert before.keys() == after.keys()
    for name in before:
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_tasks_are_taken_by_name_whatever_their_order_and_those_that_the_data_lack_are_left_out(
    earlier: Path, tmp_path: Path
) -> None:
    tasks = (TASKS[4], TASKS[0], TASKS[1])
    data = Path(pack_tiny(tmp_path / "data", tasks).path)
    still = {"model.from_run": str(earlier), "train.iterations": 1, "optim.lr": 1e-12}
    run = _train(data, tmp_path, still)
    assert _record(run)["left_out"] == ["cell-2", "cell-3", "cell-5"]
    assert sorted(map(sorted, _branches(run))) == [["cell-0", "cell-1"], ["cell-4"]]
    old, new = load(earlier), load(run)
    assert old.heads is not None
    assert new.heads is not None
    torch.testing.assert_close(new.heads.weight, old.heads.weight[[4, 0, 1]], rtol=0, atol=1e-6)


def test_a_tree_grows_on_from_that_of_the_earlier_run(
    data_of_old: Path, earlier: Path, tmp_path: Path
) -> None:
    grown = {
        "model.from_run": str(earlier),
        "method.name": "branching",
        "method.round_iterations": 3,
        "method.unit_cost": 1e-9,
        "method.alpha": 5.0,
        "method.max_branches": None,
    }
    run = _train(data_of_old, tmp_path, grown)
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert [decision["layer_name"] for decision in decisions] == ["fc5"]
    assert _branches(run) == TOP["fc6"]
    # The first decision groups branches of the earlier tree.
    for draw in list_pictures(read_run(run)).values():
        assert draw().axes


def test_a_task_with_other_classes_has_a_fresh_head_on_its_own_branch(tmp_path: Path) -> None:
    first = Path(pack_tiny(tmp_path / "first", (TASKS[0], TASKS[7])).path)
    groups = {"fc6": [["cell-0"], ["kind"]]}
    earlier = _train(first, tmp_path / "earlier", {"method.groups": groups})
    more = Task("kind", "categorical", ("low", "middle", "high", "highest"))
    second = Path(pack_tiny(tmp_path / "second", (TASKS[0], more)).path)
    run = _train(second, tmp_path, {"model.from_run": str(earlier)})
    assert _record(run)["changed"] == ["kind"]
    assert _branches(run) == groups["fc6"]
    assert load(run)(_images())["kind"].shape == (9, 4)


# ---- a task is added


@pytest.mark.parametrize("has_old_labels", [True, False])
def test_an_added_task_leaves_outputs_and_statistics_of_all_others_as_they_are_bit_for_bit(
    has_old_labels: bool, tiny_data: Path, earlier: Path, tmp_path: Path
) -> None:
    data = tiny_data
    if not has_old_labels:
        data = Path(pack_tiny(tmp_path / "data", TASKS[6:]).path)
    added: dict[str, Any] = {
        "model.from_run": str(earlier),
        "train.only": "new",
        "method.split_from": "fc5",
    }
    # Counted before the heads that choose a branch are trained.
    added |= {"loss.class_weights": {"kind": "balanced"}, "loss.positive_weights": "auto"}
    run = _train(data, tmp_path, added)
    old, new = load(earlier), load(run)
    assert new.tasks.names == tuple(task.name for task in TASKS)
    before, after = old(_images()), new(_images())
    for task in OLD:
        assert torch.equal(after[task.name], before[task.name])
    record = _record(run)
    assert record["new"] == ["cell-6", "kind"]
    for name in record["new"]:
        (own,) = (branch for branch in _branches(run, "fc5") if name in branch)
        assert set(own) <= set(record["new"])
        assert not torch.equal(after[name], torch.zeros_like(after[name]))
    # What was added did learn.
    own_norms = [name for name in new.state_dict() if name.startswith("units.fc5.1.norm.running")]
    assert any(
        new.state_dict()[name].ne(old.state_dict()[name.replace(".1.", ".0.")]).any()
        for name in own_norms
    )
    scored = set(evaluate_run(run, "val")["tasks"])
    assert scored == {task.name for task in (TASKS if has_old_labels else TASKS[6:])}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("only", ["new", "heads"])
def test_a_run_of_frozen_parts_that_is_killed_ends_with_the_same_bits_without_the_earlier_run(
    only: str, world_size: int, tiny_data: Path, earlier: Path, ranks: RankServer, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(earlier, tmp_path / "source"))
    changes = {"model.from_run": str(source), "train.only": only, "launch.workers": world_size}
    changes["train.norm_batch"] = 12
    whole = _config(tiny_data, tmp_path / "whole", changes)
    for ended in ranks.call_all(train_tiny, world_size, config=whole):
        assert ended["end"] == "done", ended["message"]
    config = _config(tiny_data, tmp_path, changes)
    ranks.run(train_and_die, world_size=world_size, config=config, kill=("step", 4), rank=0)
    shutil.rmtree(source)
    for ended in ranks.call_all(train_tiny, world_size, config=config):
        assert ended["end"] == "done", ended["message"]
    assert_same_content(tmp_path / "tiny", tmp_path / "whole" / "tiny")
    # Batch norm's groups lie on both ranks, and frozen units normalise by what they had all the same.
    before, after = load(earlier), load(tmp_path / "tiny")
    if only == "new":
        known, found = before(_images()), after(_images())
        assert all(torch.equal(found[name], known[name]) for name in known)
        return
    kept, units = before.state_dict(), after.units.state_dict()
    assert all(torch.equal(units[name], kept[f"units.{name}"]) for name in units)


# ---- a task is removed


def test_a_thin_run_is_what_branches_are_compared_with_and_a_part_of_it_is_not(
    data_of_old: Path, tmp_path: Path
) -> None:
    thin = _train(data_of_old, tmp_path, {"run.name": "tiny"})
    restrict_run(thin, tmp_path / "part", tasks=["cell-0"])
    grown = {"run.name": "grown", "method.name": "branching"}
    assert train_tiny(_config(data_of_old, tmp_path, grown))["end"] == "done"
    result = read_result(tmp_path / "grown")
    assert result is not None
    assert [baseline["name"] for baseline in find_thin_baselines(result)] == ["tiny"]


# ---- a linear probe


def test_a_linear_probe_trains_the_heads_alone_and_no_running_statistics(
    data_of_old: Path, earlier: Path, tmp_path: Path
) -> None:
    run = _train(data_of_old, tmp_path, {"model.from_run": str(earlier), "train.only": "heads"})
    before, after = load(earlier).state_dict(), load(run).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"heads.weight", "heads.bias"}


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.width": 3}, ["width 2 and not 3"]),
        ({"model.from_run": "nowhere"}, ["finished run", "Train it to its end"]),
        ({"method.name": "independent"}, ["method.name=fixed", "independent"]),
        ({"method.groups": TOP}, ["method.groups", "would be ignored"]),
        ({"data.mean": [0.1, 0.1, 0.1]}, ["data.mean"]),
        ({"train.only": "new"}, ["the data have none"]),
        ({"train.only": "new", "method.split_from": "fc9"}, ["should be a unit", "fc9"]),
        ({"train.only": "heads", "method.name": "branching"}, ["method.name=fixed"]),
        ({"method.split_from": "fc5"}, ["would be ignored"]),
        ({"train.only": "new", "model.from_run": None}, ["give model.from_run"]),
        ({"train.only": "heads", "model.from_run": None}, ["random units"]),
        (
            {
                "train.only": "heads",
                "model": {"backbone": "resnet18", "width": None, "pretrained": "weights.pth"},
                "method.name": "branching",
                "method.begin": "anew",
            },
            ["method.name=fixed", "method.name=branching"],
        ),
        ({"train.only": "heads", "loss.aggregation": "pcgrad"}, ["loss.aggregation"]),
        ({"train.only": "new", "loss.weighting": "dwa"}, ["loss.weighting"]),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(
    changes: Mapping[str, Any],
    words: list[str],
    data_of_old: Path,
    tiny_data: Path,
    earlier: Path,
    tmp_path: Path,
) -> None:
    data = tiny_data if "method.split_from" in changes else data_of_old
    told = _refusal(data, tmp_path, {"model.from_run": str(earlier), **changes})
    assert all(word in told for word in words), told
