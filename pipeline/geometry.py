"""Where the model's input lies in the original image, and how points and maps travel back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

RESIZES = ("stretch", "crop", "pad")


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
        return (
            max(0, round(view.offset_x)),
            max(0, round(view.offset_y)),
            min(self.width, round(right)),
            min(self.height, round(bottom)),
        )

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


def make_input(image: Image.Image, geometry: Geometry) -> np.ndarray:
    """The model's view of an RGB image: (height, width, 3) uint8, resized bilinearly with antialiasing."""
    view = geometry.view
    if view.mode != "pad":
        return np.asarray(image.resize((view.width, view.height), Image.Resampling.BILINEAR, box=geometry.visible))
    left, top = round(-view.offset_x / view.scale_x), round(-view.offset_y / view.scale_y)
    inner = (round(geometry.width / view.scale_x), round(geometry.height / view.scale_y))
    canvas = Image.new("RGB", (view.width, view.height))
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), (left, top))
    return np.asarray(canvas)


def project_map(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A map in original pixels: (height, width) float32, bilinear with half-pixel centres, 0 outside the view."""
    left, top, right, bottom = geometry.visible
    projected = np.zeros((geometry.height, geometry.width), np.float32)
    patch = Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR, box=_inside(geometry, values.shape)
    )
    projected[top:bottom, left:right] = np.asarray(patch)
    return projected


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
    left, right = np.clip((left, right), 0, geometry.width)
    top, bottom = np.clip((top, bottom), 0, geometry.height)
    if left == right or top == bottom:  # all of it lies in a bar of padding
        return None
    return float(left), float(top), float(right - left), float(bottom - top)


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
    region = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    region[seed[0] + 1, seed[1] + 1] = True
    count = 0
    while count != (count := int(region.sum())):
        wide = region[:, :-2] | region[:, 1:-1] | region[:, 2:]
        region[1:-1, 1:-1] = (wide[:-2] | wide[1:-1] | wide[2:]) & mask
    return region[1:-1, 1:-1]
