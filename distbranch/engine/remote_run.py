"""A run directory at a URL (s3, gs): whoever works on the run has a copy on a disk, and what is at the URL counts.

An object store can neither append, rename nor lock, so the program works on the copy as on any folder: it is made equal to the URL
before a start, and what changed is uploaded after every checkpoint in the order in which it was written.
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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
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
OF_THIS_MACHINE = ("ray", "stop")  # never uploaded
FILES_AT_A_TIME = 8  # a checkpoint is a few large files and many small ones, each of which waits for the store
CHUNK_BYTES = 8 * 2**20  # in memory for each of them
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # a write that fails for another reason has the name of its file
ADVICE_BEFORE = (
    "Check that the bucket exists, that this machine reaches it and that its credentials allow to read, write and delete there, "
    "or give another run.directory."
)
ADVICE_LATER = "What was uploaded before is intact{newest}: mend the storage, then run the same command again."
Stamp = tuple[int, int]  # bytes, time of the last change in ns


class RemoteRun:
    """The run directory at a URL and a copy of it; of a run on a disk, which needs none, most methods have no effect.

    Args:
        url: of the run directory; None for one on a disk.
        copy: the folder on this machine.
    """

    def __init__(self, url: str | None, copy: Path) -> None:
        self.url, self.copy = url, copy
        self._token = secrets.token_hex(8)

    @classmethod
    def from_config(cls, config: Config) -> "RemoteRun":
        """The one of a run that is to be trained."""
        return cls(config.run_url, config.run_directory)

    def check_access(self) -> None:
        """Write, read back and delete a small object.

        Raises:
            UserError: which of these cannot be done, and what the store says.
        """
        if self.url is None:
            return
        word = secrets.token_hex(8).encode()
        with self._explain_failure("written", ADVICE_BEFORE):
            store, base = _open_store(self.url, attempts=ATTEMPTS_BEFORE)
            place = f"{base}/.seen-{word.decode()}"
            with store.open_output_stream(place) as sink:
                sink.write(word)
        with self._explain_failure("read", ADVICE_BEFORE), store.open_input_stream(place) as source:
            found = source.read()
            if found != word:
                raise OSError(f"{word!r} was written, and {found!r} read back")
        with self._explain_failure("cleared", ADVICE_BEFORE):
            store.delete_file(place)

    def exists(self) -> bool:
        """Whether there is anything at the URL."""
        with self._explain_failure("read", ADVICE_BEFORE):
            return bool(self.remote_files())

    def download(self) -> None:
        """Make the copy equal to the URL; what a killed run could not upload is dropped.

        Raises:
            UserError: the URL cannot be read or holds something else than a run, or the copy cannot be written.
        """
        if self.url is None:
            return
        with self._explain_failure("read", ADVICE_BEFORE):
            remote = self.remote_files()
            if remote and "config.yaml" not in remote:
                raise UserError(f"{self.url} holds other files and no run. Give another run.name or run.directory.")
            self._download_changed(remote)
            for name in self.local_files().keys() - remote.keys():
                (self.copy / name).unlink()
            for folder in self.copy.glob("checkpoints/*"):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def download_to_read(self) -> None:
        """Download what changed, but no tensors of checkpoints if there is a model; what a reader added to the copy stays.

        Raises:
            UserError: there is no run at the URL, it cannot be read, or the copy cannot be written.
        """
        with self._explain_failure("read", ADVICE_BEFORE):
            remote = self.remote_files()
            if "config.yaml" not in remote:
                raise UserError(f"There is no run at {self.url}. Give run.directory/run.name of a run that was begun.")
            gone = self._read_synced().keys() - remote.keys()
            self._download_changed({name: info for name, info in remote.items() if _is_read(name, remote)})
            for name in gone:
                (self.copy / name).unlink(missing_ok=True)

    def publish_owner(self) -> None:
        """Write that this process trains the run from now on; whoever did so before ends at its next `upload`."""
        if self.url is None:
            return
        owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "token": self._token,
        }
        with (
            self._explain_failure("written", ADVICE_BEFORE),
            self._store.open_output_stream(self._place(OWNER)) as sink,
        ):
            sink.write(json.dumps(owner).encode())

    def describe_owner(self) -> str:
        """Who published itself as the owner last, for people; empty if nobody did."""
        if self.url is None:
            return ""
        with self._explain_failure("read", ADVICE_BEFORE):
            owner = self._read_owner()
        return f"process {owner['process']} on {owner['host']}, begun {owner['since']}" if owner else ""

    def upload(self) -> None:
        """Upload what changed in the copy, and delete at the URL the checkpoints that the copy dropped.

        Raises:
            UserError: another process owns the run, or the store failed; what was uploaded before is intact.
        """
        if self.url is None:
            return
        local = self.local_files()
        synced = self._read_synced()
        with self._explain_failure("written", ADVICE_LATER.format(newest=_newest(synced))):
            self._refuse_other_owner()

            # Whatever comes later in the order counts on all that comes before it.
            changed = [name for name, stamp in local.items() if name not in synced or synced[name][1] != stamp]
            for _, names in groupby(sorted(changed, key=_order), key=_order):
                self._upload_all(names)

            dropped = filter(_is_of_checkpoint, synced.keys() - local.keys())
            for folder in sorted({PurePosixPath(name).parent for name in dropped}):
                if not (self.copy / folder).exists():
                    self._store.delete_dir(self._place(str(folder)))

            remote = self.remote_files()
        self._write_synced({name: (_stamp(remote[name]), stamp) for name, stamp in local.items() if name in remote})

    def upload_files(self, *names: str) -> None:
        """Upload some files of a run that another process may be training."""
        if self.url is not None:
            with self._explain_failure("written", ADVICE_BEFORE):
                self._upload_all(names)

    # ---- the store

    @cached_property
    def _opened(self) -> tuple[arrow.FileSystem, str]:
        assert self.url is not None
        return _open_store(self.url, attempts=ATTEMPTS_LATER)

    @property
    def _store(self) -> arrow.FileSystem:
        return self._opened[0]

    def _place(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def remote_files(self) -> dict[str, arrow.FileInfo]:
        """The run's files at the URL, by their place in the run directory."""
        base = self._place("")
        selected = arrow.FileSelector(base.rstrip("/"), recursive=True, allow_not_found=True)
        files = {}
        for info in self._store.get_file_info(selected):
            name = info.path.removeprefix(base)
            if info.type == arrow.FileType.File and not _is_hidden(name):
                files[name] = info
        return files

    def _download_changed(self, remote: Mapping[str, arrow.FileInfo]) -> None:
        """Download these files where the copy does not have them as they are."""
        self.copy.mkdir(parents=True, exist_ok=True)
        synced = self._read_synced()
        changed = []
        for name, info in remote.items():
            file = self.copy / name
            if not file.is_file() or synced.get(name) != (_stamp(info), _stamp_of(file)):
                changed.append(name)

        with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
            arrived = pool.map(lambda name: self._download_file(name, remote[name].size), changed)
            for name, stamp in zip(changed, arrived, strict=True):
                synced[name] = (_stamp(remote[name]), stamp)
        self._write_synced({name: stamps for name, stamps in synced.items() if name in remote})

    def _download_file(self, name: str, size: int) -> Stamp:
        """Replace a file of the copy in one step."""
        file = self.copy / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        with self._store.open_input_stream(self._place(name)) as source, aside.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
        if aside.stat().st_size != size:
            aside.unlink()
            raise OSError(f"{name} arrived with another size than it has there")
        aside.replace(file)
        return _stamp_of(file)

    def _upload_all(self, names: Iterable[str]) -> None:
        """Upload files that need no order, several at a time; the first failure is raised when all have ended."""
        with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
            list(pool.map(self._upload_file, names))

    def _upload_file(self, name: str) -> None:
        # Not `pyarrow.fs.copy_files`: it never closes what it writes, and an object that the store refuses at the end is taken for sent.
        with (self.copy / name).open("rb") as source, self._store.open_output_stream(self._place(name)) as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)

    def _read_owner(self) -> dict[str, Any]:
        try:
            with self._store.open_input_stream(self._place(OWNER)) as source:
                owner: dict[str, Any] = json.loads(source.read())
        except FileNotFoundError:
            return {}
        return owner

    def _refuse_other_owner(self) -> None:
        owner = self._read_owner()
        if owner and owner["token"] != self._token:
            raise UserError(
                f"The run {self.url} was taken over by process {owner['process']} on {owner['host']} at {owner['since']}, which "
                "resumes from the newest checkpoint there; this process ends."
            )

    @contextmanager
    def _explain_failure(self, done: str, advice: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ArrowException) as error:
            if isinstance(error, OSError) and (error.filename or error.errno in DISK_FULL):
                raise UserError(
                    f"The copy {self.copy} of the run {self.url} cannot be read or written ({error.strerror}). Make room there, or set "
                    "XDG_CACHE_HOME to a folder with room."
                ) from None
            raise UserError(f"The run directory {self.url} cannot be {done} ({_reason(error)}). {advice}") from None

    # ---- the copy

    def local_files(self) -> dict[str, Stamp]:
        """The files in the copy that belong to the run and not to this machine."""
        files = {}
        for path in self.copy.rglob("*"):
            name = path.relative_to(self.copy).as_posix()
            if path.is_file() and not _is_hidden(name) and name.split("/")[0] not in OF_THIS_MACHINE:
                files[name] = _stamp_of(path)
        return files

    def _read_synced(self) -> dict[str, tuple[Stamp, Stamp]]:
        """The stamps of every file at the URL and in the copy when they were last equal."""
        try:
            found = json.loads((self.copy / SYNCED).read_text())
            return {name: (tuple(remote), tuple(local)) for name, (remote, local) in found.items()}
        except (OSError, ValueError):
            return {}

    def _write_synced(self, stamps: Mapping[str, tuple[Stamp, Stamp]]) -> None:
        write_json(self.copy / SYNCED, stamps)


def download_run(url: str) -> Path:
    """The run directory at `url` as a folder of this machine, for commands that only read it.

    Raises:
        UserError: there is no run at the URL, it cannot be read, or the copy cannot be written.
    """
    folder = copy_of(url, "runs") / PurePosixPath(url.partition("?")[0]).name
    RemoteRun(url, folder).download_to_read()
    return folder


def _open_store(url: str, *, attempts: int) -> tuple[arrow.FileSystem, str]:
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


def _order(name: str) -> int:
    """Lines before the checkpoint that counts on them, its manifest after its tensors, and the result when all else is there."""
    if name == "result.json":
        return 3
    if name.endswith(f"/{MANIFEST}"):
        return 2
    return int(_is_of_checkpoint(name))


def _is_read(name: str, remote: Mapping[str, Any]) -> bool:
    """Whether a reader needs a file: of checkpoints all that says what they are, and the newest one's tensors if it is the model."""
    if not _is_of_checkpoint(name) or PurePosixPath(name).name in (MANIFEST, STATE):
        return True
    newest = max((other for other in remote if other.endswith(f"/{MANIFEST}")), default="")
    return "model/model.json" not in remote and PurePosixPath(name).parent == PurePosixPath(newest).parent


def _newest(synced: Mapping[str, Any]) -> str:
    whole = [PurePosixPath(name).parent.name for name in synced if name.endswith(f"/{MANIFEST}")]
    return f" (the newest checkpoint there is {max(whole)})" if whole else ""


def _stamp(info: arrow.FileInfo) -> Stamp:
    return info.size, info.mtime_ns


def _stamp_of(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
