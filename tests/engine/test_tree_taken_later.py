"""A given tree that is taken at a step: thin until then, all layers at once, and a run like any other."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_server import RankServer
from safetensors.torch import load_file
from test_kill_and_continue import train_and_die
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

from distbranch.branching.tree import Tree
from distbranch.config import load_config
from distbranch.config.unread import keys_without_effect
from distbranch.engine.run_directory import RunDirectory, write_json
from distbranch.errors import UsageError
from distbranch.launch.dry_run import plan_run
from distbranch.launch.scaling import Link

GROUPS = {
    "conv3_1": [["kind", "cell-0", "cell-1"], ["cell-2", "cell-3", "cell-4", "cell-5", "cell-6"]],
    "fc6": [
        ["kind"],
        ["cell-0", "cell-1"],
        ["cell-2", "cell-3", "cell-4", "cell-5", "cell-6"],
    ],
}
LATER = {
    "method.name": "fixed",
    "method.groups": GROUPS,
    "method.widen_at": 6,
    "train.iterations": 10,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 3,
    "train.keep_checkpoints": 9,
}
BRANCHES = {"conv3_1": 2, "conv3_2": 3, "conv4_1": 3, "conv4_2": 3, "fc5": 3, "fc6": 3}


def trained(data: Path, folder: Path, **changes: object) -> Path:
    ended = train_tiny(config_of(data, folder, **LATER | changes))
    assert ended["end"] == "done", ended
    return folder / "tiny"


def weights_at(run: Path, step: int, what: str = "model") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{what}.safetensors")


def test_a_tree_that_is_taken_later_begins_as_the_thin_network_and_its_branches_as_copies_of_it(
    tiny_data: Path, tmp_path: Path
) -> None:
    still = {"method.groups": None, "method.widen_at": None, "optim.when_widened": "continue"}
    thin = trained(tiny_data, tmp_path / "thin", **still)
    run = trained(tiny_data, tmp_path, **{"optim.when_widened": "continue"})
    before, after = weights_at(thin, 6), weights_at(run, 6)
    for name, value in after.items():
        parts = name.split(".")
        if parts[0] == "units":
            parts[2] = "0"
        assert torch.equal(value, before[".".join(parts)])
    tree = lines_of(run / "metrics.jsonl", "train")[-1]["branches"]
    assert {layer: number for layer, number in tree.items() if number > 1} == BRANCHES
    assert [line["iteration"] for line in lines_of(run / "metrics.jsonl", "widened")] == [6]
    same = weights_at(thin, 3), weights_at(run, 3)
    assert all(torch.equal(value, same[1][name]) for name, value in same[0].items())


def test_fresh_branches_are_drawn_anew_without_memory_and_all_below_them_is_as_it_was(
    tiny_data: Path, tmp_path: Path
) -> None:
    copied = trained(tiny_data, tmp_path / "copied")
    run = trained(tiny_data, tmp_path, **{"method.birth": "fresh"})
    old, new = weights_at(copied, 6), weights_at(run, 6)
    weights = [f"units.fc6.{branch}.product.weight" for branch in range(3)]
    assert len({new[name].norm().item() for name in weights}) == 3
    assert not any(torch.equal(new[name], old[name]) for name in weights)
    drawn = tuple(f"units.{layer}." for layer in BRANCHES)
    kept = [name for name in old if not name.startswith(drawn)]
    assert kept
    assert all(torch.equal(old[name], new[name]) for name in kept)
    slots, all_slots = weights_at(run, 6, "optimizer"), weights_at(copied, 6, "optimizer")
    assert slots.keys() == {name for name in all_slots if not name.startswith(drawn)}


def test_perturbed_branches_lie_halfway_between_copies_and_fresh_ones_and_keep_the_memory(
    tiny_data: Path, tmp_path: Path
) -> None:
    births = ("copies", "perturbed", "fresh")
    runs = [trained(tiny_data, tmp_path / one, **{"method.birth": one}) for one in births]
    copied, perturbed, fresh = [weights_at(run, 6) for run in runs]
    numbers = [name for name, value in copied.items() if value.is_floating_point()]
    assert len(numbers) > 20
    for name in numbers:
        assert torch.equal(perturbed[name], (copied[name] + fresh[name]) / 2)
    memories = [weights_at(run, 6, "optimizer") for run in runs[:2]]
    assert memories[0].keys() == memories[1].keys()
    assert all(torch.equal(value, memories[1][name]) for name, value in memories[0].items())


def test_copies_that_inherit_few_steps_have_the_same_weights_and_a_shorter_memory(
    tiny_data: Path, tmp_path: Path
) -> None:
    copied = trained(tiny_data, tmp_path / "copied")
    run = trained(tiny_data, tmp_path, **{"optim.inherited_steps": 2})
    old, new = weights_at(copied, 6), weights_at(run, 6)
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    old, new = weights_at(copied, 6, "optimizer"), weights_at(run, 6, "optimizer")
    drawn = tuple(f"units.{layer}." for layer in BRANCHES)
    for name, value in new.items():
        if not name.startswith(drawn):
            assert torch.equal(value, old[name])
        elif name.endswith(":step"):
            assert (float(value), float(old[name])) == (2, 6)


@pytest.mark.parametrize("birth", ["copies", "perturbed", "fresh"])
def test_a_run_of_two_ranks_killed_while_it_takes_its_tree_ends_with_the_same_bits(
    birth: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    changes: Mapping[str, Any] = LATER | {"launch.workers": 2, "method.birth": birth}
    whole = config_of(tiny_data, tmp_path / "whole", **changes)
    killed = config_of(tiny_data, tmp_path, **changes)
    assert [ended["end"] for ended in ranks.call_all(train_tiny, 2, config=whole)] == ["done"] * 2
    ended = ranks.run(train_and_die, world_size=2, config=killed, kill=("copy state", 1), rank=1)
    assert ended[1].exit_code == -9
    assert [ended["end"] for ended in ranks.call_all(train_tiny, 2, config=killed)] == ["done"] * 2
    assert_same_content(tmp_path / "tiny", tmp_path / "whole" / "tiny")


def test_a_tree_in_a_file_is_kept_from_the_start_until_it_is_taken(
    tiny_data: Path, tmp_path: Path
) -> None:
    tree = trained(tiny_data, tmp_path / "given") / "tree.json"
    changes = {"method.groups": str(tmp_path / "link.json")}
    os.link(tree, tmp_path / "link.json")
    whole = trained(tiny_data, tmp_path, **changes)
    assert RunDirectory(whole).tree.read_bytes() == tree.read_bytes()
    (tmp_path / "link.json").unlink()
    (whole / "result.json").unlink()
    assert trained(tiny_data, tmp_path, **changes) == whole
    # As if it was killed before its first checkpoint, with its tree still the thin one.
    shutil.rmtree(whole / "checkpoints")
    write_json(RunDirectory(whole).tree, {"tree": Tree(("conv1",), 2).to_json()})
    (whole / "result.json").unlink()
    assert trained(tiny_data, tmp_path, **changes) == whole
    assert RunDirectory(whole).tree.read_bytes() == tree.read_bytes()


def test_a_step_without_a_tree_is_refused_and_a_tree_that_is_never_taken_is_told() -> None:
    with pytest.raises(UsageError, match=r"widen_at=5 .* give method\.groups"):
        load_config({"method": {"name": "fixed", "widen_at": 5}})
    fixed = {"name": "fixed", "groups": GROUPS}
    late = load_config({"method": {**fixed, "widen_at": 9}, "train": {"iterations": 9}})
    assert "the network never branches" in late.ignored[0]
    from_start = load_config({"method": {**fixed, "birth": "fresh"}})
    assert "method.birth=fresh" in from_start.ignored[0]
    assert "method.birth" in keys_without_effect(from_start)
    given = {"method": {**fixed, "widen_at": 8}, "optim": {"name": "sgd", "inherited_steps": 9}}
    assert "optim.inherited_steps=9" in load_config(given).ignored[0]
    in_time = load_config({"method": {**fixed, "widen_at": 8}, "train": {"iterations": 9}})
    assert in_time.ignored == ()
    assert not {"method.birth", "optim.when_widened"} & keys_without_effect(in_time)


def test_a_dry_run_tells_what_the_tree_will_cost(tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_data, tmp_path, **LATER)
    lines = dict(plan_run(load_config(config), Link()).lines)
    del config["method"]["widen_at"]
    at_once = dict(plan_run(load_config(config), Link()).lines)
    assert "taken after step 6, with" in lines["tree"]
    assert f"{at_once['multiply-adds per image']} multiply-adds" in lines["tree"]
    assert "tree" not in at_once
