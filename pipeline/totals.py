"""A run's sums on disk: a part beside each shard's records, and their total; made again from records if they lack."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.observations import first_method, observe, observe_shard
from pipeline.records import Entry, Record
from pipeline.summary import read_markers, read_summary
from pipeline.sums import MAX_BYTES, MERGED, Sums, join_ranges

Marker = Mapping[str, Any]

READ_AT_ONCE = 16

MARKERS_AT_ONCE = 1024


@dataclass(frozen=True)
class Basis:
    """What decides, beside a shard's records, what their sums are."""

    method: str  # whose maps stand for a run
    class_names: tuple[str, ...] | None
    probability: str | None  # "softmax" or "sigmoid"; see `observe`

    @staticmethod
    def of_job(methods: Sequence[str], metadata: Mapping[str, str]) -> Basis:
        """Of a job, by the manifest of its run."""
        names = json.loads(metadata.get("class_names", "null"))
        return Basis(methods[0], None if names is None else tuple(names), metadata.get("probability") or None)

    @staticmethod
    def of_run(summary: Mapping[str, Any], method: str | None = None) -> Basis:
        """Of a finished run, by its first method or another one.

        Raises:
            RunError: run.json does not say what its classes and methods are.
        """
        names = summary["class_names"]
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise RunError(f"run.json is damaged: its class_names is a list of words, or null, not {names!r:.80}")
        names = None if names is None else tuple(names)
        return Basis(method or first_method(summary), names, summary.get("probability") or None)


def make_part(
    shard: int, entries: Iterable[Entry], records: Iterable[Record], failures_by_type: Mapping[str, int], basis: Basis
) -> bytes:
    """The file with the sums of a shard."""
    boxes = {entry.id: entry.boxes for entry in entries if entry.boxes}
    observations = observe(records, basis.method, basis.class_names, boxes=boxes, probability=basis.probability)
    return Sums.of(observations, failures_by_type=failures_by_type, shard=shard).to_bytes()


def read_part(layout: RunLayout, marker: Marker, basis: Basis, is_first_method: bool = True) -> Sums:
    """The sums of a shard; from its records where there is no such file, or one of another version, content or shard.

    Args:
        layout: the run.
        marker: the shard's, which says what is in the file.
        basis: what the sums are to be of.
        is_first_method: whether that is the method of the run's parts.

    Raises:
        RunError: the records cannot be read either.
    """
    told = marker["files"].get(layout.sums(marker["shard"]))
    if isinstance(told, dict) and is_first_method:
        try:
            data = storage.read_bytes(layout.uri(layout.sums(marker["shard"])), MAX_BYTES)
            if hashlib.sha256(data).hexdigest() == told.get("sha256"):
                sums = stamp(Sums.from_bytes(data), data)
                if (sums.method, sums.shards) == (basis.method, _as_ranges([marker])):
                    return sums
        except storage.UnavailableError:
            raise
        except (OSError, ValueError):
            pass
    return _recompute(layout, marker, basis)


def stamp(sums: Sums, data: bytes) -> Sums:
    """With the digest of the file that they are from, so that a total tells which files it is of."""
    return dataclasses.replace(sums, parts_digest=int(hashlib.sha256(data).hexdigest(), 16))


def read_sums(run: Any, method: str | None = None) -> Sums:
    """The sums of a finished run.

    They are read from its total; where there is none, or it is damaged, from its shards' parts; and for another method,
    or of a run of before there were sums, they are computed from its records, at some 3,000 images a second.

    Args:
        run: a `Run` or a `RunLayout`.
        method: as the records call it; None for the run's first.

    Raises:
        RunError: there is no finished run, it has no such method, or files are missing or damaged.
    """
    layout = run if isinstance(run, RunLayout) else RunLayout(run.path)
    summary = read_summary(layout)
    if type(summary["shards"]) is not int or summary["shards"] < 0:
        raise RunError(f"run.json is damaged: its shards is a whole number, not {summary['shards']!r:.80}")
    basis, first = Basis.of_run(summary, method), first_method(summary)
    if basis.method not in summary["config"]["methods"]:
        known = ", ".join(map(str, summary["config"]["methods"]))
        raise RunError(f"the run in {layout.output!r} has no maps of {basis.method!r}: its methods are {known}")
    total = _read_total(layout, summary) if basis.method == first else None
    if total is not None:
        return total
    markers = list(_read_markers(layout, summary["shards"]))
    parts = _read_parts(layout, markers, basis, basis.method == first)
    total = _add_up(layout, Sums.empty(basis.method), parts)
    _check_total(layout, total, markers)
    return total


def gather(waiting: list[Sums], more: Iterable[Sums]) -> list[Sums]:
    """Sums that wait to be added up, of which there are few at a time."""
    waiting = [*waiting, *more]
    return [Sums.merge(waiting)] if len(waiting) >= MERGED else waiting


def write_partial(layout: RunLayout, sums: Sums) -> None:
    """Leaves the sums of the shards of this job for `write_total`."""
    storage.write_bytes(layout.uri(layout.PARTIAL), sums.to_bytes())


def write_total(layout: RunLayout, markers: Sequence[Marker], basis: Basis) -> dict[str, Any]:
    """Adds the shards of earlier jobs to the sums of this one, proves the total and writes it.

    Args:
        layout: the run.
        markers: of all its shards, in order.
        basis: what the sums are of.

    Returns:
        What run.json says of the file: its method, bytes and sha256.

    Raises:
        RunError: records cannot be read, or sums and markers count different images.
    """
    begun = _read_partial(layout, markers, basis)
    covered = {shard for first, end in begun.shards for shard in range(first, end)}
    rest = [marker for marker in markers if marker["shard"] not in covered]
    total = _add_up(layout, begun, _read_parts(layout, rest, basis))
    _check_total(layout, total, markers)
    data = total.to_bytes()
    if not _is_written(layout, data):
        storage.write_bytes(layout.uri(layout.TOTAL), data)
    with contextlib.suppress(OSError):  # who may create files may not be allowed to remove them; it does no harm
        storage.remove_file(layout.uri(layout.PARTIAL))
    return {"method": basis.method, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def contradiction(sums: Sums, markers: Sequence[Marker]) -> str | None:
    """What sums say that their shards' markers do not; None if they agree."""
    failures: dict[str, int] = {}
    for marker in markers:
        for name, count in marker["failures_by_type"].items():
            failures[name] = failures.get(name, 0) + count
    said: list[tuple[str, Any, Any]] = [
        ("shards", sums.shards, _as_ranges(markers)),  # never one by one: a file of a few bytes may claim 2**52
        ("images", sums.n_images, sum(marker["records"] for marker in markers)),
        ("failures", sums.failures_by_type, dict(sorted((name, count) for name, count in failures.items() if count))),
    ]
    return next((f"{name}: {one!r:.80} and {other!r:.80}" for name, one, other in said if one != other), None)


def digest_of_parts(layout: RunLayout, markers: Iterable[Marker]) -> int | None:
    """`Sums.parts_digest` of the shards with these markers; None if one of them has no part."""
    total = 0
    for marker in markers:
        told = marker["files"].get(layout.sums(marker["shard"]))
        if told is None:
            return None
        total += int(told["sha256"], 16)
    return total % (1 << 256)


def _as_ranges(markers: Iterable[Marker]) -> tuple[tuple[int, int], ...]:
    """The shards with these markers, as `Sums.shards` has them."""
    return join_ranges((number, number + 1) for number in {marker["shard"] for marker in markers})


def _is_written(layout: RunLayout, data: bytes) -> bool:
    """Whether the total is there already: where nothing may be written over, a job can then be run again."""
    try:
        return storage.read_bytes(layout.uri(layout.TOTAL), MAX_BYTES) == data
    except OSError:
        return False


def _add_up(layout: RunLayout, begun: Sums, parts: Iterable[Sums]) -> Sums:
    """`Sums.merge` of what may be anybody's.

    Raises:
        RunError: the parts do not belong together, or records cannot be read.
    """
    try:
        return Sums.merge(itertools.chain([begun], parts))
    except ValueError as error:
        raise RunError(
            f"the sums of the run in {layout.output!r} do not add up: {error}: "
            f"`beamcam verify {layout.output}` tells what is damaged"
        ) from error


def _read_partial(layout: RunLayout, markers: Sequence[Marker], basis: Basis) -> Sums:
    """The sums that the graph has left, if they are proven to be of parts that are still there; else of no shard."""
    nothing = Sums.empty(basis.method)
    try:
        found = Sums.from_bytes(storage.read_bytes(layout.uri(layout.PARTIAL), MAX_BYTES))
    except storage.UnavailableError:
        raise
    except (OSError, ValueError):
        return nothing
    if found.method != basis.method or any(end > len(markers) for _, end in found.shards):
        return nothing
    covered = [marker for first, end in found.shards for marker in markers[first:end]]
    is_proven = contradiction(found, covered) is None and digest_of_parts(layout, covered) == found.parts_digest
    return found if is_proven else nothing


def _read_total(layout: RunLayout, summary: Mapping[str, Any]) -> Sums | None:
    told = summary.get("sums")
    try:
        data = storage.read_bytes(layout.uri(layout.TOTAL), MAX_BYTES)
        if not isinstance(told, dict) or hashlib.sha256(data).hexdigest() != told.get("sha256"):
            return None
        total = Sums.from_bytes(data)
    except storage.UnavailableError:
        raise
    except (OSError, ValueError):
        return None
    return total if total.covers(summary["shards"]) and total.method == first_method(summary) else None


def _read_parts(
    layout: RunLayout, markers: Sequence[Marker], basis: Basis, is_first_method: bool = True
) -> Iterator[Sums]:
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:  # an object store takes as long for one as for many
        for place in range(0, len(markers), READ_AT_ONCE):
            some = markers[place : place + READ_AT_ONCE]
            yield from pool.map(lambda marker: read_part(layout, marker, basis, is_first_method), some)


def _read_markers(layout: RunLayout, n_shards: int) -> Iterator[Marker]:
    """The markers of a run that may be anybody's, some at a time: run.json may count any number of shards."""
    for first in range(0, n_shards, MARKERS_AT_ONCE):
        numbers = range(first, min(n_shards, first + MARKERS_AT_ONCE))
        for number, marker in zip(numbers, read_markers(layout, numbers), strict=True):
            counts = marker["failures_by_type"], marker["files"]
            is_whole = marker["shard"] == number and type(marker["records"]) is int
            is_whole = is_whole and all(isinstance(found, dict) for found in counts)
            if not is_whole or any(type(count) is not int for count in marker["failures_by_type"].values()):
                raise RunError(f"{layout.marker(number)} of {layout.output!r} is damaged: it is no marker of its shard")
            yield marker


def _recompute(layout: RunLayout, marker: Marker, basis: Basis) -> Sums:
    observations = observe_shard(
        layout, marker["shard"], basis.method, class_names=basis.class_names, probability=basis.probability
    )
    sums = Sums.of(observations, failures_by_type=marker["failures_by_type"], shard=marker["shard"])
    return stamp(sums, sums.to_bytes())


def _check_total(layout: RunLayout, total: Sums, markers: Sequence[Marker]) -> None:
    words = contradiction(total, markers)
    if words is not None:
        raise RunError(
            f"the sums of the run in {layout.output!r} and its markers disagree about {words}: "
            f"`beamcam verify {layout.output}` tells what is damaged"
        )
