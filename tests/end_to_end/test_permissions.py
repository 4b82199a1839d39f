"""Modes of files: what is written has those of the umask, and what may not be read is told as such."""

import os
import stat
from pathlib import Path

import pytest
from plain_user import USER, run_as_plain_user
from tiny_world import assert_one_sentence, contents, run_command

NEWEST = "runs/tiny/checkpoints/step-00000004"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_every_file_and_folder_has_the_mode_of_the_umask(world: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for command in (
            "train tiny.yaml run.directory=new/runs",
            "export new/runs/tiny",
            "report new/runs/tiny",
            "predict new/runs/tiny images --format csv --out new/scores.csv",
            "data pack csv new/packed --images images --table table.csv",
            "data show new/packed --out new/shown/grid.png",
        ):
            ended = run_command(command.split())
            assert ended.code == 0, ended.err
    finally:
        os.umask(before)
    written = [path for path in Path("new").rglob("*") if not path.is_symlink()]
    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in written}
    wrong = {
        path: oct(mode) for path, mode in modes.items() if mode != _usual_mode(Path(path), umask)
    }
    assert len(modes) > 30
    assert not wrong


def _usual_mode(path: Path, umask: int) -> int:
    return (0o777 if path.is_dir() else 0o666) & ~umask


def test_what_may_not_be_read_is_told_with_its_owner_and_nothing_is_set_aside(world: Path) -> None:
    Path("runs/tiny/result.json").rename("result.json")
    Path("runs/tiny/model/model.json").rename("model.json")
    train, evaluate = ["train", "tiny.yaml"], ["evaluate", "runs/tiny", "--split", "val"]
    unfinished = [
        (f"{NEWEST}/model.safetensors", train),
        (f"{NEWEST}/optimizer.safetensors", train),
        (f"{NEWEST}/manifest.json", train),
        (NEWEST, train),
        ("runs/tiny/checkpoints", train),
        ("runs/tiny/config.yaml", train),
        ("runs/tiny", train),
        (f"{NEWEST}/model.safetensors", evaluate),
        ("data/dataset.json", train),
        ("data", train),
        ("data/train-000001.tar", [*train, "run.name=shard"]),
        ("data/train-000001.tar", [*train, "run.name=skips", "data.on_bad_sample=skip"]),
        (
            "images/b.jpg",
            [
                "data",
                "pack",
                "csv",
                "new",
                "--images",
                "images",
                "--table",
                "table.csv",
                "--on-bad-image",
                "skip",
            ],
        ),
        ("table.csv", ["data", "pack", "csv", "new", "--images", "images", "--table", "table.csv"]),
        ("data/val-000000.tar", ["data", "check", "data"]),
    ]
    before = contents(world / "runs/tiny")
    _assert_told(world, unfinished)
    assert contents(world / "runs/tiny") == before

    Path("model.json").rename("runs/tiny/model/model.json")
    Path("result.json").rename("runs/tiny/result.json")
    finished = [
        ("runs/tiny/model/model.safetensors", evaluate),
        ("runs/tiny/model/model.json", evaluate),
        ("runs/tiny/result.json", train),
        ("runs/tiny/tree.json", train),
        ("runs/tiny/metrics.jsonl", ["report", "runs/tiny"]),
        ("runs/tiny/model/model.safetensors", ["export", "runs/tiny"]),
        ("images/b.jpg", ["predict", "runs/tiny", "images"]),
        (
            "runs/tiny/tree.json",
            [*train, "run.name=given", "method.name=fixed", "method.groups=runs/tiny"],
        ),
    ]
    _assert_told(world, finished)


def test_runs_that_others_do_not_show_leave_the_list_of_the_rest(world: Path) -> None:
    Path("runs/tiny/result.json").unlink()
    Path("runs/open").mkdir()
    Path("runs/open/config.yaml").write_text("run: {name: open}\n")
    status = ["status", "runs/tiny"]
    commands = [("runs/tiny", ["ls"]), ("runs/tiny/metrics.jsonl", ["ls"])]
    whole, part, asked = run_as_plain_user(world, [*commands, ("runs/tiny/metrics.jsonl", status)])
    assert whole.code == part.code == 0, whole.err + part.err
    assert "open" in whole.out
    assert "tiny" not in whole.out
    assert "unreadable" in part.out
    assert "no permission to read metrics.jsonl" in part.out
    assert_one_sentence(asked, 1, ("permission denied", "metrics.jsonl"))


def _assert_told(world: Path, commands: list[tuple[str, list[str]]]) -> None:
    for (closed, arguments), ended in zip(
        commands, run_as_plain_user(world, commands), strict=True
    ):
        assert_one_sentence(ended, 1, ("permission denied", f"user {USER}"))
        assert Path(closed).name in ended.err, (closed, arguments, ended.err)
        assert not [word for word in ("damaged", "missing", "absent") if word in ended.err], (
            ended.err
        )
