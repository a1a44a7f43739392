"""Sums of observations by class that merge exactly, in any order: what every rule of an audit is computed from.

All are whole numbers. Adding them is exact, associative and commutative, so a run's sums are the same bytes however its
shards were spread over workers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.class_sums import (
    BINS,
    EDGES,
    EXCEEDS,
    MAX_BYTES,
    SAMPLE,
    UNIT,
    UNKNOWN,
    Addends,
    ClassSums,
    find_bins,
    from_arrays,
    merge_classes,
    narrow,
    no_classes,
    resample_classes,
    sum_classes,
    to_arrays,
    widen,
)
from pipeline.npz import read_arrays, write_arrays
from pipeline.observations import MAX_CLASS, SCALARS, Observations

__all__ = [
    "BINS",
    "EDGES",
    "EXCEEDS",
    "MAX_BYTES",
    "SAMPLE",
    "UNIT",
    "UNKNOWN",
    "ClassSums",
    "Sums",
    "find_bins",
    "join_ranges",
    "resample",
]

VERSION = 1
"""Of the files; one of another version is recomputed from the records."""

MERGED = 32  # sums that are added at a time, and so are in memory


@dataclass(frozen=True)
class Sums:
    """Sums over some images of a run, by one method."""

    method: str
    grid: tuple[int, int]  # (h, w) over the original image; (0, 0) as long as there is no map
    by_label: ClassSums
    by_predicted: ClassSums
    n_images: int = 0  # that have a record
    n_failed: int = 0
    n_empty: int = 0  # images with an empty map
    n_unlabelled: int = 0
    failures_by_type: dict[str, int] = dataclasses.field(default_factory=dict)  # "stage:error_type" -> n
    shards: tuple[tuple[int, int], ...] = ()  # covered, as sorted ranges: first, and one beyond the last
    pairs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """(K, 2) (label, predicted), sorted, of images that have both."""
    pair_counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))  # (K,)
    top2: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 3), np.int32))
    """(K, 3) (predicted, runner-up, bin of top2_cc or `UNKNOWN`), sorted."""
    top2_counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))  # (K,)
    parts_digest: int = 0  # sum of the SHA-256 of the files that were added up, modulo 2**256

    @classmethod
    def of(
        cls, observations: Observations, *, failures_by_type: Mapping[str, int] | None = None, shard: int | None = None
    ) -> Sums:
        """The sums of some observations.

        Args:
            observations: of images with a record.
            failures_by_type: of those without one, "stage:error_type" -> n.
            shard: that these images are all of.
        """
        failures = {name: int(count) for name, count in sorted((failures_by_type or {}).items()) if count}
        shards = () if shard is None else ((shard, shard + 1),)
        if not len(observations):
            sums = cls.empty(observations.method)
            return dataclasses.replace(sums, n_failed=sum(failures.values()), failures_by_type=failures, shards=shards)
        label, predicted, runner_up = observations.label, observations.predicted, observations.runner_up
        bins = {name: find_bins(name, observations.scalars[name]) for name in SCALARS}
        of_class = functools.partial(sum_classes, observations, Addends.of(observations, bins))
        both, two = (label >= 0) & (predicted >= 0), (predicted >= 0) & (runner_up >= 0)
        pairs, pair_counts = _tally(_pack(label[both], predicted[both]))
        top2, top2_counts = _tally(_pack(predicted[two], runner_up[two], bins["top2_cc"][two]))
        return cls(
            method=observations.method,
            grid=observations.grid,
            by_label=of_class(label),
            by_predicted=of_class(predicted),
            n_images=len(observations),
            n_failed=sum(failures.values()),
            n_empty=int((observations.peak < 0).sum()),
            n_unlabelled=int((label < 0).sum()),
            failures_by_type=failures,
            shards=shards,
            pairs=_unpack(pairs, 2),
            pair_counts=pair_counts,
            top2=_unpack(top2, 3),
            top2_counts=top2_counts,
        )

    @classmethod
    def empty(cls, method: str) -> Sums:
        """Of no image."""
        return cls(method, (0, 0), no_classes((0, 0)), no_classes((0, 0)))

    def __add__(self, other: Sums) -> Sums:
        return Sums.merge([self, other])

    @staticmethod
    def merge(parts: Iterable[Sums]) -> Sums:
        """Of all images of all parts, of which a few are in memory at a time.

        Raises:
            ValueError: there is no part, or they are of different methods or grids, or two are of the same shard.
        """
        waiting: list[Sums] = []
        for part in parts:
            waiting.append(part)
            if len(waiting) == MERGED:
                waiting = [_merge(waiting)]
        if not waiting:
            raise ValueError("sums of no part at all: begin with Sums.empty(method)")
        return waiting[0] if len(waiting) == 1 else _merge(waiting)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels between workers as a file does: in few bytes a number, and compressed."""
        return Sums.from_bytes, (self.to_bytes(),)

    def covers(self, n_shards: int) -> bool:
        """Whether these are the sums of all shards from 0 to n_shards - 1, and of no others."""
        return self.shards == (((0, n_shards),) if n_shards else ())

    def count_pairs(self) -> dict[tuple[int, int], int]:
        """(label, predicted) -> images."""
        return {(int(a), int(b)): int(n) for (a, b), n in zip(self.pairs, self.pair_counts, strict=True)}

    def count_top2(self) -> dict[tuple[int, int], np.ndarray]:
        """(predicted, runner-up) -> (33,) int64 images by bin of top2_cc; the last is of those where it is unknown."""
        found: dict[tuple[int, int], np.ndarray] = {}
        for (a, b, place), n in zip(self.top2.tolist(), self.top2_counts.tolist(), strict=True):
            found.setdefault((a, b), np.zeros(BINS + 1, np.int64))[place] += n
        return found

    def to_bytes(self) -> bytes:
        """As an .npz file: the same bytes for the same sums."""
        about = {
            "version": VERSION,
            "unit": UNIT,
            "scalars": SCALARS,
            "parts_digest": f"{self.parts_digest:064x}",
            **{name: getattr(self, name) for name in _ABOUT},
        }
        arrays = {"about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)}
        arrays |= {name: narrow(getattr(self, name)) for name in ("pairs", "pair_counts", "top2", "top2_counts")}
        for space in _SPACES:
            arrays |= {f"{space}.{name}": values for name, values in to_arrays(getattr(self, space)).items()}
        return write_arrays(arrays)

    @staticmethod
    def from_bytes(data: bytes) -> Sums:
        """The sums in a file, which may be from anybody.

        Raises:
            ValueError: it is no such file, of another version, too large, or its numbers contradict each other.
        """
        arrays = read_arrays(data, MAX_BYTES)
        try:
            about = json.loads(arrays["about"].tobytes())
            told = {name: about[name] for name in _ABOUT}
            if (about["version"], about["unit"], tuple(about["scalars"])) != (VERSION, UNIT, SCALARS):
                raise ValueError(f"it is of version {about['version']!r}, and this program writes {VERSION}")
            _check_tables(arrays)
            told |= {name: widen(arrays[name], dtype) for name, dtype in _TABLES.items()}
            told["grid"], told["shards"] = tuple(told["grid"]), tuple((int(a), int(b)) for a, b in told["shards"])
            _check_about(told)
            told["by_label"], told["by_predicted"] = (from_arrays(arrays, space, told["grid"]) for space in _SPACES)
            sums = Sums(**told, parts_digest=int(about["parts_digest"], 16))
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"it holds no sums: {type(error).__name__}: {error}") from error
        _check_totals(sums)
        return sums


_SPACES = ("by_label", "by_predicted")
_ABOUT = ("method", "grid", "n_images", "n_failed", "n_empty", "n_unlabelled", "failures_by_type", "shards")
_COLUMNS = {"pairs": 2, "top2": 3}
_TABLES = {"pairs": np.int32, "pair_counts": np.int64, "top2": np.int32, "top2_counts": np.int64}


def resample(sums: Sums, grid: tuple[int, int]) -> Sums:
    """The sums on a coarser grid over the same image.

    `mass` is divided by area, and off by one `UNIT` a cell at most. Peaks go to the cell that has their old cell's
    centre, which is exact where the old grid divides the new one's cells, and off by up to half an old cell elsewhere.
    `mass_squared` and `exceeding` cannot be known from sums: the first is that of cells that rise and fall together, an
    upper bound, and the second that of the strongest of the cells, a lower bound.

    Raises:
        ValueError: the grid is finer in some direction.
    """
    if sums.grid in (grid, (0, 0)):
        return sums
    if min(grid) < 1 or grid[0] > sums.grid[0] or grid[1] > sums.grid[1]:
        raise ValueError(f"sums on a grid of {sums.grid} cells cannot be told on one of {grid}: take a coarser one")
    by_label, by_predicted = (resample_classes(getattr(sums, space), grid) for space in _SPACES)
    return dataclasses.replace(sums, grid=grid, by_label=by_label, by_predicted=by_predicted)


def _merge(parts: Sequence[Sums]) -> Sums:
    methods, grids = {part.method for part in parts}, {part.grid for part in parts if part.grid != (0, 0)}
    if len(methods) > 1 or len(grids) > 1:
        raise ValueError(
            f"sums of different methods ({', '.join(sorted(methods))}) or grids ({sorted(grids)}) do not add up: "
            "read_sums takes one method, and resample brings sums to one grid"
        )
    grid = grids.pop() if grids else (0, 0)
    failures: Counter[str] = Counter()
    for part in parts:
        failures.update(part.failures_by_type)
    pairs, pair_counts = _tally(_pack(*_joined(parts, "pairs").T), _joined(parts, "pair_counts"))
    top2, top2_counts = _tally(_pack(*_joined(parts, "top2").T), _joined(parts, "top2_counts"))
    return Sums(
        method=methods.pop(),
        grid=grid,
        by_label=merge_classes([part.by_label for part in parts], grid),
        by_predicted=merge_classes([part.by_predicted for part in parts], grid),
        n_images=sum(part.n_images for part in parts),
        n_failed=sum(part.n_failed for part in parts),
        n_empty=sum(part.n_empty for part in parts),
        n_unlabelled=sum(part.n_unlabelled for part in parts),
        failures_by_type=dict(sorted(failures.items())),
        shards=join_ranges(place for part in parts for place in part.shards),
        pairs=_unpack(pairs, 2),
        pair_counts=pair_counts,
        top2=_unpack(top2, 3),
        top2_counts=top2_counts,
        parts_digest=sum(part.parts_digest for part in parts) % (1 << 256),
    )


def join_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ranges of shards in order, those that touch made one.

    Raises:
        ValueError: two have a shard in common.
    """
    joined: list[tuple[int, int]] = []
    for first, end in sorted(ranges):
        if joined and first < joined[-1][1]:
            raise ValueError(f"sums of shard {first} are to be added twice")
        if joined and first == joined[-1][1]:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((first, end))
    return tuple(joined)


_SHIFT = MAX_CLASS.bit_length()


def _pack(*columns: np.ndarray) -> np.ndarray:
    """One whole number for each row of two or three."""
    first, second, *third = (column.astype(np.int64) for column in columns)
    packed = first << _SHIFT | second
    return packed << 8 | third[0] if third else packed


def _unpack(packed: np.ndarray, n_columns: int) -> np.ndarray:
    third = [packed & 0xFF] if n_columns == 3 else []
    packed = packed >> 8 if third else packed
    return np.stack([packed >> _SHIFT, packed & (1 << _SHIFT) - 1, *third], axis=1).astype(np.int32)


def _tally(keys: np.ndarray, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Each key once, sorted, and the sum of its counts."""
    found, places = np.unique(keys, return_inverse=True)
    sums = np.zeros(len(found), np.int64)
    np.add.at(sums, places, np.int64(1) if counts is None else counts)
    return found, sums


def _joined(parts: Sequence[Sums], name: str) -> np.ndarray:
    return np.concatenate([getattr(part, name) for part in parts])


def _check_tables(arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses tables of other shapes, and those too large, before any number takes the bytes it has in memory."""
    for name, columns in _COLUMNS.items():
        shape, counts = arrays[name].shape, arrays[f"{name.removesuffix('s')}_counts"].shape
        if len(counts) != 1 or shape != (counts[0], columns):
            raise ValueError(f"its {name} have the shape {shape}, for {counts} counts")
    size = sum(arrays[name].size * np.dtype(dtype).itemsize for name, dtype in _TABLES.items())
    if size > MAX_BYTES:
        raise ValueError(f"its pairs and top2 take {size} bytes in memory, and may take {MAX_BYTES}")


def _check_about(told: Mapping[str, Any]) -> None:
    counts = [told[name] for name in ("n_images", "n_failed", "n_empty", "n_unlabelled")]
    counts += [*told["failures_by_type"].values(), *told["grid"], *(edge for pair in told["shards"] for edge in pair)]
    if any(type(count) is not int or not 0 <= count < 1 << 53 for count in counts) or len(told["grid"]) != 2:
        raise ValueError("it counts by what are no whole numbers of at least 0")
    if not isinstance(told["method"], str) or max(told["grid"]) > 1 << 10:
        raise ValueError(f"it is of the method {told['method']!r} on a grid of {told['grid']}")
    if join_ranges(told["shards"]) != told["shards"] or any(first >= end for first, end in told["shards"]):
        raise ValueError(f"its shards are {told['shards']!r}, and should be ranges in order")
    for name, columns in _COLUMNS.items():
        rows = told[name]
        if rows.max(initial=0) > MAX_CLASS:
            raise ValueError(f"its {name} are of class {rows.max()}, and {MAX_CLASS} is the largest")
        keys = _pack(*rows.T)
        if (np.diff(keys) <= 0).any() or (columns == 3 and rows[:, 2].max(initial=0) > UNKNOWN):
            raise ValueError(f"its {name} are not in order")


def _check_totals(sums: Sums) -> None:
    if sums.by_label.n.sum() != sums.n_images - sums.n_unlabelled or sums.by_predicted.n.sum() > sums.n_images:
        raise ValueError(f"its classes do not add up to its {sums.n_images} images")
    if sums.n_empty > sums.n_images or sum(sums.failures_by_type.values()) != sums.n_failed:
        raise ValueError(f"its failures do not add up to {sums.n_failed}, or it has more empty maps than images")
