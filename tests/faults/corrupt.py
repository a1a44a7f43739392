"""A tenth of the images damaged: every good one has its record, and every bad one a failure of the right kind."""

from __future__ import annotations

import collections
import hashlib
import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from pipeline import open_run
from tests.faults.jobs import Workplace, draw_images, verify
from tests.faults.places import Place
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings

SHARE = 0.1

Damage = Callable[[bytes, random.Random], bytes | None]
"""A JPEG's bytes to what is found in its place; None for nothing."""


def run_corrupt(settings: Settings) -> Iterator[Outcome]:
    """One row: the images lie in a local folder, and what reads them from a store is tried elsewhere."""
    count = 300 if settings.quick else 5000
    work = settings.workplace("corrupt", count=count, shard_size=100)
    what = f"{count * SHARE:.0f} of {count:,} images damaged in {len(DAMAGES)} ways"
    yield settings.measure("corrupt", what, "each its record or its failure", "local", corrupt_rounds, work)


def corrupt_rounds(work: Workplace, place: Place, chance: random.Random) -> Iterator[Round]:
    """One run over all of them, and a row for each way to be damaged."""
    folder = work.folder / "images"
    draw_images(folder, work.count, work.seed, largest=160)
    paths = sorted(folder.iterdir())
    expected = damage_some(paths, chance)
    manifest = work.folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"uri": str(path)}) + "\n" for path in paths))
    place = place.new()
    ended = work.job_over(str(manifest), place.root).run()
    if ended.code != 0:
        yield Round("job", (f"ended with {ended.code}: {ended.complaint}",))
        return
    yield from judge(place, paths, expected)
    yield Round("verify", tuple(verify(place, work.folder / "tmp")), {"seconds": round(ended.seconds, 1)})


def damage_some(paths: list[Path], chance: random.Random) -> dict[str, str]:
    """Damages its share of the images in all ways in turn; returns path -> the way."""
    chosen = chance.sample(paths, round(SHARE * len(paths)))
    ways = [list(DAMAGES)[number % len(DAMAGES)] for number in range(len(chosen))]
    for path, way in zip(chosen, ways, strict=True):
        data = DAMAGES[way][0](path.read_bytes(), chance)
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        elif way == "a folder":
            path.mkdir()
    return {str(path): way for path, way in zip(chosen, ways, strict=True)}


def judge(place: Place, paths: list[Path], expected: dict[str, str]) -> Iterator[Round]:
    """A round for the good images, and one for each way to be damaged."""
    run = open_run(place.root)
    recorded = {record.uri: record.content_sha256 for record in run}
    failed = {failure.uri: failure for failure in run.failures()}
    good = {str(path): path for path in paths if str(path) not in expected}
    lost = sorted(set(good) - set(recorded))
    wrong = [uri for uri in good if uri in recorded and recorded[uri] != _digest(good[uri])]
    found = {"lost": lost, "of other content": wrong}
    problems = [f"{len(uris)} {what}, such as {uris[0]}" for what, uris in found.items() if uris]
    if len(run) + run.summary["failures"] != len(paths) or set(recorded) & set(failed):
        problems.append(f"{len(paths)} images, {len(run)} records and {run.summary['failures']} failures")
    yield Round("good images", tuple(problems), {"images": len(good)})
    for way, (_, kind) in DAMAGES.items():
        uris = [uri for uri, found in expected.items() if found == way]
        kinds = collections.Counter(f"{failed[uri].stage}:{failed[uri].error_type}" if uri in failed else "recorded"
                                    for uri in uris)  # fmt: skip
        silent = [uri for uri in uris if uri in failed and len(failed[uri].message) < 10]
        problems = [f"{many} became {found}, not {kind}" for found, many in kinds.items() if found != kind]
        yield Round(way, tuple(problems + [f"no message for {uri}" for uri in silent[:1]]), dict(kinds))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: int(len(data) * chance.uniform(0.1, 0.9))]


def _saved(form: str, mode: str = "RGB") -> Callable[[bytes], bytes]:
    def save(data: bytes) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).convert(mode).save(file, form)
        return file.getvalue()

    return save


def _cut_as(form: str) -> Damage:
    return lambda data, chance: _cut(_saved(form)(data), chance)


def _png_of_size(width: int, height: int) -> Damage:
    """A PNG whose header says another size than its content has, with a checksum that fits."""

    def resize(data: bytes, _: random.Random) -> bytes:
        png = _saved("PNG")(data)
        header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
        return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]

    return resize


def _bad_checksum(data: bytes, _: random.Random) -> bytes:
    png = _saved("PNG")(data)
    return png[:29] + bytes(4) + png[33:]


BROKEN, STRANGE = "decode:BrokenImage", "decode:NotAnImage"

DAMAGES: dict[str, tuple[Damage, str]] = {
    "no bytes": (lambda data, chance: b"", "decode:EmptyFile"),
    "zeros": (lambda data, chance: bytes(len(data)), STRANGE),
    "noise": (lambda data, chance: b"\x01" + chance.randbytes(len(data)), STRANGE),
    "HTML": (lambda data, chance: b"<!DOCTYPE html><title>404</title>not found", STRANGE),
    "JSON": (lambda data, chance: b'{"error": "throttled"}', STRANGE),
    "a header alone": (lambda data, chance: data[:20], BROKEN),
    "a JPEG cut off": (_cut, BROKEN),
    "a PNG cut off": (_cut_as("PNG"), BROKEN),
    "a WebP cut off": (_cut_as("WEBP"), BROKEN),
    "a GIF cut off": (_cut_as("GIF"), BROKEN),
    "a PNG with a bad checksum": (_bad_checksum, BROKEN),
    "a PNG of less content than its size": (_png_of_size(700, 900), BROKEN),
    "a bomb": (_png_of_size(60_000, 60_000), "decode:TooLarge"),
    "floating-point pixels": (lambda data, chance: _saved("TIFF", "F")(data), "decode:UnsupportedPixels"),
    "no file": (lambda data, chance: None, "read:FileNotFoundError"),
    "a folder": (lambda data, chance: None, "read:IsADirectoryError"),
}
"""Ways to be damaged, each with the failure that it is to become."""
