"""Where the time goes: seconds of each stage, working and waiting apart, and the stage that holds up the others."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

LOADING = ("read", "decode", "preprocess")
RECORDING = ("codec", "metrics", "overlay", "encode", "sums", "write")
STAGES = (*LOADING, "model", *RECORDING)
"""The stages of an image's way, in order."""

HELD_UP = 0.1  # the model is what takes the time if it waits for no more than this share of it

T = TypeVar("T")


@dataclass(frozen=True)
class Stopwatch:
    """Seconds by stage, summed over threads.

    Attributes:
        working: what a stage took of a processor; for the model, the time that its program ran.
        waiting: what else passed in a stage: for storage, for a free processor, for other threads. For the model, the
            time in which no batch was running.
        model_waits: the model's waiting again, "images" for loaded images and "room" for those behind it.
    """

    working: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    waiting: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    model_waits: dict[str, float] = field(default_factory=lambda: collections.defaultdict(float))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def time(self, stage: str, function: Callable[..., T], *args: Any) -> T:
        """Calls a function of one thread, and books what it took of a processor, and what it waited."""
        start, used = time.perf_counter(), time.thread_time()
        try:
            return function(*args)
        finally:
            working, passed = time.thread_time() - used, time.perf_counter() - start
            self.add(stage, working, max(0.0, passed - working))

    def time_model(self, function: Callable[..., T], *args: Any) -> T:
        """Calls the model, which computes in threads or on a device of its own."""
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            self.add("model", time.perf_counter() - start, 0.0)

    def time_wait(self, reason: str, seconds: float) -> None:
        """Books that the model stood still, for "images" or for "room"."""
        with self.lock:
            self.model_waits[reason] += seconds
            self.waiting["model"] += seconds

    def add(self, stage: str, working: float, waiting: float) -> None:
        """Books seconds of a stage."""
        with self.lock:
            self.working[stage] += working
            self.waiting[stage] += waiting

    def to_dict(self) -> dict[str, dict[str, float]]:
        """What a marker says of it."""
        parts = {"seconds": self.working, "waiting": self.waiting, "model_waits": self.model_waits}
        return {name: {k: round(v, 4) for k, v in sorted(values.items())} for name, values in parts.items()}


def sum_timings(markers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What run.json says of all shards: seconds by stage, and the bottleneck."""
    sums = {name: collections.Counter[str]() for name in ("seconds", "waiting", "model_waits")}
    for marker in markers:
        for name, total in sums.items():
            total.update(marker.get(name, {}))  # older markers lack the last two
    working, waiting, model_waits = ({k: round(v, 3) for k, v in sorted(total.items())} for total in sums.values())
    return {
        "seconds_by_stage": working,
        "waiting_by_stage": waiting,
        "model_waits": model_waits,
        "bottleneck": find_bottleneck(working, model_waits, waiting),
    }


def find_bottleneck(
    working: Mapping[str, float], model_waits: Mapping[str, float], waiting: Mapping[str, float] | None = None
) -> str | None:
    """The stage that a run would gain most from: the model, unless it waits; then the longest on the side it waits for.

    Returns:
        None if no batch was run.
    """
    if not working.get("model"):
        return None
    images, room = model_waits.get("images", 0.0), model_waits.get("room", 0.0)
    if images + room <= HELD_UP * (working["model"] + images + room):
        return "model"
    side, waiting = LOADING if images >= room else RECORDING, waiting or {}
    return max(side, key=lambda stage: working.get(stage, 0.0) + waiting.get(stage, 0.0))


def describe_timings(summary: Mapping[str, Any]) -> Iterator[str]:
    """A small table of a run's seconds by stage, and what they mean."""
    working, waiting = summary["seconds_by_stage"], summary.get("waiting_by_stage", {})
    bottleneck = summary.get("bottleneck")
    yield f"{'stage':12}{'working':>10}{'waiting':>10}   seconds, summed over threads"
    for stage in (stage for stage in STAGES if stage in working):
        mark = "   <- bottleneck" if stage == bottleneck else ""
        yield f"{stage:12}{working[stage]:10.1f}{waiting.get(stage, 0.0):10.1f}{mark}"
    waits = summary.get("model_waits", {})
    total = working.get("model", 0.0) + sum(waits.values())
    if bottleneck and total:
        images, room = (100 * waits.get(reason, 0.0) / total for reason in ("images", "room"))
        yield (
            f"the model ran {100 * working['model'] / total:.0f} % of the time, and waited {images:.0f} % for images "
            f"to be loaded and {room:.0f} % for records to be made"
        )
