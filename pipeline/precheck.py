"""What a file's first bytes say, before a decoder believes them: what it is, and whether it is made to exhaust us.

Decoders check what they decode. What lies around the pixels is not bounded by `max_pixels`: a hundred kilobytes of JPEG
may hold a thousand scans of a large picture, of TIFF a table of values that all point at the same megabyte, and some of
Pillow's readers take a step in Python for every few bytes. None of the limits here is met by photographs.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from pipeline.errors import ImageError

MAX_SCANS = 100
"""Of a progressive JPEG; encoders write ten or so."""

MAX_SCANNED = 1_000_000_000
"""Scans times pixels of one that has more than twenty scans, since each may visit every pixel."""

MAX_SEGMENTS = 4096
"""Ahead of a JPEG's pixels, where an ICC profile may take 255 and extended XMP some hundred."""

MAX_EXIF_SEGMENTS = 32
"""Of 64 KB each; Pillow joins them one by one, and takes all of them for one block."""

MAX_TAG_BYTES = 1 << 26
"""That the values of one table of tags may have together, however often they share their bytes; a file's own size is
allowed in any case."""

MAX_PARTS = 1_000_000
"""Strips or tiles of a TIFF, for each of which Pillow makes an object: a hundred million pixels in tiles of 10 x 10."""

MAX_RLE_PIXELS = 25_000_000
"""Of a compressed BMP, which Pillow reads by a loop in Python: two seconds."""

MAX_RLE_WIDTH = 65_535
"""Of a compressed BMP: four bytes of it can skip 255 rows, whatever they are wide."""

MAX_TEXT_BYTES = 1 << 25
"""Of a PPM whose pixels are written in digits: some seconds."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")  # the last two are wrong, and read by Pillow

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    *((head, "TIFF") for head in _TIFF),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
"""How files start that are images and nothing else; `kind_of` knows two more."""

_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "it is a PDF: export its pages as images"),
    (b"PK\3\4", "it is a ZIP archive: unpack it"),
    (b"\x1f\x8b", "it is gzip-compressed: unpack it"),
    (b"7z\xbc\xaf", "it is a 7z archive: unpack it"),
    (b"8BPS", "it is a Photoshop document: export it as PNG or JPEG"),
    (b"%!PS", "it is PostScript: export it as PNG or JPEG"),
    (b"\xff\x0a", "it is JPEG XL, which is not read: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "it is JPEG XL, which is not read: convert it to JPEG or PNG"),
    (b"\0\0\1\0", "it is an icon (.ico), which is not read: convert it to PNG"),
    (b"qoif", "it is QOI, which is not read: convert it to PNG"),
    (b"SIMPLE  =", "it is FITS, which is not read: convert it to 16-bit PNG or TIFF"),
    (b"version https://git-lfs", "it is a Git LFS pointer: run `git lfs pull`"),
    (b"\x89PNG", "it is a PNG that lost bytes in a copy that took it for text: copy it once more, as binary"),
    (b"PAR1", "it is Parquet: as a manifest its name must end with .parquet"),
)

_BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"crx ": "Canon raw (CR3)",
    b"isom": "MP4 video", b"mp41": "MP4 video", b"mp42": "MP4 video", b"qt  ": "QuickTime video",
}  # fmt: skip


def kind_of(data: bytes) -> str | None:
    """The image format that a file's first bytes promise; None for others."""
    for head, name in _SIGNATURES:
        if data.startswith(head):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return "AVIF" if data[4:12] in (b"ftypavif", b"ftypavis") else None


def describe(data: bytes) -> str:
    """What a file is that is no image of ours, and what to do about it."""
    for head, words in _OTHERS:
        if data.startswith(head):
            return f"{words} ({_start_of(data)})"
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return f"it is {_BRANDS[data[8:12]]}, which is not read: convert it to JPEG, PNG or AVIF"
    head = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return f"it starts like a web page or XML, such as an error page or SVG ({_start_of(data)})"
    if not data.strip(b"\0"):
        return f"nothing but zeros, as an interrupted copy leaves them ({_start_of(data)})"
    begin = data.find(b"\xff\xd8\xff", 1, 65536)
    if begin > 0:
        return f"a JPEG may begin at byte {begin}: cut off what is in front of it ({_start_of(data)})"
    return _start_of(data)


def _start_of(data: bytes) -> str:
    return f"{len(data)} bytes that start with {data[:8]!r}"


def refuse_large(width: int, height: int, max_pixels: int) -> None:
    """Refuses more pixels than are allowed.

    Raises:
        ImageError: "decode", "TooLarge".
    """
    if width * height > max_pixels:
        raise ImageError(
            "decode",
            "TooLarge",
            f"{width} x {height} is more than {max_pixels} pixels: raise --max-pixels to allow it",
        )


def refuse_bombs(data: bytes, max_pixels: int) -> None:
    """Refuses a file whose reading would take time or memory out of proportion to its pixels and its bytes.

    Args:
        data: the file's bytes.
        max_pixels: the largest width * height.

    Raises:
        ImageError: "decode", "TooLarge" or "TooComplex".
    """
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"GIF8"):
        _check_gif(data, max_pixels)
    elif data.startswith(_TIFF):
        _check_tags(data, "the TIFF")
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        _check_webp(data, max_pixels)
    elif data.startswith(b"BM"):
        _check_bmp(data)
    elif data[:2] in (b"P1", b"P2", b"P3") and len(data) > MAX_TEXT_BYTES:
        _refuse(f"{len(data)} bytes of pixels written in digits", "save it as binary PPM or PNG")
    elif data[4:8] == b"ftyp":
        for head in _TIFF[:2]:
            for found in re.finditer(re.escape(head), data):
                _check_tags(data[found.start() :], "its Exif block")


class Metered(io.BytesIO):
    """A file's bytes, for readers in Python: so many reads, and so many times the file, are enough for any image.

    Where a file sends its reader back and forth, as TIFF's tags can, or is cut into millions of pieces.
    """

    def __init__(self, data: bytes):
        super().__init__(data)
        self._reads = self._allowance(data[:2])
        self._bytes = 6 * len(data) + (1 << 20)

    def read(self, size: int | None = -1) -> bytes:
        """As of any file.

        Raises:
            ImageError: "decode", "TooComplex": it was too much.
        """
        found = super().read(size)
        self._reads -= 1
        self._bytes -= len(found)
        if self._reads < 0 or self._bytes < 0:
            what = "too many pieces" if self._reads < 0 else "the same bytes again and again"
            _refuse(f"the file's structure makes its reader take {what}", "save it anew with another program")
        return found

    @staticmethod
    def _allowance(head: bytes) -> int:
        # A GIF's comments are joined piece by piece, in quadratic time. Pixels of PPM and BMP may be read one by one.
        return {b"GI": 10_000, b"BM": 1 << 24}.get(head, 1 << 24 if head[:1] == b"P" else 200_000)


def orientation_of(exif: bytes) -> int | None:
    """The orientation that an Exif block states, from its first table alone; None if it has none that can be read.

    Pillow's own reader would take in the values of all tags, of which each may be as long as the block.
    """
    block = exif.removeprefix(b"Exif\0\0")
    order = _order(block)
    for tag, kind, count, value in _entries(block):
        if tag == 0x0112 and count == 1 and kind in (3, 4):
            return struct.unpack(order + ("H" if kind == 3 else "I"), value[: 2 if kind == 3 else 4])[0]
    return None


# JPEG

_WITHOUT_LENGTH = frozenset((0x00, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))  # Pillow steps over these

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded pixels: what is no padding and no restart


def _check_jpeg(data: bytes) -> None:
    """Goes through the segments ahead of the pixels as Pillow does."""
    position, pixels, components, progressive, exif = 2, 0, b"", False, list[bytes]()
    for _ in range(MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            return  # cut off: Pillow will say so
        marker = data[position + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
            continue
        if marker < 0xC0:
            return  # no marker at all: Pillow will refuse it
        begin = position + 4
        position = max(begin, position + 2 + (data[position + 2] << 8 | data[position + 3]))
        if marker == 0xE1 and data.startswith(b"Exif\0\0", begin):
            exif.append(data[begin + 6 : position])
        elif marker == 0xE2 and data.startswith(b"MPF\0", begin):
            _check_tags(data[begin + 4 : position], "its list of pictures")
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            _check_depth(data[begin : begin + 1])
            pixels = _big(data[begin + 1 : begin + 3]) * _big(data[begin + 3 : begin + 5])
            components, progressive = data[begin + 5 : begin + 6], marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == 0xDA:
            _check_exif(exif)
            if progressive or data[begin : begin + 1] != components:
                _check_scans(data, position, min(MAX_SCANS, max(20, MAX_SCANNED // max(1, pixels))))
            return
    _refuse(f"more than {MAX_SEGMENTS} segments stand ahead of its pixels", "remove its metadata")


def _check_depth(precision: bytes) -> None:
    if precision in (b"\x0c", b"\x10"):
        words = f"a JPEG of {precision[0]} bits a colour is not read: save it as 8 bit, or as 16-bit PNG or TIFF"
        raise ImageError("decode", "UnsupportedPixels", words)


def _check_exif(segments: list[bytes]) -> None:
    if len(segments) > MAX_EXIF_SEGMENTS:
        _refuse(f"its Exif block has {len(segments)} segments", "remove its metadata")
    if segments:
        _check_tags(b"".join(segments), "its Exif block")


def _check_scans(data: bytes, position: int, limit: int) -> None:
    """Counts the scans of the first picture; a baseline JPEG with all of its colours in one scan has no more."""
    if data.count(b"\xff\xda", position) < limit:  # of all pictures, and what only looks like one
        return
    scans = 1
    while (found := _MARKER.search(data, position)) and data[found.start() + 1] != 0xD9:
        begin = found.end()
        position = max(begin, begin + _big(data[begin : begin + 2]))
        scans += data[found.start() + 1] == 0xDA
        if scans > limit:
            words = f"it goes over its pixels in more than {limit} scans"
            _refuse(words, "save it anew as a baseline JPEG")


# WebP, GIF, BMP


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Its reader makes room for two pictures before it tells how large they are."""
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        refuse_large(1 + _little(data[24:27]), 1 + _little(data[27:30]), max_pixels)
    elif kind == b"VP8L":
        bits = _little(data[21:25])
        refuse_large(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), max_pixels)
    elif kind == b"VP8 ":
        refuse_large(_little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF, max_pixels)


def _check_gif(data: bytes, max_pixels: int) -> None:
    """The first picture's place may be larger than the canvas, and Pillow makes room for it before it tells."""
    if len(data) < 13:
        return
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    refuse_large(width, height, max_pixels)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(10_000):
        start = data[position : position + 1]
        if start == b"!":
            position += 2
            while position < len(data) and data[position]:
                position += 1 + data[position]
            position += 1
        elif start == b"," and position + 9 <= len(data):
            left, top, across, down = struct.unpack_from("<HHHH", data, position + 1)
            refuse_large(max(width, left + across), max(height, top + down), max_pixels)
            return
        elif not start or start in (b";", b","):
            return
        else:
            position += 1
    _refuse("it has ten thousand extensions ahead of its first picture", "save it anew with another program")


def _check_bmp(data: bytes) -> None:
    if len(data) < 34 or struct.unpack_from("<I", data, 14)[0] < 40:
        return
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in (1, 2) and (width > MAX_RLE_WIDTH or width * abs(height) > MAX_RLE_PIXELS):
        _refuse(f"{width} x {abs(height)} is too large for a run-length coded BMP", "save it as PNG")


# TIFF, and Exif, which has its form

_UNITS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_PARTS = (273, 279, 324, 325)  # where strips and tiles begin, and how long they are


def _check_tags(block: bytes, what: str) -> None:
    """Refuses a first table of tags whose values are much more than the block, since they share its bytes."""
    total = 0
    for tag, kind, count, _ in _entries(block):
        size = count * _UNITS.get(kind, 0)
        if tag in _PARTS and count > MAX_PARTS:
            _refuse(f"{what} has {count} strips or tiles", "save it anew, in larger ones")
        if size <= len(block):  # others are cut off, and Pillow leaves them out
            total += size
        if total > max(MAX_TAG_BYTES, 2 * len(block)):
            _refuse(f"the tags of {what} stand for more than {total} bytes", "remove its metadata")


def _order(block: bytes) -> str:
    return ">" if block[:1] == b"M" else "<"


def _entries(block: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The tags of the first table: tag, type, count, and the four or eight bytes of the value or of its place."""
    if not block.startswith(_TIFF) or len(block) < 16:
        return
    order, is_big = _order(block), block[2] == 43
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), block, 8 if is_big else 4)
    row = struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    header = struct.Struct(order + ("Q" if is_big else "H"))
    if start + header.size > len(block):
        return
    (count,) = header.unpack_from(block, start)
    start += header.size
    for i in range(min(count, (len(block) - start) // row.size)):
        yield row.unpack_from(block, start + i * row.size)


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _refuse(what: str, remedy: str) -> None:
    raise ImageError("decode", "TooComplex", f"{what}, which no ordinary image needs: {remedy}")
