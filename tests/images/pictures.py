"""Picture files of every awkward kind, made by pillow on the spot; and, as a script, the table of them.

`python tests/images/pictures.py` runs a recipe on a folder that holds one of each, once with
`on_error = "stop"` and once with `"skip"`, and prints what happens.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[:, : WIDTH // 2], pixels[:, WIDTH // 2 :] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


def noise(size: int = 64) -> Image.Image:
    draws = np.random.default_rng(0)
    return Image.fromarray(draws.integers(0, 256, (size, size, 3), dtype=np.uint8))


def saved(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def lossless(image: Image.Image, **options) -> bytes:
    return saved(image, "PNG", **options)


def jpeg(image: Image.Image, **options) -> bytes:
    return saved(image, "JPEG", quality=95, **options)


# --- whole ---------------------------------------------------------------------------------------


def cmyk_jpeg() -> bytes:
    return jpeg(two_halves("CMYK"))


def png_of_16_bits() -> bytes:
    """From black to white, left to right, in 16 bits."""
    ramp = np.linspace(0, 65535, WIDTH).round().astype(np.uint16)
    return lossless(Image.fromarray(np.tile(ramp, (HEIGHT, 1))))


def tiff_of_floats() -> bytes:
    ramp = np.tile(np.linspace(0, 1, WIDTH, dtype=np.float32), (HEIGHT, 1))
    return saved(Image.fromarray(ramp), "TIFF")


def grey_png() -> bytes:
    return lossless(two_halves("L"))


def one_bit_png() -> bytes:
    return lossless(two_halves("L").point(lambda v: 255 * (v > 50)).convert("1"))


def half_transparent() -> Image.Image:
    """Red on the left; on the right blue, but transparent."""
    image = two_halves("RGBA")
    image.paste((*BLUE, 0), (WIDTH // 2, 0, WIDTH, HEIGHT))
    return image


def transparent_png() -> bytes:
    return lossless(half_transparent())


def palette_with_transparency() -> bytes:
    image = two_halves("P")
    return lossless(image, transparency=image.getpixel((WIDTH - 1, 0)))


def colour_key_png() -> bytes:
    """RGB, of which one colour is transparent."""
    return lossless(two_halves(), transparency=BLUE)


def rotated_jpeg() -> bytes:
    """Stored on its side: EXIF says to turn it by a quarter, clockwise."""
    upright = two_halves()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return jpeg(upright.transpose(Image.Transpose.ROTATE_90), exif=exif, subsampling=0)


def animation(form: str) -> bytes:
    """Red first, then blue and green."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "lime")]
    lossy = {"lossless": True} if form == "WEBP" else {}
    return saved(frames[0], form, save_all=True, append_images=frames[1:], duration=40, **lossy)


# --- broken --------------------------------------------------------------------------------------


def corrupt_png() -> bytes:
    """A bit of the pixels is wrong: the checksum says so."""
    data = bytearray(lossless(noise()))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    return bytes(data)


def corrupt_header() -> bytes:
    data = jpeg(noise())
    return data[:4] + bytes(60) + data[64:]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def png_chunk(name: bytes, data: bytes) -> bytes:
    check = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


def bare_png(width: int, height: int) -> bytes:
    """Claims a size, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@dataclass(frozen=True)
class Picture:
    """A file.

    Args:
        name: What it is.
        file: Its name.
        make: Makes its bytes; None for a file that is not there.
        problem: What the message must hold; empty if it is usable.
    """

    name: str
    file: str
    make: Callable[[], bytes] | None
    problem: str = ""


WHOLE = [
    Picture("JPEG", "plain.jpg", lambda: jpeg(two_halves(), subsampling=0)),
    Picture("CMYK JPEG", "cmyk.jpg", cmyk_jpeg),
    Picture("grey JPEG", "grey.jpg", lambda: jpeg(two_halves("L"))),
    Picture("JPEG rotated by EXIF", "rotated.jpg", rotated_jpeg),
    Picture("PNG of 16 bits", "deep.png", png_of_16_bits),
    Picture("PNG of 1 channel", "grey.png", grey_png),
    Picture("PNG of 1 bit", "bit.png", one_bit_png),
    Picture("PNG with transparency", "alpha.png", transparent_png),
    Picture("palette with transparency", "palette.png", palette_with_transparency),
    Picture("RGB with a transparent colour", "key.png", colour_key_png),
    Picture("TIFF of floats", "float.tiff", tiff_of_floats),
    Picture("animated GIF", "moving.gif", lambda: animation("GIF")),
    Picture("animated PNG", "moving.png", lambda: animation("PNG")),
    Picture("animated WebP", "moving.webp", lambda: animation("WEBP")),
    Picture("BMP called .jpg", "bmp.jpg", lambda: saved(two_halves(), "BMP")),
]
BROKEN = [
    Picture("corrupt PNG", "corrupt.png", corrupt_png, "damaged"),
    Picture("JPEG with a corrupt header", "header.jpg", corrupt_header, "damaged"),
    Picture("truncated JPEG", "half.jpg", lambda: half(jpeg(noise())), "truncated"),
    Picture("truncated PNG", "half.png", lambda: half(lossless(noise())), "truncated"),
    Picture("truncated GIF", "half.gif", lambda: half(saved(noise(), "GIF")), "truncated"),
    Picture("truncated WebP", "half.webp", lambda: half(saved(noise(), "WEBP")), "damaged"),
    Picture(
        "the first 12 bytes of a PNG", "start.png", lambda: lossless(noise())[:12], "truncated"
    ),
    Picture("empty file", "empty.jpg", bytes, "empty"),
    Picture("text called .jpg", "notes.jpg", lambda: b"to be photographed\n", "not an image"),
    Picture("picture of no width", "none.png", lambda: bare_png(0, 5), "no pixels (0 x 5)"),
    Picture("decompression bomb", "bomb.png", lambda: bare_png(60_000, 60_000), "pixels"),
]
PICTURES = [*WHOLE, *BROKEN]


# --- the table -----------------------------------------------------------------------------------

RECIPE = """\
[task]
use = "image-classification"

[data]
use = "image-folder"
path = "photos"
validation = 0
test = 0
on_error = "{on_error}"

[backbone]
use = "tiny/image"

[train]
device = "cpu"
precision = "fp32"
steps = 1
"""
GOOD = 4
"""Whole pictures of each class that every folder has."""


def write_photos(folder: Path, *pictures: Picture) -> Path:
    """Write a folder with two classes, and the pictures among the first."""
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for index in range(GOOD):
            image = Image.new("RGB", (WIDTH, HEIGHT), (index * 30, 10, 200 * (label == "b")))
            (folder / label / f"good{index}.png").write_bytes(lossless(image))
    for each in pictures:
        if each.make is not None:
            (folder / "a" / each.file).write_bytes(each.make())
    return folder


def outcome(on_error: str, *found: Picture) -> tuple[int, str]:
    """Run the recipe on pictures in the current folder; return the exit code and what was said."""
    from sft_engine.cli import cli
    from sft_engine.cli.ending import exit_code_of

    Path("photos").mkdir()
    write_photos(Path("photos"), *found)
    Path("recipe.toml").write_text(RECIPE.format(on_error=on_error))
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("sft_engine").addHandler(handler)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = exit_code_of(cli, ("run", "recipe.toml", "--output", "out", "--quiet"))
    finally:
        logging.getLogger("sft_engine").removeHandler(handler)
    return code, said.getvalue().strip()


def main() -> None:
    """Print the table, in Markdown."""
    from sft_engine.testing import install_fake

    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch, "site")
        install_fake(site, "sft-pictures", {}, entry_points={"pictures": "tiny_components"})
        sys.path[:0] = [str(Path(__file__).parent), str(site)]
        os.environ |= {"SFT_ENGINE_PLUGINS": "pictures", "SFT_ENGINE_CACHE": f"{scratch}/cache"}
        print('| picture | `on_error = "stop"` | `on_error = "skip"` |\n|---|---|---|')
        for number, picture in enumerate(PICTURES):
            cells = []
            for on_error in ("stop", "skip"):
                folder = Path(scratch, f"{number}-{on_error}")
                folder.mkdir()
                with contextlib.chdir(folder):
                    code, said = outcome(on_error, picture)
                said = said.replace(str(folder / "photos/a") + "/", "")
                cells.append(f"{code}: {said}" if code or said else "0: used")
            print(f"| {picture.name} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
