"""Every kind of bad or odd input that we could think of, in one job: `python -m tests.faults.corpus` prints the table.

The files are those of `tests.faults.images`; here are odd names and paths, and manifests. The job runs as users start
it, within a time limit and an address space; each input must end as one record or one failure, of the kind that is
written beside it. A manifest is a matter of the whole job: it is read, or refused in one line.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.images import RECORD, Kind, good_png, image_kinds, jpeg

ROOT = Path(__file__).parent.parent.parent

MAX_PIXELS = 9_000_000

MAX_BYTES = 50_000_000

TIME_LIMIT = 240
"""Seconds for the whole job, of which TensorFlow's start takes most."""

ADDRESS_SPACE = 8 << 30
"""Bytes, of which TensorFlow takes most."""

MISSING = "read:FileNotFoundError"


@dataclass(frozen=True)
class PathKind:
    """A uri with something odd behind it."""

    name: str
    outcome: str
    build: Callable[[Path], str | None]  # in a folder of its own; returns the uri, or None where it cannot be made
    says: str = ""


@dataclass(frozen=True)
class ManifestKind:
    """A manifest, and how many images it lists, or part of the error's message."""

    name: str
    outcome: int | str
    build: Callable[[], bytes]


@dataclass(frozen=True)
class Row:
    """What became of a kind."""

    name: str
    expected: str
    found: str
    message: str
    says: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is what must become of it, with the words that must be said."""
        return self.found == self.expected and self.says in self.message


# Names and paths


def _named(name: str, outcome: str = RECORD) -> PathKind:
    def build(folder: Path) -> str:
        (folder / name).write_bytes(good_png())
        return f"{folder}/{name}"

    shown = name if len(name) < 40 else f"{name[:12]}... of {len(name)} letters"
    return PathKind(f"the name {shown!r}", outcome, build)


def _linked(target: str | Callable[[Path], str]) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        (folder / "a.png").symlink_to(target if isinstance(target, str) else target(folder))
        return f"{folder}/a.png"

    return build


def _loop(folder: Path) -> str:
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    return f"{folder}/a.png"


def _good_link(folder: Path) -> str:
    (folder / "store").write_bytes(good_png())
    (folder / "a.png").symlink_to("store")
    return f"{folder}/a.png"


def _folder(folder: Path) -> str:
    (folder / "a.jpg").mkdir()
    return f"{folder}/a.jpg"


def _pipe(folder: Path) -> str:
    os.mkfifo(folder / "a.jpg")
    return f"{folder}/a.jpg"


def _socket(folder: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "a.jpg"))  # a path of a socket is short
    return f"{folder}/a.jpg"


def _below_a_file(folder: Path) -> str:
    (folder / "a.png").write_bytes(good_png())
    return f"{folder}/a.png/b.png"


def _unreadable(folder: Path) -> str | None:
    (folder / "a.png").write_bytes(good_png())
    (folder / "a.png").chmod(0)
    return None if os.geteuid() == 0 else f"{folder}/a.png"


def _sparse(folder: Path) -> str:
    with (folder / "a.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    return f"{folder}/a.png"


NAMES = (
    "grün 漢字 🦊.png", "cafe\u0301.png", "\u202egnp.png", "50%.png", "%41%2F.png", "a#b.png", "a?b.png", "a&b=c.png",
    "line\nbreak.png", "tab\t.png", "bell\x07.png", "'quoted'.png", '"quoted".png', "-rf.png", "--help", ".hidden.png",
    " space .png", "back\\slash.png", "star*.png", "[1].png", "{a,b}.png", "$(touch x).png", "`x`.png", "a;b.png",
    "a|b.png", "=1+1.png", "<b>bold.png", "C:.png", "~.png", "dots...", "con.png", "x" * 251 + ".png",
)  # fmt: skip


def path_kinds() -> list[PathKind]:
    """Every kind of name and path."""
    neither = "neither a file nor a folder"
    return [
        *map(_named, NAMES),
        PathKind("a missing file", MISSING, lambda folder: f"{folder}/a.png", "no file of that name"),
        PathKind("a missing folder", MISSING, lambda folder: f"{folder}/no/a.png", "no file of that name"),
        PathKind("a folder called a.jpg", "read:IsADirectoryError", _folder),
        PathKind("a path below a file", "read:NotADirectoryError", _below_a_file),
        PathKind("a link", RECORD, _good_link),
        PathKind("a link to itself", "read:OSError", _linked("a.png"), "symbolic links"),
        PathKind("two links in a loop", "read:OSError", _loop, "symbolic links"),
        PathKind("a dangling link", MISSING, _linked("nowhere.png"), "no file of that name"),
        PathKind("a link to its folder", "read:IsADirectoryError", _linked(str)),
        PathKind("a link to /dev/zero", "read:OSError", _linked("/dev/zero"), neither),
        PathKind("a link to /dev/null", "read:OSError", _linked("/dev/null"), neither),
        PathKind("a pipe", "read:OSError", _pipe, neither),
        PathKind("a socket", "read:OSError", _socket),
        PathKind("an unreadable file", "read:PermissionError", _unreadable),
        PathKind("a file beyond --max-bytes", "read:TooLarge", _sparse, "--max-bytes"),
        PathKind("a name too long for a disk", "read:OSError", lambda folder: f"{folder}/{'x' * 300}.png", "too long"),
        PathKind(
            "a path too long for a disk", "read:OSError", lambda folder: f"{folder}/{'x/' * 4000}.png", "too long"
        ),
        PathKind("a uri with a null byte", "read:ValueError", lambda folder: f"{folder}/a\0b.png", "null"),
        PathKind("a store that is not there", "read:OSError", lambda folder: "nostore://bucket/a.png", "no store for"),
    ]


# Manifests


def _parquet(**columns: object) -> bytes:
    sink = pa.BufferOutputStream()
    # Arrow's own schema would tell what is a dictionary; other writers have none.
    pq.write_table(pa.table(columns), sink, store_schema="repeated" not in columns)
    return sink.getvalue().to_pybytes()


def _damaged_parquet(place: int) -> bytes:
    data = bytearray(_parquet(uri=[f"{i}.png" for i in range(100)]))
    data[place] ^= 0xFF
    return bytes(data)


def _repeating_parquet() -> bytes:
    """A long text, once in the file and ten thousand times in its rows."""
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array(["x" * (1 << 20)]))
    return _parquet(uri=rows, repeated=[0] * 10_000)


def _jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _boxed(boxes: object) -> bytes:
    return _jsonl({"uri": "a.png"}, {"uri": "b.png", "boxes": boxes})


def _tables() -> Iterator[ManifestKind]:
    yield ManifestKind("empty.csv", "lists no image", lambda: b"")
    yield ManifestKind("header-only.csv", "lists no image", lambda: b"uri,label\n")
    yield ManifestKind("bom.csv", 1, lambda: b"\xef\xbb\xbfuri\r\na.png\r\n")
    yield ManifestKind("line-ends.csv", 2, lambda: b"uri,label\r\na.png,cat\r\nb.png,dog\r\n")
    yield ManifestKind("old-mac.csv", 2, lambda: b"uri\ra.png\rb.png\r")
    yield ManifestKind("blank-lines.csv", 2, lambda: b"uri\n\na.png\n\n\nb.png\n\n")
    yield ManifestKind("trailing-commas.csv", 2, lambda: b"uri,label,,\na.png,cat,,\nb.png,dog,,,,\n")
    yield ManifestKind("short-rows.csv", 2, lambda: b"label,uri,more\ncat,a.png\ndog,b.png\n")
    yield ManifestKind("no-uri-in-row.csv", "row 2", lambda: b"label,uri\ncat,a.png\ndog\n")
    yield ManifestKind("semicolons.csv", "row 1 has: uri;label", lambda: b"uri;label\na.png;cat\n")
    yield ManifestKind("other-column.csv", "needs a column 'uri'", lambda: b"path\na.png\n")
    yield ManifestKind("two-uris.csv", "2 columns 'uri'", lambda: b"uri,uri\na.png,b.png\n")
    yield ManifestKind("open-quote.csv", "line", lambda: b'uri\n"a.png\nb.png\n')
    yield ManifestKind("quote-inside.csv", "line 2", lambda: b'uri\n"a"b.png\n')
    yield ManifestKind("latin-1.csv", "save it as UTF-8", lambda: "uri\ngrün.png\n".encode("latin-1"))
    yield ManifestKind("utf-16.csv", "save it as UTF-8", lambda: "uri\na.png\n".encode("utf-16"))
    yield ManifestKind("utf-16.txt", "save it as UTF-8", lambda: "a.png\n".encode("utf-16"))
    yield ManifestKind("zeros.csv", "", lambda: bytes(5000))
    yield ManifestKind("image.csv", "save it as UTF-8", jpeg)
    yield ManifestKind("million-columns.csv", "longer than", lambda: b"uri," + b"c," * 1_000_000 + b"\na.png\n")
    yield ManifestKind("many-columns.csv", 1, lambda: b"uri" + b",c" * 100_000 + b"\na.png\n")
    yield ManifestKind("huge-cell.csv", "field larger", lambda: b"uri,x\na.png," + b"y" * 200_000 + b"\n")
    yield ManifestKind("huge-quoted-cell.csv", "field larger", lambda: b'uri,x\na.png,"' + b"y\n" * 200_000)
    yield ManifestKind("duplicates.csv", 1, lambda: b"uri\na.png\n./a.png\nx/../a.png\na.png\n")
    yield ManifestKind("endless-line.txt", "longer than", lambda: b"x" * 30_000_000)
    yield ManifestKind("endless-line.csv", "longer than", lambda: b"x" * 30_000_000)
    yield ManifestKind("comments.txt", 1, lambda: b"# pictures\n\n  a.png  \n#b.png\n")


def _lines() -> Iterator[ManifestKind]:
    nested = b'{"uri": ' + b"[" * 400_000
    yield ManifestKind("endless-line.jsonl", "longer than", lambda: b'{"uri": "' + b"x" * 30_000_000)
    yield ManifestKind("nested.jsonl", "row 1", lambda: nested)
    yield ManifestKind("nested-boxes.jsonl", "row 1", lambda: _jsonl({"uri": "a.png", "boxes": "[" * 100_000}))
    yield ManifestKind("cut.jsonl", "row 2", lambda: b'{"uri": "a.png"}\n{"uri": "b.p')
    yield ManifestKind("list.jsonl", "needs a column 'uri'", lambda: b'["a.png"]\n')
    yield ManifestKind("whole.json", "make it .jsonl", lambda: b'[{"uri": "a.png"}]')
    yield ManifestKind("whole.jsonl", "needs a column 'uri'", lambda: b'[{"uri": "a.png"}]')
    yield ManifestKind("null-uri.jsonl", "row 2", lambda: _jsonl({"uri": "a.png"}, {"uri": None}))
    yield ManifestKind("number-uri.jsonl", "has no uri: 17", lambda: _jsonl({"uri": 17}))
    yield ManifestKind("list-uri.jsonl", "has no uri", lambda: _jsonl({"uri": ["a.png"]}))
    yield ManifestKind("huge-number.jsonl", "row 1", lambda: b'{"uri": ' + b"9" * 100_000 + b"}")
    yield ManifestKind("repeated-key.jsonl", 1, lambda: b'{"uri": "a.png", "uri": "b.png"}')
    yield ManifestKind("half-a-letter.jsonl", "UTF-8", lambda: b'{"uri": "\\ud800.png"}')
    yield ManifestKind("half-a-label.jsonl", "no Unicode", lambda: b'{"uri": "a", "label": "\\ud800"}')
    yield ManifestKind("list-label.jsonl", "neither text nor a number", lambda: _jsonl({"uri": "a", "label": ["b"]}))
    yield ManifestKind("nan-label.jsonl", 1, lambda: b'{"uri": "a.png", "label": NaN}')
    yield ManifestKind("infinite-label.jsonl", 1, lambda: b'{"uri": "a.png", "label": -Infinity}')
    for number, boxes in enumerate(([[1, 2, 3]], [[1, 2, -3, 4]], [["a", 1, 2, 3]], [[1, 2, 3, 10**400]], {"x": 1}, 7)):
        yield ManifestKind(f"boxes-{number}.jsonl", "row 2", lambda b=boxes: _boxed(b))
    yield ManifestKind("boxes-nan.jsonl", "row 1", lambda: b'{"uri": "a", "boxes": [[NaN, 1, 1, 1]]}')
    yield ManifestKind("boxes-huge.jsonl", "row 2", lambda: _boxed([[0, 0, 1e300, 1]]))
    yield ManifestKind("boxes-many.jsonl", 2, lambda: _boxed([[1, 2, 3, 4]] * 20_000))


def _arrow() -> Iterator[ManifestKind]:
    text = ["a.png", "b.png"]
    yield ManifestKind("good.parquet", 2, lambda: _parquet(uri=text, label=["cat", None]))
    yield ManifestKind("large-string.parquet", 2, lambda: _parquet(uri=pa.array(text, pa.large_string())))
    yield ManifestKind("dictionary.parquet", 2, lambda: _parquet(uri=pa.array(text).dictionary_encode()))
    yield ManifestKind("binary.parquet", 2, lambda: _parquet(uri=pa.array(text).cast(pa.binary())))
    yield ManifestKind("bad-binary.parquet", "save it as UTF-8", lambda: _parquet(uri=[b"\xff\xfe"]))
    yield ManifestKind("numbers.parquet", "has no uri: 1", lambda: _parquet(uri=[1, 2]))
    yield ManifestKind("nulls.parquet", "row 2", lambda: _parquet(uri=["a.png", None]))
    yield ManifestKind("no-rows.parquet", "lists no image", lambda: _parquet(uri=pa.array([], pa.string())))
    yield ManifestKind("other.parquet", "needs a column 'uri'", lambda: _parquet(path=text))
    yield ManifestKind("no-columns.parquet", "", _parquet)
    yield ManifestKind("text.parquet", "Parquet", lambda: b"uri\na.png\n")
    yield ManifestKind("signature-only.parquet", "Parquet", lambda: b"PAR1")
    yield ManifestKind("cut.parquet", "Parquet", lambda: _parquet(uri=text)[:-20])
    yield ManifestKind("huge-footer.parquet", "", lambda: b"PAR1" + bytes(50) + b"\xff\xff\xff\x7fPAR1")
    yield ManifestKind("bad-page.parquet", "", lambda: _damaged_parquet(10))
    yield ManifestKind("bad-footer.parquet", "", lambda: _damaged_parquet(-48))
    yield ManifestKind("bad-schema.parquet", "", lambda: _damaged_parquet(-90))
    yield ManifestKind("repeating.parquet", "far too large", _repeating_parquet)


def manifest_kinds() -> list[ManifestKind]:
    """Every kind of manifest, each in a file of its own."""
    return [*_tables(), *_lines(), *_arrow()]


# The job


def limit_memory() -> None:
    """Makes this process and its children fail where they ask for too much."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def beamcam(*arguments: object, limit: float = TIME_LIMIT) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, within limits."""
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False,
        preexec_fn=limit_memory,
    )  # fmt: skip


def run_job(folder: Path, model: Path) -> tuple[list[Row], list[str]]:
    """All files, names and paths in one job.

    Args:
        folder: an empty one.
        model: a Keras model.

    Returns:
        A row for each kind, and what is wrong with the job as a whole, a sentence each.
    """
    uris = _write_inputs(folder)
    lines = [json.dumps({"uri": uri}) for uri in [*uris, *list(uris)[::7]]]  # every seventh one twice
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    options = ("--preprocess", "tf", "--jit", "off", "--overlays", "layer", "--overlay-size", 64, "--shard-size", 64)
    limits = ("--max-pixels", MAX_PIXELS, "--max-bytes", MAX_BYTES)
    given = ("--images", folder / "manifest.jsonl", "--model", model, "--output", folder / "run")
    job = beamcam("run", *given, *options, *limits)
    problems = [] if job.returncode == 0 else [f"the job ended with {job.returncode}: {job.stderr.strip()[-500:]}"]
    verified = beamcam("verify", folder / "run")
    if verified.returncode != 0:
        problems.append(f"verify: {verified.stdout.strip()} {verified.stderr.strip()}")
    found = _outcomes(folder / "run")
    problems += [
        f"{uri!r} is accounted for {len(found.get(uri, []))} times" for uri in uris if len(found.get(uri, [])) != 1
    ]
    problems += [f"nobody asked for {uri!r}" for uri in set(found) - set(uris)]
    rows = [Row(kind.name, kind.outcome, *found.get(uri, [("lost", "")])[0], kind.says) for uri, kind in uris.items()]
    return rows, problems


def _write_inputs(folder: Path) -> dict[str, Kind | PathKind]:
    uris: dict[str, Kind | PathKind] = {}
    for number, image in enumerate(image_kinds(MAX_PIXELS)):
        path = folder / "images" / f"{number:03d}" / image.name
        path.parent.mkdir(parents=True)
        path.write_bytes(image.build())
        uris[str(path)] = image
    for number, kind in enumerate(path_kinds()):
        place = folder / "paths" / f"{number:03d}"
        place.mkdir(parents=True)
        uri = kind.build(place)
        if uri is not None:
            uris[uri] = kind
    return uris


def _outcomes(run: Path) -> dict[str, list[tuple[str, str]]]:
    """What a run says of each uri: outcome and message."""
    from pipeline import open_run

    found: dict[str, list[tuple[str, str]]] = {}
    whole = open_run(run)
    for record in whole:
        size = f"{record.geometry.width} x {record.geometry.height}"
        found.setdefault(record.uri, []).append((RECORD, size))
    for failure in whole.failures():
        found.setdefault(failure.uri, []).append((f"{failure.stage}:{failure.error_type}", failure.message))
    return found


def try_manifests(folder: Path) -> list[Row]:
    """Every manifest by itself, as the job lists it."""
    from pipeline.errors import ConfigError
    from pipeline.listing import list_images

    rows = []
    for kind in manifest_kinds():
        path = folder / kind.name
        path.write_bytes(kind.build())
        is_count = isinstance(kind.outcome, int)
        expected = f"{kind.outcome} images" if is_count else "refused"
        try:
            with list_images([str(path)]) as listing:
                found, message = f"{listing.n_images} images", ""
        except ConfigError as error:
            found, message = "refused", str(error).replace(f"{folder}/", "")
        rows.append(Row(kind.name, expected, found, message, "" if is_count else str(kind.outcome)))
        path.unlink()
    return rows


def to_markdown(rows: Sequence[Row]) -> str:
    """The table of the closing note."""
    lines = ["| kind | outcome | message |", "|---|---|---|"]
    for row in rows:
        name, message = (_printable(text) for text in (row.name, row.message))
        wrong = "" if row.is_right else f" **expected {row.expected} {row.says}**"
        lines.append(f"| {name} | {row.found}{wrong} | {message} |")
    return "\n".join(lines)


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text).replace("|", "\\|")
    return shown if len(shown) < 170 else f"{shown[:160]}..."


def main() -> int:
    """Runs all of it and prints the table; 0 if everything became what it should."""
    from tests import models

    with tempfile.TemporaryDirectory(prefix="corpus-") as name:
        folder = Path(name)
        models.gap_dense(size=32).save(folder / "model.keras")
        start = time.monotonic()
        rows, problems = run_job(folder, folder / "model.keras")
        seconds = time.monotonic() - start
        rows += try_manifests(folder)
    print(to_markdown(rows))
    wrong = sum(not row.is_right for row in rows)
    print(f"\n{len(rows)} kinds, {wrong} of them wrong; the job took {seconds:.0f} s")
    print("\n".join(problems) or "nothing lost, doubled or damaged")
    return int(bool(wrong or problems))


if __name__ == "__main__":
    sys.exit(main())
