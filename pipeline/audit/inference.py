"""Whether a difference between counts is more than chance, and how large it is: pure functions of NumPy arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

Array = np.ndarray

Z95 = 1.959963984540054
"""Standard deviations on either side that hold 95 % of a normal distribution."""

LEAST_EXPECTED = 5.0
"""Images that a cell of the smaller sample should expect for a G-test; cells of fewer are counted together."""


def wilson(k: ArrayLike, n: ArrayLike, z: float = Z95) -> tuple[Array, Array]:
    """The score interval of a share: Wilson, JASA 1927.

    Args:
        k: successes, any shape.
        n: trials, of a shape that fits.
        z: standard deviations on either side; the default gives 95 %.

    Returns:
        The lower and the upper end, float64, in [0, 1]; 0 and 1 where there were no trials.
    """
    k, n = np.asarray(k, float), np.asarray(n, float)
    trials = np.maximum(n, 1)
    share = k / trials
    centre = share + z * z / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    lower, upper = (centre - half) / scale, (centre + half) / scale
    # The ends touch 0 and 1 exactly where all or none succeed; rounding would leave 1e-17.
    lower = np.where((n <= 0) | (k <= 0), 0.0, np.clip(lower, 0, 1))
    return lower, np.where((n <= 0) | (k >= n), 1.0, np.clip(upper, 0, 1))


def two_proportion_z(k1: ArrayLike, n1: ArrayLike, k2: ArrayLike, n2: ArrayLike) -> tuple[Array, Array]:
    """The pooled z-test of two shares.

    Args:
        k1: successes of the first sample, any shape.
        n1: its trials.
        k2: successes of the second.
        n2: its trials.

    Returns:
        z, positive where the first share is larger, and the two-sided p; 0 and 1 where a sample is empty or the pooled
        share is 0 or 1.
    """
    k1, n1, k2, n2 = np.broadcast_arrays(*(np.asarray(values, float) for values in (k1, n1, k2, n2)))
    trials = np.maximum(n1 + n2, 1)
    pooled = (k1 + k2) / trials
    variance = pooled * (1 - pooled) * (1 / np.maximum(n1, 1) + 1 / np.maximum(n2, 1))
    judged = (n1 > 0) & (n2 > 0) & (variance > 0)
    difference = k1 / np.maximum(n1, 1) - k2 / np.maximum(n2, 1)
    z = np.where(judged, difference / np.sqrt(np.where(judged, variance, 1)), 0.0)
    return z, two_sided(z)


def two_sided(z: ArrayLike) -> Array:
    """The two-sided p-value of a standard normal statistic."""
    return special.erfc(np.abs(np.asarray(z, float)) / np.sqrt(2))


def difference_interval(k1: float, n1: float, k2: float, n2: float, z: float = Z95) -> tuple[float, float]:
    """The interval of a difference of shares, k1/n1 - k2/n2: method 10 of Newcombe, Statistics in Medicine 1998."""
    (low1, high1), (low2, high2) = wilson(k1, n1, z), wilson(k2, n2, z)
    p1, p2 = k1 / max(n1, 1), k2 / max(n2, 1)
    below, above = np.hypot(p1 - low1, high2 - p2), np.hypot(high1 - p1, p2 - low2)
    return float(p1 - p2 - below), float(p1 - p2 + above)


def benjamini_hochberg(p: ArrayLike) -> Array:
    """p-values corrected for how many were looked at: Benjamini and Hochberg, JRSS B 1995.

    Args:
        p: p-values, any shape; NaN for what was not tested, which counts for nothing.

    Returns:
        q of the same shape: calling those below 0.01 findings makes 1 % of the findings false, on average.
    """
    p = np.asarray(p, float)
    q = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    values = p[tested]
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    sorted_q = np.minimum.accumulate(scaled[::-1])[::-1]
    ranked = np.empty_like(values)
    ranked[order] = np.minimum(sorted_q, 1)
    q[tested] = ranked
    return q


def g_test(counts1: ArrayLike, counts2: ArrayLike) -> Array:
    """The likelihood-ratio test that two samples come from one distribution, with Williams's correction (1976).

    Cells that expect fewer than `LEAST_EXPECTED` images in the smaller sample are counted together: one cell with two
    images of fifty says little, and forty of them would say it too loudly. Which these are is decided by both samples'
    sum, so the test stays honest.

    Args:
        counts1: (..., B) counts.
        counts2: (..., B) counts.

    Returns:
        (...) p-values; 1 where a sample is empty, or one cell holds all.
    """
    first, second = _pool_sparse(np.asarray(counts1, float), np.asarray(counts2, float))
    n1, n2 = first.sum(-1), second.sum(-1)
    both = first + second
    total = np.maximum(n1 + n2, 1)
    expected1 = both * (n1 / total)[..., None]
    g = 2 * (_log_ratios(first, expected1) + _log_ratios(second, both - expected1))
    freedom = np.sum(both > 0, -1) - 1
    spread1 = total * (1 / np.maximum(n1, 1) + 1 / np.maximum(n2, 1)) - 1
    spread2 = total * np.sum(np.where(both > 0, 1 / np.maximum(both, 1), 0), -1) - 1
    correction = 1 + spread1 * spread2 / (6 * total * np.maximum(freedom, 1))
    judged = (freedom > 0) & (n1 > 0) & (n2 > 0)
    return np.where(judged, special.chdtrc(np.maximum(freedom, 1), np.maximum(g, 0) / correction), 1.0)


def debiased_js(counts1: ArrayLike, counts2: ArrayLike) -> tuple[Array, Array]:
    """The Jensen-Shannon divergence of two samples of counts, less what chance alone is expected to give.

    Two samples of n1 and n2 images of one distribution over B cells have (B - 1)/(8 ln 2) (1/n1 + 1/n2) on average.

    Args:
        counts1: (..., B) counts.
        counts2: (..., B) counts.

    Returns:
        The divergence without its bias, and as it is, in bits; NaN where a sample is empty.
    """
    counts1, counts2 = np.asarray(counts1, float), np.asarray(counts2, float)
    n1, n2 = counts1.sum(-1), counts2.sum(-1)
    raw = js(counts1, counts2)
    cells = np.sum(counts1 + counts2 > 0, -1)
    bias = (cells - 1) / (8 * np.log(2)) * (1 / np.maximum(n1, 1) + 1 / np.maximum(n2, 1))
    return raw - bias, raw


def js(first: ArrayLike, second: ArrayLike) -> Array:
    """The Jensen-Shannon divergence of two distributions, (..., B) each, not necessarily normalised.

    Returns:
        (...) in bits, in [0, 1]; NaN where one of them is nothing but zeros.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    sums1, sums2 = first.sum(-1, keepdims=True), second.sum(-1, keepdims=True)
    p, q = first / _over_zero(sums1), second / _over_zero(sums2)
    middle = _over_zero((p + q) / 2)
    bits = np.sum(special.xlogy(p, p / middle) + special.xlogy(q, q / middle), -1) / (2 * np.log(2))
    empty = (sums1[..., 0] <= 0) | (sums2[..., 0] <= 0)
    return np.where(empty, np.nan, np.clip(bits, 0, 1))


def mean_map_js(
    mass1: ArrayLike, squares1: ArrayLike, n1: ArrayLike, mass2: ArrayLike, squares2: ArrayLike, n2: ArrayLike
) -> tuple[Array, Array, Array]:
    """How far two mean maps are apart, and whether more than images differ.

    Maps of one distribution have mean maps that differ by chance, by sum s^2/m (1/n1 + 1/n2)/(8 ln 2) bits on average,
    where m is a cell's mean and s^2 its variance from image to image.

    Args:
        mass1: (..., B) sum over images of the maps, each of which sums to 1.
        squares1: (..., B) sum over images of the squared maps.
        n1: (...) images with a map.
        mass2: as `mass1`, of the other sample.
        squares2: as `squares1`.
        n2: as `n1`.

    Returns:
        The divergence in bits without its bias, and as it is, NaN where a sample is empty; and the p-value of the cell
        that differs most by Welch's z, corrected for the number of cells, 1 where a sample has fewer than two images.
    """
    mass1, mass2 = np.asarray(mass1, float), np.asarray(mass2, float)
    n1, n2 = np.asarray(n1, float)[..., None], np.asarray(n2, float)[..., None]
    mean1, variance1 = _moments(mass1, np.asarray(squares1, float), n1)
    mean2, variance2 = _moments(mass2, np.asarray(squares2, float), n2)
    raw = js(mean1, mean2)
    trials1, trials2 = np.maximum(n1, 1), np.maximum(n2, 1)
    pooled = (variance1 * n1 + variance2 * n2) / np.maximum(n1 + n2, 1)
    middle = (mass1 + mass2) / np.maximum(n1 + n2, 1)
    bias = np.sum(np.where(middle > 0, pooled / _over_zero(middle), 0), -1) * (1 / trials1 + 1 / trials2)[..., 0]
    # Pooled where a small sample hardly varies: a cell that none of its images lights has no variance of its own.
    error = np.maximum(variance1 / trials1 + variance2 / trials2, pooled * np.maximum(1 / trials1, 1 / trials2))
    judged = (n1 >= 2) & (n2 >= 2) & (error > 0)
    z = np.where(judged, (mean1 - mean2) / np.sqrt(np.where(judged, error, 1)), 0.0)
    cells = np.maximum(np.sum(judged, -1), 1)
    return raw - bias / (8 * np.log(2)), raw, np.minimum(two_sided(z).min(-1) * cells, 1)


def mcnemar(b: ArrayLike, c: ArrayLike) -> Array:
    """The exact test that as many images got better as got worse: McNemar, Psychometrika 1947.

    Args:
        b: images that were right and are wrong.
        c: images that were wrong and are right.

    Returns:
        The two-sided binomial p; 1 where none changed.
    """
    b, c = np.asarray(b, float), np.asarray(c, float)
    fewer, more = np.minimum(b, c), np.maximum(b, c)
    below = special.betainc(np.maximum(more, 1), fewer + 1, 0.5)  # the chance of so few heads, or fewer
    return np.where(more > 0, np.minimum(2 * below, 1), 1.0)


def ks_test(histogram1: ArrayLike, histogram2: ArrayLike) -> tuple[Array, Array]:
    """The two-sample Kolmogorov-Smirnov test of histograms with the same edges.

    Args:
        histogram1: (..., B) counts.
        histogram2: (..., B) counts.

    Returns:
        The largest distance of the cumulative shares, in [0, 1], 0 where a sample is empty; and p by the asymptotic
        distribution with Stephens's correction, which is too large for binned values and never too small.
    """
    first, second = np.asarray(histogram1, float), np.asarray(histogram2, float)
    n1, n2 = first.sum(-1), second.sum(-1)
    shares = (values.cumsum(-1) / _over_zero(n)[..., None] for values, n in ((first, n1), (second, n2)))
    left, right = shares
    distance = np.where((n1 > 0) & (n2 > 0), np.abs(left - right).max(-1), 0.0)
    root = np.sqrt(n1 * n2 / np.maximum(n1 + n2, 1))
    corrected = (root + 0.12 + 0.11 / np.maximum(root, 1)) * distance  # Stephens, JRSS B 1970
    return distance, special.kolmogorov(corrected)


def psi(counts1: ArrayLike, counts2: ArrayLike) -> Array:
    """The population stability index, in nats, half an image added to each cell; for readers who know it.

    Between samples of a few hundred images it exceeds the customary 0.1 by chance alone: nothing is decided by it.
    """
    first, second = np.asarray(counts1, float) + 0.5, np.asarray(counts2, float) + 0.5
    p, q = first / first.sum(-1, keepdims=True), second / second.sum(-1, keepdims=True)
    return np.sum((p - q) * np.log(p / q), -1)


def total_variation(first: ArrayLike, second: ArrayLike) -> Array:
    """Half the sum of the differences of two distributions, (..., B) counts each, in [0, 1]; 0 where one is empty."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    sums1, sums2 = first.sum(-1, keepdims=True), second.sum(-1, keepdims=True)
    distance = np.abs(first / _over_zero(sums1) - second / _over_zero(sums2)).sum(-1) / 2
    return np.where((sums1[..., 0] > 0) & (sums2[..., 0] > 0), distance, 0.0)


def mean_difference_z(
    sum1: float, squares1: float, n1: float, sum2: float, squares2: float, n2: float
) -> tuple[float, float]:
    """Welch's z of two means, from sums and sums of squares: z and its two-sided p; 0 and 1 where nothing varies."""
    if min(n1, n2) < 2:
        return 0.0, 1.0
    mean1, mean2 = sum1 / n1, sum2 / n2
    error = max(squares1 / n1 - mean1**2, 0) / n1 + max(squares2 / n2 - mean2**2, 0) / n2
    z = (mean1 - mean2) / np.sqrt(error) if error > 0 else 0.0
    return float(z), float(two_sided(z))


def control_limits(values: ArrayLike, width: float = 4.0) -> tuple[float, float]:
    """The median less and plus `width` median absolute deviations of a few nights' values, NaN left out.

    Raises:
        ValueError: there are none.
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not len(known):
        raise ValueError("control limits need at least one value that is known: run the audit on some nights first")
    middle = float(np.median(known))
    reach = width * float(np.median(np.abs(known - middle)))
    return middle - reach, middle + reach


def _moments(mass: Array, squares: Array, n: Array) -> tuple[Array, Array]:
    mean = mass / np.maximum(n, 1)
    return mean, np.maximum(squares / np.maximum(n, 1) - mean * mean, 0) * n / np.maximum(n - 1, 1)


def _pool_sparse(first: Array, second: Array) -> tuple[Array, Array]:
    """(..., B + 1): the cells that expect enough in the smaller sample, zeros for the others, and their sum."""
    n1, n2 = first.sum(-1, keepdims=True), second.sum(-1, keepdims=True)
    expected = (first + second) * np.minimum(n1, n2) / np.maximum(n1 + n2, 1)
    sparse = expected < LEAST_EXPECTED
    parts = (np.concatenate([np.where(sparse, 0, c), np.where(sparse, c, 0).sum(-1, keepdims=True)], -1)
             for c in (first, second))  # fmt: skip
    one, other = parts
    return one, other


def _log_ratios(counts: Array, expected: Array) -> Array:
    return np.sum(special.xlogy(counts, counts) - special.xlogy(counts, _over_zero(expected)), -1)


def _over_zero(values: Array) -> Array:
    """The values, with 1 for those that are 0, to be divided by."""
    return np.where(values > 0, values, 1.0)
