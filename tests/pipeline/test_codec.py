"""A map survives its bytes: exact layout, honest scale, a bounded loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.codec import MAP_DTYPES, EncodedMap, decode_map, encode_map

FLOAT16_BOUND = 2.5e-4  # of the largest magnitude
UINT8_BOUND = 2e-3  # of the maximum

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
# Any finite float32, with subnormal numbers and magnitudes up to 1e38 in the same map.
ANY_MAPS = hnp.arrays(
    np.float32, SHAPES, elements=st.floats(-(2.0**126), 2.0**126, width=32, allow_nan=False, allow_infinity=False)
)
ONE_SIGN_MAPS = st.builds(
    lambda values, sign, exponent: (sign * values * np.float32(10.0) ** exponent).astype(np.float32),
    hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1, width=32)),
    st.sampled_from([-1, 1]),
    st.integers(-30, 38),
)
MAPS = st.one_of(ANY_MAPS, ONE_SIGN_MAPS)

unhurried = settings(deadline=None, derandomize=True, max_examples=200)


def test_float16_bytes_are_little_endian_in_c_order() -> None:
    encoded = encode_map(np.array([[1, -2], [0.5, 0]], np.float32))
    assert encoded == EncodedMap(2, 2, "<f2", 2.0, bytes.fromhex("0038 00bc 0034 0000"))


def test_uint8_bytes_are_one_a_cell_in_c_order() -> None:
    encoded = encode_map(np.array([[255, 51, 1.6], [0, -3, 1.4]], np.float32), "uint8")
    assert encoded == EncodedMap(2, 3, "u1", 1.0, bytes([255, 51, 2, 0, 0, 1]))


def test_known_bytes_decode_to_data_times_scale() -> None:
    half = EncodedMap(1, 3, "<f2", 3.0, bytes.fromhex("003c 00bc 0034"))
    np.testing.assert_array_equal(decode_map(half), np.array([[3, -3, 0.75]], np.float32))
    byte = EncodedMap(3, 1, "u1", 0.5, bytes([0, 1, 255]))
    np.testing.assert_array_equal(decode_map(byte), np.array([[0], [0.5], [127.5]], np.float32))
    assert decode_map(byte).dtype == np.float32


@pytest.mark.parametrize("dtype", MAP_DTYPES)
def test_memory_layout_of_the_map_does_not_matter(dtype: str) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = encode_map(values, dtype)
    assert encode_map(np.asfortranarray(values), dtype) == plain
    assert encode_map(np.repeat(values, 2, axis=1)[:, ::2], dtype) == plain
    assert (plain.height, plain.width) == (3, 4)


def test_float16_is_the_default_and_the_options_are_these_two() -> None:
    values = np.array([[1.0, -1.0]], np.float32)
    assert encode_map(values) == encode_map(values, "float16")
    assert MAP_DTYPES == {"float16": "<f2", "uint8": "u1"}


@pytest.mark.parametrize("dtype", MAP_DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float, dtype: str) -> None:
    with pytest.raises(ValueError, match="holds a value that is not finite"):
        encode_map(np.array([[1, bad], [0, 0]], np.float32), dtype)


@pytest.mark.parametrize("dtype", ["<f2", "float32", "f16", "", "UINT8"])
def test_an_unknown_dtype_is_refused_with_the_known_ones(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"one of float16, uint8, not '{dtype}'"):
        encode_map(np.ones((2, 2), np.float32), dtype)


@pytest.mark.parametrize("dtype", MAP_DTYPES)
def test_a_map_of_zeros_stays_zero_with_scale_zero(dtype: str) -> None:
    encoded = encode_map(np.zeros((2, 3), np.float32), dtype)
    assert encoded.scale == 0.0
    np.testing.assert_array_equal(decode_map(encoded), np.zeros((2, 3), np.float32))


def test_uint8_drops_what_is_negative_and_nothing_else() -> None:
    decoded = decode_map(encode_map(np.array([[-100, 10], [5, -0.001]], np.float32), "uint8"))
    np.testing.assert_allclose(decoded, [[0, 10], [5, 0]], atol=10 * UINT8_BOUND)
    assert decoded[0, 0] == 0
    assert decoded[1, 1] == 0


def test_uint8_of_an_all_negative_map_is_zero() -> None:
    encoded = encode_map(np.full((2, 2), -7, np.float32), "uint8")
    assert (encoded.scale, encoded.data) == (0.0, bytes(4))


def test_the_scale_is_what_float32_holds() -> None:
    for value in (0.1, 1 / 3, 7.7, 1e-30, 3e38):
        for dtype in MAP_DTYPES:
            scale = encode_map(np.array([[value]], np.float32), dtype).scale
            assert scale == float(np.float32(scale))


@given(MAPS)
@example(np.full((1, 1), np.finfo(np.float32).max, np.float32))
@example(np.full((2, 2), np.finfo(np.float32).smallest_subnormal, np.float32))
@example(np.array([[1e38, -1e-38]], np.float32))
@unhurried
def test_float16_keeps_every_value_within_its_bound(values: np.ndarray) -> None:
    encoded = encode_map(values)
    decoded = decode_map(encoded).astype(np.float64)
    largest = float(np.abs(values).max())
    assert decoded.shape == values.shape
    assert np.abs(decoded - values.astype(np.float64)).max() <= FLOAT16_BOUND * largest
    assert (decoded * values >= 0).all(), "a sign was turned"
    stored = np.frombuffer(encoded.data, "<f2")
    assert np.abs(stored).max() == (1 if largest else 0), "the strongest value uses the whole range, and no more"


@given(MAPS.filter(lambda values: values.max() <= 0 or values.max() > 1e-35))
@example(np.full((1, 1), np.finfo(np.float32).max, np.float32))
@unhurried
def test_uint8_keeps_every_positive_value_within_its_bound(values: np.ndarray) -> None:
    encoded = encode_map(values, "uint8")
    expected = np.maximum(values, 0).astype(np.float64)
    assert np.abs(decode_map(encoded) - expected).max() <= UINT8_BOUND * expected.max()
    assert max(encoded.data) == (255 if expected.max() > 0 else 0)


@pytest.mark.parametrize("steps", [1, 2, 200, 300, 1000, 65_000])
def test_uint8_of_the_smallest_numbers_neither_vanishes_nor_wraps_around(steps: int) -> None:
    # Of subnormal float32 numbers, whose scale cannot be divided any finer.
    values = np.array([[steps, 0]], np.uint32).view(np.float32)
    encoded = encode_map(values, "uint8")
    decoded = np.frombuffer(decode_map(encoded).tobytes(), np.uint32)
    assert encoded.scale > 0
    assert abs(int(decoded[0]) - steps) <= max(1, steps / 255)
    assert decoded[1] == 0


@given(st.floats(-(2.0**126), 2.0**126, width=32), SHAPES)
@unhurried
def test_a_constant_map_comes_back_exactly(value: float, shape: tuple[int, int]) -> None:
    values = np.full(shape, value, np.float32)
    np.testing.assert_array_equal(decode_map(encode_map(values)), values)


@pytest.mark.parametrize("dtype", MAP_DTYPES)
def test_encoding_what_was_decoded_changes_nothing_more(dtype: str) -> None:
    values = np.random.default_rng(3).normal(size=(7, 5)).astype(np.float32)
    once = decode_map(encode_map(values, dtype))
    np.testing.assert_allclose(decode_map(encode_map(once, dtype)), once, rtol=1e-6)
