"""`--like`: another table becomes the tasks and classes of a data set, whatever does not occur in it."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from clothes import (
    Clothes,
    make_arrow,
    read_clothes,
    read_photos,
    save_parquet,
    write_folders,
    write_table,
)
from tiny_runs import config_of
from tiny_world import Ended, assert_one_sentence, run_command

from distbranch.data.mixture import merge_datasets
from distbranch.data.shards import DatasetInfo, read_dataset
from distbranch.data.sources import parse_options

TEST_ALONE = ("--fractions", "0,0,1")
# A task of every kind, of which the batch of the next month lacks labels.
ABOUT_COLUMNS = (
    *("--one-task-per-class", "category", "--class-prefix", "is ", "--tags", "tags"),
    *("--separator", "|", "--blank", "tags=no", "--number", "price", "--unit", "price=EUR"),
    *("--ordinal", "size=S<M<L", "--categorical", "stars"),
)


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """Photos of clothes and the tables of two months, of which the first is packed as `january`."""
    folder = tmp_path_factory.mktemp("months")
    clothes = read_clothes(shared_data, 90)
    photos = read_photos(shared_data, clothes)
    write_folders(folder / "photos", [one["image"] for one in clothes], photos)
    for number, one in enumerate(clothes):
        del one["split"]
        one["price"] = f"{1000 + 37 * number % 100},50 \u20ac"
        one["size"] = "SML"[number % 3]
        one["tags"] = ("red", "red|new", "old", "")[number % 4]
        one["stars"] = str(number % 4)
    write_table(folder / "january.csv", clothes[:60])
    ended = pack(folder, "january", *ABOUT_COLUMNS, "--stratify", "size")
    assert ended.code == 0, ended.err
    write_table(folder / "february.csv", list_february(clothes))
    return folder


def list_february(clothes: Clothes) -> Clothes:
    """Other months' rows, without some classes, tags, sizes and values of January; in another order of columns."""
    known = {one["category"] for one in clothes[:60]}
    chosen = [one for one in clothes[60:] if one["category"] in known - {"T-Shirt"}]
    for one in chosen:
        one["size"] = "M"
        one["tags"] = "red" if one["tags"] else ""
        one["stars"] = one["stars"].replace("3", "")
    return [dict(reversed(one.items())) for one in chosen]


def pack(folder: Path, name: str, *options: str, table: str = "") -> Ended:
    images = ("--images", str(folder / "photos"), "--table", str(folder / f"{table or name}.csv"))
    return run_command(["data", "pack", "csv", str(folder / name), *images, *options])


def like(folder: Path, name: str) -> tuple[str, ...]:
    return ("--like", str(folder / name), *TEST_ALONE)


def write_rows(folder: Path, name: str, **changed: str) -> None:
    """February's table with other cells in its first row."""
    with (folder / "february.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= changed
    write_table(folder / f"{name}.csv", rows)


def test_next_months_batch_has_the_same_tasks_joins_and_is_evaluated(months: Path) -> None:
    ended = pack(months, "february", *like(months, "january"))
    assert ended.code == 0, ended.err
    january, february = (read_dataset(months / name) for name in ("january", "february"))
    assert february.tasks == january.tasks
    assert merge_datasets([january, february]).tasks == january.tasks
    counts = february.splits["test"].labels
    for absent in ("is T-Shirt", "is new"):
        assert counts[absent] == {"1": 0, "0": february.num_samples, "unlabelled": 0}
    assert counts["size"]["M"] == february.num_samples

    config = config_of(months / "january", months / "runs", **{"train.iterations": 4})
    config["method"] = {"name": "fixed"}
    (months / "run.yaml").write_text(yaml.safe_dump(config))
    ended = run_command(["train", str(months / "run.yaml")])
    assert ended.code == 0, ended.err
    ended = run_command(
        ["evaluate", str(months / "runs" / "tiny"), "--data", str(months / "february")]
    )
    assert ended.code == 0, ended.err
    assert "is T-Shirt" in ended.out
    assert "EUR" in ended.out


def test_a_third_batch_is_read_like_the_second(months: Path) -> None:
    for name, other in (("second", "january"), ("third", "second")):
        ended = pack(months, name, *like(months, other), table="february")
        assert ended.code == 0, ended.err
    second, third = (read_dataset(months / name) for name in ("second", "third"))
    assert second.fingerprint == third.fingerprint


def test_unknown_classes_are_refused_by_name_all_at_once_or_are_missing(months: Path) -> None:
    write_rows(months, "odd", category="Cape", size="XL", tags="red|blue", stars="9", kids="maybe")
    ended = pack(months, "odd", *like(months, "january"))
    words = ("2 problems", "'Cape'", "'XL'", "'blue'", "'9'", "'maybe'", "--unknown-as-missing")
    assert_one_sentence(ended, 1, words)

    given = ("--unknown-as-missing", "category,size,tags,stars", "--missing", "maybe")
    ended = pack(months, "odd", *like(months, "january"), *given)
    assert ended.code == 0, ended.err
    assert "'Cape' (1 cells)" in ended.err
    labels = read_dataset(months / "odd").splits["test"].labels
    assert labels["size"]["unlabelled"] == labels["kids"]["unlabelled"] == 1
    assert labels["is Dress"]["unlabelled"] == 1
    assert labels["is red"]["unlabelled"] == 0  # the tag beside the unknown one is known


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--categorical", "price"), ("'price' would be categorical", "is number EUR in")),
        (("--ordinal", "size=L<M<S"), ("'size' would be ordinal L, M, S, and is ordinal S, M, L",)),
        (("--like", "nowhere"), ("nowhere does not exist",)),
        (("--unknown-as-missing", "colour"), ("no column 'colour'",)),
    ],
)
def test_what_does_not_fit_the_other_data_set_is_refused(
    months: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    given = options if "--like" in options else (*like(months, "january"), *options)
    assert_one_sentence(pack(months, "new", *given, table="february"), 1, words)


def test_unknown_classes_need_another_data_set(months: Path) -> None:
    ended = pack(months, "new", "--unknown-as-missing", "stars", table="february")
    assert_one_sentence(ended, 1, ("Give that with --like",))


def test_columns_and_tasks_of_one_set_alone_are_told(months: Path) -> None:
    with (months / "february.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["shop"] = row.pop("stars")
    write_table(months / "shops.csv", rows)
    ended = pack(months, "shops", *like(months, "january"))
    assert ended.code == 0, ended.err
    told = " ".join(ended.err.split())
    assert "1 column(s) are no task of" in told
    assert "left out: shop." in told
    assert "left out: stars." in told
    names = [task.name for task in read_dataset(months / "shops").tasks]
    assert names == [t.name for t in read_dataset(months / "january").tasks if t.name != "stars"]


def test_folders_and_a_hugging_face_data_set_become_the_classes_of_another_set(
    tmp_path: Path, shared_data: Path
) -> None:
    clothes = read_clothes(shared_data, 50)
    photos = read_photos(shared_data, clothes)
    places = [f"{one['category']}/{one['image']}" for one in clothes]
    write_folders(tmp_path / "all", places, photos)
    write_folders(tmp_path / "few", places[:8], photos[:8])
    classes = sorted({one["category"] for one in clothes[:8]}, reverse=True)
    save_parquet(tmp_path / "few.parquet", make_arrow(clothes[:8], photos[:8], classes))
    write_folders(tmp_path / "odd", ["Cape/1.jpg"], photos[:1])

    def pack_like(source: str, out: str, *options: str) -> DatasetInfo:
        ended = run_command(["data", "pack", source, str(tmp_path / out), *options])
        assert ended.code == 0, ended.err
        return read_dataset(tmp_path / out)

    first = pack_like("folder", "a", "--root", str(tmp_path / "all"), "--task", "category")
    given = ("--like", first.path, *TEST_ALONE)
    root = ("--root", str(tmp_path / "few"), "--task", "category")
    folders = pack_like("folder", "b", *root, *given)
    parquet = pack_like("hf", "c", "--data", str(tmp_path / "few.parquet"), *given)
    assert first.tasks == folders.tasks == parquet.tasks
    assert folders.splits["test"].labels == parquet.splits["test"].labels

    options = {"root": tmp_path / "odd", "task": "category", "like": first.path}
    with pytest.raises(ValueError, match=r"does not know the class 'Cape'"):
        parse_options({"source": "folder", **options}).open()


def test_a_set_that_was_packed_before_classes_were_noted_is_known_and_no_model(
    months: Path,
) -> None:
    given = (*ABOUT_COLUMNS, "--stratify", "size")
    assert pack(months, "old", *given, table="january").code == 0
    file = months / "old" / "dataset.json"
    content = json.loads(file.read_text())
    for later in ("class_tasks", "like", "unknown_as_missing"):
        del content["source"][later]
    file.write_text(json.dumps(content))
    ended = pack(months, "old", *given, table="january")
    assert "holds this data set already" in ended.out
    ended = pack(months, "new", *like(months, "old"), table="february")
    assert_one_sentence(ended, 1, ("classes of category, tags", "Pack it again"))
