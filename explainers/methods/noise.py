"""Randomness that belongs to the image: the same image gets the same noise, whatever batch or process it is in."""

from __future__ import annotations

import math

import tensorflow as tf

from explainers.errors import InputError


def image_seeds(images: tf.Tensor, seed: int = 0) -> tf.Tensor:
    """Seeds that depend on an image's content and on `seed`, and on nothing else.

    Args:
        images: (n, ...) of any numeric dtype.
        seed: another one gives other noise.

    Returns:
        (n, 2) int32, exact on every device.
    """
    values = tf.cast(images, tf.float32)
    values = tf.where(values == 0, 0.0, values)  # -0.0 is 0.0
    size = math.prod(values.shape[1:]) if None not in values.shape[1:] else tf.size(values[0])
    words = tf.bitcast(tf.reshape(values, [tf.shape(values)[0], size]), tf.uint32)
    place = tf.cast(tf.range(size), tf.uint32)
    hashes = []
    for lane in (1, 2):
        weights = _mix(place * 2654435769 + lane) | 1
        # Multilinear hashing: a sum modulo 2^32 of words, each times a random odd number of its place.
        hashes.append(_mix(tf.reduce_sum(_mix(words) * weights, axis=1)))
    return _vary(tf.bitcast(tf.stack(hashes, axis=1), tf.int32), seed)


def as_seeds(seeds: tf.Tensor | None, images: tf.Tensor, seed: int) -> tf.Tensor:
    """Seeds as given, or those of the images; another `seed` turns either into others.

    Raises:
        InputError: they are not (n, 2) integers.
    """
    if seeds is None:
        return image_seeds(images, seed)
    seeds = tf.convert_to_tensor(seeds)
    if not seeds.dtype.is_integer or len(seeds.shape) != 2 or seeds.shape[1] != 2:
        raise InputError(f"seeds are integers of shape (N, 2), and these are {seeds.dtype.name} {tuple(seeds.shape)}")
    return _vary(tf.cast(seeds, tf.int32), seed)


def uniforms(seeds: tf.Tensor, j: tf.Tensor | int, shape: tuple[int, ...]) -> tf.Tensor:
    """Draw number `j` of each image: (n, *shape) float32, uniform in (0, 1), on a grid of 2^-23."""

    def draw(seed: tf.Tensor) -> tf.Tensor:
        # Bits, and not floats: TensorFlow and XLA turn the same bits into different floats.
        return tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox")

    own = seeds + tf.stack([tf.cast(j, tf.int32), 0])
    bits = tf.map_fn(draw, own, fn_output_signature=tf.TensorSpec(shape, tf.uint32))
    # 23 bits and a half: with one bit more the largest would round to 1, whose normal is infinite.
    return (tf.cast(tf.bitwise.right_shift(bits, 9), tf.float32) + 0.5) * 2.0**-23


def normals(seeds: tf.Tensor, j: tf.Tensor | int, shape: tuple[int, ...]) -> tf.Tensor:
    """Draw number `j` of each image: (n, *shape) float32, standard normal."""
    return math.sqrt(2) * tf.math.erfinv(2 * uniforms(seeds, j, shape) - 1)


def rise_masks(seeds: tf.Tensor, j: tf.Tensor | int, grid: int, keep: float, size: tuple[int, int]) -> tf.Tensor:
    """Mask number `j` of each image, as in Sec. 3.2 of Petsiuk et al. 2018.

    `grid` x `grid` cells, each open with probability `keep`, are enlarged (bilinear) to one cell more than the image on
    each axis, and cut out at a random place.

    Returns:
        (n, H, W) float32 in [0, 1].
    """
    draws = uniforms(seeds, j, (grid * grid + 2,))
    cells = tf.cast(draws[:, 2:] < keep, tf.float32)
    cells = tf.reshape(cells, [-1, grid, grid])
    down, right = (_enlarge(draws[:, axis], grid, size[axis]) for axis in (0, 1))
    return tf.einsum("nya,nab,nxb->nyx", down, cells, right)


def _enlarge(draw: tf.Tensor, grid: int, size: int) -> tf.Tensor:
    """Weights of bilinear interpolation from cells to pixels along one axis, (n, size, grid)."""
    cell = -(-size // grid)
    offset = tf.floor(draw * cell)[:, tf.newaxis]
    pixels = offset + tf.range(size, dtype=tf.float32) + 0.5
    places = tf.clip_by_value(pixels * (grid / ((grid + 1) * cell)) - 0.5, 0, grid - 1)
    return tf.nn.relu(1 - tf.abs(places[..., tf.newaxis] - tf.range(grid, dtype=tf.float32)))


def _vary(seeds: tf.Tensor, seed: int) -> tf.Tensor:
    if seed == 0:
        return seeds
    words = _mix(tf.constant([seed % 2**32, (seed + 2**31) % 2**32], tf.uint32))
    return tf.bitwise.bitwise_xor(seeds, tf.bitcast(words, tf.int32))


def _mix(words: tf.Tensor) -> tf.Tensor:
    """A bijection of 32-bit words that spreads every bit over all of them (the finaliser of MurmurHash3)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(shift, tf.uint32)))
        words *= tf.constant(factor, tf.uint32)
    return tf.bitwise.bitwise_xor(words, tf.bitwise.right_shift(words, tf.constant(16, tf.uint32)))
