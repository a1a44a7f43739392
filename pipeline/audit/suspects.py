"""BC103: images whose label the model contradicts as surely as it is right about others."""

from __future__ import annotations

import dataclasses

import numpy as np

from pipeline.audit.advice import found_by
from pipeline.audit.examples import Gathered
from pipeline.audit.findings import DATASET, Finding, RuleResult
from pipeline.audit.settings import Settings
from pipeline.sums import UNIT, Sums


def sure_from(sums: Sums) -> dict[int, float]:
    """Class -> the mean probability of images that are rightly predicted as it; classes without any are left out."""
    classes = sums.by_predicted
    means = classes.self_confidence / UNIT / np.maximum(classes.n_correct, 1)
    rows = np.flatnonzero((classes.n_correct > 0) & (classes.classes >= 0))
    return {int(classes.classes[row]): float(means[row]) for row in rows}


def look_for_suspects(sums: Sums) -> Finding | None:
    """The finding whose images are to be gathered; None if no image is predicted as another class than its label's."""
    contradicted = sums.pairs[:, 0] != sums.pairs[:, 1]
    if not sums.pair_counts[contradicted].sum():
        return None
    return found_by("BC103", "info", DATASET, value=0.0, threshold=0.0, n=0, message="")


def find_suspects_among(sums: Sums, settings: Settings, gathered: Gathered | None) -> RuleResult:
    """BC103, after the images were gathered."""
    labelled, contradicted = int(sums.pair_counts.sum()), sums.pairs[:, 0] != sums.pairs[:, 1]
    if not labelled:
        return RuleResult.skipped("BC103", "no image has a label")
    count, n_wrong = (gathered.n if gathered else 0), int(sums.pair_counts[contradicted].sum())
    measurements = {"suspects": count, "contradicted": n_wrong, "labelled": labelled, "sure": sure_from(sums)}
    threshold = settings.of("BC103")["least_images"]
    findings: tuple[Finding, ...] = ()
    if gathered is not None and count >= threshold:
        message = (
            f"the model contradicts {n_wrong} of {labelled} labels, and {count} of them as surely as it is right about "
            "other images: these labels may be wrong"
        )
        finding = dataclasses.replace(
            gathered.finding, value=float(count), threshold=threshold, n=labelled, message=message
        )
        findings = (finding,)
    return RuleResult("BC103", ran=True, n_tested=labelled, findings=findings, measurements=measurements)
