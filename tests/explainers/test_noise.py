"""Random numbers of an image's own: normal, independent, the same wherever and in whatever company it is explained."""

import numpy as np
import pytest
import tensorflow as tf

from explainers.methods.noise import image_seeds, normals, rise_masks, uniforms
from tests import models

SHAPE = (32, 32, 3)
COUNT = np.prod(SHAPE)


def seeds_of(n, seed=0):
    return image_seeds(tf.constant(models.images(n)), seed)


@pytest.fixture(scope="module")
def drawn():
    """Normals of 40 images and 5 samples: (samples, images, numbers of an image)."""
    draw = tf.function(lambda j: normals(seeds_of(40), j, SHAPE), autograph=False)
    return np.stack([draw(tf.constant(j)).numpy().reshape(40, -1).astype(np.float64) for j in range(5)])


def agree_bit_for_bit(function, *arguments):
    """Values that are the same in eager, graph and XLA."""
    eager = function(*arguments).numpy()
    for jit in (False, True):
        program = tf.function(function, jit_compile=jit, autograph=False)
        np.testing.assert_array_equal(program(*arguments).numpy(), eager)
    return eager


# Seeds


def test_an_image_has_the_same_seeds_in_every_batch():
    x = tf.constant(models.images(6))
    seeds = image_seeds(x).numpy()
    assert (seeds.shape, seeds.dtype) == ((6, 2), np.int32)
    order = [3, 0, 5, 1]
    np.testing.assert_array_equal(image_seeds(tf.gather(x, order)), seeds[order])
    np.testing.assert_array_equal(image_seeds(x[2:3]), seeds[2:3])


def test_seeds_are_the_same_in_eager_graph_and_xla():
    agree_bit_for_bit(lambda x: image_seeds(x, 3), tf.constant(models.images(5)))


def test_a_negative_zero_is_a_zero_in_eager_graph_and_xla():
    x = models.images(2)
    x[1] = x[0]
    x[0, 2, 3], x[1, 2, 3] = 0.0, -0.0
    seeds = agree_bit_for_bit(image_seeds, tf.constant(x))
    np.testing.assert_array_equal(seeds[0], seeds[1])


def test_no_two_of_many_images_share_a_seed():
    x = models.images(20000, shape=(4, 4, 3))
    seeds = image_seeds(tf.constant(x)).numpy()
    assert len(np.unique(seeds, axis=0)) == len(x)


def changed_a_little():
    """An image, and versions that a careless hash takes for the same."""
    x = models.images(1, shape=(6, 5, 3))[0]
    yield x
    for i, j, c in ((0, 0, 0), (3, 2, 1), (5, 4, 2)):
        pixel = x.copy()
        pixel[i, j, c] = np.nextafter(pixel[i, j, c], np.float32(9))
        yield pixel
    yield x[:, ::-1]
    yield x[::-1]
    yield x[..., ::-1]
    yield np.roll(x, 1, axis=0)
    yield -x
    yield 2 * x
    swapped = x.copy()
    swapped[[1, 2]] = swapped[[2, 1]]
    yield swapped


def test_the_smallest_change_of_an_image_changes_its_seeds():
    x = np.stack([image.copy() for image in changed_a_little()])
    assert len(np.unique(image_seeds(tf.constant(x)).numpy(), axis=0)) == len(x)


def test_constant_images_have_seeds_of_their_own():
    x = np.arange(256, dtype=np.float32)[:, np.newaxis, np.newaxis, np.newaxis] * np.ones((1, 8, 8, 3), np.float32)
    assert len(np.unique(image_seeds(tf.constant(x)).numpy(), axis=0)) == 256


def test_the_users_seed_gives_other_seeds():
    drawn = np.concatenate([seeds_of(5, seed).numpy() for seed in (0, 1, 2, 2**31 - 1)])
    assert len(np.unique(drawn, axis=0)) == 20


# Normals


def test_draws_are_the_same_bits_in_eager_graph_and_xla():
    seeds = seeds_of(3)
    agree_bit_for_bit(lambda seeds: uniforms(seeds, 2, SHAPE), seeds)
    agree_bit_for_bit(lambda seeds, j: uniforms(seeds, j, SHAPE), seeds, tf.constant(2))


def test_normals_are_the_same_in_eager_graph_and_xla_up_to_rounding():
    seeds = seeds_of(3)
    eager = normals(seeds, 2, SHAPE).numpy()
    for jit in (False, True):  # XLA has another polynomial for the inverse error function
        program = tf.function(lambda seeds: normals(seeds, 2, SHAPE), jit_compile=jit, autograph=False)
        np.testing.assert_allclose(program(seeds), eager, atol=3e-5)


def test_the_number_of_a_sample_may_be_a_tensor():
    seeds = seeds_of(3)
    drawn = normals(seeds, 2, SHAPE)
    assert (drawn.shape, drawn.dtype) == ((3, *SHAPE), tf.float32)
    np.testing.assert_array_equal(normals(seeds, tf.constant(2), SHAPE), drawn)


def test_normals_depend_on_nothing_but_the_seed_and_the_sample():
    seeds = seeds_of(4)
    drawn = normals(seeds, 1, SHAPE).numpy()
    np.testing.assert_array_equal(normals(seeds[2:3], 1, SHAPE), drawn[2:3])
    np.testing.assert_array_equal(normals(tf.gather(seeds, [3, 0]), 1, SHAPE), drawn[[3, 0]])


def test_normals_have_the_moments_and_tails_of_the_normal_distribution(drawn):
    values = drawn.ravel()
    n = len(values)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 5 / np.sqrt(n)
    assert abs(values.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / n)
    for border, share in ((0.6744898, 0.5), (1.9599640, 0.05), (3.2905267, 0.001), (4.4171734, 1e-5)):
        assert abs((np.abs(values) > border).mean() - share) < 5 * np.sqrt(share / n)
    assert 4.3 < np.abs(values).max() < 7


def test_each_image_sample_and_pixel_has_mean_zero_and_variance_one(drawn):
    for axes in ((2,), (0, 1), (0, 2), (1, 2)):
        n = np.prod([drawn.shape[axis] for axis in axes])
        assert np.abs(drawn.mean(axis=axes)).max() < 6 / np.sqrt(n)
        assert np.abs((drawn**2).mean(axis=axes) - 1).max() < 12 * np.sqrt(2 / n)


@pytest.mark.parametrize("power", [1, 2], ids=["values", "squares"])
def test_images_and_samples_are_not_correlated_at_any_shift(drawn, power):
    rows = drawn[:, :8].reshape(40, -1) ** power
    rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
    spectra = np.fft.rfft(rows, axis=1)
    for i in range(len(rows)):
        for k in range(i, len(rows)):
            correlation = np.fft.irfft(spectra[i] * spectra[k].conj(), COUNT) / COUNT
            if i == k:
                correlation[0] = 0
            assert np.abs(correlation).max() < 8 / np.sqrt(COUNT)


def test_neighbouring_samples_and_seeds_are_not_correlated_pixel_by_pixel(drawn):
    for one, other in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:]), (drawn[..., :-1], drawn[..., 1:])):
        assert abs((one * other).mean()) < 5 / np.sqrt(one.size)
        assert abs(((one**2 - 1) * (other**2 - 1)).mean() / 2) < 5 / np.sqrt(one.size)


def test_no_number_comes_back_in_another_sample_or_image(drawn):
    rows = drawn.reshape(200, -1)
    for i in range(1, 200):
        assert (rows[0] == rows[i]).mean() < 0.01
        assert np.isin(rows[i], rows[0]).mean() < 0.01
    assert len(np.unique(drawn)) > 0.95 * drawn.size


def test_seeds_that_are_neighbours_give_independent_normals():
    base = [[0, 0], [0, 1], [1, 0], [1, 1], [-1, 0], [2**31 - 1, 5], [-(2**31), 5]]
    rows = normals(tf.constant(base, tf.int32), 0, SHAPE).numpy().reshape(len(base), -1)
    correlation = np.corrcoef(rows) - np.eye(len(base))
    assert np.abs(correlation).max() < 5 / np.sqrt(COUNT)


@pytest.mark.parametrize("shape", [(1,), (7,), (12, 2), (5, 3, 3), (4, 6, 8, 2)])
def test_normals_have_any_shape_odd_counts_included(shape):
    drawn = normals(seeds_of(200), 0, shape).numpy()
    assert drawn.shape == (200, *shape)
    assert abs(drawn.std() - 1) < 5 * np.sqrt(1 / drawn.size)


# Masks of RISE


def cells_of(mask, grid, cell):
    """The grid of cells that was enlarged to one cell more than the image and cut out to give `mask`, and the place.

    None if there is no such grid.
    """
    for top, left in np.ndindex(cell, cell):
        rows, columns = (hats(len(mask), offset, grid, cell) for offset in (top, left))
        cells = np.linalg.pinv(rows) @ mask @ np.linalg.pinv(columns).T
        if np.abs(rows @ cells @ columns.T - mask).max() < 1e-4:
            return cells, (top, left)
    return None


def hats(length, offset, grid, cell):
    """Bilinear weights (half-pixel centres) of `length` pixels behind `offset`, of `grid` cells on grid + 1."""
    places = (np.arange(length) + offset + 0.5) * grid / ((grid + 1) * cell) - 0.5
    return np.maximum(1 - np.abs(np.clip(places, 0, grid - 1)[:, np.newaxis] - np.arange(grid)), 0)


def test_a_mask_is_a_binary_grid_enlarged_by_one_cell_and_cut_out_somewhere():
    draw = tf.function(lambda j: rise_masks(seeds_of(20), j, 3, 0.4, (15, 15)), autograph=False)
    places, kept = [], []
    for mask in np.concatenate([draw(tf.constant(j)).numpy() for j in range(20)]).astype(np.float64):
        found = cells_of(mask, grid=3, cell=5)
        assert found is not None
        np.testing.assert_allclose(found[0], found[0].round(), atol=1e-3)
        assert set(np.unique(found[0].round())) <= {0, 1}
        kept.append(found[0].round())
        if found[0].std() > 0.1:  # the place of an even mask cannot be told
            places.append(found[1])
    n = len(kept)
    assert np.abs(np.mean(kept, axis=0) - 0.4).max() < 5 * np.sqrt(0.24 / n)
    correlation = np.corrcoef(np.reshape(kept, (n, 9)).T) - np.eye(9)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)
    joint = np.zeros((5, 5))
    np.add.at(joint, tuple(np.transpose(places)), 1)
    expected = len(places) / 25
    assert ((joint - expected) ** 2 / expected).sum() < 24 + 5 * np.sqrt(2 * 24)  # chi squared, both axes at once


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("grid", "size"), [(3, (8, 8)), (7, (16, 21)), (4, (9, 8))])
def test_the_mean_of_the_masks_is_the_share_kept(grid, size, keep):
    draw = tf.function(lambda j: rise_masks(seeds_of(50), j, grid, keep, size), autograph=False)
    masks = np.stack([draw(tf.constant(j)).numpy() for j in range(40)])
    assert masks.shape == (40, 50, *size)
    assert masks.min() >= 0
    assert masks.max() <= 1
    error = np.sqrt(keep * (1 - keep) / 2000)
    assert abs(masks.mean() - keep) < 5 * error / grid * 2
    assert np.abs(masks.mean(axis=(0, 1)) - keep).max() < 6 * error  # at every pixel, borders included


def test_masks_differ_between_images_and_samples():
    seeds = seeds_of(4)
    masks = np.concatenate([rise_masks(seeds, j, 7, 0.5, (16, 16)).numpy() for j in range(10)]).reshape(40, -1)
    assert np.abs(np.corrcoef(masks) - np.eye(40)).max() < 0.75
    assert len(np.unique(masks, axis=0)) == 40


def test_masks_depend_on_nothing_but_the_seed_and_the_number():
    seeds = seeds_of(4)
    masks = rise_masks(seeds, 3, 5, 0.4, (8, 11)).numpy()
    np.testing.assert_array_equal(rise_masks(seeds[1:2], 3, 5, 0.4, (8, 11)), masks[1:2])
    np.testing.assert_array_equal(rise_masks(seeds, tf.constant(3), 5, 0.4, (8, 11)), masks)


def test_masks_are_the_same_in_eager_graph_and_xla():
    seeds = seeds_of(3)
    eager = rise_masks(seeds, 2, 5, 0.4, (8, 11)).numpy()
    for jit in (False, True):
        program = tf.function(lambda s: rise_masks(s, 2, 5, 0.4, (8, 11)), jit_compile=jit, autograph=False)
        np.testing.assert_allclose(program(seeds), eager, atol=1e-6)


def test_masks_that_keep_everything_are_ones():
    np.testing.assert_allclose(rise_masks(seeds_of(2), 0, 5, 1.0, (9, 9)), 1, rtol=1e-6)
