"""Somebody at a terminal who submits jobs to the Slurm of the tests, and what the jobs leave behind."""

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import yaml
from rank_server import RankServer
from slurm_world import SlurmWorld
from tiny_runs import ITERATIONS, config_of, lines_of
from tiny_world import run_command

from distbranch.engine.checkpoint import load_newest

TESTS = Path(__file__).resolve().parent
SECONDS_PER_STEP = "2"
LOG_EVERY = 4  # of the tiny run
PATIENCE_S = 400  # a crowded machine takes twenty times as long as a quiet one


def type_command(
    words: Sequence[str], folder: str, environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """A job: a command in a folder; its exit code, output and errors."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    ended = run_command(words)
    return ended.code, ended.out, ended.err


class Person:
    """Somebody at a terminal in a folder with a config file."""

    def __init__(self, world: SlurmWorld, server: RankServer, folder: Path, data: Path) -> None:
        self.world, self.server, self.folder, self.data = world, server, folder, data
        self.quick_until = folder / "quick-until"
        self.hurries_until(ITERATIONS)
        (folder / "ranks").mkdir()
        self.write("tiny")

    def write(self, name: str, **dotted: object) -> None:
        config = config_of(self.data, self.folder / "runs", **{"run.name": name, **dotted})
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(config))

    def types(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        """`distbranch ...`, as it ends."""
        paths = (TESTS.parent, TESTS / "slurm_pace")
        given = {
            **os.environ,
            **self.world.environment,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
        }
        given |= {"OMP_NUM_THREADS": "1", "TEST_SECONDS_PER_STEP": SECONDS_PER_STEP}
        given |= {
            "TEST_RANKS": str(self.folder / "ranks"),
            "TEST_QUICK_UNTIL": str(self.quick_until),
        }
        arguments = {
            "words": words,
            "folder": str(self.folder),
            "environment": {**given, **environment},
        }
        code, out, err = self.server.call(type_command, timeout_s=240, **arguments)
        return subprocess.CompletedProcess(words, code, out, err)

    def hurries_until(self, step: int) -> None:
        """No step of any run up to this one takes longer than it must; later ones take seconds, in which a test can interfere."""
        aside = self.quick_until.with_suffix(".new")
        aside.write_text(str(step))
        aside.replace(self.quick_until)

    def submits(self, *words: str, **environment: str) -> str:
        """The number of the job."""
        ended = self.types("submit", "slurm", *words, **environment)
        found = re.search(r"Submitted job (\d+)", ended.stdout)
        assert found, ended.stdout + ended.stderr
        return found[1]

    def ranks(self) -> list[tuple[str, int, int]]:
        """NODE-ATTEMPT, cores and threads of every rank that has trained with TEST_RANKS."""
        files = sorted((self.folder / "ranks").glob("*.json"))
        told = [(file.stem.rpartition("-")[0], json.loads(file.read_text())) for file in files]
        return [(name, about["cores"], about["threads"]) for name, about in told]

    def run_of(self, name: str) -> Path:
        return self.folder / "runs" / name

    def waits_for_step(self, step: int, name: str = "tiny", *, resumed: int = 0) -> None:
        self.hurries_until(LOG_EVERY * -(-step // LOG_EVERY))
        file = self.run_of(name) / "metrics.jsonl"

        def is_there() -> bool:
            if not file.exists() or len(lines_of(file, "resumed")) < resumed:
                return False
            return any(line["iteration"] >= step for line in lines_of(file, "train"))

        try:
            self.world.wait_for(is_there, f"step {step} of {name}", timeout_s=PATIENCE_S)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log(name)}") from None

    def waits_for_end(self, job: str, timeout_s: float = PATIENCE_S) -> str:
        """Slurm's word for how the job ended."""
        states = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.world.wait_for(
            lambda: self.world.job(job)["JobState"] in states, f"job {job}", timeout_s=timeout_s
        )
        self.world.wait_for(
            lambda: not self.world.run("squeue", "-h", "-j", job, check=False).strip(), f"job {job}"
        )
        return self.world.job(job)["JobState"]

    def log(self, name: str) -> str:
        return "\n".join(
            file.read_text()
            for file in sorted((self.run_of(name) / "slurm").rglob("*log*"))
            if file.is_file()
        )


def left_of(slurm: SlurmWorld, job: str) -> list[str]:
    """Processes, folders, and files in its TMPDIR that a job has left behind on this machine."""
    mark = f"/db{job}-"
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if mark in words and process.status() != psutil.STATUS_ZOMBIE:
            processes.append(words[:200])
    return [*processes, *map(str, Path("/tmp").glob(f"{mark[1:]}*")), *slurm.left_of(job)]


def saved_step(run: Path) -> int:
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    return int(checkpoint.state["progress"]["iteration"])


def stopped_at(log: str) -> list[int]:
    """The steps at which a log says that the run stopped with everything saved."""
    return [
        int(step)
        for step in re.findall(
            r"Stopped after step (\d+) of \d+; everything is saved", " ".join(log.split())
        )
    ]
