"""Mutated files against the decoder and the manifest reader: `python -m tests.faults.fuzz --minutes 10`.

Each input must give pixels or an `ImageError`, entries or a `ConfigError`: nothing else, within ten seconds, and in
little memory. A child process does the work under a limit of its address space, and says which input it is at; when it
dies or hangs, that input is made again from its number and saved, and another child goes on behind it.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import itertools
import json
import mmap
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.decode import decode_reduced
from pipeline.errors import ConfigError, ImageError
from pipeline.manifests import read_manifest
from tests.faults.corpus import ROOT, manifest_kinds
from tests.faults.images import image_kinds

MAX_PIXELS = 4_000_000

NEEDED = (32, 32)

PATIENCE = 10
"""Seconds for an input."""

ADDRESS_SPACE = 3 << 29
"""Bytes for the child: 1.5 GB, of which libraries take half a gigabyte; pixels need a hundred megabytes at most."""

LARGEST_SEED = 40_000

MANIFEST_SHARE = 0.25

TOKENS = (
    b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xdd",
    b"\xff\xe1", b"\xff\xe2", b"\xff\xed", b"\xff\xee", b"Exif\0\0", b"MPF\0", b"ICC_PROFILE\0", b"IHDR", b"IDAT",
    b"IEND", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"II*\0", b"MM\0*",
    b"II+\0", b"GIF89a", b"!\xf9\x04", b"!\xfe", b"!\xff", b",", b";", b"RIFF", b"WEBP", b"VP8X", b"VP8L", b"ANIM",
    b"ANMF", b"ALPH", b"ftypavif", b"jP  ", b"ihdr", b"colr", b"jp2c", b"\xff\x4f\xff\x51", b"\xff\x52", b"BM", b"P3",
    b"P5", b"\0\0\1\0", b"uri", b"label", b"boxes", b",", b'"', b'""', b"\n", b"\r", b"\r\n", b"\t", b"\xef\xbb\xbf",
    b"\0", b"[[", b"]]", b"{", b"}", b"null", b"NaN", b"-1", b"1e999", b"\\ud800", b"\xff\xfe", b"PAR1", b"../",
    b"gs://", b"nostore://", b"file://", b"%00",
)  # fmt: skip
"""What parsers look for."""

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Edit:
    """One mutation."""

    kind: int  # of MUTATORS
    place: float  # in [0, 1)
    value: int  # 32 bits


def _position(data: bytes, place: float) -> int:
    return int(place * len(data))


def _flip(data: bytes, place: float, value: int) -> bytes:
    at = _position(data, place)
    return data[:at] + bytes((data[at] ^ 1 << value % 8,)) + data[at + 1 :] if data else data


def _set(data: bytes, place: float, value: int) -> bytes:
    at = _position(data, place)
    return data[:at] + bytes((value % 256,)) + data[at + 1 :]


def _number(data: bytes, place: float, value: int) -> bytes:
    at, width = _position(data, place), (1, 2, 4)[value // 16 % 3]
    number = NUMBERS[value // 64 % len(NUMBERS)] % 256**width
    return data[:at] + number.to_bytes(width, "big" if value % 2 else "little") + data[at + width :]


def _cut(data: bytes, place: float, value: int) -> bytes:
    return data[: _position(data, place)]


def _delete(data: bytes, place: float, value: int) -> bytes:
    at = _position(data, place)
    return data[:at] + data[at + 1 + value % 64 :]


def _repeat(data: bytes, place: float, value: int) -> bytes:
    at, size = _position(data, place), 1 + value % 200
    return data[:at] + data[at : at + size] * (2 + value // 256 % 60) + data[at + size :]


def _insert(data: bytes, place: float, value: int) -> bytes:
    at = _position(data, place)
    return data[:at] + TOKENS[value % len(TOKENS)] + data[at:]


def _overwrite(data: bytes, place: float, value: int) -> bytes:
    at, token = _position(data, place), TOKENS[value % len(TOKENS)]
    return data[:at] + token + data[at + len(token) :]


def _splice(data: bytes, place: float, value: int) -> bytes:
    other = seeds()[value % len(seeds())].data
    return data[: _position(data, place)] + other[_position(other, place) :]


def _borrow(data: bytes, place: float, value: int) -> bytes:
    """A piece of another file."""
    other, at = seeds()[value % len(seeds())].data, _position(data, place)
    start = value // 1024 % max(1, len(other))
    return data[:at] + other[start : start + 100] + data[at:]


def _chunk_length(data: bytes, place: float, value: int) -> bytes:
    """The length of a PNG's chunk, of a JPEG's segment, or of a RIFF's part; near the start for others."""
    starts = list(itertools.islice(_lengths(data), 40)) or [(min(len(data), 4), 4, "big")]
    at, width, order = starts[_position(bytes(len(starts)), place)]
    was = int.from_bytes(data[at : at + width], order)
    near = (was + value % 7 - 3, NUMBERS[value % len(NUMBERS)], was * 2)[value // 16 % 3]
    return data[:at] + (near % 256**width).to_bytes(width, order) + data[at + width :]


def _lengths(data: bytes) -> Iterator[tuple[int, int, Any]]:
    position = {b"\x89P": 8, b"\xff\xd8": 2, b"RI": 12}.get(data[:2], len(data))
    while position + 8 <= len(data):
        if data[:1] == b"\x89":
            yield position, 4, "big"
            position += 12 + int.from_bytes(data[position : position + 4], "big")
        elif data[:1] == b"R":
            yield position + 4, 4, "little"
            position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")
        else:
            yield position + 2, 2, "big"
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def _repair(data: bytes, place: float, value: int) -> bytes:
    """The checksums of a PNG, without which a decoder looks no further."""
    if not data.startswith(b"\x89PNG"):
        return _flip(data, place, value)
    position, found = 8, data[:8]
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        found += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return found


MUTATORS: tuple[Callable[[bytes, float, int], bytes], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _delete, _repeat, _insert, _overwrite, _splice, _borrow,
    _chunk_length, _repair,
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """What mutations start from."""

    data: bytes
    suffix: str  # a manifest's; "" for an image


@lru_cache(maxsize=1)
def seeds() -> tuple[Seed, ...]:
    """The corpus, as far as it is small: images, then manifests."""
    images = (Seed(kind.build(), "") for kind in image_kinds(MAX_PIXELS) if "bomb-zeros" not in kind.name)
    manifests = (
        Seed(kind.build(), Path(kind.name).suffix) for kind in manifest_kinds() if "repeating" not in kind.name
    )
    small = (seed for seed in itertools.chain(images, manifests) if 0 < len(seed.data) <= LARGEST_SEED)
    return tuple(sorted(small, key=lambda seed: (seed.suffix != "", seed.suffix)))


@lru_cache(maxsize=1)
def _count_images() -> int:
    return sum(not seed.suffix for seed in seeds())


def mutate(seed: Seed, edits: Sequence[Edit]) -> Seed:
    """A file after some mutations, which never grows much."""
    data = seed.data
    for edit in edits:
        data = MUTATORS[edit.kind % len(MUTATORS)](data, edit.place, edit.value)[: 4 * LARGEST_SEED]
    return Seed(data, seed.suffix)


def make_input(campaign: int, number: int) -> Seed:
    """The input of a number, always the same."""
    chance = random.Random(f"{campaign}/{number}")
    count = _count_images()
    which = chance.randrange(count, len(seeds())) if chance.random() < MANIFEST_SHARE else chance.randrange(count)
    edits = [
        Edit(chance.randrange(len(MUTATORS)), chance.random() ** chance.choice((1, 3)), chance.getrandbits(32))
        for _ in range(chance.choice((1, 1, 2, 3, 5, 9)))
    ]
    if chance.random() < 0.5:
        edits.append(Edit(MUTATORS.index(_repair), 0.5, 0) if seeds()[which].data[:4] == b"\x89PNG" else edits[-1])
    return mutate(seeds()[which], edits)


def try_input(given: Seed, folder: Path) -> str:
    """Hands an input to its reader.

    Returns:
        What became of it, in a word or two.

    Raises:
        Exception: what must not come out of them.
    """
    if not given.suffix:
        try:
            found = decode_reduced(given.data, MAX_PIXELS, NEEDED)
        except ImageError as error:
            if "does not fit in memory" in str(error):
                raise MemoryError(str(error)) from error
            return error.error_type
        assert found.image.mode == "RGB"
        assert found.width * found.height <= MAX_PIXELS
        return "Decoded"
    path = folder / f"m{given.suffix}"
    path.write_bytes(given.data)
    try:
        return "entries" if sum(1 for _ in read_manifest(str(path), "label")) else "no entries"
    except ConfigError as error:
        # Arrow takes a page's word for its size, at most 2 GB, ahead of its content; it does not touch what it takes.
        is_page = given.suffix == ".parquet" and "malloc of size" in str(error)
        if "MemoryError" in str(error) and not is_page:
            raise MemoryError(str(error)) from error
        return "ConfigError"


# The child


def work(campaign: int, first: int, deadline: float, place: Path) -> None:
    """Tries inputs from a number on, and keeps `place` up to date: number, peak memory, and what was found."""
    # TensorFlow is not here, so that most of the address space is the readers' own.
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    outcomes: collections.Counter[str] = collections.Counter()
    offenders: list[dict[str, Any]] = []
    seeds()  # before anything is measured
    with (place / "at").open("r+b") as file, mmap.mmap(file.fileno(), 16) as at:
        peak, slowest = _peak(), (0.0, -1)
        number = first
        while time.time() < deadline:
            struct.pack_into("<QQ", at, 0, number, peak)
            _watch()
            start = time.monotonic()
            try:
                outcomes[try_input(make_input(campaign, number), place)] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
                offenders.append({"number": number, "what": f"{type(error).__name__}: {error}"[:300]})
            slowest = max(slowest, (time.monotonic() - start, number))
            faulthandler.cancel_dump_traceback_later()
            if _peak() > peak + (64 << 20):
                offenders.append({"number": number, "what": f"the peak rose from {peak >> 20} to {_peak() >> 20} MB"})
            peak = max(peak, _peak())
            number += 1
            if number % 500 == 0:
                _note(place, number - first, outcomes, offenders, slowest)
        _note(place, number - first, outcomes, offenders, slowest)


def _watch() -> None:
    """Lets this process end itself if the input takes too long; a busy machine may have no thread for a moment."""
    for attempt in range(20):
        try:
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
        except RuntimeError:
            if attempt == 19:
                raise
            time.sleep(0.5)
        else:
            return


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _note(place: Path, count: int, outcomes: Any, offenders: list[dict[str, Any]], slowest: tuple[float, int]) -> None:
    found = {"count": count, "outcomes": outcomes, "offenders": offenders, "slowest": slowest}
    (place / "found.new").write_text(json.dumps(found))
    (place / "found.new").replace(place / "found.json")


# The parent


@dataclass
class Findings:
    """What a campaign found."""

    count: int = 0
    seconds: float = 0.0
    peak: int = 0  # bytes
    slowest: tuple[float, int] = (0.0, -1)  # seconds, number
    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    offenders: list[dict[str, Any]] = field(default_factory=list)

    def take(self, place: Path, code: int, error: str) -> int:
        """Adds what a child has left; returns the number to go on with."""
        number, peak = struct.unpack("<QQ", (place / "at").read_bytes())
        self.peak = max(self.peak, peak)
        if (place / "found.json").exists():
            found = json.loads((place / "found.json").read_text())
            self.count += found["count"]
            self.outcomes.update(found["outcomes"])
            self.offenders += found["offenders"]
            self.slowest = max(self.slowest, tuple(found["slowest"]))
            (place / "found.json").unlink()
        if code != 0:
            what = f"hang: {error.strip()}" if "Timeout" in error else f"crash with {code}: {error.strip()[-2000:]}"
            self.offenders.append({"number": number, "what": what})
        return number + 1

    def tell(self) -> str:
        """Some lines."""
        rows = [f"{self.count} inputs in {self.seconds:.0f} s, {self.count / max(self.seconds, 1e-9):.0f} a second"]
        rows += [f"    {count:8d} {outcome}" for outcome, count in self.outcomes.most_common()]
        rows += [f"peak memory {self.peak >> 20} MB; slowest input {self.slowest[1]}: {self.slowest[0]:.2f} s"]
        kinds = collections.Counter(_class_of(offender["what"]) for offender in self.offenders)
        rows += [f"{kinds[kind]} of {kind}" for kind in ("crash", "hang", "memory", "error")]
        return "\n".join(rows + [f"    input {item['number']}: {item['what']}" for item in self.offenders])


def _class_of(what: str) -> str:
    if what.startswith(("crash", "hang")):
        return what.split(" ", maxsplit=1)[0].rstrip(":")
    return "memory" if what.startswith(("the peak", "MemoryError")) else "error"


def fuzz(minutes: float, campaign: int, offenders: Path) -> Findings:
    """Tries inputs for so long, in one child after another, and saves those that gave what they must not."""
    findings, start = Findings(), time.monotonic()
    deadline, number = time.time() + 60 * minutes, 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        place = Path(name)
        while time.time() < deadline:
            (place / "at").write_bytes(struct.pack("<QQ", number, 0))
            given = ("--child", str(campaign), str(number), str(deadline), str(place))
            with (place / "said").open("w+b") as said:
                child = subprocess.run(
                    [sys.executable, "-m", "tests.faults.fuzz", *given], cwd=ROOT, stderr=said, check=False,
                    timeout=max(0.0, deadline - time.time()) + 10 * PATIENCE,
                )  # fmt: skip
                said.seek(max(0, said.tell() - 3000))
                number = findings.take(place, child.returncode, said.read().decode(errors="replace"))
    findings.seconds = time.monotonic() - start
    for item in findings.offenders:
        offenders.mkdir(parents=True, exist_ok=True)
        given_again = make_input(campaign, item["number"])
        (offenders / f"{campaign}-{item['number']}{given_again.suffix or '.image'}").write_bytes(given_again.data)
    return findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes; 0 if nothing was found."""
    parser = argparse.ArgumentParser("python -m tests.faults.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--campaign", type=int, default=0, help="another number gives other inputs (default: 0)")
    parser.add_argument("--offenders", type=Path, default=ROOT / "artifacts" / "fuzz", help="where they are saved")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        campaign, number, deadline, place = options.child
        work(int(campaign), int(number), float(deadline), Path(place))
        return 0
    findings = fuzz(options.minutes, options.campaign, options.offenders)
    print(findings.tell())
    return int(bool(findings.offenders))


if __name__ == "__main__":
    sys.exit(main())
