"""What becomes of images of unusual kinds: read rightly, or refused in one sentence, and never a black picture in silence."""

import io
import json
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from packed_samples import picture
from PIL import Image

from distbranch.data.images import (
    DECODERS,
    BrokenImageError,
    UnknownRangeError,
    convert_to_jpeg,
    count_frames,
    decode_image,
    decode_to_size,
    measure_image,
)
from distbranch.data.sources import pack_source, parse_options
from distbranch.data.sources.source import Source
from distbranch.engine.artifact import Preprocessing
from distbranch.errors import UserError


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ramp(bits: int) -> np.ndarray:
    return np.linspace(0, 2**bits - 1, 48 * 48).astype(np.uint16).reshape(48, 48)


def deep_png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits per colour, which Pillow reads and does not write. pixels: [H, W, C]."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
def test_grey_that_uses_fewer_than_16_bits_is_refused_until_they_are_given(
    form: str, bits: int
) -> None:
    content = saved(Image.fromarray(ramp(bits)), form)
    with pytest.raises(
        UnknownRangeError,
        match=rf"brightest one \({2**bits - 1}\) uses {bits}: say with --bits .*{bits} for",
    ):
        convert_to_jpeg(content)
    with pytest.raises(UnknownRangeError, match=rf"needs {bits} bits, and --bits says"):
        convert_to_jpeg(content, bits=bits - 1)
    grey = np.asarray(decode_image(content, bits), int)[..., 0]
    assert abs(grey - ramp(bits) / (2**bits - 1) * 255).max() <= 0.5
    assert np.asarray(decode_image(content, 16)).max() == round((2**bits - 1) / 65535 * 255)


def test_all_bits_and_none_need_no_option() -> None:
    assert np.asarray(decode_image(saved(Image.fromarray(ramp(16)), "PNG"))).max() == 255
    assert np.asarray(decode_image(saved(Image.fromarray(0 * ramp(16)), "PNG"))).max() == 0
    assert np.asarray(decode_image(saved(Image.fromarray(ramp(16)), "PNG"), 16)).max() == 255
    assert convert_to_jpeg(picture(1), bits=12) == picture(1)


def test_grey_of_16_bits_may_be_big_endian_or_count_from_white_to_black() -> None:
    plain = saved(Image.fromarray(ramp(16)), "TIFF")
    expected = np.asarray(decode_image(plain), int)
    big_endian = saved(Image.fromarray(ramp(16).astype(">u2")), "TIFF")
    assert Image.open(io.BytesIO(big_endian)).mode == "I;16B"
    assert (np.asarray(decode_image(big_endian)) == expected).all()
    white_is_zero = saved(Image.fromarray(ramp(16)), "TIFF", tiffinfo={262: 0})
    assert Image.open(io.BytesIO(white_is_zero)).tag_v2[262] == 0
    assert abs(np.asarray(decode_image(white_is_zero), int) - (255 - expected)).max() <= 1


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_colours_of_16_bits_are_read_where_they_use_them_all_and_else_refused(
    colour_type: int,
) -> None:
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    pixels = np.repeat(ramp(16)[..., None], channels, axis=2)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    assert (
        abs(
            np.asarray(decode_image(deep_png(pixels, colour_type)), int)[..., 0] - ramp(16) // 256
        ).max()
        <= 1
    )
    with pytest.raises(UnknownRangeError, match="16 bits per colour"):
        decode_image(
            deep_png(pixels // 16 if channels == 3 else np.minimum(pixels, 4095), colour_type), 12
        )
    if channels == 3:
        with pytest.raises(UnknownRangeError, match="8 bits per colour"):
            decode_image(deep_png(pixels // 16, colour_type))
        assert np.asarray(decode_image(deep_png(pixels // 16, colour_type), 16)).max() == 15


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    content = saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.asarray(decode_image(convert_to_jpeg(content)), int)[8, 8] == pytest.approx(
        [255, 0, 0], abs=3
    )


def test_the_first_of_several_pictures_is_taken_and_they_are_counted() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        content = saved(frames[0], form, save_all=True, append_images=frames[1:])
        assert count_frames(content) == 3
        assert np.asarray(decode_image(convert_to_jpeg(content)), int)[8, 8] == pytest.approx(
            [255, 0, 0], abs=6
        )
    assert count_frames(picture(1)) == count_frames(b"no image") == 1
    assert count_frames(saved(frames[0], "MPO", save_all=True, append_images=frames[1:])) == 1


def test_an_image_larger_than_a_jpeg_can_be_is_one_sentence() -> None:
    with pytest.raises(
        BrokenImageError,
        match=r"it has 1x66000 pixels, and a JPEG holds no side of more than 65,500",
    ):
        convert_to_jpeg(saved(Image.new("L", (66_000, 1)), "PNG"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_whatever_is_damaged_is_a_broken_image_and_nothing_else(form: str) -> None:
    draw = np.random.default_rng(0)
    content = saved(Image.fromarray(draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)), form)
    for _ in range(150):
        damaged = bytearray(content)
        for at in draw.integers(0, min(len(content), draw.choice([64, len(content)])), size=4):
            damaged[at] = draw.integers(256)
        with suppress(BrokenImageError):
            convert_to_jpeg(bytes(damaged)[: draw.choice([len(content), len(content) // 2])])


def opened(tmp_path: Path, images: dict[str, bytes], **options: object) -> Source:
    (tmp_path / "photos").mkdir(exist_ok=True)
    for name, content in images.items():
        (tmp_path / "photos" / name).write_bytes(content)
    rows = "\n".join(f"{name},{number % 2},train" for number, name in enumerate(images))
    (tmp_path / "table.csv").write_text(f"image,a,split\n{rows}\n")
    given = {
        "source": "csv",
        "images": tmp_path / "photos",
        "table": tmp_path / "table.csv",
        **options,
    }
    return parse_options(given).open()


def test_the_range_of_an_image_is_asked_for_even_where_broken_ones_are_left_out(
    tmp_path: Path,
) -> None:
    images = {"a.png": saved(Image.fromarray(ramp(12)), "PNG"), "b.jpg": picture(1)}
    with pytest.raises(
        UserError, match=r"line 2: image 'a.png' cannot be used: it has 16 bits .*--bits"
    ):
        list(opened(tmp_path, images, on_bad_image="skip").samples)


def test_the_bits_are_recorded_with_the_data_and_those_of_training(tmp_path: Path) -> None:
    images = {"a.png": saved(Image.fromarray(ramp(12)), "PNG"), "b.jpg": picture(1, 48, 48)}
    info = pack_source(opened(tmp_path, images, bits="12"), tmp_path / "set")
    assert info.bits == 12
    assert json.loads((tmp_path / "set/dataset.json").read_text())["source"]["bits"] == 12
    preprocessing = Preprocessing("simplejpeg", (48, 48), (0.5,) * 3, (0.5,) * 3, info.bits)
    assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing
    earlier = {key: value for key, value in preprocessing.to_json().items() if key != "bits"}
    assert Preprocessing.from_json(earlier).bits is None


def test_files_of_several_pictures_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pages = saved(
        Image.new("L", (40, 32)), "TIFF", save_all=True, append_images=[Image.new("L", (40, 32))]
    )
    pack_source(
        opened(tmp_path, {"a.tif": pages, "b.tif": pages, "c.jpg": picture(1)}), tmp_path / "set"
    )
    assert (
        "2 image(s) hold several pictures (pages or frames), and the first of each was taken, as of 'a.tif'"
        in caplog.text
    )


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_what_a_decoder_of_jpegs_cannot_read_is_decoded_as_it_is_packed(
    kind: str, decoder: str
) -> None:
    noise = Image.fromarray(
        np.random.default_rng(1).integers(0, 255, (24, 36, 4), dtype=np.uint8), "RGBA"
    )
    if kind == "JPEG":
        noise = noise.convert("RGB")
    content = saved(noise, kind, lossless=True)
    if kind == "JPEG":  # with bytes between two segments, of which strict decoders complain
        content = content.replace(b"\xff\xdb", b"odd\xff\xdb", 1)
    whole = np.asarray(decode_image(content))
    assert np.array_equal(decode_to_size(content, (24, 36), decoder), whole)
    assert measure_image(content) == (24, 36)
