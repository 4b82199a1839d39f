"""The command line on a tiny run: help, plans without effect, evaluation and predictions that agree with the run."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from rich.console import Console
from tiny_world import TASKS, Ended, assert_one_sentence, contents, nothing_overwritten, run_command

import distbranch
from distbranch import cli
from distbranch.config import Config, describe_keys
from distbranch.config.reading import parse_override
from distbranch.config.sweep import SweepConfig
from distbranch.engine.predict import Prediction
from distbranch.report.prediction_table import describe_prediction, format_predictions
from distbranch.tasks import Task

CONFIGS = Path(__file__).parents[1] / "configs"


def commands_below(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to every command and every group of them."""
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands_below(below, (*path, name))


def command_at(path: Sequence[str]) -> Any:
    command = typer.main.get_command(cli.app)
    for word in path:
        command = command.commands[word]  # type: ignore[attr-defined]
    return command


def examples_of(command: Any) -> list[str]:
    return re.findall("`([^`]*)`", command.help.partition("Examples:")[2])


def parse(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The command that `distbranch WORDS` would run, by the words that lead to it, and its arguments; nothing runs."""
    command, context, path = typer.main.get_command(cli.app), None, []
    while True:
        context = command.make_context(command.name, words, parent=context)
        if not hasattr(command, "commands"):
            return path, context.params
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        path.append(name)


PATHS = list(commands_below(typer.main.get_command(cli.app)))
COMMANDS = [path for path in PATHS if not hasattr(command_at(path), "commands")]


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")


def run(command: str) -> Ended:
    return run_command(command.split())


def numbers_of(table: str, first: str) -> list[float]:
    """The numbers in the row of a printed table that begins with `first`."""
    row = next(line for line in table.splitlines() if re.match(rf"\W*{first}\W", line))
    return [float(cell) for cell in re.findall(r"\d+\.?\d*", row)]


def test_all_commands_are_looked_at() -> None:
    assert len(COMMANDS) >= 26
    assert {
        ("train",),
        ("sweep",),
        ("submit", "slurm-array"),
        ("bench", "latency"),
        ("experiment", "policies"),
    } < set(COMMANDS)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_a_help_text(path: tuple[str, ...]) -> None:
    ended = run(" ".join([*path, "--help"]))
    assert ended.code == 0, ended.err
    meaning = command_at(path).help.partition("Examples:")[0]
    assert meaning.strip().endswith((".", "?", ".)"))
    told = " ".join(ended.out.split())
    assert " ".join(meaning.replace("`", "").split())[:60] in told.replace("`", "")
    for example in examples_of(command_at(path)):
        assert example in told


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_examples_that_are_commands_as_they_are_written(
    path: tuple[str, ...],
) -> None:
    examples = examples_of(command_at(path))
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[0] in ("distbranch", "torchrun")
        given = words[words.index("distbranch") + 1 :]
        found, arguments = parse(given)
        assert found == list(path) or example != examples[0], (
            example
        )  # a further one may say what comes after
        assert [name for name, value in arguments.items() if value] or given == list(path), example
        for config in re.findall(r"configs/(\S+\.yaml)", example):
            assert (CONFIGS / config).is_file(), f"{config} of `{example}` does not exist"
        if path[0] == "data":  # whose options say something of columns by name
            continue
        for override in (word for word in given if re.fullmatch(r"[a-z_.]+=.*", word)):
            assert parse_override(override)[0].split(".")[0] in {
                *Config.model_fields,
                *SweepConfig.model_fields,
            }, example


def test_an_example_with_an_option_that_does_not_exist_would_be_noticed() -> None:
    for words in (
        ["report", "runs/quickstart", "--pages", "2"],
        ["train", "--dry-rum"],
        ["doctor", "here"],
    ):
        with pytest.raises(Exception, match=r"No such option|unexpected extra argument"):
            parse(words)


@pytest.mark.parametrize("example", examples_of(command_at(["data", "pack"])))
def test_the_options_in_the_examples_of_packing_are_those_of_their_source(example: str) -> None:
    words = shlex.split(example)
    listed = run(f"data pack {words[3]} --options").out
    for option in (word for word in words if word.startswith("--")):
        assert option in listed, example


def test_the_version_is_told() -> None:
    ended = run("--version")
    assert (ended.code, ended.out) == (0, f"distbranch {version('distbranch')}\n")
    assert run("bench -h").out == run("bench --help").out


def test_help_config_prints_every_key_with_default_range_and_meaning() -> None:
    ended = run("train --help-config")
    assert ended.code == 0
    text = " ".join(ended.out.split())
    for key, default, limits, meaning in describe_keys():
        row = next(
            line for line in ended.out.splitlines() if re.match(rf"\W*{re.escape(key)}\s", line)
        )
        assert default in row
        assert limits in row
        assert meaning.split()[0] in text


def test_help_config_with_a_prefix_prints_the_keys_that_begin_with_it() -> None:
    ended = run("train --help-config method.max")
    assert "method.max_branches" in ended.out
    assert "optim.lr" not in ended.out
    ended = run("train --help-config optim")
    keys = {key for key, *_ in describe_keys() if key.startswith("optim.")}
    assert set(re.findall(r"optim\.\w+", ended.out)) >= keys
    assert "launch.workers" not in ended.out
    refused = run("train --help-config optin")
    assert refused.code == 2
    assert "Did you mean optim" in refused.err


def test_dry_run_prints_sizes_and_starts_nothing(world: Path) -> None:
    with nothing_overwritten(world, ()):
        ended = run("train tiny.yaml run.name=new --dry-run")
    assert ended.code == 0, ended.err
    for words in (
        "parameters",
        "multiply-adds",
        "bytes",
        "train 24, val 8, test 8",
        "32x32",
        "runs/new",
        "predicted scaling",
        "less than a minute on this machine",
        "1024",
    ):
        assert words in ended.out
    assert "runs/tiny-2" in run("train tiny.yaml --dry-run --fresh").out
    network = distbranch.load(world / "runs/tiny")
    assert numbers_of(ended.out, "ranks")[0] == 1
    assert numbers_of(ended.out, "parameters")[0] > 0
    assert sum(p.numel() for p in network.parameters()) >= numbers_of(ended.out, "parameters")[0]


def test_several_problems_are_a_line_each_and_folded_at_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = "train quickstart optim.lr=fast train.steps=3 data.flip=maybe"
    in_file = run(command).err.splitlines()
    assert in_file[0] == "Error: The configuration has 3 problems:"
    assert [line[:4] for line in in_file[1:]] == ["(1) ", "(2) ", "(3) "]
    terminal = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=60)
    monkeypatch.setattr(cli, "errors", terminal)
    run(command)
    folded = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, folded)) <= 60
    assert all(line.startswith(("Error: ", "(", "    ")) for line in folded)
    assert " ".join(map(str.strip, folded)) == " ".join(in_file)


def test_dry_run_of_a_sweep_lists_its_trials(world: Path) -> None:
    (world / "s.yaml").write_text("base: tiny.yaml\nseeds: [0, 1, 2, 3, 4, 5, 6, 7, 8]\n")
    with nothing_overwritten(world, ()):
        ended = run("sweep s.yaml --dry-run")
    assert all(f"seed{seed}" in ended.out for seed in range(9)), ended.err + ended.out


def test_settings_without_effect_are_told(world: Path) -> None:
    ended = run(
        "train tiny.yaml run.name=new --dry-run train.iterations=2 optim.warmup=3 method.pretrained_channels=bgr"
    )
    assert ended.code == 0
    told = " ".join(ended.err.split())
    assert "optim.warmup=3 is longer than train.iterations=2" in told
    assert "never branches" in told
    assert "method.pretrained_channels=bgr is" in told
    assert not run("train tiny.yaml --dry-run").err


def test_dry_run_says_that_data_would_be_packed_first(world: Path) -> None:
    pack = "{source: csv, images: images, table: table.csv}"
    with nothing_overwritten(world, ()):
        ended = run_command(
            [
                "train",
                "tiny.yaml",
                "--dry-run",
                "run.name=new",
                "data.path=new",
                f"data.pack={pack}",
            ]
        )
    assert ended.code == 0, ended.err
    assert "would be packed first (4 samples)" in ended.out


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
def test_a_data_set_that_was_packed_otherwise_is_refused(world: Path, how: list[str]) -> None:
    assert run("data pack csv packed --images images --table table.csv").code == 0
    pack = "{source: csv, images: ./images, table: table.csv, seed: 4}"
    with nothing_overwritten(world, ()):
        ended = run_command(
            ["train", "tiny.yaml", *how, "run.name=new", "data.path=packed", f"data.pack={pack}"]
        )
    assert_one_sentence(
        ended, 1, ("packed was packed with", "seed=0 and not 4", "another data.path")
    )


def test_a_finished_run_says_so_and_changes_nothing(world: Path) -> None:
    with nothing_overwritten(world, ()):
        ended = run("train tiny.yaml")
    assert ended.code == 0, ended.err
    assert "runs/tiny" in ended.out


def test_fresh_starts_over_in_a_new_directory(world: Path) -> None:
    with nothing_overwritten(world, ("runs/tiny-2/*",)):
        assert run("train tiny.yaml --fresh").code == 0
    same = "model/model.safetensors"
    assert contents(world / "runs/tiny")[same] == contents(world / "runs/tiny-2")[same]


@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluate_equals_what_the_run_wrote(world: Path, split: str) -> None:
    with nothing_overwritten(world, ()):
        ended = run(f"evaluate runs/tiny --split {split}")
    assert ended.code == 0, ended.err
    metrics = json.loads((world / "runs/tiny/result.json").read_text())["metrics"][split]
    for name, row in [*metrics["tasks"].items(), ("mean", metrics["mean"])]:
        keys = ("accuracy", "balanced_accuracy", "average_precision")
        expected = [round(100 * row[key], 1) for key in keys if row.get(key) is not None]
        assert numbers_of(ended.out, name)[: len(expected)] == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("command", ["evaluate runs/tiny", "predict runs/tiny photo.jpg"])
def test_scores_of_an_unfinished_run_say_of_which_step_they_are(world: Path, command: str) -> None:
    (world / "runs/tiny/result.json").unlink()
    shutil.rmtree(world / "runs/tiny/model")
    ended = run(command)
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    assert "The run runs/tiny has not finished: these are the weights of step 4 of 4." in told
    assert re.search("bright|photo", ended.out)


def test_predictions_as_json_are_probabilities_of_every_task(world: Path) -> None:
    ended = run("predict runs/tiny photo.jpg images --format json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert [Path(one["image"]).name for one in found] == [
        "photo.jpg",
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "d.jpg",
    ]
    for one in found:
        assert list(one["scores"]) == [task.name for task in TASKS]
        assert 0 <= one["scores"]["bright"] <= 1
        assert list(one["scores"]["shade"]) == ["dark", "mid", "light"]
        assert sum(one["scores"]["shade"].values()) == pytest.approx(1, abs=1e-6)


def test_predictions_as_csv_equal_those_as_json(world: Path) -> None:
    ended = run("predict runs/tiny photo.jpg --out new/scores.txt")
    assert ended.code == 0, ended.err
    assert "new/scores.txt: scores of 1 image(s) as CSV" in ended.out
    assert run("predict runs/tiny photo.jpg --format csv --out scores.csv").code == 0
    assert (world / "new/scores.txt").read_text() == (world / "scores.csv").read_text()
    (row,) = csv.DictReader(io.StringIO((world / "scores.csv").read_text()))
    (one,) = json.loads(run("predict runs/tiny photo.jpg --format json").out)
    classes = ["shade:dark", "shade:mid", "shade:light"]
    assert list(row) == ["image", "bright", "wide", *classes, "shade"]
    assert row["shade"] == one["answers"]["shade"]
    assert float(row["wide"]) == pytest.approx(one["scores"]["wide"], abs=1e-6)
    assert float(row["shade:mid"]) == pytest.approx(one["scores"]["shade"]["mid"], abs=1e-6)


@pytest.mark.parametrize(
    ("names", "heads"),
    [
        (("image", "b"), ["image", "image (2)", "b"]),
        (("image (2)", "image"), ["image", "image (2)", "image (3)"]),
        (
            ("shade:dark", "shade"),
            ["image", "shade:dark", "shade:dark (2)", "shade:light", "shade"],
        ),
        (
            ("shade", "shade:dark", "scores"),
            ["image", "shade:dark", "shade:light", "shade", "shade:dark (2)", "scores"],
        ),
    ],
)
def test_no_column_of_predictions_takes_the_place_of_another(
    names: tuple[str, ...], heads: list[str]
) -> None:
    scores: dict[str, float | dict[str, float]] = {
        name: 0.5 + 0.01 * at for at, name in enumerate(names)
    }
    tasks = [Task(name) for name in names]
    if "shade" in scores:
        scores["shade"] = {"dark": 0.25, "light": 0.75}
        tasks[names.index("shade")] = Task("shade", "categorical", ("dark", "light"))
    predictions = [Prediction(Path("photo.jpg"), scores)]
    head, row = csv.reader(io.StringIO(format_predictions(tasks, predictions, as_json=False)))
    assert head == heads
    cells = ["photo.jpg"]
    for score in scores.values():
        shares = score.values() if isinstance(score, dict) else [score]
        cells += [f"{share:.6f}" for share in shares]
        cells += ["light"] * isinstance(score, dict)
    assert row == cells
    (told,) = json.loads(format_predictions(tasks, predictions, as_json=True))
    assert told["scores"] == scores
    # Whether a probability is a yes, nobody has said yet.
    assert told.get("answers") == ({"shade": "light"} if "light" in row else None)


def test_answers_are_numbers_and_classes_and_with_a_threshold_yes_or_no() -> None:
    tasks = [Task("open"), Task("age", "number"), Task("size", "ordinal", ("S", "M", "L"))]
    scores = {"open": 1.0, "age": 41.5, "size": {"S": 0.4, "M": 0.3, "L": 0.3}}
    one = Prediction(Path("a.jpg"), scores)
    assert describe_prediction(tasks, one)["answers"] == {"age": 41.5, "size": "M"}
    answers = describe_prediction(tasks, one, {"open": 0.7})["answers"]
    assert answers == {"open": 1, "age": 41.5, "size": "M"}
    text = format_predictions(tasks, [one], {"open": 0.7}, as_json=False)
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["open:answer"], row["size"], "age:answer" in row) == ("1", "M", False)


def test_predictions_as_table_show_what_is_above_the_threshold(world: Path) -> None:
    everything = run("predict runs/tiny photo.jpg --threshold 0")
    nothing = run("predict runs/tiny photo.jpg --threshold 1")
    assert everything.code == nothing.code == 0
    assert "photo.jpg" in everything.out
    assert "bright (" in everything.out
    assert "bright" not in nothing.out


def test_doctor_examines_the_machine_and_says_what_to_do(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distbranch.launch.doctor.requires", lambda _: ["nosuch[a,b]>=1", "numpy"])
    with nothing_overwritten(world, ()):
        ended = run("doctor")
    assert ended.code == 1
    for what in (
        "pip install 'nosuch[a,b]>=1'",
        "numpy",
        "cores",
        "free memory",
        "shared memory",
        "host name",
        "port 6379",
        "runs in runs",
    ):
        assert what in ended.out
    assert "need something done" in ended.err


def test_a_sound_data_set_is_as_it_was_packed(world: Path) -> None:
    with nothing_overwritten(world, ()):
        ended = run("data check data")
    assert ended.code == 0, ended.err
    assert "40 samples in 5 shards are as they were packed" in ended.out


def test_packing_ends_with_what_was_packed_and_what_is_odd_about_it(world: Path) -> None:
    Image.new("RGB", (40, 600)).save(world / "images/a.jpg")
    (world / "table.csv").write_text(
        (world / "table.csv").read_text().replace("d.jpg,test", "d.jpg,val")
    )
    ended = run("data pack csv new --images images --table table.csv")
    assert ended.code == 0, ended.err
    for line in (
        "samples: 2 train, 2 val",
        "tasks: 1 binary, 1 categorical (colour: 2 classes)",
        "images: 600x40 pixels",
    ):
        assert line in ended.out
    told = " ".join(ended.err.split())
    for words in (
        "600x40 the first, 32x32 'b.jpg'",
        "--image-size",
        "600x40 pixels, and networks",
        "No sample is in test",
    ):
        assert words in told


def test_packing_again_says_that_nothing_was_packed_and_what_had_been_left_out(world: Path) -> None:
    lost = (world / "images/c.jpg").rename(world / "c.jpg")
    command = "data pack csv new --images images --table table.csv --on-bad-image skip"
    assert "packed 3 samples into new" in run(command).out
    lost.rename(world / "images/c.jpg")
    with nothing_overwritten(world, ()):
        ended = run(command)
    assert ended.code == 0, ended.err
    assert (
        "new holds this data set already, so nothing was packed; remove it to pack again"
        in ended.out
    )
    assert "left out: 1 missing-image" in ended.out
    assert "packed 3" not in ended.out


def test_options_of_a_source_are_listed() -> None:
    ended = run("data pack csv --options")
    assert ended.code == 0
    assert "0.8,0.1,0.1" in ended.out
    assert "One of: fail, skip." in ended.out
    assert "--image-column" in ended.out
    assert "required" in ended.out


def test_the_help_of_a_source_ends_with_its_options_and_that_of_no_source_names_the_way() -> None:
    for words in ("csv --help", "--help csv", "--shard-samples 9 csv -h"):
        told = run(f"data pack {words}").out
        assert "--shard-samples" in told.partition("--image-column")[0]
        assert "Column with the names of the image files." in told
    told = run("data pack hf --help").out.partition("Options of hf")[2]
    assert "--data" in told
    assert "--table" not in told
    assert "data pack csv --help" in run("data pack --help").out
    assert "--labels" in run("data index --help").out.partition("--options")[2]


def completions_of(words: str, folder: Path) -> list[str]:
    """What the shell offers for the last word, from the real program."""
    shell = {
        "_DISTBRANCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    program = "import sys; sys.argv = ['distbranch']; from distbranch.cli import main; main()"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, **shell, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment
    ).stdout.split()


def test_the_shell_completes_commands_keys_and_run_directories(tmp_path: Path) -> None:
    for run_name in ("thin", "branch"):
        (tmp_path / "runs" / run_name).mkdir(parents=True)
        (tmp_path / "runs" / run_name / "config.yaml").touch()
    (tmp_path / "runs" / "notes").mkdir()
    assert completions_of("distbranch eval", tmp_path) == ["evaluate"]
    assert completions_of("distbranch train c.yaml method.al", tmp_path) == ["method.alpha="]
    assert completions_of("distbranch report ", tmp_path) == ["runs/"]
    assert completions_of("distbranch report runs/", tmp_path) == ["runs/branch", "runs/thin"]
