"""Locks between real processes, on storage with flock, without it, and on other hosts."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from flock_shims import environment_over_nfs, environment_without_flock
from small_disk import small_disk

from distbranch import locks
from distbranch.locks import LockHeldError, hold_lock, is_held

PROJECT = Path(__file__).resolve().parents[1]
HOLD = "with hold_lock(path): print('held', flush=True); sys.stdin.read()"
TRY = "with suppress(LockHeldError), hold_lock(path, patience_s=0.3): sys.exit(print('had'))\nprint('held by another')"
WAIT = """
from distbranch import locks
locks.SECONDS_FOR_ANOTHER_HOST = 0.3
try:
    with hold_lock(path):
        print("had")
except LockHeldError as error:
    print(error)
"""
KINDS = ["with flock", "over NFS", errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK]


def environment_of(kind: str | int, folder: Path) -> dict[str, str]:
    if isinstance(kind, int):
        return environment_without_flock(folder, kind)
    return environment_over_nfs(folder) if kind == "over NFS" else dict(os.environ)


def program(code: str, path: Path, *before: str) -> list[str]:
    start = f"import sys\nfrom contextlib import suppress\nfrom pathlib import Path\nsys.path.insert(0, {str(PROJECT)!r})\n"
    start += f"from distbranch.locks import LockHeldError, hold_lock, is_held\npath = Path({str(path)!r})\n"
    return [*before, sys.executable, "-c", start + code]


def run(code: str, path: Path, environment: Mapping[str, str]) -> str:
    command = program(code, path)
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


@contextmanager
def holder(
    path: Path, environment: Mapping[str, str], *before: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    command = program(HOLD, path, *before)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_excludes_others_and_falls_with_a_process_that_is_killed(
    tmp_path: Path, kind: str | int
) -> None:
    environment, path = environment_of(kind, tmp_path), tmp_path / ".lock"
    path.touch()  # as flock leaves it behind, on a node that has it
    look = "print(is_held(path))"
    assert run(look, path, environment) == "False"
    with holder(path, environment) as process:
        assert run(TRY, path, environment) == "held by another"
        assert run(look, path, environment) == "True"
        process.kill()
        process.wait()
        assert run(look, path, environment) == "False"
        assert run(TRY, path, environment) == "had"


def test_a_lock_of_a_killed_process_of_another_host_is_told_and_not_waited_for(
    tmp_path: Path,
) -> None:
    environment, path = environment_without_flock(tmp_path, errno.ENOSYS), tmp_path / ".lock"
    with holder(
        path, environment, "unshare", "--uts", "sh", "-c", 'hostname far; exec "$0" "$@"'
    ) as process:
        process.kill()
        process.wait()
    told = run(WAIT, path, environment)
    assert told.startswith(f"{path} is held by another process.")
    assert f"process {process.pid} on far" in told
    assert f"the file {path}-owner" in told
    Path(f"{path}-owner").unlink()
    assert run(TRY, path, environment) == "had"


def test_an_owner_that_left_no_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        locks.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no flock"))
    )
    (tmp_path / ".lock-owner").touch()
    with (
        pytest.raises(LockHeldError, match="left by an unknown process"),
        hold_lock(tmp_path / ".lock", patience_s=0.1),
    ):
        pass


def test_whoever_waits_for_a_lock_has_it_when_it_is_let_go(tmp_path: Path) -> None:
    environment, path = environment_without_flock(tmp_path, errno.ENOSYS), tmp_path / ".lock"
    with holder(path, environment) as process:
        threading.Timer(0.5, process.stdin.close).start()  # type: ignore[union-attr]
        assert run("with hold_lock(path): print('had')", path, environment) == "had"


def test_a_lock_in_a_folder_that_takes_no_files_is_an_error_and_not_waited_for(
    tmp_path: Path,
) -> None:
    with small_disk(tmp_path / "small", 64) as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(OSError, match="Read-only"), hold_lock(folder / ".lock"):
            pass
        assert not is_held(folder / ".lock")


@pytest.mark.parametrize("place", ["/proc/new.lock", "{}/file/new.lock", "{}/absent/new.lock"])
def test_a_lock_that_cannot_be_made_is_told_and_not_waited_for(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="new"), hold_lock(Path(place.format(tmp_path))):
        pass
