"""Suspected shortcuts: classes whose maps are strong in one place far more often than others, BC101 and BC110."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audit.advice import found_by
from pipeline.audit.classes import NO_MAPS, Names, by_class, known_classes, scope_of
from pipeline.audit.findings import Finding, RuleResult
from pipeline.audit.inference import wilson
from pipeline.audit.regions import Regions, make_regions
from pipeline.audit.settings import Settings
from pipeline.sums import ClassSums, Sums

PSEUDO_IMAGES = 4
"""Images, spread evenly, that every class is given beside its own, so that no rate is 0."""

FEW_CLASSES = 20
"""Below so many a high quantile over classes is the suspect itself."""

LEAST_TOLD = 8
"""Images that an accuracy in a message is made of."""


@dataclass(frozen=True)
class Lift:
    """How much more often than elsewhere the maps of each of C classes are strong in its most suspicious region."""

    largest: np.ndarray  # (C,) lower bound, times: of the region where it is largest
    lift: np.ndarray  # (C,) of the region that is told
    region: np.ndarray  # (C,) index
    count: np.ndarray  # (C,) maps that are strong there
    n: np.ndarray  # (C,) maps
    reference: np.ndarray  # (C,) the share that it is compared with


def measure_lift(counts: np.ndarray, n: np.ndarray, regions: Regions, limits: Mapping[str, float]) -> Lift:
    """The most suspicious region of each class: of those with half of the largest lift, the one that holds most maps.

    Args:
        counts: (C, h, w) maps of each class that are strong in a cell.
        n: (C,) its maps.
        regions: where to look.
        limits: the rule's: a lift above 1 needs `least_images` maps and `least_share` of the class's; a region that
            reaches `lift` is not given up for one that does not.
    """
    inside, n, areas = regions.count(counts).astype(float), n.astype(float)[:, None], regions.areas
    pseudo = PSEUDO_IMAGES * areas
    rates = (inside + pseudo) / (n + PSEUDO_IMAGES)
    usual = np.quantile(rates, 0.5 if len(n) < FEW_CLASSES else 0.75, axis=0)
    if len(n) < 4:  # the median is half the suspect's own rate, or one class's: what the others may come to at the most
        usual = wilson(inside.sum(0) - inside, n.sum() - n)[1]
    others = (inside.sum(0) - inside + pseudo) / (n.sum() - n + PSEUDO_IMAGES)
    reference = np.maximum(np.maximum(usual, others), areas / 4)
    lift = wilson(inside, n)[0] / reference
    enough = (inside >= limits["least_images"]) & (inside >= limits["least_share"] * n)
    lift = np.where(enough, lift, np.minimum(lift, 1))
    largest = lift.max(axis=1)
    # A mark is wider than the cell where it stands out most.
    good = np.minimum(largest, np.maximum(largest / 2, limits["lift"]))[:, None]
    best = np.where(lift >= good, inside - areas, -1).argmax(axis=1)
    rows = np.arange(len(n))
    return Lift(
        largest, lift[rows, best], best, inside[rows, best].astype(int), n[:, 0].astype(int), reference[rows, best]
    )


def find_shortcuts(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC101: a class whose maps peak in one place far more often than those of the other classes."""
    limits, classes = settings.of("BC101"), known_classes(sums.by_predicted)
    n = classes.n - classes.n_empty
    if not n.sum():
        return RuleResult.skipped("BC101", NO_MAPS)
    if len(n) < 2:
        return RuleResult.skipped("BC101", "a class is compared with others, and the run has one class alone")
    regions = make_regions(sums.grid)
    found = measure_lift(classes.peaks, n, regions, limits)
    findings = tuple(
        _describe_shortcut(sums, classes, row, found, regions, names, limits["lift"])
        for row in np.flatnonzero(found.largest >= limits["lift"])
    )
    measurements = {
        "lift": by_class(classes, found.largest),
        "largest_lift": found.largest.max(),
        "regions": len(regions.places),
    }
    return RuleResult("BC101", ran=True, n_tested=len(n), findings=findings, measurements=measurements)


def _describe_shortcut(
    sums: Sums, classes: ClassSums, row: np.integer, found: Lift, regions: Regions, names: Names, threshold: float
) -> Finding:
    scope, region = scope_of(classes, row, names, "predicted"), found.region[row]
    count, n, place = int(found.count[row]), int(found.n[row]), regions.places[region]
    accuracy = _accuracy_by_place(sums, int(classes.classes[row]), regions.masks[region])
    message = (
        f"{scope}: {count / n:.0%} of the maps peak in one place ({place}), at least {_times(found.lift[row])} times "
        f"as often as in other classes ({count} of {n} images){_in_words(accuracy)}"
    )
    evidence = {
        "peaks_inside": count,
        "share_expected": found.reference[row],
        "energy_z": _energy_z(classes, row, regions.masks[region]),
        **accuracy,
    }
    return found_by(
        "BC101", "warning", scope, threshold=threshold, message=message, evidence=evidence,
        **_measured(found, row, regions),
    )  # fmt: skip


def _measured(found: Lift, row: np.integer, regions: Regions) -> dict[str, Any]:
    """What findings of a lift have in common."""
    low, high = wilson(found.count[row], found.n[row])
    return {
        "value": float(found.lift[row]),
        "ci": (float(low), float(high)),
        "n": int(found.n[row]),
        "region": regions.boxes[found.region[row]],
        "place": regions.places[found.region[row]],
    }


def _times(lift: float) -> str:
    return f"{lift:.0f}" if lift >= 10 else f"{lift:.1f}"


def find_clusters(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC110: some images of a class that have much energy in one cell, in classes that BC101 passed over."""
    limits, classes = settings.of("BC110"), known_classes(sums.by_predicted)
    n = classes.n - classes.n_empty
    if not n.sum() or len(n) < 2:
        return RuleResult.skipped("BC110", NO_MAPS if not n.sum() else "the run has one class alone")
    regions = make_regions(sums.grid, cells_only=True)
    found = measure_lift(classes.exceeding, n, regions, limits)
    shortcuts = {finding.scope.index for finding in find_shortcuts(sums, settings, names).findings}
    findings = []
    for row in np.flatnonzero(found.largest >= limits["lift"]):
        scope = scope_of(classes, row, names, "predicted")
        if scope.index in shortcuts:
            continue
        message = (
            f"{scope}: {found.count[row]} of {found.n[row]} maps have 15 % of their energy or more in one cell "
            f"({regions.places[found.region[row]]}), at least {_times(found.lift[row])} times as often as in other "
            "classes"
        )
        measured = _measured(found, row, regions)
        findings.append(found_by("BC110", "info", scope, threshold=limits["lift"], message=message, **measured))
    measurements = {"lift": by_class(classes, found.largest)}
    return RuleResult("BC110", ran=True, n_tested=len(n), findings=tuple(findings), measurements=measurements)


def _accuracy_by_place(sums: Sums, index: int, mask: np.ndarray) -> dict[str, float]:
    """How often images of a label are predicted right whose maps peak in a place, and elsewhere; {} without labels."""
    row = sums.by_label.row(index)
    if row is None:
        return {}
    peaks, right = sums.by_label.peaks[row], sums.by_label.peaks_correct[row]
    return {
        f"accuracy_{word}": float(right[cells].sum() / peaks[cells].sum())
        for word, cells in (("inside", mask), ("outside", ~mask))
        if peaks[cells].sum() >= LEAST_TOLD
    }


def _in_words(accuracy: Mapping[str, float]) -> str:
    if len(accuracy) < 2:
        return ""
    inside, outside = accuracy["accuracy_inside"], accuracy["accuracy_outside"]
    return f"; images of that label are predicted right in {inside:.0%} of the cases there, in {outside:.0%} elsewhere"


def _energy_z(classes: ClassSums, row: int | np.integer, mask: np.ndarray) -> float:
    """By how many robust standard deviations the class's mean map is stronger there than those of all classes."""
    n = np.maximum(classes.n - classes.n_empty, 1)
    energy = classes.mass[:, mask].sum(axis=1) / n
    spread = 1.4826 * np.median(np.abs(energy - np.median(energy)))
    return float((energy[row] - np.median(energy)) / spread) if spread > 0 else float("nan")
