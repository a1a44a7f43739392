"""What travels through the pipeline and what readers get back: plain frozen records, with no engine behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.codec import EncodedMap, decode_map
from pipeline.geometry import Geometry, View, project_map

SCHEMA_VERSION = 1

METRICS = ("deletion", "insertion", "drop", "increase", "pointing", "energy")
"""What `--metrics` can measure: the first four need passes of their own, the last two the manifest's boxes."""

SURENESS = ("confidence", "runner_up", "runner_up_confidence", "entropy")
"""The columns of `prediction.Prediction` besides the class."""

__all__ = [
    "METRICS",
    "SCHEMA_VERSION",
    "SURENESS",
    "Entry",
    "Failure",
    "Geometry",
    "MapRecord",
    "Record",
    "Shard",
    "View",
    "image_id",
]


def image_id(uri: str) -> str:
    """The first 32 hex digits of the SHA-256 of a uri: the same image has the same id in every run."""
    return hashlib.sha256(uri.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """One line of the resolved input."""

    uri: str
    label: str | None = None  # as given: a class name or index
    boxes: tuple[tuple[float, float, float, float], ...] | None = None  # x, y, w, h in original pixels
    earlier_shard: int | None = None  # of the run named by --since that may have its record
    data: bytes | None = field(default=None, repr=False)  # the file's bytes, where they came with it: nothing is read

    @property
    def id(self) -> str:
        """See `image_id`."""
        return image_id(self.uri)


@dataclass(frozen=True)
class Failure:
    """One image that could not be explained."""

    id: str
    uri: str
    stage: str  # "read", "decode" or "explain"
    error_type: str
    message: str

    def to_row(self) -> dict[str, Any]:
        """The columns that are stored."""
        return dict(vars(self))


@dataclass(frozen=True)
class MapRecord:
    """The map of one method and one target of one image."""

    method: str
    target: int  # class index
    rank: int  # place of the target among the best classes, from 0; -1 beyond the fifth or the requested top
    score: float  # logit
    probability: float  # softmax or sigmoid of the logits
    encoded: EncodedMap
    box: (
        tuple[float, float, float, float] | None
    )  # x, y, w, h of the strongest region, original pixels; None: no region
    peak_x: float  # centre of the strongest cell, original pixels
    peak_y: float
    total: float  # sum of the positive part of the raw map
    negative_share: float  # the negative part's share of sum |map|, in [0, 1]; 0 for an empty map
    overlay: str | None  # path below the run
    geometry: Geometry  # the image's; not stored with the map
    # What --metrics asked for, by name: areas, shares and hits in [0, 1]; pointing and energy only where the image has
    # boxes.
    metrics: dict[str, float] = field(default_factory=dict)
    # Where its attention lies, see `attention.MapStatistics`. None where that says so, and in files of before it was
    # measured.
    com_x: float | None = None  # original pixels
    com_y: float | None = None
    peak_cell: int | None = None  # row * width + column
    spread: float | None = None
    eff_area: float | None = None  # this and all shares in [0, 1]
    gini: float | None = None
    coverage50: float | None = None
    border_energy: float | None = None
    border_ratio: float | None = None
    corner_energy: float | None = None
    corner: int | None = None  # 0 top left, 1 top right, 2 bottom left, 3 bottom right
    components50: int | None = None
    largest_share50: float | None = None
    # Correlation with the same method's map of the next best class, see `attention.correlate`; only for the best class.
    top2_cc: float | None = None

    def array(self) -> np.ndarray:
        """The raw, signed map: (h, w) float32, the activation's own size."""
        return decode_map(self.encoded)

    def resized(self) -> np.ndarray:
        """The raw map in original pixels: (height, width) float32, bilinear; 0 where the model saw nothing."""
        return project_map(self.array(), self.geometry)

    def to_row(self) -> dict[str, Any]:
        """See `Record.to_row`."""
        row = {name: value for name, value in vars(self).items() if name not in ("encoded", "geometry")}
        return row | {"metrics": dict(self.metrics)} | vars(self.encoded)

    def _repr_png_(self) -> bytes:
        """The map in a notebook."""
        from pipeline.notebook import map_png

        return map_png(self)


@dataclass(frozen=True)
class Record:
    """One explained image."""

    id: str
    uri: str
    content_sha256: str  # of the file's bytes
    label: str | None
    geometry: Geometry
    logits: np.ndarray  # float32, every class in order, or the best ones
    logit_classes: np.ndarray | None  # int32, the classes of `logits` where it holds the best ones only
    maps: tuple[MapRecord, ...]
    # How sure the model is, see `prediction.Prediction`; None in files of before it was stored.
    confidence: float | None = None  # the probability of the predicted class
    runner_up: int | None = None  # the class with the next logit; None for a model of one class
    runner_up_confidence: float | None = None
    entropy: float | None = None  # nats

    @property
    def predicted(self) -> int:
        """The class with the highest logit."""
        best = int(np.argmax(self.logits))
        return best if self.logit_classes is None else int(self.logit_classes[best])

    def to_row(self) -> dict[str, Any]:
        """The columns that a run stores: plain values, lists of dictionaries, and NumPy arrays for the logits.

        Arrow, pandas and all that is built on them take it as it is.
        """
        return {
            "id": self.id,
            "uri": self.uri,
            "content_sha256": self.content_sha256,
            "label": self.label,
            "width": self.geometry.width,
            "height": self.geometry.height,
            "logits": self.logits,
            "logit_classes": self.logit_classes,
            "maps": [values.to_row() for values in self.maps],
            "view": dict(vars(self.geometry.view)),
            "predicted": self.predicted if len(self.logits) else None,
            **{name: getattr(self, name) for name in SURENESS},
        }

    def _repr_html_(self) -> str:
        """The image with its maps in a notebook."""
        from pipeline.notebook import record_html

        return record_html(self)


@dataclass(frozen=True)
class Shard:
    """A part of the input: the unit of work, of commit and of resuming."""

    number: int
    entries: list[Entry]
    known: Mapping[str, Record] = field(default_factory=dict)  # by id; what stands for an image of the same content
    mending: bool = False  # whether `known` are the run's own records, which stay whatever the images are like by now
