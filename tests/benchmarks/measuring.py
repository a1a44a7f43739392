"""What a benchmark measures: raw samples of both sides, taken in turns, and the ratio that follows from them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

KINDS = {
    "rate": "times the images/s of",
    "growth": "times that of",
    "cost": "times the seconds an image of",
    "seconds": "s",
    "megabytes": "MB",
}
"""What a figure says of its sides; of a rate more is better, of all others less."""


@dataclass(frozen=True)
class Samples:
    """What one side took, round by round."""

    name: str
    values: tuple[float, ...]  # seconds or megabytes, as measured
    images: int = 1  # that each value was for


@dataclass(frozen=True)
class Figure:
    """One line of the report: ours against a base, or alone."""

    part: str
    what: str
    kind: str  # of KINDS
    ours: Samples
    base: Samples | None = None
    model: str = ""
    target: float | None = None  # what is aimed at
    stated: float | None = None  # what is claimed elsewhere, such as in the registry of methods
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def rounds(self) -> list[float]:
        """The figure in each round; where the sides were not measured equally often, against the base's median."""
        if self.base is None:
            return list(self.ours.values)
        paired = len(self.base.values) == len(self.ours.values)
        bases = self.base.values if paired else [statistics.median(self.base.values)] * len(self.ours.values)
        growth = [(o / self.ours.images) / (b / self.base.images) for o, b in zip(self.ours.values, bases, strict=True)]
        return [1 / value for value in growth] if self.kind == "rate" else growth

    @property
    def value(self) -> float:
        """The median over rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the rounds."""
        rounds = self.rounds
        if len(rounds) < 2:
            return rounds[0], rounds[0]
        low, _, high = statistics.quantiles(rounds, n=4, method="inclusive")
        return low, high

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.kind == "rate" else self.value <= self.target

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        own = {"value": self.value, "quartiles": self.quartiles, "rounds": self.rounds, "reached": self.reached}
        return asdict(self) | own


@dataclass(frozen=True)
class LeftOut:
    """Something that could not be measured here."""

    part: str
    why: str


Result = Figure | LeftOut


def interleave(
    rounds: int, functions: Mapping[str, Callable[[], object]], before: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Seconds of each function, called in turns: a machine that slows down slows all of them.

    Args:
        rounds: how many count; one more goes ahead.
        functions: what to call; each round begins with another of them.
        before: called ahead of each call, and not timed.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before()
            start = time.perf_counter()
            functions[name]()
            if number:
                samples[name].append(time.perf_counter() - start)
    return {name: tuple(values) for name, values in samples.items()}


def peak_megabytes() -> float:
    """The most memory that this process has held.

    From /proc where there is one: `ru_maxrss` of a process that a large one has started begins at that one's size.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if platform.system() == "Darwin" else peak / 1024


def describe_device() -> dict[str, Any]:
    """Where figures come from: processor, cores, devices that TensorFlow sees, versions."""
    import tensorflow as tf

    from pipeline.worker import versions

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "devices": [device.name for device in tf.config.list_physical_devices()],
        "versions": versions(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def last_json(text: str) -> Any:
    """What a process printed last, behind whatever its libraries had to say."""
    return json.loads(text.strip().splitlines()[-1])
