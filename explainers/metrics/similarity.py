"""Are two maps alike? NumPy, a pair at a time."""

from __future__ import annotations

import numpy as np

from explainers.errors import InputError
from explainers.metrics.checked import check_finite, stretch


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two maps, in [-1, 1]: Pearson's correlation of ranks, equal values sharing one.

    Args:
        a: a map of any shape.
        b: another one of that shape.

    Returns:
        0.0 where one of the maps is constant, and so has no order.

    Raises:
        InputError: shapes differ, or a value is not finite.
    """
    a, b = (_average_ranks(values) for values in _as_pair(a, b))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(np.clip((a @ b) / scale, -1, 1)) if scale > 0 else 0.0


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """The structural similarity of two maps, each stretched to [0, 1] first; 1 for equal ones.

    The mean over all places of a Gaussian window of 11 pixels and deviation 1.5, with K1 = 0.01, K2 = 0.03 and L = 1
    (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004, Eq. 13
    and 17, doi:10.1109/TIP.2003.819861). Along an axis of less than 11 pixels the window is the longest odd one that
    fits. A constant map is zeros.

    Args:
        a: a map, (h, w), or with one or three axes.
        b: another one of that shape.

    Raises:
        InputError: shapes differ, or a value is not finite.
    """
    a, b = (stretch(values) for values in _as_pair(a, b))
    mean_a, mean_b = _smooth(a), _smooth(b)
    variances = _smooth(a * a) - mean_a**2 + _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float(np.mean(brightness * (2 * covariance + c2) / (variances + c2)))


def top_k_overlap(a: np.ndarray, b: np.ndarray, fraction: float = 0.1) -> float:
    """How many of the k largest values of one map are among the k largest of the other, over k: in [0, 1].

    The top-k intersection of Ghorbani et al., "Interpretation of Neural Networks is Fragile", AAAI 2019,
    https://arxiv.org/abs/1710.10547. Of equal values the first in row-major order is larger.

    Args:
        a: a map of any shape.
        b: another one of that shape.
        fraction: k over the number of values, in (0, 1]; k is rounded, and at least 1.

    Raises:
        InputError: shapes differ, a value is not finite, or the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction lies in (0, 1], not {fraction!r}")
    a, b = _as_pair(a, b)
    k = max(1, round(fraction * a.size))
    first, second = (np.argsort(-values, axis=None, kind="stable")[:k] for values in (a, b))
    return len(np.intersect1d(first, second)) / k


def _as_pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.size == 0:
        raise InputError(f"maps that are compared have one shape, and these have {a.shape} and {b.shape}")
    for values in (a, b):
        check_finite(values)
    return a, b


def _average_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Weighted means over the window, wherever it fits whole."""
    for axis, size in enumerate(values.shape):
        reach = min(11, size - 1 + size % 2) // 2
        window = np.exp(-((np.arange(-reach, reach + 1) / 1.5) ** 2) / 2)
        places = np.lib.stride_tricks.sliding_window_view(values, len(window), axis=axis)
        values = places @ (window / window.sum())
    return values
