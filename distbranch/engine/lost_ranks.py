"""Who was lost: a rank that is gone or late leaves the others with an error that names nobody.

Every rank publishes its name in the store of the process group, and one that waited without effect says so there: who has not is late.
"""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from distbranch.engine.distributed import NotAwaitedError, Ranks, wait_for_result
from distbranch.engine.process_group import describe_misplacement
from distbranch.errors import UserError

T = TypeVar("T")
SECONDS_FOR_NOTES = 1.5  # after which all ranks that waited without effect have said so
SECONDS_TO_BE_NAMED = 4  # a rank that only lost a connection leaves the word to those who know more
SECONDS_FOR_STORE = 5  # its process may be the one that is lost, and then it answers never
# PyTorch raises a plain RuntimeError for these, so the words of its backends are all there is to go by.
LATE = ("Timed out", "timed out", "timeout caused pair closure")
GONE = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "ncclRemoteError")
MOST_NAMED = 5  # an error is one sentence, of hundreds of ranks too


class LostRankError(UserError):
    """Another rank is gone. The run itself is in order: started anew, the ranks resume from the last checkpoint."""


class LateRankError(UserError):
    """A rank did not come to where the others waited for it."""


def publish_rank_name(ranks: Ranks) -> None:
    """Tell the store of the process group where this rank runs."""
    if ranks.world_size > 1:
        _open_store().set(f"name-{ranks.rank}", ranks.place)


def describe_rank_failure(
    error: Exception, ranks: Ranks, *, timeout_min: float, notes: Path
) -> Exception:
    """What to raise on this rank of several for an error that is not for people: with the rank's name, and what to do.

    Args:
        error: what was raised.
        ranks: this process among the others.
        timeout_min: how long a rank waits for the others.
        notes: a folder for the traceback.
    """
    wrongly_placed = describe_misplacement(error)
    if wrongly_placed is not None:
        return UserError(wrongly_placed)
    if isinstance(error, torch.AcceleratorError):
        return LostRankError(f"The GPU of {ranks.place} failed ({_first_line(error)}).")
    is_late = any(word in str(error) for word in LATE)
    is_gone = any(word in str(error) for word in GONE)
    lost_contact = isinstance(error, RuntimeError) and (is_late or is_gone)
    if not lost_contact and not isinstance(error, dist.DistError):
        file = notes / f"traceback-rank-{ranks.rank}.txt"
        told = f"R{ranks.place[1:]} raised {type(error).__name__}: {error}."
        try:
            file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        except OSError:  # of a full disk, say: the error itself matters more
            return UserError(told)
        return UserError(f"{told} The traceback is in {file}.")
    if not is_late:
        # The others wait for this rank too, which is on time.
        _ask_store(lambda: _publish_wait(ranks))
        time.sleep(SECONDS_TO_BE_NAMED)
        return LostRankError(f"A rank is gone, says {ranks.place} ({_first_line(error)}).")
    late = _ask_store(lambda: _find_late_ranks(ranks)) or "another rank"
    return LateRankError(
        f"{late[0].upper()}{late[1:]} did not answer for {timeout_min:g} minutes (launch.timeout_min) while the others waited. Look there "
        "for a process that hangs or a machine that is overloaded; the same command resumes from the last checkpoint."
    )


def _find_late_ranks(ranks: Ranks) -> str:
    """The names of those that have not said in time that they waited, for people."""
    store = _publish_wait(ranks)
    time.sleep(SECONDS_FOR_NOTES)
    late = [rank for rank in range(ranks.world_size) if not store.check([f"waited-{rank}"])]
    keys = [f"name-{rank}" for rank in late[:MOST_NAMED]]
    text = ", ".join(store.get(key).decode() for key in keys if store.check([key]))
    if len(late) > MOST_NAMED:
        text += f" and {len(late) - MOST_NAMED} others"
    return text


def _publish_wait(ranks: Ranks) -> Store:
    store = _open_store()
    store.set(f"waited-{ranks.rank}", "1")
    return store


def _open_store() -> Store:
    return PrefixStore("distbranch", _get_default_store())


def _ask_store(ask: Callable[[], T]) -> T | None:
    """The answer of the store; None if there is none soon."""
    until = time.monotonic() + SECONDS_FOR_STORE
    try:
        return wait_for_result(ask, lambda: time.monotonic() > until)
    except (NotAwaitedError, RuntimeError, dist.DistError):
        return None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return (
        text.splitlines()[0].split(" This is typically")[0].rstrip(".")
    )  # PyTorch adds advice of its own
