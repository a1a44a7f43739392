"""Whatever a folder of pictures holds: the right pixels, or one error that says what is wrong."""

from __future__ import annotations

import io
import struct
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from pipeline.decode import IMAGE_SUFFIXES, decode_image, decode_reduced
from pipeline.errors import ImageError
from pipeline.geometry import OVERSAMPLING, RESIZES, Geometry, fit_view, make_input

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def _encode(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def _decode(data: bytes, **options: int) -> np.ndarray:
    image = decode_image(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def _png(width: int, height: int, depth: int, color_type: int, body: bytes) -> bytes:
    """A PNG by hand: what Pillow cannot write, and headers that lie."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def _photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def _error(data: bytes, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, **options)
    assert caught.value.stage == "decode"
    assert str(caught.value).strip()
    return caught.value


# Pixels


@pytest.mark.parametrize("format_name", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_file_comes_back_exactly(format_name: str) -> None:
    pixels = _photograph()
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(pixels), format_name)), pixels)


def test_a_lossless_webp_comes_back_exactly() -> None:
    pixels = _photograph()
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(pixels), "WEBP", lossless=True)), pixels)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "GIF", "JPEG2000", "AVIF"])
def test_a_lossy_format_is_read(format_name: str) -> None:
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    left_red = Image.new("RGB", (64, 32), BLUE)
    left_red.paste(RED, (0, 0, 32, 32))
    pixels = _decode(_encode(left_red, format_name)).astype(int)
    assert pixels.shape == (32, 64, 3)
    np.testing.assert_allclose(pixels[:, :24].mean(axis=(0, 1)), RED, atol=6)
    np.testing.assert_allclose(pixels[:, 40:].mean(axis=(0, 1)), BLUE, atol=6)


def test_grey_becomes_three_equal_channels() -> None:
    grey = np.array([[0, 127], [200, 255]], np.uint8)
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(grey))), np.stack([grey] * 3, axis=-1))


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    expected = [[[0] * 3, [255] * 3], [[255] * 3, [0] * 3]]
    np.testing.assert_array_equal(_decode(_encode(bits)), expected)


def test_transparency_of_rgba_is_laid_over_white() -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128], [0, 100, 0, 51]]], np.uint8)
    expected = [[RED, WHITE, [127] * 3, [204, 224, 204]]]
    np.testing.assert_allclose(_decode(_encode(Image.fromarray(pixels))).astype(int), expected, atol=1)


def test_transparency_of_grey_is_laid_over_white() -> None:
    pixels = np.array([[[10, 255], [10, 0], [0, 128]]], np.uint8)
    picture = Image.merge("LA", [Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in (0, 1)])
    found = _decode(_encode(picture))
    np.testing.assert_allclose(found.astype(int), [[[10] * 3, WHITE, [127] * 3]], atol=1)


def test_a_palette_shows_its_colours() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, *BLUE])
    picture.putdata([2, 0, 1])
    np.testing.assert_array_equal(_decode(_encode(picture)), [[BLUE, RED, GREEN]])


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(format_name: str) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([*RED, *GREEN, *BLUE])
    picture.putdata([2, 0, 1])
    found = _decode(_encode(picture, format_name, transparency=0))
    np.testing.assert_array_equal(found, [[BLUE, WHITE, GREEN]])


def test_a_transparent_colour_of_an_opaque_mode_is_white() -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    np.testing.assert_array_equal(_decode(_encode(image, transparency=GREEN)), [[RED, WHITE]])


@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "seen"),
    [((0, 255, 255, 0), RED), ((255, 0, 255, 0), GREEN), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), WHITE)],
)
def test_cmyk_is_not_shown_as_its_negative(format_name: str, ink: tuple, seen: tuple) -> None:
    options = {"quality": 100} if format_name == "JPEG" else {}
    found = _decode(_encode(Image.new("CMYK", (16, 16), ink), format_name, **options))
    np.testing.assert_allclose(found.astype(int), np.broadcast_to(seen, (16, 16, 3)), atol=3)


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_shows_its_upper_byte(format_name: str) -> None:
    values = np.array([[0, 0x00FF, 0x1234, 0x8000, 0xFFFF]], np.uint16)
    found = _decode(_encode(Image.fromarray(values), format_name))
    np.testing.assert_array_equal(found, np.stack([[[0, 0, 0x12, 0x80, 0xFF]]] * 3, axis=-1))


def test_big_endian_sixteen_bit_grey_shows_its_upper_byte() -> None:
    values = np.array([[0x1234, 0xFF00, 0x0034]], np.uint16)
    picture = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(_decode(_encode(picture, "TIFF"))[..., 0], [[0x12, 0xFF, 0]])


def test_sixteen_bit_colour_shows_its_upper_byte() -> None:
    body = b"\0" + struct.pack(">HHH", 0xFF00, 0x8012, 0x00FF)
    np.testing.assert_array_equal(_decode(_png(1, 1, 16, 2, body)), [[[0xFF, 0x80, 0x00]]])


def test_thirty_two_bit_integers_hold_sixteen_bits_or_eight() -> None:
    wide = Image.fromarray(np.array([[0x1234, 0xFFFF, 0x1FFFF, -5]], np.int32))
    np.testing.assert_array_equal(_decode(_encode(wide, "TIFF"))[..., 1], [[0x12, 255, 255, 0]])
    narrow = Image.fromarray(np.array([[7, 255, 0, 128]], np.int32))
    np.testing.assert_array_equal(_decode(_encode(narrow, "TIFF"))[..., 2], [[7, 255, 0, 128]])


def test_a_very_long_and_thin_image_is_read() -> None:
    line = np.random.default_rng(1).integers(0, 256, (1, 30000, 3), np.uint8)
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(line))), line)
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(line.swapaxes(0, 1)))), line.swapaxes(0, 1))


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_shown(format_name: str) -> None:
    frames = [Image.new("RGB", (12, 8), color) for color in (RED, BLUE, GREEN)]
    options = {"lossless": True} if format_name == "WEBP" else {}
    data = _encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    np.testing.assert_array_equal(_decode(data), np.broadcast_to(RED, (8, 12, 3)))


# EXIF orientation


def _stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores an upright picture, from the EXIF standard: which side is row 0, which is column 0."""
    swapped = upright.swapaxes(0, 1)
    return {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: swapped,  # left, top
        6: swapped[::-1],  # right, top
        7: swapped[::-1, ::-1],  # right, bottom
        8: swapped[:, ::-1],  # left, bottom
    }[orientation]


def _exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block by hand: (tag, type, count, value of four bytes) each."""
    rows = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(4)


def _oriented(orientation: int) -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack("<I", orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_an_image_is_turned_upright(orientation: int, format_name: str) -> None:
    colors = np.array([[RED, GREEN, BLUE], [WHITE, (0, 0, 0), (255, 255, 0)]], np.uint8)
    upright = colors.repeat(16, axis=0).repeat(16, axis=1)  # 48 x 32, no symmetry
    picture = Image.fromarray(np.ascontiguousarray(_stored(upright, orientation)))
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow is built without AVIF")
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format_name, {})
    if format_name == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4", "max_threads": 1}
    if format_name == "TIFF":
        data = _encode(picture, format_name, tiffinfo={0x0112: orientation})
    else:
        data = _encode(picture, format_name, exif=_exif(_oriented(orientation)), **options)
    found = _decode(data)
    assert found.shape == (32, 48, 3)
    np.testing.assert_allclose(found.astype(int), upright, atol=3 if format_name in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
def test_a_tiff_is_turned_once_whoever_decodes_it(compression: str) -> None:
    pixels = _photograph()
    data = _encode(Image.fromarray(pixels), "TIFF", compression=compression, tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(_decode(data), np.rot90(pixels, -1))


def test_an_orientation_in_xmp_or_as_imagemagick_writes_it_counts() -> None:
    pixels = _photograph()
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(pixels), pnginfo=text)), pixels[::-1, ::-1])
    jpeg = _encode(Image.new("RGB", (40, 20)), "JPEG", xmp=b"<x><tiff:Orientation>6</tiff:Orientation></x>")
    assert _decode(jpeg).shape == (40, 20, 3)
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n      44\n" + _exif(_oriented(3)).hex())
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(pixels), pnginfo=text)), pixels[::-1, ::-1])


def test_an_orientation_that_is_no_hexadecimal_number_does_not_cost_the_image() -> None:
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n 44\nnonsense")
    np.testing.assert_array_equal(_decode(_encode(Image.fromarray(_photograph()), pnginfo=text)), _photograph())


def test_an_orientation_in_exif_counts_more_than_one_in_xmp() -> None:
    data = _encode(Image.new("RGB", (40, 20)), "JPEG", exif=_exif(_oriented(1)), xmp=b'<x tiff:Orientation="6"/>')
    assert _decode(data).shape == (20, 40, 3)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_an_orientation_that_does_not_exist_is_no_orientation(orientation: int) -> None:
    pixels = _photograph()
    found = _decode(_encode(Image.fromarray(pixels), exif=_exif(_oriented(orientation))))
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("seed", range(4))
def test_rubbish_in_place_of_exif_does_not_cost_the_image(seed: int) -> None:
    junk = np.random.default_rng(seed).bytes(80)
    for block in (b"Exif\0\0" + junk, b"Exif\0\0II*\0\x08\0\0\0" + junk):
        found = _decode(_encode(Image.new("RGB", (40, 20), RED), "JPEG", exif=block))
        np.testing.assert_allclose(found.astype(int), np.broadcast_to(RED, (20, 40, 3)), atol=3)


def test_a_damaged_tag_beside_the_orientation_does_not_cost_the_image() -> None:
    block = _exif(_oriented(6), (0x011A, 2, 4, b"abc\0"), (0x8825, 2, 4, b"abc\0"))  # a resolution in letters
    found = _decode(_encode(Image.new("RGB", (40, 20), RED), "JPEG", exif=block))
    assert found.shape == (40, 20, 3)


# Photographs much larger than needed


NEEDED = (10, 6)  # OVERSAMPLING times as many pixels are 30 x 18
LIMIT = 100_000_000


def _camera_picture(width: int, height: int) -> Image.Image:
    """Soft shapes, fine texture, and a hard edge close to each side: what a shift or a wrong size would show."""
    rng = np.random.default_rng(9)
    shapes = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(shapes) * 0.7 + rng.normal(30, 12, (height, width, 1))
    for edge in (0.05, 0.93):
        pixels[:, round(edge * width) :] = 255 - pixels[:, round(edge * width) :]
        pixels[round(edge * height) :] = 255 - pixels[round(edge * height) :]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jpeg(picture: Image.Image, **options: object) -> bytes:
    return _encode(picture, "JPEG", quality=95, **options)


@pytest.mark.parametrize(
    ("size", "reduction"),
    [
        ((60, 36), 2),
        ((59, 36), 1),
        ((60, 35), 1),
        ((119, 72), 2),
        ((120, 72), 4),
        ((2000, 71), 2),
        ((239, 144), 4),
        ((240, 144), 8),
        ((2000, 1000), 8),
    ],
)
def test_a_jpeg_is_reduced_as_far_as_three_pixels_are_left_for_each(size: tuple[int, int], reduction: int) -> None:
    assert OVERSAMPLING == 3
    found = decode_reduced(_jpeg(Image.new("RGB", size, GREEN)), LIMIT, NEEDED)
    assert (found.width, found.height, found.reduction) == (*size, reduction)
    assert found.image.size == tuple(-(-side // reduction) for side in size)
    assert found.image.mode == "RGB"
    assert np.abs(np.asarray(found.image).astype(int) - GREEN).max() <= 3


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_come_whole(format_name: str) -> None:
    data = _encode(_camera_picture(300, 200), format_name)
    found = decode_reduced(data, LIMIT, NEEDED)
    assert (found.width, found.height, found.reduction) == (300, 200, 1)
    np.testing.assert_array_equal(np.asarray(found.image), _decode(data))


def test_without_a_size_that_is_needed_a_jpeg_comes_whole() -> None:
    data = _jpeg(_camera_picture(300, 200))
    found = decode_reduced(data, LIMIT)
    assert (found.width, found.height, found.reduction) == (300, 200, 1)
    np.testing.assert_array_equal(np.asarray(found.image), _decode(data))


def _input_of(data: bytes, mode: str, needed: tuple[int, int] | None) -> tuple[np.ndarray, int]:
    found = decode_reduced(data, LIMIT, needed)
    geometry = Geometry(found.width, found.height, fit_view(mode, (found.width, found.height), (15, 20)))
    return make_input(found.image, geometry, found.reduction).astype(int), found.reduction


def _assert_looks_the_same(data: bytes, mode: str, reduction: int) -> None:
    whole, _ = _input_of(data, mode, None)
    found, chosen = _input_of(data, mode, (15, 20))
    assert chosen == reduction
    assert np.abs(found - whole).mean() < 0.6
    assert np.abs(found - whole).max() <= 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("size", "upright", "sideways"), [((400, 560), 8, 4), ((560, 400), 4, 8), ((401, 553), 8, 1), ((553, 401), 4, 1)]
)
def test_the_models_input_is_that_of_the_whole_photograph(
    orientation: int, size: tuple[int, int], upright: int, sideways: int
) -> None:
    # Where a side does not divide, only a photograph that need not be turned is reduced.
    turned = upright if orientation < 5 else sideways
    reduction = turned if orientation == 1 or sideways > 1 else 1
    data = _jpeg(_camera_picture(*size), exif=_exif(_oriented(orientation)))
    for mode in RESIZES:
        _assert_looks_the_same(data, mode, reduction)


def test_a_turned_photograph_is_measured_upright() -> None:
    picture = Image.new("RGB", (240, 160), RED)  # 160 x 240 upright, where 8 x 30 allows a reduction by 2 only
    for orientation, reduction in ((1, 4), (3, 4), (6, 2), (8, 2)):
        found = decode_reduced(_jpeg(picture, exif=_exif(_oriented(orientation))), LIMIT, (20, 10))
        upright = (240, 160) if orientation < 5 else (160, 240)
        assert (found.width, found.height, found.reduction) == (*upright, reduction)
        assert found.image.size == (upright[0] // reduction, upright[1] // reduction)


@pytest.mark.parametrize("kind", ["grey", "CMYK", "progressive", "several pictures", "4:2:0"])
def test_every_kind_of_jpeg_is_reduced_and_looks_the_same(kind: str) -> None:
    picture = _camera_picture(320, 240)
    data = {
        "grey": lambda: _jpeg(picture.convert("L")),
        "CMYK": lambda: _jpeg(picture.convert("CMYK")),
        "progressive": lambda: _jpeg(picture, progressive=True),
        "several pictures": lambda: _encode(picture, "MPO", save_all=True, append_images=[picture.reduce(4)]),
        "4:2:0": lambda: _jpeg(picture, subsampling=2),
    }[kind]()
    _assert_looks_the_same(data, "stretch", 4)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_a_truncated_jpeg_is_an_error_at_any_size(share: float, options: dict) -> None:
    data = _jpeg(_camera_picture(320, 240), **options)
    messages = []
    for needed in (None, NEEDED):
        with pytest.raises(ImageError, match="truncated") as caught:
            decode_reduced(data[: int(share * len(data))], LIMIT, needed)
        assert (caught.value.stage, caught.value.error_type) == ("decode", "BrokenImage")
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_the_limit_is_that_of_the_whole_image() -> None:
    data = _jpeg(Image.new("RGB", (640, 480)))
    assert decode_reduced(data, 640 * 480, NEEDED).reduction == 8
    with pytest.raises(ImageError, match="640 x 480 is more than 307199 pixels"):
        decode_reduced(data, 640 * 480 - 1, NEEDED)


@pytest.mark.parametrize("format_name", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_an_image_does_not_keep_the_bytes_of_its_file(format_name: str) -> None:
    frames = [Image.new("RGB", (64, 48), color) for color in (RED, BLUE)]
    options = {"save_all": True, "append_images": frames[1:]} if format_name in ("MPO", "WEBP", "GIF", "TIFF") else {}
    data = _encode(frames[0], format_name, **options)
    before = sys.getrefcount(data)
    images = [decode_image(data), decode_reduced(data, LIMIT, (1, 1)).image]
    assert sys.getrefcount(data) == before
    assert {image.size for image in images} <= {(64, 48), (8, 6)}


# Errors


def test_an_empty_file_is_told_as_empty() -> None:
    error = _error(b"")
    assert error.error_type == "EmptyFile"
    assert "no bytes" in str(error)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "starts like a web page or XML"),
        (b"\n  <HTML><body>Sign in</body></HTML>", "starts like a web page or XML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "starts like a web page or XML"),
        (b"%PDF-1.7\n1 0 obj\n", "it is a PDF"),
        (b"hello, world", r"12 bytes that start with b'hello, w'"),
        (bytes(1000), r"1000 bytes that start with b'\x00\x00"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "63 bytes that start with b'version "),
    ],
    ids=["html", "html-late", "svg", "pdf", "text", "zeros", "git-lfs"],
)
def test_what_is_no_image_is_told_by_what_it_looks_like(data: bytes, hint: str) -> None:
    error = _error(data)
    assert error.error_type == "NotAnImage"
    assert hint in str(error)


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes_are_no_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert _error(rng.bytes(int(rng.integers(1, 3000)))).error_type == "NotAnImage"


def test_the_header_of_a_true_colour_tga_is_too_weak_to_be_an_image() -> None:
    # Such bytes are Targa by no more than a 2 in the third place: an error page or a database dump may have it.
    data = bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHBB", 5, 5, 24, 0) + b"x" * 80
    assert _error(data).error_type == "NotAnImage"


@pytest.mark.parametrize("format_name", ["EPS", "PDF"])
def test_what_pillow_would_hand_to_another_program_or_cannot_read_is_refused(format_name: str) -> None:
    assert _error(_encode(Image.new("RGB", (10, 10), RED), format_name)).error_type == "NotAnImage"


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_an_error_and_never_half_an_image(format_name: str, share: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    data = _encode(Image.fromarray(noise), format_name)
    error = _error(data[: int(share * len(data))])
    assert error.error_type in ("BrokenImage", "NotAnImage")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_damaged_file_is_told_by_its_format_and_with_a_way_out(format_name: str) -> None:
    data = _encode(Image.fromarray(_photograph()), format_name)
    for share in (0.05, 0.6):
        message = str(_error(data[: 4 + int(share * len(data))]))
        assert {"WEBP": "WebP"}.get(format_name, format_name) in message
        assert "copy it once more" in message


def test_texts_of_a_png_that_are_too_long_are_told_as_such() -> None:
    text = PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    error = _error(_encode(Image.new("RGB", (4, 4)), pnginfo=text))
    assert error.error_type == "TooComplex"
    assert "remove them" in str(error)


def test_a_truncated_jpeg_says_so() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    data = _encode(Image.fromarray(noise), "JPEG")
    error = _error(data[: len(data) // 2])
    assert error.error_type == "BrokenImage"
    assert "runcated" in str(error)


def test_bytes_that_were_changed_inside_a_png_are_an_error() -> None:
    data = bytearray(_encode(Image.fromarray(_photograph())))
    data[len(data) // 2] ^= 0xFF
    assert _error(bytes(data)).error_type == "BrokenImage"


def test_a_file_of_one_signature_only_is_an_error() -> None:
    for head in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"II*\0",
        b"RIFF\0\0\0\0WEBP",
        b"P6",
        b"P6\n",
    ):
        assert _error(head).error_type in ("BrokenImage", "NotAnImage")


def test_floating_point_pixels_are_refused_with_a_way_out() -> None:
    error = _error(_encode(Image.new("F", (3, 3), 0.5), "TIFF"))
    assert error.error_type == "UnsupportedPixels"
    assert "floating-point" in str(error)
    assert "save as 8 or 16 bit" in str(error)


def test_an_image_of_exactly_the_limit_is_read_and_one_above_is_not() -> None:
    data = _encode(Image.new("RGB", (10, 7), GREEN))
    np.testing.assert_array_equal(_decode(data, max_pixels=70), np.broadcast_to(GREEN, (7, 10, 3)))
    error = _error(data, max_pixels=69)
    assert error.error_type == "TooLarge"
    assert str(error) == "10 x 7 is more than 69 pixels: raise --max-pixels to allow it"


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_header_of_a_huge_image_is_refused_before_anything_is_decoded(side: int) -> None:
    bomb = _png(side, side, 8, 2, bytes(10))  # 33 MB or 10 GB as pixels, and none of them there
    start = time.perf_counter()
    error = _error(bomb)
    assert time.perf_counter() - start < 1
    assert error.error_type == "TooLarge"
    assert f"{side} x {side} is more than 100000000 pixels: raise --max-pixels to allow it" in str(error)


def test_max_pixels_may_allow_more_than_pillow_does_by_default() -> None:
    width, height = 20_000, 10_000  # 200 million pixels of one bit; Pillow alone refuses from 179 million
    data = _png(width, height, 1, 0, bytes(100))  # cut short: nothing large is decoded here
    assert _error(data, max_pixels=300_000_000).error_type == "BrokenImage"


def test_decoding_leaves_the_settings_of_pillow_to_others() -> None:
    from PIL import ImageFile

    decode_image(_encode(Image.new("RGB", (4, 4))))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_folders_are_searched_for_the_common_suffixes_in_lower_case() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert IMAGE_SUFFIXES.isdisjoint({".pdf", ".eps", ".svg", ".json", ".txt"})
