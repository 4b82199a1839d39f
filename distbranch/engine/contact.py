"""Who was lost: a rank that is gone or late leaves the others with an error that names nobody.

Every rank leaves its name in the store of the process group, and one that waits in vain says so there: who has not is late.
"""

import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from distbranch.engine.distributed import Ranks
from distbranch.engine.process_group import misplacement
from distbranch.errors import UserError

SECONDS_FOR_NOTES = 1.5  # after which all ranks that wait in vain have said so
SECONDS_TO_BE_NAMED = 4  # a rank that only lost a connection leaves the word to those who know more
SECONDS_FOR_STORE = 5
LATE = ("Timed out", "timed out", "timeout caused pair closure")
GONE = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "ncclRemoteError")
MOST_NAMED = 5


class LostRankError(UserError):
    """Another rank is gone. The run itself is in order: started anew, the ranks go on from the last checkpoint."""


class LateRankError(UserError):
    """A rank did not come to where the others waited for it."""


def leave_name(ranks: Ranks) -> None:
    """Tell the store of the process group where this rank runs."""
    if ranks.world_size > 1:
        _store().set(f"name-{ranks.rank}", ranks.place)


def explain(error: Exception, ranks: Ranks, *, timeout_min: float, notes: Path) -> Exception:
    """What to raise on this rank of several for an error that is not for people: with the rank's name, and what to do.

    Args:
        error: what was raised.
        ranks: this process among the others.
        timeout_min: how long a rank waits for the others.
        notes: a folder for the traceback.
    """
    wrongly_placed = misplacement(error)
    if wrongly_placed is not None:
        return UserError(wrongly_placed)
    if isinstance(error, torch.AcceleratorError):
        return LostRankError(f"The GPU of {ranks.place} failed ({_first_line(error)}).")
    lost_contact = isinstance(error, RuntimeError) and any(word in str(error) for word in (*LATE, *GONE))
    if not lost_contact and not isinstance(error, dist.DistError):
        return _own_fault(error, ranks, notes)
    if not any(word in str(error) for word in LATE):
        _in_time(lambda: _note(ranks))
        time.sleep(SECONDS_TO_BE_NAMED)
        return LostRankError(f"A rank is gone, says {ranks.place} ({_first_line(error)}).")
    late = _in_time(lambda: _late_ranks(ranks)) or "Another rank"
    return LateRankError(
        f"{late} did not answer for {timeout_min:g} minutes (launch.timeout_min) while the others waited. Look there for a "
        "process that hangs or a machine that is overloaded; the same command goes on from the last checkpoint."
    )


def _own_fault(error: Exception, ranks: Ranks, notes: Path) -> UserError:
    file = notes / f"traceback-rank-{ranks.rank}.txt"
    try:
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        where = f" The traceback is in {file}."
    except OSError:
        where = ""
    return UserError(f"{ranks.place[0].upper()}{ranks.place[1:]} raised {type(error).__name__}: {error}.{where}")


def _late_ranks(ranks: Ranks) -> str:
    store = _note(ranks)
    time.sleep(SECONDS_FOR_NOTES)
    late = [rank for rank in range(ranks.world_size) if not store.check([f"waited-{rank}"])]
    names = [store.get(f"name-{rank}").decode() for rank in late[:MOST_NAMED] if store.check([f"name-{rank}"])]
    text = ", ".join(names) + (f" and {len(late) - MOST_NAMED} others" if len(late) > MOST_NAMED else "")
    return text[:1].upper() + text[1:]


def _note(ranks: Ranks) -> Store:
    store = _store()
    store.set(f"waited-{ranks.rank}", "1")
    return store


def _store() -> Store:
    return PrefixStore("distbranch", _get_default_store())


def _in_time(ask: Callable[[], str | Store]) -> str:
    """The answer of the store as text; empty if there is none soon, for its process may be the one that is lost."""
    answers: list[str] = []

    def work() -> None:
        try:
            answers.append(str(ask()))
        except (RuntimeError, dist.DistError):
            return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS_FOR_STORE)
    return answers[0] if answers else ""


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(" This is typically")[0].rstrip(".")
