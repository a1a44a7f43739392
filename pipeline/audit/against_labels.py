"""Maps against labels and boxes: evidence that two classes share, off the object, or that accuracy hangs on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.audit.advice import found_by
from pipeline.audit.classes import Names, by_class, known_classes, mean_of, median_of, name_of, scope_of
from pipeline.audit.findings import Finding, RuleResult, Scope
from pipeline.audit.inference import benjamini_hochberg, two_proportion_z, wilson
from pipeline.audit.regions import Box, make_regions
from pipeline.audit.settings import Settings
from pipeline.sums import Sums


def find_shared_evidence(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC104: two classes that are taken for each other, and whose maps agree where they are the best two."""
    limits = settings.of("BC104")
    if not len(sums.pairs):
        return RuleResult.skipped("BC104", "no image has a label")
    correlations = _correlations_by_pair(sums)
    if not correlations:
        return RuleResult.skipped("BC104", "no image has maps of its two best classes: run with --targets top:2")
    confusions = _confusions_by_pair(sums)
    findings, measured = [], {}
    for (a, b), counts in sorted(correlations.items()):
        (wrong, total), n, median = confusions.get((a, b), (0, 0)), int(counts.sum()), median_of("top2_cc", counts)
        if n < limits["least_images"] or not total:
            continue
        measured[f"{a} {b}"] = {"confusion": wrong / total, "median_correlation": median, "n": n}
        if wrong / total >= limits["confusion"] and median >= limits["correlation"]:
            scope = Scope(a, name_of(a, names), "predicted", b, name_of(b, names))
            findings.append(_describe_pair(scope, wrong, total, n, median, limits["confusion"]))
    return RuleResult("BC104", ran=True, n_tested=len(measured), findings=tuple(findings), measurements=measured)


def _describe_pair(scope: Scope, wrong: int, total: int, n: int, median: float, threshold: float) -> Finding:
    low, high = wilson(wrong, total)
    message = (
        f"{scope}: {wrong / total:.0%} of their {total} images are taken for the other class, and both maps show the "
        f"same place (median correlation {median:.2f} over {n} images)"
    )
    evidence = {"median_correlation": median, "confused": wrong, "images": total}
    return found_by(
        "BC104", "info", scope, value=wrong / total, threshold=threshold, ci=(float(low), float(high)), n=n,
        message=message, evidence=evidence,
    )  # fmt: skip


def find_off_object(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC108: maps that lie in the images' boxes no more than chance has it."""
    limits, classes = settings.of("BC108"), known_classes(sums.by_predicted)
    energies, areas = classes.histograms["energy_in_box"], classes.histograms["box_area"]
    n = energies.sum(axis=1)
    if not n.sum():
        return RuleResult.skipped("BC108", "no image has boxes: give them in the manifest's column boxes")
    energy, area = mean_of("energy_in_box", energies), mean_of("box_area", areas)
    ratio = energy / np.maximum(area, 1e-9)
    # Shares are known to the width of a bin: smaller boxes say nothing, nor do those of the whole image.
    told = (area >= limits["least_area"]) & (area <= limits["most_area"])
    rows = np.flatnonzero((n >= limits["least_images"]) & told)
    findings = []
    for row in rows[ratio[rows] <= limits["ratio"]]:
        scope = scope_of(classes, row, names, "predicted")
        findings.append(
            found_by(
                "BC108",
                "warning",
                scope,
                value=ratio[row],
                threshold=limits["ratio"],
                n=int(n[row]),
                message=f"{scope}: {energy[row]:.0%} of the energy lies in the objects' boxes, which are "
                f"{area[row]:.0%} of the image ({n[row]} images): no more than chance",
                evidence={"energy_in_box": energy[row], "box_area": area[row]},
            )
        )
    measurements = {"classes": by_class(classes, np.where(n > 0, ratio, np.nan))}
    return RuleResult("BC108", ran=True, n_tested=len(rows), findings=tuple(findings), measurements=measurements)


def find_place_dependent(sums: Sums, settings: Settings, names: Names) -> RuleResult:
    """BC109: a class that is predicted right more, or less, often where its images' maps peak in one place."""
    limits, classes = settings.of("BC109"), known_classes(sums.by_label)
    if not classes.n_labelled.sum():
        return RuleResult.skipped("BC109", "no image has a label")
    regions = make_regions(sums.grid)
    inside, right = regions.count(classes.peaks), regions.count(classes.peaks_correct)
    n, n_right = classes.peaks.sum(axis=(1, 2))[:, None], classes.peaks_correct.sum(axis=(1, 2))[:, None]
    outside, right_outside = n - inside, n_right - right
    tested = (inside >= limits["least_images"]) & (outside >= limits["least_images"])
    _, p = two_proportion_z(right, inside, right_outside, outside)
    q = benjamini_hochberg(np.where(tested, p, np.nan))
    difference = right / np.maximum(inside, 1) - right_outside / np.maximum(outside, 1)
    found = tested & (np.abs(difference) >= limits["difference"]) & (q < limits["q"])
    findings = []
    for row in np.flatnonzero(found.any(axis=1)):
        best = int(np.argmin(np.where(found[row], p[row], np.inf)))
        counts = [int(values[row, best]) for values in (right, inside, right_outside, outside)]
        scope, place = scope_of(classes, row, names, "label"), (regions.boxes[best], regions.places[best])
        findings.append(_describe_place(scope, place, counts, float(q[row, best]), limits["difference"]))
    return RuleResult(
        "BC109",
        ran=True,
        n_tested=int(tested.any(axis=1).sum()),
        findings=tuple(findings),
        measurements={"places_tested": tested.sum()},
    )


def _describe_place(scope: Scope, place: tuple[Box, str], counts: Sequence[int], q: float, threshold: float) -> Finding:
    """Of images that are right inside, all inside, right outside, all outside."""
    right, inside, right_outside, outside = counts
    low, high = wilson(right, inside)
    shares = right / inside, right_outside / outside
    message = (
        f"{scope}: {shares[0]:.0%} of {inside} images are predicted right where the map peaks in one place "
        f"({place[1]}), {shares[1]:.0%} of {outside} elsewhere"
    )
    evidence = {"accuracy_inside": shares[0], "accuracy_outside": shares[1], "q": q}
    return found_by(
        "BC109", "warning", scope, value=shares[0] - shares[1], threshold=threshold, ci=(float(low), float(high)),
        n=inside + outside, region=place[0], place=place[1], message=message, evidence=evidence,
    )  # fmt: skip


def _correlations_by_pair(sums: Sums) -> dict[tuple[int, int], np.ndarray]:
    """Two classes in order -> (32,) images a bin of their maps' correlation, where they are the best two."""
    found: dict[tuple[int, int], np.ndarray] = {}
    for (first, second, bin_), count in zip(sums.top2.tolist(), sums.top2_counts.tolist(), strict=True):
        if bin_ < 32 and first >= 0 and second >= 0:
            pair = (min(first, second), max(first, second))
            found.setdefault(pair, np.zeros(32, np.int64))[bin_] += count
    return found


def _confusions_by_pair(sums: Sums) -> dict[tuple[int, int], tuple[int, int]]:
    """Two classes in order -> images of either that are taken for the other, and images of both."""
    totals: dict[int, int] = {}
    wrong: dict[tuple[int, int], int] = {}
    for (label, predicted), count in zip(sums.pairs.tolist(), sums.pair_counts.tolist(), strict=True):
        totals[label] = totals.get(label, 0) + count
        if label != predicted:
            pair = (min(label, predicted), max(label, predicted))
            wrong[pair] = wrong.get(pair, 0) + count
    return {(a, b): (count, totals.get(a, 0) + totals.get(b, 0)) for (a, b), count in wrong.items()}
