"""A run that begins anew: a scout, one decision, and the training of the tree, to the same bits however it is interrupted."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from tiny_runs import TASKS, assert_same_content, config_of, content_of, lines_of, train_tiny

# Short: what is new are the three parts, and not the steps within them.
STEPS, SCOUT_STEPS = 12, 8
ANEW = {
    "method": {
        "begin": "anew",
        "affinity": "importance",
        "max_branches": 3,
        "split_from": "conv4_1",
        "scout_iterations": SCOUT_STEPS,
        "unit_cost": 1e-5,
    },
    "train.iterations": STEPS,
    "train.evaluate_every": 0,
    "optim.warmup": 3,
}


def anew_config(data: Path, directory: Path, **dotted: Any) -> dict[str, Any]:
    changes = {**ANEW, **dotted}
    changes["method"] = dict(changes["method"])
    return config_of(data, directory, **changes)


@pytest.fixture(scope="module")
def anew(tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("anew")
    ended = ranks.call(train_tiny, config=anew_config(tiny_data, folder))
    assert ended["end"] == "done", ended["message"]
    return folder / "tiny"


def test_the_tree_is_trained_to_the_bits_of_a_fixed_run_of_the_decided_groups(
    anew: Path, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    (decision,) = lines_of(anew / "decisions.jsonl")
    assert decision["num_groups"] > 1
    fixed = {"name": "fixed", "groups": {decision["layer_name"]: decision["tasks"]}}
    config = anew_config(tiny_data, tmp_path, method=fixed)
    assert ranks.call(train_tiny, config=config)["end"] == "done"
    found, expected = content_of(anew), content_of(tmp_path / "tiny")
    assert found["result"].pop("scout")
    for content in (found, expected):
        content["result"].pop("method")
        content.pop("decisions")
        content.pop("matrices")
    assert found == expected
