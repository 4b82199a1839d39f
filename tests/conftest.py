"""Fixtures that every test may use."""

import os

# xdist gives its workers COLUMNS=80, and a rich Console that is made while it is set keeps that width: ours is, in the imports.
os.environ.pop("COLUMNS", None)
# Whoever runs the tests may have defaults of a site; no test should know of them.
os.environ["DISTBRANCH_SITE"] = ""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_server import RankServer
from small_disk import small_disk
from tiny_runs import config_of, pack_tiny, train_tiny
from tiny_world import make_world

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout; without it the test is skipped, in CI it fails."""
    if not SHARED_DATA.is_dir():
        message = f"real photographs are read from {SHARED_DATA}, which is absent"
        if os.environ.get("DISTBRANCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed data set of 267 tiny pictures with 8 tasks, some labels missing."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    pack_tiny(folder)
    return folder


@pytest.fixture
def small_storage(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB, for a run directory."""
    with small_disk(tmp_path / "small", 24 * 1024) as folder:
        yield folder


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    """Starts real processes that are the ranks of a run."""
    server = RankServer(tmp_path_factory.mktemp("ranks"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def undisturbed(
    tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The run directory of the tiny run on so many ranks, trained without any interruption."""
    runs: dict[int, Path] = {}

    def run_on(world_size: int) -> Path:
        if world_size not in runs:
            folder = tmp_path_factory.mktemp(f"undisturbed-{world_size}")
            config = config_of(tiny_data, folder, **{"launch.workers": world_size})
            ended = ranks.call_all(train_tiny, world_size, config=config)
            assert {one["end"] for one in ended} == {"done"}, ended
            runs[world_size] = folder / "tiny"
        return runs[world_size]

    return run_on


@pytest.fixture(scope="session")
def original_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny world that nobody touches."""
    world = make_world(tmp_path_factory.mktemp("tiny_world") / "world")
    return shutil.copytree(world, world.with_name("original"))


@pytest.fixture
def world(original_world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh tiny world as the current folder, where it was made, since a run knows where its data are."""
    folder = original_world.with_name("world")
    monkeypatch.chdir("/")
    shutil.rmtree(folder)
    shutil.copytree(original_world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(original_world.with_name("home")))
    return folder
