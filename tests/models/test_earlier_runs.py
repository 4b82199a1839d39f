"""Runs of version 1, whose trees, low-rank networks and policies were networks of their own, answer as they did.

The folders under version_1 were written by that version, with the logits that it gave for the pictures below.
"""

import json
from pathlib import Path

import pytest
import torch

import distbranch
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
    first = {
        key: value
        for key, value in architecture.items()
        if key not in ("width_fraction", "low_rank")
    }
    assert is_earlier(first)
    assert rename_earlier(first, {}) == rename_earlier(architecture, {})


def test_slots_of_an_optimiser_are_renamed_as_their_parameters_are() -> None:
    architecture = json.loads((RUNS / "grown" / "model" / "model.json").read_text())["architecture"]
    names = (
        "layers.fc6.1.linear.weight",
        "layers.conv1.0.conv.weight",
        "layers.fc6.1.norm.bias",
        "heads.weight",
    )
    _, slots = rename_earlier(architecture, {f"{name}:exp_avg": torch.zeros(1) for name in names})
    _, weights = rename_earlier(architecture, {name: torch.zeros(1) for name in names})
    assert next(iter(weights)) == "units.fc6.1.product.weight"
    assert list(slots) == [f"{name}:exp_avg" for name in weights]
