"""What a comparison with an earlier run finds, what it just does not, and what it says where it cannot compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pipeline.audit.comparability import Facts, judge
from pipeline.audit.comparison import Context, calm_by_history, compare, with_states
from pipeline.audit.findings import DATASET, Finding, RuleResult, Scope
from pipeline.audit.pairing import Paired
from pipeline.audit.settings import THRESHOLDS, Settings
from pipeline.sums import Sums
from tests.audits import Looks, make_sums
from tests.benchmarks.false_alarms import Population, count_alarms, find_share

SAME = Facts("/nights/1", 0, 1, "a" * 64, ("ant", "bee", "cat", "dog"), "gradcam", "relu", resize="stretch")
RETRAINED = dataclasses.replace(SAME, model_digest="b" * 64)

PLAIN = (Looks(n=400), Looks(n=400), Looks(n=400), Looks(n=400))


def change(first: Looks, **others: Any) -> tuple[Looks, ...]:
    """Classes of which the first is changed."""
    return first, *(dataclasses.replace(looks, **others) for looks in PLAIN[1:])


def results_of(
    new: Sums, old: Sums | None, facts: Facts = SAME, settings: Settings | None = None, paired: Paired | None = None
) -> dict[str, RuleResult]:
    context = Context(SAME.class_names, settings or Settings(), facts, SAME if old else None, paired)
    return {result.rule: result for result in compare(new, old, context)}


def findings_of(*args: Any, **options: Any) -> list[Finding]:
    return [finding for result in results_of(*args, **options).values() for finding in result.findings]


def with_limit(rule: str, name: str, value: float) -> Settings:
    return Settings({**THRESHOLDS, rule: {**THRESHOLDS[rule], name: value}})


@pytest.fixture(scope="module")
def plain() -> Sums:
    return make_sums(*PLAIN, seed=1)


def test_a_run_compared_with_itself_gives_no_finding_and_measures_all_the_same(plain: Sums) -> None:
    results = results_of(plain, plain, paired=Paired(n_shared=1600, n_same=1600, correlations=np.ones(1600)))
    assert list(results) == ["BC201", "BC202", "BC203", "BC204", "BC205", "BC206", "BC301", "BC302", "BC303"]
    assert all(result.ran and not result.findings for result in results.values())
    assert {rule: result.n_tested for rule, result in results.items()} == {
        "BC201": 4, "BC202": 4, "BC203": 1600, "BC204": 4, "BC205": 4, "BC206": 4, "BC301": 1600, "BC302": 1, "BC303": 4
    }  # fmt: skip
    assert results["BC201"].measurements["moved"].keys() == {"0", "1", "2", "3"}
    assert set(results["BC204"].measurements["change"].values()) == {0.0}


def test_other_images_of_the_same_kind_give_no_finding(plain: Sums) -> None:
    for facts in (SAME, RETRAINED):
        assert findings_of(make_sums(*PLAIN, seed=2), plain, facts) == []


def test_a_first_night_has_no_baseline_and_is_only_asked_whether_it_is_whole(plain: Sums) -> None:
    results = results_of(plain, None)
    assert [rule for rule, result in results.items() if result.ran] == ["BC301"]
    assert results["BC201"].reason == "there is no baseline yet"


CHANGES: dict[str, tuple[tuple[Looks, ...], str, Mapping[str, Any]]] = {
    # rule: classes of the new night, the threshold that the value is held against, what the finding says
    "BC201": (change(Looks(n=400, cell=48, share=0.5)), "moved", {"place": "bottom-right corner"}),
    "BC202": (change(Looks(n=400, cell=48, share=0.5)), "moved", {"place": "bottom-right corner"}),
    "BC204": (change(Looks(n=400, accuracy=0.7)), "difference", {"severity": "warning"}),
    "BC205": (change(Looks(n=1000)), "variation", {"severity": "warning"}),
    "BC206": (change(Looks(n=400, scalars={"gini": 0.8})), "distance", {"severity": "info"}),
}


@pytest.mark.parametrize("rule", CHANGES)
def test_each_rule_finds_its_change_and_just_does_not_below_its_threshold(rule: str, plain: Sums) -> None:
    classes, name, said = CHANGES[rule]
    new = make_sums(*classes, seed=2)
    found = [f for f in findings_of(new, plain, RETRAINED) if f.rule == rule]
    first = found[0]
    assert first.scope.index in (0, None)
    assert said.items() <= vars(first).items()
    assert first.threshold == THRESHOLDS[rule][name] <= abs(first.value)
    for limit, there in ((abs(first.value) * (1 - 1e-9), True), (abs(first.value) * (1 + 1e-9), False)):
        again = findings_of(new, plain, RETRAINED, with_limit(rule, name, limit))
        assert (first.key in [f.key for f in again if f.rule == rule]) == there


@pytest.mark.parametrize("rule", ["BC201", "BC202", "BC204", "BC206"])
def test_classes_of_few_images_are_not_judged(rule: str, plain: Sums) -> None:
    new = make_sums(*CHANGES[rule][0], seed=2)
    result = results_of(new, plain, RETRAINED)[rule]
    finding = next(f for f in result.findings if f.scope.index == 0)
    sizes = plain.by_label if rule == "BC204" else plain.by_predicted
    smaller = min(finding.n, int(sizes.n[0]))
    for least, there in ((smaller, True), (smaller + 1, False)):
        found = findings_of(new, plain, RETRAINED, with_limit(rule, "least_images", least))
        assert (finding.key in [f.key for f in found]) == there


@pytest.mark.parametrize("rule", CHANGES)
def test_what_chance_may_do_is_not_told(rule: str, plain: Sums) -> None:
    """With q at 0 nothing is ever certain enough: every one of these rules asks for it."""
    new = make_sums(*CHANGES[rule][0], seed=2)
    assert rule not in [f.rule for f in findings_of(new, plain, RETRAINED, with_limit(rule, "q", 0.0))]


@pytest.mark.parametrize(("rule", "share"), [("BC201", 0.1), ("BC202", 0.12)])
def test_a_retrained_model_may_move_more_than_the_same_one(rule: str, share: float, plain: Sums) -> None:
    new = make_sums(*change(Looks(n=400, cell=48, share=share)), seed=2)
    same, retrained = (results_of(new, plain, facts)[rule] for facts in (SAME, RETRAINED))
    value = same.measurements["moved"]["0"]
    assert THRESHOLDS[rule]["moved_same_model"] < value < THRESHOLDS[rule]["moved"]
    # More of the attention lies in the middle, as before; what is told is where it has grown.
    assert [(finding.scope.index, finding.place) for finding in same.findings] == [(0, "bottom-right corner")]
    assert [finding.scope.index for finding in retrained.findings] == []


@pytest.mark.parametrize(("rule", "share"), [("BC201", 0.9), ("BC202", 0.9)])
def test_attention_that_moved_far_is_an_error(rule: str, share: float, plain: Sums) -> None:
    new = make_sums(*change(Looks(n=400, cell=48, share=share)), seed=2)
    finding = next(f for f in findings_of(new, plain, RETRAINED) if f.rule == rule)
    assert (finding.severity, finding.scope.name) == ("error", "ant")
    assert finding.value >= THRESHOLDS[rule]["moved_error"]
    limit = with_limit(rule, "moved_error", finding.value * 1.001)
    assert [f.severity for f in findings_of(new, plain, RETRAINED, limit) if f.rule == rule][:1] == ["warning"]


def test_moved_attention_is_told_in_shares_of_the_cell_that_gained_most(plain: Sums) -> None:
    new = make_sums(*change(Looks(n=400, cell=48, share=0.5)), seed=2)
    finding = next(f for f in findings_of(new, plain) if f.rule == "BC201")
    row = new.by_predicted.row(0)
    peaks = new.by_predicted.peaks[row].ravel()
    assert finding.n == peaks.sum()
    assert finding.evidence["share_now"] == peaks[48] / peaks.sum()
    assert finding.region == (6 / 7, 6 / 7, 1.0, 1.0)
    assert finding.ci[0] < peaks[48] / peaks.sum() < finding.ci[1]
    assert finding.message.startswith("ant: 0% of the maps peaked in one place (bottom-right corner) and ")


def test_better_accuracy_is_news_and_no_alarm(plain: Sums) -> None:
    better = make_sums(*change(Looks(n=400, accuracy=1.0)), seed=2)
    finding = next(f for f in findings_of(better, plain, RETRAINED) if f.rule == "BC204")
    assert (finding.severity, finding.value) == ("info", pytest.approx(0.1))
    assert finding.message == "ant: 90.0% of the images were predicted right and 100.0% are now (400 and 400 images)"
    assert finding.ci[0] < 0.1 < finding.ci[1]


def test_a_changed_mix_names_the_class_and_says_whether_its_labels_moved(plain: Sums) -> None:
    new = make_sums(*change(Looks(n=1000)), seed=2)
    finding = next(f for f in findings_of(new, plain, RETRAINED) if f.rule == "BC205")
    assert finding.scope == DATASET
    # 900 of its 1000 images are predicted right, and 40 of another class are taken for it
    assert finding.message == (
        "ant: 25.0% of the predictions before, 42.7% now (of the labels 25.0% and 45.5%); and 2 more classes"
    )
    assert [change["now"] for change in finding.evidence["changes"]] == [940 / 2200, 400 / 2200, 400 / 2200]
    shares = np.array([940, 460, 400, 400]) / 2200
    assert results_of(new, plain)["BC205"].measurements["total_variation"] == np.abs(shares - 0.25).sum() / 2


def test_a_thousand_classes_are_mixed_otherwise_by_chance_alone() -> None:
    population = Population(300, 3_000)
    rng = np.random.default_rng(0)
    result = results_of(population.draw(rng), population.draw(rng))["BC205"]
    assert result.measurements["total_variation"] > 3 * THRESHOLDS["BC205"]["variation"]
    assert abs(result.measurements["variation"]) < 0.02
    assert not result.findings


def test_less_confidence_and_more_empty_maps_are_told_of_all_images(plain: Sums) -> None:
    unsure = make_sums(*[dataclasses.replace(looks, confidence=0.7) for looks in PLAIN], seed=2)
    finding = next(f for f in findings_of(unsure, plain) if f.rule == "BC206" and f.scope == DATASET)
    assert finding.message == "all images: the mean confidence was 0.800 and is 0.700"
    assert (finding.value, finding.threshold) == (pytest.approx(-0.1, abs=0.002), 0.02)
    empty = make_sums(*[dataclasses.replace(looks, empty=0.04) for looks in PLAIN], seed=2)
    found = [f.message for f in findings_of(empty, plain) if f.rule == "BC206"]
    assert found == ["all images: 0.0% of the maps were empty and 4.0% are"]


@pytest.mark.parametrize(
    ("before", "now", "there"),
    [
        (0.03, 0.04, False),  # may be chance
        (0.035, 0.065, True),  # above a twentieth by now
        (0.065, 0.10, False),  # neither that nor twice as many, though it is no chance
        (0.065, 0.13, True),
        (0.13, 0.065, False),  # fewer
    ],
)
def test_empty_maps_are_told_if_they_doubled_or_are_above_a_twentieth_by_now(
    before: float, now: float, there: bool
) -> None:
    old, new = (make_sums(*[dataclasses.replace(looks, empty=e) for looks in PLAIN], seed=2) for e in (before, now))
    assert bool([f for f in findings_of(new, old) if f.rule == "BC206"]) == there


def test_one_finding_of_a_class_tells_all_of_its_drifted_statistics(plain: Sums) -> None:
    new = make_sums(*change(Looks(n=400, scalars={"gini": 0.8, "spread": 0.6})), seed=2)
    finding = next(f for f in findings_of(new, plain) if f.rule == "BC206")
    assert finding.evidence["distances"].keys() == {"gini", "spread"}
    assert finding.message.startswith("ant: ")
    assert "; so did " in finding.message


def test_a_class_that_went_or_came_is_told_by_name(plain: Sums) -> None:
    three = make_sums(*PLAIN[:3], seed=2)
    went, came = ([f for f in findings_of(*pair) if f.rule == "BC303"] for pair in ((three, plain), (plain, three)))
    assert [(f.message, f.severity, f.n) for f in went] == [("dog: had 400 images and has none", "warning", 400)]
    assert [(f.message, f.severity, f.n) for f in came] == [("dog: had no images and has 400", "warning", 400)]


def test_a_rare_class_may_be_missing_by_chance(plain: Sums) -> None:
    rare = make_sums(*PLAIN, Looks(n=5), seed=2)  # of 1605 images: one night in 32 has none of them by chance
    assert [f for f in findings_of(plain, rare) if f.rule == "BC303"] == []
    assert results_of(plain, rare)["BC303"].measurements["missing"].tolist() == [4]
    more = make_sums(*PLAIN, Looks(n=20), seed=2)
    assert [f.scope.name for f in findings_of(plain, more) if f.rule == "BC303"] == ["class 4"]


def test_a_small_run_may_well_lack_a_class_that_a_large_one_has(plain: Sums) -> None:
    large, small = make_sums(*PLAIN, Looks(n=20), seed=2), make_sums(*[Looks(n=4)] * 4, seed=1)
    assert [f for f in findings_of(small, large) if f.rule == "BC303" and f.scope != DATASET] == []
    came = [f for f in findings_of(make_sums(*[Looks(n=4)] * 5, seed=1), plain) if f.rule == "BC303"]
    assert [f.scope.name for f in came if f.scope != DATASET] == ["class 4"], "four of twenty, and none of 1600 before"


def test_classes_too_small_to_compare_are_told_if_most_images_are_in_them() -> None:
    small = make_sums(*[Looks(n=49)] * 3, Looks(n=100), seed=1)
    finding = next(f for f in findings_of(small, small) if f.rule == "BC303")
    assert (finding.severity, finding.n) == ("info", 147)
    assert finding.message.startswith("3 of 4 classes, with 60% of the images, have fewer than 50 images")
    half = make_sums(*[Looks(n=49)] * 2, Looks(n=100), seed=1)
    assert findings_of(half, half) == []


NEITHER = "1 of 1610 images have neither record nor failure; 9 of 1610 images failed: decode:BrokenImage 9"


@pytest.mark.parametrize(
    ("failed", "inputs", "severity", "message"),
    [
        (0, 1600, None, ""),
        (8, 1608, None, ""),  # 0.4975 %
        (9, 1609, "warning", "9 of 1609 images failed: decode:BrokenImage 9"),  # 0.559 %
        (84, 1684, "warning", "84 of 1684 images failed: decode:BrokenImage 84"),  # 4.99 %
        (85, 1685, "error", "85 of 1685 images failed: decode:BrokenImage 85"),  # 5.04 %
        (0, 1610, "error", "10 of 1610 images have neither record nor failure"),
        (9, 1610, "error", NEITHER),
    ],
)  # fmt: skip
def test_a_run_that_is_not_whole_is_told_and_an_error_if_more_than_a_twentieth_failed(
    failed: int, inputs: int, severity: str | None, message: str
) -> None:
    sums = make_sums(*PLAIN, seed=1, n_failed=failed)
    found = findings_of(sums, None, dataclasses.replace(SAME, n_inputs=inputs))
    assert [(f.severity, f.message) for f in found] == ([(severity, message)] if severity else [])


@pytest.mark.parametrize(("n", "there"), [(480, False), (484, True), (320, False), (316, True)])
def test_a_fifth_more_or_fewer_images_are_told(n: int, there: bool, plain: Sums) -> None:
    new = make_sums(*[Looks(n=n)] * 4, seed=2)
    assert [f.message for f in findings_of(new, plain)] == ([f"1600 images before, {4 * n} now"] if there else [])


def test_twice_as_many_failures_are_told_if_it_is_not_chance(plain: Sums) -> None:
    large = [Looks(n=10_000)] * 2
    old, new, alike = (make_sums(*large, seed=seed, n_failed=failed) for seed, failed in ((1, 20), (2, 60), (3, 40)))
    assert [f.severity for f in findings_of(new, old) if f.rule == "BC301"] == ["warning"]
    assert [f for f in findings_of(alike, old) if f.rule == "BC301"] == [], "twice, and no more than twice"
    few, none = make_sums(*PLAIN, seed=2, n_failed=3), make_sums(*PLAIN, seed=1)
    assert [f for f in findings_of(few, none) if f.rule == "BC301"] == [], "three of 1600 after none may be chance"


def test_the_same_model_has_to_predict_the_same_images_alike(plain: Sums) -> None:
    same = Paired(n_shared=5_000, n_same=5_000, n_flipped=5, correlations=np.ones(5_000))
    assert findings_of(plain, plain, paired=same) == []
    worse = dataclasses.replace(same, n_flipped=6)
    finding = next(iter(findings_of(plain, plain, paired=worse)))
    assert (finding.rule, finding.severity, finding.value, finding.threshold) == ("BC203", "error", 0.0012, 0.001)
    assert finding.message == (
        "not reproducible: the same images by the same model, but 6 of 5000 are predicted as another class"
    )


@pytest.mark.parametrize(("share", "value", "there"), [(0.02, 0.8, True), (0.005, 0.8, False), (0.6, 0.985, True),
                                                       (0.6, 0.995, False), (0.02, 0.91, False)])  # fmt: skip
def test_the_same_model_has_to_have_the_same_maps(share: float, value: float, there: bool, plain: Sums) -> None:
    correlations = np.where(np.arange(1_000) < share * 1_000, value, 1.0)
    paired = Paired(n_shared=1_000, n_same=1_000, correlations=correlations)
    assert [f.rule for f in findings_of(plain, plain, paired=paired)] == (["BC203"] if there else [])
    assert findings_of(plain, plain, RETRAINED, paired=paired) == [], "maps of another model may differ in any way"


def test_flips_of_another_model_are_information_with_mcnemars_test(plain: Sums) -> None:
    paired = Paired(n_shared=1_000, n_same=1_000, n_flipped=40, n_labelled=1_000, n_worse=10, n_better=25)
    finding = next(iter(findings_of(plain, plain, RETRAINED, paired=paired)))
    assert (finding.rule, finding.severity) == ("BC203", "info")
    assert finding.message == (
        "by another model 40 of 1000 images are predicted as another class; accuracy +1.5%, 25 better and 10 worse "
        "(McNemar p = 0.017)"
    )


@pytest.mark.parametrize(
    ("changed", "how"),
    [
        ({"resize": "crop"}, "made otherwise (resize: stretch, now crop),"),
        ({"precision": "bfloat16", "layer": "conv", "versions": {"keras": "9"}},
         "made otherwise (precision: None, now bfloat16),"),
        ({"model_digest": "b" * 64, "resize": "crop"}, "by another model"),
    ],
)  # fmt: skip
def test_the_same_model_is_not_called_another_one(changed: dict[str, Any], how: str, plain: Sums) -> None:
    paired = Paired(n_shared=1_000, n_same=1_000, n_flipped=40)
    (finding,) = results_of(plain, plain, dataclasses.replace(SAME, **changed), paired=paired)["BC203"].findings
    assert finding.message == f"{how} 40 of 1000 images are predicted as another class"


def test_runs_that_share_no_image_are_not_compared_one_by_one(plain: Sums) -> None:
    assert results_of(plain, plain, paired=Paired())["BC203"].reason == "the runs share no image of the same content"


@pytest.mark.parametrize(
    ("changed", "layers", "same_predictions", "same_maps"),
    [
        ({}, set(), True, True),
        ({"model_digest": "b"}, set(), False, False),
        ({"model_digest": "b", "layer": "conv"}, set(), False, False),
        ({"model_digest": "b", "resize": "crop"}, {"attention"}, False, False),
        ({"layer": "conv"}, {"attention"}, True, False),
        ({"preprocess": "tf"}, {"attention"}, False, False),
        ({"precision": "bfloat16"}, set(), False, False),
        ({"targets": "label"}, {"attention"}, True, True),
        ({"targets": "top:3"}, set(), True, True),
        ({"versions": {"keras": "9"}}, set(), True, True),
        ({"class_names": ("ant", "bee", "cow", "dog")}, {"class", "paired", "attention"}, True, True),
        ({"class_names": None}, {"class", "paired", "attention"}, True, True),
    ],
)
def test_what_differs_decides_what_is_compared(
    changed: dict[str, Any], layers: set[str], same_predictions: bool, same_maps: bool, plain: Sums
) -> None:
    found = judge(dataclasses.replace(SAME, **changed), SAME, plain, plain)
    assert set(found.reasons) == layers
    assert (found.same_predictions, found.same_maps) == (same_predictions, same_maps)
    assert len(found.differences) == len(changed)


def test_layers_that_are_not_compared_say_why_and_the_others_are(plain: Sums) -> None:
    results = results_of(plain, plain, dataclasses.replace(SAME, resize="crop"))
    reason = "resize was stretch and is crop"
    assert {rule: result.reason for rule, result in results.items() if not result.ran} == {
        "BC201": reason, "BC202": reason, "BC203": "the images of both runs were not looked at one by one"
    }  # fmt: skip
    (finding,) = results["BC302"].findings
    assert (finding.severity, finding.message) == (
        "info", f"not everything was compared with the baseline: attention: {reason}"
    )  # fmt: skip


def test_classes_of_other_names_are_not_compared(plain: Sums) -> None:
    results = results_of(plain, plain, dataclasses.replace(SAME, class_names=("ant", "bee", "cow", "dog")))
    assert {rule for rule, result in results.items() if not result.ran} == {
        "BC201", "BC202", "BC203", "BC204", "BC205", "BC206", "BC303"
    }  # fmt: skip
    assert results["BC204"].reason == "class 2 was 'cat' and is 'cow'"


def test_another_methods_maps_are_not_compared_but_predictions_are(plain: Sums) -> None:
    results = results_of(make_sums(*change(Looks(n=400, accuracy=0.6)), seed=2, method="cam"), plain)
    assert results["BC201"].reason == "the maps are of gradcam and of cam"
    assert [f.scope.name for f in results["BC204"].findings] == ["ant"]


def test_maps_of_two_grids_are_compared_on_the_coarser(plain: Sums) -> None:
    fine = make_sums(*PLAIN, seed=1, grid=(14, 14))
    coarse = make_sums(*change(Looks(n=400, cell=48, share=0.9)), seed=1)
    results = results_of(coarse, fine, RETRAINED)
    assert [(f.scope.index, f.region) for f in results["BC201"].findings] == [(0, (6 / 7, 6 / 7, 1.0, 1.0))]
    assert results["BC302"].measurements["differences"][-1] == "maps are compared on 7x7 cells"


def test_two_models_are_compared_on_the_images_that_both_have_seen(plain: Sums) -> None:
    """The new input looks elsewhere and is harder; on the images that are in both runs the models agree."""
    extended = Sums.merge([make_sums(*PLAIN, seed=1), make_sums(*change(Looks(n=400, cell=48, share=1, accuracy=0.4)))])
    shared = Paired(n_shared=1600, n_same=1600, n_maps=1600, new_sums=plain, old_sums=plain)

    def found(facts: Facts, paired: Paired | None) -> set[str]:
        of_class = (f for f in findings_of(extended, plain, facts, paired=paired) if f.scope.index == 0)
        return {finding.rule for finding in of_class} & {"BC201", "BC202", "BC204"}

    assert found(RETRAINED, shared) == set()
    assert found(RETRAINED, None) == {"BC201", "BC202", "BC204"}
    assert found(SAME, dataclasses.replace(shared, correlations=np.ones(1600))) == {"BC201", "BC202", "BC204"}
    few = dataclasses.replace(shared, n_maps=799)
    assert found(RETRAINED, few) == {"BC201", "BC202", "BC204"}, "fewer than half are too few to speak for all"


def make_finding(rule: str = "BC101", index: int = 0, **values: Any) -> Finding:
    plain = {
        "severity": "warning",
        "value": 5.0,
        "threshold": 4.0,
        "n": 9,
        "message": "m",
        "action": "a",
        "formula": "f",
    }
    return Finding(rule, scope=Scope(index, f"class {index}", "predicted"), **{**plain, **values})


def test_findings_are_new_known_or_resolved_and_a_new_shortcut_is_an_error() -> None:
    before = [make_finding(index=0), make_finding(index=1), make_finding("BC107", 5), make_finding("BC102", 6)]
    now = [RuleResult("BC101", True, findings=(make_finding(index=1), make_finding(index=2))),
           RuleResult("BC102", True), RuleResult("BC107", False, reason="disabled"),
           RuleResult("BC105", True, findings=(make_finding("BC105", 3),))]  # fmt: skip
    found = [f for result in with_states(now, before) for f in result.findings]
    assert [(f.rule, f.scope.index, f.state, f.severity) for f in found] == [
        ("BC101", 1, "known", "warning"),
        ("BC101", 2, "new", "error"),
        ("BC101", 0, "resolved", "warning"),
        ("BC102", 6, "resolved", "warning"),
        ("BC105", 3, "new", "warning"),
    ]
    assert [f.severity for result in with_states(now, None) for f in result.findings] == ["warning"] * 3


def test_what_was_resolved_once_is_not_told_again() -> None:
    before = [make_finding(index=0, state="resolved")]
    assert with_states([RuleResult("BC101", True)], before)[0].findings == ()


@pytest.mark.parametrize(
    "rule", ["BC201", "BC202", "BC203", "BC204", "BC205", "BC206", "BC301", "BC302", "BC303", "BC304"]
)
def test_what_happened_in_a_night_is_new_every_night_and_never_resolved(rule: str) -> None:
    before = [make_finding(rule, 0), make_finding(rule, 1), make_finding("BC107", 0), make_finding("BC107", 1)]
    now = [RuleResult(rule, True, findings=(make_finding(rule, 0), make_finding(rule, 2))),
           RuleResult("BC107", True, findings=(make_finding("BC107", 0),))]  # fmt: skip
    of_night, lasting = with_states(now, before)
    assert of_night == now[0]
    assert [(f.scope.index, f.state) for f in lasting.findings] == [(0, "known"), (1, "resolved")]


def night(value: float, rule: str = "BC201") -> dict[str, Any]:
    return {"measurements": {rule: {"moved": {"0": value, "1": 0.9}}}}


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ([0.11, 0.12, 0.13, 0.12, 0.12], "info"),
        ([0.01, 0.02, 0.0, 0.01, 0.01], "warning"),
        ([0.12] * 4, "warning"),  # too few nights
        ([0.125] * 5, "info"),  # never varied, and within a tenth of the threshold
        ([0.14] * 5, "warning"),
    ],
)
def test_a_value_as_on_every_night_stops_alarming(values: list[float], severity: str) -> None:
    results = [RuleResult("BC201", True, findings=(make_finding("BC201", value=0.12, threshold=0.1),))]
    found = calm_by_history(results, [night(value) for value in values])[0].findings[0]
    assert found.severity == severity
    assert (f"as on {len(values)} earlier nights" in found.message) == (severity == "info")


def test_history_of_other_classes_rules_and_damaged_files_says_nothing() -> None:
    nights = [
        night(0.12, "BC202"),
        {},
        {"measurements": {"BC201": {"moved": {"0": None}}}},
        {"measurements": {"BC201": 3}},
        {"measurements": []},
        {"measurements": None},
        night(float("nan")),
        night(float("inf")),
        night(10**400),
        night(True),
    ]
    results = [RuleResult("BC201", True, findings=(make_finding("BC201", value=0.12, threshold=0.1),)),
               RuleResult("BC101", True, findings=(make_finding(),))]  # fmt: skip
    assert calm_by_history(results, nights * 5) == results


def test_measured_values_come_back_from_findings_json(plain: Sums) -> None:
    """What the rules measure is what history looks for: the names agree."""
    new = make_sums(Looks(n=1_000, cell=48, share=0.5, accuracy=0.6, scalars={"gini": 0.8}), *PLAIN[1:], seed=2)
    results = compare(new, plain, Context(facts=RETRAINED, baseline=SAME))
    measured = {"measurements": {result.rule: dict(result.measurements) for result in results}}
    calmed = calm_by_history(results, [measured] * 5)
    loud = {(f.rule, f.scope.index) for r in calmed for f in r.findings if f.severity != "info"}
    before = {(f.rule, f.scope.index) for r in results for f in r.findings if f.severity != "info"}
    assert {("BC201", 0), ("BC202", 0), ("BC204", 0), ("BC205", None)} <= before - loud


def test_nights_that_do_not_differ_give_no_finding() -> None:
    """The short form of the study in tests/benchmarks/false_alarms.py: pairs of nights, each with images of its own."""
    assert count_alarms(Population(10, 1_000), range(100, 120)) == {}
    assert count_alarms(Population(30, 2_400), range(100, 105)) == {}


def test_a_shortcut_in_a_fifth_of_a_class_is_found() -> None:
    base = Population(5, 1_000, empty=0.0)
    assert find_share(base, dataclasses.replace(base, marked=0.2), "BC201", range(3)) == 1
    assert find_share(base, base, "BC201", range(3)) == 0
