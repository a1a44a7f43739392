"""How sure a model is of an image: what an audit needs of its logits, where only the best of them are stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, in a few numbers."""

    predicted: int  # the class with the highest logit; of equal ones the first
    confidence: float  # its probability: softmax or sigmoid, as the model has it
    runner_up: int | None  # the class with the next logit; None for a model of one class
    runner_up_confidence: float | None
    entropy: float  # nats, of the probabilities over their sum; of yes and no for a model of one class


def describe_prediction(logits: np.ndarray, probabilities: np.ndarray) -> Prediction:
    """How sure a model is of one image.

    Args:
        logits: (L,) float32, finite.
        probabilities: (L,) float32, softmax or sigmoid of these.
    """
    predicted = int(np.argmax(logits))
    confidence = float(probabilities[predicted])
    if len(logits) == 1:
        return Prediction(predicted, confidence, None, None, _entropy(np.array([confidence, 1 - confidence])))
    others = np.array(logits)
    others[predicted] = -np.inf
    runner_up = int(np.argmax(others))
    return Prediction(predicted, confidence, runner_up, float(probabilities[runner_up]), _entropy(probabilities))


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0].astype(np.float64)
    if not len(positive):  # sigmoids of nothing but very low logits
        return math.log(len(probabilities))
    shares = positive / positive.sum()
    return max(0.0, -float(shares @ np.log(shares)))
