"""Bytes to pixels: one bad file becomes one `ImageError` that says what is wrong with it, and harms nothing else."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.errors import ImageError
from pipeline.geometry import OVERSAMPLING

# Formats of photographs. Pillow reads others too: some start external programs, some have no signature to be told by.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
        ".avif",
    )
)
"""What a folder's images are told by."""

Image.MAX_IMAGE_PIXELS = None  # the limit is `max_pixels`, which may be higher than Pillow's own

# Damaged metadata of an image that decodes is nobody's concern. Set once: a filter for a while is not safe in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Decoded:
    """An upright RGB image, or a smaller one that shows the same."""

    image: Image.Image  # width / reduction by height / reduction pixels, rounded up
    width: int  # of the whole image
    height: int
    reduction: int  # 1, 2, 4 or 8


def decode_image(data: bytes, max_pixels: int = 100_000_000) -> Image.Image:
    """Decodes the first frame of an image to RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted; transparency is laid over white, as viewers show it.

    Args:
        data: the file's bytes.
        max_pixels: the largest width * height, checked before anything is decoded.

    Raises:
        ImageError: stage "decode": empty, not an image, too large, truncated or otherwise broken.
    """
    return decode_reduced(data, max_pixels).image


def decode_reduced(data: bytes, max_pixels: int, needed: tuple[int, int] | None = None) -> Decoded:
    """As `decode_image`, but a JPEG much larger than needed comes at a half, a quarter or an eighth of its size.

    Its decoder then computes no more than these pixels: 12 million take a third of the time, or a fifth.

    Args:
        data: the file's bytes.
        max_pixels: see `decode_image`; of the whole image.
        needed: (width, height) that the image will be resized to; `OVERSAMPLING` times as many pixels are kept.

    Raises:
        ImageError: see `decode_image`.
    """
    if not data:
        raise ImageError("decode", "EmptyFile", "the file has no bytes")
    try:
        return _decode(data, max_pixels, needed)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("decode", "NotAnImage", f"not an image: {_describe(data)}") from error
    except MemoryError as error:
        raise ImageError("decode", "TooLarge", "the image does not fit in memory") from error
    except Exception as error:
        raise ImageError("decode", "BrokenImage", f"{type(error).__name__}: {error}") from error


@lru_cache(maxsize=1)
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # until then Pillow knows half of its formats, and trips over the names of the others
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, max_pixels: int, needed: tuple[int, int] | None) -> Decoded:
    with Image.open(io.BytesIO(data), formats=_installed_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(
                "decode",
                "TooLarge",
                f"{width} x {height} is more than {max_pixels} pixels: raise --max-pixels to allow it",
            )
        reduction = _reduce(image, needed) if needed and image.format in ("JPEG", "MPO") else 1
        image.load()
        turn = _turn(image)
        upright = _as_rgb(image if turn is None else image.transpose(turn))
    if reduction == 1:
        width, height = upright.size
    elif turn in _SIDEWAYS:
        width, height = height, width
    return Decoded(upright, width, height, reduction)


_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientations, and what turns them upright."""


_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


def _turn(image: Image.Image) -> Image.Transpose | None:
    # Not ImageOps.exif_transpose, which writes the EXIF block anew and stumbles over damaged tags.
    return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))


def _reduce(image: Image.Image, needed: tuple[int, int]) -> int:
    """Tells a JPEG's decoder to compute fewer pixels, and returns how many in full one of them stands for."""
    turn, (width, height) = _turn(image), image.size
    across, down = needed[::-1] if turn in _SIDEWAYS else needed
    for reduction in (8, 4, 2):
        enough = width >= OVERSAMPLING * reduction * across and height >= OVERSAMPLING * reduction * down
        # The last pixel of a side may stand for less than the others; turned, it would come first and shift all.
        even = turn is None or (width % reduction, height % reduction) == (0, 0)
        if enough and even and image.draft(None, (width // reduction, height // reduction)):
            return reduction
    return 1


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        # A copy lets go of the file; a JPEG has done so, and what was turned is a copy.
        return image if image.format in ("JPEG", None) else image.copy()
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        raise ImageError(
            "decode", "UnsupportedPixels", "floating-point pixels have no agreed range: save as 8 or 16 bit"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """16-bit grey by its upper byte; 32-bit files hold 16-bit values, or 8-bit ones if none is larger than 255."""
    values = np.asarray(image).astype(np.int64)
    holds_bytes = image.mode == "I" and values.max(initial=0) <= 255
    grey = values if holds_bytes else values >> 8
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def _describe(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "it starts like a web page or XML"
    if head.startswith(b"%pdf"):
        return "it is a PDF"
    return f"{len(data)} bytes that start with {data[:8]!r}"
