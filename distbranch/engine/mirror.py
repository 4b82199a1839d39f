"""A run directory at a URL (s3, gs): whoever works on the run has a copy on a disk, and what is at the URL counts.

An object store can neither append, rename nor lock, so the program works on the copy as on any folder: it is made equal to the URL
before a start, and what changed is sent after every checkpoint in the order in which it was written.
pyarrow reaches the store, unlike the shards of a data set, which fsspec fetches: both kinds of store come with it, without a
driver to install on every node, and its failures say what the store said.
"""

import errno
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow import ArrowException
from pyarrow import fs as arrow

from distbranch.config import Config
from distbranch.config.paths import copy_of
from distbranch.engine.checkpoint import MANIFEST, STATE
from distbranch.engine.run_directory import write_json
from distbranch.errors import UserError

# A store that hangs is told of within seconds before a run, and within a minute in the middle of it.
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER, ATTEMPTS_BEFORE, ATTEMPTS_LATER = 3, 10, 1, 3
OWNER = ".owner.json"  # who trains the run; only at the URL
SYNCED = ".synced.json"  # stamps of the files when the copy and the URL were last equal; only in the copy
OF_THIS_MACHINE = ("ray", "stop")  # never sent
PIECE = 8 * 2**20  # bytes
ADVICE_BEFORE = (
    "Check that the bucket exists, that this machine reaches it and that its credentials allow to read, write and delete there, "
    "or give another run.directory."
)
ADVICE_LATER = "What was sent before is intact{newest}: mend the storage, then run the same command again."
Stamp = tuple[int, int]  # bytes, time of the last change in ns


class Mirror:
    """The run directory at a URL and a copy of it; of a run on a disk, which needs none, most methods do nothing.

    Args:
        url: of the run directory; None for one on a disk.
        copy: the folder on this machine.
    """

    def __init__(self, url: str | None, copy: Path) -> None:
        self.url, self.copy = url, copy
        self._token = secrets.token_hex(8)

    @classmethod
    def of(cls, config: Config) -> "Mirror":
        """The one of a run that is to be trained."""
        return cls(config.run_url, config.run_directory)

    def check(self) -> None:
        """Write, read back and delete a small object.

        Raises:
            UserError: which of these cannot be done, and what the store says.
        """
        if self.url is None:
            return
        word = secrets.token_hex(8).encode()
        with self._explained("written", ADVICE_BEFORE):
            store, base = _open(self.url, attempts=ATTEMPTS_BEFORE)
            place = f"{base}/.seen-{word.decode()}"
            with store.open_output_stream(place) as sink:
                sink.write(word)
        with self._explained("read", ADVICE_BEFORE), store.open_input_stream(place) as source:
            found = source.read()
            if found != word:
                raise OSError(f"{word!r} was written, and {found!r} read back")
        with self._explained("cleared", ADVICE_BEFORE):
            store.delete_file(place)

    def exists(self) -> bool:
        """Whether there is anything at the URL."""
        with self._explained("read", ADVICE_BEFORE):
            return bool(self._there())

    def bring(self) -> None:
        """Make the copy equal to the URL; what a killed run did not come to send is dropped.

        Raises:
            UserError: the URL cannot be read or holds something else than a run, or the copy cannot be written.
        """
        if self.url is None:
            return
        with self._explained("read", ADVICE_BEFORE):
            there = self._there()
            if there and "config.yaml" not in there:
                raise UserError(f"{self.url} holds other files and no run. Give another run.name or run.directory.")
            self._fetch(there)
            for name in self._here().keys() - there.keys():
                (self.copy / name).unlink()
            for folder in self.copy.glob("checkpoints/*"):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def bring_to_read(self) -> None:
        """Bring what changed, but no tensors of checkpoints if there is a model; what a reader added to the copy stays.

        Raises:
            UserError: there is no run at the URL, it cannot be read, or the copy cannot be written.
        """
        with self._explained("read", ADVICE_BEFORE):
            there = self._there()
            if "config.yaml" not in there:
                raise UserError(f"There is no run at {self.url}. Give run.directory/run.name of a run that was begun.")
            gone = self._known().keys() - there.keys()
            self._fetch({name: info for name, info in there.items() if _is_read(name, there)})
            for name in gone:
                (self.copy / name).unlink(missing_ok=True)

    def take(self) -> None:
        """Leave word that this process trains the run from now on; whoever did so before ends at its next `send`."""
        if self.url is None:
            return
        note = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        with self._explained("written", ADVICE_BEFORE), self._store.open_output_stream(self._place(OWNER)) as sink:
            sink.write(json.dumps({**note, "token": self._token}).encode())

    def owner(self) -> str:
        """Who took the run last, for people; empty if nobody did."""
        if self.url is None:
            return ""
        with self._explained("read", ADVICE_BEFORE):
            note = self._note()
        return f"process {note['process']} on {note['host']}, begun {note['since']}" if note else ""

    def send(self) -> None:
        """Send what changed in the copy, and drop at the URL the checkpoints that the copy dropped.

        Raises:
            UserError: another process has taken the run, or the store failed; what was sent before is intact.
        """
        if self.url is None:
            return
        here, known = self._here(), self._known()
        with self._explained("written", ADVICE_LATER.format(newest=_newest(known))):
            self._refuse_if_taken()
            for name in sorted((name for name in here if known.get(name, ((), ()))[1] != here[name]), key=_order):
                self._put(name)
            folders = {PurePosixPath(name).parent for name in known.keys() - here.keys() if _is_of_checkpoint(name)}
            for folder in sorted(folders):
                if not (self.copy / folder).exists():
                    self._store.delete_dir(self._place(str(folder)))
            there = self._there()
        self._remember({name: (_stamp(there[name]), stamp) for name, stamp in here.items() if name in there})

    def send_files(self, *names: str) -> None:
        """Send some files of a run that another process may be training."""
        if self.url is not None:
            with self._explained("written", ADVICE_BEFORE):
                for name in names:
                    self._put(name)

    # ---- the store

    @cached_property
    def _opened(self) -> tuple[arrow.FileSystem, str]:
        assert self.url is not None
        return _open(self.url, attempts=ATTEMPTS_LATER)

    @property
    def _store(self) -> arrow.FileSystem:
        return self._opened[0]

    def _place(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def _there(self) -> dict[str, arrow.FileInfo]:
        """The run's files at the URL, by their place in the run directory."""
        base = self._opened[1]
        found = self._store.get_file_info(arrow.FileSelector(base, recursive=True, allow_not_found=True))
        files = {info.path.removeprefix(f"{base}/"): info for info in found if info.type == arrow.FileType.File}
        return {name: info for name, info in files.items() if not _is_hidden(name)}

    def _fetch(self, there: Mapping[str, arrow.FileInfo]) -> None:
        """Bring these files where the copy does not have them as they are."""
        self.copy.mkdir(parents=True, exist_ok=True)
        known = self._known()
        for name, info in there.items():
            file = self.copy / name
            if not file.is_file() or known.get(name) != (_stamp(info), _stamp_of(file)):
                self._get(name, info.size)
                known[name] = (_stamp(info), _stamp_of(file))
        self._remember({name: stamps for name, stamps in known.items() if name in there})

    def _get(self, name: str, size: int) -> None:
        file = self.copy / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        with self._store.open_input_stream(self._place(name)) as source, aside.open("wb") as sink:
            shutil.copyfileobj(source, sink, PIECE)
        if aside.stat().st_size != size:
            aside.unlink()
            raise OSError(f"{name} arrived with another size than it has there")
        aside.replace(file)

    def _put(self, name: str) -> None:
        with (self.copy / name).open("rb") as source, self._store.open_output_stream(self._place(name)) as sink:
            shutil.copyfileobj(source, sink, PIECE)

    def _note(self) -> dict[str, Any]:
        try:
            with self._store.open_input_stream(self._place(OWNER)) as source:
                note: dict[str, Any] = json.loads(source.read())
        except FileNotFoundError:
            return {}
        return note

    def _refuse_if_taken(self) -> None:
        note = self._note()
        if note and note["token"] != self._token:
            raise UserError(
                f"The run {self.url} was taken over by process {note['process']} on {note['host']} at {note['since']}, which "
                "goes on from the newest checkpoint there; this process ends."
            )

    @contextmanager
    def _explained(self, done: str, advice: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException) as error:
            if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise UserError(
                    f"The copy {self.copy} of the run {self.url} cannot be read or written ({error.strerror}). Make room there, or set "
                    "XDG_CACHE_HOME to a folder with room."
                ) from None
            raise UserError(f"The run directory {self.url} cannot be {done} ({_reason(error)}). {advice}") from None

    # ---- the copy

    def _here(self) -> dict[str, Stamp]:
        """The files in the copy that belong to the run and not to this machine."""
        files = {}
        for path in self.copy.rglob("*"):
            name = path.relative_to(self.copy).as_posix()
            if path.is_file() and not _is_hidden(name) and name.split("/")[0] not in OF_THIS_MACHINE:
                files[name] = _stamp_of(path)
        return files

    def _known(self) -> dict[str, tuple[Stamp, Stamp]]:
        """The stamps of every file at the URL and in the copy when they were last equal."""
        try:
            found = json.loads((self.copy / SYNCED).read_text())
            return {name: (tuple(there), tuple(here)) for name, (there, here) in found.items()}
        except (OSError, ValueError):
            return {}

    def _remember(self, stamps: Mapping[str, tuple[Stamp, Stamp]]) -> None:
        write_json(self.copy / SYNCED, stamps)


def copy_to_read(url: str) -> Path:
    """The run directory at `url` as a folder of this machine, for commands that only read it.

    Raises:
        UserError: there is no run at the URL, it cannot be read, or the copy cannot be written.
    """
    folder = copy_of(url, "runs") / PurePosixPath(url.partition("?")[0]).name
    Mirror(url, folder).bring_to_read()
    return folder


def _open(url: str, *, attempts: int) -> tuple[arrow.FileSystem, str]:
    """The store and the place in it; pyarrow's own store would try for minutes."""
    if url.startswith("gs:") and "retry_limit_seconds=" not in url:
        url += f"{'&' if '?' in url else '?'}retry_limit_seconds={SECONDS_TO_ANSWER * attempts}"
    store, base = arrow.FileSystem.from_uri(url)
    if isinstance(store, arrow.S3FileSystem):
        make, (options,) = store.__reduce__()
        store = make(
            {
                **options,
                "connect_timeout": SECONDS_TO_CONNECT,
                "request_timeout": SECONDS_TO_ANSWER,
                "retry_strategy": arrow.AwsStandardS3RetryStrategy(max_attempts=attempts),
                "allow_delayed_open": True,  # a small object is one request
            }
        )
    return store, base.rstrip("/")


def _reason(error: Exception) -> str:
    """What the store said, without what only its makers understand."""
    text = " ".join(str(error).split())
    said = re.search(r"AWS Error (\w+) during \w+ operation: ?(.*?)(?:; Details:.*)?(?: \(Request ID.*)?$", text)
    return (f"{said[1]}: {said[2]}" if said else text)[:250].rstrip(".: ")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_of_checkpoint(name: str) -> bool:
    return name.startswith("checkpoints/")


def _order(name: str) -> tuple[int, str]:
    """Lines before the checkpoint that counts on them, its manifest last, and the result when all else is there."""
    if name == "result.json":
        return 3, name
    return (2 if name.endswith(f"/{MANIFEST}") else 1 if _is_of_checkpoint(name) else 0), name


def _is_read(name: str, there: Mapping[str, Any]) -> bool:
    if not _is_of_checkpoint(name) or PurePosixPath(name).name in (MANIFEST, STATE):
        return True
    newest = max((other for other in there if other.endswith(f"/{MANIFEST}")), default="")
    return "model/model.json" not in there and PurePosixPath(name).parent == PurePosixPath(newest).parent


def _newest(known: Mapping[str, Any]) -> str:
    whole = [PurePosixPath(name).parent.name for name in known if name.endswith(f"/{MANIFEST}")]
    return f" (the newest checkpoint there is {max(whole)})" if whole else ""


def _stamp(info: arrow.FileInfo) -> Stamp:
    return info.size, info.mtime_ns


def _stamp_of(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
