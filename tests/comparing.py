"""Comparison of arrays on one scale, and a record of how close they came."""

from __future__ import annotations

import os

import numpy as np

ERRORS: dict[str, float] = {}
"""Test -> the largest error of its comparisons, over the largest value that was wanted."""


def close(got, want, rtol=1e-5):
    """Equality up to `rtol` of the largest value."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    largest = np.abs(want).max()
    error = np.abs(got - want).max() / largest if largest > 0 else 0.0
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
    ERRORS[test] = max(float(error), ERRORS.get(test, 0.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * largest)
