"""`evaluate --out` through the command line, on a run that has learned to see how bright pictures are, and on data with wrong labels."""

import errno
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from tiny_world import assert_one_sentence, run_command

from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.tasks import Task

TASKS = (
    Task("light"),
    Task("Shade/of", "categorical", ("dark", "mid", "bright")),
    Task("step", "ordinal", ("1", "2", "3", "4")),
    Task("level", "number", mean=0.5, deviation=0.3, unit="lx"),
)
NUM_SAMPLES = {"train": 48, "val": 24, "test": 30}
WRONG = {"test-004", "test-017", "test-021"}
CONFIG = """\
run: {directory: runs}
data: {path: data, flip: false}
model: {backbone: vgg9, width: 4}
method: {name: fixed}
train: {iterations: 40, batch_size: 16, evaluate_every: 0, eval_batch_size: 16}
optim: {name: adamw, lr: 0.01}
launch: {workers: 1, device: cpu, threads: 1}
"""


def draw_samples(wrong: set[str]) -> Iterator[Sample]:
    """Grey pictures; the labels of `light` of the wrong ones are turned round."""
    draw = np.random.default_rng(2)
    for split, count in NUM_SAMPLES.items():
        for number in range(count):
            level = float(draw.random())
            if abs(level - 0.5) < 0.1:  # nobody could say
                level += 0.2
            noise = draw.normal(0, 0.02, (32, 32, 3))
            pixels = (255 * (level + noise)).clip(0, 255).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "JPEG", quality=90)
            key = f"{split}-{number:03d}"
            labels: dict[str, int | float | str] = {
                "light": int((level > 0.5) != (key in wrong)),
                "Shade/of": TASKS[1].classes[int(level * 2.99)],
                "step": TASKS[2].classes[int(level * 3.99)],
                "level": level,
            }
            if number % 6 == 5:
                del labels["Shade/of"]
            yield Sample(key, split, content.getvalue(), labels)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, the same with wrong labels, and a run that was evaluated."""
    folder = tmp_path_factory.mktemp("answers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pack(draw_samples(set()), folder / "data", TASKS, shard_samples=20)
        pack(draw_samples(WRONG), folder / "wrong", TASKS, shard_samples=20)
        (folder / "tiny.yaml").write_text(CONFIG)
        assert run_command(["train", "tiny.yaml"]).code == 0
        shutil.copytree("runs/tiny", "runs/before")
        ended = run_command(["evaluate", "runs/tiny", "--out", "predictions.parquet"])
        assert ended.code == 0, ended.err
        assert "predictions of 54 images" in ended.out
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the current folder."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_predictions_hold_every_image_with_its_labels_and_the_scores_of_predict(
    folder: Path,
) -> None:
    table = pandas.read_parquet("predictions.parquet")
    expected = [f"{split}-{n:03d}" for split in ("val", "test") for n in range(NUM_SAMPLES[split])]
    assert table["key"].tolist() == expected
    samples = {sample.key: sample for sample in draw_samples(set())}
    for row in table.to_dict("records"):
        labels = samples[row["key"]].labels
        for name in ("light", "level"):
            assert row[f"label:{name}"] == pytest.approx(labels[name])
        assert row["label:step"] == labels["step"]
        assert pandas.isna(row["label:Shade/of"]) == ("Shade/of" not in labels)
    Path("photos").mkdir()
    for key in expected[:5]:
        Path("photos", f"{key}.jpg").write_bytes(samples[key].image)
    told = json.loads(run_command(["predict", "runs/tiny", "photos", "--format", "json"]).out)
    thresholds = json.loads(Path("runs/tiny/model/model.json").read_text())["thresholds"]
    assert thresholds.keys() == {"light"}
    for one in told:
        row = table.set_index("key").loc[Path(one["image"]).stem]
        assert row["light"] == pytest.approx(one["scores"]["light"], abs=1e-4)
        assert row["level"] == pytest.approx(one["scores"]["level"], abs=1e-4)
        assert row["step:3"] == pytest.approx(one["scores"]["step"]["3"], abs=1e-4)
        shares = one["scores"]["Shade/of"]
        assert one["answers"]["Shade/of"] == max(shares, key=shares.get)
        is_light = one["scores"]["light"] >= thresholds["light"]["threshold"]
        assert one["answers"]["light"] == int(is_light)


def test_answers_are_those_of_scikit_learn_on_the_predictions(folder: Path) -> None:
    table = pandas.read_parquet("predictions.parquet")
    found = json.loads(Path("runs/tiny/answers/answers.json").read_text())
    light = found["tasks"]["light"]
    val, test = (table[table["split"] == split] for split in ("val", "test"))
    of_val = [f1_score(val["label:light"], val["light"] >= at) for at in val["light"]]
    assert found["thresholds"]["light"]["f1"] == pytest.approx(max(of_val))
    own = found["thresholds"]["light"]["threshold"]
    assert light["f1"] == pytest.approx(f1_score(test["label:light"], test["light"] >= own))
    expected = average_precision_score(test["label:light"], test["light"])
    assert light["average_precision"] == pytest.approx(expected)
    written = json.loads(Path("runs/tiny/result.json").read_text())["metrics"]["test"]["tasks"]
    right = accuracy_score(test["label:light"], test["light"] >= own)
    assert light["accuracy"] == pytest.approx(right)
    for name in ("Shade/of", "step"):
        assert found["tasks"][name]["accuracy"] == pytest.approx(written[name]["accuracy"])
        low, high = found["tasks"][name]["intervals"]["accuracy"]
        assert low <= found["tasks"][name]["accuracy"] <= high
    error = written["level"]["mean_absolute_error"]
    assert found["tasks"]["level"]["mean_absolute_error"] == pytest.approx(error, rel=1e-4)
    assert np.sum(found["tasks"]["Shade/of"]["confusion"]) == 25


def test_planted_wrong_labels_are_the_first_suspects_and_the_runs_own_answers_stay(
    folder: Path,
) -> None:
    before = Path("runs/tiny/answers/answers.json").read_bytes()
    model = Path("runs/tiny/model/model.json").read_bytes()
    command = ["evaluate", "runs/tiny", "--data", "wrong", "--out", "wrong.csv", "--train"]
    ended = run_command(command)
    assert ended.code == 0, ended.err
    assert "distbranch report" not in ended.out  # which shows the run's own
    suspects = pandas.read_csv("runs/tiny/answers/wrong/suspects.csv").to_dict("records")
    first = [row for row in suspects if row["task"] == "light"][: len(WRONG)]
    assert {row["key"] for row in first} == WRONG
    assert {row["task"] for row in suspects[:2]} == {"light"}
    assert Image.open("runs/tiny/answers/wrong/suspects.jpg").width > 200
    table = pandas.read_csv("wrong.csv")
    assert table["split"].value_counts().to_dict() == NUM_SAMPLES
    assert Path("runs/tiny/answers/answers.json").read_bytes() == before
    assert Path("runs/tiny/model/model.json").read_bytes() == model
    # A CSV says the same as Parquet.
    val = table[table["split"] == "val"].reset_index(drop=True)
    same = pandas.read_parquet("predictions.parquet").query("split == 'val'")
    for name in ("light", "level", "Shade/of:mid", "label:step"):
        np.testing.assert_array_equal(val[name], same[name].astype(val[name].dtype))


def test_a_precision_that_is_asked_for_moves_the_threshold_and_stale_pictures_go(
    folder: Path,
) -> None:
    stale = Path("runs/tiny/answers/errors-gone.jpg")
    stale.write_bytes(b"")
    ended = run_command(["evaluate", "runs/tiny", "--out", "p.parquet", "--precision", "1"])
    assert ended.code == 0, ended.err
    chosen = json.loads(Path("runs/tiny/model/model.json").read_text())["thresholds"]["light"]
    assert chosen["chosen_by"] == "recall at precision 1"
    assert chosen["precision"] == 1
    assert not stale.exists()
    assert not list(Path("runs/tiny/answers").glob(".*"))
    assert not list(Path().glob(".*p*"))


def test_the_report_shows_answers_and_an_exported_file_knows_its_thresholds(folder: Path) -> None:
    assert run_command(["report", "runs/tiny"]).code == 0
    page = Path("runs/tiny/report.html").read_text()
    assert '<section id="answers">' in page
    for words in ("base rate", "Suspected wrong labels", "Calibration", "Shade/of: which class"):
        assert words in page
    assert page.count("data:image/jpeg") >= 2
    assert run_command(["report", "runs/before"]).code == 0
    assert '<section id="answers">' not in Path("runs/before/report.html").read_text()
    Path("photo.jpg").write_bytes(next(draw_samples(set())).image)
    ended = run_command(["export", "runs/tiny", "--out", "tiny.onnx"])
    assert ended.code == 0, ended.err
    lines = [
        run_command(["predict", model, "photo.jpg", "--format", "csv"]).out.splitlines()
        for model in ("runs/tiny", "tiny.onnx")
    ]
    assert lines[0][0] == lines[1][0]
    assert lines[0][0].split(",")[1:4] == ["light", "light:answer", "Shade/of:dark"]
    assert "Shade/of," in lines[0][0]
    # A run that was not evaluated so answers as ever.
    plain = run_command(["predict", "runs/before", "photo.jpg", "--format", "csv"]).out
    assert "answer" not in plain


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--out", "p.xlsx"], 2, (".parquet or .csv", "p.xlsx")),
        (["--out", "p.csv", "--split", "val"], 2, ("--split",)),
        (["--precision", "0.9"], 2, ("--out",)),
        (["--train"], 2, ("--out",)),
        (["--out", "data/dataset.json/p.csv"], 1, ("cannot be written",)),
        (["--out", "p.csv", "--data", "absent"], 1, ("absent",)),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    folder: Path, arguments: list[str], code: int, words: tuple[str, ...]
) -> None:
    assert_one_sentence(run_command(["evaluate", "runs/tiny", *arguments]), code, words)
    assert not Path("p.csv").exists()


def test_an_evaluation_that_ends_halfway_leaves_all_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [Path("runs/tiny/model/model.json"), *Path("runs/tiny/answers").iterdir()]
    before = {file: file.read_bytes() for file in files}

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("distbranch.answers.evaluation.write_sheet", fail)
    ended = run_command(["evaluate", "runs/tiny", "--out", "again.csv", "--precision", "0.5"])
    assert_one_sentence(ended, 1, ("answers cannot be written", "No space left"))
    assert {file: file.read_bytes() for file in files} == before
    assert len(list(Path("runs/tiny/answers").iterdir())) == len(files) - 1
    assert len(pandas.read_csv("again.csv")) == 54


def test_damaged_thresholds_are_told(folder: Path) -> None:
    file = Path("runs/tiny/model/model.json")
    damaged = json.loads(file.read_text()) | {"thresholds": {"light": "high"}}
    file.write_text(json.dumps(damaged))
    Path("photo.jpg").write_bytes(next(draw_samples(set())).image)
    ended = run_command(["predict", "runs/tiny", "photo.jpg"])
    assert_one_sentence(ended, 1, ("model of runs/tiny is damaged",))


def test_damaged_answers_are_told(folder: Path) -> None:
    Path("runs/tiny/answers/answers.json").write_text("{")
    ended = run_command(["report", "runs/tiny"])
    assert_one_sentence(ended, 1, ("answers.json", "evaluate RUN --out"))
