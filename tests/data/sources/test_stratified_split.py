"""A stratified split gives each class its share, and keeps groups together."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from packed_samples import picture
from tiny_world import Ended, assert_one_sentence, run_command

from distbranch.data.shards import read_dataset
from distbranch.data.sources.stratified_split import draw_stratified_splits
from distbranch.errors import UserError

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
CLASSES = ["common"] * 300 + ["rare"] * 20 + [""] * 40


def test_every_class_has_its_share_in_every_split() -> None:
    splits = draw_stratified_splits(CLASSES, SHARES, 0)
    found = Counter(zip(CLASSES, splits, strict=True))
    for name, count in Counter(CLASSES).items():
        assert [found[name, split] for split in SHARES] == [
            pytest.approx(share * count, abs=1) for share in SHARES.values()
        ]


def test_the_seed_alone_decides() -> None:
    splits = [draw_stratified_splits(CLASSES, SHARES, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("is_grouped", [False, True])
def test_a_rare_class_is_in_train_first_and_then_in_the_others(seed: int, is_grouped: bool) -> None:
    classes = ["common"] * 60
    for size in range(1, 7):
        classes += [f"{size} {number}" for number in range(12)] * size
    groups = [str(number) for number in range(len(classes))] if is_grouped else None
    splits = draw_stratified_splits(classes, SHARES, seed, groups=groups)
    found = defaultdict(set)
    for name, split in zip(classes, splits, strict=True):
        found[name].add(split)
    for name in set(classes) - {"common"}:
        assert "train" in found[name]
        assert len(found[name]) == min(int(name[0]), 3)


def test_the_only_group_of_a_class_is_in_train_whatever_else_is_in_it() -> None:
    classes = ["common", "common", "rare"] * 40
    groups = [str(number // 2) for number in range(len(classes))]
    classes = [
        f"rare {group}" if name == "rare" else name
        for name, group in zip(classes, groups, strict=True)
    ]
    splits = draw_stratified_splits(classes, SHARES, 0, groups=groups)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))
    assert {split for name, split in zip(classes, splits, strict=True) if "rare" in name} == {
        "train"
    }
    assert set(splits) == set(SHARES)


def test_groups_stay_together_and_classes_keep_their_shares() -> None:
    groups = [str(number // 5) for number in range(len(CLASSES))]
    splits = draw_stratified_splits(CLASSES, SHARES, 0, groups=groups)
    of_groups = Counter(dict.fromkeys(zip(groups, splits, strict=True), 1))
    assert len(of_groups) == len(set(groups))
    sizes = Counter(split for split, one in zip(splits, CLASSES, strict=True) if one == "common")
    assert sizes["train"] == pytest.approx(240, abs=5)
    assert sizes["test"] == pytest.approx(30, abs=5)


@pytest.mark.parametrize(
    "shares", [(0, 0, 1), (1, 1, 1), (70, 15, 15), (0.98, 0.01, 0.01), (0.5, 0.5, 0)]
)
def test_the_sizes_are_those_of_the_shares(shares: tuple[float, ...]) -> None:
    named = dict(zip(SHARES, shares, strict=True))
    sizes = Counter(draw_stratified_splits(["a"] * 600, named, 0))
    assert [sizes[split] / 600 for split in named] == pytest.approx(
        [share / sum(shares) for share in shares]
    )


@pytest.mark.parametrize(
    ("classes", "shares", "groups", "message"),
    [
        (["a", "b"] * 4, (0.8, 0.1, 0.1), None, "10 folds .* 4 images in the largest class"),
        (["a"] * 99, (0.8, 0.1, 0.1), ["x", "y", "z"] * 33, "10 folds .* 3 groups"),
        (["a"] * 99, (0.801, 0.1, 0.099), None, "shares of 100 folds"),
    ],
)
def test_what_cannot_be_stratified_is_refused(
    classes: list[str], shares: tuple[float, ...], groups: list[str] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        draw_stratified_splits(classes, dict(zip(SHARES, shares, strict=True)), 0, groups=groups)


# ---- through the command line


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 images of 20 people, each of one of two kinds, and a table that holds a split as well."""
    rows = ["image,kind,person,fold"]
    for number in range(60):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
        kind = "ab"[number // 3 % 2]
        fold = ("train", "val", "test")[number % 3]
        rows.append(f"{number}.jpg,{kind},p{number // 3},{fold}")
    (tmp_path / "t.csv").write_text("\n".join(rows))
    return tmp_path / "t.csv"


def pack(table: Path, *options: str) -> Ended:
    places = ("--images", str(table.parent), "--table", str(table), "--tasks", "kind")
    return run_command(["data", "pack", "csv", str(table.parent / "out"), *places, *options])


def test_a_packed_split_has_classes_and_groups_as_asked(table: Path) -> None:
    options = ("--stratify", "kind", "--group-column", "person", "--fractions", "0.6,0.2,0.2")
    ended = pack(table, *options)
    assert ended.code == 0, ended.err
    splits = read_dataset(table.parent / "out").splits
    found = {name: split.labels["kind"] for name, split in splits.items()}
    assert [(one["a"], one["b"]) for one in found.values()] == [(18, 18), (6, 6), (6, 6)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stratify", "kinds"), ("no column 'kinds'. Nearest: kind", "--stratify")),
        (("--stratify", "person"), ("cannot be stratified by 'person'", "10 folds", "3 images")),
        (
            ("--stratify", "kind", "--split-column", "fold"),
            ("'fold' already says the split", "Leave --stratify out"),
        ),
    ],
)
def test_a_split_that_cannot_be_stratified_is_one_sentence(
    table: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_one_sentence(pack(table, *options), 1, words)


def test_shares_beside_a_column_of_splits_are_told_to_be_without_effect(table: Path) -> None:
    ended = pack(table, "--split-column", "fold", "--fractions", "0.5,0.2,0.3")
    assert "--fractions and --seed are without effect" in " ".join(ended.err.split())
