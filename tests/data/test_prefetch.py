"""Prefetching processes: whatever befalls them is told as what it is, and the script of the user is left alone."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from packed_samples import tiny_dataset
from rank_server import RankServer
from tiny_runs import config_of, train_tiny

from distbranch.data import prefetch
from distbranch.data.loader import train_loader
from distbranch.data.shards import DatasetInfo
from distbranch.engine.checkpoint import load_newest
from distbranch.errors import UserError

SIZE = (32, 40)
CLONE_NEWNS = 0x20000


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return tiny_dataset(tmp_path_factory.mktemp("tiny") / "set")


# ---- processes that die


@pytest.mark.parametrize(
    ("name", "told", "not_told"),
    [
        ("SIGKILL", ("signal SIGKILL", "want of memory", "lower data.workers"), "/dev/shm"),
        ("SIGBUS", ("/dev/shm", "--shm-size", "data.workers=0"), "want of memory"),
        ("SIGSEGV", ("signal SIGSEGV", "data.workers=0"), "memory"),
    ],
)
def test_a_process_that_died_is_told_by_what_killed_it(
    name: str, told: tuple[str, ...], not_told: str, info: DatasetInfo
) -> None:
    loader = train_loader(info, "train", batch_size=4, image_size=SIZE, num_workers=2)
    next(loader)
    below = psutil.Process().children(recursive=True)
    workers = [process for process in below if process.ppid() != os.getpid()]
    assert len(workers) == 2
    for worker in workers:
        worker.send_signal(signal.Signals[name])
    with pytest.raises(UserError) as raised:
        next(islice(loader, 50, None))
    assert all(word in str(raised.value) for word in told), raised.value
    assert not_told not in str(raised.value)


# ---- signals


def train_in_a_group(config: dict[str, Any], number: int) -> dict[str, Any]:
    """A job: in a step all processes of its group receive a signal; how it ended, and who was there before and after."""
    from distbranch.engine.training_step import TrainingStep

    os.setpgid(0, 0)
    real, seen = TrainingStep._forward_and_backward, []

    def list_living() -> list[int]:
        below = psutil.Process().children(recursive=True)
        return sorted(one.pid for one in below if one.status() != psutil.STATUS_ZOMBIE)

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == 3:
            seen.append(list_living())
            os.killpg(0, number)
            time.sleep(1)  # for whoever would end
            seen.append(list_living())
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return {**train_tiny(config), "seen": seen}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGHUP"])
def test_a_signal_to_all_processes_of_a_run_ends_none_but_the_trainer_which_saves_everything(
    name: str, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"data.workers": 1})
    ended = ranks.call(train_in_a_group, config=config, number=int(signal.Signals[name]))
    assert ended["end"] == "stopped", ended
    before, after = ended["seen"]
    assert before == after
    assert len(before) >= 2  # the server, and the process that makes batches
    checkpoint = load_newest(tmp_path / "tiny" / "checkpoints")
    assert checkpoint is not None
    assert f"after step {checkpoint.state['progress']['iteration']} of" in ended["message"]


# ---- room in /dev/shm


def train_with_little_shared_memory(
    config: dict[str, Any], kibibytes: int, filled_in: int
) -> dict[str, Any]:
    """A job: train where /dev/shm is a disk of its own, which something else fills during a step (0: never)."""
    if ctypes.CDLL(None).unshare(CLONE_NEWNS):
        return {"end": "not possible"}
    for mount in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "none", prefetch.SHARED_MEMORY],
    ):
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return {"end": "not possible"}

    from small_disk import fill

    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == filled_in:
            fill(Path(prefetch.SHARED_MEMORY) / "filler")
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    return train_tiny(config)


@pytest.mark.parametrize(("kibibytes", "filled_in", "num_workers"), [(16, 0, 2), (4096, 9, 1)])
def test_too_little_shared_memory_ends_the_run_with_a_sentence_about_it(
    kibibytes: int,
    filled_in: int,
    num_workers: int,
    tiny_data: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    config = config_of(tiny_data, tmp_path, **{"data.workers": num_workers})
    ended = ranks.call(
        train_with_little_shared_memory, config=config, kibibytes=kibibytes, filled_in=filled_in
    )
    if ended["end"] == "not possible":
        message = "mounting a small /dev/shm needs the rights of an administrator"
        pytest.fail(message) if os.environ.get("DISTBRANCH_NO_SKIP") else pytest.skip(message)
    assert ended["end"] == "failed"
    assert "hand over their batches in /dev/shm, which is full" in ended["message"]
    assert f"room for {kibibytes / 1024:.1f} MiB" in ended["message"]
    assert "data.workers=0" in ended["message"]
    if filled_in:
        checkpoint = load_newest(tmp_path / "tiny" / "checkpoints")
        assert checkpoint is not None
        assert checkpoint.state["progress"]["iteration"] >= filled_in


# ---- scripts

UNGUARDED = """
from pathlib import Path
Path({mark!r}).open("a").write("run")
raise SystemExit("this script was run again")
"""


@pytest.mark.parametrize("kind", ["a script", "a pipe", "a notebook"])
def test_prefetching_processes_do_not_run_the_script_again(
    kind: str,
    info: DatasetInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, mark = tmp_path / "script.py", tmp_path / "mark"
    script.write_text(UNGUARDED.format(mark=str(mark)))
    main = ModuleType("__main__")
    if kind != "a notebook":
        main.__file__ = str(script) if kind == "a script" else "<stdin>"
    monkeypatch.setitem(sys.modules, "__main__", main)
    for num_workers in (1, 2):  # of training, and of an evaluation, say
        loader = train_loader(info, "train", batch_size=4, image_size=SIZE, num_workers=num_workers)
        assert len(next(loader).images) == 4
    assert sys.modules["__main__"] is main
    assert not mark.exists()
