"""What the rules share: the classes of some sums by name, and means and medians of their histograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.audit.findings import Scope
from pipeline.sums import EDGES, ClassSums

Names = Sequence[str] | None
"""One a class, or None."""

NO_MAPS = "no image of the run has a map that is not empty"
"""Why a rule did not run."""


def known_classes(sums: ClassSums) -> ClassSums:
    """Without the row of images that have no class."""
    keep = sums.classes >= 0
    if keep.all():
        return sums
    arrays = {f.name: getattr(sums, f.name) for f in dataclasses.fields(sums)}
    kept: dict[str, Any] = {name: values[keep] for name, values in arrays.items() if name != "histograms"}
    return ClassSums(histograms={name: counts[keep] for name, counts in sums.histograms.items()}, **kept)


def name_of(index: int, names: Names) -> str:
    """A class's name, or its number where the run has no names."""
    return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"


def scope_of(classes: ClassSums, row: int | np.integer, names: Names, by: str) -> Scope:
    """The class of a row."""
    index = int(classes.classes[row])
    return Scope(index, name_of(index, names), by)


def by_class(classes: ClassSums, values: np.ndarray) -> dict[str, float]:
    """Numbers by the class's index."""
    return by_rows(classes, np.arange(len(values)), values)


def by_rows(classes: ClassSums, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Numbers of some rows by the class's index."""
    return {str(int(classes.classes[row])): float(value) for row, value in zip(rows, values, strict=True)}


def mean_of(scalar: str, counts: np.ndarray) -> np.ndarray:
    """(..., 32) counts a bin to (...) means of the bins' centres; NaN where there is nothing."""
    centres = (EDGES[scalar][1:] + EDGES[scalar][:-1]) / 2
    n = counts.sum(axis=-1)
    return np.where(n > 0, counts @ centres / np.maximum(n, 1), np.nan)


def median_of(scalar: str, counts: np.ndarray) -> float:
    """The median of (32,) counts a bin, as if each bin's images lay evenly in it; NaN where there is nothing."""
    total = counts.sum()
    if not total:
        return float("nan")
    below = np.concatenate([[0], np.cumsum(counts)]) / total
    last = int(np.searchsorted(below, 0.5))  # the first edge that half of the images lie below
    share = (0.5 - below[last - 1]) / (below[last] - below[last - 1])
    low, high = EDGES[scalar][last - 1 : last + 1]
    return float(low + share * (high - low))
