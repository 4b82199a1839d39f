"""Predictions of files as people have them: broken ones among them, turned ones, deep ones, names in any bytes."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from tiny_world import picture, run_command

from distbranch import cli

RUN = "runs/tiny"
ORIENTATION = 0x0112
TURNS = [
    None,
    *(Image.Transpose(n) for n in (0, 3, 1, 5, 2, 6, 4)),
]  # what stores a picture that 1..8 turn upright
NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")


def bright_scores(text: str) -> dict[str, float]:
    return {Path(row["image"]).name: row["scores"]["bright"] for row in json.loads(text)}


def test_broken_images_are_all_named_and_nothing_is_written(world: Path) -> None:
    for name in ("one.jpg", "two.png"):
        (world / "images" / name).write_bytes(b"<html>")
    (world / "images/cut.jpg").write_bytes(picture(1)[:200])
    (world / "scores.csv").write_text("of yesterday")
    ended = run_command(["predict", RUN, "images", "--out", "scores.csv"])
    assert ended.code == 1
    assert "3 of 7 images cannot be read, so nothing was written" in ended.err
    assert all(f"images/{name} (it is" in ended.err for name in ("cut.jpg", "one.jpg", "two.png"))
    assert "--on-bad-image skip" in ended.err
    assert (world / "scores.csv").read_text() == "of yesterday"


@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_broken_images_are_left_out_and_named_where_asked(world: Path, form: str) -> None:
    expected = run_command(["predict", RUN, "images", "--format", form])
    for name in ("a0.jpg", "zz.png"):
        (world / "images" / name).write_bytes(b"<html>")
    ended = run_command(["predict", RUN, "images", "--format", form, "--on-bad-image", "skip"])
    assert (ended.code, ended.out) == (0, expected.out)
    told = " ".join(ended.err.split())
    assert (
        "2 of 6 images cannot be read and were left out: images/a0.jpg (it is not an image), images/zz.png ("
        in told
    )


@pytest.mark.parametrize("files", [["x.jpg"], ["x.jpg", "x.jpg"], ["x.jpg", "y.jpg"]])
def test_where_no_image_is_left_it_is_an_error(world: Path, files: list[str]) -> None:
    for name in files:
        Path(name).write_bytes(b"<html>")
    ended = run_command(["predict", RUN, *files, "--format", "csv", "--on-bad-image", "skip"])
    assert ended.code == 1
    assert "x.jpg (it is not an image)" in ended.err


def test_what_macos_lays_beside_photos_and_folders_named_like_images_are_no_images(
    world: Path,
) -> None:
    (world / "images/._a.jpg").write_bytes(b"Mac OS X")
    (world / "images/folder.jpg").mkdir()
    assert len(json.loads(run_command(["predict", RUN, "images", "--format", "json"]).out)) == 4


@pytest.mark.parametrize("model", [RUN, "served.onnx"])
def test_a_picture_has_one_score_in_all_eight_orientations(world: Path, model: str) -> None:
    if model != RUN:
        assert run_command(["export", RUN, "--out", model]).code == 0
    Path("turned").mkdir()
    pixels = (
        np.random.default_rng(3)
        .integers(0, 255, (4, 4, 3), dtype=np.uint8)
        .repeat(8, axis=0)
        .repeat(8, axis=1)
    )
    for number, turn in enumerate(TURNS, start=1):
        exif = Image.Exif()
        exif[ORIENTATION] = number
        stored = (
            Image.fromarray(pixels) if turn is None else Image.fromarray(pixels).transpose(turn)
        )
        stored.save(f"turned/{number}.png", exif=exif)
        stored.save(f"turned/{number}.jpg", exif=exif, quality=100, subsampling=0)
    scores = bright_scores(run_command(["predict", model, "turned", "--format", "json"]).out)
    assert len(scores) == 16
    assert len({score for name, score in scores.items() if name.endswith("png")}) == 1
    assert list(scores.values()) == pytest.approx([scores["1.png"]] * 16, abs=2e-3)
    Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90).save("other.png")
    other = bright_scores(run_command(["predict", model, "other.png", "--format", "json"]).out)[
        "other.png"
    ]
    assert (
        abs(other - scores["1.png"]) > 1e-5
    )  # the network tells a turned picture from an upright one


def test_bits_of_deep_images_are_asked_for_and_taken(world: Path) -> None:
    grey = np.asarray(Image.open(io.BytesIO(picture(2))).convert("L"))
    Image.fromarray(grey).save("plain.png")
    Image.fromarray((grey / 255 * 4095).round().astype(np.uint16)).save("deep.png")
    ended = run_command(["predict", RUN, "deep.png", "--on-bad-image", "skip"])
    assert ended.code == 1
    assert "say with --bits how many" in ended.err
    files = ["plain.png", "deep.png"]
    scores = bright_scores(
        run_command(["predict", RUN, *files, "--format", "json", "--bits", "12"]).out
    )
    assert scores["deep.png"] == pytest.approx(scores["plain.png"], abs=1e-3)


def shown_on(encoding: str, arguments: list[str]) -> str:
    """What a command shows on a terminal of this encoding, which takes nothing else."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with (
        redirect_stdout(out),
        mock.patch.object(sys, "argv", ["distbranch", *arguments]),
        suppress(SystemExit),
    ):
        cli.main()
    out.seek(0)
    return out.read()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("form", ["csv", "json", "table"])
def test_a_name_that_is_no_utf8_costs_no_score(world: Path, form: str, encoding: str) -> None:
    Path("odd").mkdir()
    for name in (NOT_UTF8, "日本.jpg", "line\nbreak.jpg"):
        shutil.copy("photo.jpg", Path("odd") / name)
    assert "caf\\udce9.jpg" in shown_on(
        encoding, ["predict", RUN, "odd", "--format", form, "--threshold", "0"]
    )
    if form == "table":
        return
    ended_in_file = run_command(["predict", RUN, "odd", "--format", form, "--out", "scores"])
    assert ended_in_file.code == 0
    text = Path("scores").read_text(encoding="utf-8")
    if form == "json":
        names = [row["image"] for row in json.loads(text)]
        assert sorted(names) == sorted(
            map(str, Path("odd").iterdir())
        )  # even the odd bytes come back
        return
    names = [row["image"] for row in csv.DictReader(io.StringIO(text, newline=""))]
    assert sorted(names) == ["odd/caf\\udce9.jpg", "odd/line\nbreak.jpg", "odd/日本.jpg"]


def test_a_broken_image_with_a_name_that_is_no_utf8_is_named(world: Path) -> None:
    Path(NOT_UTF8).write_bytes(b"<html>")
    command = [sys.executable, "-m", "distbranch", "predict", RUN, "photo.jpg", NOT_UTF8]
    ended = subprocess.run(command, capture_output=True)
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"caf\\udce9.jpg" in ended.stderr


def test_scores_replace_a_file_whole_and_go_where_a_link_or_a_pipe_leads(world: Path) -> None:
    Path("elsewhere").mkdir()
    Path("link.csv").symlink_to("elsewhere/scores.csv")
    assert run_command(["predict", RUN, "photo.jpg", "--out", "link.csv"]).code == 0
    assert Path("link.csv").is_symlink()
    assert Path("elsewhere/scores.csv").read_text().startswith("image,")
    assert os.listdir("elsewhere") == ["scores.csv"]
    reading, writing = os.pipe()
    assert run_command(["predict", RUN, "photo.jpg", "--out", f"/dev/fd/{writing}"]).code == 0
    assert os.read(reading, 6) == b"image,"
    os.close(reading)
    os.close(writing)
