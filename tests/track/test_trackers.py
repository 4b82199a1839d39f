"""Pages of runs in the trackers that are installed, offline; and pages that fail or hang."""

import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_server import RankServer
from tiny_runs import config_of, lines_of, train_tiny
from wandb_file import read_history, read_records

from distbranch.config import Config, load_config
from distbranch.engine.logged_values import list_values
from distbranch.engine.run_directory import RunDirectory, append_line
from distbranch.engine.run_log import Event
from distbranch.errors import StoppedEarly, UserError
from distbranch.launch.prepare import _check_trackers
from distbranch.track import sender, show_finished_run, track_run
from distbranch.track.on_mlflow import clean_name, open_mlflow_page

KILLED_IN, LOGGED_BEFORE, STEPS = 13, 12, 20  # a checkpoint after every fifth step
# Of a step that is repeated a page keeps what was measured first.
PACE = ("train/samples_per_second", "train/data_wait", "seconds_alone/")


def draw_square(writer: Any, record: Mapping[str, Any], directory: Path) -> None:
    """Draws a decision in the shortest way."""
    pixels = np.full((8, 8, 3), record["round"], np.uint8)
    writer.add_image("decision/tree", pixels, global_step=record["iteration"], dataformats="HWC")


def train_drawn(config: Mapping[str, Any], kill: bool) -> None:
    """A job: train, and be killed when the pages have a step that no checkpoint holds."""
    from distbranch.engine.training_step import TrainingStep
    from distbranch.launch import local, train

    os.environ["WANDB_MODE"] = "offline"
    local.log_decision = draw_square
    records = RunDirectory(load_config(config).run_directory).trackers
    real = TrainingStep._forward_and_backward

    def step(self: TrainingStep, *batch: Any) -> None:
        if kill and self.progress.iteration + 1 == KILLED_IN:
            while not all(_has_step(records / f"{name}.json") for name in ("wandb", "mlflow")):
                time.sleep(0.05)
            # Its process writes what it was given some seconds later.
            written = records.with_name("wandb")
            while LOGGED_BEFORE not in {step for step, _, _ in read_history(written)}:
                time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, *batch)

    TrainingStep._forward_and_backward = step  # type: ignore[method-assign]
    train(config)


def _has_step(record: Path) -> bool:
    if not record.exists():
        return False
    return json.loads(record.read_text())["sent"].get("train") == LOGGED_BEFORE


@pytest.fixture(scope="module")
def resumed(tiny_data: Path, ranks: RankServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial of a sweep that was killed and resumed, with all trackers."""
    folder = tmp_path_factory.mktemp("tracked") / "my-sweep"
    folder.mkdir()
    (folder / "sweep.yaml").touch()
    config = config_of(
        tiny_data,
        folder,
        **{"track": ["wandb", "mlflow"], "train.iterations": STEPS, "train.log_every": 2},
    )
    killed = ranks.run(train_drawn, config=config, kill=True)[0]
    assert killed.exit_code == -signal.SIGKILL, killed.output
    ended = ranks.run(train_drawn, config=config, kill=False)[0]
    assert ended.exit_code == 0, ended.output
    assert lines_of(folder / "tiny" / "metrics.jsonl", "resumed")
    return folder / "tiny"


def logged(run: Path) -> dict[str, dict[int, float]]:
    """What metrics.jsonl has, by name and step."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for line in lines_of(run / "metrics.jsonl"):
        for name, value in list_values(line).items():
            found[name][line["iteration"]] = value
    return found


def assert_has_the_lines_once(points: list[tuple[str, int, float]], run: Path) -> None:
    """Name, step and value of all that a page has are those of metrics.jsonl."""
    expected = logged(run)
    places = [(name, step) for name, step, _ in points]
    assert len(set(places)) == len(places)
    assert set(places) == {(name, step) for name, steps in expected.items() for step in steps}
    for name, step, value in points:
        if step != LOGGED_BEFORE or not name.startswith(PACE):
            assert value == expected[name][step], (name, step)


def final_values(run: Path) -> dict[str, float]:
    result = json.loads((run / "result.json").read_text())
    found = {f"result/{key}": result[key] for key in ("weights", "multiply_adds", "seconds")}
    mean = result["metrics"]["test"]["mean"]["average_precision"]
    return {**found, "result/test/average_precision": mean}


def test_mlflow_has_every_line_once_though_steps_were_repeated(resumed: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{resumed.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'distbranch'")
    (page,) = client.search_runs([experiment.experiment_id])
    assert (page.info.run_name, page.info.status) == ("tiny", "FINISHED")
    assert page.data.tags["sweep"] == "my-sweep"
    assert page.data.params["optim.lr"] == "0.01"

    histories = [client.get_metric_history(page.info.run_id, name) for name in page.data.metrics]
    points = [(one.key, one.step, one.value) for history in histories for one in history]
    assert_has_the_lines_once([one for one in points if not one[0].startswith("result/")], resumed)
    final = {name: value for name, _, value in points if name.startswith("result/")}
    assert final.items() >= final_values(resumed).items()

    decisions = lines_of(resumed / "decisions.jsonl")
    pictures = client.list_artifacts(page.info.run_id, "decision/tree")
    assert len(pictures) == len(decisions) > 1
    assert client.list_artifacts(page.info.run_id)[0].path == "config.yaml"


def test_wandb_has_every_line_once_though_steps_were_repeated(resumed: Path) -> None:
    folder = resumed / "wandb"
    records = list(read_records(folder))
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert len({run.run_id for run in runs}) == 1
    assert len(list(folder.glob("offline-run-*"))) == 2
    assert (runs[0].display_name, runs[0].run_group) == ("tiny", "my-sweep")
    settings = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert settings["optim"]["lr"] == 0.01

    own = [(name, step, value) for step, name, value in read_history(folder)]
    pictures = [step for name, step, _ in own if name.startswith("decision/tree")]
    steps = {line["iteration"] for line in lines_of(resumed / "decisions.jsonl")}
    assert set(pictures) == steps
    assert_has_the_lines_once([one for one in own if not one[0].startswith("decision/")], resumed)
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert summary.items() >= final_values(resumed).items()


def test_a_run_that_tracks_nothing_writes_no_tensorboard(resumed: Path) -> None:
    assert not (resumed / "tensorboard").exists()


# ---- pages of our own, which do what a network does


class KeptPage:
    """Keeps what it gets."""

    place = "here"

    def __init__(self) -> None:
        self.points: list[tuple[str, int, float]] = []
        self.pictures: list[tuple[str, tuple[int, ...], int, str]] = []
        self.end: tuple[str, Mapping[str, float]] | None = None

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        self.points += [(name, step, value) for name, value in values.items()]

    def add_picture(self, name: str, pixels: np.ndarray, step: int, layer: str) -> None:
        self.pictures.append((name, pixels.shape, step, layer))

    def finish(self, end: str, summary: Mapping[str, float]) -> None:
        self.end = (end, summary)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The warnings."""
    monkeypatch.setattr(logging.getLogger("distbranch"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def tiny_config(folder: Path, **changes: Any) -> Config:
    config = load_config(config_of("data", folder, track="wandb", **changes))
    config.run_directory.mkdir()
    return config


def line_at(step: int) -> Event:
    mean = {"accuracy": 1 / step}
    return {"kind": "evaluation", "split": "val", "iteration": step, "mean": mean, "tasks": {}}


def use_page(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "open_page", lambda *_: (page, "its-name"))


def test_a_page_that_is_opened_at_the_end_gets_the_whole_run_and_what_it_has_not_again(
    resumed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(resumed, tmp_path / "tiny", ignore=lambda *_: ["trackers"])
    changes = {"run.directory": str(tmp_path), "track": "wandb"}
    config = load_config(run / "config.yaml", changes)
    whole, again = KeptPage(), KeptPage()
    for page in (whole, again):
        use_page(page, monkeypatch)
        show_finished_run(config, draw_square)
    assert_has_the_lines_once([(name, step, value) for name, step, value in whole.points], run)
    decisions = lines_of(run / "decisions.jsonl")
    assert whole.pictures == [
        ("decision/tree", (8, 8, 3), line["iteration"], line["layer_name"]) for line in decisions
    ]
    assert whole.end is not None
    assert whole.end[1].items() >= final_values(run).items()
    assert (again.points, again.pictures) == ([], [])


def test_no_page_has_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = "s3://me:sesame@bucket/data?secret_key=sesame&region=x"
    config = load_config(config_of(data, tmp_path, track=["wandb", "mlflow"]))
    config.run_directory.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    people: list[Event] = []
    with track_run(config, people.append, draw_square) as (report, _):
        report({"kind": "opened"})
    assert {event["kind"] for event in people} == {"tracked"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "config.yaml"} <= {path.name for path in files}
    assert not [path for path in files if b"sesame" in path.read_bytes()]
    assert any(b"s3://***@bucket/data" in path.read_bytes() for path in files)

    class FailingPage(KeptPage):
        place = "http://me:sesame@host/1"

        def finish(self, *_: Any) -> None:
            raise ConnectionError(f"nobody at {self.place}")

    use_page(FailingPage(), monkeypatch)
    people.clear()
    with track_run(config, people.append, draw_square) as (report, _):
        report({"kind": "opened"})
    assert [event["place"] for event in people] == ["http://***@host/1"] * 2
    assert "sesame" not in caplog.text


def test_a_page_that_fails_costs_one_warning_and_the_next_start_sends_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    config = tiny_config(tmp_path)
    metrics = RunDirectory(config.run_directory).metrics

    class FailingPage(KeptPage):
        def add_values(self, values: Mapping[str, float], step: int) -> None:
            if step == 2:
                raise ConnectionError("the server is gone")
            super().add_values(values, step)

    pages = [FailingPage(), KeptPage()]
    people: list[Event] = []
    for page, steps in zip(pages, ((1, 2, 3), (4,)), strict=True):
        use_page(page, monkeypatch)
        with track_run(config, people.append, draw_square) as (report, _):
            report({"kind": "opened"})
            for step in steps:
                append_line(metrics, line_at(step))
                report({"kind": "line", "line": line_at(step)})
            report({"kind": "progress"})
    assert [step for page in pages for _, step, _ in page.points] == [1, 2, 3, 4]
    (sentence,) = told()
    assert "wandb does not show the run any longer (the server is gone)" in sentence
    assert [event["kind"] for event in people].count("progress") == 2
    assert {event["kind"] for event in people} == {"progress", "tracked"}


def test_a_page_that_hangs_holds_nothing_up_and_is_told_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    config = tiny_config(tmp_path)
    let_go = threading.Event()

    class HangingPage(KeptPage):
        def add_values(self, *_: Any) -> None:
            let_go.wait()

    use_page(HangingPage(), monkeypatch)
    monkeypatch.setattr(sender, "SECONDS_TO_END", 0.1)
    with track_run(config, lambda _: None, draw_square) as (report, _):
        report({"kind": "opened"})
        for step in range(1, 100):
            report({"kind": "line", "line": line_at(step)})
    let_go.set()
    (sentence,) = told()
    assert "wandb did not take all of the run in time" in sentence


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def train_towards(config: Mapping[str, Any], port: int) -> dict[str, Any]:
    """A job: train with both trackers at a server that never answers."""
    from distbranch.track import sender

    server = f"http://127.0.0.1:{port}"
    os.environ.update(
        WANDB_BASE_URL=server,
        WANDB_API_KEY="0" * 40,
        WANDB_MODE="online",
        WANDB_INIT_TIMEOUT="1",
        MLFLOW_TRACKING_URI=server,
    )
    sender.SECONDS_TO_END = 1.0
    return train_tiny(config)


def test_a_run_ends_as_without_trackers_though_their_server_never_answers(
    tiny_data: Path, ranks: RankServer, tmp_path: Path, silent_server: int
) -> None:
    config = config_of(tiny_data, tmp_path, **{"train.iterations": 6, "track": ["wandb", "mlflow"]})
    ended = ranks.run(train_towards, config=config, port=silent_server)[0]
    assert ended.value is not None, ended.output
    assert ended.value["end"] == "done"
    assert ended.output.count("Everything is in metrics.jsonl") == 2, ended.output
    assert len(lines_of(tmp_path / "tiny" / "metrics.jsonl", "train")) == 1


def test_steps_of_a_scout_are_on_no_page_and_its_gauges_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = KeptPage()
    use_page(page, monkeypatch)
    gauges: list[Any] = []
    people: list[Event] = []
    draw = draw_square
    with track_run(tiny_config(tmp_path), people.append, draw, gauges.append) as (report, _):
        for inner in ({"kind": "opened"}, {"kind": "line", "line": line_at(3)}):
            report({"kind": "scout", "event": inner})
        report({"kind": "scout", "event": {"kind": "gauges", "gauges": ["one"]}})
        report({"kind": "scout", "event": {"kind": "progress"}})
    assert page.points == []
    assert gauges == [["one"]]
    assert people == [{"kind": "scout", "event": {"kind": "progress"}}]


@pytest.mark.parametrize(
    ("error", "end"), [(StoppedEarly("asked"), "stopped"), (UserError("bad"), "failed")]
)
def test_a_page_says_how_the_run_ended(
    error: BaseException, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = KeptPage()
    use_page(page, monkeypatch)
    config = tiny_config(tmp_path)

    def train() -> None:
        with track_run(config, lambda _: None, draw_square) as (report, _):
            report({"kind": "opened"})
            raise error

    with pytest.raises(type(error)):
        train()
    assert page.end == (end, {})


# ---- settings


def test_a_tracker_that_is_unknown_or_not_installed_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"track: .*tensorboard, wandb, mlflow.*found .*'wanb'"):
        load_config(config_of("data", tmp_path, track=["wanb"]))
    assert load_config(config_of("data", tmp_path, track=None)).track == ()
    config = load_config(config_of("data", tmp_path, track=["wandb", "mlflow", "wandb"]))
    assert config.track == ("wandb", "mlflow")
    monkeypatch.setattr("distbranch.extras.find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        _check_trackers(config)
    for name in ("wandb", "mlflow"):
        assert f"track={name} needs the package {name}" in str(caught.value)
        assert f"pip install 'distbranch[{name}]'" in str(caught.value)


def test_a_folder_that_ends_early_in_an_address_gets_no_file_of_mlflow_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs?").mkdir()
    with pytest.raises(UserError, match=r"no '\?' in its path .* MLFLOW_TRACKING_URI"):
        open_mlflow_page(tiny_config(tmp_path / "runs?"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["runs?"]


def test_names_that_mlflow_refuses_stay_different() -> None:
    names = ["val/5 o'clock", 'val/5 o"clock', "val/5 o-clock", "a:b", "ä_ö"]
    cleaned = [clean_name(name) for name in names]
    assert len(set(cleaned)) == len(names)
    assert cleaned[-1] == names[-1]
