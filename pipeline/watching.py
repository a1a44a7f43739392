"""`beamcam watch`: how far a run is, on whatever engine it runs, told by its manifest and the markers of its shards.

A look lists the markers' names, which say how many images are done. What is in them (failures, who did it) is read
bit by bit, so that a look at a run of hundreds of thousands of shards costs what its listing costs.
"""

from __future__ import annotations

import calendar
import collections
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.progress import describe_duration, show_bar, shows_bars, tell
from pipeline.running import read_run_metadata
from pipeline.summary import read_summary
from pipeline.walking import walk_files

READ = 500  # markers that a look reads at most; the others are left to later ones
MAX_MARKER = 4_000_000  # bytes; a run may be anybody's
RECENT = 600.0  # seconds that a rate is told from
RELIEF = 10  # times what a look takes, at least, lies between two of them
KINDS = 5  # of failures that a line names
COUNTLESS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # of what holds no counts

Say = Callable[..., None]


@dataclass(frozen=True)
class Sight:
    """What one look has found."""

    images: int
    images_done: int
    shards: int
    shards_done: int
    shards_read: int  # those whose markers were read by now: what follows is about them
    failures: int
    failures_by_type: Mapping[str, int]
    workers: int
    images_per_second: float | None  # of late; None if that is not known
    is_complete: bool  # whether run.json is there, which is written last

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None if nobody knows."""
        rate = self.images_per_second
        return (self.images - self.images_done) / rate if rate else None

    def describe(self) -> str:
        """It in a line."""
        share = 100 * self.images_done / max(1, self.images)
        return ", ".join([f"{self.images_done} of {self.images} images ({share:.1f} %)", *self.details()])

    def details(self) -> Iterator[str]:
        """What a bar does not show."""
        if self.images_per_second is not None and not self.is_complete:
            yield f"{self.images_per_second:.1f} images/s"
        if self.seconds_left and not self.is_complete:
            yield f"{describe_duration(self.seconds_left)} left"
        yield f"{self.shards_done} of {self.shards} shards"
        if self.workers:
            yield f"{self.workers} worker{'s' * (self.workers > 1)}"
        if self.shards_read:
            yield self._describe_failures()

    def fields(self) -> dict[str, Any]:
        """It for JSON."""
        left, rate = self.seconds_left, self.images_per_second
        told = {name: value for name, value in vars(self).items() if name != "images_per_second"}
        rounded = {"images_per_second": rate and round(rate, 3), "seconds_left": None if left is None else round(left)}
        return told | rounded

    def _describe_failures(self) -> str:
        most = collections.Counter(self.failures_by_type).most_common(KINDS)
        kinds = [f"{count} x {kind}" for kind, count in most]
        kinds += ["..."] * (len(self.failures_by_type) > KINDS)
        words = f"{self.failures} failure{'s' * (self.failures != 1)}" + (f" ({', '.join(kinds)})" if kinds else "")
        return words if self.shards_read >= self.shards_done else f"{words} in {self.shards_read} shards looked into"


@dataclass
class Watched:
    """A run, and what is known of it by now."""

    layout: RunLayout
    clock: Callable[[], float] = time.monotonic
    _facts: tuple[int, int, int] | None = None  # images, shards, and images a shard
    _done: set[int] = field(default_factory=set)
    _unread: list[int] = field(default_factory=list)
    _read: int = 0
    _kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    _workers: set[str] = field(default_factory=set)
    _times: list[tuple[float, int]] = field(default_factory=list)  # when shards that were read were committed; images
    _looks: collections.deque[tuple[float, int]] = field(default_factory=collections.deque)  # when, and images done

    def look(self) -> Sight | None:
        """Looks at the run; None if there is none (yet).

        Raises:
            OSError: its store does not answer.
            RunError: its manifest does not say what it must.
        """
        there = self._marked()
        if self._facts is None or not self._done <= there:  # it has begun, or begun anew
            self._forget()
            self._facts = self._read_facts()
            if self._facts is None:
                return None
        self._unread += sorted(there - self._done)
        self._done = there
        self._read_markers()
        return self._sight(storage.exists(self.layout.uri(self.layout.SUMMARY)))

    def _marked(self) -> set[int]:
        names = (uri.rsplit("/", 1)[-1].removesuffix(".json") for uri in walk_files(self.layout.uri("shards")))
        return {int(name) for name in names if name.isascii() and name.isdecimal()}

    def _forget(self) -> None:
        fresh = Watched(self.layout, self.clock)
        vars(self).update(vars(fresh))

    def _read_facts(self) -> tuple[int, int, int] | None:
        metadata = read_run_metadata(self.layout)
        if metadata is None:
            return None
        try:
            size = _as_count(json.loads(metadata["config"])["shard_size"])
            return _as_count(metadata["n_images"]), _as_count(metadata["n_shards"]), max(1, size)
        except COUNTLESS as error:
            raise RunError(f"the manifest of the run in {self.layout.output!r} is damaged: {error!r}") from error

    def _size_of(self, shard: int) -> int:
        assert self._facts is not None
        images, _, size = self._facts
        return max(0, min(size, images - shard * size))

    def _read_markers(self) -> None:
        # From everywhere: some engines go by numbers, and the first or the last of them tell of no usual time.
        step = max(1, -(-len(self._unread) // READ))
        now, self._unread = self._unread[::step], [n for i, n in enumerate(self._unread) if i % step]
        with ThreadPoolExecutor(16) as pool:
            for number, marker in zip(now, pool.map(self._read_marker, now), strict=True):
                self._read += 1
                with contextlib.suppress(*COUNTLESS):
                    self._note(number, marker)

    def _read_marker(self, number: int) -> Any:
        try:
            return json.loads(storage.read_bytes(self.layout.uri(self.layout.marker(number)), MAX_MARKER))
        except (OSError, ValueError, RecursionError):  # `beamcam verify` tells what is wrong with it
            return None

    def _note(self, number: int, marker: Any) -> None:
        self._kinds.update({str(kind): _as_count(count) for kind, count in marker["failures_by_type"].items()})
        if "worker" in marker:  # older ones do not say it
            self._workers.add(str(marker["worker"]))
            finished = calendar.timegm(time.strptime(marker["finished"], "%Y-%m-%dT%H:%M:%SZ"))
            self._times.append((finished, self._size_of(number)))

    def _sight(self, is_complete: bool) -> Sight:
        assert self._facts is not None
        images, shards, _ = self._facts
        done = sum(map(self._size_of, self._done))
        self._looks.append((self.clock(), done))
        while len(self._looks) > 2 and self._looks[-1][0] - self._looks[1][0] > RECENT:
            self._looks.popleft()
        return Sight(images, done, shards, len(self._done), self._read, sum(self._kinds.values()), dict(self._kinds),
                     len(self._workers), self._rate(), is_complete)  # fmt: skip

    def _rate(self) -> float | None:
        (first, before), (last, now) = self._looks[0], self._looks[-1]
        if now > before or last - first > RECENT / 2:
            return (now - before) / (last - first)
        return self._rate_by_markers()

    def _rate_by_markers(self) -> float | None:
        """What the shards that were read say, scaled to all of them: for a first look."""
        if not self._times or not self._read:
            return None
        latest = max(finished for finished, _ in self._times)
        recent = [(finished, images) for finished, images in self._times if latest - finished < RECENT]
        earliest = min(finished for finished, _ in recent)
        if latest == earliest:
            return None
        # The first of them was begun before the time that is looked at.
        images = sum(images for finished, images in recent if finished > earliest)
        return images * len(self._done) / self._read / (latest - earliest)


def watch_run(uri: str, say: Say, *, once: bool, interval: float | None, stalled_after: float) -> None:
    """Tells how far a run is, until it is complete.

    Args:
        uri: of the run, which need not be there yet.
        say: called with lines, and with fields for JSON.
        once: whether one look is enough.
        interval: seconds between two looks; None for what suits a terminal, or a log.
        stalled_after: minutes without any change after which the run is given up.

    Raises:
        RunError: nothing has changed for so long; or there is no run, and one look was to be enough.
    """
    watched, bars = Watched(RunLayout(uri)), shows_bars() and not once
    interval = interval or (2.0 if bars else 60.0)
    if once:
        sight = watched.look()
        if sight is None:
            raise RunError(f"{uri!r} holds no run: there is no {RunLayout.MANIFEST} in it (yet)")
    else:
        sight = (_follow_on_bar if bars else _follow_in_lines)(watched, interval, 60 * stalled_after, say)
    say(sight.describe(), **sight.fields())
    if sight.is_complete:
        counts = _read_counts(watched.layout)
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        say(f"the run is complete: {words}", **counts)


def _read_counts(layout: RunLayout) -> dict[str, int]:
    summary = read_summary(layout)
    try:
        return {name: _as_count(summary[name]) for name in ("records", "failures", "overlays")}
    except COUNTLESS as error:
        raise RunError(f"{layout.SUMMARY} of {layout.output!r} is damaged: {error!r}") from error


def _as_count(value: Any) -> int:
    """A count in a file that may be anybody's; one of `COUNTLESS` is raised if it is none."""
    count = int(value)
    if not 0 <= count < 2**53:
        raise ValueError(f"a count is a whole number from 0 to 2**53, not {value!r:.80}")
    return count


def _follow_in_lines(watched: Watched, interval: float, patience: float, say: Say) -> Sight:
    for sight in _looks(watched, interval, patience):
        if sight.is_complete:
            return sight
        say(sight.describe(), **sight.fields())
    raise AssertionError("looks end with a run that is complete, or with an error")


def _follow_on_bar(watched: Watched, interval: float, patience: float, _: Say) -> Sight:
    looks = _looks(watched, interval, patience)
    sight = next(looks)
    with show_bar(sight.images, sight.images_done) as show:
        while not sight.is_complete:
            show(sight.images_done, ", ".join(sight.details()))
            sight = next(looks)
        show(sight.images_done, ", ".join(sight.details()))
    return sight


def _looks(watched: Watched, interval: float, patience: float) -> Iterator[Sight]:
    """Sights of a run, one after the other, from its beginning on.

    Raises:
        RunError: nothing has changed for `patience` seconds, says a look; or no look has succeeded for as long.
    """
    seen: Any = None
    moved = looked = watched.clock()
    is_told = False
    while True:
        begun = watched.clock()
        sight, trouble = _try_to_look(watched)
        took = watched.clock() - begun
        if trouble is not None:
            tell(f"the run could not be looked at: {trouble}", severity="WARNING")
        elif sight is None and not is_told:
            tell(f"there is no run in {watched.layout.output} yet: waiting for its {RunLayout.MANIFEST}")
            is_told = True
        looked = looked if trouble is not None else watched.clock()
        now = sight and (sight.images_done, sight.shards_done, sight.is_complete)
        if now != seen and trouble is None:
            seen, moved = now, watched.clock()
        if sight is not None:
            yield sight
        if watched.clock() - (moved if trouble is None else looked) >= patience:
            raise RunError(_stalled(watched.layout.output, sight, patience))
        # What hangs and fails says nothing of what a look costs.
        rest = 0.0 if trouble is not None else min(RELIEF * took, patience / 4)
        time.sleep(max(interval, rest))


def _try_to_look(watched: Watched) -> tuple[Sight | None, OSError | None]:
    try:
        return watched.look(), None
    except OSError as error:
        return None, error


def _stalled(uri: str, sight: Sight | None, patience: float) -> str:
    words = f"nothing has moved in {uri!r} for {describe_duration(patience)}"
    if sight is None:
        return f"{words}: there is no run that can be read"
    if sight.shards_done < sight.shards:
        done = f"{sight.shards_done} of {sight.shards} shards are committed"
    else:
        done = "every shard is committed, and nobody has summed them up"
    return f"{words}: {done}. If no job works on it any more, the same `beamcam run` goes on from there"
