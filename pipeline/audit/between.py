"""Two runs' sums side by side: what every rule of a comparison looks at."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.audit import inference
from pipeline.audit.classes import name_of
from pipeline.audit.comparability import Comparability, Facts
from pipeline.audit.findings import Scope
from pipeline.audit.pairing import Paired
from pipeline.audit.regions import Box, place_of
from pipeline.audit.settings import Settings
from pipeline.sums import ClassSums, Sums

Array = np.ndarray


@dataclass(frozen=True)
class Context:
    """What the rules know beside the sums of two runs."""

    names: Sequence[str] | None = None  # one a class
    settings: Settings = field(default_factory=Settings)
    facts: Facts | None = None  # of the run
    baseline: Facts | None = None  # of the earlier one
    paired: Paired | None = None  # what became of the images that both runs have
    why_not_paired: str = "the images of both runs were not looked at one by one"


@dataclass(frozen=True)
class Shared:
    """The K classes that two runs have, row by row."""

    classes: Array  # (K,) int32
    new: ClassSums
    old: ClassSums
    new_rows: Array  # (K,)
    old_rows: Array  # (K,)

    @classmethod
    def of(cls, new: ClassSums, old: ClassSums) -> Shared:
        """Of the sums of two runs."""
        classes, new_rows, old_rows = np.intersect1d(new.classes, old.classes, return_indices=True)
        real = classes >= 0  # -1 are images without a class
        return cls(classes[real], new, old, new_rows[real], old_rows[real])

    def both(self, name: str) -> tuple[Array, Array]:
        """A field of both runs' sums: (K, ...), maps as (K, h * w)."""
        new, old = getattr(self.new, name)[self.new_rows], getattr(self.old, name)[self.old_rows]
        return (_flat(new), _flat(old)) if new.ndim == 3 else (new, old)

    def histograms(self, scalar: str) -> tuple[Array, Array]:
        """Of a scalar: (K, 32) each."""
        return self.new.histograms[scalar][self.new_rows], self.old.histograms[scalar][self.old_rows]

    def by_class(self, values: Array, tested: Array) -> dict[str, float]:
        """What was measured of each class that was tested, by its index."""
        return {str(index): float(value) for index, value in zip(self.classes[tested], values[tested], strict=True)}


@dataclass(frozen=True)
class Between:
    """Two runs' sums on one grid, and what may be said of them."""

    new: Sums
    old: Sums
    context: Context
    comparability: Comparability
    on_shared_images: tuple[Sums, Sums] | None = None  # of another model: of the images that both runs have alone

    def limits(self, rule: str) -> Mapping[str, float]:
        """A rule's thresholds."""
        return self.context.settings.of(rule)

    @functools.cached_property
    def predicted(self) -> Shared:
        """The classes that both runs predict."""
        new, old = self.on_shared_images or (self.new, self.old)
        return Shared.of(new.by_predicted, old.by_predicted)

    @functools.cached_property
    def labelled(self) -> Shared:
        """The classes that both runs have labels of."""
        new, old = self.on_shared_images or (self.new, self.old)
        return Shared.of(new.by_label, old.by_label)

    def scope(self, index: int, by: str) -> Scope:
        """Of a class."""
        return Scope(int(index), name_of(int(index), self.context.names), by)

    def place(self, cell: int) -> dict[str, Any]:
        """A cell of the grid, as a finding tells its region and place."""
        h, w = self.new.grid
        row, column = divmod(cell, w)
        box: Box = (column / w, row / h, (column + 1) / w, (row + 1) / h)
        return {"region": box, "place": place_of(box)}


def count_side_by_side(new: ClassSums, old: ClassSums) -> tuple[Array, Array, Array]:
    """All classes that either has, and the images of each in both: (K,) each."""
    classes = np.union1d(new.classes[new.classes >= 0], old.classes[old.classes >= 0])
    counts = []
    for sums in (new, old):
        n, known = np.zeros(len(classes), np.int64), sums.classes >= 0
        n[np.searchsorted(classes, sums.classes[known])] = sums.n[known]
        counts.append(n)
    return classes, counts[0], counts[1]


def interval(k: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of k in n."""
    low, high = inference.wilson(k, n)
    return float(low), float(high)


def _flat(maps: Array) -> Array:
    return maps.reshape(len(maps), -1)
