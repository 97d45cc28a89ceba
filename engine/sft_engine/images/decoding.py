"""From a file, bytes or an array to a picture of 8 bits a channel, or a sentence on why not."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sft_engine.file_columns import FileError, path_of, read

SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
"""How files of the usual formats begin: tells a damaged picture from something else."""

TOP_16 = 65535
TOP_8 = 255
_PER_STEP = 257
"""65535 / 255: one step of 8 bits in steps of 16 bits."""
_PLANES = (1, 3, 4)
_GREY, _COLOUR = 2, 3

BROKEN = (
    OSError,
    SyntaxError,  # what pillow raises for a broken PNG
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)
"""What pillow raises for files that are damaged, each decoder in its own way."""


class ImageError(FileError):
    """An image that cannot be used.

    Args:
        reason: Why, without the place.
        where: Path or row.
    """

    noun = "an image"
    plural = "images"

    @classmethod
    def why_not_read(cls, path: Path, error: Exception) -> str:
        """Return why an image cannot be read, and what to check."""
        if isinstance(error, FileNotFoundError):
            return super().why_not_read(path, error)
        if isinstance(error, IsADirectoryError):
            return "it is a folder, not an image"
        return f"{super().why_not_read(path, error)}; check '{path.name}'"


def decode(value: Any, where: str = "") -> Image.Image:
    """Return a picture of mode `RGB`, or `L` if it has one channel.

    The rotation of EXIF is applied, the first frame of an animation is taken, transparency is put
    on white, 16 bits a channel are scaled to 8, CMYK and palettes become RGB.

    Args:
        value: A path; bytes of a file; a dict with `bytes` and `path`, as `datasets.Image(decode=False)`
            gives; a PIL image; an array of 0..255, (h, w) or (h, w, 1|3|4), also as nested lists.
        where: What messages call it; by default its path.

    Raises:
        ImageError: no such file; empty, truncated, damaged, not an image, without pixels, or larger
            than `PIL.Image.MAX_IMAGE_PIXELS` allows (a decompression bomb).
    """
    where = where or path_of(value)
    if isinstance(value, Image.Image):
        return _plain(value, where)
    if isinstance(value, np.ndarray | list):
        return _plain(_from_array(value, where), where)
    return _decoded(read(value, ImageError, where), where)


def _decoded(data: bytes, where: str) -> Image.Image:
    if not data:
        raise ImageError("the file is empty", where)
    try:
        image = Image.open(io.BytesIO(data))
        if 0 in image.size:
            raise ImageError(_no_pixels(image.size), where)
        image.load()
    except UnidentifiedImageError as error:
        raise ImageError(_unidentified(data), where) from error
    except BROKEN as error:
        raise ImageError(_damaged(error, data), where) from error
    return _plain(image, where)


def _unidentified(data: bytes) -> str:
    """Tell a damaged picture from a file that is none."""
    form = next((name for start, name in SIGNATURES.items() if data.startswith(start)), "")
    if form == "PNG" and bytes(4) in (data[16:20], data[20:24]):  # pillow does not say
        return _no_pixels(struct.unpack(">II", data[16:24]))
    if form:
        return f"a damaged or truncated {form} file ({len(data)} bytes)"
    return f"not an image that pillow can read (it begins with {data[:12]!r})"


def _damaged(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too many pixels: {str(error).partition(',')[0]} (PIL.Image.MAX_IMAGE_PIXELS)"
    said = (str(error) or type(error).__name__).splitlines()[0]
    if "truncated" in said.lower():
        return f"truncated: the file ends after {len(data)} bytes"
    return f"damaged: {said} ({len(data)} bytes)"


def _no_pixels(size: tuple[int, int]) -> str:
    return f"it has no pixels ({size[0]} x {size[1]})"


# --- to RGB or L ---------------------------------------------------------------------------------


def _plain(image: Image.Image, where: str) -> Image.Image:
    if 0 in image.size:
        raise ImageError(_no_pixels(image.size), where)
    try:
        return _to_8_bits(_upright(image), where)
    except ImageError:
        raise
    except BROKEN as error:
        raise ImageError(f"mode {image.mode} does not become RGB: {error}", where) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN:
        return image  # the pixels are whole; only the note on rotation is not


def _to_8_bits(image: Image.Image, where: str) -> Image.Image:
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        return _from_16_bits(image, where)
    if image.mode == "F":
        return _from_float(image, where)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_16_bits(image: Image.Image, where: str) -> Image.Image:
    """Scale 0..65535 to 0..255; `convert` would clip."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > TOP_16:
        raise ImageError(
            f"its values reach from {values.min()} to {values.max()}, beyond 16 bits", where
        )
    scaled = (values.astype(np.uint32) + _PER_STEP // 2) // _PER_STEP
    return Image.fromarray(scaled.astype(np.uint8))


def _from_float(image: Image.Image, where: str) -> Image.Image:
    """Scale 0..1 to 0..255, as images of floating-point numbers are defined."""
    values = np.asarray(image)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ImageError(
            f"its values reach from {values.min():g} to {values.max():g}; floating-point images "
            "need 0 to 1",
            where,
        )
    return Image.fromarray(np.rint(values * TOP_8).astype(np.uint8))


def _from_array(value: Any, where: str) -> Image.Image:
    array = _as_array(value, where)
    if 0 in array.shape:
        raise ImageError(f"it has no pixels (shape {array.shape})", where)
    if array.ndim == _COLOUR and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != _GREY and not (array.ndim == _COLOUR and array.shape[2] in _PLANES):
        raise ImageError(
            f"an array of shape {array.shape}; an image has (height, width) or (height, width, "
            "channels), 1, 3 or 4 channels",
            where,
        )
    if array.dtype.kind not in "ui" or array.min() < 0 or array.max() > TOP_8:
        raise ImageError(
            f"an array of {array.dtype} from {array.min():g} to {array.max():g}; an image has whole "
            "numbers from 0 to 255",
            where,
        )
    return Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))


def _as_array(value: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "uif":
        raise ImageError("nested lists that are no array of numbers", where)
    return array
