"""Tars that others made become a data set where they lie: the same tasks and labels as if they were packed, no byte copied."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
from foreign_tars import CLASSES, NUM_IN_TAR, Photograph, read_photographs, write_tar, write_tars
from packed_samples import picture, tiny_dataset
from PIL import Image
from test_cache import Server, server  # noqa: F401  # a fixture
from tiny_world import Ended, run_command

from distbranch.data.cache import Cache
from distbranch.data.images import decode_image
from distbranch.data.loader import eval_loader
from distbranch.data.shard_writer import file_sha256
from distbranch.data.shards import DatasetInfo, read_dataset

ALL = ("--labels", "json:labels,json:split", "--tags", "tags", "--number", "price")
NUM_SAMPLES = {"train": 28, "val": 8, "test": 6}


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Photograph]:
    return read_photographs(shared_data)


@pytest.fixture(scope="module")
def original_tars(photographs: list[Photograph], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "tars"
    write_tars(folder, photographs)
    return folder


@pytest.fixture
def tars(original_tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `tars` of the current one."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original_tars, tmp_path / "tars"))


def index(*arguments: str) -> Ended:
    return run_command(["data", "index", *arguments])


def index_well(*arguments: str) -> DatasetInfo:
    ended = index(*arguments)
    assert ended.code == 0, ended.err
    return read_dataset("out")


def counts(info: DatasetInfo) -> dict[str, object]:
    return {name: (split.num_samples, split.labels) for name, split in info.splits.items()}


def sums(folder: Path) -> dict[str, str]:
    return {str(path): file_sha256(path) for path in sorted(folder.rglob("*.tar"))}


@pytest.fixture
def packed(photographs: list[Photograph], tars: Path) -> DatasetInfo:
    """The same photographs and labels, packed from a table."""
    images = tars.parent / "images"
    images.mkdir()
    with (tars.parent / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "category", "kids", "tags", "price"])
        for one in photographs:
            name = f"{one.name}.{one.suffix}"
            (images / name).write_bytes(one.image)
            price = one.price if int(one.name) % 9 else ""
            writer.writerow([name, one.split, one.category, one.kids, "|".join(one.tags), price])
    options = ["--images", "images", "--table", "table.csv", "--separator", "|", *ALL[2:]]
    ended = run_command(["data", "pack", "csv", "packed", *options])
    assert ended.code == 0, ended.err
    return read_dataset("packed")


def test_tars_in_place_have_the_tasks_and_labels_of_a_packed_table(
    tars: Path, packed: DatasetInfo
) -> None:
    before = sums(tars)
    info = index_well("tars", "out", *ALL)
    assert info.tasks == packed.tasks
    assert counts(info) == counts(packed)
    assert sums(tars) == before
    files = [file.name for file in Path("out").iterdir()]
    assert sorted({name.partition(".")[2] for name in files}) == [
        "index.npy",
        "json",
        "labels.jsonl",
    ]
    checked = run_command(["data", "check", "out"])
    assert checked.code == 0, checked.err + checked.out
    assert f"{sum(NUM_SAMPLES.values())} samples in {len(NUM_IN_TAR)} shards" in checked.out
    assert run_command(["data", "show", "out", "--split", "val", "--out", "shown.png"]).code == 0


def test_images_of_every_format_and_size_are_read_as_they_look(
    tars: Path, photographs: list[Photograph]
) -> None:
    info = index_well("tars", "out", *ALL, "--image-size", "64x48")
    shown = [one.image for one in photographs if one.split == "val"]
    batch = next(eval_loader(info, "val", batch_size=8, image_size=info.image_size))
    for pixels, image in zip(batch.images.permute(0, 2, 3, 1).numpy(), shown, strict=True):
        whole = decode_image(image).resize((48, 64), Image.Resampling.BILINEAR)
        # A JPEG is decoded by another program, to a pixel's rounding.
        assert np.abs(pixels.astype(int) - np.asarray(whole)).mean() < 2


def test_an_index_beside_its_tars_moves_with_them_and_is_the_same_data_set(tars: Path) -> None:
    ended = index("tars/*/*.tar", "tars", *ALL)
    assert ended.code == 0, ended.err
    fingerprint = read_dataset("tars").fingerprint
    tars.rename("moved")
    moved = read_dataset("moved")
    assert moved.fingerprint == fingerprint
    assert run_command(["data", "check", "moved"]).code == 0
    assert index_well("moved", "out", *ALL).fingerprint == fingerprint
    again = index("moved", "out", *ALL)
    assert "holds this index already" in again.out + again.err


def test_the_fingerprint_of_packed_data_has_no_new_field(tmp_path: Path) -> None:
    info = tiny_dataset(tmp_path / "packed")
    content = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    assert content["version"] == 1
    for shard in content["splits"]["train"]["shards"]:
        assert set(shard) == {
            "file", "num_samples", "num_bytes", "sha256", "index", "index_sha256"
        }  # fmt: skip
    assert read_dataset(tmp_path / "packed").fingerprint == info.fingerprint


def test_tars_at_a_url_are_read_once_though_their_labels_were_not_understood_at_first(
    tars: Path,
    server: Server,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tars, server.folder / "tars")
    local = index_well("tars", "out", *ALL)
    shutil.rmtree("out")
    names = [f"{{{'train/train-000,train/train-001'}}}", "val/val-000", "test/test-000"]
    urls = [f"{server.url}/tars/{name}.tar" for name in names]
    refused = index(*urls, "out", "--labels", "json:labels,json:split")
    assert refused.code == 1
    assert "'tags' seems to hold several tags" in refused.err
    info = index_well(*urls, "out", *ALL)
    assert counts(info) == counts(local)
    total = sum(path.stat().st_size for path in tars.rglob("*.tar"))
    assert server.num_bytes == total
    assert not Path("out/.indexing").exists()

    # A run fetches them into its cache.
    cache = Cache(str(tars.parent / "cache"))
    there = next(eval_loader(info, "val", batch_size=8, image_size=(32, 32), cache=cache))
    here = next(eval_loader(local, "val", batch_size=8, image_size=(32, 32)))
    assert there.images.equal(here.images)
    assert there.labels.nan_to_num(-1).equal(here.labels.nan_to_num(-1))
    assert server.num_bytes == total + Path("tars/val/val-000.tar").stat().st_size
    monkeypatch.setenv("XDG_CACHE_HOME", str(tars.parent))
    assert run_command(["data", "check", "out"]).code == 0


def test_a_tar_that_was_written_anew_is_read_anew(tars: Path) -> None:
    assert index("tars", "out", "--labels", "json:labels,json:split").code == 1
    first = tars / "train" / "train-000.tar"
    write_tar(first, {"a.jpg": picture(1), "a.json": b'{"split": "train", "labels": {"price": 3}}'})
    assert index_well("tars", "out", *ALL).num_samples == sum(NUM_SAMPLES.values()) - 13


def test_a_sample_that_says_nothing_at_the_path_has_no_labels_and_makes_no_column(
    tars: Path,
) -> None:
    described = {"a": {"labels": {"kids": True}}, "b": {"labels": None}, "c": {}}
    files = {}
    for number, (key, content) in enumerate(described.items()):
        files[f"{key}.jpg"] = picture(number)
        files[f"{key}.json"] = json.dumps({"split": "train", **content}).encode()
    write_tar(tars / "few.tar", files)
    info = index_well("tars", "out", *ALL)
    assert {task.name for task in info.tasks} == {"category", "kids", "new", "red", "price"}
    counted = info.splits["train"].labels["kids"]
    assert counted["1"] + counted["0"] == NUM_SAMPLES["train"] + 1


@pytest.mark.parametrize("form", ["json:labels.category", "txt", "cls", "csv", "parquet"])
def test_every_form_of_labels_says_the_same(
    form: str, tars: Path, photographs: list[Photograph]
) -> None:
    by_name = ["--split", "train=train-*,val=val-*,test=test/*"]
    if form in ("csv", "parquet"):
        folders = ["long-" * 30] * 28 + ["deep.er"] * 14
        rows = {
            "id": [
                f"{place}/{one.name}.jpg" for place, one in zip(folders, photographs, strict=True)
            ],
            "category": [one.category for one in photographs],
        }
        table = pandas.DataFrame(rows)
        getattr(table, f"to_{form}")(f"labels.{form}", index=False)
        form = f"labels.{form}"
        by_name += ["--key-column", "id"]
    info = index_well("tars", "out", "--labels", form, *by_name)
    (task,) = info.tasks
    classes = [str(CLASSES.index(name)) if form == "cls" else name for name in sorted(CLASSES)]
    assert (task.kind, task.classes) == ("categorical", tuple(sorted(classes)))
    for name, split in info.splits.items():
        of_split = [one.category for one in photographs if one.split == name]
        found = [split.labels[task.name][one] for one in classes]
        assert found == [of_split.count(one) for one in sorted(CLASSES)]
    assert info.skipped == {}


def test_a_mapping_says_what_tasks_are_made_from(tars: Path) -> None:
    Path("tasks.yaml").write_text(
        """
article: {from: cls, values: [Dress, Shirt, Shoes]}
is_dress: {from: labels.category, kind: binary, values: {Dress: 1, T-Shirt: 0, Shoes: 0}}
size: {from: cls, kind: ordinal, classes: [0, 1, 2]}
labels: {from: labels.tags, kind: tags}
cost: {from: labels.price, kind: number, unit: EUR}
split: {from: split, values: {train: train, val: test, test: val}}
"""
    )
    info = index_well("tars", "out", "--labels", "json,cls", "--mapping", "tasks.yaml")
    kinds = {task.name: (task.kind, task.classes, task.unit) for task in info.tasks}
    assert kinds == {
        "article": ("categorical", ("Dress", "Shirt", "Shoes"), ""),
        "is_dress": ("binary", (), ""),
        "size": ("ordinal", ("0", "1", "2"), ""),
        "new": ("binary", (), ""),
        "red": ("binary", (), ""),
        "cost": ("number", (), "EUR"),
    }
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 28,
        "val": 6,
        "test": 8,
    }
    labels = info.splits["train"].labels
    assert labels["is_dress"]["1"] == labels["article"]["Dress"] == labels["size"]["0"]


def test_splits_are_drawn_by_name_and_no_other_sample_moves_when_a_tar_is_left_out(
    tars: Path,
) -> None:
    def draw(*shards: str) -> dict[str, str]:
        info = index_well(*shards, "out", "--labels", "txt", "--fractions", "0.5,0.3,0.2")
        found = {}
        for name, split in info.splits.items():
            for shard in split.shards:
                lines = Path("out", shard.labels).read_text().splitlines()
                found |= {json.loads(line)["key"]: name for line in lines}
        shutil.rmtree("out")
        return found

    whole = draw("tars")
    assert set(whole.values()) == {"train", "val", "test"}
    part = draw("tars/train/*.tar")
    assert part.items() <= whole.items()
    assert len(part) == 28


def test_keys_that_begin_anew_in_every_tar_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        files = {}
        for number in range(4):
            files[f"{number}.front.view.jpg"] = picture(number)
            files[f"{number}.front.view.cls"] = b"%d" % (number % 2)
        write_tar(tmp_path / split / "0.tar", files)
    info = index_well(
        "train", "val", "out", "--labels", "cls", "--split", "train=train/*,val=val/*"
    )
    assert {name: split.num_samples for name, split in info.splits.items()} == {
        "train": 4,
        "val": 4,
    }
    assert '"key":"val/0/3"' in Path("out", info.splits["val"].shards[0].labels).read_text()
    checked = run_command(["data", "check", "out"])
    assert checked.code == 0
    assert "4 pair(s) of equal ones lie in different splits" in checked.out


def test_damage_after_indexing_is_found_and_named(tars: Path) -> None:
    info = index_well("tars", "out", *ALL)
    tar = tars / "train" / "train-000.tar"
    content = bytearray(tar.read_bytes())
    offset, size = np.load(Path("out", info.splits["train"].shards[0].index))[3, :2].tolist()
    content[offset + size // 2] ^= 1
    tar.write_bytes(content)
    labels = Path("out", info.splits["val"].shards[0].labels)
    labels.write_bytes(labels.read_bytes().replace(b"Dress", b"Drass", 1))
    checked = run_command(["data", "check", "out"])
    assert checked.code == 1
    for said in (
        "/003: its image is not the one",
        "its label file is not the one",
        "its bytes were changed",
    ):
        assert said in checked.out


def cut(tar: Path) -> None:
    """Where a file ends, as if the writer was killed between two."""
    content = tar.read_bytes().rstrip(b"\0")
    tar.write_bytes(content.ljust(-(-len(content) // 512) * 512, b"\0"))


def deep_png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 60000, dtype=np.uint16)).save(out, "PNG")
    return out.getvalue()


def spoil(folder: Path) -> None:
    """A tar with a sample of every fault, and one that is cut."""
    files = {
        "good.jpg": picture(1),
        "good.json": b'{"labels": {"kids": true}, "split": "train"}',
        "bare.jpg": picture(2),
        "text.jpg": picture(3),
        "text.json": b"{",
        "alone.json": b"{}",
        "twice.jpg": picture(4),
        "twice.png": deep_png(),
        "twice.json": b"{}",
        "deep.png": deep_png(),
        "deep.json": b"{}",
        "broken.webp": b"RIFF",
        "broken.json": b"{}",
    }
    write_tar(folder / "aaa.tar", files)
    cut(folder / "val" / "val-000.tar")


def test_all_faults_of_all_tars_are_told_at_once_and_may_be_left_out(tars: Path) -> None:
    spoil(tars)
    ended = index("tars", "out", *ALL)
    assert ended.code == 1
    assert "tars has 2 problems" in ended.err
    for said in (
        "it is cut",
        "'bare': it has no json",
        "'text': its json is not JSON",
        "and 3 more",
    ):
        assert said in ended.err
    (tars / "val" / "val-000.tar").unlink()
    skipping = index("tars", "out", *ALL, "--on-bad-image", "skip")
    assert "6 image(s) were left out" in skipping.err
    info = read_dataset("out")
    assert info.num_samples == 35
    assert info.skipped == {"missing-label": 1, "bad-label": 1, "missing-image": 1, "bad-image": 1, "broken-image": 2}  # fmt: skip
    listed = Path("out/left-out.csv").read_text()
    for said in (
        "it has several images",
        "8 bits per channel",
        "it has no image",
        "it is not an image",
    ):
        assert said in listed


def gzipped(folder: Path) -> None:
    folder.mkdir()
    (folder / "x.tar.gz").write_bytes(b"\x1f\x8b")
    (folder / "y.tar").write_bytes(b"\x1f\x8b" * 600)


@pytest.mark.parametrize(
    ("shards", "options", "said"),
    [
        ("odd/x.tar.gz tars/none-*.tar", "--labels txt", "is compressed, so no sample can be read without all that come before it"),
        ("odd/x.tar.gz tars/none-*.tar", "--labels txt", "tars/none-*.tar names no file"),
        ("odd/y.tar", "--labels txt", "it is compressed"),
        ("tars/absent.tar", "--labels txt", "it cannot be read (No such file"),
        ("tars/train", "--labels xyz", "the files end with: 14 json"),
        ("tars/train", "--labels json:a..b", "should be what label files end with"),
        ("tars/train", "--labels cls:a", "should be what label files end with"),
        ("tars/train", "", "--labels is required"),
        ("tars/train", "--labels txt --bits 12", "these are read as they are"),
        ("tars/train", "--labels txt --imagesize 3", "Nearest: --image-size"),
        ("tars/train", "--labels absent.parquet", "absent.parquet does not exist"),
        ("tars", "--labels txt --split train=train-*,val=val-*", "test-000.tar fits the patterns of none"),
        ("tars", "--labels txt --split train=t*,val=v*,test=test-*", "test-000.tar fits the patterns of train and test"),
        ("tars", "--labels txt --split all=*", "should be train, val, test with names of tars"),
        ("tars/train", "--labels json:labels.categry", "at json:labels.categry. There are: json:labels.category, json:split"),
        ("tars/train", "--labels cls,json:a.b --mapping p.yaml", "no sample has a value at json:a.b. There are: json:split, json:url"),
        ("tars/train", "--labels json:labels --number prise", "it has no column 'prise'. Nearest: price"),
        ("tars/train", "--labels txt --mapping m.yaml", "extra: Extra inputs"),
        ("tars/train", "--labels txt --mapping m.yaml", "b.classes is the order of an ordinal task"),
        ("tars/train", "--labels txt --mapping n.yaml", "no label is called 'text', of which the mapping makes 'a'. Nearest: txt"),
        ("tars/train", "--labels txt --mapping o.yaml", "'txt' is 'T-Shirt'"),
        ("tars/train", "--labels txt --mapping p.yaml", "The mapping says binary, and the labels are classes: 'txt'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_sentence(
    shards: str, options: str, said: str, tars: Path
) -> None:
    gzipped(Path("odd"))
    Path("m.yaml").write_text("a: {from: txt, extra: 1}\nb: {from: txt, classes: [1, 2]}")
    Path("n.yaml").write_text("a: {from: text}")
    Path("o.yaml").write_text("a: {from: txt, values: {Dress: 1, Shoes: 0}}")
    Path("p.yaml").write_text("txt: {kind: binary}")
    ended = index(*shards.split(), "out", *options.split())
    assert ended.code in (1, 2), ended.out
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert not Path("out/dataset.json").exists()
    assert not list(Path("out").glob("*.npy"))


def test_another_data_set_is_not_overwritten(tars: Path, packed: DatasetInfo) -> None:
    assert packed.num_samples
    ended = index("tars", "packed", *ALL)
    assert ended.code == 1
    assert "holds a data set already that was made otherwise" in ended.err
    assert "folder of this machine" in index("tars", "s3://bucket/out", *ALL).err
    assert "before all options" in index("tars", *ALL).err
