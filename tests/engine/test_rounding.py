"""A run says with which precision, threads and device it was trained, keeps what `auto` chose, and warns when they change."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import assert_same_content, config_of, lines_of

from distbranch.config import load_config
from distbranch.engine.checkpoint import load_newest
from distbranch.engine.distributed import Ranks
from distbranch.engine.process_group import choose_rounding
from distbranch.engine.results import StoppedEarly
from distbranch.engine.session import evaluate_run, train_rank
from distbranch.errors import SharedError

ALONE = Ranks(0, 1, torch.device("cpu"))
LAST, HALF = 12, 9


def hardware(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr("distbranch.engine.process_group.has_bf16", lambda _: bf16)


def train(data: Path, folder: Path, *, until: int = LAST, **changes: Any) -> Path:
    """Train the tiny run up to a step; its directory."""
    config = load_config(config_of(data, folder, **{"train.iterations": LAST, **changes}))
    steps = [0]

    def should_stop() -> bool:  # asked once before every step, beginning with the first
        steps[0] += 1
        return steps[0] > until

    config.run_directory.mkdir(parents=True, exist_ok=True)
    try:
        train_rank(config, report=lambda _: None, should_stop=should_stop)
    except StoppedEarly:
        assert until < LAST
    return config.run_directory


def recorded(run: Path) -> list[Any]:
    newest = load_newest(run / "checkpoints")
    assert newest is not None
    return list(newest.state["rounding"])


@pytest.mark.parametrize("here", [True, False])
def test_auto_is_bf16_only_where_every_rank_has_it_in_hardware(
    here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hardware(monkeypatch, bf16=here)
    assert choose_rounding("auto", ALONE)[-1]["precision"] == ("bf16" if here else "fp32")
    for given in ("bf16", "fp32"):
        assert choose_rounding(given, ALONE)[-1]["precision"] == given
    monkeypatch.setattr(Ranks, "gather", lambda _, own: [own, False])
    assert choose_rounding("auto", ALONE)[-1]["precision"] == "fp32"


@pytest.mark.parametrize("begun_with_bf16", [True, False])
def test_what_auto_chose_at_the_beginning_holds_to_the_end_on_other_hardware(
    begun_with_bf16: bool,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = {"train.precision": "auto"}
    hardware(monkeypatch, bf16=begun_with_bf16)
    whole = train(tiny_data, tmp_path / "whole", **changes)
    run = train(tiny_data, tmp_path / "moved", until=HALF, **changes)
    assert not caplog.messages
    hardware(monkeypatch, bf16=not begun_with_bf16)
    train(tiny_data, tmp_path / "moved", **changes)
    names = ("bf16", "fp32") if begun_with_bf16 else ("fp32", "bf16")
    assert (
        f"auto would be {names[1]} on this hardware; the run was begun with {names[0]} and keeps it"
        in caplog.text
    )
    assert [one["precision"] for one in recorded(run)] == [names[0]]
    assert json.loads((run / "environment.json").read_text())["precision"] == names[0]
    assert_same_content(run, whole)


def test_a_run_resumed_with_other_threads_says_so_until_it_has_those_it_was_begun_with(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_num_threads()
    told = []
    for threads in (1, 2, 2, 1):
        caplog.clear()
        run = train(tiny_data, tmp_path, until=3, **{"launch.threads": threads})
        told.append("threads 1 -> 2" in caplog.text)
        environment = json.loads((run / "environment.json").read_text())
        assert environment["threads_per_rank"] == threads
    torch.set_num_threads(before)
    assert told == [False, True, True, False]
    assert [one["threads"] for one in recorded(run)] == [1, 2, 1]
    resumed = lines_of(run / "metrics.jsonl", "resumed")
    assert [(line["threads"], line["precision"], line["device"]) for line in resumed] == [
        (2, "fp32", "cpu"),
        (2, "fp32", "cpu"),
        (1, "fp32", "cpu"),
    ]


def test_a_checkpoint_without_a_record_of_its_rounding_is_resumed_without_a_word(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    hardware(monkeypatch, bf16=True)
    assert [one["precision"] for one in choose_rounding("auto", ALONE, ())] == ["bf16"]
    assert not caplog.messages


def test_ranks_of_different_threads_are_recorded_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "gather", lambda _, own: [2, own, 1])
    assert choose_rounding("fp32", ALONE)[-1]["threads"] == sorted({1, 2, torch.get_num_threads()})


def test_a_run_in_bf16_is_refused_by_a_gpu_that_cannot_compute_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old GPU")
    begun = choose_rounding("bf16", ALONE)
    for precision in ("bf16", "auto"):
        with pytest.raises(
            SharedError, match=r"in bf16, and an old GPU cannot compute in it. Use another GPU"
        ):
            choose_rounding(precision, Ranks(0, 1, torch.device("cuda", 0)), begun)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_run_is_evaluated_in_the_precision_it_was_trained_in(
    precision: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distbranch.models.network import Network

    real, seen = Network.forward, []

    def forward(self: Network, images: torch.Tensor, **more: Any) -> Any:
        seen.append("bf16" if torch.is_autocast_enabled("cpu") else "fp32")
        return real(self, images, **more)

    monkeypatch.setattr(Network, "forward", forward)
    run = train(tiny_data, tmp_path, **{"train.precision": precision})
    found = json.loads((run / "result.json").read_text())["metrics"]["val"]
    assert evaluate_run(run, "val")["loss"] == found["loss"]
    assert set(seen) == {precision}
