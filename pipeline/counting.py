"""What a job counts while it runs: the names that dashboards and alerts rely on, and numbers that threads add to."""

from __future__ import annotations

import collections
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.timing import STAGES

NAMESPACE = "beamcam"
"""Of all metrics that a runner is told."""

COUNTERS = {
    "images_in": "images of the shards that were committed",
    "records": "of them, those that were explained",
    "carried": "of the records, those taken over from an earlier run",
    "failures": "images that were not explained",
    "failures/<kind>": "those of one kind, such as failures/decode:NotAnImage; failures/other from the 21st kind on",
    "overlays": "PNG files written",
    "batches": "times that the model was called",
    "model_loads": "times that a process loaded the model: one for each process that works",
    "bytes_read": "of images, and of overlays that were looked at again",
    "bytes_written": "of records, failures, sums and overlays",
    "shards_committed": "shards written, with their markers",
    "shards_skipped": "shards that another attempt, or another job, had committed before",
    "shards_broken": "shards that were given up, though no image was to blame",
    "store_retries": "requests to stores that were made again",
    "store_hedges": "requests that were begun a second time beside a slow one",
    "store_timeouts": "requests that were given up as hanging",
}
"""Counters by name, and what they count."""

DISTRIBUTIONS = {
    "batch_size": "images in a call of the model",
    "image_bytes": "size of a file that was read",
    "shard_ms": "milliseconds from the first image of a shard to its marker",
    **{
        f"stage_ms/{stage}": f"milliseconds that a shard spent in {stage}, summed over threads, with waiting"
        for stage in STAGES
        if stage != "model"
    },
    "stage_ms/model": "milliseconds in which a shard's batches ran",
    "model_wait_ms/images": "milliseconds in which the model stood still for want of images",
    "model_wait_ms/room": "milliseconds in which it stood still, since records behind it were not done",
}
"""Distributions by name, and of what; one value a shard, but for batches and images."""

KINDS = 20  # of failures that are counted by name: engines and services are not made for any number of metrics

OTHER = "other"  # kinds beyond them

_STRANGE = re.compile(r"[^A-Za-z0-9_.:-]+")


@dataclass(frozen=True)
class Taken:
    """What was added to a tally since the last time."""

    counts: Mapping[str, int]
    values: Mapping[str, list[int]]


class Tally:
    """Counters and distributions that any thread adds to, and that one takes what is new of.

    Beam's own metrics take notice only of the thread that a bundle is processed in.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: collections.Counter[str] = collections.Counter()
        self._values: dict[str, list[int]] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counts[name] += amount

    def note(self, name: str, value: float) -> None:
        """Adds a value to a distribution, which are of whole numbers."""
        with self._lock:
            self._values.setdefault(name, []).append(round(value))

    def count(self, name: str) -> int:
        """What a counter says by now."""
        return self._counts[name]

    def take(self) -> Taken:
        """What is new; it begins at nothing again."""
        with self._lock:
            taken = Taken(+self._counts, self._values)
            self._counts, self._values = collections.Counter(), {}
        return taken

    def absorb(self, other: Tally) -> None:
        """Takes over what is new in another one."""
        taken = other.take()
        with self._lock:
            self._counts.update(taken.counts)
            for name, values in taken.values.items():
                self._values.setdefault(name, []).extend(values)


class Kinds:
    """Names for counters of failures, of which a job has a bounded number whatever goes wrong."""

    def __init__(self, limit: int = KINDS) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def name(self, kind: str) -> str:
        """The counter of a kind such as "decode:BrokenImage"."""
        kind = _STRANGE.sub("-", kind)[:80]
        if kind not in self._known and len(self._known) < self._limit:
            self._known.add(kind)
        return f"failures/{kind if kind in self._known else OTHER}"


kinds = Kinds()
"""Of this process."""


def tally_shard(tally: Tally, marker: Mapping[str, Any], seconds: float) -> None:
    """Adds what a marker says of its shard, which is committed by now; bytes and batches are there already.

    Args:
        tally: the shard's.
        marker: the shard's.
        seconds: from its first image to its marker.
    """
    tally.add("shards_committed")
    tally.note("shard_ms", 1000 * seconds)
    tally_images(tally, marker)


def tally_images(tally: Tally, marker: Mapping[str, Any]) -> None:
    """Adds what became of images, and where the time went, whether they are committed or not; see `tally_shard`."""
    tally.add("images_in", marker["inputs"])
    for name in ("records", "carried", "failures", "overlays"):
        tally.add(name, marker[name])
    for kind, count in marker["failures_by_type"].items():
        tally.add(kinds.name(kind), count)
    for trouble, count in marker["store_troubles"].items():
        tally.add(f"store_{trouble}", count)
    for stage, working in marker["seconds"].items():
        waiting = 0 if stage == "model" else marker["waiting"].get(stage, 0)
        tally.note(f"stage_ms/{stage}", 1000 * (working + waiting))
    for reason, waiting in marker["model_waits"].items():
        tally.note(f"model_wait_ms/{reason}", 1000 * waiting)


def count_workers(markers: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many processes have committed the shards of these markers, and how often they loaded the model."""
    loads: dict[str, int] = {}
    for worker, count in _told_workers(markers):
        loads[worker] = max(count, loads.get(worker, 0))
    return {"workers": len(loads), "model_loads": sum(loads.values())}


def _told_workers(markers: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    for marker in markers:
        if "worker" in marker:  # older ones do not say it
            yield str(marker["worker"]), int(marker.get("model_loads", 0))
