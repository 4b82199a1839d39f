"""`distbranch serve`, as a process of its own: a load of requests, what it refuses, and that nothing of it is left."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import psutil
import pytest
import requests
from tiny_world import assert_one_sentence, picture, run_command

from distbranch.launch.processes import find_free_port

THRESHOLDS = {"bright": {"threshold": 0.25}}
NUM_REQUESTS = 1000
NUM_REPLICAS = 2


@dataclass
class Served:
    """A server of the tiny run, its address and that of its metrics."""

    process: subprocess.Popen[str]
    file: Path
    url: str
    metrics: str


@contextmanager
def serving(file: Path) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="sv") as scratch:  # Ray's sockets need a short path
        port = str(find_free_port())
        options = ["--port", port, "--max-megabytes", "0.1", "--replicas", str(NUM_REPLICAS)]
        process = subprocess.Popen(
            [sys.executable, "-m", "distbranch", "serve", str(file), *options],
            env={**os.environ, "RAY_TMPDIR": scratch},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # it says where, when it answers
            found = re.search(r"3 tasks at (http://\S+/), .* (http://\S+/metrics);", line)
            assert found is not None, (line, process.poll())
            yield Served(process, file, found[1], found[2])
            started = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=300) == 0
            assert started
            assert not [process for process in started if process.is_running()]
            assert os.listdir(scratch) == []
        finally:
            process.kill()
            process.wait()


def test_a_server_answers_a_load_as_predict_does_refuses_the_rest_and_leaves_nothing(
    world: Path,
) -> None:
    # In one test, for a server takes a while to start.
    assert run_command(["export", "runs/tiny", "--out", "served.onnx"]).code == 0
    _add_thresholds(Path("served.onnx"))
    with serving(world / "served.onnx") as served:
        check_load(served, world / "load")
        check_refusals(served)
        check_descriptions(served)
        taken = run_command(["serve", "served.onnx", "--port", served.url.split(":")[-1][:-1]])
        assert_one_sentence(taken, 1, ("Nothing can be served", "--port"))


def check_load(served: Served, folder: Path) -> None:
    folder.mkdir()
    files = [folder / f"{number:02d}.jpg" for number in range(10)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    said = run_command(["predict", str(served.file), str(folder), "--format", "json"]).out
    expected = [one["scores"] for one in json.loads(said)]

    def ask(number: int) -> tuple[int, dict[str, object]]:
        content = files[number % 10].read_bytes()
        if number % 2:
            answer = requests.post(served.url, data=content, timeout=300)
        else:
            answer = requests.post(served.url, files={"image": ("a.jpg", content)}, timeout=300)
        return answer.status_code, answer.json()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(NUM_REQUESTS)))
    assert {status for status, _ in answers} == {200}
    started = psutil.Process(served.process.pid).children(recursive=True)
    titles = [" ".join(process.cmdline()) for process in started]
    assert sum("ServeReplica" in title for title in titles) == NUM_REPLICAS, titles
    for number, (_, answer) in enumerate(answers):
        scores = expected[number % 10]
        # float32 sums of another batch
        for task in ("bright", "wide"):
            assert answer["scores"][task] == pytest.approx(scores[task], abs=1e-5)  # type: ignore[index]
        assert answer["scores"]["shade"] == pytest.approx(scores["shade"], abs=1e-5)  # type: ignore[index]
        assert answer["image"] == ("" if number % 2 else "a.jpg")
        most_probable = max(scores["shade"], key=scores["shade"].__getitem__)
        assert answer["answers"] == {
            "bright": int(scores["bright"] >= 0.25),
            "shade": most_probable,
        }


def check_refusals(served: Served) -> None:
    def told(status: int, **sent: object) -> str:
        answer = requests.post(served.url, timeout=300, **sent)  # type: ignore[arg-type]
        assert answer.status_code == status
        return str(answer.json()["error"])

    assert "cannot be read: it is not an image. Send" in told(400, data=b"hello")
    assert "it is a damaged image" in told(400, data=picture(1)[:300])
    assert "The image is empty" in told(400, data=b"")
    assert "found 0" in told(400, files={"image": (None, "words")})
    assert "found 2" in told(400, files={"a": ("a", picture(1)), "b": ("b", picture(2))})
    assert "form cannot be read" in told(
        400, data=b"x", headers={"content-type": "multipart/form-data"}
    )
    for sent in ({"data": bytes(100_001)}, {"files": {"image": ("a", bytes(100_001))}}):
        assert "100,000 bytes at most" in told(413, **sent)
    assert requests.put(served.url, timeout=300).status_code == 405


def check_descriptions(served: Served) -> None:
    assert requests.get(f"{served.url}-/healthz", timeout=300).status_code == 200
    described = requests.get(served.url, timeout=300).json()
    assert [task["name"] for task in described["tasks"]] == ["bright", "wide", "shade"]
    assert described["thresholds"] == THRESHOLDS
    assert "ray_serve_" in requests.get(served.metrics, timeout=300).text


def _add_thresholds(file: Path) -> None:
    """As an export of a run whose thresholds were chosen writes them."""
    model = onnx.load(file)
    (entry,) = [prop for prop in model.metadata_props if prop.key == "distbranch"]
    entry.value = json.dumps(json.loads(entry.value) | {"thresholds": THRESHOLDS})
    onnx.save(model, file)


def test_what_is_no_exported_file_is_refused_before_ray_starts(world: Path) -> None:
    assert_one_sentence(run_command(["serve", "runs/tiny"]), 2, ("runs/tiny", "distbranch export"))
    assert_one_sentence(run_command(["serve", "none.onnx"]), 1, ("none.onnx",))


def test_without_its_packages_one_sentence_says_what_to_install(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    ended = run_command(["serve", "none.onnx"])
    assert_one_sentence(ended, 1, ("starlette", "pip install 'distbranch[serve]'"))
