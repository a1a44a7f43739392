"""Sums over the images of each class, and what is done to them: adding up, resampling, storing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.observations import MAX_CLASS, SCALARS, Observations

UNIT = 1 << 24
"""What 1.0 is as a whole number: float32's own precision. int64 then holds the sums of 5e11 images."""

BINS = 32

UNKNOWN = BINS
"""What stands for the bin of a value that is not known."""

_RANGES = {"spread": (0.0, 0.75), "components50": (0.0, 32.0), "top2_cc": (-1.0, 1.0)}  # of others: 0 to 1

EDGES: dict[str, np.ndarray] = {name: np.linspace(*_RANGES.get(name, (0.0, 1.0)), BINS + 1) for name in SCALARS}
"""Scalar -> (33,) edges of its bins; what lies beyond them counts in the first or the last."""

EXCEEDS = 0.15
"""The share of a map's mass from which on a cell is counted in `exceeding`."""

SAMPLE = 64
"""Images of a class whose ids are kept."""

MAX_BYTES = 1 << 30  # of a file, and of its sums in memory

_COUNTS = ("n", "n_empty", "n_labelled", "n_correct", "confidence", "self_confidence")
_GRIDS = ("mass", "mass_squared", "peaks", "peaks_correct", "exceeding")


@dataclass(frozen=True)
class ClassSums:
    """Sums over the images of each class, for the C classes that were seen."""

    classes: np.ndarray  # (C,) int32, sorted
    n: np.ndarray  # (C,) int64 images
    n_empty: np.ndarray  # (C,) int64 of them with an empty map
    n_labelled: np.ndarray  # (C,) int64 of them with a label and a prediction
    n_correct: np.ndarray  # (C,) int64 of those where both agree
    mass: np.ndarray  # (C, h, w) int64 sum of P, in `UNIT`
    mass_squared: np.ndarray  # (C, h, w) int64 sum of P squared, in `UNIT`
    peaks: np.ndarray  # (C, h, w) int64 images whose strongest cell this is
    peaks_correct: np.ndarray  # (C, h, w) int64 of them those that were predicted right
    exceeding: np.ndarray  # (C, h, w) int64 images with at least `EXCEEDS` of their mass in the cell
    histograms: dict[str, np.ndarray]  # scalar -> (C, 32) int64, bins between `EDGES[scalar]`
    confidence: np.ndarray  # (C,) int64 sum of the predicted class's probability, in `UNIT`
    self_confidence: np.ndarray  # (C,) int64 the same of the images that were predicted right
    sample_ids: np.ndarray  # (C, 64) S32 the smallest ids, which are hashes; b"" where there are fewer images

    def row(self, class_index: int) -> int | None:
        """Where a class stands; None if it was not seen."""
        place = int(np.searchsorted(self.classes, class_index))
        return place if place < len(self.classes) and self.classes[place] == class_index else None

    def mean_map(self, class_index: int) -> np.ndarray:
        """(h, w) float64 mean of P over the class's maps that are not empty; zeros if there are none."""
        row = self.row(class_index)
        return np.zeros(self.mass.shape[1:]) if row is None else self.mean_maps()[row]

    def mean_maps(self) -> np.ndarray:
        """(C, h, w) float64 of all classes; see `mean_map`."""
        n = np.maximum(self.n - self.n_empty, 1)
        return self.mass / (UNIT * n[:, None, None].astype(np.float64))

    def dense(self, n_classes: int) -> ClassSums:
        """With a row for each class from 0 to n_classes - 1, zeros where it was not seen.

        Raises:
            ValueError: a class was seen that is not among them.
        """
        if len(self.classes) and self.classes[-1] >= n_classes:
            raise ValueError(f"class {self.classes[-1]} was seen, and there are to be {n_classes} classes")
        return merge_classes([self], self.mass.shape[1:], np.arange(n_classes, dtype=np.int32))


def find_bins(scalar: str, values: np.ndarray) -> np.ndarray:
    """The bin of each value, 0 to 31, or `UNKNOWN` for NaN; (N,) int64."""
    low, high = EDGES[scalar][0], EDGES[scalar][-1]
    known = ~np.isnan(values)
    places = np.floor((np.where(known, values, 0).astype(np.float64) - low) * (BINS / (high - low)))
    return np.where(known, np.clip(places, 0, BINS - 1), UNKNOWN).astype(np.int64)


@dataclass(frozen=True)
class Addends:
    """What observations add to a class, an image a row."""

    correct: np.ndarray  # (N,) int64, 1 for a label and a prediction that agree
    counts: np.ndarray  # (N, 6) int64, in the order of _COUNTS
    mass: np.ndarray  # (N, h * w) int64
    squared: np.ndarray
    exceeding: np.ndarray
    bins: np.ndarray  # (N, scalars) int64

    @staticmethod
    def of(observations: Observations, bins: Mapping[str, np.ndarray]) -> Addends:
        """Of all images; the bins are those of `find_bins` by scalar."""
        both = (observations.label >= 0) & (observations.predicted >= 0)
        correct = (both & (observations.label == observations.predicted)).astype(np.int64)
        confidence = _fixed(np.clip(np.nan_to_num(observations.confidence), 0, 1))
        maps = observations.maps.reshape(len(observations), -1).astype(np.float64)
        counts = [np.ones_like(correct), observations.peak < 0, both, correct, confidence, confidence * correct]
        return Addends(
            correct,
            np.stack([values.astype(np.int64) for values in counts], axis=1),
            _fixed(maps),
            _fixed(maps**2),
            (maps >= EXCEEDS).astype(np.int64),
            np.stack([bins[name] for name in SCALARS], axis=1),
        )


def sum_classes(observations: Observations, parts: Addends, keys: np.ndarray) -> ClassSums:
    """The sums by some key of each image, a class or -1."""
    order = np.argsort(keys, kind="stable")
    order = order[np.searchsorted(keys[order], 0) :]
    if not len(order):
        return no_classes(observations.grid)
    classes, starts, rows = np.unique(keys[order], return_index=True, return_inverse=True)
    n, cells, shape = len(classes), int(np.prod(observations.grid)), (len(classes), *observations.grid)
    counts, mass, squared, exceeding = (
        np.add.reduceat(values[order], starts, axis=0)
        for values in (parts.counts, parts.mass, parts.squared, parts.exceeding)
    )
    peak, correct = observations.peak[order], parts.correct[order]
    there = peak >= 0
    places = rows[there] * cells + peak[there]
    peaks, right = (np.bincount(some, minlength=n * cells) for some in (places, places[correct[there] > 0]))
    grids = dict(zip(_GRIDS, (mass, squared, peaks, right, exceeding), strict=True))
    places = (rows[:, None] * len(SCALARS) + np.arange(len(SCALARS))) * (BINS + 1) + parts.bins[order]
    histograms = np.bincount(places.ravel(), minlength=n * len(SCALARS) * (BINS + 1))
    histograms = histograms.reshape(n, len(SCALARS), BINS + 1)[..., :BINS]
    return ClassSums(
        classes.astype(np.int32),
        **{name: counts[:, i] for i, name in enumerate(_COUNTS)},
        **{name: values.reshape(shape) for name, values in grids.items()},
        histograms={name: histograms[:, i] for i, name in enumerate(SCALARS)},
        sample_ids=_smallest(rows, observations.ids[order], n),
    )


def no_classes(grid: tuple[int, ...]) -> ClassSums:
    """Sums of no class."""
    return merge_classes([], grid, np.zeros(0, np.int32))


def merge_classes(parts: Sequence[ClassSums], grid: tuple[int, ...], classes: np.ndarray | None = None) -> ClassSums:
    """Added up, with a row for each class of any part, or for the classes that are named."""
    if classes is None:
        classes = np.unique(np.concatenate([part.classes for part in parts] or [np.zeros(0, np.int32)]))
    n = len(classes)
    sums: dict[str, Any] = {name: np.zeros(n, np.int64) for name in _COUNTS}
    sums |= {name: np.zeros((n, *grid), np.int64) for name in _GRIDS}
    histograms = {name: np.zeros((n, BINS), np.int64) for name in SCALARS}
    rows = [np.searchsorted(classes, part.classes) for part in parts]
    for part, places in zip(parts, rows, strict=True):
        for name, values in sums.items():
            if values.shape[1:] == getattr(part, name).shape[1:]:  # else none of the part's images has a map
                values[places] += getattr(part, name)
        for name, values in histograms.items():
            values[places] += part.histograms[name]
    owners = [np.repeat(places, SAMPLE) for places in rows] or [np.zeros(0, np.int64)]
    ids = [part.sample_ids.ravel() for part in parts] or [np.zeros(0, "S32")]
    sample = _smallest(np.concatenate(owners), np.concatenate(ids), n)
    return ClassSums(classes, **sums, histograms=histograms, sample_ids=sample)


def _smallest(rows: np.ndarray, ids: np.ndarray, n_rows: int) -> np.ndarray:
    """The smallest `SAMPLE` of the ids of each row, without repetitions and b"": (n_rows, SAMPLE) S32."""
    ids = np.ascontiguousarray(ids, "S32")
    words = ids.view(">u8").reshape(-1, 4).astype(np.uint64)  # in the order of the texts, and sorted ten times as fast
    there = words[:, 0] > 0
    rows, ids, words = rows[there], ids[there], words[there]
    order = np.lexsort((*words.T[::-1], rows))
    rows, ids = rows[order], ids[order]
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]) | (ids[1:] != ids[:-1])
    rows, ids = rows[new], ids[new]
    places = np.arange(len(rows)) - np.searchsorted(rows, rows)
    few = places < SAMPLE
    found = np.zeros((n_rows, SAMPLE), "S32")
    found[rows[few], places[few]] = ids[few]
    return found


def resample_classes(sums: ClassSums, grid: tuple[int, int]) -> ClassSums:
    """See `sums.resample`."""
    old = sums.mass.shape[1:]
    rows, columns = (_overlap(old[i], grid[i]) for i in (0, 1))
    mass = rows @ sums.mass @ columns.T
    squared = (rows @ np.sqrt(sums.mass_squared) @ columns.T) ** 2
    ups, acrosses = (((2 * np.arange(old[i]) + 1) * grid[i]) // (2 * old[i]) for i in (0, 1))
    grids = {"mass": np.rint(mass).astype(np.int64), "mass_squared": np.rint(squared).astype(np.int64)}
    places = (slice(None), ups[:, None], acrosses[None, :])
    for name in ("peaks", "peaks_correct", "exceeding"):
        grids[name] = np.zeros((len(sums.classes), *grid), np.int64)
        add: Any = np.maximum if name == "exceeding" else np.add
        add.at(grids[name], places, getattr(sums, name))
    return dataclasses.replace(sums, **grids)


def _overlap(old: int, new: int) -> np.ndarray:
    """How much of each old cell of a side lies in each new one: (new, old) float64."""
    low, high = np.arange(old) / old, np.arange(1, old + 1) / old
    first, last = np.arange(new)[:, None] / new, np.arange(1, new + 1)[:, None] / new
    return np.clip(np.minimum(high, last) - np.maximum(low, first), 0, None) * old


def _fixed(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * UNIT).astype(np.int64)


def to_arrays(sums: ClassSums) -> dict[str, np.ndarray]:
    """What is stored of them, by name."""
    arrays = {name: narrow(getattr(sums, name)) for name in ("classes", *_COUNTS, *_GRIDS)}
    arrays["histograms"] = narrow(np.stack([sums.histograms[name] for name in SCALARS], axis=1))
    arrays["sample_counts"] = narrow((sums.sample_ids != b"").sum(axis=1))
    arrays["sample_ids"] = sums.sample_ids[sums.sample_ids != b""]
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray], space: str, grid: tuple[int, int]) -> ClassSums:
    """The sums of a file from anybody; `space` is what comes before its arrays' names.

    Raises:
        ValueError: arrays are of other shapes, too large, or their numbers contradict each other.
    """
    get = {name: arrays[f"{space}.{name}"] for name in ("classes", *_COUNTS, *_GRIDS, "histograms")}
    n = len(get["classes"])
    shapes = {"classes": (n,), "histograms": (n, len(SCALARS), BINS)}
    shapes |= dict.fromkeys(_COUNTS, (n,)) | dict.fromkeys(_GRIDS, (n, *grid))
    for name, values in get.items():
        if values.shape != shapes[name]:
            raise ValueError(f"{space}.{name} has the shape {values.shape}, and should have {shapes[name]}")
    # Small numbers are stored in a byte and take eight in memory.
    if sum(8 * values.size for values in get.values()) + n * SAMPLE * 32 > MAX_BYTES:
        raise ValueError(f"{space} has {n} classes on a grid of {grid}: more than {MAX_BYTES} bytes")
    numbers = {name: widen(values, np.int64) for name, values in get.items() if name != "classes"}
    histograms = numbers.pop("histograms")
    sums = ClassSums(
        widen(get["classes"], np.int32),
        **numbers,
        histograms={name: histograms[:, i] for i, name in enumerate(SCALARS)},
        sample_ids=_read_samples(arrays[f"{space}.sample_ids"], arrays[f"{space}.sample_counts"], n),
    )
    _check_classes(space, sums)
    return sums


def _read_samples(ids: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
    if ids.dtype != np.dtype("S32") or counts.shape != (n,) or ids.ndim != 1:
        raise ValueError(f"the ids of a sample are {ids.dtype} of shape {ids.shape} for {n} classes")
    counts = widen(counts, np.int64)
    if (counts > SAMPLE).any() or (ids == b"").any():
        raise ValueError(f"a class has a sample of more than {SAMPLE} images, or one without an id")
    if len(ids) != counts.sum():
        raise ValueError(f"the ids of a sample are {len(ids)}, and should be {counts.sum()}")
    found = _smallest(np.repeat(np.arange(n), counts), ids, n)
    if not np.array_equal(found[found != b""], ids):
        raise ValueError("the ids of a sample are not in order")
    return found


def narrow(values: np.ndarray) -> np.ndarray:
    """In as few bytes a number as the largest needs."""
    return values.astype(np.min_scalar_type(int(values.max(initial=0))))


def widen(values: np.ndarray, dtype: Any) -> np.ndarray:
    """In the bytes a number that they have in memory.

    Raises:
        ValueError: they are no whole numbers of at least 0, or too large.
    """
    if values.dtype.kind != "u" or values.max(initial=0) > np.iinfo(dtype).max:
        raise ValueError(f"numbers of at least 0 are stored as {values.dtype}, or are too large")
    return values.astype(dtype)


def _check_classes(space: str, sums: ClassSums) -> None:
    """Refuses numbers that contradict each other, and would be nonsense in an audit."""
    there = sums.n - sums.n_empty
    in_order = (np.diff(sums.classes) > 0).all() and sums.classes.max(initial=0) <= MAX_CLASS
    add_up = (
        (sums.n > 0).all()
        and (there >= 0).all()
        and (sums.n_correct <= sums.n_labelled).all()
        and (sums.n_labelled <= sums.n).all()
        and (sums.peaks.sum(axis=(1, 2)) == there).all()
        and (sums.peaks_correct <= sums.peaks).all()
        and (sums.exceeding <= there[:, None, None]).all()
        and (sums.mass_squared <= sums.mass).all()
        and all((counts.sum(axis=1) <= sums.n).all() for counts in sums.histograms.values())
    )
    # Each of a map's cells is rounded.
    cells = int(np.prod(sums.mass.shape[1:]))
    rounding = np.abs(sums.mass.sum(axis=(1, 2)) - there * UNIT) <= there * (cells + 1)
    if not (in_order and add_up and rounding.all()):
        raise ValueError(f"numbers of {space} contradict each other")
