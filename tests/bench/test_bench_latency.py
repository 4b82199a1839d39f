"""The benchmark of answering: who stands in it, and that its numbers are of what they say."""

import itertools
import json
import re
from pathlib import Path

import pytest
from tiny_world import assert_one_sentence, run_command

from distbranch.bench.candidates import grow_to_weights, numbered_tasks
from distbranch.errors import UserError
from distbranch.models.architecture import Architecture, num_weights

QUICK = ["--seconds", "0", "--batch-sizes", "2"]


def test_a_run_stands_beside_thin_independent_and_full_networks(world: Path) -> None:
    command = [
        "bench",
        "latency",
        "runs/tiny",
        "--against",
        "vgg9",
        "--eager",
        "--out",
        "latency.json",
        *QUICK,
    ]
    ended = run_command(command)
    assert ended.code == 0, ended.err
    content = json.loads((world / "latency.json").read_text())
    rows = content["networks"]
    names = {"tiny", "thin-2", "independent (3 x thin-2)", "vgg9"}
    expected = {(name, kind, 2) for name in names for kind in ("onnxruntime", "eager, unfolded")}
    expected.add(("tiny", "eager, a module per branch", 2))
    assert {(row["network"], row["runtime"], row["batch_size"]) for row in rows} == expected
    by_name = {row["network"]: row for row in rows if row["runtime"] == "onnxruntime"}
    assert (
        by_name["tiny"]["weights"]
        == json.loads((world / "runs/tiny/result.json").read_text())["weights"]
    )
    assert (
        by_name["independent (3 x thin-2)"]["multiply_adds"]
        > 2 * by_name["thin-2"]["multiply_adds"]
    )
    assert by_name["thin-2"]["relative"] == 1
    assert by_name["vgg9"]["relative"] > 1
    (line,) = content["compared"]
    eager = {row["runtime"]: row["median_ms"] for row in rows if row["network"] == "tiny"}
    assert (line["network"], line["batch"]) == ("tiny", 2)
    assert line["x thin-2"] == by_name["tiny"]["relative"]
    assert line["vgg9 costs x"] == by_name["vgg9"]["median_ms"] / by_name["tiny"]["median_ms"]
    for kind in ("eager, unfolded", "eager, a module per branch"):
        assert line[f"faster than {kind} x"] == eager[kind] / eager["onnxruntime"]
    assert content["machine"]["threads"] == 1
    for row in by_name.values():
        assert 0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"]
        assert row["images_per_s"] == pytest.approx(2000 / row["median_ms"])
        assert row["peak_mib"] > 0
    assert (
        by_name["vgg9"]["peak_mib"] - by_name["thin-2"]["peak_mib"]
        > 4 * by_name["vgg9"]["weights"] / 2**20 / 2
    )


def test_a_tree_may_be_given_by_numbers_or_as_the_tree_of_a_run(world: Path) -> None:
    sizes = ["--backbone", "vgg9", "--width", "2", "--image-size", "32x32", "--against", ""]
    ended = run_command(
        ["bench", "latency", *sizes, "--num-tasks", "4", "--tree-weights", "300,350,350", *QUICK]
    )
    assert ended.code == 0, ended.err
    sizes_found = {
        int(found) for found in re.findall(r"tree of (\d+)\s+weights", " ".join(ended.out.split()))
    }
    assert len(sizes_found) == 2
    assert min(sizes_found) >= 300
    ended = run_command(
        ["bench", "latency", *sizes, "--tree", "runs/tiny/tree.json", "--out", "a.json", *QUICK]
    )
    assert ended.code == 0, ended.err
    (row, *_) = json.loads(Path("a.json").read_text())["networks"]
    tree = json.loads(Path("runs/tiny/tree.json").read_text())["tree"]
    assert (row["branches"] != "-".join(["1"] * 8)) == bool(tree["splits"])


def test_runs_as_the_first_words_are_those_of_latency(world: Path) -> None:
    for words in (["runs/tiny", "--against", "vgg9"], ["runs/tiny/", "runs/tiny"]):
        ended = run_command(["bench", *words, *QUICK])
        assert ended.code == 0, ended.err
        assert "thin-2" in ended.out
    assert_one_sentence(
        run_command(["bench", "runs/absent"]), 1, ("runs/absent", "distbranch train")
    )
    assert_one_sentence(run_command(["bench", "latenci"]), 2, ("latenci",))


def test_a_run_may_be_called_like_the_thin_network(world: Path) -> None:
    Path("runs/tiny").rename("runs/thin-2")
    ended = run_command(["bench", "runs/thin-2", "--against", "", "--out", "a.json", *QUICK])
    assert ended.code == 0, ended.err
    (line,) = json.loads(Path("a.json").read_text())["compared"]
    assert line["network"] == "thin-2"
    assert line["x thin-2"] != 1.0


def test_a_halved_tree_is_the_smallest_with_so_many_weights() -> None:
    thin = Architecture.thin("vgg16", 32, (224, 224), numbered_tasks(40))
    grown = grow_to_weights(thin, 1.4e6)
    counts = [grown.tree.num_branches(layer) for layer in range(1, 16)]
    assert 1.4e6 <= num_weights(grown) < 1.6e6
    assert counts[:10] == [1] * 10
    assert all(below <= (above + 1) // 2 for below, above in itertools.pairwise(counts))
    assert grow_to_weights(thin, 0).tree == thin.tree
    with pytest.raises(UserError, match=r"at most .* fewer than 9,000,000"):
        grow_to_weights(thin, 9e6)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("runs/absent", 1, ("runs/absent",)),
        ("--image-size 224", 2, ("HEIGHTxWIDTH", "224")),
        ("--batch-sizes 0,1", 2, ("--batch-sizes", "0,1")),
        ("--batch-sizes x", 2, ("--batch-sizes", "x")),
        ("--tree-weights much", 2, ("--tree-weights", "much")),
        ("--tree photo.jpg", 1, ("photo.jpg", "tree.json")),
        ("--against vgg99", 1, ("vgg9, vgg16", "vgg99")),
        (
            "runs/tiny --out photo.jpg/x.json --seconds 0 --batch-sizes 1 --against vgg9",
            1,
            ("photo.jpg/x.json",),
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(
    world: Path, arguments: str, code: int, words: tuple[str, ...]
) -> None:
    assert_one_sentence(run_command(["bench", "latency", *arguments.split()]), code, words)
