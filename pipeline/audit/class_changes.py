"""What has changed in a class since an earlier run: BC201, BC202, BC204, and BC206 of classes."""

from __future__ import annotations

import numpy as np

from pipeline.audit import inference
from pipeline.audit.advice import found_by
from pipeline.audit.between import Between, interval
from pipeline.audit.classes import median_of
from pipeline.audit.findings import Finding, RuleResult
from pipeline.sums import UNIT

OF_PREDICTIONS = ("confidence", "margin")

OF_MAPS = ("spread", "eff_area", "gini", "coverage50", "border_energy", "corner_energy", "largest_share50",
           "negative_share", "top2_cc", "energy_in_box")  # fmt: skip
"""Statistics that BC206 looks at; `components50` is left out, a small whole number that its test was not made for."""


def find_moved_attention(between: Between) -> RuleResult:
    """BC201: the peaks of a class's maps lie elsewhere."""
    shared, limits = between.predicted, between.limits("BC201")
    new, old = shared.both("peaks")
    n, before = new.sum(1), old.sum(1)
    tested = np.minimum(n, before) >= limits["least_images"]
    value, raw = inference.debiased_js(new, old)
    q = inference.benjamini_hochberg(np.where(tested, inference.g_test(new, old), np.nan))
    floor = limits["moved_same_model" if between.comparability.same_maps else "moved"]
    with np.errstate(invalid="ignore"):  # NaN where a class has no map
        rows = np.flatnonzero(tested & (q < limits["q"]) & (value >= floor))
    index = inference.psi(new, old)
    findings = []
    for row in rows:
        now, then = new[row] / n[row], old[row] / before[row]
        cell = int(np.argmax(now - then))
        scope, place = between.scope(shared.classes[row], "predicted"), between.place(cell)
        findings.append(
            found_by(
                "BC201",
                "error" if value[row] >= limits["moved_error"] else "warning",
                scope,
                value=float(value[row]),
                threshold=floor,
                ci=interval(new[row][cell], n[row]),
                n=int(n[row]),
                **place,
                message=f"{scope}: {then[cell]:.0%} of the maps peaked in one place ({place['place']}) and "
                f"{now[cell]:.0%} do now ({before[row]} and {n[row]} maps)",
                evidence={
                    "share_before": then[cell],
                    "share_now": now[cell],
                    "n_before": before[row],
                    "q": q[row],
                    "js": raw[row],
                    "js_distance": np.sqrt(raw[row]),
                    "psi": index[row],
                },
            )
        )
    measured = {"moved": shared.by_class(value, tested), "psi": shared.by_class(index, tested)}
    return RuleResult("BC201", True, None, int(tested.sum()), tuple(findings), measured)


def find_changed_mean_maps(between: Between) -> RuleResult:
    """BC202: a class's mean map differs by more than its maps do from image to image."""
    shared, limits = between.predicted, between.limits("BC202")
    (mass, old_mass), squares = shared.both("mass"), shared.both("mass_squared")
    n, before = (all_of - empty for all_of, empty in zip(shared.both("n"), shared.both("n_empty"), strict=True))
    tested = np.minimum(n, before) >= limits["least_images"]
    value, raw, p = inference.mean_map_js(mass / UNIT, squares[0] / UNIT, n, old_mass / UNIT, squares[1] / UNIT, before)
    q = inference.benjamini_hochberg(np.where(tested, p, np.nan))
    floor = limits["moved_same_model" if between.comparability.same_maps else "moved"]
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(tested & (q < limits["q"]) & (value >= floor))
    findings = []
    for row in rows:
        now, then = mass[row] / mass[row].sum(), old_mass[row] / old_mass[row].sum()
        cell = int(np.argmax(now - then))
        scope, place = between.scope(shared.classes[row], "predicted"), between.place(cell)
        findings.append(
            found_by(
                "BC202",
                "error" if value[row] >= limits["moved_error"] else "warning",
                scope,
                value=float(value[row]),
                threshold=floor,
                n=int(n[row]),
                **place,
                message=f"{scope}: {then[cell]:.1%} of the attention lay in one place ({place['place']}) and "
                f"{now[cell]:.1%} does now ({before[row]} and {n[row]} maps)",
                evidence={
                    "share_before": then[cell],
                    "share_now": now[cell],
                    "n_before": before[row],
                    "q": q[row],
                    "js": raw[row],
                },
            )
        )
    measured = {"moved": shared.by_class(value, tested)}
    return RuleResult("BC202", True, None, int(tested.sum()), tuple(findings), measured)


def find_changed_accuracy(between: Between) -> RuleResult:
    """BC204: predictions agree with a class's labels more or less often."""
    shared, limits = between.labelled, between.limits("BC204")
    (n, before), (right, was_right) = shared.both("n_labelled"), shared.both("n_correct")
    tested = np.minimum(n, before) >= limits["least_images"]
    now, then = right / np.maximum(n, 1), was_right / np.maximum(before, 1)
    change = now - then
    _, p = inference.two_proportion_z(right, n, was_right, before)
    q = inference.benjamini_hochberg(np.where(tested, p, np.nan))
    findings = []
    for row in np.flatnonzero(tested & (q < limits["q"]) & (np.abs(change) >= limits["difference"])):
        scope = between.scope(shared.classes[row], "label")
        findings.append(
            found_by(
                "BC204",
                "warning" if change[row] < 0 else "info",
                scope,
                value=float(change[row]),
                threshold=limits["difference"],
                ci=inference.difference_interval(right[row], n[row], was_right[row], before[row]),
                n=int(n[row]),
                message=f"{scope}: {then[row]:.1%} of the images were predicted right and {now[row]:.1%} are now "
                f"({before[row]} and {n[row]} images)",
                evidence={"before": then[row], "now": now[row], "n_before": before[row], "q": q[row]},
            )
        )
    measured = {"change": shared.by_class(change, tested)}
    return RuleResult("BC204", True, None, int(tested.sum()), tuple(findings), measured)


def find_drifted_classes(between: Between) -> RuleResult:
    """BC206 of classes: a statistic of maps or predictions is distributed otherwise."""
    shared, limits = between.predicted, between.limits("BC206")
    names = OF_PREDICTIONS if between.comparability.reason("attention") else (*OF_PREDICTIONS, *OF_MAPS)
    distances = np.zeros((len(shared.classes), len(names)))
    p = np.full(distances.shape, np.nan)
    for column, name in enumerate(names):
        new, old = shared.histograms(name)
        distances[:, column], chance = inference.ks_test(new, old)
        p[:, column] = np.where(np.minimum(new.sum(1), old.sum(1)) >= limits["least_images"], chance, np.nan)
    tested = np.isfinite(p)
    with np.errstate(invalid="ignore"):
        drifted = (inference.benjamini_hochberg(p) < limits["q"]) & (distances >= limits["distance"])
    findings = [
        _describe_drift(between, int(row), {names[c]: float(distances[row, c]) for c in np.flatnonzero(drifted[row])})
        for row in np.flatnonzero(drifted.any(1))
    ]
    measured = {
        name: shared.by_class(distances[:, c], tested[:, c]) for c, name in enumerate(names) if tested[:, c].any()
    }
    return RuleResult("BC206", True, None, int(tested.any(1).sum()), tuple(findings), {"distance": measured})


def _describe_drift(between: Between, row: int, drifted: dict[str, float]) -> Finding:
    """Of one class, by the statistic that drifted most."""
    shared = between.predicted
    name = max(drifted, key=lambda name: drifted[name])
    new, old = (histograms[row] for histograms in shared.histograms(name))
    scope, now, before = between.scope(shared.classes[row], "predicted"), median_of(name, new), median_of(name, old)
    others = f"; so did {', '.join(other for other in drifted if other != name)}" if len(drifted) > 1 else ""
    return found_by(
        "BC206",
        "info",
        scope,
        value=drifted[name],
        threshold=between.limits("BC206")["distance"],
        n=int(new.sum()),
        message=f"{scope}: {name} drifted, its median was {before:.3g} and is {now:.3g} ({old.sum()} and {new.sum()} "
        f"images){others}",
        evidence={"statistic": name, "distances": drifted, "before": before, "now": now},
    )
