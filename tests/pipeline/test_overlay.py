"""Overlays: a PNG that every reader opens, with the map where it belongs and the photograph untouched elsewhere."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.geometry import Geometry, fit_view
from pipeline.overlay import STYLES, color_table, encode_png, render_overlay


def _open(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _geometry(mode: str, image_size: tuple[int, int], input_size: tuple[int, int] = (32, 32)) -> Geometry:
    return Geometry(*image_size, fit_view(mode, image_size, input_size))


def _photograph(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def _render(
    photograph: np.ndarray, values: np.ndarray, mode: str = "stretch", style: str = "blend", **options
) -> np.ndarray:
    geometry = _geometry(mode, (photograph.shape[1], photograph.shape[0]))
    values = np.asarray(values, np.float32)
    data = render_overlay(
        Image.fromarray(photograph),
        values,
        geometry,
        style,
        options.get("colormap", "inferno"),
        options.get("max_side"),
    )
    return _open(data)


# PNG


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (64, 33), (500, 375)])
def test_a_png_is_decoded_to_the_very_pixels(size: tuple[int, int], channels: int) -> None:
    width, height = size
    rng = np.random.default_rng(width)
    for pixels in (
        rng.integers(0, 256, (height, width, channels), np.uint8),
        np.zeros((height, width, channels), np.uint8),
        np.full((height, width, channels), 255, np.uint8),
        np.broadcast_to(np.arange(height, dtype=np.uint8)[:, None, None], (height, width, channels)),
    ):
        found = _open(encode_png(pixels))
        assert found.shape == pixels.shape
        np.testing.assert_array_equal(found, pixels)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([3, 4]), st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_a_png_of_any_size_is_decoded_to_the_very_pixels(width: int, height: int, channels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    np.testing.assert_array_equal(_open(encode_png(pixels)), pixels)


def test_pixels_may_lie_in_memory_in_any_way() -> None:
    pixels = _photograph(20, 10)
    for view in (pixels[::-1], pixels[:, ::-1], pixels[..., ::-1], pixels[::2, ::3], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(_open(encode_png(view)), view)


def test_a_png_follows_the_standard_byte_by_byte() -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]], [[2, 2, 2], [4, 4, 7]]], np.uint8)
    data = encode_png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = [], data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        name, body, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert checksum == struct.pack(">I", zlib.crc32(name + body))
        chunks.append((name, body))
        rest = rest[12 + length :]
    assert [name for name, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[0][1] == struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    # zlib of the standard library reads the body; filter 2 is the difference to the row above, modulo 256.
    assert zlib.decompress(chunks[1][1]) == bytes([2, 1, 2, 3, 4, 5, 6, 2, 1, 0, 255, 0, 255, 1])


def test_a_smooth_picture_becomes_a_small_file() -> None:
    smooth = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    assert len(encode_png(smooth)) < smooth.size / 50


# Colour maps


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("gray", (0, 0, 0), (255, 255, 255)),
        ("viridis", (68, 1, 84), (253, 231, 37)),
        ("inferno", (0, 0, 4), (252, 255, 164)),
    ],
)
def test_a_colour_table_runs_from_the_maps_first_colour_to_its_last(name: str, first: tuple, last: tuple) -> None:
    colors, opacity = color_table(name)
    assert (len(colors), len(opacity)) == (768, 256)
    np.testing.assert_allclose(list(colors[:3]), first, atol=1)
    np.testing.assert_allclose(list(colors[-3:]), last, atol=1)


def test_opacity_is_as_strong_as_the_map_up_to_85_percent() -> None:
    _, opacity = color_table("viridis")
    np.testing.assert_allclose(opacity, 0.85 * np.arange(256), atol=0.5)


def _lightness(colors: bytes) -> np.ndarray:
    """CIE L*, 0 to 100, of sRGB bytes."""
    srgb = np.frombuffer(colors, np.uint8).reshape(-1, 3) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("name", ["inferno", "viridis", "cividis", "magma", "gray"])
def test_a_stronger_value_is_never_darker_in_the_maps_that_are_recommended(name: str) -> None:
    lightness = _lightness(color_table(name)[0])
    assert np.diff(lightness).min() > -0.4, "beyond the rounding to bytes"
    assert lightness[-1] - lightness[0] > 60


@pytest.mark.parametrize("name", ["infrared", "", "no such map"])
def test_an_unknown_colour_map_is_told_with_known_ones(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"there is no colour map '{name}': try inferno, viridis, cividis, magma or gray"
    ):
        color_table(name)


# Overlays


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_where_the_map_is_zero_the_photograph_is_untouched(mode: str) -> None:
    photograph = _photograph(61, 40)
    np.testing.assert_array_equal(_render(photograph, np.zeros((7, 7)), mode), photograph)
    half = np.zeros((4, 4))
    half[:, 3] = 1  # its influence ends at the centres of column 2
    found = _render(photograph, half, "stretch")
    np.testing.assert_array_equal(found[:, : int(61 * 2.5 / 4)], photograph[:, : int(61 * 2.5 / 4)])
    assert np.abs(found[:, 55:].astype(int) - photograph[:, 55:]).mean() > 20


def test_outside_the_view_the_photograph_is_untouched() -> None:
    photograph = _photograph(90, 40)  # the crop sees columns 25 to 65
    found = _render(photograph, np.ones((7, 7)), "crop")
    np.testing.assert_array_equal(found[:, :25], photograph[:, :25])
    np.testing.assert_array_equal(found[:, 65:], photograph[:, 65:])
    layer = _render(photograph, np.ones((7, 7)), "crop", "layer")
    assert set(np.unique(layer[:, :25, 3])) == {0}
    assert set(np.unique(layer[:, 25:65, 3])) == {round(0.85 * 255)}


@pytest.mark.parametrize("colormap", ["inferno", "viridis", "gray"])
@pytest.mark.parametrize("value", [0.25, 0.5, 1.0])
def test_a_blend_is_the_maps_colour_by_the_maps_strength_over_the_photograph(colormap: str, value: float) -> None:
    photograph = _photograph(30, 20)
    found = _render(photograph, np.full((3, 3), value), colormap=colormap)
    index = round(255 * value)
    color = np.frombuffer(color_table(colormap)[0], np.uint8).reshape(256, 3)[index]
    alpha = 0.85 * index / 255
    np.testing.assert_allclose(found.astype(float), alpha * color + (1 - alpha) * photograph, atol=1.5)


def test_a_strong_place_takes_the_maps_brightest_colour_and_a_weak_one_keeps_the_photograph() -> None:
    values = np.zeros((5, 5))
    values[1, 3] = 1
    photograph = np.full((100, 100, 3), 90, np.uint8)
    found = _render(photograph, values, colormap="gray").astype(int)
    y, x = np.unravel_index(found[..., 0].argmax(), (100, 100))
    assert (abs(x + 0.5 - 70) <= 1, abs(y + 0.5 - 30) <= 1) == (True, True)
    assert found[y, x, 0] > 200  # white at 85 % over 90 is 230, less what interpolation takes from the peak
    assert (found[60:, :40] == 90).all()


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_the_alpha_of_a_layer_is_the_maps_strength(mode: str) -> None:
    from pipeline.geometry import project_map

    values = np.random.default_rng(6).random((5, 7)).astype(np.float32)
    layer = _render(_photograph(70, 41), values, mode, "layer", colormap="viridis")
    heat = np.rint(255 * project_map(values, _geometry(mode, (70, 41)))).astype(int)
    assert layer.shape == (41, 70, 4)
    np.testing.assert_allclose(layer[..., 3].astype(int), 0.85 * heat, atol=0.5)
    table = np.frombuffer(color_table("viridis")[0], np.uint8).reshape(256, 3)
    np.testing.assert_array_equal(layer[..., :3], table[heat])


def test_a_layer_over_the_photograph_is_the_blend() -> None:
    photograph, values = _photograph(50, 30), np.random.default_rng(7).random((4, 4))
    blend = _render(photograph, values)
    layer = Image.fromarray(_render(photograph, values, style="layer"))
    below = Image.fromarray(photograph).convert("RGBA")
    composed = np.asarray(Image.alpha_composite(below, layer).convert("RGB"))
    np.testing.assert_allclose(blend.astype(int), composed.astype(int), atol=1)


def test_values_beyond_the_range_are_clipped_and_do_not_wrap() -> None:
    photograph = _photograph(12, 12)
    np.testing.assert_array_equal(_render(photograph, np.full((2, 2), 7.0)), _render(photograph, np.full((2, 2), 1.0)))
    np.testing.assert_array_equal(_render(photograph, np.full((2, 2), -0.5)), photograph)


@pytest.mark.parametrize("style", ["blend", "layer"])
@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [((300, 150), 100, (100, 50)), ((150, 300), 60, (30, 60)), ((40, 30), 40, (40, 30)), ((40, 30), 500, (40, 30))],
)
def test_the_longest_side_is_limited_and_never_enlarged(
    style: str, size: tuple[int, int], max_side: int, expected: tuple[int, int]
) -> None:
    found = _render(_photograph(*size), np.eye(3), style=style, max_side=max_side)
    assert (found.shape[1], found.shape[0]) == expected
    assert found.shape[2] == (4 if style == "layer" else 3)


def test_a_smaller_overlay_shows_the_map_in_the_same_place() -> None:
    values = np.zeros((4, 4))
    values[3, 0] = 1
    black = np.zeros((200, 400, 3), np.uint8)
    small = _render(black, values, colormap="gray", max_side=80)[..., 0]
    assert small[35, 10] > 180
    assert small[:20].max() == 0
    assert small[:, 40:].max() == 0


def test_rendering_leaves_the_photograph_of_the_caller_alone() -> None:
    photograph = Image.fromarray(_photograph(64, 64))
    before = photograph.tobytes()
    for style in ("blend", "layer"):
        render_overlay(photograph, np.ones((2, 2), np.float32), _geometry("pad", (64, 64)), style, "gray", 16)
    assert photograph.size == (64, 64)
    assert photograph.tobytes() == before


def test_the_styles_are_these() -> None:
    assert STYLES == ("blend", "layer", "none")
