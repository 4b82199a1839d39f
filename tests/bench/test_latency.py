"""The benchmark of answering: who stands in it, and that its numbers are of what they say."""

import itertools
import json
from pathlib import Path

import pytest
from tiny_world import assert_one_sentence, run_command

from distbranch.bench.latency import halved_to
from distbranch.errors import UserError
from distbranch.models.backbones import Architecture
from distbranch.models.cost import num_weights
from distbranch.tasks import Task

QUICK = ["--seconds", "0", "--batch-sizes", "2"]


def test_a_run_stands_beside_thin_independent_and_full_networks(world: Path) -> None:
    command = ["bench", "latency", "runs/tiny", "--against", "vgg9", "--eager", "--out", "latency.json", *QUICK]
    ended = run_command(command)
    assert ended.code == 0, ended.err
    rows = json.loads((world / "latency.json").read_text())
    names = {"tiny", "thin-2", "independent (3 x thin-2)", "vgg9"}
    expected = {(name, kind, 2) for name in names for kind in ("onnxruntime", "eager, unfolded")}
    assert {(row["network"], row["runtime"], row["batch_size"]) for row in rows} == expected
    by_name = {row["network"]: row for row in rows if row["runtime"] == "onnxruntime"}
    assert by_name["tiny"]["weights"] == json.loads((world / "runs/tiny/result.json").read_text())["weights"]
    assert by_name["independent (3 x thin-2)"]["multiply_adds"] > 2 * by_name["thin-2"]["multiply_adds"]
    assert by_name["thin-2"]["relative"] == 1
    assert by_name["vgg9"]["relative"] > 1
    for row in by_name.values():
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["images_per_s"] == pytest.approx(2000 / row["median_ms"])
        assert row["peak_mib"] > 0
    assert by_name["vgg9"]["peak_mib"] - by_name["thin-2"]["peak_mib"] > 4 * by_name["vgg9"]["weights"] / 2**20 / 2


def test_a_tree_may_be_given_by_numbers_or_as_the_tree_of_a_run(world: Path) -> None:
    sizes = ["--backbone", "vgg9", "--width", "2", "--image-size", "32x32", "--against", ""]
    ended = run_command(["bench", "latency", *sizes, "--num-tasks", "4", "--tree-weights", "300", *QUICK])
    assert ended.code == 0, ended.err
    ended = run_command(["bench", "latency", *sizes, "--tree", "runs/tiny/tree.json", "--out", "a.json", *QUICK])
    assert ended.code == 0, ended.err
    (row, *_) = json.loads(Path("a.json").read_text())
    tree = json.loads(Path("runs/tiny/tree.json").read_text())["tree"]
    assert (row["branches"] != "-".join(["1"] * 8)) == bool(tree["splits"])


def test_a_halved_tree_is_the_smallest_with_so_many_weights() -> None:
    thin = Architecture.thin("vgg16", 32, (224, 224), tuple(Task(f"task {number}") for number in range(40)))
    grown = halved_to(thin, 1.4e6)
    counts = [grown.tree.num_branches(layer) for layer in range(1, 16)]
    assert 1.4e6 <= num_weights(grown) < 1.6e6
    assert counts[:10] == [1] * 10
    assert all(below <= (above + 1) // 2 for below, above in itertools.pairwise(counts))
    assert halved_to(thin, 0).tree == thin.tree
    with pytest.raises(UserError, match=r"at most .* fewer than 9,000,000"):
        halved_to(thin, 9e6)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("runs/absent", 1, ("runs/absent",)),
        ("--image-size 224", 2, ("HEIGHTxWIDTH", "224")),
        ("--batch-sizes 0,1", 2, ("--batch-sizes", "0,1")),
        ("--batch-sizes x", 2, ("--batch-sizes", "x")),
        ("--tree photo.jpg", 1, ("photo.jpg", "tree.json")),
        ("--against vgg99", 1, ("vgg16, vgg9", "vgg99")),
        ("runs/tiny --out photo.jpg/x.json --seconds 0 --batch-sizes 1 --against vgg9", 1, ("photo.jpg/x.json",)),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    world: Path, arguments: str, code: int, words: tuple[str, ...]
) -> None:
    assert_one_sentence(run_command(["bench", "latency", *arguments.split()]), code, words)
