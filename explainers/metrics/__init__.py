"""How good a map is: faithful to the model, on the object, like another map, and made of what was learned."""

from explainers.metrics.faithfulness import (
    Confidence,
    Curves,
    blur,
    confidence_change,
    deletion,
    deletion_curves,
    insertion,
    insertion_curves,
)
from explainers.metrics.localization import component_boxes, energy_in_box, max_box_acc_v2, pointing_game
from explainers.metrics.randomization import Randomization, randomization_check
from explainers.metrics.similarity import spearman, ssim, top_k_overlap

__all__ = [
    "Confidence",
    "Curves",
    "Randomization",
    "blur",
    "component_boxes",
    "confidence_change",
    "deletion",
    "deletion_curves",
    "energy_in_box",
    "insertion",
    "insertion_curves",
    "max_box_acc_v2",
    "pointing_game",
    "randomization_check",
    "spearman",
    "ssim",
    "top_k_overlap",
]
