"""Where the images of a run are and what was predicted for them: few bytes each, so that millions can be looked up."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline import parquet
from pipeline.audit.findings import Example
from pipeline.errors import RunError
from pipeline.idset import as_ids
from pipeline.layout import RunLayout
from pipeline.observations import ClassFinder, Observations, read_observations
from pipeline.reading import Run

_COLUMNS = ("id", "content_sha256", "label", "predicted", "confidence", "runner_up_confidence")


@dataclass(frozen=True)
class Predictions:
    """What was predicted for N images."""

    label: np.ndarray  # (N,) int32, -1 where there is none
    predicted: np.ndarray  # (N,) int32, -1 unknown
    confidence: np.ndarray  # (N,) float32, NaN unknown
    margin: np.ndarray  # (N,) float32, NaN unknown

    def take(self, places: np.ndarray) -> Predictions:
        """Those of some images."""
        return Predictions(*(values[places] for values in vars(self).values()))


@dataclass(frozen=True)
class ImageIndex:
    """The N images of a run."""

    run: Run
    ids: np.ndarray  # (N,) S16
    contents: np.ndarray  # (N,) S16, the first half of each content's hash
    shards: np.ndarray  # (N,) int32
    predictions: Predictions

    @classmethod
    def of(cls, run: Run) -> ImageIndex:
        """Of a finished run.

        Raises:
            RunError: a file is missing or damaged.
        """
        find_class = ClassFinder(run.class_names)
        with ThreadPoolExecutor(16) as pool:  # an object store takes as long for one as for many
            parts = list(pool.map(functools.partial(_read_shard, run, find_class), range(run.summary["shards"])))
        empty = tuple(
            np.zeros(0, kind) for kind in ("S16", "S16", np.int32, np.int32, np.int32, np.float32, np.float32)
        )
        ids, contents, shards, *told = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
        return cls(run, ids, contents, shards, Predictions(*told))

    @property
    def tells_predictions(self) -> bool:
        """Whether its files say what was predicted; older ones hold logits alone."""
        return bool((self.predictions.predicted >= 0).all())

    def read(self, places: np.ndarray, method: str) -> Iterator[Observations]:
        """The images at these places, a shard at a time."""
        for shard in np.unique(self.shards[places]):
            ids = {_as_hex(value) for value in self.ids[places][self.shards[places] == shard]}
            yield from read_observations(self.run, method, ids=ids, shards=[int(shard)])

    def name(self, places: np.ndarray) -> list[Example]:
        """The ids and uris of a few images, in their order."""
        layout, uris = RunLayout(self.run.path), dict[str, str]()
        for shard in np.unique(self.shards[places]):
            ids = [_as_hex(self.ids[place]) for place in places if self.shards[place] == shard]
            uris |= parquet.read_uris(layout.uri(layout.records(int(shard))), ids)
        return [Example(name, uris[name]) for name in (_as_hex(self.ids[place]) for place in places)]


def _read_shard(run: Run, find_class: ClassFinder, shard: int) -> tuple[np.ndarray, ...]:
    layout = RunLayout(run.path)
    uri = layout.uri(layout.records(shard))
    try:
        columns = parquet.read_columns(uri, _COLUMNS)
        ids, unknown = columns["id"], [None] * len(columns["id"])
        predicted, first, second = (columns.get(name, unknown) for name in _COLUMNS[3:])
        confidence, runner_up = (np.array(values, np.float32) for values in (first, second))  # None becomes NaN
        return (
            _halves(ids),
            _halves(columns["content_sha256"]),
            np.full(len(ids), shard, np.int32),
            np.array([find_class(label) for label in columns["label"]], np.int32),
            np.array([-1 if value is None else value for value in predicted], np.int32),
            confidence,
            confidence - runner_up,
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunError(f"{uri} cannot be read: {type(error).__name__}: {error}") from error


def _halves(digests: list[str]) -> np.ndarray:
    """The first 32 of each text's hexadecimal digits: (n,) S16."""
    found = as_ids(digest[:32] for digest in digests)
    if len(found) != len(digests):
        raise ValueError("an id or hash does not have 32 hexadecimal digits")
    return found


def _as_hex(value: bytes) -> str:
    return value.ljust(16, b"\0").hex()  # NumPy drops zeros at the end
