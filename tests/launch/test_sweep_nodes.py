"""A sweep on a real Ray cluster to which a node comes while it runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_world import RayWorld
from sweep_files import write_sweep

pytestmark = pytest.mark.cluster
TIMEOUT_S = 240


def test_a_node_that_joins_while_a_sweep_runs_is_used_at_once(
    tiny_data: Path, tmp_path: Path
) -> None:
    world = RayWorld(tmp_path)
    world.add_node()
    file = write_sweep(
        tmp_path,
        tiny_data,
        run={
            "train.iterations": 1_000_000,
            "launch.address": world.address,
        },  # never ends by itself
        grid={"model.width": [2, 3, 4]},
    )
    directory = tmp_path / "runs" / "tiny"
    output = tmp_path / "output.txt"

    def wait_for_trials(number: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(list(directory.glob("*/environment.json"))) < number:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)

    with output.open("w") as stream:
        command = [sys.executable, "-m", "distbranch", "sweep", str(file)]
        environment = {**os.environ, **world.environment}
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        wait_for_trials(1)
        assert output.read_text().count("begun: ") == 1
        world.add_node()
        wait_for_trials(2)  # the first one has not ended, as it never does
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130, output.read_text()
        checkpoints = [
            folder.parent.parent.name for folder in directory.glob("*/checkpoints/step-*")
        ]
        assert len(set(checkpoints)) == 2, "both have saved what they had"
    finally:
        process.kill()
        world.stop()
