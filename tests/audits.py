"""Made-up observations and their sums for tests of rules, comparisons and reports: classes that look as they are told.

make_sums(Looks(), Looks(cell=48, share=0.5))     # two classes, half of the second peaks in the last of 7 x 7 cells
make_sums(*[Looks()] * 20, seed=1, grid=(5, 5))
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.observations import Observations
from pipeline.sums import Sums

SCALARS = {
    "spread": 0.25, "eff_area": 0.35, "gini": 0.5, "coverage50": 0.15, "border_energy": 0.2, "corner_energy": 0.05,
    "largest_share50": 0.95, "components50": 1.0, "negative_share": 0.2, "top2_cc": 0.1,
    "energy_in_box": np.nan, "box_area": np.nan,
}  # fmt: skip
"""What every image of a class has, where its `Looks` does not say otherwise; NaN is unknown."""


@dataclass(frozen=True)
class Looks:
    """What the images of one label are like."""

    n: int = 100
    cell: int | None = None  # row-major; where `share` of the images peak
    share: float = 0.0
    accuracy: float = 0.9
    accuracy_inside: float | None = None  # of the images that peak in `cell`
    taken_for: int | None = None  # the class that wrong ones are predicted as; None: the next class
    confidence: float = 0.8  # of every prediction, give or take 0.05
    confidence_wrong: float | None = None  # of wrong ones
    empty: float = 0.0  # share of images whose map is empty
    center: tuple[float, float] = (0.5, 0.5)  # of the peaks: x, y
    scatter: float = 0.15  # standard deviation of the peaks
    energy: float | None = None  # share of energy that images of `share` have in `cell` without peaking there
    scalars: Mapping[str, float] = field(default_factory=dict)  # instead of SCALARS
    labelled: bool = True


def make_observations(
    *classes: Looks, grid: tuple[int, int] = (7, 7), seed: int = 0, method: str = "gradcam"
) -> Observations:
    """Images of classes 0, 1, 2, ..., in a mixed order; the same arguments give the same images."""
    rng = np.random.default_rng(seed)
    parts = [_observe_class(index, looks, len(classes), grid, rng) for index, looks in enumerate(classes)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = rng.permutation(len(joined["label"]))
    joined = {name: values[order] for name, values in joined.items()}
    uris = [f"/photos/{seed}/{number:06d}.jpg" for number in order]
    ids = np.array([hashlib.sha256(uri.encode()).hexdigest()[:32].encode() for uri in uris], "S32")
    named = {field.name: joined[field.name] for field in dataclasses.fields(Observations) if field.name in joined}
    scalars = {name: joined[f"scalar {name}"].astype(np.float32) for name in SCALARS}
    scalars |= {name: joined[name] for name in ("confidence", "margin")}
    return Observations(ids=ids, uris=uris, scalars=scalars, method=method, **named)


def make_sums(
    *classes: Looks, grid: tuple[int, int] = (7, 7), seed: int = 0, n_failed: int = 0, method: str = "gradcam"
) -> Sums:
    """The sums of `make_observations`, with failures beside them."""
    observations = make_observations(*classes, grid=grid, seed=seed, method=method)
    return Sums.of(observations, failures_by_type={"decode:BrokenImage": n_failed} if n_failed else {})


def _observe_class(
    index: int, looks: Looks, n_classes: int, grid: tuple[int, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    n, (h, w) = looks.n, grid
    marked = np.arange(n) < round(looks.share * n) if looks.cell is not None else np.zeros(n, bool)
    x, y = (np.clip(rng.normal(center, looks.scatter, n), 0, 0.999) for center in looks.center)
    rows, columns = (y * h).astype(int), (x * w).astype(int)
    if looks.cell is not None and looks.energy is None:
        rows, columns = np.where(marked, looks.cell // w, rows), np.where(marked, looks.cell % w, columns)
    maps = _draw_maps(rows, columns, grid, rng)
    if looks.cell is not None and looks.energy is not None:
        maps[marked] *= 1 - looks.energy
        maps[marked, looks.cell // w, looks.cell % w] += looks.energy
    inside = rows * w + columns == (-1 if looks.cell is None else looks.cell)
    right = _first(inside, looks.accuracy if looks.accuracy_inside is None else looks.accuracy_inside)
    right |= _first(~inside, looks.accuracy)
    other = (index + 1) % n_classes if looks.taken_for is None else looks.taken_for
    confidence = np.full(n, looks.confidence)
    if looks.confidence_wrong is not None:
        confidence[~right] = looks.confidence_wrong
    confidence = np.clip(confidence + rng.uniform(-0.05, 0.05, n), 0.01, 0.99)
    is_empty = rng.permutation(n) < round(looks.empty * n)
    maps[is_empty] = 0
    predicted = np.where(right, index, other)
    entropy = -(confidence * np.log(confidence) + (1 - confidence) * np.log(1 - confidence))
    mistakenness = (np.where(right, -1, 1) * np.exp(-entropy) + 1) / 2
    return {
        "label": np.full(n, index if looks.labelled else -1, np.int32),
        "predicted": predicted.astype(np.int32),
        "runner_up": np.where(right, other, index).astype(np.int32),
        "confidence": confidence.astype(np.float32),
        "margin": (2 * confidence - 1).clip(0).astype(np.float32),
        "mistakenness": np.where(looks.labelled, mistakenness, np.nan).astype(np.float32),
        "peak": np.where(is_empty, -1, maps.reshape(n, -1).argmax(1)).astype(np.int32),
        "maps": maps,
        **{f"scalar {name}": np.full(n, (dict(SCALARS) | dict(looks.scalars))[name]) for name in SCALARS},
    }


def _draw_maps(rows: np.ndarray, columns: np.ndarray, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A blob round each peak, with a little noise: (n, h, w) float32 of sum 1."""
    i, j = np.mgrid[: grid[0], : grid[1]]
    distance = (i - rows[:, None, None]) ** 2 + (j - columns[:, None, None]) ** 2
    maps = np.exp(-distance) + 0.05 * rng.uniform(size=distance.shape)
    return (maps / maps.sum((1, 2), keepdims=True)).astype(np.float32)


def _first(among: np.ndarray, share: float) -> np.ndarray:
    """The first so many of those that are marked."""
    return among & (np.cumsum(among) <= round(share * among.sum()))
