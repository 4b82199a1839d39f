"""Runs whose directory is at an S3 store, with nothing of them left on the machine between one process and the next."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rank_server import RankServer
from s3_server import BUCKET, S3Server
from tiny_runs import anew_config, assert_same_content, config_of, lines_of, train_tiny
from tiny_world import assert_one_sentence, nothing_overwritten, run_command

from distbranch.config import load_config
from distbranch.engine.remote_run import RemoteRun, download_run
from distbranch.engine.run_directory import RunDirectory
from distbranch.errors import UserError

RUNS = f"s3://{BUCKET}/runs"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 store with one bucket."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


def train_at_url(
    config: Mapping[str, Any],
    environment: dict[str, str],
    fault: str = "",
    file: str = "",
    store: str = "",
) -> dict[str, Any]:
    """A job: train; when a file is to be sent the process dies, the store is killed, or its keys are no more valid."""
    os.environ.update(environment)
    real = RemoteRun._upload_file

    def put(self: RemoteRun, name: str) -> None:
        if name == file:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "store killed":
                os.kill(int(store), signal.SIGKILL)
            if fault == "keys":
                S3Server.let_in(store, known_only=True)
        real(self, name)

    RemoteRun._upload_file = put  # type: ignore[method-assign]
    return train_tiny(config)


def test_a_run_resumes_from_what_was_sent_to_the_same_bits_whatever_befell_it_on_machines_that_are_gone(
    tiny_data: Path,
    store: S3Server,
    ranks: RankServer,
    undisturbed: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(tiny_data, RUNS)
    machines = iter(store.environment(tmp_path / f"machine-{number}") for number in range(9))

    for step in ("05", "14"):  # the first checkpoint of all, and one that follows others
        half_sent = f"checkpoints/step-000000{step}/manifest.json"
        ended = ranks.run(
            train_at_url, config=config, environment=next(machines), fault="killed", file=half_sent
        )[0]
        assert ended.exit_code == -signal.SIGKILL
        objects = store.objects("runs/tiny")
        assert half_sent not in objects
        assert half_sent.replace("manifest.json", "model.safetensors") in objects

    fault = {
        "fault": "keys",
        "file": "checkpoints/step-00000028/state.json",
        "store": store.endpoint,
    }
    failed = ranks.call(train_at_url, config=config, environment=next(machines), **fault)
    store.let_in(store.endpoint, known_only=False)
    assert failed["end"] == "failed"
    said = (
        "INVALID_ACCESS_KEY_ID",
        f"{RUNS}/tiny",
        "newest checkpoint there is step-00000025",
        "same command again",
    )
    assert not [words for words in said if words not in failed["message"]], failed["message"]

    assert ranks.call(train_at_url, config=config, environment=next(machines))["end"] == "done"
    for name, value in next(machines).items():
        monkeypatch.setenv(name, value)
    finished = train_tiny(config)
    assert finished["events"] == [{"kind": "finished", "directory": f"{RUNS}/tiny"}]
    copy = load_config(config).run_directory
    assert_same_content(copy, undisturbed(1))
    assert [line["iteration"] for line in lines_of(copy / "metrics.jsonl", "resumed")] == [10, 25]
    kept = {
        name.split("/")[1]
        for name in store.objects("runs/tiny")
        if name.startswith("checkpoints/s")
    }
    assert sorted(kept) == ["step-00000042", "step-00000045", "step-00000048"]
    status = run_command(["status", f"{RUNS}/tiny"])
    assert status.code == 0, status
    assert "finished" in status.out
    assert "step-00000048" in status.out


def test_a_finished_run_is_evaluated_and_resumed_up_to_more_iterations_from_other_machines(
    tiny_data: Path,
    store: S3Server,
    ranks: RankServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"train.evaluate_every": 0, "method.round_iterations": 4, "optim.schedule": "constant"}
    short, longer = (
        config_of(tiny_data, f"{RUNS}-raised", **values, **{"train.iterations": iterations})
        for iterations in (8, 14)
    )
    machines = iter(store.environment(tmp_path / f"machine-{number}") for number in range(5))
    assert ranks.call(train_at_url, config=short, environment=next(machines))["end"] == "done"
    # Another machine sees its answers and thresholds, which are those of the network of then.
    url = f"{RUNS}-raised/tiny"
    for name, value in next(machines).items():
        monkeypatch.setenv(name, value)
    ended = run_command(["evaluate", url, "--out", str(tmp_path / "predictions.csv")])
    assert ended.code == 0, ended.err
    assert f"{url}/answers: what they are worth on test" in ended.out
    answers = set(store.objects("runs-raised/tiny/answers"))
    assert {"answers.json", "tasks.csv", "suspects.csv"} < answers
    for name, value in next(machines).items():
        monkeypatch.setenv(name, value)
    seen = RunDirectory(download_run(url))
    assert {file.name for file in seen.answers.iterdir()} == answers
    chosen = json.loads((seen.answers / "answers.json").read_text())["thresholds"]
    assert json.loads((seen.model / "model.json").read_text())["thresholds"] == chosen != {}

    fault = {"fault": "killed", "file": "config.yaml"}
    ended = ranks.run(train_at_url, config=longer, environment=next(machines), **fault)[0]
    assert ended.exit_code == -signal.SIGKILL
    kept = store.objects("runs-raised/tiny").keys()
    assert not kept & {"result.json", "model/model.json", "answers/answers.json"}
    last = next(machines)
    assert ranks.call(train_at_url, config=longer, environment=last)["end"] == "done"

    whole = config_of(tiny_data, tmp_path, **values, **{"train.iterations": 14})
    assert ranks.call(train_tiny, config=whole)["end"] == "done"
    for name, value in last.items():
        monkeypatch.setenv(name, value)
    copy = load_config(longer).run_directory
    assert_same_content(copy, tmp_path / "tiny")
    (resumed,) = lines_of(copy / "metrics.jsonl", "resumed")
    assert resumed["iteration"] == 8


def test_a_store_that_is_gone_at_a_checkpoint_ends_the_run_in_one_sentence(
    tiny_data: Path, ranks: RankServer, tmp_path: Path
) -> None:
    store = S3Server(tmp_path)
    fault = {
        "fault": "store killed",
        "file": "checkpoints/step-00000007/state.json",
        "store": str(store.process.pid),
    }
    environment = store.environment(tmp_path / "cache")
    failed = ranks.call(
        train_at_url, config=config_of(tiny_data, RUNS), environment=environment, **fault
    )
    store.stop()
    assert failed["end"] == "failed"
    said = ("Could not connect", f"{RUNS}/tiny", "newest checkpoint there is step-00000005")
    assert not [words for words in said if words not in failed["message"]], failed["message"]


def test_who_started_later_has_the_run_and_the_earlier_process_ends(
    store: S3Server, here: Path
) -> None:
    (here / "first").mkdir()
    (here / "first" / "config.yaml").write_text("seed: 1")
    first, second = (RemoteRun(f"{RUNS}/taken", here / name) for name in ("first", "second"))
    first.publish_owner()
    first.upload()
    second.download()
    assert (here / "second" / "config.yaml").read_text() == "seed: 1"
    second.publish_owner()
    with pytest.raises(
        UserError, match=rf"{RUNS}/taken was taken over by process {os.getpid()} on "
    ):
        first.upload()
    assert f"process {os.getpid()} on " in second.describe_owner()


def test_a_copy_is_made_equal_to_what_is_at_the_url(store: S3Server, here: Path) -> None:
    one, other = (RemoteRun(f"{RUNS}/equal", here / name) for name in ("one", "other"))
    _write(
        one.copy,
        "config.yaml",
        "checkpoints/step-1/manifest.json",
        "checkpoints/step-1/state.json",
        "tree.json",
    )
    one.upload()
    _write(other.copy, "checkpoints/step-2/manifest.json", "stray")
    other.download()
    assert _files(other.copy) == _files(one.copy)
    (one.copy / "tree.json").write_text("changed")
    for file in sorted((one.copy / "checkpoints").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    _write(one.copy, "checkpoints/step-3/manifest.json")
    one.upload()
    other.download()
    assert _files(other.copy) == _files(one.copy)
    assert not (other.copy / "checkpoints" / "step-1").exists()


def test_of_a_run_that_was_begun_anew_a_reader_sees_nothing_of_the_one_before(
    store: S3Server, here: Path
) -> None:
    run, reader = (RemoteRun(f"{RUNS}/anew", here / name) for name in ("run", "reader"))
    _write(run.copy, "config.yaml", "tree.json", "model/model.json", "result.json")
    run.upload()
    reader.download(to_read=True)
    assert _files(reader.copy) == _files(run.copy)
    _write(reader.copy, "report/index.html", "model/network.onnx")
    for name in ("result.json", "model/model.json"):
        run._store.delete_file(name)
    reader.download(to_read=True)
    assert set(_files(reader.copy)) == {
        "config.yaml",
        "tree.json",
        "report/index.html",
        "model/network.onnx",
    }


@pytest.mark.parametrize(
    "trouble",
    ["no such bucket", "nobody there", "no such host", "read only", "another store", "no run"],
)
def test_what_is_wrong_with_a_store_is_said_before_anything_starts(
    trouble: str, world: Path, store: S3Server, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "read only":
        key, secret = store.read_only_keys()
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    url, words, code = {
        "no such bucket": ("s3://other/runs", ("NO_SUCH_BUCKET", "bucket exists"), 1),
        "nobody there": (
            f"{RUNS}?scheme=http&endpoint_override=127.0.0.1:9",
            ("Could not connect",),
            1,
        ),
        "no such host": (
            f"{RUNS}?scheme=http&endpoint_override=nowhere.invalid",
            ("Could not resolve",),
            1,
        ),
        "read only": (RUNS, ("cannot be written", "ACCESS_DENIED", "credentials allow"), 1),
        "another store": (
            "ftp://host/runs",
            ("run.directory", "s3://BUCKET/runs", "ftp://host/runs"),
            2,
        ),
        "no run": (f"{RUNS}-none", (f"There is no run at {RUNS}-none/tiny",), 1),
    }[trouble]
    arguments = (
        ["status", f"{url}/tiny"]
        if trouble == "no run"
        else ["train", "tiny.yaml", f"run.directory={url}"]
    )
    with nothing_overwritten(world, ()):
        ended = run_command(arguments)
    store.let_in(store.endpoint, known_only=False)
    assert_one_sentence(ended, code, (*words, url.partition("?")[0]))


@pytest.fixture
def here(store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for copies, in a process that reaches the store and has brought nothing yet."""
    for name, value in store.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return tmp_path


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def _files(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_a_run_with_a_scout_resumes_from_what_was_sent_of_either_to_the_same_bits(
    tiny_data: Path,
    store: S3Server,
    ranks: RankServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = anew_config(tiny_data, f"{RUNS}-anew")
    machines = iter(store.environment(tmp_path / f"machine-{number}") for number in range(9))
    # In the scout, between it and the decision, as that is sent, and in the training of the tree.
    for file in (
        "scout/checkpoints/step-00000008/manifest.json",
        "scout/result.json",
        "decisions.jsonl",
        "checkpoints/step-00000010/manifest.json",
    ):
        ended = ranks.run(
            train_at_url, config=config, environment=next(machines), fault="killed", file=file
        )[0]
        assert ended.exit_code == -signal.SIGKILL
        assert file not in store.objects("runs-anew/tiny")
    last = next(machines)
    assert ranks.call(train_at_url, config=config, environment=last)["end"] == "done"

    alone = anew_config(tiny_data, tmp_path)
    assert ranks.call(train_tiny, config=alone)["end"] == "done"
    for name, value in last.items():
        monkeypatch.setenv(name, value)
    copy = load_config(config).run_directory
    assert_same_content(copy, tmp_path / "tiny")
    assert_same_content(copy / "scout", tmp_path / "tiny" / "scout")
