"""Images in folders and archives: whole ones are found, of two the last counts, and damage of any kind is one sentence."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packed_samples import picture

from distbranch.data.image_files import ImageFiles, ImageNames, MissingImageError, open_images
from distbranch.data.images import BrokenImageError
from distbranch.data.pack import LEFT_OUT_FILE
from distbranch.data.sources import pack_source, parse_options
from distbranch.errors import UserError

Files = list[tuple[str, bytes]]
METHODS = {
    "stored": zipfile.ZIP_STORED,
    "deflated": zipfile.ZIP_DEFLATED,
    "bzip2": zipfile.ZIP_BZIP2,
    "lzma": zipfile.ZIP_LZMA,
}
LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that stands there already
        for name, content in files:
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def in_folder(path: Path, files: Files) -> Path:
    for name, content in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


PLACES: dict[str, Callable[[Path, Files], Path]] = {
    "folder": in_folder,
    "zip": zipped,
    "tar": tarred,
}


def names_of(images: ImageFiles) -> list[str]:
    return sorted(images.names())


@pytest.mark.parametrize("place", PLACES)
def test_all_files_have_their_names_and_bytes(tmp_path: Path, place: str) -> None:
    files = [
        ("a.jpg", b"1"),
        ("in/b c.png", b"22"),
        ("in/deeper/ü.jpg", b"333"),
        ("漢/字.jpg", b"4" * 9000),
    ]
    images = open_images(PLACES[place](tmp_path / "photos", files))
    assert names_of(images) == sorted(name for name, _ in files)
    assert [images.read(name) for name, _ in files] == [content for _, content in files]
    assert not any(
        images.has(name) for name in ("b.jpg", "in", "in/", "", "A.jpg", "in/b c", "x\0y")
    )


@pytest.mark.parametrize("place", ["zip", "tar"])
def test_of_two_files_with_one_name_the_last_counts_in_every_process(
    tmp_path: Path, place: str
) -> None:
    draw = np.random.default_rng(0)
    names = [f"p{n}.jpg" for n in range(300)]
    rounds = [
        [(names[n], f"{names[n]} {r}".encode()) for n in draw.permutation(300)] for r in range(3)
    ]
    path = PLACES[place](tmp_path / "twice", [file for files in rounds for file in files])
    images = open_images(path)
    assert all(images.read(name) == f"{name} 2".encode() for name in names)
    said = f"from distbranch.data.image_files import open_images as o; i = o(__import__('pathlib').Path({str(path)!r})); "
    said += "print(sum(i.read(f'p{n}.jpg').endswith(b' 2') for n in range(300)))"
    for seed in ("0", "1"):
        ended = subprocess.run(
            [sys.executable, "-c", said],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
        )
        assert ended.stdout.strip() == "300", ended.stderr


def test_a_tar_to_which_files_were_added_again_gives_the_new_ones(tmp_path: Path) -> None:
    path = tarred(tmp_path / "photos.tar", [("top/a.jpg", b"old"), ("top/b.jpg", b"old")])
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("top/a.jpg")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"new"))
    images = open_images(path)
    assert (images.read("a.jpg"), images.read("top/a.jpg"), images.read("b.jpg")) == (
        b"new",
        b"new",
        b"old",
    )


def test_what_macos_adds_to_archives_is_no_image_and_hides_no_top_folder(tmp_path: Path) -> None:
    files = [
        ("photos/a.jpg", b"1"),
        ("__MACOSX/photos/._a.jpg", b"x"),
        ("._photos", b"x"),
        ("photos/._a.jpg", b"x"),
    ]
    for place in ("zip", "tar"):
        images = open_images(PLACES[place](tmp_path / place, files))
        assert names_of(images) == ["photos/a.jpg"]
        assert images.read("a.jpg") == b"1"


def patched(path: Path, flag: int = 0, method: int | None = None) -> Path:
    """The zip with flags or a method written into the headers of its members."""
    content = bytearray(path.read_bytes())
    for magic, flag_at, method_at in ((LOCAL, 6, 8), (CENTRAL, 8, 10)):
        at = content.find(magic)
        while at >= 0:
            content[at + flag_at] |= flag
            content[at + method_at] = content[at + method_at] if method is None else method
            at = content.find(magic, at + 4)
    path.write_bytes(bytes(content))
    return path


def damaged(path: Path) -> Path:
    """The zip with the data of its first member overwritten."""
    content = bytearray(path.read_bytes())
    content[60:300] = bytes(byte ^ 0x5A for byte in content[60:300])
    path.write_bytes(bytes(content))
    return path


KINDS: dict[str, tuple[Callable[[Path, Files], Path], str]] = {
    "password": (lambda path, files: patched(zipped(path, files), flag=1), "encrypted"),
    "deflate64": (lambda path, files: patched(zipped(path, files), method=9), "not supported"),
    "ppmd": (lambda path, files: patched(zipped(path, files), method=98), "not supported"),
    "zstandard": (lambda path, files: patched(zipped(path, files), method=93), "not supported"),
    "patched data": (lambda path, files: patched(zipped(path, files), flag=0x20), "damaged"),
    **{
        f"{name}, damaged": (
            lambda path, files, method=method: damaged(zipped(path, files, method)),
            "damaged",
        )
        for name, method in METHODS.items()
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_a_zip_does_not_give_out_is_one_sentence_or_left_out_by_name(
    tmp_path: Path, kind: str
) -> None:
    make, reason = KINDS[kind]
    names = [f"p{n}.jpg" for n in range(4)]
    path = make(tmp_path / "photos.zip", [(name, picture(n)) for n, name in enumerate(names)])
    (tmp_path / "table.csv").write_text(
        "image,a,split\n" + "".join(f"{n},1,train\n{n[:2]}x.jpg,0,train\n" for n in names)
    )
    in_folder(tmp_path / "more", [])
    given = {"source": "csv", "images": path, "table": tmp_path / "table.csv"}
    with pytest.raises(
        UserError, match=rf"line 2: image 'p0.jpg' cannot be used: it is .*{reason}"
    ):
        list(parse_options(given).open().samples)
    source = parse_options({**given, "on_bad_image": "skip"}).open()
    kept = [sample.key for sample in source.samples]
    broken = {one.image: one.why for one in source.left_out if one.kind == "broken-image"}
    assert set(kept) | set(broken) >= {"p0.jpg"}
    assert reason in broken["p0.jpg"]
    assert sorted([*kept, *(one.image.removesuffix(".jpg") for one in source.left_out)]) == sorted(
        [name.removesuffix(".jpg") for name in names] + [f"{name[:2]}x" for name in names]
    )


def test_all_images_left_out_is_an_error_that_names_the_reason(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "photos.zip", [("a.jpg", picture(1))]), flag=1)
    (tmp_path / "table.csv").write_text("image,a,split\na.jpg,1,train\n")
    given = {
        "source": "csv",
        "images": path,
        "table": tmp_path / "table.csv",
        "on_bad_image": "skip",
    }
    with pytest.raises(
        UserError, match=r"All 1 images were left out.*line 2\), 'a.jpg': it is .*encrypted"
    ):
        pack_source(parse_options(given).open(), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_zip64_and_one_in_names_of_dos_or_utf8_without_a_mark_are_read(tmp_path: Path) -> None:
    with (
        zipfile.ZipFile(tmp_path / "64.zip", "w") as archive,
        archive.open("a.jpg", "w", force_zip64=True) as file,
    ):
        file.write(b"large")
    assert open_images(tmp_path / "64.zip").read("a.jpg") == b"large"
    for encoding in ("utf-8", "cp437"):
        path = zipped(tmp_path / encoding, [("Kafer.jpg", b"beetle"), ("x.jpg", b"x")])
        content = path.read_bytes()
        name = "Käfr.jpg" if encoding == "utf-8" else "Käfer.jpg"  # as many bytes
        path.write_bytes(content.replace(b"Kafer.jpg", name.encode(encoding)))
        assert names_of(open_images(path)) == [name, "x.jpg"]
        assert open_images(path).read(name) == b"beetle"


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("place", ["zip", "tar"])
def test_an_archive_cut_short_is_one_sentence(tmp_path: Path, place: str, kept: float) -> None:
    path = PLACES[place](tmp_path / "photos", [(f"{n}.jpg", picture(n)) for n in range(9)])
    content = path.read_bytes()
    whole = (
        len(content)
        if place == "zip"
        else max(at for at in range(0, len(content), 512) if content[at : at + 512].strip(b"\0"))
        + 512
    )
    path.write_bytes(content[: int(kept * whole)])
    with pytest.raises(UserError, match=r"opy it anew"):
        open_images(path)


def test_a_tar_with_a_damaged_header_is_one_sentence_though_tarfile_takes_it_for_the_end(
    tmp_path: Path,
) -> None:
    path = tarred(
        tmp_path / "photos.tar", [(f"{n}.jpg", b"1") for n in range(5)], tarfile.USTAR_FORMAT
    )
    content = bytearray(path.read_bytes())
    content[2 * 1024 + 10] ^= 1  # in the third header
    path.write_bytes(bytes(content))
    with tarfile.open(path) as archive:
        assert len(archive.getnames()) == 2
    with pytest.raises(UserError, match=r"cut short or damaged at byte 2,048"):
        open_images(path)


def test_a_tar_without_its_closing_blocks_is_whole(tmp_path: Path) -> None:
    path = tarred(tmp_path / "photos.tar", [("a.jpg", b"1")], tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:1024])
    assert open_images(path).read("a.jpg") == b"1"


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", [("x.jpg", b"1")]).read_bytes()
    assert names_of(open_images(tarred(tmp_path / "outer.tar", [("inner.zip", inner)]))) == [
        "inner.zip"
    ]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_refused_whole_or_cut(
    tmp_path: Path, compress: Callable[[bytes], bytes], whole: bool
) -> None:
    content = compress(tarred(tmp_path / "x.tar", [("a.jpg", picture(1))]).read_bytes())
    (tmp_path / "photos.tar.z").write_bytes(content if whole else content[: len(content) // 2])
    with pytest.raises(UserError, match=r"or an uncompressed .tar, and it is not .* Unpack it"):
        open_images(tmp_path / "photos.tar.z")


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\x28\xb5\x2f\xfd" + b"x" * 99, b"PK\x03\x04", b"\0" * 10240, b"no" * 999],
)
def test_what_is_no_archive_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "photos").write_bytes(content)
    if content == b"\0" * 10240:
        assert names_of(open_images(tmp_path / "photos")) == []  # an empty tar
        return
    with pytest.raises(UserError, match=r"photos should be"):
        open_images(tmp_path / "photos")


@pytest.mark.parametrize("place", ["zip", "tar"])
def test_whatever_byte_is_damaged_nothing_but_sentences_come(tmp_path: Path, place: str) -> None:
    draw = np.random.default_rng(0)
    path = PLACES[place](tmp_path / "photos", [(f"in/ü{n}.jpg", draw.bytes(200)) for n in range(3)])
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for at in draw.integers(len(content), size=3):
            content[at] = draw.choice([0, 255, draw.integers(256)])
        path.write_bytes(bytes(content))
        try:
            images = open_images(path)
        except UserError:
            continue
        for name in images.names():
            try:
                images.read(name)
            except BrokenImageError:
                continue


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


MEANT = {
    "case": ("IMG_1.jpg", "IMG_1.JPG"),
    "case of the name": ("img_1.JPG", "IMG_1.JPG"),
    "extension left out": ("scan_2", "scan_2.png"),
    "another extension": ("scan_2.jpg", "scan_2.png"),
    "jpeg for jpg": ("a/x.jpeg", "a/x.jpg"),
    "Unicode form": ("Käfer.jpg", nfd("Käfer.jpg")),
    "the other Unicode form": (nfd("Émile.jpg"), "Émile.jpg"),
    "backslash": ("a\\x.jpg", "a/x.jpg"),
    "folder in front": ("photos/scan_2.png", "scan_2.png"),
    "place on another machine": ("C:\\Users\\me\\photos\\scan_2.png", "scan_2.png"),
    "absolute place": ("/data/photos/a/x.jpg", "a/x.jpg"),
    "folder left out": ("y.v2.jpg", "b/y.v2.jpg"),
    "dots and slashes": ("./a//x.jpg", "a/x.jpg"),
    "all of them": ("Photos\\A\\X", "a/x.jpg"),
}
TREE = [
    "IMG_1.JPG",
    "scan_2.png",
    "a/x.jpg",
    nfd("Käfer.jpg"),
    "Émile.jpg",
    "b/y.v2.jpg",
    "b/z.jpg",
    "c/z.jpg",
    "c/scan.2.jpg",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_name_that_is_not_quite_that_of_a_file_finds_the_one_that_can_be_meant(
    tmp_path: Path, place: str
) -> None:
    images = open_images(
        PLACES[place](tmp_path / "photos", [(name, name.encode()) for name in TREE])
    )
    for case, (typed, file) in MEANT.items():
        names = ImageNames(images)
        assert images.read(names.find(typed)) == file.encode(), case
    names = ImageNames(images)
    assert [names.find(name) for name in TREE] == TREE
    assert (names.num_renamed, names.example) == (0, None)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("z.jpg", r"several could be meant \(nearest: 'b/z.jpg', 'c/z.jpg'\)"),
        ("d/z.jpg", r"no such image"),
        ("other.jpg", r"^there is no such image$"),
        ("IMG_2.JPG", r"no such image \(nearest: 'IMG_1.JPG'\)"),
        ("", r"^there is no such image$"),
        ("///", r"^there is no such image$"),
    ],
)
def test_a_name_that_means_no_file_or_several_is_refused_with_the_nearest(
    tmp_path: Path, typed: str, message: str
) -> None:
    images = open_images(zipped(tmp_path / "photos.zip", [(name, b"") for name in TREE]))
    with pytest.raises(MissingImageError, match=message):
        ImageNames(images).find(typed)


def test_two_names_cannot_mean_one_file(tmp_path: Path) -> None:
    names = ImageNames(open_images(in_folder(tmp_path, [("1.jpg", b"")])))
    assert names.find("a/1.jpg") == "1.jpg"
    with pytest.raises(
        MissingImageError,
        match=r"'a/1.jpg' already means the only one like it \(nearest: '1.jpg'\)",
    ):
        names.find("b/1.jpg")
    assert names.find("a/1.jpg") == "1.jpg"


def test_misspelt_columns_hide_neither_bad_cells_nor_images_that_are_missing_or_none(
    tmp_path: Path,
) -> None:
    in_folder(tmp_path / "photos", [(f"p{n}.jpg", picture(n)) for n in range(6)])
    rows = [f"p{n}.jpg;{n},5;{('red', 'blue')[n % 2]}" for n in range(6)]
    rows += ["gone.jpg;cheap;red", "away.jpg;2,5;Red", "words.webp;1,5;red"]
    (tmp_path / "photos" / "words.webp").write_text("a letter")
    (tmp_path / "table.csv").write_text("\n".join(["file;price;colour", *rows]))
    given = {"source": "csv", "images": tmp_path / "photos", "table": tmp_path / "table.csv"}
    with pytest.raises(UserError) as refused:
        parse_options({**given, "image_column": "fiel", "number": "prise"}).open()
    for part in (
        *("5 problems", "'fiel'. Nearest: file", "'prise'. Nearest: price", "'cheap' (line 8)"),
        *("'red' (line 2) and 'Red' (line 9)", "line 8: image 'gone.jpg'", "line 9: image 'away.jpg'"),
        "line 10: image 'words.webp': it is not an image",
    ):  # fmt: skip
        assert part in str(refused.value)


def test_images_that_are_missing_or_none_are_told_together_and_renamed_ones_in_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_folder(tmp_path / "photos", [(f"p{n}.JPG", picture(n)) for n in range(6)])
    given = {"source": "csv", "images": tmp_path / "photos", "table": tmp_path / "table.csv"}
    rows = [f"p{n}.jpg,{n % 2},train" for n in range(6)]
    gone = [f"gone-{n}.jpg,1,train" for n in range(7)]
    (tmp_path / "photos" / "words.webp").write_text("a letter")
    lines = ["image,a,split", *rows, *gone, "words.webp,1,train"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(
        UserError,
        match=r"line 8: image 'gone-0.jpg' .* 7 more cannot be used further down: 'gone-1.jpg', 'gone-2",
    ):
        list(parse_options(given).open().samples)
    info = pack_source(parse_options({**given, "on_bad_image": "skip"}).open(), tmp_path / "set")
    assert info.skipped == {"missing-image": 7, "broken-image": 1}
    assert "6 image(s) have another name than in the table" in caplog.text
    assert "for 'p0.jpg' the file 'p0.JPG', for instance." in caplog.text
    listed = (tmp_path / "set" / LEFT_OUT_FILE).read_text().splitlines()
    assert listed[0] == "image,kind,where,why"
    assert [line.split(",")[:2] for line in listed[1:]] == [
        *([f"gone-{n}.jpg", "missing-image"] for n in range(7)),
        ["words.webp", "broken-image"],
    ]
    assert "left-out.csv names them" in caplog.text
