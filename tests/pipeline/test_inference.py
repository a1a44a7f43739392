"""Tests of counts against numbers worked out by hand, exact enumeration, and samples of one distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.audit import inference


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Brown, Cai and DasGupta (2001), and R: prop.test(k, n, correct = FALSE)$conf.int
    [(46, 200, 0.17708, 0.29309), (8, 10, 0.49016, 0.94331), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0)],
)
def test_wilsons_interval_is_that_of_the_textbooks(k: int, n: int, low: float, high: float) -> None:
    assert inference.wilson(k, n) == (pytest.approx(low, abs=2e-4), pytest.approx(high, abs=2e-4))


def test_wilsons_interval_solves_its_quadratic_equation_and_knows_nothing_of_no_trials() -> None:
    k, n = np.meshgrid(np.arange(1, 30), [30, 77, 1_000])
    for end in inference.wilson(k, n):
        share = k / n  # the ends are where |p - end| = z sqrt(end (1 - end) / n)
        np.testing.assert_allclose((share - end) ** 2, 1.959964**2 * end * (1 - end) / n, rtol=1e-5)
    assert inference.wilson(0, 0) == (0.0, 1.0)


def test_the_z_of_two_shares_is_signed_and_pooled() -> None:
    z, p = inference.two_proportion_z([60, 40, 5, 0], [100, 100, 5, 0], [40, 60, 9, 3], [100, 100, 9, 9])
    # pooled 0.5, error sqrt(0.25 * 0.02) = 0.0707107
    np.testing.assert_allclose(z, [0.2 / 0.07071068, -0.2 / 0.07071068, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(p, [0.00467773, 0.00467773, 1, 1], rtol=1e-5)


def test_newcombes_interval_is_that_of_his_paper() -> None:
    # Newcombe (1998), table II, method 10: 56/70 - 48/80, and 9/10 - 3/10
    assert inference.difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert inference.difference_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)


def test_corrected_p_values_are_those_of_the_papers_step_up_procedure() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.005, 0.5])
    np.testing.assert_allclose(inference.benjamini_hochberg(p), [0.025, np.nan, 0.05, 0.05, 0.025, 0.5])
    assert inference.benjamini_hochberg([]).shape == (0,)
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.uniform(size=12) ** 3
        ranked = np.sort(p)
        for alpha in (0.01, 0.05, 0.2):  # the paper's words: the largest k with p(k) <= k/m alpha, and all before it
            below = np.flatnonzero(ranked <= np.arange(1, 13) / 12 * alpha)
            rejected = p <= ranked[below[-1]] if len(below) else np.zeros(12, bool)
            np.testing.assert_array_equal(inference.benjamini_hochberg(p) <= alpha, rejected)


def test_tables_of_p_values_are_one_family() -> None:
    p = np.array([[0.01, 0.02], [0.03, 0.04]])
    np.testing.assert_allclose(inference.benjamini_hochberg(p), inference.benjamini_hochberg(p.ravel()).reshape(2, 2))


def test_the_g_test_of_a_large_table_is_that_of_the_textbooks() -> None:
    first, second = np.array([60, 40, 100]), np.array([40, 60, 100])
    expected = 50 * np.ones(2)
    g = 2 * sum((c * np.log(c / expected)).sum() for c in (first[:2], second[:2]))
    # Williams (1976) for 2 x 3: q = 1 + (N sum 1/row - 1)(N sum 1/column - 1) / (6 N (r-1)(c-1))
    q = 1 + (400 * 2 / 200 - 1) * (400 * (1 / 100 + 1 / 100 + 1 / 200) - 1) / (6 * 400 * 2)
    assert inference.g_test(first, second) == pytest.approx(math.exp(-g / q / 2), rel=1e-9)  # chi-square of two degrees


def test_the_g_test_keeps_its_promise_on_sparse_cells() -> None:
    """Without pooling it finds four times as many as it promises, on 49 cells and 50 or 200 images."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 7)
    shares = np.exp(-3 * (x[:, None] ** 2 + x**2)).ravel()
    shares /= shares.sum()
    for n1, n2 in ((50, 50), (50, 400), (200, 200)):
        p = inference.g_test(rng.multinomial(n1, shares, 10_000), rng.multinomial(n2, shares, 10_000))
        for level in (0.05, 0.01, 0.001):
            found = (p <= level).mean()
            assert found <= 1.6 * level + 3 * math.sqrt(level / 10_000), (n1, n2, level)


def test_the_g_test_finds_a_corner_that_is_new_and_says_nothing_of_empty_samples() -> None:
    before, now = np.full(49, 4), np.full(49, 4)
    now[48] += 60
    assert inference.g_test(before, now) < 1e-8
    assert inference.g_test(before, before) == 1
    assert inference.g_test(np.zeros(49), now) == 1
    assert inference.g_test([0, 7], [0, 9]) == 1


def entropy(shares: np.ndarray) -> float:
    return -sum(share * math.log2(share) for share in shares if share > 0)


def test_the_divergence_is_the_entropy_of_the_mixture_less_the_mean_entropy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 9, (2, 6, 10)).astype(float)
    expected = [
        entropy((p / p.sum() + q / q.sum()) / 2) - (entropy(p / p.sum()) + entropy(q / q.sum())) / 2
        for p, q in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(inference.js(first, second), expected, rtol=1e-9)
    assert inference.js([1, 0], [0, 5]) == 1
    assert np.isnan(inference.js([0, 0], [0, 5]))


def test_chance_is_taken_out_of_the_divergence() -> None:
    rng = np.random.default_rng(2)
    shares = rng.dirichlet(np.full(49, 5.0))
    for n1, n2 in ((300, 300), (300, 2_000), (1_000, 1_000)):
        value, raw = inference.debiased_js(rng.multinomial(n1, shares, 4_000), rng.multinomial(n2, shares, 4_000))
        assert abs(value.mean()) < 0.12 * raw.mean(), "the formula of the mean is right to a tenth"
    one = np.array([10.0, 20.0, 0.0])
    value, raw = inference.debiased_js(one, one)  # two cells that hold anything, 30 images in each
    assert (raw, value) == (0, pytest.approx(-1 / (8 * math.log(2)) * 2 / 30))


def sums_of(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    return maps.sum(0), (maps * maps).sum(0), len(maps)


def draw_maps(rng: np.random.Generator, n: int, extra: float = 0.0) -> np.ndarray:
    maps = rng.gamma(0.3, size=(n, 16)) * np.linspace(1, 3, 16)
    maps[:, 5] += extra
    return maps / maps.sum(1, keepdims=True)


def test_mean_maps_of_one_distribution_differ_by_chance_alone() -> None:
    rng = np.random.default_rng(3)
    found = [inference.mean_map_js(*sums_of(draw_maps(rng, 60)), *sums_of(draw_maps(rng, 90))) for _ in range(600)]
    values, raw, p = (np.array(column) for column in zip(*found, strict=True))
    assert abs(values.mean()) < 0.05 * raw.mean()
    assert (p < 0.05).mean() < 0.07
    assert (p < 0.01).mean() < 0.02


def test_a_mean_map_that_changed_is_told_by_how_much() -> None:
    rng = np.random.default_rng(4)
    first, second = draw_maps(rng, 4_000), draw_maps(rng, 4_000, extra=2.0)
    value, raw, p = inference.mean_map_js(*sums_of(first), *sums_of(second))
    exact = inference.js(first.mean(0), second.mean(0))
    assert (raw, p < 1e-12) == (pytest.approx(exact), True)
    assert value == pytest.approx(exact, rel=0.02)
    nothing = inference.mean_map_js(np.zeros(16), np.zeros(16), 0, *sums_of(first))
    assert np.isnan(nothing[0])
    assert nothing[2] == 1


def test_a_cell_that_never_varied_does_not_make_a_little_light_certain() -> None:
    before = np.zeros((50, 4))
    before[:, 0] = 1
    now = before.copy()
    now[0] = 0, 1, 0, 0  # one image of fifty
    *_, p = inference.mean_map_js(*sums_of(now), *sums_of(before))
    assert p > 0.1


def test_a_small_sample_that_misses_a_rare_cell_by_chance_does_not_make_it_certain() -> None:
    """A cell that 4 % of 5,000 images light: 50 images have none of it in one of eight nights."""
    before = np.zeros((5_000, 4))
    before[:, 0] = 1
    before[:200] = 0, 1, 0, 0
    now = np.tile([1.0, 0, 0, 0], (50, 1))
    *_, p = inference.mean_map_js(*sums_of(now), *sums_of(before))
    assert p > 0.1


def test_mcnemars_test_is_the_coin_that_it_is() -> None:
    np.testing.assert_allclose(inference.mcnemar([0, 5, 1, 10], [0, 5, 7, 0]), [1, 1, 18 / 256, 2 / 1024])


def test_the_distance_of_histograms_is_that_of_their_cumulative_shares() -> None:
    distance, p = inference.ks_test([[10, 0, 0], [0, 0, 0]], [[5, 0, 5], [5, 0, 5]])
    np.testing.assert_allclose(distance, [0.5, 0.0])
    # Stephens: (sqrt(5) + 0.12 + 0.11/sqrt(5)) * 0.5 = 1.2026; the series 2 sum (-1)^(k-1) exp(-2 k^2 x^2) gives 0.1110
    np.testing.assert_allclose(p, [0.1110, 1], atol=2e-4)


def test_binned_samples_of_one_distribution_are_seldom_called_different() -> None:
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.ones(32))
    _, p = inference.ks_test(rng.multinomial(80, shares, 20_000), rng.multinomial(120, shares, 20_000))
    assert (p < 0.01).mean() < 0.01
    assert (p < 0.001).mean() < 0.001


def test_total_variation_and_psi_are_their_definitions() -> None:
    assert inference.total_variation([1, 1, 2], [2, 2, 0]) == 0.5
    assert inference.total_variation([0, 0], [2, 2]) == 0
    p, q = np.array([10.5, 30.5]) / 41, np.array([20.5, 20.5]) / 41
    assert inference.psi([10, 30], [20, 20]) == pytest.approx(((p - q) * np.log(p / q)).sum())


def test_the_z_of_two_means_is_welchs() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.normal(0, 1, 50), rng.normal(0.5, 2, 80)
    error = math.sqrt(first.var() / 50 + second.var() / 80)
    moments = ((values.sum(), (values**2).sum(), len(values)) for values in (first, second))
    z, p = inference.mean_difference_z(*next(moments), *next(moments))
    assert z == pytest.approx((first.mean() - second.mean()) / error)
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert inference.mean_difference_z(1, 1, 1, 5, 5, 5) == (0, 1)


def test_control_limits_are_four_deviations_about_the_median() -> None:
    assert inference.control_limits([1, 2, 3, 4, 100, np.nan]) == (3 - 4, 3 + 4)
    with pytest.raises(ValueError, match=r"at least one value that is known"):
        inference.control_limits([np.nan])
