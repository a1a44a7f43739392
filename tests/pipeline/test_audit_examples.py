"""Which images a finding is about, in what order they are shown, and that this does not depend on how they came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.audit.examples import Gathered, Pool, find_suspects, gather_examples, select
from pipeline.audit.findings import DATASET, Finding, Scope
from pipeline.audit.settings import Settings
from pipeline.audit.suspects import find_suspects_among, look_for_suspects, sure_from
from pipeline.observations import Observations
from pipeline.sums import Sums
from tests.audits import Looks, make_observations

LAST = 48


def finding(rule: str, scope: Scope, value: float = 1.0, **more: Any) -> Finding:
    return Finding(rule, "warning", scope, value, 1.0, 1, "", "", "", **more)


def some(seed: int = 0) -> Observations:
    framed = {"border_energy": 0.9}
    return make_observations(
        Looks(cell=LAST, share=0.5, accuracy=0.8), Looks(empty=0.2, scalars=framed), Looks(), seed=seed
    )


def chosen(one: Finding, observations: Observations) -> set[int]:
    mask, scores = select(one, observations, {})
    assert scores.shape == (len(observations),)
    assert np.isfinite(scores).all()
    return set(np.flatnonzero(mask))


def where(condition: np.ndarray) -> set[int]:
    return set(np.flatnonzero(condition))


CLASS0, CLASS1 = Scope(0, "a", "predicted"), Scope(1, "b", "predicted")
CORNER = {"region": (6 / 7, 6 / 7, 1.0, 1.0), "place": "bottom-right corner"}


def test_a_shortcut_is_about_the_images_of_its_class_that_peak_there_those_with_most_energy_first() -> None:
    images = some()
    mask, scores = select(finding("BC101", CLASS0, **CORNER), images, {})
    assert where(mask) == where((images.predicted == 0) & (images.peak == LAST))
    np.testing.assert_allclose(scores, images.maps[:, 6, 6])


def test_findings_of_scalars_show_the_largest_or_the_smallest_first() -> None:
    images = some()
    images.scalars["energy_in_box"][:] = np.linspace(0, 1, len(images))
    images.scalars["energy_in_box"][3] = np.nan
    mask, scores = select(finding("BC102", CLASS1), images, {})
    assert where(mask) == where(images.predicted == 1)
    np.testing.assert_array_equal(scores, images.scalars["border_energy"])
    mask, scores = select(finding("BC108", DATASET), images, {})
    assert where(~mask) == {3}
    assert scores[0] > scores[-1]


@pytest.mark.parametrize(("before", "now", "sign"), [(0.1, 0.3, 1), (0.3, 0.1, -1)])
def test_a_drift_is_shown_by_the_images_on_the_side_it_went_to(before: float, now: float, sign: int) -> None:
    images = some()
    drift = finding("BC206", CLASS0, evidence={"statistic": "gini", "before": before, "now": now})
    mask, scores = select(drift, images, {})
    assert where(mask) == where(images.predicted == 0)
    np.testing.assert_allclose(scores, sign * images.scalars["gini"])


def test_empty_maps_are_those_of_the_class_without_a_peak() -> None:
    images = some()
    assert chosen(finding("BC105", CLASS1), images) == where((images.predicted == 1) & (images.peak < 0)) != set()


def test_shared_evidence_is_shown_by_images_of_either_class_that_are_taken_for_the_other() -> None:
    images = some()
    wrong = ((images.label == 0) & (images.predicted == 1)) | ((images.label == 1) & (images.predicted == 0))
    assert chosen(finding("BC104", Scope(0, "a", "predicted", 1, "b")), images) == where(wrong) != set()


@pytest.mark.parametrize(("difference", "right"), [(0.3, True), (-0.3, False)])
def test_place_dependent_accuracy_is_shown_by_the_images_that_make_it(difference: float, right: bool) -> None:
    images = some()
    one = finding("BC109", Scope(0, "a", "label"), difference, **CORNER)
    expected = (images.label == 0) & (images.peak == LAST) & ((images.predicted == 0) == right)
    assert chosen(one, images) == where(expected) != set()


def test_a_cluster_is_the_images_with_enough_energy_in_the_cell() -> None:
    images = some()
    expected = (images.predicted == 0) & (images.maps[:, 6, 6] >= 0.15)
    assert chosen(finding("BC110", CLASS0, **CORNER), images) == where(expected) != set()


def test_suspects_are_as_sure_as_those_that_are_right() -> None:
    images = make_observations(Looks(n=10, accuracy=0.5), Looks(n=10, accuracy=1.0))
    images.confidence[:] = 0.5
    wrong = np.flatnonzero((images.label == 0) & (images.predicted == 1))
    images.confidence[wrong[:2]] = 0.75, 0.74
    assert where(find_suspects(images, {1: 0.75})) == {wrong[0]}
    assert where(find_suspects(images, {0: 0.75})) == set()  # a class that nobody is right about has no threshold


def test_the_surest_of_contradicted_labels_are_told_and_counted() -> None:
    images = make_observations(Looks(n=50, accuracy=0.9, confidence_wrong=0.99), Looks(n=50, accuracy=1))
    sums = Sums.of(images)
    sure = sure_from(sums)
    for index in (0, 1):
        right = (images.predicted == index) & (images.label == index)
        assert sure[index] == pytest.approx(images.confidence[right].mean(), abs=1e-6)
    suspects = look_for_suspects(sums)
    assert suspects is not None
    (gathered,) = gather_examples([suspects], [images], sure, lambda rows: None)
    result = find_suspects_among(sums, Settings(), gathered)
    assert (result.findings[0].value, result.findings[0].n, result.n_tested) == (5, 100, 100)
    assert result.findings[0].key == suspects.key
    first = gathered.examples().worst[0]
    assert images.mistakenness[list(images.ids).index(first.id.encode())] == images.mistakenness.max()


def test_unsure_contradictions_are_no_finding_and_labels_that_are_not_there_are_not_looked_at() -> None:
    unsure = make_observations(Looks(n=50, accuracy=0.9, confidence_wrong=0.4), Looks(n=50, accuracy=1))
    sums = Sums.of(unsure)
    suspects = look_for_suspects(sums)
    assert suspects is not None
    (gathered,) = gather_examples([suspects], [unsure], sure_from(sums), lambda rows: None)
    assert find_suspects_among(sums, Settings(), gathered).findings == ()
    right = Sums.of(make_observations(Looks(accuracy=1), Looks(accuracy=1)))
    assert look_for_suspects(right) is None
    assert find_suspects_among(right, Settings(), None).ran
    nobody = Sums.of(make_observations(Looks(labelled=False)))
    assert not find_suspects_among(nobody, Settings(), None).ran


def gather(parts: list[Observations]) -> tuple[Gathered, Pool, list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    pool = Pool()
    (gathered,) = gather_examples([finding("BC102", CLASS0)], parts, {}, rows.extend, pool)
    return gathered, pool, rows


def test_examples_do_not_depend_on_the_order_of_shards() -> None:
    parts = [some(seed) for seed in range(4)]
    (first, pool, rows), (second, other_pool, other_rows) = gather(parts), gather(parts[::-1])
    assert first.examples() == second.examples()
    assert first.sample() == second.sample()
    assert pool.others(0) == other_pool.others(0)
    assert first.n == len(rows) == len(other_rows)


def test_examples_are_the_worst_six_and_six_others_by_hash() -> None:
    parts = [some(seed) for seed in range(4)]
    rng = np.random.default_rng(0)
    for part in parts:
        part.scalars["border_energy"][:] = rng.random(len(part))
    gathered, _, rows = gather(parts)
    ranked = sorted(rows, key=lambda row: -row["score"])
    examples = gathered.examples()
    assert [example.id for example in examples.worst] == [row["id"] for row in ranked[:6]]
    assert len(examples.random) == 6
    assert not {e.id for e in examples.worst} & {e.id for e in examples.random}
    assert {e.id for e in examples.random} <= {row["id"] for row in rows}
    assert len(gathered.sample()) == 64


def test_the_pool_has_images_of_other_classes() -> None:
    parts = [some(seed) for seed in range(4)]
    _, pool, _ = gather(parts)
    predicted = {uri: int(index) for part in parts for uri, index in zip(part.uris, part.predicted, strict=True)}
    others = pool.others(0)
    assert len(pool.images) == 600
    assert len(others) > 300
    assert all(predicted[example.uri] != 0 for example in others)


def test_a_finding_with_few_images_shows_each_once() -> None:
    images = make_observations(Looks(n=4, accuracy=1), Looks(n=4, accuracy=1))
    gathered, _, _ = gather([images])
    examples = gathered.examples()
    assert (len(examples.worst), len(examples.random)) == (4, 0)
