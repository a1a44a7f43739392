"""A run against an earlier one: every rule on what has changed, and which findings were known already."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipeline.audit.between import Between, Context
from pipeline.audit.class_changes import (
    find_changed_accuracy,
    find_changed_mean_maps,
    find_drifted_classes,
    find_moved_attention,
)
from pipeline.audit.comparability import Comparability, judge
from pipeline.audit.findings import Finding, RuleResult, with_state
from pipeline.audit.inference import control_limits
from pipeline.audit.run_changes import (
    find_changed_mix,
    find_changed_predictions,
    find_classes_that_came_or_went,
    find_drifted_run,
    find_incomplete_run,
)
from pipeline.sums import Sums, resample

__all__ = ["Context", "calm_by_history", "compare", "judge", "with_states"]

LEAST_NIGHTS = 5
"""Earlier nights that control limits need."""


def compare(new: Sums, old: Sums | None, context: Context) -> list[RuleResult]:
    """Every rule on what has changed, and on whether the run is whole.

    Args:
        new: the run's sums.
        old: the baseline's; None if there is none yet.
        context: what else is known of both.

    Returns:
        BC201 to BC206 and BC301 to BC303, in this order; those that could not run say why. Of a run without a baseline
        BC301 alone runs.
    """
    whole = find_incomplete_run(new, old, context)
    if old is None:
        skipped = {rule: RuleResult.skipped(rule, "there is no baseline yet") for rule in (*RULES, "BC302")}
        return _in_order([whole, *skipped.values()])
    comparability = judge(context.facts, context.baseline, new, old)
    new, old, comparability = _on_one_grid(new, old, comparability)
    between = Between(new, old, context, comparability, _on_shared_images(new, old, context, comparability))
    return _in_order([whole, comparability.result(), *(_run(rule, between) for rule in RULES)])


def find_drifted_statistics(between: Between) -> RuleResult:
    """BC206, of all images together and of classes."""
    run, classes = find_drifted_run(between), find_drifted_classes(between)
    return dataclasses.replace(
        classes, findings=run.findings + classes.findings, measurements={**classes.measurements, **run.measurements}
    )


RULES: Mapping[str, tuple[str, Callable[[Between], RuleResult]]] = {
    "BC201": ("attention", find_moved_attention),
    "BC202": ("attention", find_changed_mean_maps),
    "BC203": ("paired", find_changed_predictions),
    "BC204": ("class", find_changed_accuracy),
    "BC205": ("class", find_changed_mix),
    "BC206": ("class", find_drifted_statistics),
    "BC303": ("class", find_classes_that_came_or_went),
}
"""Rule -> the layer that has to be comparable for it, and its function."""


def with_states(results: Iterable[RuleResult], earlier: Sequence[Finding] | None) -> list[RuleResult]:
    """Findings with what the baseline's audit makes of them: new or known, and those that are gone as resolved.

    A shortcut (BC101) that the baseline did not have is an error: this is the night on which the model learned it.

    Findings of BC2xx and BC3xx are new every night and never resolved: they tell what became of the run since its
    baseline, so that the same key on another night is of another event.

    Args:
        results: this run's.
        earlier: the baseline's findings; None if it has none, or was not audited: all findings are new then.
    """
    if earlier is None:
        return list(results)
    lasting = (finding for finding in earlier if finding.state != "resolved" and not _is_event(finding.rule))
    known, found = {finding.key: finding for finding in lasting}, []
    for result in results:
        findings = [_with_state(finding, known) for finding in result.findings]
        keys = {finding.key for finding in findings}
        gone = [f for f in known.values() if f.rule == result.rule and f.key not in keys] if result.ran else []
        resolved = [with_state(finding, "resolved") for finding in gone]
        found.append(dataclasses.replace(result, findings=(*findings, *resolved)))
    return found


def calm_by_history(results: Iterable[RuleResult], nights: Sequence[Mapping[str, Any]]) -> list[RuleResult]:
    """Findings of BC201 to BC206 whose value is what it was on other nights become information.

    A value within the median plus or minus four median absolute deviations of the earlier nights is usual: a class
    whose attention is always 0.12 away from the baseline's does not need to be told every night.

    Args:
        results: this run's.
        nights: the findings.json of earlier nights; fewer than `LEAST_NIGHTS` that measured a value change nothing.
    """
    return [
        dataclasses.replace(result, findings=tuple(_calm(finding, nights) for finding in result.findings))
        if result.rule.startswith("BC2")
        else result
        for result in results
    ]


def _in_order(results: Iterable[RuleResult]) -> list[RuleResult]:
    return sorted(results, key=lambda result: result.rule)


def _run(rule: str, between: Between) -> RuleResult:
    layer, find = RULES[rule]
    reason = between.comparability.reason(layer)
    return RuleResult.skipped(rule, reason) if reason else find(between)


def _on_one_grid(new: Sums, old: Sums, comparability: Comparability) -> tuple[Sums, Sums, Comparability]:
    """Both on the coarser grid."""
    if new.grid == old.grid or (0, 0) in (new.grid, old.grid):
        return new, old, comparability
    grid = (min(new.grid[0], old.grid[0]), min(new.grid[1], old.grid[1]))
    differences = (*comparability.differences, f"maps are compared on {grid[0]}x{grid[1]} cells")
    return resample(new, grid), resample(old, grid), dataclasses.replace(comparability, differences=differences)


def _on_shared_images(new: Sums, old: Sums, context: Context, comparability: Comparability) -> tuple[Sums, Sums] | None:
    """Of two models on inputs that overlap, the sums of the images that both have seen; None to take all images.

    What the models do differently is then not confused with what the inputs do.
    """
    paired = context.paired
    if paired is None or paired.new_sums is None or paired.old_sums is None or comparability.same_predictions:
        return None
    images = new.n_images, old.n_images
    if paired.n_maps == max(images) or 2 * paired.n_maps < min(images):
        return None
    shared = (
        sums if sums.grid == new.grid else resample(sums, new.grid) for sums in (paired.new_sums, paired.old_sums)
    )
    return next(shared), next(shared)


def _is_event(rule: str) -> bool:
    """Whether its findings tell what happened in a night, and not what a run is like."""
    return rule.startswith(("BC2", "BC3"))


def _with_state(finding: Finding, known: Mapping[str, Finding]) -> Finding:
    if finding.key in known:
        return with_state(finding, "known")
    if finding.rule != "BC101" or finding.evidence.get("confirmed") is False:  # the model does not go by it
        return finding
    return dataclasses.replace(finding, severity="error")


def _calm(finding: Finding, nights: Sequence[Mapping[str, Any]]) -> Finding:
    values = [value for night in nights if (value := _measured(finding, night)) is not None]
    if len(values) < LEAST_NIGHTS:
        return finding
    low, high = control_limits(values)
    # The deviations of few nights may be tiny: what is a tenth of the threshold away is the same value.
    reach = 0.1 * abs(finding.threshold)
    if not low - reach <= finding.value <= high + reach:
        return finding
    words = f"{finding.message}; as on {len(values)} earlier nights ({low:.3g} to {high:.3g})"
    evidence = {**finding.evidence, "usual": [low, high], "nights": len(values)}
    return dataclasses.replace(finding, severity="info", message=words, evidence=evidence)


_OF_CLASSES = {"BC201": "moved", "BC202": "moved", "BC204": "change", "BC206": "distance"}
_OF_RUNS = {"BC205": "variation"}


def _measured(finding: Finding, night: Mapping[str, Any]) -> float | None:
    """What another night measured where this finding has its value."""
    index = finding.scope.index
    name = (_OF_RUNS if index is None else _OF_CLASSES).get(finding.rule)
    if name is None:
        return None
    steps = [name, finding.evidence.get("statistic"), index]
    found: Any = night
    for step in ("measurements", finding.rule, *(str(step) for step in steps if step is not None)):
        found = found.get(step) if isinstance(found, Mapping) else None
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        return float(found) if math.isfinite(found) else None
    except OverflowError:  # JSON has integers of any size
        return None
