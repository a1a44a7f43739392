"""Files that would exhaust a reader are refused ahead of it, and no ordinary one is."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from pipeline import precheck
from pipeline.decode import decode_image
from pipeline.errors import ImageError
from pipeline.precheck import Metered, describe, kind_of, orientation_of, refuse_bombs
from tests.faults.images import (
    bmp,
    chunk,
    encode,
    exif,
    gif,
    good_png,
    grey_tags,
    into_jpeg,
    jpeg,
    many_scans,
    oriented,
    photograph,
    pieces,
    scans_of,
    segment,
    tiff,
    tiled,
)

LIMIT = 10_000_000


def _refused(data: bytes, max_pixels: int = LIMIT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        refuse_bombs(data, max_pixels)
    assert caught.value.stage == "decode"
    return caught.value


# Kinds


@pytest.mark.parametrize(
    ("format_name", "kind"),
    [("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("TIFF", "TIFF"), ("WEBP", "WebP"), ("JPEG2000", "JPEG 2000"),
     ("BMP", None), ("PPM", None), ("EPS", None)],
)  # fmt: skip
def test_a_format_is_told_by_its_first_bytes(format_name: str, kind: str | None) -> None:
    assert kind_of(encode(photograph(), format_name)) == kind


def test_a_jpeg_behind_something_else_is_told_by_its_place() -> None:
    assert "begin at byte 5" in describe(b"12345" + jpeg())
    assert "begin at" not in describe(b"12345")


# JPEG


@pytest.mark.parametrize("extra", [88, 89, 90, 91])
def test_a_hundred_scans_are_read_and_one_more_is_not(extra: int) -> None:
    data = many_scans(extra, 32)
    count = len(scans_of(data)[1])
    if count <= 100:
        refuse_bombs(data, LIMIT)
    else:
        assert "more than 100 scans" in str(_refused(data))
    assert count == extra + 10


def test_the_larger_a_picture_the_fewer_its_scans() -> None:
    data = many_scans(50, 32)
    place = data.index(b"\xff\xc2") + 5
    refuse_bombs(data[:place] + struct.pack(">HH", 3000, 3000) + data[place + 4 :], LIMIT)
    assert "more than 40 scans" in str(
        _refused(data[:place] + struct.pack(">HH", 5000, 5000) + data[place + 4 :], 10**9)
    )


def test_scans_of_a_colour_each_are_counted_too() -> None:
    """A sequential JPEG whose first scan lacks a colour is decoded scan by scan, however many there are."""
    data = jpeg()
    place = data.index(b"\xff\xda")
    alone = segment(0xDA, b"\1\1\0\0\x3f\0")
    assert _refused(data[:place] + alone * 200 + data[place:]).error_type == "TooComplex"


def test_scans_of_other_pictures_and_of_films_behind_do_not_count() -> None:
    for between in (b"", bytes(9)):
        refuse_bombs(jpeg(progressive=True) + between + b"\xff\xda\0\2" * 1000, LIMIT)
    refuse_bombs(jpeg() + b"\xff\xda\0\2" * 1000, LIMIT)


def test_the_thumbnail_inside_exif_does_not_count() -> None:
    block = exif(tail=b"\xff\xda\0\2" * 500 + b"\xff\xd9")
    refuse_bombs(into_jpeg(segment(0xE1, block), data=jpeg(progressive=True)), LIMIT)


def test_metadata_as_large_as_cameras_write_is_read() -> None:
    profile = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes((i, 255)) + bytes(60_000)) for i in range(1, 256))
    block = exif(*[(40_000 + i, 7, 1000, 700) for i in range(50)], tail=bytes(50_000))
    xmp = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) * 200
    data = into_jpeg(segment(0xE1, block), xmp, profile)
    refuse_bombs(data, LIMIT)
    assert decode_image(data).size == (96, 64)


def test_padding_and_stuffing_between_segments_are_stepped_over() -> None:
    data = into_jpeg(b"\xff\xff\xff" + segment(0xE1, oriented(6)) + b"\xff\0junk\xff\xd0", segment(0xFE, b""))
    refuse_bombs(data, LIMIT)
    assert decode_image(data).size == (64, 96)
    bomb = [(40_000 + i, 7, 40_000, 100) for i in range(4_000)]
    for ahead in (b"\xff\0junk\xff\xff\xff\xd0", b"\xff", b"\xff\xff"):
        hidden = into_jpeg(ahead + segment(0xE1, exif(*bomb, tail=bytes(10_000))))
        assert "Exif block" in str(_refused(hidden))


def test_values_that_are_cut_off_take_no_memory_and_are_no_reason() -> None:
    block = exif(*[(40_000 + i, 7, 1 << 24, 8) for i in range(50)], (0x0112, 3, 1, 6))
    data = into_jpeg(segment(0xE1, block))
    refuse_bombs(data, LIMIT)
    assert decode_image(data).size == (64, 96)


@pytest.mark.parametrize("bits", [12, 16])
def test_more_than_eight_bits_of_a_jpeg_are_told_as_such(bits: int) -> None:
    data = jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11" + bytes((bits,)))
    error = _refused(data)
    assert error.error_type == "UnsupportedPixels"
    assert f"{bits} bits" in str(error)


# Tags


@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_is_read_in_either_order_of_bytes(order: str) -> None:
    head = b"II*\0" if order == "<" else b"MM\0*"
    for kind, value in ((3, struct.pack(order + "HH", 6, 0)), (4, struct.pack(order + "I", 6))):
        rows = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0") + struct.pack(
            order + "HHI4s", 0x0112, kind, 1, value
        )
        block = head + struct.pack(order + "IH", 8, 2) + rows + bytes(4)
        assert orientation_of(block) == orientation_of(b"Exif\0\0" + block) == 6


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"II*\0", b"II*\0\x08\0\0\0\xff\xff", b"II*\0\xff\xff\xff\xff" + bytes(20)]
)
def test_a_block_without_an_orientation_has_none(block: bytes) -> None:
    assert orientation_of(block) is None
    assert orientation_of(exif((0x0112, 2, 1, 6))) is None
    assert orientation_of(exif((0x0112, 3, 2, 6))) is None


def test_values_as_large_as_the_file_are_read_and_the_same_bytes_many_times_are_not() -> None:
    layers = bytes(70_000_000)
    whole = tiff(grey_tags(8, 8) | {37_724: (7, layers)}, bytes(64))
    refuse_bombs(whole, LIMIT)
    rows = [(40_000 + i, 7, 1 << 20, 8) for i in range(100)]
    assert "tags of the TIFF" in str(_refused(exif(*rows, tail=bytes(1 << 20))[6:]))


def test_a_tile_that_is_larger_than_its_picture_is_measured() -> None:
    body = zlib.compress(bytes(4096 * 4096))
    with pytest.raises(ImageError, match="4096 x 4096 is more than 10000000 pixels"):
        decode_image(tiled(8, 8, (4096, 4096), body, 8), LIMIT)
    with pytest.raises(ImageError, match="1216 x 1040 is more than"):
        decode_image(tiled(1000, 1000, (608, 208), bytes(608 * 208)), 1_000_000)
    assert decode_image(tiled(8, 8, (256, 256), zlib.compress(bytes(65536)), 8), 64).size == (8, 8)


def test_metadata_of_an_avif_is_looked_through() -> None:
    rows = [(40_000 + i, 7, 1 << 20, 8) for i in range(100)]
    data = b"\0\0\0\x18ftypavif" + bytes(100) + exif(*rows, tail=bytes(1 << 20))
    assert "Exif block" in str(_refused(data))


# GIF, WebP, BMP, PPM


def test_a_gif_is_as_large_as_its_first_picture_reaches() -> None:
    refuse_bombs(gif(10, 10, (0, 0, 10, 10)), 100)
    for size, frame in (((11, 10), (0, 0, 1, 1)), ((1, 1), (0, 0, 10, 11)), ((1, 1), (10, 9, 1, 1))):
        assert _refused(gif(*size, frame), 100).error_type == "TooLarge"


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": oriented(1)}], ids=["VP8 ", "VP8L", "VP8X"])
def test_a_webp_is_measured_before_room_is_made_for_it(options: dict) -> None:
    data = encode(photograph(130, 70), "WEBP", **options)
    assert data[12:16] == {0: b"VP8 "}.get(len(options), b"VP8X" if "exif" in options else b"VP8L")
    refuse_bombs(data, 130 * 70)
    assert "130 x 70 is more than 9099 pixels" in str(_refused(data, 130 * 70 - 1))


def test_extensions_ahead_of_a_gifs_picture_are_stepped_over() -> None:
    ahead = b"!\xff\x0bNETSCAPE2.0\x03\1\0\0\0" + b"!\xfe" + pieces(b"," * 3000) + b"\0"
    assert _refused(gif(1, 1, (0, 0, 50, 50), ahead), 100).error_type == "TooLarge"
    assert decode_image(gif(4, 4, (0, 0, 4, 4), ahead)).size == (4, 4)


def test_a_run_length_bmp_is_refused_by_its_size_and_others_are_not() -> None:
    refuse_bombs(bmp(70_000, 1, 8, b""), LIMIT)
    refuse_bombs(bmp(5000, -5000, 8, b"", 1), LIMIT)
    for width, height in ((70_000, 1), (5001, -5000)):
        assert "run-length" in str(_refused(bmp(width, height, 8, b"", 1)))


def test_digits_are_read_up_to_a_size() -> None:
    refuse_bombs(b"P3 1 1 255\n" + b" " * 1000, LIMIT)
    refuse_bombs(b"P6 1 1 255\n" + b" " * precheck.MAX_TEXT_BYTES, LIMIT)
    assert "digits" in str(_refused(b"P3 1 1 255\n" + b" " * precheck.MAX_TEXT_BYTES))


# Reading


def test_reading_takes_so_many_reads_and_no_more() -> None:
    file = Metered(b"GI" + bytes(100))
    for _ in range(10_000):
        file.read(0)
    with pytest.raises(ImageError, match="too many pieces"):
        file.read(0)


def test_reading_takes_so_many_times_the_file_and_no_more() -> None:
    data = bytes(1 << 20)
    file = Metered(data)
    for _ in range(7):  # six times, and a megabyte for small ones
        file.seek(0)
        assert file.read() == data
    file.seek(0)
    with pytest.raises(ImageError, match="the same bytes again and again"):
        file.read()


def test_a_png_in_small_pieces_is_read() -> None:
    body = zlib.compress((b"\0" + bytes(64)) * 64, 0)
    parts = b"".join(chunk(b"IDAT", body[i : i + 8]) for i in range(0, len(body), 8))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
    data = good_png()[:8] + header + parts + chunk(b"IEND", b"")
    assert decode_image(data).size == (64, 64)


def test_pixels_of_a_pgm_are_read_one_by_one_and_that_is_allowed() -> None:
    data = b"P5 600 600 4095\n" + bytes(2 * 600 * 600)
    assert decode_image(data).size == (600, 600)


def test_every_kind_of_ordinary_file_passes() -> None:
    for format_name in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"):
        data = encode(photograph(), format_name)
        refuse_bombs(data, 96 * 64)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (96, 64)
