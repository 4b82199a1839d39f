"""Runs of version 1, whose trees, low-rank networks and policies were networks of their own, answer as they did.

The folders under version_1 were written by that version, with the logits that it gave for the pictures below.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny_runs import config_of, train_tiny

import distbranch
from distbranch.config import load_config
from distbranch.data.shards import read_dataset
from distbranch.engine.checkpoint import load_newest
from distbranch.engine.distributed import Ranks
from distbranch.engine.training_state import TrainingState
from distbranch.errors import SharedError
from distbranch.models.earlier_runs import is_earlier, rename_earlier

RUNS = Path(__file__).parent / "version_1"


def pixels() -> torch.Tensor:
    numbers = torch.arange(2 * 3 * 32 * 32) * 97 % 251
    return numbers.to(torch.uint8).view(2, 3, 32, 32)


@pytest.mark.parametrize("kind", ["grown", "low-rank", "policy"])
@torch.no_grad()
def test_a_finished_run_gives_the_logits_that_it_gave(kind: str) -> None:
    network = distbranch.load(RUNS / kind)
    expected = json.loads((RUNS / kind / "logits.json").read_text())
    found = network(pixels())
    assert list(found) == list(expected)
    for name, logits in expected.items():
        torch.testing.assert_close(found[name], torch.tensor(logits), rtol=0, atol=1e-6)


def test_the_first_runs_knew_neither_fractions_of_a_width_nor_low_rank() -> None:
    architecture = json.loads((RUNS / "grown" / "model" / "model.json").read_text())["architecture"]
    first = {key: value for key, value in architecture.items() if key not in ("width_fraction", "low_rank")}
    assert is_earlier(first)
    assert rename_earlier(first, {}) == rename_earlier(architecture, {})


def test_a_run_that_was_not_finished_says_so_in_one_sentence(tiny_data: Path, tmp_path: Path) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.iterations": 2, "train.evaluate_every": 0})
    assert train_tiny(config)["end"] == "done"
    checkpoint = load_newest(tmp_path / "tiny" / "checkpoints")
    assert checkpoint is not None
    earlier = json.loads((RUNS / "grown" / "model" / "model.json").read_text())["architecture"]
    checkpoint.state["architecture"] = earlier
    alone = Ranks(0, 1, torch.device("cpu"))
    state = TrainingState(load_config(config), alone, read_dataset(str(tiny_data)), [{"precision": "fp32"}])
    with pytest.raises(SharedError, match=r"begun by an earlier version.* Finish it with that version"):
        state.restore(checkpoint)
