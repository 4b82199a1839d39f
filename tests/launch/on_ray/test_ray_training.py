"""Training under Ray: stopped, gone on with, and a worker killed; still the bits of two undisturbed ranks.

One cluster start costs seconds, so there are few tests here and each does much.
"""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rank_server import RankServer
from tiny_runs import assert_same_content, config_of, lines_of, train_tiny

from distbranch.engine.checkpoint import load_newest

# The last checkpoint before the kill is that of the decision of step 28, for which training waits.
STOPPED_AFTER, KILLED_IN = 12, 30
# What has a state of its own, or is counted or drawn, and has to be the same after a restart.
SETTINGS: dict[str, Any] = {
    "data.balance": {"kind": 1.0, "cell-2": 0.5},
    "data.augment": "randaugment",
    "data.crop_area": [0.4, 1.0],
    "data.jitter": 0.3,
    "loss.class_weights": {"kind": "balanced"},
    "train.ema": 0.8,
    "train.keep": "best",
    "launch.workers": 2,
    "data.workers": 1,  # its process hears what the whole group hears
}


def disturbed_work(loop: dict[str, Any]) -> None:
    """What a Ray worker runs here: rank 0 waits for the stop word in one step, rank 1 is killed in a later one, once."""
    import time

    from distbranch.engine.batches import BatchFeed
    from distbranch.engine.training_step import TrainingStep
    from distbranch.launch.on_ray import worker as ray_worker

    real, real_flags = TrainingStep._forward_and_backward, BatchFeed._start_flags
    feeds: list[BatchFeed] = []
    marks = Path(loop["attempt"]).parents[2]

    def step(self: TrainingStep, *batch: Any) -> None:
        number = self.progress.iteration + 1
        with (marks / f"steps-{self.ranks.rank}").open("a") as file:
            file.write(f"{number}\n")
        if number == KILLED_IN and self.ranks.rank == 1 and not (marks / "killed").exists():
            (marks / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if (
            number == STOPPED_AFTER - 2
            and self.ranks.rank == 0
            and not (marks / "stopped").exists()
        ):
            (marks / "waiting").touch()
            while not feeds[-1].should_stop():  # the driver received a signal and passes it on
                time.sleep(0.01)
            (marks / "stopped").touch()
        real(self, *batch)

    def flags(self: BatchFeed) -> Any:
        feeds.append(self)
        return real_flags(self)

    TrainingStep._forward_and_backward, BatchFeed._start_flags = step, flags  # type: ignore[method-assign]
    ray_worker.train_worker(loop)


def train_on_ray(config: Mapping[str, Any], marks: str) -> dict[str, Any]:
    """A job: the driver; it and all that it started receive SIGTERM as soon as rank 0 waits for it."""
    import threading
    import time

    from distbranch.launch.on_ray import train as ray_train

    ray_train.train_worker = disturbed_work
    here = Path(__file__)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(str, (here.parents[3], here.parents[2], here.parent))
    )  # of workers

    os.setpgid(0, 0)

    def interrupt() -> None:
        while not (Path(marks) / "waiting").exists():
            time.sleep(0.05)
        os.killpg(0, signal.SIGTERM)

    if not (Path(marks) / "stopped").exists():
        threading.Thread(target=interrupt, daemon=True).start()
    return train_tiny(config)


def test_a_run_on_ray_survives_an_interruption_and_a_killed_worker_with_the_same_bits(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    undisturbed = config_of(tiny_data, tmp_path / "undisturbed", **SETTINGS)
    for one in ranks.call_all(train_tiny, 2, config=undisturbed):
        assert one["end"] == "done", one["message"]
    config = config_of(tiny_data, tmp_path, **SETTINGS)
    stopped = ranks.run(train_on_ray, config=config, marks=str(tmp_path), timeout_s=300)[0]
    assert stopped.value is not None, stopped.output
    assert stopped.value["end"] == "stopped", stopped.value
    assert stopped.value["exit_code"] == 75
    checkpoint = load_newest(tmp_path / "tiny" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state["progress"]["iteration"] == STOPPED_AFTER - 1

    ended = ranks.run(train_on_ray, config=config, marks=str(tmp_path), timeout_s=300)[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done", ended.value
    assert (tmp_path / "killed").exists()
    assert_same_content(tmp_path / "tiny", tmp_path / "undisturbed" / "tiny")
    steps = [int(line) for line in (tmp_path / "steps-1").read_text().split()]
    last_checkpoint = max(step for step in (*range(0, KILLED_IN, 5), *range(0, KILLED_IN, 7)))
    repeated = {step for step in steps if steps.count(step) > 1}
    assert repeated == set(range(last_checkpoint + 1, KILLED_IN + 1))
    resumed = [
        line["iteration"] for line in lines_of(tmp_path / "tiny" / "metrics.jsonl", "resumed")
    ]
    assert resumed == [STOPPED_AFTER - 1, last_checkpoint]


def test_resources_that_cannot_be_met_are_said_at_once(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    config = config_of(tiny_data, tmp_path, **{"launch.workers": 2, "launch.device": "cuda"})
    ended = ranks.run(train_tiny, config=config)[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "failed"
    assert "GPU" in ended.value["message"]
    assert not (tmp_path / "tiny" / "checkpoints").exists()
