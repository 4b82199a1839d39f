"""However a run is made to end, it ends soon, with everything saved that can be, and says so in one sentence."""

import fcntl
import os
import pty
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from rank_server import RankServer, free_port
from tiny_runs import assert_same_content, config_of

from distbranch.engine.checkpoint import load_newest
from distbranch.errors import Interrupted, StoppedEarly

# A run waits so long for a lost rank; what ends within the time that a job is given here did not wait for it.
TIMEOUT_MIN, TIMEOUT_S = 10, 90


def run_command(arguments: list[str]) -> None:
    """`distbranch ARGUMENTS`, which ends the process."""
    from distbranch import cli
    from distbranch.launch import local

    local.log_decision = lambda *_: None
    sys.argv = ["distbranch", *arguments]
    cli.main()


def before_step(number: int, act: Callable[[], None], *, rank: int = 0) -> None:
    """Do something in this rank's training step."""
    from distbranch.engine.training_step import TrainingStep

    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if self.progress.iteration + 1 == number and self.ranks.rank == rank:
            act()
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]


def send_later(numbers: list[int], seconds: float = 0.5) -> None:
    """Signals to this process, one after the other, while it does something else."""

    def send() -> None:
        for number in numbers:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def written(folder: Path, data: Path, **dotted: Any) -> str:
    file = folder / "tiny.yaml"
    file.write_text(
        yaml.safe_dump(config_of(data, folder, **{"launch.timeout_min": TIMEOUT_MIN, **dotted}))
    )
    return str(file)


def saved_step(folder: Path) -> int:
    checkpoint = load_newest(folder / "tiny" / "checkpoints")
    assert checkpoint is not None
    return int(checkpoint.state["progress"]["iteration"])


# ---- ranks that do not come


def be_alone(arguments: list[str], rank: int, numbers: list[int]) -> None:
    """A job: one rank of two, the other of which is never started, receives signals while it waits."""
    from distbranch.engine import process_group

    real = process_group.wait_for_ranks

    def wait(*given: Any) -> None:
        send_later(numbers)
        real(*given)

    process_group.wait_for_ranks = wait
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    run_command(arguments)


@pytest.mark.parametrize(
    ("rank", "names", "code"),
    [
        (1, ["SIGTERM"], 75),
        (0, ["SIGTERM"], 75),
        (1, ["SIGINT"], 130),
        (0, ["SIGINT", "SIGINT"], 130),
        (1, ["SIGHUP"], 75),
        (0, ["SIGUSR2"], 75),
    ],
)
def test_a_rank_whose_peers_do_not_come_ends_at_a_signal(
    rank: int, names: list[str], code: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    numbers = [int(signal.Signals[name]) for name in names]
    arguments = ["train", written(tmp_path, tiny_data)]
    [ended] = ranks.run(
        be_alone, arguments=arguments, rank=rank, numbers=numbers, timeout_s=TIMEOUT_S
    )
    assert ended.exit_code == code, ended.output
    told = " ".join(ended.output.split())
    assert told.count("Stopped while this rank waited for the others") == 1
    assert "Traceback" not in told


def come_and_leave(arguments: list[str]) -> None:
    """A job: rank 1 comes to where the ranks meet and no further; rank 0, which waits for its connection, gets SIGTERM."""
    import torch.distributed as dist

    if os.environ["RANK"] == "1":
        next(dist.rendezvous("env://"))
        return
    real = dist.init_process_group

    def connect(*given: Any, **named: Any) -> None:
        send_later([signal.SIGTERM], 1.5)
        real(*given, **named)

    dist.init_process_group = connect
    run_command(arguments)


def test_a_rank_whose_peer_is_lost_while_they_connect_ends_at_a_signal(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data)]
    ended = ranks.run(come_and_leave, world_size=2, arguments=arguments, timeout_s=TIMEOUT_S)
    assert ended[0].exit_code == 75, ended[0].output
    assert "while this rank waited" in " ".join(ended[0].output.split())


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come_in_time_are_told_in_one_sentence(
    rank: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data, **{"launch.timeout_min": 0.02})]
    [ended] = ranks.run(be_alone, arguments=arguments, rank=rank, numbers=[], timeout_s=TIMEOUT_S)
    assert ended.exit_code == 1, ended.output
    told = " ".join(ended.output.split())
    assert f"Rank {rank} should meet 2 ranks (WORLD_SIZE) at 127.0.0.1:" in told
    assert "Traceback" not in told


# ---- ranks that have come and do not go on


def wait_for_a_rank_that_hangs(
    arguments: list[str], numbers: list[int], hear_s: float, pid_file: str
) -> None:
    """A job: rank 1 hangs in a step until rank 0 is gone, which waits for it within gloo and receives signals."""
    from distbranch.launch import stopping

    stopping.SECONDS_TO_HEAR = hear_s
    file = Path(pid_file)

    def hang() -> None:
        first = int(file.read_text())
        while Path(f"/proc/{first}").exists():
            time.sleep(0.05)
        os._exit(0)

    def begin_to_wait() -> None:
        file.write_text(str(os.getpid()))
        send_later(numbers, 0.7)

    before_step(3, begin_to_wait, rank=0)
    before_step(4, hang, rank=1)
    run_command(arguments)


@pytest.mark.parametrize(
    ("names", "hear_s", "code", "words"),
    [
        (
            ["SIGINT", "SIGINT"],
            60,
            130,
            "Interrupted at once; the same command continues from the last checkpoint.",
        ),
        (["SIGTERM", "SIGTERM", "SIGINT"], 60, 130, "Interrupted at once"),
        (["SIGTERM"], 1, 75, "Stopped after it had only waited for another rank for 1 s"),
        (["SIGINT"], 1, 130, "Stopped after it had only waited"),
    ],
)
def test_a_rank_that_waits_for_one_that_hangs_ends_without_it(
    names: list[str],
    hear_s: float,
    code: int,
    words: str,
    tiny_data: Path,
    ranks: RankServer,
    tmp_path: Path,
) -> None:
    ended = ranks.run(
        wait_for_a_rank_that_hangs,
        world_size=2,
        arguments=["train", written(tmp_path, tiny_data, **{"train.checkpoint_every": 2})],
        numbers=[int(signal.Signals[name]) for name in names],
        hear_s=hear_s,
        pid_file=str(tmp_path / "pid"),
        timeout_s=TIMEOUT_S,
    )
    assert ended[0].exit_code == code, ended[0].output
    assert words in " ".join(ended[0].output.split())
    assert saved_step(tmp_path) == 2


def fork_and_signal(arguments: list[str]) -> None:
    """A job: in a step it forks a process, which receives SIGTERM, and then waits in a library for longer than signals do."""
    import ctypes

    from distbranch.launch import stopping

    stopping.SECONDS_TO_HEAR = 0.1

    def fork() -> None:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(pid, 0)
        ctypes.CDLL(None).usleep(500_000)

    before_step(3, fork)
    run_command(arguments)


def test_a_signal_to_a_forked_process_is_not_taken_for_ones_own(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    [ended] = ranks.run(
        fork_and_signal, arguments=["train", written(tmp_path, tiny_data)], timeout_s=TIMEOUT_S
    )
    assert ended.exit_code == 0, ended.output


# ---- data that do not come


def wait_for_a_download(arguments: list[str], absent: int, numbers: list[int]) -> None:
    """A job: one of the batches is never there; signals arrive while it is awaited."""
    from distbranch.data import loader

    real = loader._BatchSource._make_batch
    made: list[int] = []

    def make(self: loader._BatchSource, *given: Any) -> Any:
        made.append(1)
        if len(made) == absent:
            send_later(numbers)
            time.sleep(600)
        return real(self, *given)

    loader._BatchSource._make_batch = make  # type: ignore[method-assign]
    run_command(arguments)


@pytest.mark.parametrize(
    ("absent", "name", "code"),
    [(3, "SIGTERM", 75), (3, "SIGINT", 130), (1, "SIGHUP", 75), (2, "SIGINT", 130)],
)
def test_a_run_that_waits_for_data_is_saved_and_ends_at_a_signal(
    absent: int, name: str, code: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data)]
    numbers = [int(signal.Signals[name])]
    job = {"arguments": arguments, "absent": absent, "numbers": numbers}
    [ended] = ranks.run(wait_for_a_download, timeout_s=TIMEOUT_S, **job)
    assert ended.exit_code == code, ended.output
    assert "everything is saved" in " ".join(ended.output.split())
    assert saved_step(tmp_path) == absent - 1


# ---- a terminal that is closed


def train_in_a_terminal(
    arguments: list[str], closed_in: int, *, stop_reading: bool = False
) -> None:
    """A job: the leader of a session of its own, whose terminal is closed (or read no longer) during a step."""
    os.setsid()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for stream in (0, 1, 2):
        os.dup2(slave, stream)
    os.close(slave)
    closing = threading.Event()

    def read() -> None:
        while not closing.is_set():
            if select.select([master], [], [], 0.05)[0]:
                os.read(master, 65536)
        os.close(master)

    reader = threading.Thread(target=read)
    reader.start()

    def close() -> None:
        closing.set()
        reader.join()

    if stop_reading:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    before_step(closed_in, close)
    run_command(arguments)


def test_a_closed_terminal_saves_the_run_and_the_same_command_continues_it(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data, **{"launch.timeout_min": 1})]
    [ended] = ranks.run(train_in_a_terminal, arguments=arguments, closed_in=13, timeout_s=TIMEOUT_S)
    assert ended.exit_code == 75, ended.output
    assert saved_step(tmp_path) in (
        13,
        14,
    )  # the signal comes as the terminal is closed, in step 13
    [again] = ranks.run(run_command, arguments=arguments)
    assert again.exit_code == 0, again.output
    assert_same_content(tmp_path / "tiny", undisturbed(1))


def test_with_nohup_a_closed_terminal_changes_nothing(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data, **{"launch.timeout_min": 1})]
    [ended] = ranks.run(
        train_in_a_terminal,
        arguments=arguments,
        closed_in=13,
        stop_reading=True,
        timeout_s=TIMEOUT_S,
    )
    assert ended.exit_code == 0, ended.output
    assert_same_content(tmp_path / "tiny", undisturbed(1))


def write_to_nobody(arguments: list[str], closed_in: int) -> None:
    """A job: `distbranch ARGUMENTS | head`, whose reader ends during a step."""
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(writing)
    before_step(closed_in, lambda: os.close(reading))
    run_command(arguments)


def test_output_that_nobody_reads_does_not_end_the_training(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    arguments = ["train", written(tmp_path, tiny_data)]
    [ended] = ranks.run(write_to_nobody, arguments=arguments, closed_in=5, timeout_s=TIMEOUT_S)
    assert ended.exit_code == 0, ended.output
    assert not ended.output
    assert (tmp_path / "tiny" / "result.json").exists()


# ---- Python that outlives errors


def train_seeds(config: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A job: a loop over seeds that goes on after any `Exception`; a signal arrives in step 13 of the first."""
    import distbranch
    from distbranch.launch import local

    local.log_decision = lambda *_: None
    before_step(13, lambda: os.kill(os.getpid(), number))
    begun: list[int] = []
    try:
        for seed in (0, 1, 2):
            begun.append(seed)
            with suppress(Exception):
                distbranch.train({**config, "seed": seed}, **{"run.name": f"seed-{seed}"})
    except KeyboardInterrupt as interrupt:
        return {
            "begun": begun,
            "ended_by": type(interrupt).__name__,
            "code": getattr(interrupt, "exit_code", None),
        }
    except StoppedEarly as stopped:
        return {"begun": begun, "ended_by": type(stopped).__name__, "code": stopped.exit_code}
    return {"begun": begun, "ended_by": "nothing", "code": 0}


@pytest.mark.parametrize(
    ("name", "ended_by", "code"),
    [
        ("SIGINT", "Interrupted", 130),
        ("SIGTERM", "StoppedEarly", 75),
        ("SIGUSR2", "StoppedEarly", 75),
    ],
)
def test_a_loop_over_seeds_that_outlives_errors_ends_at_a_signal_with_everything_saved(
    name: str, ended_by: str, code: int, tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    found = ranks.call(
        train_seeds, config=config_of(tiny_data, tmp_path), number=int(signal.Signals[name])
    )
    assert found == {"begun": [0], "ended_by": ended_by, "code": code}
    checkpoint = load_newest(tmp_path / "seed-0" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["progress"]["iteration"] == 14


def test_an_interrupt_is_caught_as_what_it_is() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert issubclass(Interrupted, StoppedEarly)
    assert not issubclass(StoppedEarly, Exception)
