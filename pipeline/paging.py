"""Keys of an object store: pages that are asked for in many places at once, told in the order of their keys.

A level (what lies right in a folder) tells which folders there are; a flat list tells all keys of a folder, in fewer
requests. While there are too few lists to ask for at once, folders are listed level by level, and long flat lists are
cut up. Pages that come before their turn are kept compressed, and on disk where they are many.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline import storage, stores

ROWS = 1000  # keys a page: the most that S3 gives, and what Google recommends
AT_ONCE = 16  # requests under way
MANY = 64  # lists that a page of folders becomes at most
LONG = 4  # pages after which a flat list may be cut up
HELD = 32 << 20  # bytes of compressed pages that memory holds; 1,000 keys take some 10 KB

_HEX = re.compile("[0-9]*[a-f]")
_LAST = "\U0010fffd"  # the last character that any name may hold


class Choice(Protocol):
    """Which uris a listing is about; those of folders end with a slash."""

    def takes(self, uri: str) -> bool:
        """Whether a file is to be told."""

    def enters(self, folder: str) -> bool:
        """Whether something below a folder may be to be told."""

    def holds_all(self, folder: str) -> bool:
        """Whether everything below a folder may be to be told, so that it can be listed flat."""

    def within(self, folder: str) -> str:
        """What all uris that are to be told of a folder begin with: the folder, or more."""


@dataclass(frozen=True)
class Span:
    """Keys that are listed one after the other."""

    prefix: str
    flat: bool  # all keys; otherwise what lies right below the prefix: keys, and folders
    start: str = ""  # the first key, or what comes ahead of it
    end: str | None = None  # what comes after the last key


@dataclass(frozen=True)
class Page:
    """What one request gives."""

    keys: list[str]  # without the placeholders of folders
    folders: list[str]  # each with its slash
    token: str | None  # what the next request must say; None on the last page


ListPage = Callable[[Span, "str | None"], Page]


def page_lister(uri: str) -> tuple[ListPage, str] | None:
    """How pages of a bucket are asked for, and the uri of the bucket with its slash; None for stores without pages."""
    if stores.scheme_of(uri) not in _PAGES:
        return None
    store, path = storage.open_store(uri)
    ask, bucket = _PAGES[stores.scheme_of(uri)], store.split_path(path)[0]
    base = f"{store.unstrip_protocol(bucket)}/"

    def list_page(span: Span, token: str | None) -> Page:
        with stores.told(base + span.prefix):
            page = ask(store, bucket, span, token)
        check_order(page, base + span.prefix)
        return page

    return list_page, base


def walk_keys(list_page: ListPage, base: str, prefix: str, choice: Choice, at_once: int = AT_ONCE) -> Iterator[str]:
    """The uris of a bucket that begin with `base + prefix` and are chosen, in the order of their keys.

    Raises:
        OSError: a page cannot be had.
    """
    walk = _Walk(list_page, base, choice, at_once)
    try:
        parts: list[Any] = [walk.add(_Job(Span(prefix, flat=False)), prefix)]
        while parts:
            part = parts.pop()
            if isinstance(part, _Job):
                parts.extend(reversed(walk.wait(part)))
            else:
                yield from (base + key for key in walk.pages.take(part))
    finally:
        walk.stop()


@dataclass
class _Job:
    """One request, and what has become of it."""

    span: Span
    token: str | None = None
    pages: int = 0  # how many went ahead of it in its span
    last_folder: str = ""  # of the page ahead
    parts: list[Any] | None = field(default=None, repr=False)  # places of pages, and further jobs, in their order
    error: BaseException | None = None


class _Walk:
    """Threads that do jobs, those whose keys come first at first."""

    def __init__(self, list_page: ListPage, base: str, choice: Choice, at_once: int):
        self._list_page, self._base, self._choice, self._at_once = list_page, base, choice, at_once
        self.pages = _Pages()
        self._change = threading.Condition()
        self._waiting: list[tuple[str, int, _Job]] = []
        self._numbers = itertools.count()
        self._busy = self._threads = 0
        self._seen_folders, self._seen_keys = 0, 1
        self._stopped = False

    def add(self, job: _Job, position: str) -> _Job:
        """Has a job done in its turn, which is told by where its keys begin."""
        with self._change:
            heapq.heappush(self._waiting, (position, next(self._numbers), job))
            if self._threads < min(self._at_once, self._busy + len(self._waiting)):
                self._threads += 1
                threading.Thread(target=self._work, name="listing", daemon=True).start()
            self._change.notify_all()
        return job

    def wait(self, job: _Job) -> list[Any]:
        """The parts of a job, once it is done."""
        with self._change:
            self._change.wait_for(lambda: job.parts is not None or job.error is not None)
        if job.error is not None:
            raise job.error
        assert job.parts is not None
        return job.parts

    def stop(self) -> None:
        """Lets the threads go: what is under way ends, nothing new begins."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self.pages.close()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                parts = self._list(job)
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that reads
                job.error = error
            else:
                job.parts = parts
            with self._change:
                self._busy -= 1
                self._change.notify_all()

    def _next(self) -> _Job | None:
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._waiting)
            if self._stopped:
                return None
            self._busy += 1
            return heapq.heappop(self._waiting)[2]

    def _has_room_for(self, jobs: int) -> bool:
        with self._change:
            return self._busy - 1 + len(self._waiting) + jobs < self._at_once

    def _list(self, job: _Job) -> list[Any]:
        page = self._list_page(job.span, job.token)
        self._seen_keys += len(page.keys)
        self._seen_folders += sum(1 for _ in itertools.groupby(page.keys, lambda key: key[: key.rfind("/")]))
        return self._flat_parts(job, page) if job.span.flat else self._level_parts(job, page)

    def _flat_parts(self, job: _Job, page: Page) -> list[Any]:
        parts = self._kept(page.keys, job.span)
        if page.token is None or (page.keys and job.span.end is not None and page.keys[-1] >= job.span.end):
            return parts
        if self._is_worth_cutting(job, page):
            spans = _cut_up(job.span, page.keys[0], page.keys[-1])
            return parts + [
                self.add(_Job(span), span.start) for span in spans if self._is_open(span.prefix, job.span.prefix)
            ]
        rest = _Job(job.span, page.token, job.pages + 1)
        return [*parts, self.add(rest, max(page.keys[-1:], default=job.span.prefix))]

    def _level_parts(self, job: _Job, page: Page) -> list[Any]:
        # A store may tell a folder whose keys go on behind the page's end once more.
        folders = [name for name in page.folders if _is_in(name, job.span) and name != job.last_folder]
        spans = self._spans(folders, job.span.prefix)
        parts, told = [], 0
        for first, span in spans:
            place = bisect.bisect_left(page.keys, first)
            parts += self._kept(page.keys[told:place], job.span)
            parts.append(self.add(_Job(span), first))
            told = place if span.end is None else bisect.bisect_left(page.keys, span.end)  # a flat list tells these too
        parts += self._kept(page.keys[told:], job.span)
        last = max([*page.keys[-1:], *page.folders[-1:]], default=job.span.prefix)
        if page.token is None or (job.span.end is not None and last >= job.span.end):
            return parts
        if not page.folders and self._is_worth_cutting(job, page):
            ranges = _cut_folder(job.span, page.keys[0], page.keys[-1])
            parts += [self.add(_Job(span), span.start) for span in ranges]
        else:
            rest = _Job(job.span, page.token, job.pages + 1, max(page.folders[-1:], default=job.last_folder))
            parts.append(self.add(rest, last + _LAST))
        return parts

    def _is_worth_cutting(self, job: _Job, page: Page) -> bool:
        is_long = job.pages + 1 >= LONG and page.keys and page.keys[-1] >= job.span.start
        return bool(is_long) and self._has_room_for(1)

    def _spans(self, folders: list[str], prefix: str) -> list[tuple[str, Span]]:
        """How the folders of a level are listed, each with where it begins."""
        flat = not self._has_room_for(len(folders))
        size = -(-len(folders) // MANY)
        if self._seen_folders > AT_ONCE:  # folders of an image or two are not worth a request each
            size = max(size, 2 * ROWS * self._seen_folders // self._seen_keys)
        spans = []
        for (entered, all_below), same in itertools.groupby(folders, self._prospects):
            names = list(same)
            if entered and all_below and size > 1:
                groups = (names[i : i + size] for i in range(0, len(names), size))
                spans += [(some[0], Span(prefix, True, some[0], _behind(some[-1]))) for some in groups]
            elif entered:
                spans += [(name, Span(self._within(name), flat and all_below)) for name in names]
        return spans

    def _prospects(self, folder: str) -> tuple[bool, bool]:
        uri = self._base + folder
        return self._choice.enters(uri), self._choice.holds_all(uri)

    def _within(self, folder: str) -> str:
        return self._choice.within(self._base + folder)[len(self._base) :]

    def _kept(self, keys: Iterable[str], span: Span) -> list[Any]:
        chosen = [key for key in self._outside_closed(keys, span) if self._choice.takes(self._base + key)]
        return [self.pages.keep(chosen)] if chosen else []

    def _outside_closed(self, keys: Iterable[str], span: Span) -> Iterator[str]:
        """The keys of a span that lie in no folder that is not entered; a flat list passes their doors by."""
        last, is_open = None, True
        for key in keys:
            folder = key[: key.rfind("/") + 1]
            if folder != last:
                last, is_open = folder, not span.flat or self._is_open(folder, span.prefix)
            if is_open and _is_in(key, span):
                yield key

    def _is_open(self, folder: str, top: str) -> bool:
        ends = (i + 1 for i in range(len(top), len(folder)) if folder[i] == "/")
        return all(self._choice.enters(self._base + folder[:end]) for end in ends)


class _Pages:
    """Lists of keys, compressed, in memory while they are few and otherwise in a temporary file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file = tempfile.SpooledTemporaryFile(HELD)  # noqa: SIM115 - see close()

    def keep(self, keys: list[str]) -> tuple[int, int]:
        """Where the keys can be taken from."""
        data = zlib.compress(json.dumps(keys).encode(), 1)
        with self._lock:
            self._file.seek(0, 2)
            place = self._file.tell()
            self._file.write(data)
        return place, len(data)

    def take(self, place: tuple[int, int]) -> list[str]:
        """The keys that were kept there."""
        with self._lock:
            self._file.seek(place[0])
            data = self._file.read(place[1])
        return json.loads(zlib.decompress(data))

    def close(self) -> None:
        """Lets all pages go; keys that come later are refused."""
        with self._lock:
            self._file.close()


def _is_in(name: str, span: Span) -> bool:
    return name >= span.start and (span.end is None or name < span.end)


def _behind(folder: str) -> str:
    return folder[:-1] + "0"  # the character after the slash


def _cut_up(span: Span, first: str, last: str) -> list[Span]:
    """What is left of a flat list behind a page: of the last key's own folder, and of each folder above it."""
    folder = last[: last.rfind("/") + 1]
    if len(folder) <= len(span.prefix):
        return _cut_folder(span, first, last)
    spans = _cut_folder(Span(folder, True), first, last)
    while len(folder) > len(span.prefix):
        start, folder = _behind(folder), folder[: folder.rfind("/", 0, -1) + 1]
        is_top = len(folder) <= len(span.prefix)
        spans.append(Span(span.prefix, False, start, span.end) if is_top else Span(folder, False, start))
    return spans


def _cut_folder(span: Span, first: str, last: str) -> list[Span]:
    """What is left of a folder behind a page, cut where its names, if they are numbers or hashes, would go on.

    After image_0417.jpg these are image_042, ..., image_05, ..., image_1, ... Any cuts are right; good ones save time.
    """
    place = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(last) - 1)
    digits = "0123456789abcdef" if _HEX.match(last, place) else "0123456789"
    cuts: list[str] = []
    while place >= len(span.prefix) and last[place] in digits:
        cuts += [last[:place] + digit for digit in digits if digit > last[place]]
        place -= 1
    cuts = [cut for cut in cuts if span.end is None or cut < span.end]
    if not cuts and span.flat and span.end is None and span.prefix.endswith("/"):
        return [Span(span.prefix, False, last + "\0")]
    ends = [*cuts, span.end]
    return [Span(span.prefix, span.flat, start, end) for start, end in zip([last + "\0", *cuts], ends, strict=True)]


def check_order(page: Page, uri: str) -> None:
    """Raises OSError unless names come in their order, without which lists cannot be cut up."""
    if page.keys != sorted(page.keys) or page.folders != sorted(page.folders):
        raise OSError(f"{uri}: the store does not list names in their order, and some might be missed: make a manifest")


def _gcs_page(store: Any, bucket: str, span: Span, token: str | None) -> Page:
    found = store.call(
        "GET",
        "b/{}/o",
        bucket,
        prefix=span.prefix or None,
        delimiter=None if span.flat else "/",
        startOffset=span.start.rstrip("\0") or None,
        endOffset=span.end,
        pageToken=token,
        maxResults=ROWS,
        fields="items(name,size),prefixes,nextPageToken",
        json_out=True,
    )
    keys = [item["name"] for item in found.get("items", []) if not _is_placeholder(item["name"], int(item["size"]))]
    return Page(keys, found.get("prefixes", []), found.get("nextPageToken"))


def _s3_page(store: Any, bucket: str, span: Span, token: str | None) -> Page:
    asked = {"Bucket": bucket, "Prefix": span.prefix, "MaxKeys": ROWS}
    if not span.flat:
        asked["Delimiter"] = "/"
    if token is not None:
        asked["ContinuationToken"] = token
    elif span.start:
        asked["StartAfter"] = _ahead(span.start)
    found = store.call_s3("list_objects_v2", **asked)
    keys = [item["Key"] for item in found.get("Contents", []) if not _is_placeholder(item["Key"], int(item["Size"]))]
    folders = [item["Prefix"] for item in found.get("CommonPrefixes", [])]
    return Page(keys, folders, found.get("NextContinuationToken") if found.get("IsTruncated") else None)


def _ahead(start: str) -> str:
    """A name close ahead of the first that is wanted; S3 begins behind it."""
    return start[:-1] if start.endswith("\0") else start[:-1] + chr(ord(start[-1]) - 1) + _LAST


def _is_placeholder(key: str, size: int) -> bool:
    return key.endswith("/") and size == 0


_PAGES: dict[str, Callable[[Any, str, Span, str | None], Page]] = {
    "gs": _gcs_page,
    "gcs": _gcs_page,
    "s3": _s3_page,
    "s3a": _s3_page,
}
