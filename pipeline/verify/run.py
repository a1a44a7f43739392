"""`beamcam verify`: proof that a run is whole, with nothing lost, doubled or damaged.

Everything streams: shards come from the manifest one after the other, a few of them are looked through at a time
(`checking`), and what stays of a run is sixteen bytes an image and sixteen an overlay.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.codec import MAP_DTYPES
from pipeline.errors import ConfigError, RunError
from pipeline.flow import CORES, IN_FLIGHT, map_ahead
from pipeline.idset import IdSet, as_ids, hash_names
from pipeline.layout import RunLayout
from pipeline.progress import Counter, show_count, show_progress
from pipeline.records import SCHEMA_VERSION, image_id
from pipeline.sums import MAX_BYTES, Sums
from pipeline.totals import gather
from pipeline.verify.manifest import Part, Parts
from pipeline.verify.problems import (
    COUNT,
    COUNTS,
    MISSING,
    OPTIONS,
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
from pipeline.verify.shards import Checked, RunFacts, check_shard
from pipeline.walking import walk_files

TOLD = 3  # problems of a kind that are told one by one

COUNTED = ("records", "failures", "overlays", "carried")  # by every marker, and their sums by run.json

LISTED = 4096  # overlays that are looked for at a time

SUMMARY: Kinds = {
    "schema_version": (lambda value: value == SCHEMA_VERSION, f"{SCHEMA_VERSION} for this program"),
    "config": OPTIONS, "config_digest": WORD, "model_digest": WORD, "failures_by_type": COUNTS, "shards": COUNT,
    "class_names": (
        lambda value: value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value)),
        "a list of words, or null",
    ),
    "sums": (is_file, "the bytes and sha256 of the total of all sums"),
    **dict.fromkeys(("inputs", "records", "failures", "overlays", "carried"), COUNT),
}  # fmt: skip
"""What run.json must say."""


class Told:
    """What is told of many problems: a few of each kind as they are found, and in the end how many more there are.

    Attributes:
        total: how many there were.
    """

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()

    @property
    def total(self) -> int:
        """How many problems there were."""
        return self._counts.total()

    def lines(self, problems: Iterable[Problem]) -> Iterator[str]:
        """Yields sentences."""
        for problem in problems:
            self._counts[problem.kind] += 1
            if self._counts[problem.kind] <= TOLD:
                yield problem.sentence
        for kind, count in self._counts.items():
            if count > TOLD:
                yield f"and {count - TOLD} more: {kind}"


def verify_run(path: str) -> Iterator[Problem]:
    """Yields what is wrong with a run, as it is found; nothing if all is well.

    Checked: run.json and every marker, value by value, and that they count the same; the size and checksum of every
    file; that the manifest's shards and ids are in order and unique, and that each image is there once, as a record or
    a failure, under its id and label; columns and footers of every Parquet file; that logits, maps and boxes are what
    they can be; that each overlay is there with the content that it had, and no other; that no other file is there.

    Raises:
        ConfigError: there is no run at all, or no store of that name.
    """
    layout = RunLayout(_absolute(path))
    hint = "the same `beamcam run` writes it once all shards are committed"
    summary = read_object(layout, layout.SUMMARY, SUMMARY, hint, optional=("carried", "sums"))
    if not isinstance(summary, Problem):
        yield from _Walk(layout, summary).problems()
    elif summary.kind == MISSING and not _may_exist(layout.uri(layout.MANIFEST)):
        raise ConfigError(f"{path!r} holds no run: neither {layout.SUMMARY} nor {layout.MANIFEST} is there")
    else:
        yield summary


def _may_exist(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except OSError:  # the store does not tell
        return True


def _absolute(path: str) -> str:
    try:
        storage.open_store(path)
    except OSError as error:
        raise ConfigError(f"{path!r} cannot be verified: {one_line(error)}") from error
    return storage.absolute(path).rstrip("/")


def _facts(layout: RunLayout, summary: Mapping[str, Any]) -> RunFacts:
    config, names = summary["config"], summary["class_names"]
    kind, _, count = str(config.get("logits")).partition(":")
    dtypes = [stored for name, stored in MAP_DTYPES.items() if config.get("map_dtype") == name]
    share = 0 if config.get("overlays") == "none" else config.get("overlay_sample")
    return RunFacts(
        layout,
        {name: summary[name] for name in ("config_digest", "model_digest")},
        None if names is None else len(names),
        int(count) if kind == "top" and count.isdecimal() and len(count) < 10 else None,
        dtypes[0] if dtypes else None,
        bool(share) if share in (0, 1) else None,
    )


class _Walk:
    """One walk through a run, and what is kept of it."""

    def __init__(self, layout: RunLayout, summary: Mapping[str, Any]):
        self.layout, self.summary, self.run = layout, summary, _facts(layout, summary)
        self.parts = Parts(layout, self.run.digests)
        self.totals: collections.Counter[str] = collections.Counter()  # of what markers count
        self.failures_by_type: collections.Counter[str] = collections.Counter()
        self.are_markers_whole = True
        self.n_logits: int | None = None  # of the first record
        self.gathered: list[Sums] | None = []  # of the shards so far; None once one has none
        self.with_sums: set[int] = set()  # shards whose markers name a file of sums
        self.overlays = IdSet()
        self.unknown = IdSet()  # images whose overlays are not known, since their shard could not be read

    def problems(self) -> Iterator[Problem]:
        """Yields what is wrong, and shows how far it has come."""
        done = Counter()
        with show_progress(self.summary["inputs"], lambda: done.value):
            for checked in self._checked():
                if isinstance(checked, Problem):
                    yield checked
                else:
                    yield from checked.problems
                    yield from self._sum_up(checked)
                    done.add(len(checked.part.labels))
        if self.parts.is_whole:
            yield from self._check_counts()
            yield from self._check_sums()
            yield from self._check_folders()
            listed = Counter()
            with show_count("overlays listed", lambda: listed.value):
                yield from self._check_overlays(listed)

    def _checked(self) -> Iterator[Checked | Problem]:
        """The shards of the manifest, looked through in threads and in order; among them the manifest's problems."""
        at_a_time = CORES if storage.is_local(self.layout.output) else IN_FLIGHT
        with ThreadPoolExecutor(at_a_time) as pool, ThreadPoolExecutor(4 * at_a_time) as readers:

            def check(part: Part | Problem) -> Checked | Problem:
                return part if isinstance(part, Problem) else check_shard(self.run, readers, part)

            yield from map_ahead(pool, check, self.parts, 2 * at_a_time)

    def _sum_up(self, checked: Checked) -> Iterator[Problem]:
        if checked.has_sums:
            self.with_sums.add(checked.part.number)
        yield from self._gather(checked.sums)
        if checked.overlays is None:
            self.unknown.add(as_ids(map(image_id, {*checked.part.labels, *checked.uris})))
        else:
            self.overlays.add(checked.overlays)
        if checked.marker is None:
            self.are_markers_whole = False
        else:
            self.totals.update({name: checked.marker.get(name, 0) for name in COUNTED})
            self.failures_by_type.update(checked.marker["failures_by_type"])
        for length, uri in checked.logit_lengths.items():
            self.n_logits = self.n_logits or length
            if length != self.n_logits:
                words = f"{plain(uri)} has {length} logits, and the run's first record {self.n_logits}"
                yield Problem("shard with another number of logits", words)

    def _gather(self, sums: Sums | None) -> Iterator[Problem]:
        if sums is None or self.gathered is None:
            self.gathered = None
            return
        try:
            self.gathered = gather(self.gathered, [sums])
        except ValueError as error:
            self.gathered = None
            yield Problem("sums that do not add up", f"the shards' sums do not add up: {one_line(error)}")

    def _check_counts(self) -> Iterator[Problem]:
        counts = {"inputs": self.parts.n_images, "shards": self.parts.n_shards}
        for name, count in counts.items():
            if self.summary[name] != count:
                words = f"run.json counts {self.summary[name]} {name}, and {self.layout.MANIFEST} lists {count}"
                yield Problem("run.json with another count", words)
        if not self.are_markers_whole:
            return
        found: dict[str, Any] = {**self.totals, "failures_by_type": dict(self.failures_by_type)}
        for name, total in found.items():
            said = self.summary.get(name, total)
            if said != total:
                words = f"run.json counts {shorten(said)} {name}, and the shards' markers {shorten(total)}"
                yield Problem("run.json with another count", words)

    def _check_sums(self) -> Iterator[Problem]:
        """The total must be that of the shards; where a shard of an older run has no sums, what run.json says of it."""
        path, told = self.layout.TOTAL, self.summary.get("sums")
        if told is None:
            return
        again = f"remove {self.layout.SUMMARY}, and the same `beamcam run` writes it again"
        try:
            data = read_file(self.layout, path, MAX_BYTES)
        except RunError as error:
            yield Problem("file cannot be read", f"{error}: {again}")
            return
        if (len(data), hashlib.sha256(data).hexdigest()) != (told["bytes"], told["sha256"]):
            words = f"{path} is damaged: {len(data)} bytes of another checksum than run.json says of {told['bytes']}"
            yield Problem("file is damaged", f"{words}: {again}")
            return
        try:
            found = Sums.from_bytes(data).to_bytes()  # another machine may have compressed the same to other bytes
        except ValueError as error:
            yield Problem("file holds no sums", f"{path} cannot be read: {one_line(error)}: {again}")
            return
        if self.gathered and _merge(self.gathered) != found:
            yield Problem("sums that do not add up", f"{path} is not the sum of the shards' sums: {again}")

    def _check_folders(self) -> Iterator[Problem]:
        """Readers take every file of a folder: there must be none but the shards' own."""
        for folder, name in (
            ("records", self.layout.records),
            ("failures", self.layout.failures),
            ("sums", self.layout.sums),
            ("shards", self.layout.marker),
        ):
            for path in self._list(folder):
                if isinstance(path, Problem):
                    yield path
                    continue
                number = re.search(r"(\d{5,18})\.", path)
                is_sums = folder == "sums" and number is not None and int(number[1]) not in self.with_sums
                if number and int(number[1]) < self.parts.n_shards and name(int(number[1])) == path and not is_sums:
                    continue
                # A job that may not remove files leaves its partial sums; they count only where digests prove them.
                if path == self.layout.PARTIAL or (path == self.layout.TOTAL and "sums" in self.summary):
                    continue
                yield _stranger(path, "belongs to no shard")

    def _check_overlays(self, listed: Counter) -> Iterator[Problem]:
        """Overlays that records name were read, shard by shard; here come those that no record names."""
        paths = self._list("overlays")
        while some := list(itertools.islice(paths, LISTED)):
            listed.add(len(some))
            yield from (path for path in some if isinstance(path, Problem))
            files = [path for path in some if not isinstance(path, Problem)]
            for row in np.flatnonzero(~self.overlays.contains(hash_names(files))):
                if not self._may_belong(files[row]):
                    yield _stranger(files[row], "belongs to no record")

    def _may_belong(self, path: str) -> bool:
        """Whether it is the overlay of an image whose shard could not be read."""
        found = re.fullmatch(r"overlays/[0-9a-f]{2}/([0-9a-f]{32})-[^/]*\.png", path)
        return bool(found and self.unknown.contains(as_ids([found[1]]))[0])

    def _list(self, folder: str) -> Iterator[str | Problem]:
        """The paths of all files in a folder of the run, below the run."""
        base = self.layout.uri("")
        try:
            for uri in walk_files(self.layout.uri(folder)):
                yield uri.removeprefix(base)
        except Exception as error:  # noqa: BLE001 - stores have errors of all kinds
            yield Problem("folder cannot be listed", f"{folder} cannot be listed: {one_line(error)}")


def _merge(gathered: Sequence[Sums]) -> bytes | None:
    """The file of their total; None if they do not belong together."""
    try:
        return Sums.merge(gathered).to_bytes()
    except ValueError:
        return None


def _stranger(path: str, words: str) -> Problem:
    if path.rsplit("/", 1)[-1].startswith(storage.TEMPORARY):
        words = "is what a writer leaves that was killed: remove it, unless a job is running there"
        return Problem("temporary file", f"{plain(path)} {words}")
    return Problem(f"file that {words}", f"{plain(path)} {words}: remove it")
