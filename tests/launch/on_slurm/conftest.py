"""One Slurm for all tests of this folder, and somebody who uses it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_server import RankServer
from slurm_person import Person
from slurm_world import SlurmWorld, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmWorld]:
    """A Slurm of two nodes."""
    reason = missing()
    if reason and os.environ.get("DISTBRANCH_NO_SKIP"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    world = SlurmWorld(tmp_path_factory.mktemp("slurm") / "world")
    try:
        world.start()
        yield world
    finally:
        world.stop()


@pytest.fixture
def person(slurm: SlurmWorld, ranks: RankServer, tmp_path: Path, tiny_data: Path) -> Person:
    """Somebody in a folder of this test."""
    return Person(slurm, ranks, tmp_path, tiny_data)
