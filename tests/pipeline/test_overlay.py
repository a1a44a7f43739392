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

from pipeline.geometry import Geometry, fit_view, project_map
from pipeline.overlay import STYLES, color_table, draw_overlay
from pipeline.png import encode_png, fingerprint

PALETTE = np.random.default_rng(9).integers(0, 256, (256, 4), np.uint8)  # RGBA


def _open(data: bytes) -> np.ndarray:
    """What a PNG says of each pixel: its RGB, or its index into the palette."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode in ("RGB", "P")
        return np.asarray(image)


def _open_layer(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "P"
        return np.asarray(image.convert("RGBA"))


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = [], data[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        name, body, checksum = rest[4:8], rest[8 : 8 + length], rest[8 + length : 12 + length]
        assert checksum == struct.pack(">I", zlib.crc32(name + body))
        chunks.append((name, body))
        rest = rest[12 + length :]
    return chunks


def _geometry(mode: str, image_size: tuple[int, int], input_size: tuple[int, int] = (32, 32)) -> Geometry:
    return Geometry(*image_size, fit_view(mode, image_size, input_size))


def _photograph(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def _render(
    photograph: np.ndarray, values: np.ndarray, mode: str = "stretch", style: str = "blend", **options
) -> np.ndarray:
    geometry = _geometry(mode, (photograph.shape[1], photograph.shape[0]))
    values, colormap = np.asarray(values, np.float32), options.get("colormap", "inferno")
    drawn = draw_overlay(Image.fromarray(photograph), values, geometry, style, colormap, options.get("max_side"))
    data = encode_png(drawn, color_table(colormap))
    return _open_layer(data) if style == "layer" else _open(data)


# PNG


def test_a_fingerprint_is_of_the_pixels_and_not_of_how_they_are_packed() -> None:
    pixels = _photograph(20, 10)
    png = encode_png(pixels)
    chunks = _chunks(png)
    packed = zlib.compress(zlib.decompress(dict(chunks)[b"IDAT"]), 9)
    parts = [(name, packed if name == b"IDAT" else data) for name, data in chunks]
    again = png[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    assert again != png
    assert fingerprint(again) == fingerprint(png) != fingerprint(encode_png(pixels[::-1]))
    assert fingerprint(png) != fingerprint(encode_png(pixels.reshape(20, 10, 3)))
    indices = pixels[..., 0]
    assert fingerprint(encode_png(indices, PALETTE.tobytes())) != fingerprint(
        encode_png(indices, PALETTE[::-1].tobytes())
    )


def test_no_damaged_file_has_a_fingerprint() -> None:
    png = encode_png(_photograph(9, 5)[..., 0], PALETTE.tobytes())
    assert fingerprint(png) is not None
    for place in range(len(png)):
        assert fingerprint(png[:place]) is None
        flipped = bytearray(png)
        flipped[place] ^= 1
        assert fingerprint(bytes(flipped)) is None
    assert fingerprint(png + b"x") is None
    assert fingerprint(b"") is None


@pytest.mark.parametrize("channels", [(3,), ()])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (64, 33), (500, 375)])
def test_a_png_is_decoded_to_the_very_pixels(size: tuple[int, int], channels: tuple[int, ...]) -> None:
    shape = (*size[::-1], *channels)
    for pixels in (
        np.random.default_rng(size[0]).integers(0, 256, shape, np.uint8),
        np.zeros(shape, np.uint8),
        np.full(shape, 255, np.uint8),
        np.broadcast_to(np.arange(size[1], dtype=np.uint8).reshape(-1, *[1] * len(shape[1:])), shape),
    ):
        found = _open(encode_png(pixels, PALETTE.tobytes()))
        assert found.shape == pixels.shape
        np.testing.assert_array_equal(found, pixels)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([(3,), ()]), st.integers(0, 2**32 - 1))
@settings(deadline=None, derandomize=True, max_examples=100)
def test_a_png_of_any_size_is_decoded_to_the_very_pixels(width: int, height: int, channels: tuple, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    np.testing.assert_array_equal(_open(encode_png(pixels, PALETTE.tobytes())), pixels)


@pytest.mark.parametrize("pixels", [_photograph(20, 10), _photograph(20, 10)[..., 0]], ids=["RGB", "indices"])
def test_pixels_may_lie_in_memory_in_any_way(pixels: np.ndarray) -> None:
    for view in (pixels[::-1], pixels[:, ::-1], pixels[..., ::-1], pixels[::2, ::3], np.asfortranarray(pixels)):
        np.testing.assert_array_equal(_open(encode_png(view, PALETTE.tobytes())), view)


def test_indices_become_the_palettes_colours_and_opacities() -> None:
    indices = np.random.default_rng(3).permutation(256).astype(np.uint8).reshape(8, 32)
    found = _open_layer(encode_png(indices, PALETTE.tobytes()))
    np.testing.assert_array_equal(found, PALETTE[indices])


def test_a_png_follows_the_standard_byte_by_byte() -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]], [[2, 2, 2], [4, 4, 7]]], np.uint8)
    chunks = _chunks(encode_png(pixels))
    assert [name for name, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[0][1] == struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    # zlib of the standard library reads the body; filter 2 is the difference to the row above, modulo 256.
    assert zlib.decompress(chunks[1][1]) == bytes([2, 1, 2, 3, 4, 5, 6, 2, 1, 0, 255, 0, 255, 1])


def test_a_png_of_indices_follows_the_standard_byte_by_byte() -> None:
    chunks = _chunks(encode_png(np.array([[5, 7, 4], [0, 0, 255]], np.uint8), PALETTE.tobytes()))
    assert [name for name, _ in chunks] == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]  # in the standard's order
    bodies = dict(chunks)
    assert bodies[b"IHDR"] == struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0)
    assert bodies[b"PLTE"] == bytes(PALETTE[:, :3].ravel())
    assert bodies[b"tRNS"] == bytes(PALETTE[:, 3])
    # Filter 1 is the difference to the pixel on the left, modulo 256.
    assert zlib.decompress(bodies[b"IDAT"]) == bytes([1, 5, 2, 253, 1, 0, 0, 255])


def test_the_palette_is_no_part_of_a_png_of_rgb_pixels() -> None:
    pixels = _photograph(20, 10)
    assert encode_png(pixels, PALETTE.tobytes()) == encode_png(pixels)


@pytest.mark.parametrize("channels", [(3,), ()])
def test_a_reader_that_remembers_no_more_than_the_header_says_reads_all(channels: tuple[int, ...]) -> None:
    # Filtered rows that repeat after 300 bytes and after 3,000: deflate is to refer to the near ones only.
    block = np.random.default_rng(0).integers(0, 256, (10, 300), np.uint8)
    rows = np.tile(block, (4, 10)).cumsum(axis=0 if channels else 1, dtype=np.uint8)
    data = dict(_chunks(encode_png(rows.reshape(40, -1, *channels), PALETTE.tobytes())))[b"IDAT"]
    assert len(data) < 0.9 * rows.size  # it refers to something: the rows are noise
    window = 8 + (data[0] >> 4)  # zlib's header: the logarithm of the window's size, less 8
    assert window == 9
    reader, found, rest = zlib.decompressobj(window), b"", data
    while not reader.eof:
        found += reader.decompress(rest, 64)  # a few bytes at a time: the rest must come from the window
        rest = reader.unconsumed_tail
    assert found == zlib.decompress(data)
    assert len(found) == rows.size + 40


def test_a_smooth_picture_becomes_a_small_file() -> None:
    smooth = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    assert len(encode_png(smooth)) < smooth.size / 50


def test_the_layer_of_a_coarse_map_is_a_small_file() -> None:
    values = np.random.default_rng(4).random((7, 7)).astype(np.float32)
    indices = draw_overlay(None, values, _geometry("stretch", (500, 375)), "layer", "inferno", None)
    assert len(encode_png(indices, color_table("inferno"))) < indices.size / 8


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
    np.testing.assert_allclose(_table(name)[[0, -1], :3], [first, last], atol=1)


def test_opacity_is_as_strong_as_the_map_up_to_85_percent() -> None:
    np.testing.assert_allclose(_table("viridis")[:, 3], 0.85 * np.arange(256), atol=0.5)


def _table(name: str) -> np.ndarray:
    return np.frombuffer(color_table(name), np.uint8).reshape(256, 4)


def _lightness(colors: np.ndarray) -> np.ndarray:
    """CIE L*, 0 to 100, of sRGB bytes."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize("name", ["inferno", "viridis", "cividis", "magma", "gray"])
def test_a_stronger_value_is_never_darker_in_the_maps_that_are_recommended(name: str) -> None:
    lightness = _lightness(_table(name)[:, :3])
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
    color = _table(colormap)[index, :3]
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
    values = np.random.default_rng(6).random((5, 7)).astype(np.float32)
    layer = _render(_photograph(70, 41), values, mode, "layer", colormap="viridis")
    heat = np.rint(255 * project_map(values, _geometry(mode, (70, 41)))).astype(int)
    assert layer.shape == (41, 70, 4)
    np.testing.assert_allclose(layer[..., 3].astype(int), 0.85 * heat, atol=0.5)
    np.testing.assert_array_equal(layer[..., :3], _table("viridis")[heat, :3])


@pytest.mark.parametrize("size", [(70, 41), (500, 375), (1, 9)])
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_a_layer_is_drawn_as_the_maps_levels_whatever_the_colours(mode: str, size: tuple[int, int]) -> None:
    values, geometry = np.random.default_rng(8).uniform(-0.2, 1.2, (6, 7)).astype(np.float32), _geometry(mode, size)
    levels = np.rint(255 * np.clip(project_map(values, geometry), 0, 1)).astype(int)
    found = draw_overlay(None, values, geometry, "layer", "viridis", None)
    assert (found.shape, found.dtype) == (size[::-1], np.uint8)
    # A value that lies half-way between two levels, to the last bit of float32, may fall to either.
    assert (found != levels).mean() <= 1e-4
    assert np.abs(found - levels).max() <= 1
    np.testing.assert_array_equal(found, draw_overlay(None, values, geometry, "layer", "gray", None))


def test_a_layer_over_the_photograph_is_the_blend() -> None:
    photograph, values = _photograph(50, 30), np.random.default_rng(7).random((4, 4))
    blend = _render(photograph, values)
    layer = Image.fromarray(_render(photograph, values, style="layer"))
    below = Image.fromarray(photograph).convert("RGBA")
    composed = np.asarray(Image.alpha_composite(below, layer).convert("RGB"))
    np.testing.assert_allclose(blend.astype(int), composed.astype(int), atol=1)


def _render_slowly(photograph: np.ndarray, values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The whole map in floating point, one rounding to a colour's index, and one to a grey level."""
    index = np.rint(255 * np.clip(project_map(values, geometry), 0, 1)).astype(int)
    color, alpha = _table("inferno")[index, :3], _table("inferno")[index, 3:] / 255
    return np.rint(alpha * color + (1 - alpha) * photograph)


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(61, 40), (40, 61), (333, 500), (501, 375), (1, 9), (300, 3)])
def test_a_blend_is_that_of_the_slow_definition_within_one_grey_level(mode: str, size: tuple[int, int]) -> None:
    photograph = _photograph(*size)
    values = np.random.default_rng(8).uniform(-0.2, 1.2, (7, 6)).astype(np.float32)
    expected = _render_slowly(photograph, values, _geometry(mode, size))
    difference = np.abs(_render(photograph, values, mode).astype(int) - expected)
    # A value that lies on the border of two indices, to the last bit of float32, may fall to either.
    assert (difference > 1).mean() <= 1e-4
    assert difference.max() <= 3


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


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(800, 640), (801, 641)])  # the last pixels of the latter stand for a line each
def test_a_smaller_overlay_may_come_from_a_smaller_photograph(mode: str, size: tuple[int, int]) -> None:
    ramp = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=-1) / max(size)
    pixels = np.uint8(255 * np.concatenate([ramp, ramp[..., :1] > 0.9], axis=-1))
    padded = np.pad(pixels, ((0, -size[1] % 8), (0, -size[0] % 8), (0, 0)), mode="edge")
    reduced = Image.fromarray(padded).reduce(8)
    values, geometry = np.random.default_rng(1).random((5, 5)).astype(np.float32), _geometry(mode, size)
    whole, part = (
        draw_overlay(picture, values, geometry, "blend", "inferno", 30, reduction).astype(int)
        for picture, reduction in ((Image.fromarray(pixels), 1), (reduced, 8))
    )
    assert whole.shape == part.shape == (24, 30, 3)
    assert np.abs(whole - part).mean() < 0.5
    assert np.abs(whole - part).max() <= 10


@pytest.mark.parametrize("size", [(3000, 4), (4, 3000)])
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_a_long_and_thin_image_has_a_small_overlay_too(size: tuple[int, int], mode: str) -> None:
    found = _render(_photograph(*size), np.ones((3, 3)), mode, "layer", max_side=20)
    assert sorted(found.shape[:2]) == [1, 20]
    opaque = int((found[..., 3] == 217).sum())
    assert opaque == (1 if mode == "crop" else 20)


def test_a_layer_needs_no_photograph() -> None:
    values, geometry = np.random.default_rng(2).random((4, 4)).astype(np.float32), _geometry("crop", (70, 50))
    for max_side in (None, 30):
        with_it, without = (
            draw_overlay(picture, values, geometry, "layer", "inferno", max_side)
            for picture in (Image.fromarray(_photograph(70, 50)), None)
        )
        np.testing.assert_array_equal(with_it, without)


def test_drawing_leaves_the_photograph_of_the_caller_alone() -> None:
    photograph = Image.fromarray(_photograph(64, 64))
    before = photograph.tobytes()
    for style in ("blend", "layer"):
        for max_side in (None, 16):
            draw_overlay(photograph, np.ones((2, 2), np.float32), _geometry("pad", (64, 64)), style, "gray", max_side)
    assert photograph.size == (64, 64)
    assert photograph.tobytes() == before


def test_the_styles_are_these() -> None:
    assert STYLES == ("blend", "layer", "none")
