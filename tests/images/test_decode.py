from __future__ import annotations

import io
import warnings

import numpy as np
import pictures
import pytest
from pictures import BLUE, HEIGHT, RED, WHITE, WIDTH
from PIL import Image

from sft_engine import DataError
from sft_engine.images import ImageError, decode


def corners(image):
    """Colours well inside the left and the right half."""
    return image.getpixel((2, HEIGHT // 2)), image.getpixel((WIDTH - 3, HEIGHT // 2))


def close(found, expected, tolerance=3):
    return np.abs(np.array(found) - np.array(expected)).max() <= tolerance


def grey(colour):
    return Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))


@pytest.mark.parametrize(
    ("data", "mode", "left", "right"),
    [
        (pictures.jpeg(pictures.two_halves(), subsampling=0), "RGB", RED, BLUE),
        (pictures.cmyk_jpeg(), "RGB", RED, BLUE),
        (pictures.rotated_jpeg(), "RGB", RED, BLUE),
        (pictures.png_of_16_bits(), "L", 255 * 2 / (WIDTH - 1), 255 * (WIDTH - 3) / (WIDTH - 1)),
        (pictures.tiff_of_floats(), "L", 255 * 2 / (WIDTH - 1), 255 * (WIDTH - 3) / (WIDTH - 1)),
        (pictures.grey_png(), "L", grey(RED), grey(BLUE)),
        (pictures.one_bit_png(), "L", 255, 0),
        (pictures.transparent_png(), "RGB", RED, WHITE),
        (pictures.palette_with_transparency(), "RGB", RED, WHITE),
        (pictures.colour_key_png(), "RGB", RED, WHITE),
        (pictures.saved(pictures.half_transparent().convert("LA"), "PNG"), "RGB", None, WHITE),
        (pictures.animation("GIF"), "RGB", RED, RED),
        (pictures.animation("PNG"), "RGB", RED, RED),
        (pictures.animation("WEBP"), "RGB", RED, RED),
        (pictures.saved(pictures.two_halves(), "BMP"), "RGB", RED, BLUE),
    ],
)
def test_every_kind_of_picture_becomes_what_one_sees(data, mode, left, right):
    image = decode(data)
    assert (image.mode, image.size) == (mode, (WIDTH, HEIGHT))
    found = corners(image)
    assert left is None or close(found[0], left)
    assert close(found[1], right)


def test_transparency_is_blended_with_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 51))
    assert decode(image).getpixel((0, 0)) == (255, 204, 204)


def test_16_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 128, 257, 32896, 65535]], dtype=np.uint16)
    found = np.asarray(decode(pictures.lossless(Image.fromarray(values))))
    assert found.tolist() == [[0, 0, 1, 128, 255]]


@pytest.mark.parametrize("picture", pictures.WHOLE, ids=lambda each: each.name)
def test_what_is_given_does_not_matter(picture, tmp_path):
    data = picture.make()
    path = tmp_path / picture.file
    path.write_bytes(data)
    expected = decode(data)
    with Image.open(path) as opened:
        values = [
            path,
            str(path),
            {"bytes": data, "path": None},
            {"bytes": None, "path": str(path)},
        ]
        for value in [
            *values,
            opened,
            expected,
            np.asarray(expected),
            np.asarray(expected).tolist(),
        ]:
            found = decode(value)
            assert found.mode == expected.mode
            assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_an_array_with_one_channel_is_grey():
    array = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert np.array_equal(np.asarray(decode(array)), array[:, :, 0])


@pytest.mark.parametrize("picture", pictures.BROKEN, ids=lambda each: each.name)
def test_a_broken_file_is_named_with_the_reason(picture, tmp_path):
    path = tmp_path / picture.file
    path.write_bytes(picture.make())
    with pytest.raises(ImageError) as raised:
        decode(str(path))
    assert str(raised.value) == f"{path}: {raised.value.reason}"
    assert picture.problem in raised.value.reason
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, DataError)
    with pytest.raises(ImageError, match=r"^row 3: "):
        decode(path.read_bytes(), "row 3")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no/such/file.png", "no such file"),
        (".", "folder"),
        ("a\0b", "cannot be read"),
        (None, "found nothing"),
        ({"bytes": None, "path": None}, "found nothing"),
        (3.5, "found float"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.full((4, 4), 256), "0 to 255"),
        (np.full((4, 4), -1), "0 to 255"),
        (np.full((4, 4), 0.5), "float64"),
        ([[1, 2], [3]], "no array"),
        ([["a"]], "no array"),
        (Image.fromarray(np.full((4, 4), 70_000, np.int32)), "beyond 16 bits"),
        (Image.fromarray(np.full((4, 4), 1.5, np.float32)), "need 0 to 1"),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), "need 0 to 1"),
    ],
)
def test_what_is_no_image_is_refused(value, reason):
    with pytest.raises(ImageError, match=reason):
        decode(value)


def test_a_picture_that_pillow_warns_of_is_no_bomb_unless_warnings_are_errors(monkeypatch):
    data = pictures.lossless(Image.new("L", (40, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="too many pixels"):
        decode(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data).size == (40, 30)


def test_a_broken_note_on_rotation_does_not_matter():
    data = bytearray(pictures.rotated_jpeg())
    start = data.index(b"Exif\0\0") + 6
    data[start : start + 8] = b"XX\xff\xff\xff\xff\xff\xff"
    assert decode(bytes(data)).size == (HEIGHT, WIDTH)


def test_the_picture_given_is_not_changed():
    given = pictures.half_transparent()
    before = given.tobytes()
    decode(given)
    assert (given.mode, given.tobytes()) == ("RGBA", before)


def test_decoding_equals_pillow_where_pillow_alone_is_right():
    data = pictures.jpeg(pictures.noise())
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))
