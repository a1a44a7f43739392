"""A map as a picture: blended over the photograph, or as a transparent layer, in the original's pixels."""

from __future__ import annotations

from functools import lru_cache

import cmap
import numpy as np
from PIL import Image

from pipeline.geometry import Geometry, resize_map, shrink_geometry

STYLES = ("blend", "layer", "none")


def draw_overlay(
    photograph: Image.Image | None,
    values: np.ndarray,
    geometry: Geometry,
    style: str,
    colormap: str,
    max_side: int | None,
    reduction: int = 1,
) -> np.ndarray:
    """The pixels of one map over its image.

    Args:
        photograph: RGB, upright; a layer needs none.
        values: the map as it is to be shown, (h, w) float32 in [0, 1].
        geometry: where the map lies in the image in full.
        style: "blend" lays the map over the photograph, opaque where it is strong; "layer" leaves the photograph out,
            for tools that stack layers.
        colormap: a name that `cmap` knows; a layer gets its colours from the palette that it is written with.
        max_side: the longest side in pixels, for smaller files; None for the original size.
        reduction: how many pixels in full one of `photograph` stands for, in each direction.

    Returns:
        uint8: a blend is (H, W, 3), RGB; a layer is (H, W), indices into `color_table`.
    """
    whole = (0, 0, geometry.width / reduction, geometry.height / reduction)
    if max_side is not None:
        geometry, _ = shrink_geometry(geometry, max_side)
    size, corner = (geometry.width, geometry.height), geometry.visible[:2]
    # The conversion to bytes cuts off at 0 and 255, and rounds down.
    patch = resize_map(255 * values + np.float32(0.5), geometry).convert("L")
    if style == "layer":
        picture = Image.new("L", size)  # where the model saw nothing, the map is 0
        picture.paste(patch, corner)
    else:
        assert photograph is not None
        patch.putpalette(color_table(colormap), "RGBA")
        colored = patch.convert("RGBA")
        picture = photograph.resize(size, Image.Resampling.BILINEAR, whole, 2.0)  # a copy, if that is its size
        picture.paste(colored, corner, colored)
    return np.asarray(picture)


@lru_cache(maxsize=8)
def color_table(name: str) -> bytes:
    """A colour map as 256 RGBA entries; the opacity of each is as strong as the map, up to 85 %.

    Raises:
        ValueError: `cmap` does not know the name.
    """
    try:
        rgba = cmap.Colormap(name)(np.linspace(0, 1, 256), bytes=True)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"there is no colour map {name!r}: try inferno, viridis, cividis, magma or gray") from error
    return np.column_stack([rgba[:, :3], np.rint(0.85 * np.arange(256))]).astype(np.uint8).tobytes()
