"""What maps look like, whatever the labels: on the frame, empty, diffuse or fragmented; BC102, BC105, BC106, BC107."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.audit.advice import found_by
from pipeline.audit.classes import NO_MAPS, Names, by_class, by_rows, known_classes, mean_of, median_of, scope_of
from pipeline.audit.findings import DATASET, RuleResult
from pipeline.audit.inference import wilson
from pipeline.audit.settings import Settings
from pipeline.sums import EDGES, Sums

FRAME_AREA = 1 - 0.8**2
"""The share of an image that lies in its outer tenth."""


def find_framed(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC102: attention on the outer tenth of the image, which is a third of its area and seldom has the object."""
    limits, classes = settings.of("BC102"), known_classes(sums.by_predicted)
    counts = classes.histograms["border_energy"]
    n, ratio = counts.sum(axis=1), mean_of("border_energy", counts) / FRAME_AREA
    if not n.sum():
        return RuleResult.skipped("BC102", NO_MAPS)
    overall = float(mean_of("border_energy", counts.sum(axis=0)) / FRAME_AREA)
    subjects = [(DATASET, overall, int(n.sum()), "info", limits["dataset_ratio"])]
    enough = np.flatnonzero(n >= limits["least_images"])
    subjects += [
        (scope_of(classes, row, names, "predicted"), float(ratio[row]), int(n[row]), "warning", limits["class_ratio"])
        for row in enough
    ]
    findings = [
        found_by(
            "BC102",
            severity,
            scope,
            value=value,
            threshold=threshold,
            n=n_scope,
            message=f"{scope}: {value * FRAME_AREA:.0%} of the energy lies in the outer tenth of the image, which is "
            f"{FRAME_AREA:.0%} of its area ({n_scope} images)",
        )
        for scope, value, n_scope, severity, threshold in subjects
        if value >= threshold and n_scope >= limits["least_images"]
    ]
    measurements = {"dataset": overall, "classes": by_class(classes, ratio)}
    return RuleResult("BC102", ran=True, n_tested=1 + len(enough), findings=tuple(findings), measurements=measurements)


def find_unexplained(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC105: classes whose maps have nothing positive."""
    limits, classes = settings.of("BC105"), known_classes(sums.by_predicted)
    if not classes.n.sum():
        return RuleResult.skipped("BC105", "the run has no record")
    share = classes.n_empty / np.maximum(classes.n, 1)
    findings = []
    for row in np.flatnonzero((share >= limits["share"]) & (classes.n_empty >= limits["least_images"])):
        scope, n = scope_of(classes, row, names, "predicted"), int(classes.n[row])
        low, high = wilson(classes.n_empty[row], n)
        findings.append(
            found_by(
                "BC105",
                "warning",
                scope,
                value=share[row],
                threshold=limits["share"],
                ci=(float(low), float(high)),
                n=n,
                message=f"{scope}: {share[row]:.0%} of {n} maps of {sums.method} have no positive value, so they show "
                "no evidence for the class",
            )
        )
    measurements = {"dataset": float(classes.n_empty.sum() / classes.n.sum()), "classes": by_class(classes, share)}
    return RuleResult("BC105", ran=True, n_tested=len(share), findings=tuple(findings), measurements=measurements)


def find_diffuse(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC106: a class whose maps cover far more of the image than those of other classes."""
    limits, classes = settings.of("BC106"), known_classes(sums.by_predicted)
    counts = classes.histograms["eff_area"]
    rows = np.flatnonzero(counts.sum(axis=1) >= limits["least_images"])
    if len(rows) < limits["least_classes"]:
        return RuleResult.skipped("BC106", _too_few_classes(limits))
    medians = np.array([median_of("eff_area", counts[row]) for row in rows])
    typical = np.median(medians)
    spread = max(float(np.median(np.abs(medians - typical))), _half_a_bin("eff_area"))
    threshold = max(float(typical + limits["mads"] * spread), limits["area"])
    findings = []
    for row, median in zip(rows, medians, strict=True):
        if median < threshold:
            continue
        scope, n = scope_of(classes, row, names, "predicted"), int(counts[row].sum())
        findings.append(
            found_by(
                "BC106",
                "info",
                scope,
                value=median,
                threshold=threshold,
                n=n,
                message=f"{scope}: half of {n} maps are spread over {median:.0%} of the image or more; in other "
                f"classes it is {typical:.0%}",
            )
        )
    measurements = {"typical": typical, "threshold": threshold, "classes": by_rows(classes, rows, medians)}
    return RuleResult("BC106", ran=True, n_tested=len(rows), findings=tuple(findings), measurements=measurements)


def find_fragmented(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC107: maps of several regions; of the data set if it is so as a whole, else of classes."""
    limits, classes = settings.of("BC107"), known_classes(sums.by_predicted)
    counts = classes.histograms["components50"]
    n, many = counts.sum(axis=1), counts[:, EDGES["components50"][:-1] >= limits["components"]].sum(axis=1)
    if not n.sum():
        return RuleResult.skipped("BC107", NO_MAPS)
    share = many / np.maximum(n, 1)
    overall = many.sum() / n.sum()
    subjects = [
        (scope_of(classes, row, names, "predicted"), int(many[row]), int(n[row]))
        for row in np.flatnonzero((n >= limits["least_images"]) & (share >= limits["share"]))
    ]
    if overall >= limits["share"] and n.sum() >= limits["least_images"]:
        subjects = [(DATASET, int(many.sum()), int(n.sum()))]  # a property of the method, not of some classes
    findings = []
    for scope, count, total in subjects:
        low, high = wilson(count, total)
        findings.append(
            found_by(
                "BC107",
                "info",
                scope,
                value=count / total,
                threshold=limits["share"],
                ci=(float(low), float(high)),
                n=total,
                message=f"{scope}: {count / total:.0%} of {total} maps have {limits['components']:.0f} or more "
                "separate regions above half of their maximum",
            )
        )
    measurements = {"dataset": overall, "classes": by_class(classes, share)}
    return RuleResult("BC107", ran=True, n_tested=len(n), findings=tuple(findings), measurements=measurements)


def _half_a_bin(scalar: str) -> float:
    return float(EDGES[scalar][1] - EDGES[scalar][0]) / 2


def _too_few_classes(limits: Mapping[str, float]) -> str:
    return (
        f"classes are compared with each other, and fewer than {limits['least_classes']:.0f} have "
        f"{limits['least_images']:.0f} images"
    )
