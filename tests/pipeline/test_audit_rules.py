"""BC101 to BC110 on made-up classes: each rule has one that it finds, and one that it just does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.audit.classes import mean_of, median_of
from pipeline.audit.findings import Finding, RuleResult
from pipeline.audit.rules import RULES
from pipeline.audit.settings import Settings, parse_settings
from pipeline.sums import EDGES, Sums
from tests.audits import Looks, make_observations, make_sums
from tests.oracle.shortcuts import largest_lifts

NAMES = ["ant", "bee", "cat", "dog", "elk", "fox"]
LAST = 48  # the bottom-right one of 7 x 7 cells


def apply(rule: str, sums: Sums, **thresholds: float) -> RuleResult:
    return RULES[rule](sums, parse_settings({rule: thresholds}), NAMES)


def only(result: RuleResult) -> Finding:
    (finding,) = result.findings
    return finding


def clean(count: int = 5, **changes: Any) -> list[Looks]:
    return [Looks(**{"accuracy": 1.0, **changes}) for _ in range(count)]


# BC101


@pytest.mark.parametrize(("n_classes", "seed"), [(2, 0), (3, 3), (6, 1), (25, 2)])
def test_a_lift_is_what_loops_over_regions_find(n_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    looks = [Looks(n=int(rng.integers(20, 90)), cell=int(rng.integers(49)), share=float(rng.random() / 2),
                   scatter=0.3, accuracy=1.0, empty=0.1) for _ in range(n_classes)]  # fmt: skip
    sums = make_sums(*looks, seed=seed)
    classes = sums.by_predicted
    expected = largest_lifts(classes.peaks.tolist(), (classes.n - classes.n_empty).tolist(), 7, 7)
    measured = apply("BC101", sums).measurements["lift"]
    np.testing.assert_allclose(list(measured.values()), expected, rtol=1e-9)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_class_that_is_marked_in_a_corner_is_found_and_no_other(share: float) -> None:
    finding = only(apply("BC101", make_sums(*clean(), Looks(cell=LAST, share=share, accuracy=1))))
    assert (finding.scope.index, finding.scope.name, finding.severity) == (5, "fox", "warning")
    assert finding.place == "bottom-right corner"
    assert finding.region == (6 / 7, 6 / 7, 1, 1)
    assert finding.ci is not None
    assert finding.ci[0] < share < finding.ci[1] + 1e-9


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_marked_class_of_few_is_found(n_classes: int) -> None:
    finding = only(apply("BC101", make_sums(*clean(n_classes - 1), Looks(cell=LAST, share=0.5, accuracy=1))))
    assert finding.scope.index == n_classes - 1


def test_classes_that_all_look_into_the_same_corner_are_not_found() -> None:
    assert apply("BC101", make_sums(*[Looks(cell=LAST, share=0.5)] * 6)).findings == ()


def test_seven_marked_images_are_too_few_and_eight_are_found() -> None:
    few, enough = (make_sums(*clean(), Looks(n=k + 92, cell=LAST, share=k / (k + 92), accuracy=1)) for k in (7, 8))
    assert apply("BC101", few).findings == ()
    assert only(apply("BC101", enough)).evidence["peaks_inside"] == 8


def test_a_marked_share_below_five_percent_is_not_found() -> None:
    few, enough = (make_sums(*clean(), Looks(n=400, cell=LAST, share=k / 400, accuracy=1)) for k in (19, 20))
    assert apply("BC101", few).findings == ()
    assert only(apply("BC101", enough)).evidence["peaks_inside"] == 20


def test_the_threshold_is_the_one_that_is_set() -> None:
    sums = make_sums(*clean(), Looks(cell=LAST, share=0.5))
    value = only(apply("BC101", sums)).value
    assert len(apply("BC101", sums, lift=value).findings) == 1
    assert apply("BC101", sums, lift=value * 1.001).findings == ()


def test_of_a_mark_that_spreads_over_cells_all_are_told_on_a_fine_grid() -> None:
    looks = [Looks(cell=cell, share=0.5, accuracy=1, n=80) for cell in (195, 194)]
    parts = [make_observations(*clean(), one, grid=(14, 14), seed=i) for i, one in enumerate(looks)]
    finding = only(apply("BC101", Sums.merge([Sums.of(part) for part in parts])))
    assert finding.region == (12 / 14, 12 / 14, 1, 1)
    assert finding.evidence["peaks_inside"] == 80


def test_clean_classes_are_not_found_whatever_the_seed() -> None:
    found = [apply("BC101", make_sums(*clean(6, n=80), seed=seed)).findings for seed in range(20)]
    assert found == [()] * 20


def test_empty_maps_count_neither_for_nor_against_a_shortcut() -> None:
    full = only(apply("BC101", make_sums(*clean(), Looks(cell=LAST, share=0.5, accuracy=1))))
    half = only(apply("BC101", make_sums(*clean(), Looks(n=200, cell=LAST, share=0.5, accuracy=1, empty=0.5))))
    assert full.n == 100
    assert half.n == 100


def test_the_accuracy_inside_and_outside_is_that_of_the_label() -> None:
    looks = Looks(cell=LAST, share=0.5, accuracy_inside=1.0, accuracy=0.4, taken_for=0)
    evidence = only(apply("BC101", make_sums(*clean(), looks))).evidence
    assert (evidence["accuracy_inside"], evidence["accuracy_outside"]) == (1.0, 0.4)


def test_one_class_alone_is_not_compared_with_itself() -> None:
    result = apply("BC101", make_sums(Looks(accuracy=1)))
    assert not result.ran
    assert "one class alone" in str(result.reason)


# BC102


def test_much_energy_on_the_frame_is_found_in_the_class_and_little_more_in_all() -> None:
    framed, not_quite = ({"border_energy": value} for value in (0.74, 0.71))
    found = apply("BC102", make_sums(*clean(), Looks(accuracy=1, scalars=framed)))
    assert only(found).scope.index == 5
    assert only(found).value == pytest.approx(0.74 / 0.36, rel=0.01)
    assert apply("BC102", make_sums(*clean(), Looks(accuracy=1, scalars=not_quite))).findings == ()


def test_energy_on_the_frame_of_all_images_is_one_finding_of_the_data_set() -> None:
    framed, not_quite = ({"border_energy": value} for value in (0.48, 0.46))
    finding = only(apply("BC102", make_sums(*clean(scalars=framed))))
    assert (finding.scope.index, finding.severity) == (None, "info")
    assert apply("BC102", make_sums(*clean(scalars=not_quite))).findings == ()


# BC104


def pair(confused: float, correlation: float) -> Sums:
    looks = [Looks(accuracy=1 - confused, taken_for=other, scalars={"top2_cc": correlation}) for other in (1, 0)]
    return make_sums(*looks, *clean(3))


def test_two_classes_that_are_confused_and_look_alike_share_their_evidence() -> None:
    finding = only(apply("BC104", pair(0.05, 0.95)))
    assert (finding.scope.index, finding.scope.other, finding.value) == (0, 1, 0.05)
    assert str(finding.scope) == "ant / bee"


@pytest.mark.parametrize(("confused", "correlation"), [(0.04, 0.95), (0.05, 0.85)])
def test_two_classes_that_are_seldom_confused_or_look_different_do_not(confused: float, correlation: float) -> None:
    assert apply("BC104", pair(confused, correlation)).findings == ()


def test_without_labels_or_second_maps_shared_evidence_is_not_looked_for() -> None:
    unlabelled = apply("BC104", make_sums(*clean(labelled=False)))
    alone = apply("BC104", make_sums(*clean(scalars={"top2_cc": np.nan})))
    assert (unlabelled.ran, alone.ran) == (False, False)
    assert "label" in str(unlabelled.reason)
    assert "top:2" in str(alone.reason)


# BC105


def test_a_class_with_empty_maps_is_found_from_five_percent() -> None:
    found, not_quite = (make_sums(*clean(), Looks(accuracy=1, empty=share)) for share in (0.05, 0.04))
    finding = only(apply("BC105", found))
    assert (finding.scope.index, finding.value, finding.n) == (5, 0.05, 100)
    assert apply("BC105", not_quite).findings == ()


def test_two_empty_maps_of_a_small_class_are_not_told() -> None:
    assert apply("BC105", make_sums(*clean(), Looks(n=20, accuracy=1, empty=0.1))).findings == ()


# BC106


def test_a_class_with_diffuse_maps_is_found_beside_others() -> None:
    found, not_quite = (make_sums(*clean(), Looks(accuracy=1, scalars={"eff_area": area})) for area in (0.64, 0.58))
    finding = only(apply("BC106", found))
    assert finding.scope.index == 5
    assert finding.value == pytest.approx(0.64, abs=1 / 64)
    assert apply("BC106", not_quite).findings == ()


def test_where_all_maps_are_diffuse_no_class_is() -> None:
    assert apply("BC106", make_sums(*clean(6, scalars={"eff_area": 0.7}))).findings == ()


def test_four_classes_are_too_few_to_call_one_diffuse() -> None:
    result = apply("BC106", make_sums(*clean(3), Looks(scalars={"eff_area": 0.9})))
    assert not result.ran


# BC107


def test_a_class_whose_maps_are_in_pieces_is_found() -> None:
    found, not_quite = (make_sums(*clean(), Looks(accuracy=1, scalars={"components50": pieces})) for pieces in (3, 2))
    assert only(apply("BC107", found)).scope.index == 5
    assert apply("BC107", not_quite).findings == ()


def test_where_all_maps_are_in_pieces_it_is_told_once() -> None:
    assert only(apply("BC107", make_sums(*clean(6, scalars={"components50": 4})))).scope.index is None


# BC108


def test_maps_off_the_boxes_are_found() -> None:
    found, not_quite = (
        make_sums(*clean(), Looks(scalars={"energy_in_box": energy, "box_area": 0.3}, accuracy=1))
        for energy in (0.3, 0.34)
    )
    finding = only(apply("BC108", found))
    assert (finding.scope.index, finding.value) == (5, 1.0)
    assert apply("BC108", not_quite).findings == ()


@pytest.mark.parametrize(("energy", "area"), [(0.03, 0.003), (0.02, 0.03), (0.99, 0.99)])
def test_boxes_that_are_too_small_or_the_whole_image_are_not_judged(energy: float, area: float) -> None:
    sums = make_sums(*clean(), Looks(scalars={"energy_in_box": energy, "box_area": area}, accuracy=1))
    assert apply("BC108", sums).findings == ()


def test_without_boxes_nothing_is_off_them() -> None:
    assert "boxes" in str(apply("BC108", make_sums(*clean())).reason)


# BC109


def dependent(inside: float, n: int = 200) -> Sums:
    looks = Looks(n=n, cell=LAST, share=0.5, accuracy_inside=inside, accuracy=0.6, taken_for=0)
    return make_sums(*clean(), looks)


def test_accuracy_that_depends_on_the_place_is_found() -> None:
    finding = only(apply("BC109", dependent(0.9)))
    assert (finding.scope.index, finding.scope.by) == (5, "label")
    assert finding.place is not None
    assert finding.value == pytest.approx(0.3, abs=0.03)


def test_a_small_difference_of_accuracy_is_not_told() -> None:
    assert apply("BC109", dependent(0.7)).findings == ()


def test_of_few_images_no_accuracy_is_told() -> None:
    assert apply("BC109", dependent(0.9, n=58)).findings == ()  # 29 of them inside


def test_a_large_difference_of_few_images_may_be_chance() -> None:
    assert apply("BC109", dependent(0.8, n=62)).findings == ()
    assert len(apply("BC109", dependent(0.8, n=62), q=1.0).findings) == 1


# BC110


def test_energy_in_one_cell_is_found_where_peaks_lie_elsewhere() -> None:
    found, not_quite = (
        make_sums(*clean(), Looks(cell=LAST, share=share, energy=0.16, accuracy=1)) for share in (0.1, 0.07)
    )
    assert apply("BC101", found).findings == ()
    finding = only(apply("BC110", found))
    assert (finding.scope.index, finding.place) == (5, "bottom-right corner")
    assert apply("BC110", not_quite).findings == ()


def test_a_class_with_a_shortcut_is_not_told_again_as_a_cluster() -> None:
    sums = make_sums(*clean(), Looks(cell=LAST, share=0.5))
    assert len(apply("BC101", sums).findings) == 1
    assert apply("BC110", sums).findings == ()


# all of them


@pytest.mark.parametrize("rule", RULES)
def test_a_run_without_images_is_judged_by_no_rule(rule: str) -> None:
    result = apply(rule, Sums.empty("gradcam"))
    assert (result.ran, result.findings) == (False, ())
    assert result.reason


@pytest.mark.parametrize("rule", RULES)
def test_a_class_without_name_is_told_by_its_number(rule: str) -> None:
    sums = make_sums(*clean(5, labelled=False), Looks(cell=LAST, share=0.6, empty=0.1, labelled=False))
    for finding in RULES[rule](sums, Settings(), None).findings:
        assert finding.scope.name == f"class {finding.scope.index}"


@pytest.mark.parametrize("order", [lambda parts: parts, lambda parts: parts[::-1]], ids=["forwards", "backwards"])
def test_findings_do_not_depend_on_how_sums_came_together(order: Callable[[list[Sums]], list[Sums]]) -> None:
    looks = [*clean(), Looks(cell=LAST, share=0.3, empty=0.1)]
    parts = [Sums.of(make_observations(*looks, seed=seed)) for seed in range(3)]
    once = Sums.merge(parts)
    for rule in RULES:
        assert apply(rule, Sums.merge(order(parts))).findings == apply(rule, once).findings


def test_a_mean_of_a_histogram_is_that_of_its_bins_middles() -> None:
    counts = np.zeros(32, np.int64)
    counts[[0, 31]] = 1, 3
    assert mean_of("gini", counts) == pytest.approx((1 / 64 + 3 * 63 / 64) / 4)
    assert np.isnan(mean_of("gini", np.zeros(32, np.int64)))


@pytest.mark.parametrize("seed", range(3))
def test_a_median_of_a_histogram_is_within_a_bin_of_the_values(seed: int) -> None:
    values = np.random.default_rng(seed).beta(2, 5, 400)
    counts = np.histogram(values, EDGES["eff_area"])[0]
    assert median_of("eff_area", counts) == pytest.approx(np.median(values), abs=1 / 32)


def test_a_switch_of_classes_without_images_changes_nothing() -> None:
    sums = make_sums(*clean(), Looks(cell=LAST, share=0.5))
    dense = replace(sums, by_predicted=sums.by_predicted.dense(6), by_label=sums.by_label.dense(6))
    assert apply("BC101", dense).findings == apply("BC101", sums).findings
