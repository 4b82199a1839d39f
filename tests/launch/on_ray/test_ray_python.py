"""`distbranch.train` with several workers from a Python program: any number of times, whatever else the program does with Ray."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of

from distbranch.launch.ray_folder import longest_path

TIMEOUT_S = 400


def folders_of_ray() -> set[str]:
    """What Ray's clusters of this process would leave behind."""
    return {str(path) for path in Path("/tmp").glob("db*") if path.is_dir()}


def train_often(configs: Sequence[Mapping[str, Any]], long: str) -> dict[str, Any]:
    """A job, as a notebook does it: within a running event loop, before and after `import ray`, TMPDIR as Slurm sites set it."""
    import sys

    import distbranch

    os.environ["TMPDIR"] = long
    tempfile.tempdir = None
    sys.argv = [""]
    before = dict(os.environ)
    left = folders_of_ray()
    events: list[dict[str, Any]] = []

    async def cell(config: Mapping[str, Any]) -> Any:
        return distbranch.train(config, report=events.append)

    async def notebook() -> list[Any]:
        results = [await cell(configs[0])]
        assert dict(os.environ) == before
        assert "ray" not in sys.modules
        import ray

        imported = dict(os.environ)  # Ray adds a variable to it when it is imported
        results.append(await cell(configs[1]))
        assert dict(os.environ) == imported
        assert not ray.is_initialized()
        return results

    results = asyncio.run(notebook())
    return {
        "directories": [str(result.directory) for result in results],
        "processes": [process.name() for process in psutil.Process().children(recursive=True)],
        "folders": sorted(folders_of_ray() - left),
        "in_long": sorted(os.listdir(long)),
        "kinds": sorted({event["kind"] for event in events}),
    }


def test_a_program_trains_on_two_workers_again_and_again_and_nothing_stays_behind(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    long = tmp_path / "a-folder-of-a-job-that-is-too-long-for-sockets"
    long.mkdir()
    assert len(str(long)) > longest_path(0)
    configs = [config_of(tiny_data, tmp_path / name, **{"launch.workers": 2}) for name in ("first", "second")]
    ended = ranks.run(train_often, configs=configs, long=str(long), timeout_s=TIMEOUT_S)[0]
    assert ended.value is not None, ended.output
    assert ended.value["directories"] == [str(tmp_path / name / "tiny") for name in ("first", "second")]
    for name in ("first", "second"):
        assert_same_content(tmp_path / name / "tiny", undisturbed(2))
    assert ended.value["processes"] == []
    assert ended.value["folders"] == []
    assert ended.value["in_long"] == []
    assert {"progress", "decision", "evaluation"} <= set(ended.value["kinds"])
