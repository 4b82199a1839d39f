"""Remote data sets: the same samples as in place, through a bounded folder that processes share."""

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flock_shims import environment_over_nfs, environment_without_flock
from packed_samples import tiny_dataset
from small_disk import small_disk

from distbranch.data import cache as cache_module
from distbranch.data.cache import (
    Cache,
    DamagedDownloadError,
    RemoteFiles,
    default_cache_folder,
    open_files,
)
from distbranch.data.loader import eval_loader, train_loader
from distbranch.data.shards import read_dataset
from distbranch.errors import UserError

SIZE = (32, 40)


class Server:
    """A web server over a folder; it counts requests and bytes, and answers 503 to the first `failures` of each file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.failures = folder, 0
        self.requests: Counter[str] = Counter()
        self.num_bytes = 0
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.strip("/")
                outer.requests[name] += 1
                if outer.requests[name] <= outer.failures:
                    self.send_error(503)
                else:
                    super().do_GET()

            def copyfile(self, source: Any, outputfile: Any) -> None:
                outer.num_bytes += os.fstat(source.fileno()).st_size
                super().copyfile(source, outputfile)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        serve = partial(self.http.serve_forever, poll_interval=0.01)  # a shutdown waits for it
        threading.Thread(target=serve, daemon=True).start()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(cache_module, "BACKOFF_S", 0.01)
    (tmp_path / "web").mkdir()
    server = Server(tmp_path / "web")
    yield server
    server.http.shutdown()
    server.http.server_close()


def put(server: Server, name: str, size: int) -> str:
    """A file of that size on the server; its sha256."""
    content = name.encode() * (size // len(name))
    (server.folder / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def taken(files: RemoteFiles, name: str, sha256: str) -> bytes:
    with os.fdopen(files.open(name, sha256), "rb") as file:
        return file.read()


def kept(folder: Path) -> set[str]:
    """The names of the copies."""
    return {path.name[17:] for path in folder.iterdir() if path.suffix not in {".lock", ".part"}}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_set_on_a_web_server_gives_the_samples_of_the_folder(
    server: Server, tmp_path: Path, num_workers: int
) -> None:
    local = tiny_dataset(server.folder / "set")
    remote = read_dataset(f"{server.url}/set")
    cache = Cache(str(tmp_path / "copies"), max_bytes=40_000)
    options = {"batch_size": 6, "image_size": SIZE}
    there = islice(
        train_loader(remote, "train", cache=cache, num_workers=num_workers, **options), 12
    )  # type: ignore[arg-type]
    here = islice(train_loader(local, "train", **options), 12)  # type: ignore[arg-type]
    for one, other in zip(here, there, strict=True):
        assert other.error is None
        assert (one.images == other.images).all()
    assert sum(len(b.indices) for b in eval_loader(remote, "train", cache=cache, **options)) == 23  # type: ignore[arg-type]


def test_a_file_is_fetched_once_and_the_copy_used_longest_ago_makes_room(
    server: Server, tmp_path: Path
) -> None:
    sums = {name: put(server, name, 1000) for name in ("a.tar", "b.tar", "c.tar", "d.tar")}
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies"), max_bytes=3200))
    (tmp_path / "copies").mkdir()
    for second, name in enumerate(["a.tar", "b.tar", "c.tar", "a.tar", "d.tar"]):
        assert taken(files, name, sums[name]) == (server.folder / name).read_bytes()
        copy = tmp_path / "copies" / f"{sums[name][:16]}-{name}"
        os.utime(
            copy, (second, second)
        )  # the clock of a file system may be too coarse for this test
    assert kept(tmp_path / "copies") == {"a.tar", "c.tar", "d.tar"}
    assert server.requests == Counter({"a.tar": 1, "b.tar": 1, "c.tar": 1, "d.tar": 1})
    taken(files, "b.tar", sums["b.tar"])
    assert server.requests["b.tar"] == 2


def test_files_of_others_in_the_cache_folder_are_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "thesis.tar").write_bytes(bytes(5000))
    (tmp_path / "folder").mkdir()
    sums = {name: put(server, name, 1000) for name in ("a.tar", "b.tar")}
    files = RemoteFiles(server.url, Cache(str(tmp_path), max_bytes=1500))
    for name, sha256 in sums.items():
        taken(files, name, sha256)
    assert (tmp_path / "thesis.tar").exists()
    assert not (tmp_path / f"{sums['a.tar'][:16]}-a.tar").exists()


def test_shards_are_fetched_before_they_are_read(server: Server, tmp_path: Path) -> None:
    tiny_dataset(server.folder / "set", num_samples=60, shard_samples=5)
    remote = read_dataset(f"{server.url}/set")
    cache = Cache(str(tmp_path / "copies"))
    loader = train_loader(
        remote, "train", batch_size=2, image_size=SIZE, cache=cache, window=3, prefetch=1
    )
    next(loader)
    deadline = time.monotonic() + 5
    while len([name for name in kept(tmp_path / "copies") if name.endswith("tar")]) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    loader.close()  # type: ignore[attr-defined]
    assert all(count == 1 for name, count in server.requests.items() if name.endswith("tar"))


def test_a_copy_in_use_is_never_removed(server: Server, tmp_path: Path) -> None:
    sums = {name: put(server, name, 1000) for name in ("a.tar", "b.tar", "c.tar")}
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies"), max_bytes=1500))
    (tmp_path / "copies").mkdir()
    held = files.open("a.tar", sums["a.tar"])
    taken(files, "b.tar", sums["b.tar"])
    taken(files, "c.tar", sums["c.tar"])
    assert "a.tar" in kept(tmp_path / "copies")
    os.close(held)
    taken(files, "b.tar", sums["b.tar"])
    assert "a.tar" not in kept(tmp_path / "copies")


def test_processes_and_threads_share_one_download(server: Server, tmp_path: Path) -> None:
    sha256 = put(server, "big.tar", 3_000_000)
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies")))
    (tmp_path / "copies").mkdir()
    read = partial(taken, files, "big.tar", sha256)
    with (
        ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool,
        ThreadPoolExecutor(2) as threads,
    ):
        answers = [executor.submit(read) for executor in (pool, threads) for _ in range(3)]
        assert {hashlib.sha256(answer.result()).hexdigest() for answer in answers} == {sha256}
    assert server.requests == Counter({"big.tar": 1})


def test_many_readers_with_too_little_room_still_read_whole_files(
    server: Server, tmp_path: Path
) -> None:
    sums = {f"{n}.tar": put(server, f"{n}.tar", 20_000) for n in range(6)}
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies"), max_bytes=50_000))
    (tmp_path / "copies").mkdir()
    wanted = [f"{(7 * n + n // 6) % 6}.tar" for n in range(120)]
    with ThreadPoolExecutor(6) as threads:
        contents = list(threads.map(lambda name: taken(files, name, sums[name]), wanted))
    assert [hashlib.sha256(content).hexdigest() for content in contents] == [
        sums[name] for name in wanted
    ]
    cache_module.make_room(files.cache)
    assert len(kept(tmp_path / "copies")) <= 2


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


NUM_FILES, ROOM = 6, 50_000
READ_ALL = """
import os, sys
from distbranch.data.cache import Cache, RemoteFiles
url, folder, room, *sums = sys.argv[1:]
files = RemoteFiles(url, Cache(folder, max_bytes=int(room)))
for turn in range(3):
    before = len(os.listdir("/proc/self/fd"))  # the last turn finds fsspec's connection open
    for number, sha256 in enumerate(sums):
        descriptor = files.open(f"{number}.tar", sha256)
        assert os.fstat(descriptor).st_size == 20_000
        os.close(descriptor)
print(len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.parametrize("storage", ["NFS", errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_full_cache_on_any_storage_gives_every_file_keeps_its_bound_and_leaves_nothing_open(
    server: Server, tmp_path: Path, storage: str | int
) -> None:
    sums = [put(server, f"{n}.tar", 20_000) for n in range(NUM_FILES)]
    copies = tmp_path / "copies"
    copies.mkdir()
    environment = (
        environment_over_nfs(tmp_path)
        if isinstance(storage, str)
        else environment_without_flock(tmp_path, storage)
    )
    command = [sys.executable, "-c", READ_ALL, server.url, str(copies), str(ROOM), *sums]
    read = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (read.stdout, read.stderr) == ("0\n", "")
    assert sum(path.stat().st_size for path in copies.iterdir()) <= ROOM


def test_a_cache_on_a_full_disk_costs_downloads_and_no_file(server: Server, tmp_path: Path) -> None:
    sums = {name: put(server, name, 50_000) for name in ("a.tar", "b.tar", "c.tar")}
    with small_disk(tmp_path / "small", 128) as folder:
        files = RemoteFiles(server.url, Cache(str(folder)))
        held = [files.open(name, sums[name]) for name in ("a.tar", "b.tar")]
        assert (
            len(taken(files, "c.tar", sums["c.tar"])) == 50_000
        )  # there is no room, and no copy that nobody reads
        assert kept(folder) == {"a.tar", "b.tar"}
        for descriptor in held:
            os.close(descriptor)
        assert len(taken(files, "c.tar", sums["c.tar"])) == 50_000
        assert kept(folder) == {"c.tar"}


def test_a_cache_that_may_only_be_read_gives_what_it_has_and_fetches_the_rest(
    server: Server, tmp_path: Path
) -> None:
    sums = {name: put(server, name, 1000) for name in ("a.tar", "b.tar")}
    with small_disk(tmp_path / "small", 128) as folder:
        files = RemoteFiles(server.url, Cache(str(folder)))
        taken(files, "a.tar", sums["a.tar"])
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        before = descriptors()
        assert {len(taken(files, name, sha256)) for name, sha256 in sums.items()} == {1000}
        assert descriptors() == before
        assert server.requests == Counter({"a.tar": 1, "b.tar": 1})


@pytest.mark.parametrize("on_bad_sample", ["fail", "skip"])
def test_no_room_anywhere_is_told_and_no_sample_is_left_out_for_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_bad_sample: str
) -> None:
    tiny_dataset(server.folder / "set")
    remote = read_dataset(f"{server.url}/set")
    with small_disk(tmp_path / "small", 4) as folder:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        (batch,) = eval_loader(
            remote,
            "train",
            batch_size=23,
            image_size=SIZE,
            cache=Cache(str(folder)),
            on_bad_sample=on_bad_sample,
        )
    assert batch.num_bad == {}
    assert "There is no room for" in str(batch.error)
    assert "data.cache_directory" in str(batch.error)


def test_a_failing_server_is_asked_three_times(server: Server, tmp_path: Path) -> None:
    sha256 = put(server, "a.tar", 1000)
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies")))
    (tmp_path / "copies").mkdir()
    server.failures = 5
    with pytest.raises(OSError, match="503"):
        files.open("a.tar", sha256)
    assert server.requests["a.tar"] == 3
    assert len(taken(files, "a.tar", sha256)) == 1000
    assert server.requests["a.tar"] == 6


def test_a_file_that_arrives_damaged_is_refused_and_not_kept(
    server: Server, tmp_path: Path
) -> None:
    put(server, "a.tar", 1000)
    files = RemoteFiles(server.url, Cache(str(tmp_path / "copies")))
    (tmp_path / "copies").mkdir()
    with pytest.raises(DamagedDownloadError, match="it arrived with sha256"):
        files.open("a.tar", "0" * 64)
    assert kept(tmp_path / "copies") == set()


@pytest.mark.parametrize(("damage", "kind"), [("absent", "missing-shard"), ("changed", "corrupt")])
def test_a_remote_shard_that_cannot_be_had_is_a_bad_sample(
    server: Server, tmp_path: Path, damage: str, kind: str
) -> None:
    tiny_dataset(server.folder / "set")
    remote = read_dataset(f"{server.url}/set")
    shard = server.folder / "set" / "train-000002.tar"
    if damage == "absent":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-700])
    cache = Cache(str(tmp_path / "copies"))
    (batch,) = eval_loader(
        remote, "train", batch_size=23, image_size=SIZE, cache=cache, on_bad_sample="skip"
    )
    assert batch.num_bad == {kind: 5}
    assert (
        server.requests["set/train-000002.tar"] <= 6
    )  # once ahead and once when read, three attempts each
    (batch,) = eval_loader(remote, "train", batch_size=23, image_size=SIZE, cache=cache)
    assert "Shard train-000002.tar: " in str(batch.error)


def test_other_file_systems_work_through_fsspec(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "set")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "set"), "/bucket", recursive=True)
    remote = read_dataset("memory://bucket")
    loader = eval_loader(
        remote, "train", batch_size=23, image_size=SIZE, cache=Cache(str(tmp_path / "copies"))
    )
    assert next(loader).indices.tolist() == list(range(23))


def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(protocol: str) -> None:
        raise ImportError(f"Install the driver of {protocol}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(UserError, match=r"pip install 'distbranch\[s3\]'"):
        open_files("s3://bucket/set")
    with pytest.raises(UserError, match=r"pip install 'distbranch\[gs\]'"):
        open_files("gs://bucket/set")
    with pytest.raises(UserError, match="Install the driver of hdfs"):
        open_files("hdfs://host/set")


def test_an_unknown_protocol_and_a_cache_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Protocol not known: nope\. http and https can"):
        open_files("nope://bucket/set")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache folder .* cannot be made"):
        open_files("http://host/set", Cache(str(tmp_path / "file" / "copies")))


def test_the_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == str(tmp_path / "distbranch" / "shards")
