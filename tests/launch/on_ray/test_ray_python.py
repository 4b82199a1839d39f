"""`distbranch.train` with several workers from a Python program: any number of times, whatever else the program does with Ray."""

import asyncio
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of

from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError
from distbranch.launch.ray_folder import longest_path

TIMEOUT_S = 400


def train_often(configs: Sequence[Mapping[str, Any]], long: str) -> dict[str, Any]:
    """A job, as a notebook does it: within a running event loop, before and after `import ray`, TMPDIR as Slurm sites set it."""
    import sys

    import distbranch

    os.environ["TMPDIR"] = long
    tempfile.tempdir = None
    sys.argv = [""]
    before = dict(os.environ)
    events: list[dict[str, Any]] = []

    async def cell(config: Mapping[str, Any]) -> Any:
        return distbranch.train(config, report=events.append)

    async def notebook() -> list[Any]:
        results = [await cell(configs[0])]
        assert dict(os.environ) == before
        assert "ray" not in sys.modules
        import ray

        imported = dict(os.environ)  # Ray adds a variable to it when it is imported
        with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:
            os.environ["RAY_TMPDIR"] = short
            results.append(await cell(configs[1]))
            assert os.listdir(short) == []
            assert os.environ.pop("RAY_TMPDIR") == short
        assert dict(os.environ) == imported
        assert not ray.is_initialized()
        return results

    results = asyncio.run(notebook())
    return {
        "directories": [str(result.directory) for result in results],
        "processes": [process.name() for process in psutil.Process().children(recursive=True)],
        "in_long": sorted(os.listdir(long)),
        "kinds": sorted({event["kind"] for event in events}),
    }


def test_a_program_trains_on_two_workers_again_and_again_and_nothing_stays_behind(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    long = tmp_path / "a-folder-of-a-job-that-is-too-long-for-sockets"
    long.mkdir()
    assert len(str(long)) > longest_path(0)
    configs = [
        config_of(tiny_data, tmp_path / name, **{"launch.workers": 2})
        for name in ("first", "second")
    ]
    ended = ranks.run(train_often, configs=configs, long=str(long), timeout_s=TIMEOUT_S)[0]
    assert ended.value is not None, ended.output
    assert ended.value["directories"] == [
        str(tmp_path / name / "tiny") for name in ("first", "second")
    ]
    for name in ("first", "second"):
        assert_same_content(tmp_path / name / "tiny", undisturbed(2))
        environment = json.loads((tmp_path / name / "tiny" / "environment.json").read_text())
        assert environment["command"] == "python"  # and not how Ray starts a worker
    assert ended.value["processes"] == []
    assert ended.value["in_long"] == []
    assert {"progress", "decision", "evaluation"} <= set(ended.value["kinds"])


def train_beside_own_ray(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A job: a program with a Ray cluster of its own trains in two threads at once."""
    import ray

    import distbranch

    with tempfile.TemporaryDirectory(
        prefix="rp", dir="/tmp", ignore_cleanup_errors=True
    ) as scratch:
        ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=scratch)
        before = dict(os.environ)
        number = ray.put(41)
        threads = [threading.Thread(target=distbranch.train, args=(config,)) for config in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ray.get(number) == 41
        assert dict(os.environ) == before
        ray.shutdown()
    return [process.name() for process in psutil.Process().children(recursive=True)]


@pytest.mark.cluster
def test_a_program_with_a_cluster_of_its_own_trains_in_two_threads_and_keeps_it(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    names = ("first", "second")
    configs = [config_of(tiny_data, tmp_path / name, **{"launch.workers": 2}) for name in names]
    ended = ranks.run(train_beside_own_ray, configs=configs, timeout_s=TIMEOUT_S)[0]
    assert ended.value == [], ended.output
    assert ended.output.count("This program has joined the Ray cluster") == 2
    for name in names:
        assert_same_content(tmp_path / name / "tiny", undisturbed(2))


def stop_and_go_on(config: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """A job: a run that is in use, then SIGTERM before the first step, Ctrl-C within training, and once more to the end."""
    import distbranch
    from distbranch.engine.results import StoppedEarly

    found: dict[str, Any] = {}
    with RunDirectory(run).locked():
        try:
            distbranch.train(config)
        except UserError as error:
            found["refused"] = (type(error).__name__, str(error))

    def terminate_when_begun() -> None:
        while not psutil.Process().children():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate_when_begun).start()
    try:
        distbranch.train(config)
    except StoppedEarly as stopped:
        found["terminated"] = stopped.exit_code

    def interrupt(event: Mapping[str, Any]) -> None:
        if event["kind"] == "progress" and "seen" not in found:
            found["seen"] = event["iteration"]
            os.kill(os.getpid(), signal.SIGINT)

    try:
        distbranch.train(config, report=interrupt)
    except StoppedEarly as stopped:
        found["interrupted"] = stopped.exit_code
    found["left"] = [process.name() for process in psutil.Process().children(recursive=True)]
    found["directory"] = str(distbranch.train(config).directory)
    return found


@pytest.mark.cluster
def test_errors_and_signals_reach_the_program_as_from_a_driver_in_its_own_process(
    tiny_data: Path, ranks: RankServer, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": 2})
    ended = ranks.run(stop_and_go_on, config=config, run=tmp_path / "tiny", timeout_s=TIMEOUT_S)[0]
    assert ended.value is not None, ended.output
    assert ended.value["refused"][0] == "RunInUseError"
    assert "is being trained by another process" in ended.value["refused"][1]
    assert ended.value["terminated"] == 75
    assert ended.value["interrupted"] == 130
    assert ended.value["left"] == []
    assert ended.value["directory"] == str(tmp_path / "tiny")
    assert_same_content(tmp_path / "tiny", undisturbed(2))
    assert lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")


def start_often(tmpdirs: Sequence[str]) -> list[str]:
    """A job: clusters started in this very process one after the other, as several sweeps of one process do; where their files lie."""
    from distbranch.config import LaunchConfig
    from distbranch.launch.on_ray.cluster import open_cluster

    places = []
    for tmpdir in tmpdirs:
        os.environ["TMPDIR"] = tmpdir
        tempfile.tempdir = None
        before = dict(os.environ)
        with open_cluster(LaunchConfig(workers=2)):
            import ray

            assert ray.get(ray.put(41)) == 41
            places.append(str(Path(ray._private.worker._global_node.get_temp_dir_path()).parent))
        after = {
            key: value for key, value in os.environ.items() if key != "RAY_CLIENT_MODE"
        }  # of `import ray`
        assert after == {key: value for key, value in before.items() if key != "RAY_CLIENT_MODE"}
        assert psutil.Process().children(recursive=True) == []
    return places


@pytest.mark.cluster
def test_clusters_start_one_after_the_other_in_one_process_whatever_tmpdir_is(
    ranks: RankServer,
) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as base:
        # As long as Ray can bear, and far longer; what else may be wrong with a folder is told in test_ray_folder.
        folders = [os.path.join(base, "t" * (length - len(base) - 1)) for length in (24, 200)]
        for folder in folders:
            os.makedirs(folder, exist_ok=True)
        ended = ranks.run(start_often, tmpdirs=folders, timeout_s=TIMEOUT_S)[0]
        assert ended.value == [folders[0], "/tmp"], ended.output
        assert all(not os.listdir(folder) for folder in folders)
