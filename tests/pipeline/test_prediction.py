"""How sure a model is of an image, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.prediction import Prediction, describe_prediction


def _softmax(logits: list[float]) -> np.ndarray:
    powers = np.exp(np.asarray(logits, np.float64) - max(logits))
    return (powers / powers.sum()).astype(np.float32)


def _describe(logits: list[float], probabilities: object = None) -> Prediction:
    given = _softmax(logits) if probabilities is None else np.asarray(probabilities, np.float32)
    return describe_prediction(np.asarray(logits, np.float32), given)


def test_the_two_best_classes_have_their_own_probabilities() -> None:
    found = _describe([math.log(1), math.log(6), math.log(3)])
    assert (found.predicted, found.runner_up) == (1, 2)
    assert (found.confidence, found.runner_up_confidence) == pytest.approx((0.6, 0.3))
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.6, 0.3)))


def test_of_equal_logits_the_first_classes_are_the_best() -> None:
    found = _describe([0.0, 2.0, 2.0, 2.0])
    assert (found.predicted, found.runner_up) == (1, 2)
    assert found.confidence == found.runner_up_confidence


def test_a_model_that_knows_nothing_has_the_entropy_of_chance() -> None:
    assert _describe([0.0] * 1000).entropy == pytest.approx(math.log(1000))
    assert _describe([500.0, 0.0, 0.0]).entropy == 0


def test_sigmoids_are_taken_over_their_sum() -> None:
    found = _describe([2.0, -1.0, 1.0], [0.9, 0.3, 0.6])
    assert (found.confidence, found.runner_up, found.runner_up_confidence) == pytest.approx((0.9, 2, 0.6))
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.5, 1 / 6, 1 / 3)))
    assert _describe([-200.0, -300.0], [0.0, 0.0]).entropy == pytest.approx(math.log(2))


@pytest.mark.parametrize(("probability", "entropy"), [(0.5, math.log(2)), (0.25, 0.5623351), (0.0, 0.0), (1.0, 0.0)])
def test_a_model_of_one_class_is_as_unsure_as_yes_and_no(probability: float, entropy: float) -> None:
    found = _describe([1.0], [probability])
    assert (found.predicted, found.runner_up, found.runner_up_confidence) == (0, None, None)
    assert found.confidence == probability
    assert found.entropy == pytest.approx(entropy, abs=1e-6)


def test_logits_are_left_as_they_are() -> None:
    logits = np.array([1.0, 3.0, 2.0], np.float32)
    logits.flags.writeable = False
    assert describe_prediction(logits, _softmax([1.0, 3.0, 2.0])).runner_up == 2
