"""Bytes to pixels: one bad file becomes one `ImageError` that says what is wrong with it, and harms nothing else."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import ImageError
from pipeline.geometry import OVERSAMPLING
from pipeline.precheck import Metered, describe, kind_of, orientation_of, refuse_bombs, refuse_large

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
    Memory is at most 20 bytes a pixel besides the file (JPEG 2000; WebP 16, PNG 12, JPEG 8).

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
        refuse_bombs(data, max_pixels)
        return _decode(data, max_pixels, needed)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except MemoryError as error:
        raise ImageError("decode", "TooLarge", "the image does not fit in memory") from error
    except Exception as error:
        raise _broken(data, error) from error


_ANEW = "copy it once more from where it is whole, or save it anew"


def _unidentified(data: bytes) -> ImageError:
    kind = kind_of(data)
    if kind is None:
        return ImageError("decode", "NotAnImage", f"not an image: {describe(data)}")
    words = f"the header of this {kind} is cut short, damaged, or of a variant that is not read"
    return ImageError("decode", "BrokenImage", f"{words}: {_ANEW}")


def _broken(data: bytes, error: Exception) -> ImageError:
    reason = (str(error).splitlines() or [""])[0][:200]
    if "MAX_TEXT" in reason:  # Pillow's limits, of 1 MB a chunk and 64 MB together
        return ImageError(
            "decode", "TooComplex", f"its texts or its colour profile are too long ({reason}): remove them"
        )
    said = f"{type(error).__name__}: {reason}".removesuffix(": ")
    return ImageError("decode", "BrokenImage", f"this {kind_of(data) or 'image'} is damaged ({said}): {_ANEW}")


@lru_cache(maxsize=1)
def _installed_formats() -> tuple[str, ...]:
    Image.init()  # until then Pillow knows half of its formats, and trips over the names of the others
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(data: bytes, max_pixels: int, needed: tuple[int, int] | None) -> Decoded:
    # A JPEG's reader takes few steps in Python, and all of them were gone through before.
    file = io.BytesIO(data) if data.startswith(b"\xff\xd8") else Metered(data)
    with Image.open(file, formats=_installed_formats()) as image:
        width, height = image.size
        refuse_large(width, height, max_pixels)
        _refuse_unfit(image, max_pixels)
        reduction = _reduce(image, needed) if needed and image.format in ("JPEG", "MPO") else 1
        image.load()
        turn = _turn(image)
        upright = _as_rgb(image if turn is None else image.transpose(turn))
    if reduction == 1:
        width, height = upright.size
    elif turn in _SIDEWAYS:
        width, height = height, width
    return Decoded(upright, width, height, reduction)


def _refuse_unfit(image: Image.Image, max_pixels: int) -> None:
    """What is known to be of no use before any pixel is decoded."""
    if image.mode == "F":
        raise ImageError(
            "decode", "UnsupportedPixels", "floating-point pixels have no agreed range: save as 8 or 16 bit"
        )
    if image.format == "TIFF":
        # Tiles are decoded whole, however little of them is in the picture.
        tags, (width, height) = image.tag_v2, image.size  # type: ignore[attr-defined]
        across, down = int(tags.get(322) or width), int(tags.get(323) or height)
        refuse_large(-(-width // across) * across, -(-height // down) * down, max(max_pixels, 1 << 20))


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
    if image.format == "TIFF":  # has been turned by Pillow, when it was loaded
        return None
    exif = image.info.get("exif", b"")
    if not exif and "Raw profile type exif" in image.info:  # ImageMagick's way, in PNG
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return _TURNS.get(orientation_of(exif) or _orientation_of_xmp(image))


_XMP_ORIENTATION = re.compile(r'tiff:Orientation(?:="|>)([0-9])')


def _orientation_of_xmp(image: Image.Image) -> int | None:
    text = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or ""
    found = _XMP_ORIENTATION.search(text.decode("latin-1") if isinstance(text, bytes) else text)
    return int(found[1]) if found else None


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
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", layer.size, (255, 255, 255))
        white.paste(layer, mask=layer)
        return white
    return image.convert("RGB")


def _from_integers(image: Image.Image) -> Image.Image:
    """16-bit grey by its upper byte; 32-bit files hold 16-bit values, or 8-bit ones if none is larger than 255."""
    values = np.asarray(image)
    holds_bytes = image.mode == "I" and values.max(initial=0) <= 255
    grey = np.empty(values.shape, np.uint8)
    for row, found in zip(values, grey, strict=True):  # in place, since pixels may be many
        found[:] = np.clip(row if holds_bytes else row >> 8, 0, 255)
    return Image.fromarray(grey).convert("RGB")
