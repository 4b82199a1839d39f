"""Runs as jobs of a real Ray cluster with a dashboard and a token: submitted, watched, cancelled, gone on with."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rank_server import Ended, RankServer, free_port
from ray_world import environment_of, token_file
from tiny_runs import assert_same_content, config_of, lines_of

from distbranch.engine.checkpoint import load_newest

pytestmark = pytest.mark.cluster
SECONDS_TO_START, SECONDS_TO_TRAIN = 90, 200


@dataclass(frozen=True)
class Head:
    """A cluster of one node, as `ray start --head` makes it."""

    dashboard: str
    environment: Mapping[str, str]
    scratch: Path
    hidden: Path  # where the cluster has a folder of its own


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    environment = environment_of(token_file(folder))
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="rj") as scratch:
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            f"--port={port}",
            f"--temp-dir={scratch}",
            "--num-cpus=2",
        ]
        command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
        ]
        hidden = folder / "hidden"
        hidden.mkdir()
        mount = f"mount -t tmpfs none {hidden} && exec "
        command = ["unshare", "--mount", "sh", "-c", mount + shlex.join(command)]
        log = folder / "head.log"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment, "PATH": path},
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Head(f"http://127.0.0.1:{dashboard}", environment, Path(scratch), hidden)
        # all at once: asked to end, `ray start --block` waits 30 s for its own processes
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()
        process.wait(timeout=60)


def submitted(
    arguments: list[str], folder: str, environment: Mapping[str, str], program: str = "distbranch"
) -> None:
    """A job: a command line in a folder."""
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [program, *arguments]
    if program == "distbranch":
        from distbranch.cli import main
    else:
        from ray.scripts.scripts import main
    main()


@pytest.fixture
def call(head: Head, ranks: RankServer, tmp_path: Path) -> Callable[..., Ended]:
    """Run a command in the folder from which is submitted."""
    (tmp_path / "source").mkdir()

    def run(*arguments: str, program: str = "distbranch", **environment: str) -> Ended:
        settings = {**head.environment, **environment}
        where = {"folder": str(tmp_path / "source"), "environment": settings, "program": program}
        return ranks.run(submitted, arguments=list(arguments), timeout_s=SECONDS_TO_TRAIN, **where)[
            0
        ]

    return run


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    (folder / "source" / "tiny.yaml").write_text(yaml.safe_dump(dict(values)))


def text_of(ended: Ended) -> str:
    return " ".join(ended.output.split())


def test_ray_job_submit_trains_until_it_is_cancelled_and_submit_ray_resumes_to_the_same_bits(
    call: Callable[..., Ended],
    head: Head,
    tiny_data: Path,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "data").symlink_to(tiny_data)
    write_config(tmp_path, config_of("../data", "../runs", **{"launch.workers": 2}))
    (tmp_path / "source" / ".gitignore").write_text("secret.txt\n")
    (tmp_path / "source" / "secret.txt").write_text("stays here")
    run = tmp_path / "runs" / "tiny"
    job = ["job", "submit", "--address", head.dashboard, "--working-dir", ".", "--no-wait", "--"]
    train = [sys.executable, "-m", "distbranch", "train", "tiny.yaml"]
    paths = [f"run.directory={tmp_path / 'runs'}", f"data.path={tmp_path / 'data'}"]
    began = call(*job, *train, *paths, program="ray")
    assert began.exit_code == 0, began.output
    deadline = time.monotonic() + SECONDS_TO_TRAIN
    while not (run / "decisions.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cancelled = call("cancel", str(run))
    assert cancelled.exit_code == 0, cancelled.output
    assert not (run / "result.json").exists(), (
        "the run ended before it was cancelled, so it proves nothing"
    )
    assert yaml.safe_load((run / "environment.json").read_text())["world_size"] == 2
    checkpoint = load_newest(run / "checkpoints")
    assert checkpoint is not None
    copies = [path for path in head.scratch.rglob("_ray_pkg_*") if path.is_dir()]
    assert copies
    assert all(
        sorted(file.name for file in copy.iterdir()) == [".gitignore", "tiny.yaml"]
        for copy in copies
    )

    relative = call("submit", "ray", "tiny.yaml", "--address", head.dashboard)
    assert relative.exit_code == 2, relative.output
    assert "found run.directory=../runs, data.path=../data" in text_of(relative)
    ended = call("submit", "ray", "tiny.yaml", "--wait", *paths, RAY_ADDRESS=head.dashboard)
    assert ended.exit_code == 0, ended.output
    assert "resumed after step" in text_of(ended)
    assert_same_content(run, undisturbed(2))
    resumed = lines_of(run / "metrics.jsonl", "resumed")
    assert [line["iteration"] for line in resumed] == [checkpoint.state["progress"]["iteration"]]
    again = call("submit", "ray", "tiny.yaml", *paths, "--address", head.dashboard)
    assert again.exit_code == 0
    assert "is finished; nothing was submitted" in text_of(again)


def test_ray_job_submit_refuses_paths_inside_the_uploaded_copy(
    call: Callable[..., Ended], head: Head, tiny_data: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, config_of(tiny_data, "runs", **{"launch.workers": 2}))
    job = ["job", "submit", "--address", head.dashboard, "--working-dir", ".", "--"]
    refused = call(*job, sys.executable, "-m", "distbranch", "train", "tiny.yaml", program="ray")
    assert refused.exit_code == 1
    assert "run.directory should be an absolute path on storage that all nodes see" in text_of(
        refused
    )
    assert "found run.directory=runs, which would lie in the uploaded copy" in text_of(refused)
    sweep = {"base": "tiny.yaml", "name": "few", "grid": {"model.width": [2, 4]}}
    base = config_of(tiny_data, "runs")
    write_config(tmp_path, {key: value for key, value in base.items() if key != "run"})
    (tmp_path / "source" / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    refused = call(*job, sys.executable, "-m", "distbranch", "sweep", "sweep.yaml", program="ray")
    assert refused.exit_code == 1
    assert "found directory=runs/few, which would lie in the uploaded copy" in text_of(refused)


def test_a_cluster_that_does_not_see_the_run_directory_of_this_machine_is_noticed_before_anything_is_trained(
    call: Callable[..., Ended], head: Head, tiny_data: Path, tmp_path: Path
) -> None:
    hidden = head.hidden / "runs"
    hidden.mkdir()
    write_config(tmp_path, config_of(tiny_data, hidden))
    ended = call("submit", "ray", "tiny.yaml", "--address", head.dashboard)
    assert ended.exit_code == 1, ended.output
    assert f"The run directory {hidden / 'tiny'} is another folder on" in text_of(ended)
    assert text_of(ended).count("Error:") == 1
    assert not (hidden / "tiny").exists()


def test_the_exit_code_is_that_of_the_job_and_status_and_logs_know_it(
    call: Callable[..., Ended], head: Head, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tiny"
    write_config(
        tmp_path, config_of(tmp_path / "no data", tmp_path / "runs", **{"launch.workers": 2})
    )
    ended = call("submit", "ray", "tiny.yaml", "--wait", "--address", head.dashboard)
    assert ended.exit_code == 1
    assert "no data" in text_of(ended)
    assert "ended (failed)" in text_of(call("status", str(run)))
    assert "no data" in text_of(call("logs", str(run)))
    assert call("submit", "ray", "tiny.yaml", "--address", head.dashboard).exit_code == 0
    deadline = time.monotonic() + SECONDS_TO_START
    while "ended (failed)" not in text_of(call("status", str(run))):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_sweep_trains_on_the_cluster_of_its_job_and_the_exit_code_is_that_of_what_the_job_ran(
    call: Callable[..., Ended], head: Head, tiny_data: Path, tmp_path: Path
) -> None:
    base = config_of(tiny_data, tmp_path, **{"train.iterations": 4, "train.evaluate_every": 0})
    write_config(tmp_path, {key: value for key, value in base.items() if key != "run"})
    sweep = {"base": "tiny.yaml", "directory": str(tmp_path / "runs"), "seeds": [0, 1]}
    (tmp_path / "source" / "few.yaml").write_text(yaml.safe_dump(sweep))
    submit = ("submit", "ray", "--wait", "--address", head.dashboard, "--")
    ended = call(*submit, "sweep", "few.yaml")
    assert ended.exit_code == 0, ended.output
    directory = tmp_path / "runs" / "few"
    assert (directory / "results.csv").read_text().count("finished") == 2
    # On the cluster that is there, and not on one that the job started for itself.
    trial = yaml.safe_load((directory / "seed0" / "config.yaml").read_text())
    assert trial["launch"]["address"]
    failed = call(*submit, "evaluate", str(directory / "seed0"), "--split", "none")
    assert failed.exit_code == 1
    assert "Error: " in text_of(failed)


def test_what_cannot_be_submitted_is_said_in_one_sentence(
    call: Callable[..., Ended], head: Head, tiny_data: Path, tmp_path: Path
) -> None:
    write_config(tmp_path, config_of(tiny_data, tmp_path / "runs"))
    (tmp_path / "outside.yaml").write_text((tmp_path / "source" / "tiny.yaml").read_text())
    (tmp_path / "source" / "based.yaml").write_text("base: ../outside.yaml\n")
    nobody = f"http://127.0.0.1:{free_port()}"
    stranger = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}
    cases: list[tuple[list[str], dict[str, str], int, str]] = [
        (["tiny.yaml", "--address", nobody], {}, 1, "No Ray dashboard answers at"),
        (["tiny.yaml", "--address", "127.0.0.1:6379"], {}, 2, "such as http://HEAD:8265"),
        (
            ["../outside.yaml", "--address", head.dashboard],
            {},
            2,
            "which is the folder that a job takes with it",
        ),
        (["based.yaml", "--address", head.dashboard], {}, 2, "outside.yaml lies outside"),
        (
            ["tiny.yaml", "--address", head.dashboard],
            stranger,
            1,
            "answers only to those who hold its token",
        ),
    ]
    for arguments, environment, code, words in cases:
        ended = call("submit", "ray", *arguments, **environment)
        assert ended.exit_code == code, ended.output
        assert words in text_of(ended), ended.output
        assert text_of(ended).count("Error:") == 1
    assert not (tmp_path / "runs" / "tiny" / "job.json").exists()
