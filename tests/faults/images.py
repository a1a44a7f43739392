"""Files that a folder of pictures may hold, good, odd and hostile, made on the spot, and what must become of each."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageCms, features

RECORD = "record"
EMPTY = "decode:EmptyFile"
NO_IMAGE = "decode:NotAnImage"
BROKEN = "decode:BrokenImage"
LARGE = "decode:TooLarge"
COMPLEX = "decode:TooComplex"
PIXELS = "decode:UnsupportedPixels"


@dataclass(frozen=True)
class Kind:
    """One file."""

    name: str  # its own, and that of the kind
    outcome: str  # "record", or a failure's "stage:error_type"
    build: Callable[[], bytes]
    says: str = ""  # part of the failure's message


# Bricks


def photograph(width: int = 96, height: int = 64, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Soft shapes with some noise."""
    return _draw(width, height, mode, seed).copy()  # Pillow leaves an encoder's settings with what it has saved


@cache
def _draw(width: int, height: int, mode: str, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    noisy = (soft + rng.normal(0, 12, soft.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    """An image file by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def jpeg(**options: object) -> bytes:
    """A photograph as JPEG."""
    return encode(photograph(), "JPEG", **{"quality": 85, **options})


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG's."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, body: bytes, *between: bytes) -> bytes:
    """A PNG by hand."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = b"" if body is None else chunk(b"IDAT", zlib.compress(body))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(between) + data + chunk(b"IEND", b"")


def good_png(*between: bytes) -> bytes:
    """A grey PNG with more chunks."""
    return png(8, 6, 8, 0, (b"\0" + bytes(range(0, 240, 30))) * 6, *between)


def segment(marker: int, data: bytes) -> bytes:
    """A JPEG's."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def into_jpeg(*segments: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with more segments, behind its start."""
    data = jpeg() if data is None else data
    return data[:2] + b"".join(segments) + data[2:]


def exif(*rows: tuple[int, int, int, int], following: int = 0, tail: bytes = b"") -> bytes:
    """An Exif block: (tag, type, count, value or place) each, then the next table's place, then values."""
    table = b"".join(struct.pack("<HHII", *row) for row in rows)
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(rows))
    return head + table + struct.pack("<I", following) + tail


def oriented(orientation: int) -> bytes:
    """An Exif block with an orientation."""
    return exif((0x0112, 3, 1, orientation))


def tiff(tags: dict[int, tuple[int, list[int] | bytes]], pixels: bytes = b"", following: int = 0) -> bytes:
    """A classic TIFF by hand: pixels from byte 8 on, then the values of tags, then their table."""
    values, rows, start = b"", b"", 8 + len(pixels)
    for tag, (kind, value) in sorted(tags.items()):
        width = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1}[kind]
        raw = value if isinstance(value, bytes) else b"".join(v.to_bytes(width, "little") for v in value)
        if len(raw) > 4:
            place = struct.pack("<I", start + len(values))
            values += raw
        else:
            place = raw.ljust(4, b"\0")
        rows += struct.pack("<HHI", tag, kind, len(raw) // width) + place
    table = struct.pack("<H", len(tags)) + rows + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", start + len(values)) + pixels + values + table


def grey_tags(width: int, height: int) -> dict[int, tuple[int, list[int] | bytes]]:
    """Tags of an uncompressed grey TIFF of one strip."""
    return {
        256: (4, [width]), 257: (4, [height]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1]), 273: (4, [8]),
        277: (3, [1]), 278: (4, [height]), 279: (4, [min(width * height, 1 << 31)]),
    }  # fmt: skip


def tiled(width: int, height: int, tile: tuple[int, int], body: bytes, compression: int = 1) -> bytes:
    """A grey TIFF of tiles that all are the same bytes."""
    count = -(-width // tile[0]) * -(-height // tile[1])
    tags = grey_tags(width, height)
    for tag in (273, 278, 279):
        del tags[tag]
    tags |= {259: (3, [compression]), 322: (4, [tile[0]]), 323: (4, [tile[1]])}
    tags |= {324: (4, [8] * count), 325: (4, [len(body)] * count)}
    return tiff(tags, body)


def bmp(width: int, height: int, bits: int, body: bytes, compression: int = 0, palette: bytes = b"") -> bytes:
    """A BMP by hand."""
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


GREYS = b"".join(bytes((i, i, i, 0)) for i in range(256))


def gif(width: int, height: int, frame: tuple[int, int, int, int], *before: bytes, dispose: int = 0) -> bytes:
    """A GIF of a black picture of 4 x 4, whatever it says of its size."""
    control = b"!\xf9\x04" + bytes((dispose << 2, 0, 0, 0, 0))
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    picture = b"," + struct.pack("<HHHHB", *frame, 0) + b"\x02\x06\x84\x8f\xa9\xcb\xed\x0f\0;"
    return head + b"".join(before) + control + picture


def pieces(data: bytes, size: int = 255) -> bytes:
    """Sub-blocks of a GIF."""
    return b"".join(bytes((len(part),)) + part for part in (data[i : i + size] for i in range(0, len(data), size)))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP by hand."""
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def vp8x(width: int, height: int, flags: int = 0) -> tuple[bytes, bytes]:
    """The chunk that tells a WebP's canvas."""
    return b"VP8X", bytes((flags, 0, 0, 0)) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


def scans_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """What is ahead of a JPEG's first scan, and its scans with the tables ahead of each."""
    cuts, position = [], 2
    while data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    start = position
    while True:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        while data[position] != 0xFF or data[position + 1] == 0:
            position += 1
        cuts.append(position)
        while data[position + 1] not in (0xDA, 0xD9):
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == 0xD9:
            return data[:start], [data[a:b] for a, b in zip([start, *cuts], cuts, strict=False)]


def many_scans(count: int, side: int = 512) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    head, scans = scans_of(encode(photograph(side, side), "JPEG", progressive=True))
    return head + b"".join(scans) + scans[-1] * count + b"\xff\xd9"


def without(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of one kind."""
    kept, position = data[:2], 2
    while data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] != marker:
            kept += data[position : position + length]
        position += length
    return kept + data[position:]


# By `cjpeg -arithmetic`, since Pillow cannot write it: 16 x 16 pixels.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV02B@n5)Ta&5)cv>6%-gAG9exu93DL^E+jHZKuk+VKt@GST61DhRc%&9Mr4R(ZFhTtf`Lw8jhBplmUDiAeE-`3L"
    "je^R7akfOJ0T%Ed{ahKe0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0+R-e0=}O01*fP5C9MZ0U`hb5di}c0sqVZ3IGrg1pyE"
    "d1^?Or3<CiG0ucid06zf!=fN*_;OGuI=fOw@gd!jwtJX>s=8*r{"
)


XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.png"), good_png())
    return buffer.getvalue()


def _animated(format_name: str, **options: object) -> bytes:
    frames = [photograph(48, 32, seed=i) for i in range(4)]
    return encode(frames[0], format_name, save_all=True, append_images=frames[1:], **options)


def _profile(name: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def _middle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    third = len(data) // 3
    return data[:third] + change(data[third : 2 * third]) + data[2 * third :]


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def _sized_jpeg(height: int, width: int) -> bytes:
    data = jpeg()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def _looping_tiff() -> bytes:
    first = tiff(grey_tags(8, 8), bytes(range(64)))
    start = struct.unpack_from("<I", first, 4)[0]
    return first[:-4] + struct.pack("<I", start)


def _ring_of_tiffs(count: int) -> bytes:
    """Tables that point to the next one, and the last one to the second."""
    first = tiff(grey_tags(8, 8), bytes(range(64)))
    table = first[struct.unpack_from("<I", first, 4)[0] : -4]
    start, size = len(first), len(table) + 4
    places = [start + i * size for i in range(count)]
    return (
        first[:-4]
        + struct.pack("<I", places[0])
        + b"".join(table + struct.pack("<I", place) for place in [*places[1:], places[0]])
    )


def _shared_values(count: int, size: int) -> bytes:
    """A TIFF whose tags all have the same bytes for their value."""
    tags = grey_tags(8, 8)
    known = len(tags)
    data = tiff(tags, bytes(range(64)))
    table = struct.unpack_from("<I", data, 4)[0]
    more = b"".join(struct.pack("<HHII", 40_000 + i, 7, size, 8) for i in range(count))
    rows = data[table + 2 : table + 2 + 12 * known]
    return data[:table] + struct.pack("<H", known + count) + rows + more + bytes(4) + bytes(size)


# The kinds


def _no_images() -> Iterator[Kind]:
    page = b"<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>"
    yield Kind("empty.jpg", EMPTY, lambda: b"", "no bytes")
    yield Kind("one-byte.jpg", NO_IMAGE, lambda: b"\xff")
    yield Kind("newline.png", NO_IMAGE, lambda: b"\n")
    yield Kind("zeros.jpg", NO_IMAGE, lambda: bytes(4096), "nothing but zeros")
    yield Kind("page.jpg", NO_IMAGE, lambda: page, "web page")
    yield Kind("page-with-bom.jpg", NO_IMAGE, lambda: b"\xef\xbb\xbf\n" + page, "web page")
    yield Kind("text.png", NO_IMAGE, lambda: b"hello, world\n" * 40, "start with b'hello, w'")
    yield Kind("utf-16.png", NO_IMAGE, lambda: "hello, world\n".encode("utf-16"))
    yield Kind("json.jpg", NO_IMAGE, lambda: json.dumps({"error": "access denied"}).encode(), "start with")
    yield Kind("drawing.png", NO_IMAGE, lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG")
    yield Kind("document.jpg", NO_IMAGE, lambda: b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "PDF")
    yield Kind("script.jpg", NO_IMAGE, lambda: encode(photograph(), "EPS"), "PostScript")
    yield Kind("archive.png", NO_IMAGE, _zip, "ZIP archive")
    yield Kind("packed.jpg", NO_IMAGE, lambda: gzip.compress(jpeg(), mtime=0), "gzip")
    yield Kind("pointer.jpg", NO_IMAGE, lambda: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    yield Kind("table.jpg", NO_IMAGE, lambda: b"PAR1" + bytes(100), "Parquet")
    yield Kind("phone.jpg", NO_IMAGE, lambda: b"\0\0\0\x18ftypheic" + bytes(60), "HEIC")
    yield Kind("film.jpg", NO_IMAGE, lambda: b"\0\0\0\x18ftypisom" + bytes(60), "MP4 video")
    yield Kind("layers.jpg", NO_IMAGE, lambda: b"8BPS\0\1" + bytes(60), "Photoshop")
    yield Kind("xl.jpg", NO_IMAGE, lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60), "JPEG XL")
    yield Kind("icon.png", NO_IMAGE, lambda: encode(photograph(), "ICO"), "icon")
    yield Kind("sound.webp", NO_IMAGE, lambda: b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(92))
    yield Kind("random.jpg", NO_IMAGE, lambda: np.random.default_rng(1).bytes(5000))
    yield Kind("targa.jpg", NO_IMAGE, lambda: encode(photograph(), "TGA"))
    yield Kind("garbage-then.jpg", NO_IMAGE, lambda: b"HTTP/1.1 200 OK\r\n\r\n" + jpeg(), "begin at byte 19")


def _wrong_names() -> Iterator[Kind]:
    yield Kind("really-png.jpg", RECORD, lambda: encode(photograph(), "PNG"))
    yield Kind("really-jpeg.png", RECORD, jpeg)
    yield Kind("really-webp.gif", RECORD, lambda: encode(photograph(), "WEBP"))
    yield Kind("really-gif.tiff", RECORD, lambda: encode(photograph(), "GIF"))
    yield Kind("no-suffix", RECORD, jpeg)
    yield Kind("UPPER.JPG", RECORD, jpeg)
    yield Kind("two.jpg.txt", RECORD, jpeg)


def _cut_off() -> Iterator[Kind]:
    for format_name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        for tenth in range(1, 10):
            yield Kind(
                f"cut-at-{tenth}0-percent.{format_name.lower()}",
                BROKEN,
                lambda name=format_name, tenth=tenth: _share(encode(photograph(), name), tenth / 10),
                "copy it once more",
            )
    heads = {"jpg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF89a", "tif": b"II*\0"}
    for suffix, head in heads.items():
        yield Kind(f"signature-only.{suffix}", BROKEN, lambda head=head: head, "is cut short")
    yield Kind("signature-only.bmp", NO_IMAGE, lambda: b"BM")
    yield Kind("signature-only.webp", BROKEN, riff, "is cut short")
    yield Kind("progressive-cut.jpg", BROKEN, lambda: _share(jpeg(progressive=True), 0.7), "truncated")
    yield Kind("cut.jp2", BROKEN, lambda: _share(encode(photograph(), "JPEG2000"), 0.5))
    yield Kind("cut.ppm", BROKEN, lambda: _share(encode(photograph(), "PPM"), 0.5))
    yield Kind("cut.bmp", BROKEN, lambda: _share(encode(photograph(), "BMP"), 0.5))


def _share(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def _damaged() -> Iterator[Kind]:
    yield Kind("text-mode.png", NO_IMAGE, lambda: encode(photograph(), "PNG").replace(b"\r\n", b"\n"))
    # The decoder passes over errors in coded pixels, and Pillow does not hear of them.
    yield Kind("text-mode.jpg", RECORD, lambda: jpeg().replace(b"\n", b"\r\n"))
    yield Kind("flipped-bit.png", BROKEN, lambda: _middle(encode(photograph(), "PNG"), lambda d: d[:-1] + b"\0"))
    yield Kind("seven-bits.gif", LARGE, lambda: bytes(b & 127 for b in encode(photograph(), "GIF")))
    yield Kind("hole-of-zeros.jpg", BROKEN, lambda: _share(jpeg(), 0.5) + bytes(len(jpeg()) // 2))
    yield Kind("no-tables.jpg", BROKEN, lambda: without(without(jpeg(), 0xC4), 0xDB))
    yield Kind("no-end.jpg", BROKEN, lambda: jpeg()[:-2], "truncated")
    yield Kind("no-height.jpg", BROKEN, lambda: _sized_jpeg(0, 96))
    yield Kind("no-width.png", BROKEN, lambda: png(0, 5, 8, 0, b""))
    yield Kind("no-size.bmp", NO_IMAGE, lambda: bmp(0, 0, 24, b""))
    yield Kind("no-pixels.png", BROKEN, lambda: png(8, 8, 8, 0, None))
    yield Kind("bad-sum.png", BROKEN, lambda: good_png()[:29] + b"sum?" + good_png()[33:])
    yield Kind("no-depth.png", BROKEN, lambda: png(4, 4, 3, 0, bytes(40)))
    yield Kind(
        "huge-offset.bmp", BROKEN, lambda: _patched(bmp(4, 4, 24, bytes(48)), b"\x36\0\0\0", b"\xff\xff\xff\x7f")
    )
    yield Kind("two-layers.jpg", BROKEN, lambda: _layers(2))
    yield Kind("twelve-bits.jpg", PIXELS, lambda: _patched(jpeg(), b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"))
    yield Kind("unknown-compression.tif", BROKEN, lambda: tiff(grey_tags(8, 8) | {259: (3, [777])}, bytes(64)))
    yield Kind("no-tags.tif", BROKEN, lambda: b"II*\0\x08\0\0\0\0\0" + bytes(8))


def _layers(count: int) -> bytes:
    data = jpeg()
    place = data.index(b"\xff\xc0") + 9
    return data[:place] + bytes((count,)) + data[place + 1 :]


def _bombs(max_pixels: int) -> Iterator[Kind]:
    side = int(max_pixels**0.5) + 1
    zeros = lambda h, w: (b"\0" * (w + 1)) * h  # noqa: E731
    yield Kind("bomb-60000.png", LARGE, lambda: png(60_000, 60_000, 8, 2, bytes(10)), "--max-pixels")
    yield Kind("bomb-zeros.png", LARGE, lambda: png(side, side, 8, 0, zeros(side, side)), "--max-pixels")
    yield Kind("largest-allowed.png", RECORD, lambda: png(side - 1, side - 1, 8, 0, zeros(side - 1, side - 1)))
    yield Kind("bomb-65500.jpg", LARGE, lambda: _sized_jpeg(65_500, 65_500), "--max-pixels")
    yield Kind("bomb-canvas.gif", LARGE, lambda: gif(65_535, 65_535, (0, 0, 4, 4)), "--max-pixels")
    yield Kind("bomb-frame.gif", LARGE, lambda: gif(4, 4, (0, 0, 65_535, 65_535), dispose=2), "--max-pixels")
    yield Kind("bomb-place.gif", LARGE, lambda: gif(4, 4, (65_535, 65_535, 4, 4), dispose=3), "--max-pixels")
    yield Kind("bomb-size.tif", LARGE, lambda: tiff(grey_tags(1 << 20, 1 << 20), bytes(64)), "--max-pixels")
    yield Kind("bomb-canvas.webp", LARGE, lambda: riff(vp8x(1 << 15, 1 << 16)), "--max-pixels")
    yield Kind("bomb-size.bmp", LARGE, lambda: bmp(1 << 20, -(1 << 20), 24, b""), "--max-pixels")
    yield Kind("bomb-size.ppm", LARGE, lambda: b"P6 1000000 1000000 255\n", "--max-pixels")
    yield Kind("bomb-text.png", COMPLEX, lambda: good_png(*[_text_chunk(1 << 20)] * 80))
    yield Kind("bomb-itxt.png", COMPLEX, lambda: good_png(_text_chunk(1 << 24)))
    yield Kind("bomb-profile.png", COMPLEX, lambda: good_png(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 24)))))
    yield Kind("bomb-chunks.png", COMPLEX, lambda: good_png(chunk(b"teXt", b"") * 300_000), "too many pieces")
    yield Kind("bomb-idats.png", COMPLEX, lambda: good_png(chunk(b"IDAT", b"") * 300_000), "too many pieces")
    yield Kind("bomb-scans.jpg", COMPLEX, lambda: many_scans(500), "100 scans")
    yield Kind("most-scans.jpg", RECORD, lambda: many_scans(80))
    yield Kind("bomb-segments.jpg", COMPLEX, lambda: into_jpeg(segment(0xFE, b"") * 100_000), "segments")
    yield Kind("bomb-padding.jpg", COMPLEX, lambda: into_jpeg(b"\xff" * 500_000), "segments")
    yield Kind("bomb-exif.jpg", COMPLEX, lambda: into_jpeg(segment(0xE1, _shared_exif())), "Exif block")
    yield Kind(
        "bomb-long-exif.jpg", COMPLEX, lambda: into_jpeg(segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 40), "Exif"
    )
    yield Kind("bomb-pictures.mpo", COMPLEX, lambda: into_jpeg(segment(0xE2, b"MPF\0" + _shared_exif()[6:])), "list of")
    yield Kind("bomb-exif.webp", RECORD, lambda: _webp_with_exif(_shared_exif()))
    yield Kind("bomb-exif.png", RECORD, lambda: good_png(chunk(b"eXIf", _shared_exif()[6:])))
    yield Kind("bomb-tags.tif", COMPLEX, lambda: _shared_values(20_000, 1 << 20), "tags of the TIFF")
    yield Kind("bomb-tile.tif", LARGE, lambda: tiled(8, 8, (32_768, 32_768), zlib.compress(bytes(1 << 24)), 8))
    yield Kind("bomb-tiles.tif", LARGE, lambda: tiled(1, 20_000, (4096, 4096), zlib.compress(bytes(1 << 24)), 8))
    yield Kind("bomb-strips.tif", COMPLEX, _many_strips, "strips or tiles")
    yield Kind("bomb-comments.gif", COMPLEX, lambda: gif(4, 4, (0, 0, 4, 4), b"!\xfe" + pieces(bytes(4 << 20)) + b"\0"))
    yield Kind("bomb-extensions.gif", COMPLEX, lambda: gif(4, 4, (0, 0, 4, 4), b"!\xfe\0" * 200_000), "extensions")
    yield Kind("bomb-wide-skip.bmp", COMPLEX, lambda: bmp(10_000_000, 1, 8, b"\0\2\0\xff" * 50, 1, GREYS), "run-length")
    yield Kind("bomb-digits.ppm", COMPLEX, lambda: b"P1\n5900 5900\n" + b"1" * 5900 * 5900, "digits")


def _many_strips() -> bytes:
    count = 1_100_000
    tags = grey_tags(1, count) | {278: (4, [1])}
    data = tiff(tags, b"")
    start, table = len(data), struct.unpack_from("<I", data, 4)[0]
    rows = {273: (4, count, start), 279: (3, count, start)}
    for i in range(len(tags)):
        tag = struct.unpack_from("<H", data, table + 2 + 12 * i)[0]
        if tag in rows:
            place = table + 4 + 12 * i
            data = data[:place] + struct.pack("<HII", *rows[tag]) + data[place + 10 :]
    return data + b"\x01\0\0\0" * count


def _text_chunk(size: int) -> bytes:
    return chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(size), 9))


def _shared_exif() -> bytes:
    rows = [(40_000 + i, 7, 40_000, 20_000) for i in range(5_000)]
    return exif(*rows, tail=bytes(5_000))


def _webp_with_exif(block: bytes) -> bytes:
    plain = encode(photograph(), "WEBP")
    return riff(vp8x(96, 64, flags=8), (b"VP8 ", plain[20:]), (b"EXIF", block))


def _shapes() -> Iterator[Kind]:
    for width, height in ((1, 1), (30_000, 1), (1, 30_000), (3, 4000), (5000, 2)):
        size = f"{width}x{height}"
        yield Kind(f"{size}.png", RECORD, lambda w=width, h=height: encode(photograph(w, h), "PNG"))
        yield Kind(f"{size}.jpg", RECORD, lambda w=width, h=height: encode(photograph(w, h), "JPEG"))
    yield Kind("1x1.gif", RECORD, lambda: encode(photograph(1, 1), "GIF"))
    yield Kind("1x1.webp", RECORD, lambda: encode(photograph(1, 1), "WEBP"))
    yield Kind("large.jpg", RECORD, lambda: encode(photograph(1200, 900), "JPEG"))


def _pixels() -> Iterator[Kind]:
    cmyk, wide = photograph(mode="CMYK"), np.linspace(0, 65_535, 96 * 64).astype(np.uint16).reshape(64, 96)
    adobe = b"Adobe\0d\0\0\0\0\0"
    for mode in ("L", "1", "LA", "RGBA", "P"):
        yield Kind(f"mode-{mode.lower()}.png", RECORD, lambda m=mode: encode(photograph(mode=m), "PNG"))
    for depth in (1, 2, 4):
        colors = chunk(b"PLTE", bytes(range(3 << depth)))
        row = b"\0" + bytes([0b00011011] * depth)
        yield Kind(f"palette-{depth}-bit.png", RECORD, lambda d=depth, c=colors, r=row: png(8, 4, d, 3, r * 4, c))
    alpha = (chunk(b"PLTE", bytes(range(12))), chunk(b"tRNS", b"\0\x80\xff"))
    yield Kind("palette-alpha.png", RECORD, lambda: png(8, 4, 2, 3, b"\0\x1b\xe4" * 4, *alpha))
    yield Kind("no-palette.png", BROKEN, lambda: png(8, 4, 2, 3, b"\0\x1b\xe4" * 4))
    yield Kind("grey-16.png", RECORD, lambda: encode(Image.fromarray(wide), "PNG"))
    yield Kind("rgb-16.png", RECORD, lambda: png(2, 2, 16, 2, (b"\0" + bytes(range(12))) * 2))
    yield Kind("rgba-16.png", RECORD, lambda: png(2, 2, 16, 6, (b"\0" + bytes(range(16))) * 2))
    yield Kind("la-16.png", RECORD, lambda: png(2, 2, 16, 4, (b"\0" + bytes(range(8))) * 2))
    yield Kind("interlaced.png", RECORD, _interlaced)
    yield Kind("grey-16.tif", RECORD, lambda: encode(Image.fromarray(wide), "TIFF"))
    yield Kind("int-32.tif", RECORD, lambda: encode(Image.fromarray(wide.astype(np.int32)), "TIFF"))
    yield Kind("float.tif", PIXELS, lambda: encode(photograph(mode="F"), "TIFF"), "save as 8 or 16 bit")
    yield Kind("float.ppm", PIXELS, lambda: encode(photograph(mode="F"), "PPM"), "save as 8 or 16 bit")
    yield Kind("cmyk-adobe.jpg", RECORD, lambda: encode(cmyk, "JPEG"))
    yield Kind("cmyk-plain.jpg", RECORD, lambda: without(encode(cmyk, "JPEG"), 0xEE))
    yield Kind("ycck.jpg", RECORD, lambda: _patched(encode(cmyk, "JPEG"), adobe, adobe[:-1] + b"\2"))
    yield Kind("rgb-adobe.jpg", RECORD, lambda: into_jpeg(segment(0xEE, adobe)))
    yield Kind("grey.jpg", RECORD, lambda: encode(photograph(mode="L"), "JPEG"))
    yield Kind("cmyk.tif", RECORD, lambda: encode(cmyk, "TIFF"))
    yield Kind("lab.tif", RECORD, lambda: encode(_lab(), "TIFF"))
    yield Kind("ycbcr.tif", RECORD, lambda: encode(photograph(mode="YCbCr"), "TIFF", compression="jpeg"))
    yield Kind("rgba.tif", RECORD, lambda: encode(photograph(mode="RGBA"), "TIFF"))
    yield Kind("fax.tif", RECORD, lambda: encode(photograph(mode="1"), "TIFF", compression="group4"))
    yield Kind("grey-12.pgm", RECORD, lambda: b"P5 2 2 4095\n" + bytes(range(8)))
    yield Kind("digits.ppm", RECORD, lambda: b"P3\n# by hand\n2 1 255\n255 0 0 0 255 0\n")
    yield Kind("alpha.webp", RECORD, lambda: encode(photograph(mode="RGBA"), "WEBP", lossless=True))


def _interlaced() -> bytes:
    data = png(1, 1, 8, 0, b"\0\x80")
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)
    return data[:8] + chunk(b"IHDR", header) + data[33:]


def _lab() -> Image.Image:
    return ImageCms.profileToProfile(
        photograph(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )


def _several() -> Iterator[Kind]:
    yield Kind("animated.gif", RECORD, lambda: _animated("GIF"))
    yield Kind("animated.webp", RECORD, lambda: _animated("WEBP"))
    yield Kind("animated.png", RECORD, lambda: _animated("PNG"))
    yield Kind("small-canvas.gif", RECORD, lambda: gif(2, 2, (0, 0, 4, 4), dispose=2))
    yield Kind("no-picture.gif", BROKEN, lambda: b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";")
    yield Kind("pages.tif", RECORD, lambda: _animated("TIFF"))
    yield Kind("pictures.mpo", RECORD, lambda: _animated("MPO"))
    if features.check("avif"):
        yield Kind("still.avif", RECORD, lambda: encode(photograph(), "AVIF", max_threads=1))
        yield Kind("animated.avif", RECORD, lambda: _animated("AVIF", max_threads=1))
        yield Kind("cut.avif", BROKEN, lambda: _share(encode(photograph(), "AVIF", max_threads=1), 0.6))


def _metadata() -> Iterator[Kind]:
    for orientation in (*range(10), 65_535):
        yield Kind(f"turned-{orientation}.jpg", RECORD, lambda o=orientation: jpeg(exif=oriented(o)))
    yield Kind("turned.tif", RECORD, lambda: tiff(grey_tags(8, 8) | {274: (3, [6])}, bytes(range(64))))
    yield Kind("turned-by-xmp.png", RECORD, lambda: good_png(chunk(b"iTXt", XMP)))
    yield Kind("exif-rubbish.jpg", RECORD, lambda: jpeg(exif=b"Exif\0\0" + np.random.default_rng(2).bytes(90)))
    yield Kind("exif-cut.jpg", RECORD, lambda: jpeg(exif=oriented(6)[:-9]))
    yield Kind("exif-loop.jpg", RECORD, lambda: jpeg(exif=exif((0x0112, 3, 1, 6), following=8)))
    yield Kind("exif-huge-count.jpg", RECORD, lambda: jpeg(exif=exif((0x0112, 3, 0xFFFFFFFF, 6), (0x8769, 4, 1, 8))))
    yield Kind("exif-letters.png", RECORD, lambda: good_png(chunk(b"tEXt", b"Raw profile type exif\0\n\n\nxyz")))
    yield Kind("profile.jpg", RECORD, lambda: jpeg(icc_profile=_profile("sRGB")))
    yield Kind("profile-lab.jpg", RECORD, lambda: jpeg(icc_profile=_profile("LAB")))
    yield Kind("profile-rubbish.jpg", RECORD, lambda: jpeg(icc_profile=np.random.default_rng(3).bytes(4000)))
    yield Kind("profile-rubbish.png", RECORD, lambda: good_png(chunk(b"iCCP", b"x\0\0rubbish")))
    yield Kind("profile-parts-lost.jpg", RECORD, lambda: into_jpeg(segment(0xE2, b"ICC_PROFILE\0\2\5part")))
    yield Kind(
        "photoshop-cut.jpg", RECORD, lambda: into_jpeg(segment(0xED, b"Photoshop 3.0\0008BIM\3\xed\0\0\xff\xff"))
    )
    yield Kind("unknown-chunk.png", RECORD, lambda: good_png(chunk(b"prVt", b"x" * 1000)))


def _encodings() -> Iterator[Kind]:
    yield Kind("progressive.jpg", RECORD, lambda: jpeg(progressive=True))
    yield Kind("arithmetic.jpg", RECORD, lambda: ARITHMETIC)
    yield Kind("restarts.jpg", RECORD, lambda: jpeg(restart_marker_blocks=3))
    yield Kind("4-2-0.jpg", RECORD, lambda: jpeg(subsampling=2))
    yield Kind("garbage-behind.jpg", RECORD, lambda: jpeg() + np.random.default_rng(4).bytes(9000))
    yield Kind("film-behind.jpg", RECORD, lambda: jpeg() + b"\xff\xda" * 5000)
    yield Kind("twice.jpg", RECORD, lambda: jpeg() + jpeg())
    yield Kind("garbage-behind.png", RECORD, lambda: good_png() + bytes(5000))
    yield Kind("garbage-behind.gif", RECORD, lambda: encode(photograph(), "GIF") + b"rubbish" * 50)
    yield Kind("lossless.webp", RECORD, lambda: encode(photograph(), "WEBP", lossless=True))
    yield Kind("lossless.jp2", RECORD, lambda: encode(photograph(), "JPEG2000"))
    yield Kind("lossy.jp2", RECORD, lambda: encode(photograph(), "JPEG2000", quality_layers=[20], irreversible=True))
    yield Kind("codestream.jp2", RECORD, lambda: encode(photograph(), "JPEG2000", no_jp2=True))
    yield Kind("big.tif", RECORD, lambda: encode(photograph(), "TIFF", big_tiff=True))
    yield Kind("tiled.tif", RECORD, lambda: tiled(40, 20, (16, 16), bytes(range(256))))
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield Kind(f"{name}.tif", RECORD, lambda n=name: encode(photograph(), "TIFF", compression=n))
    yield Kind("loop.tif", RECORD, _looping_tiff)
    yield Kind("ring.tif", RECORD, lambda: _ring_of_tiffs(500))
    yield Kind("top-down.bmp", RECORD, lambda: bmp(4, -2, 24, bytes(range(24))))
    yield Kind("run-length.bmp", RECORD, lambda: bmp(8, 2, 8, b"\x08\x40\0\0\x08\x90\0\1", 1, GREYS))
    yield Kind("16-bit.bmp", RECORD, lambda: bmp(4, 2, 16, bytes(range(16))))


def image_kinds(max_pixels: int) -> list[Kind]:
    """Every kind of file, each name once.

    Args:
        max_pixels: the job's, which bombs must exceed by a little.
    """
    groups = (_no_images(), _wrong_names(), _cut_off(), _damaged(), _bombs(max_pixels), _shapes(), _pixels(),
              _several(), _metadata(), _encodings())  # fmt: skip
    return [kind for group in groups for kind in group]
