"""The images that two runs share, one by one: whose prediction changed, whose attention moved, which came and went."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audit.findings import Example, Examples
from pipeline.audit.images import ImageIndex, Predictions
from pipeline.idset import as_ids
from pipeline.observations import Observations
from pipeline.reading import Run
from pipeline.sums import Sums

MOST_MAPS = 50_000
"""Images whose maps are compared, at some 3,000 a second and run: of more, those with the smallest ids, which are
hashes. Predictions are compared of all."""

NEAR_TIE = 1e-3
"""Difference of the best two classes' probabilities below which rounding may decide between them."""

SHOWN = 20
"""Images that are named of each kind."""

MOVED = 0.25
"""Distance of two peaks, as a share of the image's width and height, from which on a peak has moved."""


@dataclass(frozen=True)
class Change:
    """One image as it was and is."""

    example: Example
    label: int
    predicted_before: int
    predicted: int
    confidence_before: float
    confidence: float
    correlation: float  # Pearson's, of both maps; NaN where it is not known

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.example.to_dict(), **{name: value for name, value in vars(self).items() if name != "example"}}


@dataclass(frozen=True)
class Paired:
    """What became of the images that two runs share; "same" are those of the same uri and content."""

    n_shared: int = 0  # of the same uri
    n_changed: int = 0  # of them those whose content is another
    n_same: int = 0  # whose predictions were compared
    n_flipped: int = 0  # predicted as another class, near ties left out
    n_near_ties: int = 0
    n_labelled: int = 0
    n_worse: int = 0  # right before, wrong now
    n_better: int = 0
    n_maps: int = 0  # whose maps were compared
    n_moved: int = 0  # peaks that are a quarter of the image away, of images that are predicted alike
    correlations: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))  # of both maps
    regressions: tuple[Change, ...] = ()  # right before and wrong now, the surest first
    flips: tuple[Change, ...] = ()  # predicted as another class, the surest first
    moved: tuple[Change, ...] = ()  # predicted alike, the map that differs most first
    n_came: int = 0  # images that only the new run has a record or a failure of
    n_went: int = 0
    came: tuple[Example, ...] = ()
    went: tuple[Example, ...] = ()
    n_failed: int = 0  # that had a record before, and are a failure now
    n_recovered: int = 0
    failed: tuple[Example, ...] = ()
    recovered: tuple[Example, ...] = ()
    new_sums: Sums | None = None  # of the images whose maps were compared, as the new run has them
    old_sums: Sums | None = None

    def correlation(self, percent: float) -> float:
        """A percentile of both maps' correlation; NaN where there are none."""
        return float(np.percentile(self.correlations, percent)) if len(self.correlations) else float("nan")

    def examples(self) -> Examples:
        """Regressions before other flips before moved attention, and some more of those."""
        ranked = list(dict.fromkeys(change.example for change in (*self.regressions, *self.flips, *self.moved)))
        chosen = sorted(ranked[6:], key=lambda example: example.id)
        return Examples(tuple(ranked[:6]), tuple(chosen[:6]))

    def numbers(self) -> dict[str, float]:
        """All counts, and how the maps correlate."""
        counts = {name: value for name, value in vars(self).items() if name.startswith("n_")}
        return counts | {f"correlation_p{percent}": self.correlation(percent) for percent in (1, 5, 50)}

    def measurements(self) -> dict[str, Any]:
        """The numbers and the images, for findings.json."""
        lists = ("regressions", "flips", "moved", "came", "went", "failed", "recovered")
        return {**self.numbers(), **{name: [item.to_dict() for item in getattr(self, name)] for name in lists}}


def pair_runs(new: Run, old: Run, method: str, old_method: str | None = None, most_maps: int = MOST_MAPS) -> Paired:
    """Compares the images that two runs share.

    Args:
        new: a finished run.
        old: an earlier one.
        method: whose maps of the new run.
        old_method: whose of the old one; None for the same.
        most_maps: how many images' maps to compare. If one of the runs is of before files said what was predicted, no
            more images than that are compared at all.

    Raises:
        RunError: a file of either is missing or damaged.
    """
    indices = ImageIndex.of(new), ImageIndex.of(old)
    _, *places = np.intersect1d(indices[0].ids, indices[1].ids, return_indices=True)  # in the order of ids
    same = indices[0].contents[places[0]] == indices[1].contents[places[1]]
    at = [place[same] for place in places]
    methods = (method, old_method or method)
    new_seen, old_seen = (
        _Seen.of(index.read(p[:most_maps], m)) for index, p, m in zip(indices, at, methods, strict=True)
    )
    if all(index.tells_predictions for index in indices):
        now, before = (index.predictions.take(p) for index, p in zip(indices, at, strict=True))
    else:
        at = [p[:most_maps] for p in at]
        now, before = new_seen.predictions, old_seen.predictions
    return Paired(
        n_shared=len(places[0]),
        n_changed=int((~same).sum()),
        **_compare_images(now, before, new_seen, old_seen, indices[0], at[0]),
        new_sums=new_seen.sums,
        old_sums=old_seen.sums,
        **_count_strangers(new, old, *indices),
    )


@dataclass(frozen=True)
class _Seen:
    """What is remembered of N images of a run whose maps are compared, in the order of their ids."""

    predictions: Predictions
    peak: np.ndarray  # (N,) int32
    maps: np.ndarray  # (N, h * w) float16
    grid: tuple[int, int]
    sums: Sums | None

    @classmethod
    def of(cls, parts: Iterable[Observations]) -> _Seen:
        names = ("ids", "label", "predicted", "confidence", "margin", "peak")
        kinds = ("S32", np.int32, np.int32, np.float32, np.float32, np.int32)
        columns = [[np.zeros(0, kind)] for kind in kinds]
        maps, sums = list[np.ndarray](), list[Sums]()
        grid = (0, 0)
        for part in parts:
            for column, name in zip(columns, names, strict=True):
                column.append(getattr(part, name))
            maps.append(part.maps.reshape(len(part), -1).astype(np.float16))
            sums.append(Sums.of(part))
            grid = part.grid
        ids, *others, peak = (np.concatenate(column) for column in columns)
        order = np.argsort(ids, kind="stable")
        joined = np.concatenate(maps)[order] if maps else np.zeros((0, 0), np.float16)
        told = Predictions(*(column[order] for column in others))
        return cls(told, peak[order], joined, grid, Sums.merge(sums) if sums else None)


def _compare_images(
    now: Predictions, before: Predictions, new: _Seen, old: _Seen, index: ImageIndex, places: np.ndarray
) -> dict[str, Any]:
    """Of N images in the order of their ids; the first ones' maps are known as well."""
    flips = (now.predicted != before.predicted) & (now.predicted >= 0) & (before.predicted >= 0)
    ties = flips & (np.fmin(now.margin, before.margin) < NEAR_TIE)
    labelled = now.label >= 0
    right, was_right = now.predicted == now.label, before.predicted == now.label
    worse = labelled & was_right & ~right
    correlation = np.full(len(places), np.nan)
    correlation[: len(new.peak)] = _correlate(new, old)
    alike = ~flips & np.isfinite(correlation)
    far = _peak_distance(new, old) >= MOVED

    def first(which: np.ndarray, rank: np.ndarray) -> tuple[Change, ...]:
        chosen = np.flatnonzero(which)
        chosen = chosen[np.argsort(-rank[chosen], kind="stable")][:SHOWN]
        return tuple(
            Change(example, int(now.label[i]), int(before.predicted[i]), int(now.predicted[i]),
                   float(before.confidence[i]), float(now.confidence[i]), float(correlation[i]))
            for i, example in zip(chosen, index.name(places[chosen]), strict=True)
        )  # fmt: skip

    sure = np.nan_to_num(now.confidence)
    return {
        "n_same": len(places),
        "n_flipped": int((flips & ~ties).sum()),
        "n_near_ties": int(ties.sum()),
        "n_labelled": int(labelled.sum()),
        "n_worse": int(worse.sum()),
        "n_better": int((labelled & right & ~was_right).sum()),
        "n_maps": len(new.peak),
        "n_moved": int((far & ~flips[: len(far)]).sum()),
        "correlations": correlation[alike].astype(np.float32),
        "regressions": first(worse, sure),
        "flips": first(flips & ~ties, sure),
        "moved": first(alike & (correlation < 0.999), -correlation),
    }


def _correlate(new: _Seen, old: _Seen) -> np.ndarray:
    """(N,) Pearson's correlation of both maps; 0 where one is empty, NaN where both are, or one is constant."""
    if new.grid != old.grid or not len(new.peak):
        return np.full(len(new.peak), np.nan)
    first, second = new.maps.astype(np.float64), old.maps.astype(np.float64)
    empty, was_empty = ~first.any(1), ~second.any(1)
    first, second = (maps - maps.mean(1, keepdims=True) for maps in (first, second))
    scale = np.sqrt((first * first).sum(1) * (second * second).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (first * second).sum(1) / scale
    return np.where(empty & was_empty, np.nan, np.where(empty | was_empty, 0.0, correlation))


def _peak_distance(new: _Seen, old: _Seen) -> np.ndarray:
    """(N,) the larger of the shares of width and height that lie between both peaks; 0 where one is unknown."""
    (y, x), (y_before, x_before) = (_centres(seen) for seen in (new, old))
    distance = np.maximum(np.abs(y - y_before), np.abs(x - x_before))
    return np.where((new.peak >= 0) & (old.peak >= 0), distance, 0.0)


def _centres(seen: _Seen) -> tuple[np.ndarray, np.ndarray]:
    """Of the peaks: (N,) y and x in [0, 1]."""
    h, w = max(seen.grid[0], 1), max(seen.grid[1], 1)
    return (seen.peak // w + 0.5) / h, (seen.peak % w + 0.5) / w


def _count_strangers(new: Run, old: Run, index: ImageIndex, before: ImageIndex) -> dict[str, Any]:
    """Images that one run has alone, and those that failed in one of them."""
    failed, was_failed = (as_ids(failure.id for failure in run.failures()) for run in (new, old))
    new_alone, old_alone = ~np.isin(index.ids, before.ids), ~np.isin(before.ids, index.ids)
    recovered, failing = np.isin(index.ids, was_failed) & new_alone, np.isin(before.ids, failed) & old_alone
    groups = {"came": (index, new_alone & ~recovered), "went": (before, old_alone & ~failing),
              "failed": (before, failing), "recovered": (index, recovered)}  # fmt: skip
    found: dict[str, Any] = {}
    for name, (where, which) in groups.items():
        places = np.flatnonzero(which)
        first = places[np.argsort(where.ids[places], kind="stable")][:SHOWN]
        found |= {f"n_{name}": len(places), name: tuple(where.name(first))}
    # Those that failed in one run, and that the other has not seen at all.
    all_new, all_old = np.concatenate([index.ids, failed]), np.concatenate([before.ids, was_failed])
    found["n_came"] += int((~np.isin(failed, all_old)).sum())
    found["n_went"] += int((~np.isin(was_failed, all_new)).sum())
    return found
