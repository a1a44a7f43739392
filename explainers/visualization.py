"""Grids of images with their maps, or of feature maps, as one picture that a notebook shows and a file keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from explainers.errors import InputError
from explainers.inspection import ensure_exposed


class Picture:
    """An RGB picture that displays itself in a notebook."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels  # (H, W, 3) uint8

    def _repr_png_(self) -> bytes:
        return tf.io.encode_png(self.pixels).numpy()

    def save(self, path: str | Path) -> None:
        """Writes a PNG file."""
        Path(path).write_bytes(self._repr_png_())

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.pixels, dtype)

    def __repr__(self) -> str:
        height, width, _ = self.pixels.shape
        return f"Picture({width}x{height})"


def visualize(
    images: Any,
    overlays: Any = None,
    cols: int | None = None,
    alpha: float = 0.75,
    gap: int = 4,
    to_file: str | Path | None = None,
) -> Picture:
    """Lays images out in a grid, maps blended over them.

    Args:
        images: (N, H, W, C) or a list of (H, W, C): uint8, or floats in [0, 1], [-1, 1] or [0, 255], one range for
            all of them. One channel is shown in grey; so are maps.
        overlays: maps (N, h, w) or (N, h, w, K) in [0, 1], or a list with None where an image stays bare. With several
            units each one gets a tile of its own. Larger values are more opaque.
        cols: tiles a row; by default as many as units, or up to eight.
        alpha: opacity of the strongest value, in [0, 1].
        gap: pixels between tiles.
        to_file: a PNG file to write as well.

    Returns:
        A `Picture`; its array is `.pixels`.

    Raises:
        InputError: there is nothing to show, or images and overlays differ in number.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is an opacity between 0 and 1, not {alpha}")
    if cols is not None and cols < 1:
        raise InputError(f"cols is at least 1, not {cols}")
    tiles = [_as_rgb(image) for image in _as_uint8(images)]
    units = 1
    if not tiles:
        raise InputError("there is nothing to show: images is empty")
    if overlays is not None:
        if len(overlays) != len(tiles):
            raise InputError(f"there must be one overlay an image, and there are {len(overlays)} for {len(tiles)}")
        rows = [_overlay_units(image, overlay, alpha) for image, overlay in zip(tiles, overlays, strict=True)]
        units = max(map(len, rows))
        tiles = [tile for row in rows for tile in row]
    picture = Picture(_grid(tiles, cols or (units if units > 1 else min(8, len(tiles))), gap))
    if to_file is not None:
        picture.save(to_file)
    return picture


def activations(
    model: keras.Model,
    images: Any,
    channels: int = 16,
    cols: int | None = None,
    tile_size: int = 112,
    gap: int = 4,
    to_file: str | Path | None = None,
) -> Picture:
    """Shows the feature maps that maps are made of: each image, and beside it its strongest channels, strongest first.

    The channels of an image share one scale, from 0 (black) to its largest activation, so that they can be compared.

    Args:
        model: exposed at the signal to look at, or such that it can be exposed with nothing named.
        images: (N, H, W, C), as the model reads them.
        channels: how many channels of each image, those with the largest mean magnitude.
        cols: tiles a row; by default a row an image.
        tile_size: the longer side of a tile, pixels.
        gap: pixels between tiles.
        to_file: a PNG file to write as well.

    Returns:
        A `Picture`; which channels it shows, `strongest_channels` tells.

    Raises:
        InputError: there is nothing to show, or not in two dimensions.
    """
    exposed = ensure_exposed(model)
    signal = np.asarray(exposed(images)[1], np.float32)
    if signal.ndim != 4:
        raise InputError(f"feature maps are shown in two dimensions, and this signal has the shape {signal.shape}")
    height, width = np.shape(images)[1:3]
    size = tuple(max(1, round(side * tile_size / max(height, width))) for side in (height, width))
    colors = heat_colors()
    tiles = []
    for image, maps, best in zip(_as_uint8(images), signal, strongest_channels(signal, channels), strict=True):
        tiles.append(tf.image.resize(_as_rgb(image), size, antialias=True).numpy().round().astype(np.uint8))
        scaled = np.maximum(maps[..., best], 0) / max(float(maps[..., best].max()), np.finfo(np.float32).tiny)
        enlarged = tf.image.resize(scaled, size, method="nearest").numpy()
        tiles += [colors[np.round(255 * enlarged[..., k]).astype(np.intp)] for k in range(len(best))]
    if not tiles:
        raise InputError("there is nothing to show: images is empty")
    picture = Picture(_grid(tiles, cols or len(tiles) // len(signal), gap))
    if to_file is not None:
        picture.save(to_file)
    return picture


def strongest_channels(signal: np.ndarray, channels: int) -> np.ndarray:
    """The channels of each image with the largest mean magnitude, strongest first: (N, h, w, C) to (N, channels)."""
    if channels < 1:
        raise InputError(f"channels is at least 1, not {channels}")
    strength = np.abs(signal).mean(axis=tuple(range(1, signal.ndim - 1)))
    return np.argsort(-strength, axis=-1, kind="stable")[:, :channels]


def heat_colors() -> np.ndarray:
    """A perceptually uniform colour map, black over violet and orange to pale yellow: (256, 3) uint8.

    Lightness rises linearly in Oklab (Ottosson 2020), so that equal steps of a map look equal, in grey print too.
    """
    t = np.linspace(0, 1, 256)
    lightness = 0.08 + 0.90 * t
    hue = np.radians(-60 + 165 * t)  # violet, red, orange, yellow
    chroma = 0.19 * np.sin(np.pi * np.clip(0.06 + 0.86 * t, 0, 1)) ** 0.8
    chroma = _largest_chroma(lightness, hue, chroma)
    return np.round(255 * _oklab_to_srgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))).astype(np.uint8)


def _largest_chroma(lightness: np.ndarray, hue: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`wanted`, or less where the screen cannot show it."""
    best = np.zeros_like(wanted)
    for fraction in np.linspace(0, 1, 101):
        chroma = fraction * wanted
        rgb = _oklab_to_linear(lightness, chroma * np.cos(hue), chroma * np.sin(hue))
        best = np.where(np.all((rgb >= 0) & (rgb <= 1), axis=-1), chroma, best)
    return best


def _oklab_to_linear(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    )


def _oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    linear = np.clip(_oklab_to_linear(lightness, a, b), 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _as_uint8(images: Any) -> list[np.ndarray]:
    arrays = [np.asarray(image) for image in images]
    if all(array.dtype == np.uint8 for array in arrays):
        return arrays
    low = min(float(array.min()) for array in arrays)
    high = max(float(array.max()) for array in arrays)
    if low < 0:  # [-1, 1], or standardised values, which are shown from darkest to brightest
        edge = max(1.0, -low, high)
        arrays = [(array + edge) / (2 * edge) for array in arrays]
    elif high > 1:
        arrays = [array / 255 for array in arrays]
    return [np.round(255 * np.clip(array, 0, 1)).astype(np.uint8) for array in arrays]


def _as_rgb(image: np.ndarray) -> np.ndarray:
    image = image[..., np.newaxis] if image.ndim == 2 else image
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


def _overlay_units(image: np.ndarray, overlay: Any, alpha: float) -> list[np.ndarray]:
    if overlay is None:
        return [image]
    maps = np.asarray(overlay, np.float32)
    if not np.isfinite(maps).all():
        raise InputError("an overlay holds values that are not finite numbers")
    maps = maps[..., np.newaxis] if maps.ndim == 2 else maps
    sized = np.clip(tf.image.resize(maps, image.shape[:2]).numpy(), 0, 1)
    return [_blend(image, sized[..., unit], alpha) for unit in range(sized.shape[-1])]


def _blend(image: np.ndarray, values: np.ndarray, alpha: float) -> np.ndarray:
    colors = heat_colors()[np.round(255 * values).astype(np.intp)]
    opacity = alpha * values[..., np.newaxis]
    return np.round(image * (1 - opacity) + colors * opacity).astype(np.uint8)


def _grid(tiles: Sequence[np.ndarray], cols: int, gap: int) -> np.ndarray:
    rows = math.ceil(len(tiles) / cols)
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    canvas = np.full((rows * (height + gap) - gap, cols * (width + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = (i // cols) * (height + gap), (i % cols) * (width + gap)
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas
