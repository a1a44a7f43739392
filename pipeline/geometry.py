"""Where the model's input lies in the original image, and how points and maps travel back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

RESIZES = ("stretch", "crop", "pad")

OVERSAMPLING = 3
"""Pixels that a resize finds for each of its own, in each direction, after a large image was reduced by cheaper means.

Grey levels then differ by 0.4 in the mean and by 10 at the most, on photographs with detail in every pixel.
"""


@dataclass(frozen=True)
class View:
    """How model input coordinates map to original pixels: x = offset_x + scale_x * input_x, likewise y.

    Coordinates are continuous, with pixel edges at whole numbers.
    """

    mode: str  # "stretch", "crop" or "pad"
    width: int  # of the model input, pixels
    height: int
    scale_x: float  # original pixels an input pixel
    scale_y: float
    offset_x: float  # original position of the input's left edge; negative where the input was padded
    offset_y: float

    def to_original(self, x: float, y: float) -> tuple[float, float]:
        """The original position of a point of the model input."""
        return self.offset_x + self.scale_x * x, self.offset_y + self.scale_y * y


@dataclass(frozen=True)
class Geometry:
    """The size of an image, after EXIF orientation, and the model's view of it."""

    width: int  # original pixels
    height: int
    view: View

    @property
    def visible(self) -> tuple[int, int, int, int]:
        """The part of the image that the model saw: left, top, right, bottom in original pixels."""
        view = self.view
        right, bottom = view.to_original(view.width, view.height)
        left, right = _whole_pixels(view.offset_x, right, self.width)
        top, bottom = _whole_pixels(view.offset_y, bottom, self.height)
        return left, top, right, bottom

    def to_cells(self, shape: tuple[int, int]) -> tuple[float, float, float, float]:
        """The visible part in coordinates of a map of that shape (h, w): left, top, right, bottom in cells."""
        view, (left, top, right, bottom) = self.view, self.visible
        cell_x, cell_y = view.scale_x * view.width / shape[1], view.scale_y * view.height / shape[0]
        return (
            (left - view.offset_x) / cell_x,
            (top - view.offset_y) / cell_y,
            (right - view.offset_x) / cell_x,
            (bottom - view.offset_y) / cell_y,
        )


def fit_view(mode: str, image_size: tuple[int, int], input_size: tuple[int, int]) -> View:
    """The view of an image that a model gets.

    Args:
        mode: "stretch" ignores the aspect ratio, "crop" takes the largest centred part of the input's aspect ratio,
            "pad" fits the whole image in and leaves black bars. All edges are whole pixels.
        image_size: original (width, height).
        input_size: of the model, (width, height).
    """
    (width, height), (input_width, input_height) = image_size, input_size
    if mode == "stretch":
        return View(mode, *input_size, width / input_width, height / input_height, 0.0, 0.0)
    if mode == "crop":
        zoom = min(width / input_width, height / input_height)
        part_width = min(width, max(1, round(zoom * input_width)))
        part_height = min(height, max(1, round(zoom * input_height)))
        return View(
            mode,
            *input_size,
            part_width / input_width,
            part_height / input_height,
            float((width - part_width) // 2),
            float((height - part_height) // 2),
        )
    zoom = max(width / input_width, height / input_height)
    inner_width = min(input_width, max(1, round(width / zoom)))
    inner_height = min(input_height, max(1, round(height / zoom)))
    scale_x, scale_y = width / inner_width, height / inner_height
    left, top = (input_width - inner_width) // 2, (input_height - inner_height) // 2
    return View(mode, *input_size, scale_x, scale_y, -left * scale_x, -top * scale_y)


def make_input(image: Image.Image, geometry: Geometry, reduction: int = 1) -> np.ndarray:
    """The model's view of an RGB image: (height, width, 3) uint8, resized bilinearly with antialiasing.

    Args:
        image: upright.
        geometry: of the image in full.
        reduction: how many pixels in full one of `image` stands for, in each direction.
    """
    view = geometry.view
    left, top, right, bottom = (edge / reduction for edge in geometry.visible)
    inner = (view.width, view.height)
    if view.mode == "pad":
        inner = (round(geometry.width / view.scale_x), round(geometry.height / view.scale_y))
    pixels = image.resize(inner, Image.Resampling.BILINEAR, (left, top, right, bottom), OVERSAMPLING)
    if view.mode != "pad":
        return np.asarray(pixels)
    canvas = Image.new("RGB", (view.width, view.height))
    canvas.paste(pixels, (round(-view.offset_x / view.scale_x), round(-view.offset_y / view.scale_y)))
    return np.asarray(canvas)


def project_map(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A map in original pixels: (height, width) float32, bilinear with half-pixel centres, 0 outside the view."""
    left, top, right, bottom = geometry.visible
    projected = np.zeros((geometry.height, geometry.width), np.float32)
    projected[top:bottom, left:right] = np.asarray(resize_map(values, geometry))
    return projected


def resize_map(values: np.ndarray, geometry: Geometry) -> Image.Image:
    """What `project_map` shows inside the view's visible part, as a picture of float32."""
    left, top, right, bottom = geometry.visible
    return Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR, box=_inside(geometry, values.shape)
    )


def shrink_geometry(geometry: Geometry, longest: int) -> tuple[Geometry, float]:
    """The geometry of the same image with its longest side at most `longest` pixels, and the factor it shrank by."""
    scale = min(1.0, longest / max(geometry.width, geometry.height))
    if scale == 1:
        return geometry, scale
    view = geometry.view
    names = ("scale_x", "scale_y", "offset_x", "offset_y")
    shrunk = dataclasses.replace(view, **{name: scale * getattr(view, name) for name in names})
    width, height = (max(1, round(scale * side)) for side in (geometry.width, geometry.height))
    return Geometry(width, height, shrunk), scale


def clip_boxes(
    boxes: Iterable[tuple[float, float, float, float]], geometry: Geometry
) -> list[tuple[float, float, float, float]]:
    """Boxes x, y, w, h, cut off at the image's border; those that lie outside of it are left out."""
    clipped = []
    for x, y, w, h in boxes:
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, geometry.width), min(y + h, geometry.height)
        if right > left and bottom > top:
            clipped.append((left, top, right - left, bottom - top))
    return clipped


def cell_center(row: int, column: int, shape: tuple[int, ...], view: View) -> tuple[float, float]:
    """The original position of the centre of a map's cell."""
    return view.to_original((column + 0.5) * view.width / shape[1], (row + 0.5) * view.height / shape[0])


def strongest_region(
    values: np.ndarray, geometry: Geometry, threshold: float = 0.2
) -> tuple[float, float, float, float] | None:
    """The box round the connected region of a map that holds its maximum: x, y, w, h in original pixels.

    The region is where the bilinear map reaches `threshold` of its maximum, as in Zhou et al. 2016, Sec. 3.2 (20 %).

    Returns:
        None if nothing in the map is positive, or the region lies outside the image, in padding.
    """
    if not values.max() > 0:
        return None
    fine = _upsample(values)
    region = _grow(fine >= threshold * fine.max(), np.unravel_index(np.argmax(fine), fine.shape))
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    view = geometry.view
    step_x, step_y = view.width / fine.shape[1], view.height / fine.shape[0]
    left, top = view.to_original(columns[0] * step_x, rows[0] * step_y)
    right, bottom = view.to_original((columns[-1] + 1) * step_x, (rows[-1] + 1) * step_y)
    left, right = (min(max(x, 0.0), geometry.width) for x in (left, right))
    top, bottom = (min(max(y, 0.0), geometry.height) for y in (top, bottom))
    if left == right or top == bottom:  # all of it lies in a bar of padding
        return None
    return float(left), float(top), float(right - left), float(bottom - top)


def _whole_pixels(start: float, end: float, size: int) -> tuple[int, int]:
    """The pixels between two positions on a side: at least one, however much a long and thin image was shrunk."""
    first, last = max(0, round(start)), min(size, round(end))
    return (first, last) if first < last else (int(start), int(start) + 1)


def _inside(geometry: Geometry, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    left, top, right, bottom = geometry.to_cells((shape[0], shape[1]))  # rounding may step out by a hair
    return max(0.0, left), max(0.0, top), min(float(shape[1]), right), min(float(shape[0]), bottom)


def _upsample(values: np.ndarray, least: int = 48) -> np.ndarray:
    """The map on a grid of at least `least` cells a side, where a box's edges are finer than the activation's cells."""
    factor = max(1, -(-least // min(values.shape))) | 1  # odd: cell centres, and so the maximum, are on the grid
    size = (factor * values.shape[1], factor * values.shape[0])
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR))


def _grow(mask: np.ndarray, seed: tuple[np.intp, ...]) -> np.ndarray:
    """The 8-connected part of `mask` that holds `seed`."""
    # The mask is one long number, a cell a bit: a step in any direction is a shift, and all cells step at once. The
    # empty column after each row keeps them from stepping off one row's end onto the next row.
    row = mask.shape[1] + 1
    framed = np.zeros((mask.shape[0], row), bool)
    framed[:, :-1] = mask
    allowed = int.from_bytes(np.packbits(framed, bitorder="little").tobytes(), "little")
    region, grown = 0, 1 << int(seed[0] * row + seed[1])
    while grown != region:
        region = grown
        wide = region | region << 1 | region >> 1
        grown = (wide | wide << row | wide >> row) & allowed
    bits = np.frombuffer(region.to_bytes(-(-framed.size // 8), "little"), np.uint8)
    return np.unpackbits(bits, count=framed.size, bitorder="little").reshape(framed.shape)[:, :-1].astype(bool)
