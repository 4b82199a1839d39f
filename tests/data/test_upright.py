"""A picture that its camera stored lying or mirrored is seen upright on every way from a file to a network."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from distbranch.data.check import check_dataset
from distbranch.data.contact_sheet import draw_contact_sheet
from distbranch.data.images import (
    DECODERS,
    ORIENTATION,
    convert_to_jpeg,
    decode_image,
    decode_to_size,
    read_image_size,
    read_orientation,
    turn_upright,
)
from distbranch.data.loader import eval_loader, train_loader
from distbranch.data.pack import pack
from distbranch.data.shards import Sample
from distbranch.data.sources import pack_source, parse_options
from distbranch.engine.artifact import Preprocessing
from distbranch.engine.predict import predict_images
from distbranch.tasks import Task, TaskSet

HEIGHT, WIDTH = 48, 32
ORIENTATIONS = range(1, 9)
# How a picture is stored that the orientation turns upright: the turn that undoes it.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True, "exact": True}, "TIFF": {}}
Array = NDArray[np.uint8]


def scene() -> Image.Image:
    """A picture like no turn or mirror image of itself, of areas large enough for JPEG to keep."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    pixels[:16, :16] = (220, 30, 30)
    pixels[16:32, :16] = (30, 200, 30)
    pixels[:16, 16:] = (30, 30, 220)
    return Image.fromarray(pixels)


def tagged(orientation: int, form: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010F] = "a camera"
    picture = scene()
    if orientation in STORED:
        picture = picture.transpose(STORED[orientation])
    buffer = io.BytesIO()
    given = LOSSLESS.get(form, {"quality": 100, "subsampling": 0}) | options
    picture.save(buffer, form, exif=exif, **given)
    return buffer.getvalue()


def segments(jpeg: bytes, *added: bytes) -> bytes:
    """The JPEG with APP1 segments put first."""
    marked = [b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content for content in added]
    return jpeg[:2] + b"".join(marked) + jpeg[2:]


def is_the_scene(pixels: Array, size: tuple[int, int] = (HEIGHT, WIDTH), most: float = 3) -> bool:
    expected = np.asarray(scene().resize(size[::-1], Image.Resampling.BOX), int)
    return pixels.shape == expected.shape and bool(abs(pixels.astype(int) - expected).mean() < most)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_reference_agrees_that_every_file_shows_the_scene(orientation: int) -> None:
    for form in ("JPEG", *LOSSLESS):
        with Image.open(io.BytesIO(tagged(orientation, form))) as image:
            assert is_the_scene(np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_jpeg_is_decoded_upright_in_every_size_by_every_decoder(
    orientation: int, decoder: str
) -> None:
    content = tagged(orientation)
    assert is_the_scene(decode_to_size(content, (HEIGHT, WIDTH), decoder))
    assert is_the_scene(decode_to_size(content, (12, 8), decoder), (12, 8), most=12)
    assert is_the_scene(decode_to_size(content, (96, 64), decoder), (96, 64), most=12)
    assert read_image_size(content) == (HEIGHT, WIDTH)
    assert is_the_scene(np.asarray(decode_image(content)))


@pytest.mark.parametrize("form", ["JPEG", *LOSSLESS])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_is_packed_is_upright_and_has_no_tag(orientation: int, form: str) -> None:
    content = tagged(orientation, form)
    jpeg = convert_to_jpeg(content)
    assert (jpeg == content) == (form == "JPEG" and orientation == 1)
    assert read_orientation(jpeg) == 1
    assert Image.open(io.BytesIO(jpeg)).getexif().get(ORIENTATION, 1) == 1
    assert is_the_scene(np.asarray(Image.open(io.BytesIO(jpeg))))
    assert is_the_scene(np.asarray(decode_image(content)))
    smaller = convert_to_jpeg(content, (24, 16))
    assert read_image_size(smaller) == (24, 16)
    assert is_the_scene(np.asarray(Image.open(io.BytesIO(smaller))), (24, 16), most=12)


@pytest.mark.parametrize("form", LOSSLESS)
def test_formats_without_loss_give_the_same_bytes_in_every_orientation(form: str) -> None:
    assert len({convert_to_jpeg(tagged(orientation, form)) for orientation in ORIENTATIONS}) == 1


def test_a_turn_of_pixels_is_that_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    for orientation in ORIENTATIONS:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue())))
        assert (turn_upright(pixels, orientation) == np.asarray(expected)).all()


XMP = (
    b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
)
XMP_ELEMENT = (
    b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><tiff:Orientation>3</tiff:Orientation></x:xmpmeta>"
)
BIG_ENDIAN = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
LITTLE_ENDIAN = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x05\0\0\0\0\0\0\0"
LONG_VALUE = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x03\0\0\0\0"
IMPOSSIBLE = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0\0\0\0\0"
ZERO = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x00\0\0\0\0\0\0"
# Of the picture nothing is said, and of the thumbnail in the second list that it lies on its side.
THUMBNAIL = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x01\0\0\0\0\0\0\0\x1a\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
HEADERS = {
    "a thumbnail alone": ([THUMBNAIL], 1),
    "big endian": ([BIG_ENDIAN], 8),
    "little endian": ([LITTLE_ENDIAN], 5),
    "a long number": ([LONG_VALUE], 3),
    "XMP alone": ([XMP], 6),
    "XMP as an element": ([XMP_ELEMENT], 3),
    "EXIF before XMP": ([XMP, BIG_ENDIAN], 8),
    "an orientation that there is not": ([IMPOSSIBLE], 1),
    "no orientation": ([ZERO], 1),
    "EXIF that is none": ([b"Exif\0\0no TIFF at all"], 1),
    "EXIF cut short": ([BIG_ENDIAN[:20]], 1),
    "empty EXIF": ([b"Exif\0\0"], 1),
    "EXIF that points outside": ([b"Exif\0\0MM\0*\0\xff\xff\xff\0\x01"], 1),
    "another segment": ([b"Something else"], 1),
}


@pytest.mark.parametrize("case", HEADERS)
def test_the_orientation_is_read_from_every_kind_of_header(case: str) -> None:
    added, expected = HEADERS[case]
    plain = io.BytesIO()
    scene().save(plain, "JPEG", quality=95)
    content = segments(plain.getvalue(), *added)
    assert read_orientation(content) == expected
    assert (convert_to_jpeg(content) == content) == (expected == 1)
    expected_size = (WIDTH, HEIGHT) if expected >= 5 else (HEIGHT, WIDTH)
    for pixels in (decode_image(content), Image.open(io.BytesIO(convert_to_jpeg(content)))):
        assert pixels.size[::-1] == expected_size == read_image_size(content)


def test_no_content_is_too_odd_to_be_asked_for_its_orientation() -> None:
    whole = tagged(6)
    for content in (
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8\xff\xff\xff\xff",
        b"\xff\xd8\xff\xe1\0\0" * 9,
        b"no image",
    ):
        assert read_orientation(content) == 1
    assert {read_orientation(whole[:length]) for length in range(len(whole))} <= {1, 6}
    assert read_orientation(whole[:2] + b"\xff\xff\xff" + whole[2:]) == 6  # markers may be padded


def lying_samples() -> Iterator[Sample]:
    for orientation in ORIENTATIONS:
        yield Sample(f"turned-{orientation}", "train", tagged(orientation), {"a": 1})


@pytest.mark.parametrize("decoder", DECODERS)
def test_shards_that_hold_tagged_images_are_read_upright(tmp_path: Path, decoder: str) -> None:
    info = pack(lying_samples(), tmp_path / "set", [Task("a")])
    assert info.image_size == (HEIGHT, WIDTH)
    given = {"batch_size": 8, "image_size": info.image_size, "decoder": decoder}
    batches = [
        next(eval_loader(info, "train", **given)),
        next(train_loader(info, "train", **given)),
    ]
    for batch in batches:
        assert len(batch.images) == 8
        assert all(is_the_scene(image.permute(1, 2, 0).numpy()) for image in batch.images)
    assert check_dataset(tmp_path / "set").ok


def test_a_contact_sheet_shows_tagged_images_upright(tmp_path: Path) -> None:
    pack(lying_samples(), tmp_path / "set", [Task("a")])
    sheet = np.asarray(
        Image.open(draw_contact_sheet(tmp_path / "set", tmp_path / "sheet.png", columns=8)), int
    )
    red = (abs(sheet - (220, 30, 30)).sum(axis=2) < 30).nonzero()
    blue = (abs(sheet - (30, 30, 220)).sum(axis=2) < 30).nonzero()
    assert len(np.unique(blue[1])) == pytest.approx(
        len(np.unique(red[1])), rel=0.1
    )  # eight corners beside eight others
    assert (blue[0].min(), blue[0].max()) == pytest.approx(
        (red[0].min(), red[0].max()), abs=4
    )  # in the same rows


@pytest.mark.parametrize("form", ["JPEG", *LOSSLESS])
def test_a_table_of_tagged_files_is_packed_upright(tmp_path: Path, form: str) -> None:
    (tmp_path / "photos").mkdir()
    for orientation in ORIENTATIONS:
        (tmp_path / f"photos/{orientation}.x").write_bytes(tagged(orientation, form))
    rows = "\n".join(f"{orientation}.x,{orientation % 2},train" for orientation in ORIENTATIONS)
    (tmp_path / "table.csv").write_text(f"image,a,split\n{rows}\n")
    given = {"source": "csv", "images": tmp_path / "photos", "table": tmp_path / "table.csv"}
    source = parse_options(given).open()
    info = pack_source(source, tmp_path / "set")
    assert info.image_size == (HEIGHT, WIDTH)
    batch = next(eval_loader(info, "train", batch_size=8, image_size=info.image_size))
    assert all(is_the_scene(image.permute(1, 2, 0).numpy()) for image in batch.images)


class SeenImages:
    """A network that keeps what it is shown."""

    tasks = TaskSet([Task("a")])

    def __init__(self) -> None:
        self.images: list[Array] = []

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.images += [image.permute(1, 2, 0).numpy() for image in images]
        return {"a": torch.zeros(len(images))}


def written(folder: Path, contents: Sequence[bytes]) -> list[Path]:
    files = [folder / f"{number}.img" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return files


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_prediction_sees_files_upright(tmp_path: Path, decoder: str) -> None:
    contents = [
        tagged(orientation, form) for form in ("JPEG", *LOSSLESS) for orientation in ORIENTATIONS
    ]
    network = SeenImages()
    preprocessing = Preprocessing(decoder, (HEIGHT, WIDTH), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert len(list(predict_images(network, preprocessing, written(tmp_path, contents)))) == len(
        contents
    )
    assert len(network.images) == len(contents)
    assert all(map(is_the_scene, network.images))


def test_damaged_exif_is_no_warning_of_a_library(recwarn: pytest.WarningsRecorder) -> None:
    plain = io.BytesIO()
    scene().save(plain, "JPEG", quality=95)
    for length in range(6, 26):  # before the end of the number
        content = segments(plain.getvalue(), BIG_ENDIAN[:length], XMP)
        assert read_orientation(content) == 6  # that of XMP
        assert is_the_scene(np.asarray(decode_image(content).transpose(Image.Transpose.ROTATE_90)))
    assert not recwarn.list
