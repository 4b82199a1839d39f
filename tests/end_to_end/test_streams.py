"""Output streams that cannot show every letter, or that nobody reads any more."""

import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_world import picture

PROJECT = Path(__file__).resolve().parents[2]
TASKS = ("rouge foncé", "日本", "Schöße")
ASCII = {
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "LC_ALL": "C",
}  # files too are ASCII unless told otherwise
CONFIG = """\
run: {directory: runs}
data: {path: data}
model: {backbone: vgg9, width: 2}
method: {round_iterations: 2, max_branches: null}
train: {iterations: 4, batch_size: 4}
launch: {workers: 1, device: cpu, threads: 1}
"""


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table whose tasks have letters from afar."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    rows = [
        [f"{n}.jpg", ("train", "val", "test")[n % 3], n % 2, n // 2 % 2, n // 3 % 2]
        for n in range(30)
    ]
    for number in range(30):
        (tmp_path / f"images/{number}.jpg").write_bytes(picture(number))
    with (tmp_path / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "split", *TASKS], *rows])
    (tmp_path / "far.yaml").write_text(CONFIG)
    return tmp_path


COMMANDS = (
    "data pack csv data --images images --table table.csv",
    "train far.yaml",
    "evaluate runs/far --split val",
    "report runs/far",
    "predict runs/far images/1.jpg --format csv --out scores.csv",
)
RUN_ALL = """
import sys
from distbranch import cli
for command in sys.argv[1:]:
    sys.argv = ["distbranch", *command.split()]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{command} ended with {ended.code}")
"""


def run(commands: Sequence[str], environment: dict[str, str]) -> str:
    """What the commands say, in one process."""
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *commands],
        env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        check=False,
        timeout=120,
    )
    said = (ended.stdout + ended.stderr).decode("latin-1")
    assert ended.returncode == 0, said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, ASCII],
    ids=["ascii", "latin-1", "C"],
)
def test_letters_that_a_log_cannot_show_are_question_marks_and_end_nothing(
    far: Path, environment: dict[str, str]
) -> None:
    said = run(COMMANDS, environment)
    assert " ??" in said
    assert Path("runs/far/result.json").exists()
    assert Path("scores.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(
        ["image", *TASKS]
    )


def piped(command: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """A command whose reader goes at once: its exit code, and what it says elsewhere."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as gone:
        ended = subprocess.run(
            [sys.executable, "-m", "distbranch", *command.split()],
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT),
                "OMP_NUM_THREADS": "1",
                **(environment or {}),
            },
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        "train --help-config",
        "--help",
        "evaluate runs/tiny --split val",
        "predict runs/tiny images --format csv",
    ],
)
def test_a_command_whose_reader_has_gone_ends_without_a_word(world: Path, command: str) -> None:
    code, said = piped(command)
    assert said == ""
    assert code == 0


def test_training_continues_when_nobody_reads_what_it_says(world: Path) -> None:
    assert piped("train tiny.yaml run.name=unheard") == (0, "")
    assert Path("runs/unheard/result.json").exists()
    assert piped("data pack csv packed --images images --table table.csv") == (0, "")
    assert Path("packed/dataset.json").exists()


def test_closed_streams_end_nothing(world: Path) -> None:
    command = f"{sys.executable} -m distbranch train tiny.yaml run.name=closed >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    assert (
        subprocess.run(["sh", "-c", command], env=environment, check=False, timeout=120).returncode
        == 0
    )
    assert Path("runs/closed/result.json").exists()
