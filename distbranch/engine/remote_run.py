"""A run directory at a URL (s3, gs): whoever works on the run has a copy on a disk, and what is at the URL counts.

An object store can neither append, rename nor lock, so the program works on the copy as on any folder: it is made equal to the URL
before a start, and what changed is uploaded after every checkpoint in the order in which it was written.
pyarrow reaches the store, unlike the shards of a data set, which fsspec fetches: both kinds of store come with it, without a
driver to install on every node, and its failures say what the store said.
"""

import errno
import json
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator
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
from distbranch.engine.run_directory import SCOUT, RunDirectory
from distbranch.errors import UserError

logger = logging.getLogger("distbranch")

# A store that hangs is told of within seconds before a run, and within a minute in the middle of it.
SECONDS_TO_CONNECT, SECONDS_TO_ANSWER, ATTEMPTS_BEFORE, ATTEMPTS_LATER = 3, 10, 1, 3
OWNER = ".owner.json"  # who trains the run; only at the URL
# Never uploaded; files of wandb change and vanish while it works.
OF_THIS_MACHINE = ("ray", "stop", "wandb")
FILES_AT_A_TIME = (
    8  # a checkpoint is a few large files and many small ones, each of which waits for the store
)
CHUNK_BYTES = 8 * 2**20  # in memory for each of them
DISK_FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
)  # a write that fails for another reason has the name of its file
ADVICE_BEFORE = (
    "Check that the bucket exists, that this machine reaches it and that its credentials allow to read, write and delete there, "
    "or give another run.directory."
)
ADVICE_LATER = (
    "What was uploaded before is intact{newest}: mend the storage, then run the same command again."
)
# Bytes and the time of the last change in ns: a file of the copy has the time of the object that it is equal to.
Stamps = dict[str, tuple[int, int]]


class RemoteRun:
    """The run directory at a URL and a copy of it; of a run on a disk, which needs none, most methods have no effect.

    Args:
        url: of the run directory; None for one on a disk.
        copy: the folder on this machine.
    """

    def __init__(self, url: str | None, copy: Path) -> None:
        self.url, self.copy = url, copy
        self._token = secrets.token_hex(8)
        self._newest = ""  # checkpoint that was seen there

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
        word = secrets.token_bytes(8)
        with self._explain_failure("written", ADVICE_BEFORE):
            store = _open_store(self.url, attempts=ATTEMPTS_BEFORE)
            name = f".seen-{word.hex()}"
            with store.open_output_stream(name) as sink:
                sink.write(word)
        with self._explain_failure("read", ADVICE_BEFORE), store.open_input_stream(name) as source:
            if source.read() != word:
                raise OSError("it does not give back what was written")
        with self._explain_failure("cleared", ADVICE_BEFORE):
            store.delete_file(name)

    def exists(self) -> bool:
        """Whether there is anything at the URL."""
        with self._explain_failure("read", ADVICE_BEFORE):
            return bool(self._list_remote())

    def download(self, *, to_read: bool = False) -> None:
        """Make the copy equal to the URL; what a killed run could not upload is dropped.

        Args:
            to_read: no tensors of checkpoints if there is a model; and what a reader added to the copy stays.

        Raises:
            UserError: the URL cannot be read or holds something else than a run, or the copy cannot be written.
        """
        if self.url is None:
            return
        with self._explain_failure("read", ADVICE_BEFORE):
            remote = self._list_remote()
            if "config.yaml" not in remote and (remote or to_read):
                raise UserError(
                    f"There is no run at {self.url}, and {len(remote)} other files. Give run.directory and run.name of a run that was "
                    "begun, or of a new one."
                )
            half_sent = _find_half_sent(remote)
            remote = {name: stamp for name, stamp in remote.items() if name not in half_sent}
            if half_sent and not to_read:  # a reader may look while one is being sent
                logger.warning(
                    "%s has a checkpoint that was not sent whole; it is left out.", self.url
                )
            self.copy.mkdir(parents=True, exist_ok=True)
            for name in self._list_copy().keys() - remote.keys():
                if not to_read or _is_of_run(
                    name
                ):  # of a run that was begun anew there the old result would be shown
                    (self.copy / name).unlink(missing_ok=True)
            for folder in self.copy.glob("**/checkpoints/*"):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            local = self._list_copy()
            changed = [name for name, stamp in remote.items() if local.get(name) != stamp]
            if to_read:
                changed = [name for name in changed if _is_read(name, remote)]
            _call_together(lambda name: self._download_file(name, *remote[name]), changed)

    def publish_owner(self) -> None:
        """Write that this process trains the run from now on; whoever did so before ends at its next `upload`."""
        if self.url is None:
            return
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": since,
            "token": self._token,
        }
        with (
            self._explain_failure("written", ADVICE_BEFORE),
            self._store.open_output_stream(OWNER) as sink,
        ):
            sink.write(json.dumps(owner).encode())

    def describe_owner(self) -> str:
        """Who published itself as the owner last, for people; empty if nobody did."""
        if self.url is None:
            return ""
        with self._explain_failure("read", ADVICE_BEFORE):
            owner = self._read_owner()
        return (
            f"process {owner['process']} on {owner['host']}, begun {owner['since']}"
            if owner
            else ""
        )

    def upload(self) -> None:
        """Upload what changed in the copy, and delete at the URL the checkpoints that the copy dropped.

        Raises:
            UserError: another process owns the run, or the store failed; what was uploaded before is intact.
        """
        if self.url is None:
            return
        with self._explain_failure("written", ADVICE_LATER):
            owner = self._read_owner()
            if owner and owner["token"] != self._token:
                raise UserError(
                    f"The run {self.url} was taken over by process {owner['process']} on {owner['host']} at {owner['since']}, which "
                    "resumes from the newest checkpoint there; this process ends."
                )

            # Whatever comes later in the order counts on all that comes before it.
            local, remote = self._list_copy(), self._list_remote()
            changed = [name for name, stamp in local.items() if remote.get(name) != stamp]
            for _, names in groupby(sorted(changed, key=_get_upload_order), key=_get_upload_order):
                _call_together(self._upload_file, names)

            for folder in _list_checkpoint_folders(remote) - _list_checkpoint_folders(local):
                self._store.delete_dir(folder)

            # Unless a file was changed meanwhile, it is that of the store now.
            for name, (_, changed_at) in self._list_remote().items():
                file = self.copy / name
                if name in local and _stamp_of(file) == local[name]:
                    os.utime(file, ns=(changed_at, changed_at))

    def upload_files(self, *names: str) -> None:
        """Make files and folders at the URL what the copy has of them, of a run that another process may be training."""
        if self.url is None:
            return

        def is_among(name: str) -> bool:
            return any(PurePosixPath(name).is_relative_to(one) for one in names)

        with self._explain_failure("written", ADVICE_BEFORE):
            local, remote = self._list_copy(), self._list_remote()
            changed = [name for name, stamp in local.items() if remote.get(name) != stamp]
            _call_together(self._upload_file, filter(is_among, changed))
            _call_together(self._store.delete_file, filter(is_among, remote.keys() - local.keys()))

    # ---- the store

    @cached_property
    def _store(self) -> arrow.FileSystem:
        assert self.url is not None
        return _open_store(self.url, attempts=ATTEMPTS_LATER)

    def _list_remote(self) -> Stamps:
        """The run's files at the URL, by their place in the run directory."""
        selected = arrow.FileSelector("", recursive=True, allow_not_found=True)
        stamps = {}
        for info in self._store.get_file_info(selected):
            if info.type == arrow.FileType.File and not _is_hidden(info.path):
                stamps[info.path] = (info.size, info.mtime_ns)
        self._newest = _find_newest(stamps)
        return stamps

    def _download_file(self, name: str, size: int, changed_at: int) -> None:
        """Replace a file of the copy in one step."""
        file = self.copy / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        with self._store.open_input_stream(name) as source, aside.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
        if aside.stat().st_size != size:
            aside.unlink()
            raise OSError(f"{name} arrived with another size than it has there")
        os.utime(aside, ns=(changed_at, changed_at))
        aside.replace(file)

    def _upload_file(self, name: str) -> None:
        # Not `pyarrow.fs.copy_files`: it never closes what it writes, and an object that the store refuses at the end is taken for sent.
        with (self.copy / name).open("rb") as source, self._store.open_output_stream(name) as sink:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)

    def _read_owner(self) -> dict[str, Any]:
        try:
            with self._store.open_input_stream(OWNER) as source:
                owner: dict[str, Any] = json.loads(source.read())
        except FileNotFoundError:
            return {}
        return owner

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
            advice = advice.format(newest=self._newest)
            raise UserError(
                f"The run directory {self.url} cannot be {done} ({_extract_reason(error)}). {advice}"
            ) from None

    # ---- the copy

    def _list_copy(self) -> Stamps:
        """The files in the copy that belong to the run and not to this machine."""
        stamps = {}
        for path in self.copy.rglob("*"):
            name = path.relative_to(self.copy).as_posix()
            if (
                path.is_file()
                and not _is_hidden(name)
                and name.split("/")[0] not in OF_THIS_MACHINE
            ):
                stamps[name] = _stamp_of(path)
        return stamps


def download_run(url: str) -> Path:
    """The run directory at `url` as a folder of this machine, for commands that only read it.

    Raises:
        UserError: there is no run at the URL, it cannot be read, or the copy cannot be written.
    """
    folder = copy_of(url, "runs") / PurePosixPath(url.partition("?")[0]).name
    RemoteRun(url, folder).download(to_read=True)
    return folder


def _call_together(work: Callable[[str], None], names: Iterable[str]) -> None:
    """Files that need no order, several at a time; the first failure is raised when all have ended."""
    with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
        list(pool.map(work, names))


def _open_store(url: str, *, attempts: int) -> arrow.FileSystem:
    """The place in the store, as a file system of its own; pyarrow's own store would try for minutes."""
    if url.startswith("gs:") and "retry_limit_seconds=" not in url:
        sign = "&" if "?" in url else "?"
        url += f"{sign}retry_limit_seconds={SECONDS_TO_ANSWER * attempts}"
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
    return arrow.SubTreeFileSystem(base, store)


def _extract_reason(error: Exception) -> str:
    """What the store said, without what only its makers understand."""
    text = " ".join(str(error).split())
    said = re.search(
        r"AWS Error (\w+) during \w+ operation: ?(.*?)(?:; Details:.*)?(?: \(Request ID.*)?$", text
    )
    return (f"{said[1]}: {said[2]}" if said else text)[:250].rstrip(".: ")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_of_checkpoint(name: str) -> bool:
    """Whether it is a file of a checkpoint, of the run or of its scout."""
    return name.removeprefix(f"{SCOUT}/").startswith("checkpoints/")


def _is_of_run(name: str) -> bool:
    """Whether training writes such a file; all else in a copy that is read a reader added: a report, an exported network."""
    own = {path.name for path in vars(RunDirectory(Path())).values()}
    return name.split("/")[0] in own and not name.endswith((".onnx", ".pt2"))


def _get_upload_order(name: str) -> int:
    """Lines before the checkpoint that counts on them, its manifest after its tensors, and the result when all else is there."""
    if PurePosixPath(name).name == "result.json":
        return 3
    if name.endswith(f"/{MANIFEST}"):
        return 2
    return int(_is_of_checkpoint(name))


def _is_read(name: str, remote: Stamps) -> bool:
    """Whether a reader needs a file: of checkpoints all that says what they are, and the newest one's tensors if it is the model."""
    if not _is_of_checkpoint(name) or PurePosixPath(name).name in (MANIFEST, STATE):
        return True
    if "model/model.json" in remote or name.startswith(f"{SCOUT}/"):
        return False
    return PurePosixPath(name).parent.name in _find_newest(remote)


def _list_checkpoint_folders(names: Iterable[str]) -> set[str]:
    return {str(PurePosixPath(name).parent) for name in names if _is_of_checkpoint(name)}


def _find_half_sent(names: Collection[str]) -> set[str]:
    """Files of checkpoints that lack their manifest, which is sent last."""
    folders = _list_checkpoint_folders(names)
    half = {folder for folder in folders if f"{folder}/{MANIFEST}" not in names}
    return {name for name in names if str(PurePosixPath(name).parent) in half}


def _find_newest(names: Iterable[str]) -> str:
    """The newest checkpoint with a manifest, for people; empty if there is none."""
    manifests = [name for name in names if name.endswith(f"/{MANIFEST}")]
    # Those of a scout count as long as the run has none of its own.
    own = [name for name in manifests if not name.startswith(f"{SCOUT}/")]
    whole = [PurePosixPath(name).parent.name for name in own or manifests]
    return f" (the newest checkpoint there is {max(whole)})" if whole else ""


def _stamp_of(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
