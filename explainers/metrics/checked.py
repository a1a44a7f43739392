"""One map as an array: what localisation and similarity have in common."""

from __future__ import annotations

import numpy as np

from explainers.errors import InputError


def check_finite(values: np.ndarray) -> None:
    """Refuses maps (any shape) with NaN or infinity, by an `InputError` that tells where the first one is."""
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise InputError(
            f"a map is finite, and this one has {values[place]} at {place}, the first of {len(wrong)}: "
            "leave the image out, or put 0 where nothing is known"
        )


def as_map(values: np.ndarray) -> np.ndarray:
    """One finite map, (h, w) float64; anything else is refused by an `InputError`."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise InputError(
            f"one map has the shape (h, w), and this one {values.shape}: for maps of explain, maps[i, ..., k]"
        )
    check_finite(values)
    return values


def stretch(values: np.ndarray) -> np.ndarray:
    """To [0, 1]; a constant map becomes zeros, as in `filters.normalize`."""
    span = np.ptp(values)
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)
