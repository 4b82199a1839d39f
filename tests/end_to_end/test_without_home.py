"""A user without a home and without an entry in passwd, as containers have them."""

from pathlib import Path

from plain_user import run_as_plain_user
from tiny_world import assert_one_sentence

WORKS = (
    "train tiny.yaml run.name=homeless",
    "evaluate runs/homeless --split val",
    "report runs/homeless",
    "predict runs/homeless images --format csv --out scores.csv",
    "data pack csv packed --images images --table table.csv",
    "data show packed --out shown.png",
    "train tiny.yaml run.name=from-url data.path=file://{world}/data data.cache_directory=copies",
)
NEEDS_A_FOLDER = (
    "train tiny.yaml run.name=remote data.path=file://{world}/data",
    "train tiny.yaml run.directory=s3://bucket/runs",
)
NAMES_A_HOME = (
    "train tiny.yaml run.directory=~/runs",
    "train tiny.yaml data.path=~/data",
    "train tiny.yaml run.directory=~nobody-of-this-name/runs",
)


def test_only_what_is_copied_or_named_by_a_home_asks_for_one(world: Path) -> None:
    commands = [
        (None, line.format(world=world).split())
        for line in (*WORKS, *NEEDS_A_FOLDER, *NAMES_A_HOME)
    ]
    ended = iter(run_as_plain_user(world, commands))
    for line in WORKS:
        assert next(ended).code == 0, line
    assert Path("runs/homeless/result.json").exists()
    for _ in NEEDS_A_FOLDER:
        assert_one_sentence(next(ended), 1, ("HOME", "XDG_CACHE_HOME", "passwd"))
    for _ in NAMES_A_HOME:
        assert_one_sentence(next(ended), 2, ("~", "home"))


def test_a_home_that_cannot_be_written_is_told_where_copies_are_needed(world: Path) -> None:
    home = {"HOME": str(world / "photo.jpg")}
    command = NEEDS_A_FOLDER[0].format(world=world).split()
    local, remote = run_as_plain_user(world, [(None, WORKS[0].split()), (None, command)], home)
    assert local.code == 0
    assert_one_sentence(remote, 1, ("photo.jpg/.cache", "data.cache_directory", "XDG_CACHE_HOME"))
