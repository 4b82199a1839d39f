"""A timm model on two Ray workers, from the command line: a search that is killed and continued to the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

pytestmark = pytest.mark.cluster

# Thin, for checkpoints are written in between; in 23 steps a search trains weights, then its policy. A tree over such a model needs
# no Ray to be killed: tests/engine/test_any_backbone.py.
SEARCH = {
    "model": {"backbone": "timm:resnet18", "arguments": {"channels": [8, 8, 8, 8]}},
    "train.iterations": 47,  # many, for a checkpoint is seen some steps after it was due
    "train.evaluate_every": 0,
    "launch.workers": 2,
    "method": {"name": "adashare"},
    "adashare": {"warmup_iterations": 5, "cycles_per_block": 1, "policy_lr": 0.1},
}


def command(file: Path) -> list[str]:
    return [sys.executable, "-m", "distbranch", "train", str(file)]


def kill_in_the_middle(file: Path, run: Path) -> None:
    """Start a run, and end the driver and with it all of Ray once there is a checkpoint."""
    with (file.parent / "killed.log").open("w") as log:
        driver = subprocess.Popen(
            command(file), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while driver.poll() is None and not list(run.glob("checkpoints/step-*")):
                time.sleep(0.01)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    assert not (run / "result.json").exists(), (file.parent / "killed.log").read_text()


def test_a_timm_model_on_two_workers_that_was_killed_ends_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    whole: dict[str, Any]
    whole, config = (
        config_of(tiny_data, tmp_path / part, **SEARCH) for part in ("whole", "killed")
    )
    for ended in ranks.call_all(train_tiny, 2, config=whole):
        assert ended["end"] == "done", ended["message"]

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    run = tmp_path / "killed" / "tiny"
    kill_in_the_middle(file, run)
    again = subprocess.run(command(file), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert lines_of(run / "metrics.jsonl", "resumed")
    assert_same_content(run, tmp_path / "whole" / "tiny")
    assert (run / "policy.json").exists()
