"""What one shard's files must be, whoever wrote them: marker, checksums, records, failures and overlays."""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline import parquet, storage
from pipeline.errors import RunError
from pipeline.idset import hash_names
from pipeline.layout import RunLayout, as_file_name, digest_of_overlays
from pipeline.png import fingerprint
from pipeline.records import image_id
from pipeline.sums import Sums
from pipeline.totals import contradiction, stamp
from pipeline.verify.columns import (
    Columns,
    check_empty,
    check_footer,
    check_maps,
    check_rows,
    check_schema,
    describe_map,
    image_rules,
    logit_rules,
    map_rules,
)
from pipeline.verify.manifest import Part
from pipeline.verify.problems import (
    COUNT,
    COUNTS,
    WORD,
    Kinds,
    Problem,
    is_file,
    one_line,
    plain,
    read_file,
    read_object,
    shorten,
)

MAX_BYTES = 4 << 30  # of a shard's file, and of what it unpacks to

MAX_OVERLAY = 1 << 30  # bytes

STAGES = ("read", "decode", "explain")  # at which an image can fail

AGAIN = "the same `beamcam run` makes that shard again"


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_file, value.values()))


MARKER: Kinds = {
    "shard": COUNT, "config_digest": WORD, "model_digest": WORD, "inputs": COUNT, "records": COUNT, "failures": COUNT,
    "carried": COUNT, "failures_by_type": COUNTS, "overlays": COUNT, "overlays_sha256": WORD,
    "files": (_is_files, "the bytes and sha256 of each file by its path"),
}  # fmt: skip
"""What a marker must say."""


@dataclass(frozen=True)
class RunFacts:
    """What holds for every shard of a run, as run.json says."""

    layout: RunLayout
    digests: Mapping[str, str]  # of the configuration and the model, by what files call them
    n_classes: int | None  # None where classes have no names
    best_logits: int | None  # None for all
    map_dtype: str | None  # as `EncodedMap.dtype`; None for any
    has_overlays: bool | None  # whether each map has one, or none has; None where some have


@dataclass
class Checked:
    """What is known of a shard that was looked through."""

    part: Part
    problems: list[Problem] = field(default_factory=list)
    marker: dict[str, Any] | None = None  # None if it could not be read
    uris: list[str] = field(default_factory=list)  # of the images in its files
    overlays: np.ndarray | None = None  # (n,) S16, hashes of those that belong to it; None if that is not known
    has_sums: bool = False  # whether its marker names a file of sums
    sums: Sums | None = None  # None if there are none, or they are damaged
    # The uri of an image that has so many logits; only where classes have no names, and nobody says how many there are.
    logit_lengths: dict[int, str] = field(default_factory=dict)


def check_shard(run: RunFacts, readers: ThreadPoolExecutor, part: Part) -> Checked:
    """Looks through all files of a shard; whatever they hold, problems are all that comes of it.

    Args:
        run: what holds for every shard.
        readers: threads that read overlays.
        part: which images it must have.
    """
    checked = Checked(part)
    try:
        checked.problems.extend(_check_files(run, readers, checked))
    except Exception as error:  # noqa: BLE001 - what a hostile file makes of itself must not stop the others
        words = f"shard {part.number} cannot be checked: {one_line(error)}"
        checked.problems.append(Problem("shard cannot be checked", words))
    return checked


def _check_files(run: RunFacts, readers: ThreadPoolExecutor, checked: Checked) -> Iterator[Problem]:
    part, layout = checked.part, run.layout
    marker = read_object(layout, layout.marker(part.number), MARKER, AGAIN, optional=("carried",))
    if isinstance(marker, Problem):
        yield marker
        return
    checked.marker = marker
    yield from _check_marker(run, part, marker)
    checked.has_sums = layout.sums(part.number) in marker["files"]
    if not _names_its_files(layout, part.number, marker):
        return
    if checked.has_sums:
        checked.sums = yield from _read_sums(layout, part.number, marker)
    read = functools.partial(_read_columns, run, part.number, marker)
    records = yield from read("records", layout.records(part.number), parquet.RECORDS)
    failures = yield from read("failures", layout.failures(part.number), parquet.FAILURES)
    if records is None or failures is None:
        return
    checked.uris = [*records.words("uri"), *failures.words("uri")]
    all_are_there = yield from _none(_check_images(part, records, failures))
    yield from _check_failures(part, failures, marker)
    yield from check_rows(records, image_rules(records))
    yield from check_rows(records, logit_rules(records, run.n_classes, run.best_logits))
    yield from check_maps(records, map_rules(records, run.n_classes, run.map_dtype, run.has_overlays))
    if run.n_classes is None:
        checked.logit_lengths = dict(zip(records.lengths("logits").tolist(), records.words("uri"), strict=True))
    if all_are_there:
        yield from _check_overlays(run, readers, checked, records, marker)


def _none(problems: Iterator[Problem]) -> Generator[Problem, None, bool]:
    """Passes problems on, and tells whether there was none."""
    found = list(problems)
    yield from found
    return not found


def _check_marker(run: RunFacts, part: Part, marker: Mapping[str, Any]) -> Iterator[Problem]:
    number, path = part.number, run.layout.marker(part.number)
    if marker["shard"] != number:
        yield Problem(
            "marker of another shard", f"{path} is the marker of shard {marker['shard']}: remove it, and {AGAIN}"
        )
    for name, digest in run.digests.items():
        if marker[name] != digest:
            what = name.removesuffix("_digest")
            words = f"shard {number} was written with another {what} than run.json says"
            yield Problem(f"shard of another {what}", f"{words}: remove {path}, and {AGAIN}")
    if marker["inputs"] != len(part.labels):
        words = f"{path} counts {marker['inputs']} inputs, and the manifest has {len(part.labels)} in that shard"
        yield Problem("marker with another count of inputs", words)
    if marker["records"] + marker["failures"] != marker["inputs"]:
        words = f"{marker['inputs']} inputs, but {marker['records']} records and {marker['failures']} failures"
        yield Problem("marker that loses images", f"{path} counts {words}")
    if marker.get("carried", 0) > marker["records"]:
        words = f"{path} counts {marker['carried']} records carried over, of {marker['records']} in all"
        yield Problem("marker with another count of carried records", words)
    if not _names_its_files(run.layout, number, marker):
        files = set(run.layout.files(number)) ^ set(marker["files"])
        words = f"{path} does not name the files of its shard, and them alone: see {shorten(min(files))}"
        yield Problem("marker that names other files", words)


def _names_its_files(layout: RunLayout, number: int, marker: Mapping[str, Any]) -> bool:
    """Whether it names those of its shard; markers of before there were sums name two."""
    *needed, sums = layout.files(number)
    return set(marker["files"]) in (set(needed), {*needed, sums})


def _read_sums(layout: RunLayout, number: int, marker: Mapping[str, Any]) -> Generator[Problem, None, Sums | None]:
    """The sums of a shard; None, after a problem was yielded, if they are not whole."""
    path, again = layout.sums(number), f"remove {layout.marker(number)}, and {AGAIN}"
    data = yield from _read_whole(layout, path, marker["files"][path], again)
    if data is None:
        return None
    try:
        sums = stamp(Sums.from_bytes(data), data)
    except ValueError as error:
        yield Problem("file holds no sums", f"{path} cannot be read: {one_line(error)}: {again}")
        return None
    words = contradiction(sums, [marker])
    if words is not None:
        yield Problem("sums of other images", f"{path} and its shard's marker disagree about {words}: {again}")
        return None
    return sums


def _read_whole(
    layout: RunLayout, path: str, expected: Mapping[str, Any], again: str
) -> Generator[Problem, None, bytes | None]:
    """A shard's file; None, after a problem was yielded, if it is not what its marker says."""
    try:
        data = read_file(layout, path, MAX_BYTES)
    except RunError as error:
        yield Problem("file cannot be read", f"{error}: {again}")
        return None
    if (len(data), hashlib.sha256(data).hexdigest()) != (expected["bytes"], expected["sha256"]):
        words = f"{path} is damaged: {len(data)} bytes of another checksum than its shard's marker says of "
        yield Problem("file is damaged", f"{words}{expected['bytes']}: {again}")
        return None
    return data


def _read_columns(
    run: RunFacts, number: int, marker: Mapping[str, Any], what: str, path: str, schema: Any
) -> Generator[Problem, None, Columns | None]:
    """The columns of a shard's file; None, after a problem was yielded, if it is not whole."""
    again = f"remove {run.layout.marker(number)}, and {AGAIN}"
    data = yield from _read_whole(run.layout, path, marker["files"][path], again)
    if data is None:
        return None
    try:
        table = parquet.parse_table(data, marker[what], MAX_BYTES)
    except Exception as error:  # noqa: BLE001 - Arrow's errors are of many kinds
        yield Problem("file is no table", f"{path} cannot be read: {one_line(error)}: {again}")
        return None
    if not (yield from _none(_check_table(run, path, table, schema, marker[what]))):
        return None
    columns = Columns(table)
    return columns if (yield from _none(check_empty(path, columns))) else None


def _check_table(run: RunFacts, path: str, table: Any, schema: Any, n_rows: int) -> Iterator[Problem]:
    if len(table) != n_rows:
        yield Problem(
            "file of another length", f"{path} holds {len(table)} rows, and its shard's marker counts {n_rows}"
        )
    yield from check_schema(path, table.schema, schema)
    yield from check_footer(path, parquet.own_metadata(table.schema), run.digests)


def _check_images(part: Part, records: Columns, failures: Columns) -> Iterator[Problem]:
    """Each image of the shard must be there once, under its own id and label."""
    shard, uris = f"shard {part.number}", [*records.words("uri"), *failures.words("uri")]
    there = collections.Counter(uris)
    for uri in (uri for uri in part.labels if uri not in there):
        yield Problem("image is lost", f"{shard} lost {plain(uri)}, which is neither a record nor a failure")
    for uri in (uri for uri in there if uri not in part.labels):
        yield Problem("image of no shard", f"{shard} holds {plain(uri)}, which is not in its part of the manifest")
    for uri, count in there.items():
        if count > 1:
            yield Problem("image more than once", f"{shard} holds {plain(uri)} {count} times, as a record or a failure")
    for uri, identity in zip(uris, [*records.words("id"), *failures.words("id")], strict=True):
        if identity != image_id(uri):
            words = f"{shard}: the id of {plain(uri)} is {shorten(identity)}, and should be {image_id(uri)}"
            yield Problem("image under another id", words)
    for uri, label in zip(uris, records.words("label"), strict=False):
        if label != part.labels.get(uri, label):
            words = f"{shard}: the label of {plain(uri)} is {shorten(label)}, and in the manifest "
            yield Problem("image with another label", f"{words}{shorten(part.labels[uri])}")


def _check_failures(part: Part, failures: Columns, marker: Mapping[str, Any]) -> Iterator[Problem]:
    rows = list(zip(*map(failures.words, ("uri", "stage", "error_type", "message")), strict=True))
    for uri, stage, error_type, message in rows:
        if stage not in STAGES or not error_type or not message:
            words = f"the failure of {plain(uri)} does not say what failed: stage {shorten(stage)}, error type "
            yield Problem(
                "failure that does not say what failed", f"{words}{shorten(error_type)}, message {shorten(message)}"
            )
    found = collections.Counter(f"{stage}:{error_type}" for _, stage, error_type, _ in rows)
    if found != marker["failures_by_type"]:
        words = f"shard {part.number} holds the failures {shorten(dict(found))}, and its marker counts "
        yield Problem("other kinds of failures", f"{words}{shorten(marker['failures_by_type'])}")


def _check_overlays(
    run: RunFacts, readers: ThreadPoolExecutor, checked: Checked, records: Columns, marker: Mapping[str, Any]
) -> Iterator[Problem]:
    own: list[str] = []
    carried: set[tuple[str, str]] = set()
    strange = list(_sort_overlays(run, checked.part, records, own, carried))
    yield from strange
    carriers = {uri for uri, _ in carried}
    if len(carriers) > marker.get("carried", 0):
        words = f"holds {len(carriers)} records with overlays of an earlier run, and its marker counts "
        yield Problem(
            "shard with other carried records", f"shard {checked.part.number} {words}{marker.get('carried', 0)}"
        )
    yield from _check_carried(readers, sorted(path for _, path in carried))
    if not strange and len(own) != marker["overlays"]:
        words = f"names {len(own)} overlays of its own, and its marker counts {marker['overlays']}"
        yield Problem("shard with other overlays", f"shard {checked.part.number} {words}")
    elif not strange:
        checked.overlays = hash_names(own)
        yield from _check_pictures(run, readers, checked.part.number, own, marker["overlays_sha256"])


def _sort_overlays(
    run: RunFacts, part: Part, records: Columns, own: list[str], carried: set[tuple[str, str]]
) -> Iterator[Problem]:
    """Finds the overlays that lie in this run, and those in an earlier one, by uri of the image and of the overlay."""
    ids, uris, owners = records.words("id"), records.words("uri"), records.owners("maps")
    methods, targets, named = (records.words(f"maps[].{name}") for name in ("method", "target", "overlay"))
    for row in np.flatnonzero(records.has("maps[].overlay")).tolist():
        owner = int(owners[row])
        expected = f"{run.layout.overlay_folder(ids[owner])}/{ids[owner]}-{_file_name(methods[row])}-{targets[row]}.png"
        if named[row] == expected:
            own.append(expected)
        elif uris[owner] in part.earlier and _is_elsewhere(run.layout, named[row], expected):
            carried.add((uris[owner], named[row]))
        else:
            yield describe_map(
                records, owner, row, f"names the overlay {shorten(named[row], 120)}, which is not its own"
            )


_file_name = functools.lru_cache(maxsize=1024)(as_file_name)


def _is_elsewhere(layout: RunLayout, uri: str, path: str) -> bool:
    """Whether it is the overlay of that path in another run: on this machine, in a bucket, or in this run's store."""
    stores = ("/", "gs://", "s3://", layout.output.partition("://")[0] + "://")
    return uri.startswith(stores) and uri.endswith(f"/{path}")


def _check_carried(readers: ThreadPoolExecutor, uris: list[str]) -> Iterator[Problem]:
    for problem in readers.map(_look, uris):
        if problem is not None:
            yield problem


def _look(uri: str) -> Problem | None:
    """What is wrong with an overlay of another run: it must be there, and is not read."""
    try:
        if storage.exists(uri):
            return None
    except OSError as error:
        return Problem(
            "overlay of an earlier run cannot be reached", f"{plain(uri)} cannot be reached: {one_line(error)}"
        )
    words = "is missing: a record carried over from that run names it, and the run has changed"
    return Problem("overlay of an earlier run is missing", f"{plain(uri)} {words}")


def _check_pictures(
    run: RunFacts, readers: ThreadPoolExecutor, number: int, paths: list[str], expected: str
) -> Iterator[Problem]:
    found = list(readers.map(functools.partial(_read_picture, run.layout), paths))
    problems = [problem for *_, problem in found if problem is not None]
    yield from problems
    digests = {path: digest for path, (digest, *_) in zip(paths, found, strict=True)}
    if not problems and digest_of_overlays(digests) != expected:
        smallest = min(zip((size for _, size, _ in found), paths, strict=True), default=(0, "none"))[1]
        words = f"shard {number} has overlays of other content than its marker says; the smallest is {smallest}"
        yield Problem("overlays of other content", f"{words}: remove {run.layout.marker(number)}, and {AGAIN}")


def _read_picture(layout: RunLayout, path: str) -> tuple[str, int, Problem | None]:
    """What an overlay shows, its size, and what is wrong with it; its bytes are let go."""
    problem = None
    try:
        data = storage.read_bytes(layout.uri(path), MAX_OVERLAY)
    except FileNotFoundError:
        return "", 0, Problem("overlay is missing", f"{path} is missing")
    except Exception as error:  # noqa: BLE001 - stores have errors of all kinds
        return "", 0, Problem("overlay cannot be read", f"{path} cannot be read: {one_line(error)}")
    shown = fingerprint(data)
    if shown is None:
        problem = Problem("overlay is no PNG", f"{path} is no whole PNG: {len(data)} bytes")
    return shown or "", len(data), problem
