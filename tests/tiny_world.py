"""A folder with one tiny thing of each kind that a command may be given (data, tables, a run), and a way to run commands.

Everything is small enough for a command to take milliseconds: 32x32 images, 3 tasks, a network of width 2, 4 steps.
"""

import fnmatch
import hashlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from distbranch import cli
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task

NUM_SAMPLES = {"train": 24, "val": 8, "test": 8}
TASKS = (Task("bright"), Task("wide"), Task("shade", "categorical", ("dark", "mid", "light")))
# Of a message for people: what should be, what was found, what to do.
MOST_SENTENCES, MOST_CHARACTERS, WORDS_SAID_TWICE = 3, 900, 6
DOUBLED_STOP = re.compile(r"(?<!\.)\.\.(?=[\s)]|$)|[.?!]\)+\.|[?!]\.|[,;:]\.|\s[.,;](\s|$)")
CONFIG = """\
run: {directory: runs}
data: {path: data}
model: {backbone: vgg9, width: 2}
method: {round_iterations: 2, max_branches: null}
train: {iterations: 4, batch_size: 8, checkpoint_every: 2, log_every: 1, eval_batch_size: 8}
optim: {lr: 0.01, momentum: 0.9}
launch: {workers: 1, device: cpu, threads: 1}
"""
TABLE = """\
image,split,bright,colour
a.jpg,train,1,red
b.jpg,train,0,blue
c.jpg,val,,red
d.jpg,test,1,blue
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run_command(arguments: Sequence[str]) -> Ended:
    """Run `distbranch ARGUMENTS` in this process, in the current folder."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        mock.patch.object(sys, "argv", ["distbranch", *arguments]),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
        finally:
            logging.getLogger("distbranch").handlers = []
            logging.getLogger("distbranch").propagate = True
    return Ended(
        code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue()
    )


def make_world(folder: Path) -> Path:
    """Packed data, a finished run on them, a table with images, and the layouts of CelebA and DeepFashion."""
    folder.mkdir(parents=True)
    _pack(folder / "data")
    (folder / "tiny.yaml").write_text(CONFIG)
    for number, name in enumerate("abcd"):
        _write(folder / f"images/{name}.jpg", picture(number))
    _write(folder / "table.csv", TABLE.encode())
    _write(folder / "photo.jpg", picture(5))
    _make_celeba(folder / "celeba")
    _make_deepfashion(folder / "deepfashion")
    before = Path.cwd()
    os.chdir(folder)
    try:
        ended = run_command(["train", "tiny.yaml"])
    finally:
        os.chdir(before)
    assert ended.code == 0, ended.err
    return folder


def picture(number: int) -> bytes:
    """A JPEG of 32x32 pixels, the brighter the larger its number."""
    pixels = np.random.default_rng(number).integers(0, 60, (32, 32, 3), dtype=np.uint8) + np.uint8(
        number * 37 % 190
    )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file (`link` of a link, `folder` of a folder), by path."""
    return {
        str(path.relative_to(folder)): "folder"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def assert_one_sentence(ended: Ended, code: int, words: tuple[str, ...]) -> None:
    """The command ended with this code and told one thing, with these words: what is wrong, and what to do."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.err + ended.out
    lines = [line for line in ended.err.splitlines() if line.strip()]
    from_typer = any(line.startswith("Usage: ") for line in lines)
    # Several problems of one thing are a line each.
    first = [at for at, line in enumerate(lines) if line.startswith("Error: ")]
    assert from_typer or len(first) == 1, ended.err
    told = ended.err
    if not from_typer:
        error, *problems = lines[first[0] :]
        numbers = [line.partition(" ")[0] for line in problems]
        assert numbers == [f"({number})" for number in range(1, len(problems) + 1)], ended.err
        told = " ".join([error.removeprefix("Error: "), *problems])
    if not from_typer:
        faults = faults_of_message(told)
        assert not faults, f"{'; '.join(faults)}: {told}"
    missing = [word for word in words if word not in told]
    assert not missing, f"{missing} should be told, but: {told}"


def faults_of_message(told: str) -> list[str]:
    """What is wrong with the form of a message for people; nothing if each thing in it is said once.

    A message of several problems numbers them, "(1) ... (2) ...", and each of them is a message of its own.
    """
    _, *numbered = re.split(r"\(\d+\) ", told) if " problems: (1) " in told else [told]
    if numbered:
        return [fault for problem in numbered for fault in faults_of_message(problem)]
    sentences = [
        sentence.strip() for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z`'])", told.strip())
    ]
    spoken = [word.strip(".,;:()`'") for word in told.lower().split() if "/" not in word]
    runs = [
        " ".join(spoken[start : start + WORDS_SAID_TWICE])
        for start in range(len(spoken) - WORDS_SAID_TWICE + 1)
    ]
    twice = sorted({run for run in runs if runs.count(run) > 1})
    faults = {
        "it should end with a full stop or a question mark": not told.rstrip().endswith((".", "?")),
        f"it has {len(sentences)} sentences": len(sentences) > MOST_SENTENCES,
        f"it has {len(told)} characters": len(told) >= MOST_CHARACTERS,
        "a stop is doubled": DOUBLED_STOP.search(told) is not None,
        "an error stands in another one": re.search(r"\bError: |Traceback|\bErrno\b", told)
        is not None,
        f"'{', '.join(twice)}' is said twice": bool(twice),
    }
    return [fault for fault, is_there in faults.items() if is_there]


@contextmanager
def nothing_overwritten(world: Path, makes: tuple[str, ...]) -> Iterator[None]:
    before = contents(world)
    yield
    after = contents(world)
    changed = [path for path, content in before.items() if after.get(path) != content]
    assert not changed, f"these were changed or removed: {changed}"
    new = [path for path in after.keys() - before.keys() if not path.endswith(".lock")]
    left = [
        path
        for path in new
        if not any(fnmatch.fnmatch(path, pattern) or path == pattern[:-2] for pattern in makes)
    ]
    assert not left, f"these were left behind: {sorted(left)}"


def _pack(folder: Path) -> None:
    def samples() -> Iterator[Sample]:
        for split, count in NUM_SAMPLES.items():
            for number in range(count):
                labels: dict[str, int | float | str] = {
                    "bright": number % 2,
                    "wide": number % 3 // 2,
                }
                if number % 5:
                    labels["shade"] = ("dark", "mid", "light")[number % 3]
                yield Sample(f"{split}-{number}", split, picture(number), labels)

    pack(samples(), folder, TASKS, shard_samples=8)


def _make_celeba(root: Path) -> None:
    names = [f"00000{number}.jpg" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        _write(root / "Img/img_align_celeba" / name, picture(number))
    rows = "".join(f"{name}  1 -1\n" for name in names)
    _write(root / "Anno/list_attr_celeba.txt", f"3\nSmiling Young\n{rows}".encode())
    splits = "".join(f"{name} {number}\n" for number, name in enumerate(names))
    _write(root / "Eval/list_eval_partition.txt", splits.encode())


def _make_deepfashion(root: Path) -> None:
    names = [f"img/Tee/img_{number}.jpg" for number in (1, 2, 3)]
    for number, name in enumerate(names):
        _write(root / name, picture(number))
    _write(
        root / "Anno_coarse/list_category_cloth.txt",
        b"2\ncategory_name category_type\nTee 1\nJeans 2\n",
    )
    rows = "".join(f"{name} {1 + number % 2}\n" for number, name in enumerate(names))
    _write(
        root / "Anno_coarse/list_category_img.txt", f"3\nimage_name category_label\n{rows}".encode()
    )
    splits = "".join(f"{name} {split}\n" for name, split in zip(names, NUM_SAMPLES, strict=True))
    _write(
        root / "Eval/list_eval_partition.txt", f"3\nimage_name evaluation_status\n{splits}".encode()
    )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
