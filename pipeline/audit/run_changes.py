"""What has changed in a run as a whole: BC203, BC205, BC301, BC303, and BC206 of all images together."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.audit import inference
from pipeline.audit.advice import found_by
from pipeline.audit.between import Array, Between, Context, count_side_by_side, interval
from pipeline.audit.comparability import PREDICTIONS_HANG_ON, Comparability
from pipeline.audit.findings import DATASET, Finding, RuleResult
from pipeline.audit.pairing import Paired
from pipeline.sums import EDGES, UNIT, ClassSums, Sums


def find_changed_predictions(between: Between) -> RuleResult:
    """BC203: the same images are predicted otherwise, or have other maps."""
    paired = between.context.paired
    if paired is None:
        return RuleResult.skipped("BC203", between.context.why_not_paired)
    if not paired.n_same:
        return RuleResult.skipped("BC203", "the runs share no image of the same content")
    same = between.comparability.same_predictions
    found = _not_reproducible(between, paired) if same else _made_otherwise(paired, between.comparability)
    return RuleResult("BC203", True, None, paired.n_same, found, paired.measurements())


def _not_reproducible(between: Between, paired: Paired) -> tuple[Finding, ...]:
    limits = between.limits("BC203")
    share, median, lowest = paired.n_flipped / paired.n_same, paired.correlation(50), paired.correlation(1)
    words, measured = [], []
    if share > limits["flips"]:
        words.append(f"{paired.n_flipped} of {paired.n_same} are predicted as another class")
        measured.append((share, limits["flips"]))
    if between.comparability.same_maps and median < limits["median_correlation"]:
        words.append(f"half of their maps correlate by less than {median:.3f}")
        measured.append((median, limits["median_correlation"]))
    if between.comparability.same_maps and lowest < limits["lowest_correlation"]:
        words.append(f"one map in a hundred correlates by less than {lowest:.3f}")
        measured.append((lowest, limits["lowest_correlation"]))
    if not words:
        return ()
    finding = found_by(
        "BC203",
        "error",
        DATASET,
        value=measured[0][0],
        threshold=measured[0][1],
        ci=interval(paired.n_flipped, paired.n_same),
        n=paired.n_same,
        message="not reproducible: the same images by the same model, but " + ", and ".join(words),
        examples=paired.examples(),
        evidence=paired.numbers(),
    )
    return (finding,)


def _made_otherwise(paired: Paired, comparability: Comparability) -> tuple[Finding, ...]:
    if not paired.n_flipped:
        return ()
    p = float(inference.mcnemar(paired.n_worse, paired.n_better))
    judged = ""
    if paired.n_labelled:
        net = (paired.n_better - paired.n_worse) / paired.n_labelled
        judged = f"; accuracy {net:+.1%}, {paired.n_better} better and {paired.n_worse} worse (McNemar p = {p:.2g})"
    finding = found_by(
        "BC203",
        "info",
        DATASET,
        value=paired.n_flipped / paired.n_same,
        threshold=0.0,
        ci=interval(paired.n_flipped, paired.n_same),
        n=paired.n_same,
        message=f"{_how(comparability)} {paired.n_flipped} of {paired.n_same} images are predicted as another class"
        f"{judged}",
        examples=paired.examples(),
        evidence={**paired.numbers(), "mcnemar_p": p},
    )
    return (finding,)


def _how(comparability: Comparability) -> str:
    """What may have changed predictions: another model, or the same one that was given its images otherwise."""
    lines = [line for line in comparability.differences if line.partition(":")[0] in PREDICTIONS_HANG_ON]
    if any(line.startswith("model_digest:") for line in lines):
        return "by another model"
    return f"made otherwise ({'; '.join(lines)})," if lines else "made otherwise,"


def find_changed_mix(between: Between) -> RuleResult:
    """BC205: classes are predicted in other proportions."""
    limits = between.limits("BC205")
    classes, new, old = count_side_by_side(between.new.by_predicted, between.old.by_predicted)
    n, before = int(new.sum()), int(old.sum())
    if min(n, before) < limits["least_images"]:
        few = f"one of the runs has {min(n, before)} predictions, fewer than {limits['least_images']:.0f}"
        return RuleResult.skipped("BC205", few)
    now, then = new / n, old / before
    change, pooled = now - then, (new + old) / (n + before)
    # The mean of |x| is sqrt(2/pi) of a normal x's deviation: a thousand classes differ by chance alone.
    by_chance = float(np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / before)).sum() / 2)
    variation = float(inference.total_variation(new, old))
    _, p = inference.two_proportion_z(new, n, old, before)
    certain = (inference.benjamini_hochberg(p) < limits["q"]) & (np.abs(change) >= limits["largest"])
    measured = {
        "variation": variation - by_chance,
        "total_variation": variation,
        "largest_change": float(np.abs(change).max()),
        "psi": float(inference.psi(new, old)),
    }
    findings: tuple[Finding, ...] = ()
    if certain.any() and variation - by_chance >= limits["variation"]:
        order = np.argsort(-np.where(certain, np.abs(change), 0), kind="stable")[: int(certain.sum())]
        first, rest = order[0], len(order) - 1
        scope = between.scope(classes[first], "predicted")
        findings = (
            found_by(
                "BC205",
                "warning",
                DATASET,
                value=variation - by_chance,
                threshold=limits["variation"],
                ci=interval(new[first], n),
                n=n,
                message=f"{scope}: {then[first]:.1%} of the predictions before, {now[first]:.1%} now"
                f"{_of_labels(between, int(classes[first]))}" + (f"; and {rest} more classes" if rest else ""),
                evidence={
                    **measured,
                    "changes": [
                        {"class": int(classes[i]), "name": between.scope(classes[i], "predicted").name,
                         "before": then[i], "now": now[i]} for i in order[:10]
                    ],
                },
            ),
        )  # fmt: skip
    return RuleResult("BC205", True, None, len(classes), findings, measured)


def _of_labels(between: Between, index: int) -> str:
    """How the labels of a class moved, in brackets."""
    classes, new, old = count_side_by_side(between.new.by_label, between.old.by_label)
    place = np.flatnonzero(classes == index)
    if not len(place) or not new.sum() or not old.sum():
        return ""
    return f" (of the labels {old[place[0]] / old.sum():.1%} and {new[place[0]] / new.sum():.1%})"


def find_drifted_run(between: Between) -> RuleResult:
    """BC206 of all images together: the mean confidence, and the share of empty maps."""
    limits, new, old = between.limits("BC206"), between.new, between.old
    words, values = list[str](), list[tuple[float, float]]()
    measured: dict[str, float] = {}
    mean, then = (_mean_confidence(sums.by_predicted) for sums in (new, old))
    if mean is not None and then is not None:
        moments = (*_confidence_moments(new.by_predicted), *_confidence_moments(old.by_predicted))
        _, p = inference.mean_difference_z(*moments)
        measured |= {"confidence": mean, "confidence_before": then}
        if p < limits["q"] and abs(mean - then) >= limits["confidence"]:
            words.append(f"the mean confidence was {then:.3f} and is {mean:.3f}")
            values.append((mean - then, limits["confidence"]))
    empty, were_empty = new.n_empty / max(new.n_images, 1), old.n_empty / max(old.n_images, 1)
    p = float(inference.two_proportion_z(new.n_empty, new.n_images, old.n_empty, old.n_images)[1])
    measured |= {"empty": empty, "empty_before": were_empty}
    is_more = empty >= 2 * were_empty or empty > limits["empty"] >= were_empty
    if not between.comparability.reason("attention") and p < limits["q"] and empty > were_empty and is_more:
        words.append(f"{were_empty:.1%} of the maps were empty and {empty:.1%} are")
        values.append((empty, min(2 * were_empty, limits["empty"])))
    if not words:
        return RuleResult("BC206", True, None, 1, (), measured)
    finding = found_by(
        "BC206",
        "warning",
        DATASET,
        value=values[0][0],
        threshold=values[0][1],
        n=new.n_images,
        message="all images: " + "; ".join(words),
        evidence=measured,
    )
    return RuleResult("BC206", True, None, 1, (finding,), measured)


def _mean_confidence(sums: ClassSums) -> float | None:
    n = int(sums.histograms["confidence"].sum())
    return float(sums.confidence.sum() / UNIT / n) if n else None


def _confidence_moments(sums: ClassSums) -> tuple[float, float, float]:
    """Sum, sum of squares and number; how far values vary is told by the histogram's bins."""
    counts, edges = sums.histograms["confidence"].sum(0), EDGES["confidence"]
    centres, n = (edges[:-1] + edges[1:]) / 2, float(counts.sum())
    total = float(sums.confidence.sum() / UNIT)
    variance = float(counts @ centres**2 / n - (counts @ centres / n) ** 2)
    return total, n * (variance + (total / n) ** 2), n


def find_classes_that_came_or_went(between: Between) -> RuleResult:
    """BC303: classes that one of two runs has alone, and classes too small to be compared."""
    limits = between.limits("BC303")
    by = "label"
    classes, new, old = count_side_by_side(between.new.by_label, between.old.by_label)
    if not new.sum() or not old.sum():
        by = "predicted"
        classes, new, old = count_side_by_side(between.new.by_predicted, between.old.by_predicted)
    n, before = int(new.sum()), int(old.sum())
    if not n or not before:
        return RuleResult.skipped("BC303", "one of the runs has no images")
    # All k images of a class lie in one of the runs: the chance of that if the runs were drawn alike.
    alone = np.where((new == 0) | (old == 0), new + old, 0)
    p = np.where(new == 0, before / (n + before), n / (n + before)) ** alone
    surprising = (inference.benjamini_hochberg(p) < limits["q"]) & (alone > 0)
    findings = [
        _describe_class(between, by, int(classes[i]), int(new[i]), int(old[i]), float(p[i]))
        for i in np.flatnonzero(surprising)
    ]
    small = (np.minimum(new, old) < limits["least_images"]) & (np.minimum(new, old) > 0)
    in_small = float(new[small].sum() / n)
    if in_small > 0.5:
        findings.append(
            _describe_small_classes(limits["least_images"], small, len(classes), in_small, int(new[small].sum()))
        )
    measured = {"missing": classes[(new == 0) & (old > 0)], "new": classes[(old == 0) & (new > 0)],
                "n_small": int(small.sum()), "images_in_small": in_small}  # fmt: skip
    return RuleResult("BC303", True, None, len(classes), tuple(findings), measured)


def _describe_class(between: Between, by: str, index: int, new: int, old: int, p: float) -> Finding:
    scope, images = between.scope(index, by), "images" if by == "label" else "predictions"
    return found_by(
        "BC303",
        "warning",
        scope,
        value=float(new),
        threshold=float(old),
        n=max(new, old),
        message=f"{scope}: had no {images} and has {new}" if new else f"{scope}: had {old} {images} and has none",
        evidence={"p": p, "n_before": old},
    )


def _describe_small_classes(least: float, small: Array, n_classes: int, share: float, n: int) -> Finding:
    return found_by(
        "BC303",
        "info",
        DATASET,
        value=share,
        threshold=0.5,
        n=n,
        message=f"{int(small.sum())} of {n_classes} classes, with {share:.0%} of the images, have fewer than "
        f"{least:.0f} images in one of the runs: what changed in them is not told",
    )


def find_incomplete_run(new: Sums, old: Sums | None, context: Context) -> RuleResult:
    """BC301: images without a record or failure, failures, and far more or fewer images than before."""
    limits, facts = context.settings.of("BC301"), context.facts
    inputs = max(new.n_images + new.n_failed, facts.n_inputs if facts else 0)
    missing, failed = inputs - new.n_images - new.n_failed, new.n_failed / max(inputs, 1)
    told: list[tuple[str, str, float, float]] = []  # severity, words, value, threshold; the gravest first
    if missing:
        told.append(("error", f"{missing} of {inputs} images have neither record nor failure", missing / inputs, 0.0))
    if failed > limits["failed"]:
        kinds = sorted(new.failures_by_type.items(), key=lambda item: (-item[1], item[0]))[:3]
        words = ", ".join(f"{kind} {count}" for kind, count in kinds)
        severity = "error" if failed > limits["failed_error"] else "warning"
        told.append((severity, f"{new.n_failed} of {inputs} images failed: {words}", failed, limits["failed"]))
    measured: dict[str, Any] = {"inputs": inputs, "failed": failed, "failures_by_type": dict(new.failures_by_type)}
    if old is not None:
        before = old.n_images + old.n_failed
        failed_before = old.n_failed / max(before, 1)
        measured |= {"inputs_before": before, "failed_before": failed_before}
        _, p = inference.two_proportion_z(new.n_failed, inputs, old.n_failed, before)
        if failed <= limits["failed"] and failed > 2 * failed_before and p < limits["q"]:
            words = f"{failed_before:.2%} of the images failed before, {failed:.2%} now"
            told.append(("warning", words, failed, 2 * failed_before))
        change = inputs / max(before, 1) - 1
        if abs(change) > limits["volume"]:
            told.append(("warning", f"{before} images before, {inputs} now", change, limits["volume"]))
    if not told:
        return RuleResult("BC301", True, None, inputs, (), measured)
    finding = found_by(
        "BC301",
        told[0][0],
        DATASET,
        value=told[0][2],
        threshold=told[0][3],
        ci=interval(new.n_failed, inputs),
        n=inputs,
        message="; ".join(item[1] for item in told),
        evidence=measured,
    )
    return RuleResult("BC301", True, None, inputs, (finding,), measured)
