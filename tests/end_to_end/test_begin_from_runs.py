"""The life of a run through the command line: it goes on, a task is added to it, its heads are trained alone, a task is removed."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import TASKS, Ended, assert_one_sentence, picture, run_command

from distbranch.api import load
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task

RUN = "runs/tiny"


def _run(*arguments: str) -> Ended:
    ended = run_command(arguments)
    assert ended.code == 0, ended.err
    return ended


def _answers(run: str) -> dict[str, torch.Tensor]:
    pixels = np.asarray(Image.open(io.BytesIO(picture(3))))
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    answers: dict[str, torch.Tensor] = load(run)(images)
    return answers


def _pack_more(folder: Path) -> None:
    """The images of the world with a task that its run lacks, and none of its own."""
    samples = [
        Sample(f"{split}-{number}", split, picture(number), {"late": number % 2})
        for split, count in (("train", 24), ("val", 8), ("test", 8))
        for number in range(count)
    ]
    pack(iter(samples), folder, (Task("late"),), shard_samples=8)


def test_a_run_resumes_and_a_task_is_added_and_another_one_removed(world: Path) -> None:
    _run("train", "tiny.yaml", "train.iterations=6")
    result = json.loads((world / RUN / "result.json").read_text())
    assert result["iterations"] == 6

    _pack_more(world / "more")
    _run(
        "train",
        "tiny.yaml",
        "run.name=added",
        "data.path=more",
        f"model.from_run={RUN}",
        "method.name=fixed",
        "train.only=new",
    )
    before, after = _answers(RUN), _answers("runs/added")
    assert list(after) == [*(task.name for task in TASKS), "late"]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert "late" in _run("evaluate", "runs/added").out
    _run("report", "runs/added")

    told = _run("restrict", "runs/added", "runs/smaller", "--without", "wide").out
    assert all(name in told for name in ("bright", "shade", "late"))
    smaller = _answers("runs/smaller")
    assert list(smaller) == ["bright", "shade", "late"]
    for name, answer in smaller.items():
        torch.testing.assert_close(answer, after[name], rtol=0, atol=1e-5)
    _run("evaluate", "runs/smaller", "--split", "val")
    assert "wide" not in _run("predict", "runs/smaller", "photo.jpg").out
    _run("report", "runs/smaller")
    _run("export", "runs/smaller", "--format", "torch")
    finished = _run("train", "runs/smaller/config.yaml")
    assert "finished" in finished.out


def test_a_restricted_run_is_evaluated_on_the_data_of_the_whole_one(world: Path) -> None:
    shutil.rmtree(world / "runs/one", ignore_errors=True)
    _run("restrict", RUN, "runs/one", "--tasks", "wide")
    whole, one = (
        json.loads((world / run / "result.json").read_text()) for run in (RUN, "runs/one")
    )
    expected, found = (result["metrics"]["test"]["tasks"]["wide"] for result in (whole, one))
    assert found == pytest.approx(expected)
    assert one["weights"] <= whole["weights"]
    assert one["tasks"] == ["wide"]
    _run(
        "train",
        "tiny.yaml",
        "run.name=probe",
        "model.from_run=runs/one",
        "method.name=fixed",
        "train.only=heads",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((RUN, "runs/new"), ("--tasks", "--without")),
        ((RUN, "runs/new", "--tasks", "wid"), ("no task 'wid'", "wide")),
        ((RUN, "runs/new", "--without", "wid"), ("no task 'wid'", "wide")),
        ((RUN, "runs/new", "--without", "bright,wide,shade"), ("At least one task",)),
        ((RUN, RUN, "--tasks", "wide"), ("new run directory", "exists")),
    ],
)
def test_what_cannot_be_restricted_is_told(
    arguments: tuple[str, ...], words: tuple[str, ...], world: Path
) -> None:
    ended = run_command(["restrict", *arguments])
    assert_one_sentence(ended, 2 if "--tasks" in words else 1, words)
    assert not (world / "runs/new").exists()
