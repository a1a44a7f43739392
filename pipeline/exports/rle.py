"""Masks as run lengths, in the three ways that annotation tools write them."""

from __future__ import annotations

import numpy as np

from pipeline.exports.regions import Region


def coco_rle(region: Region, width: int, height: int) -> str:
    """COCO's compressed run lengths: over the whole image column by column, background first.

    Each run is the difference to the run before the last, in groups of five bits with a sixth for "more to come", as
    letters from "0" on (cocoapi's maskApi.c, rleToString).
    """
    starts, ends = _runs(region.mask.T, region.left, region.top, height)
    counts = _counts(starts, ends, width * height)
    changes = counts.copy()
    changes[3:] -= counts[1:-2]
    return "".join(map(_letters, changes.tolist()))


def cvat_rle(region: Region) -> list[int]:
    """CVAT's run lengths: inside the box row by row, background first."""
    starts, ends = _runs(region.mask, 0, 0, region.width)
    return _counts(starts, ends, region.mask.size).tolist()


def brush_rle(region: Region, width: int, height: int) -> list[int]:
    """Label Studio's brush: run lengths of an RGBA picture, row by row, as a stream of bits in bytes.

    The stream has the number of values (32 bits), the bits of a value less one (5), four sizes of lengths less one (4
    each), and then runs: a 1, which of the sizes its length has (2), the length less one, and the value
    (https://github.com/thi-ng/umbrella, rle-pack). A pixel of the mask is 255 in all four channels: with 1, which also
    survives the way there and back, nobody would see it.
    """
    starts, ends = _runs(region.mask, region.top, region.left, width)
    counts = _counts(starts, ends, width * height)
    head = f"{4 * width * height:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in _SIZES)
    runs = [_bits(4 * count, 255 * (i % 2)) for i, count in enumerate(counts.tolist()) if count]
    bits = head + "".join(runs)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


_SIZES = (3, 4, 8, 16)  # bits that the length of a run may take


def _bits(count: int, value: int) -> str:
    """A run, or several where it is longer than the largest size can say."""
    longest = 1 << _SIZES[-1]
    written = []
    while count:
        part = min(count, longest)
        index = next(i for i, size in enumerate(_SIZES) if part <= 1 << size)
        written.append(f"1{index:02b}{part - 1:0{_SIZES[index]}b}{value:08b}")
        count -= part
    return "".join(written)


def _runs(mask: np.ndarray, first: int, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of True start and end in the picture that a mask is part of, read line by line.

    Args:
        mask: (lines, n) bool.
        first: the picture's line that is the mask's first one.
        offset: the place in a line where the mask begins.
        length: of the picture's lines.
    """
    framed = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    framed[:, 1:-1] = mask
    changes = np.diff(framed, axis=1)
    lines, places = np.nonzero(changes == 1)
    starts = (first + lines) * length + offset + places
    lines, places = np.nonzero(changes == -1)
    ends = (first + lines) * length + offset + places
    joined = starts[1:] == ends[:-1]  # over the end of a line
    return starts[np.r_[True, ~joined]], ends[np.r_[~joined, True]]


def _counts(starts: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """Lengths of runs, background first; it may be 0, the last one is not."""
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[0], edges[1::2], edges[2::2] = 0, starts, ends
    counts = np.diff(edges)
    return counts if ends[-1] == size else np.append(counts, size - ends[-1])


def _letters(value: int) -> str:
    text = ""
    while True:
        group, value = value & 31, value >> 5
        done = value == (-1 if group & 16 else 0)
        text += chr(48 + (group if done else group | 32))
        if done:
            return text
