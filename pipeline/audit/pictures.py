"""The report's pictures: small photographs, and maps of a few cells that a browser stretches over them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.decode import decode_reduced
from pipeline.overlay import color_table

THUMB_SIDE = 240  # longest side of a small photograph, pixels; shown at 100 to 200
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"  # the levels of `encode_cells`


@dataclass(frozen=True)
class Thumbnail:
    """A small photograph, upright."""

    jpeg: bytes
    width: int  # pixels
    height: int


def make_thumbnail(uri: str, max_pixels: int = 100_000_000, max_bytes: int = 200_000_000) -> Thumbnail:
    """Reads an image and makes it small.

    Raises:
        OSError: it cannot be read.
        ImageError: it cannot be decoded.
    """
    decoded = decode_reduced(storage.read_bytes(uri, limit=max_bytes), max_pixels, (THUMB_SIDE, THUMB_SIDE))
    picture = decoded.image
    picture.thumbnail((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=78, optimize=True)
    return Thumbnail(buffer.getvalue(), *picture.size)


def scale_to_one(values: np.ndarray) -> np.ndarray:
    """A map's positive part over its maximum: (h, w) float64 in [0, 1]; all 0 where nothing is positive."""
    positive = np.nan_to_num(np.maximum(np.asarray(values, np.float64), 0))
    largest = positive.max(initial=0)
    return positive / largest if largest > 0 else positive


def overlay_png(values: np.ndarray, colormap: str = "inferno") -> bytes:
    """A map as a layer of one pixel a cell, as opaque as the map is strong: RGBA, some hundred bytes."""
    return _encode(_colors(values, colormap), "RGBA")


def map_png(values: np.ndarray, colormap: str = "inferno") -> bytes:
    """A map as a picture of one pixel a cell, RGB."""
    return _encode(_colors(values, colormap)[..., :3], "RGB")


def encode_cells(values: np.ndarray) -> str:
    """A map for the page's script: a letter a cell, row by row; its place in `LETTERS` is the level, 0 to 63."""
    levels = np.rint(63 * scale_to_one(values)).astype(int)
    return "".join(LETTERS[level] for level in levels.ravel())


def half_contour(values: np.ndarray) -> str:
    """Where the bilinear map crosses half of its maximum, as an SVG path in cells: a cue that needs no colour.

    Marching squares over the centres of the cells. As a browser stretches a picture, the outer half of the cells at the
    border shows their own value.
    """
    values = scale_to_one(values)
    height, width = values.shape
    rows, columns = (np.clip(np.arange(n + 2) - 0.5, 0, n) for n in (height, width))
    framed = np.pad(values, 1, mode="edge") - 0.5
    above = framed >= 0
    corners = above[:-1, :-1].astype(int) + above[:-1, 1:] + above[1:, :-1] + above[1:, 1:]
    parts = []
    for i, j in zip(*np.nonzero((corners > 0) & (corners < 4)), strict=True):
        square = [(rows[i + a], columns[j + b], framed[i + a, j + b]) for a, b in ((0, 0), (0, 1), (1, 1), (1, 0))]
        edges = [_cross(square[k], square[(k + 1) % 4]) for k in range(4)]
        found = [edge for edge in edges if edge is not None]
        if len(found) == 4 and (sum(corner[2] for corner in square) >= 0) != (square[0][2] >= 0):
            found = [found[3], *found[:3]]  # a saddle whose middle cuts off the first corner, not the second
        parts += [f"M{found[k]}L{found[k + 1]}" for k in range(0, len(found), 2) if found[k] != found[k + 1]]
    return "".join(parts)


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as a uri that holds them; `kind` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def color_stops(names: tuple[str, ...], count: int = 17) -> dict[str, list[list[int]]]:
    """Colour maps for the page's script, by name: RGB at equal steps from 0 to 1, linear between them."""
    places = np.rint(np.linspace(0, 255, count)).astype(int)
    return {name: _table(name)[places, :3].tolist() for name in names}


def _cross(start: tuple[float, float, float], end: tuple[float, float, float]) -> str | None:
    """Where a straight line from one corner to the next is 0, as "x y"; None if it stays on one side."""
    (y0, x0, v0), (y1, x1, v1) = start, end
    if (v0 >= 0) == (v1 >= 0):
        return None
    share = v0 / (v0 - v1)
    return f"{x0 + share * (x1 - x0):.4g} {y0 + share * (y1 - y0):.4g}"


def _table(colormap: str) -> np.ndarray:
    return np.frombuffer(color_table(colormap), np.uint8).reshape(256, 4)


def _colors(values: np.ndarray, colormap: str) -> np.ndarray:
    return _table(colormap)[np.rint(255 * scale_to_one(values)).astype(int)]


def _encode(pixels: np.ndarray, mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes(mode, (pixels.shape[1], pixels.shape[0]), pixels.tobytes()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
