"""The files of a folder or a pattern, one by one in the order of their uris; memory holds one folder, or some pages."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import storage, stores
from pipeline.paging import page_lister, walk_keys

Enter = Callable[[str], bool]
"""Whether to look into a folder, given by its uri without a slash at its end."""

_SIGN = re.compile(r"[*?[]")
_TOKEN = re.compile(r"\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_TRANSLATED = {"*": "[^/]*", "?": "[^/]"}


def walk_files(uri: str, enter: Enter | None = None) -> Iterator[str]:
    """The files below a folder, to any depth, in the order of the code points of their uris; none if it is not there.

    Local folders that are links are followed, each real folder once. Links that lead nowhere are files.

    Args:
        uri: the folder.
        enter: asked of every folder below it.

    Raises:
        OSError: a folder or a page of a listing cannot be read.
    """
    yield from _walk(_Everything(_as_folder(_spelled(uri)), enter))


def glob_files(pattern: str, enter: Enter | None = None) -> Iterator[str]:
    """The files that match a pattern, in the order of the code points of their uris.

    Args:
        pattern: `*`, `?` and `[...]` match within a name, `**` as a whole name matches any number of folders.
        enter: asked of every folder that matches a part of the pattern with such signs.

    Raises:
        OSError: a folder or a page of a listing cannot be read.
        ValueError: the pattern has `**` within a name, or signs in the name of a bucket.
    """
    yield from _walk(_Matching(_spelled(pattern), enter))


class _Everything:
    """All files below a folder."""

    def __init__(self, root: str, enter: Enter | None):
        self.root, self._enter = root, enter

    def takes(self, uri: str) -> bool:
        return uri.startswith(self.root)

    def enters(self, folder: str) -> bool:
        return self._enter is None or self._enter(folder[:-1])

    def holds_all(self, folder: str) -> bool:
        return folder.startswith(self.root)

    def within(self, folder: str) -> str:
        return folder


class _Matching:
    """What matches a pattern, which is a uri part by part: parts are what lies between slashes.

    Attributes:
        root: the folder that all matches lie in, by the parts ahead of the first with a sign.
    """

    def __init__(self, pattern: str, enter: Enter | None):
        self._parts, self._enter = pattern.split("/"), enter
        self._matches = [re.compile(rf"(?s:{_translated(part)})\Z").match for part in self._parts]
        # Parts from the first "**" on may match at any depth.
        self._fixed = self._parts.index("**") if "**" in self._parts else len(self._parts)
        self.root = self.within("/".join(self._parts[:1]) + "/")
        self.root = self.root[: self.root.rfind("/") + 1]

        self._whole = re.compile(rf"(?s:{_translated_all(self._parts)})\Z")

    def takes(self, uri: str) -> bool:
        return self._whole.match(uri) is not None

    def enters(self, folder: str) -> bool:
        depth = folder.count("/") - 1
        may_match = depth >= self._fixed or (
            depth < len(self._parts) - 1 and self._matches[depth](folder.rsplit("/", 2)[1])
        )
        return bool(may_match) and (self._enter is None or self._enter(folder[:-1]))

    def holds_all(self, folder: str) -> bool:
        return folder.count("/") >= self._fixed

    def within(self, folder: str) -> str:
        for part in self._parts[folder.count("/") : self._fixed]:
            sign = _SIGN.search(part)
            if sign:
                return folder + part[: sign.start()]
            folder += part + "/"
        return folder if self._fixed < len(self._parts) else folder[:-1]


def _translated_all(parts: list[str]) -> str:
    steps = [r"(?:.+/)?" if part == "**" else _translated(part) + "/" for part in parts[:-1]]
    return "".join([*steps, ".*" if parts[-1] == "**" else _translated(parts[-1])])


def _translated(part: str) -> str:
    """A part of a pattern as a regular expression that matches no slash."""
    if "**" in part and part != "**":
        raise ValueError(f"'**' must be a whole part between slashes, and the pattern has {part!r}")
    if part == "*":
        return "[^/]+"
    return "".join(_TRANSLATED.get(token) or _translated_token(token) for token in _TOKEN.findall(part))


def _translated_token(token: str) -> str:
    return "(?!/)" + fnmatch.translate(token)[len("(?s:") : -len(r")\Z")] if token[0] == "[" else re.escape(token)


def _walk(choice: _Everything | _Matching) -> Iterator[str]:
    if storage.is_local(choice.root):
        return _walk_folders(choice, _scan, _Once(choice.holds_all))
    listed = page_lister(choice.root)
    if listed is None:
        store, _ = storage.open_store(choice.root)
        store.invalidate_cache()
        return _walk_folders(choice, lambda folder: _list(store, folder))
    list_page, base = listed
    if not choice.root.startswith(base):
        raise ValueError(f"the bucket must be named in full, without signs of a pattern, not {choice.root!r}")
    return walk_keys(list_page, base, choice.within(choice.root)[len(base) :], choice)


def _walk_folders(
    choice: _Everything | _Matching, list_names: Callable[[str], list[str]], is_new: Callable[[str], bool] = bool
) -> Iterator[str]:
    # Names of folders end with a slash, which sorts them as the uris of their files are sorted.
    opened = [_open_folder(choice, list_names, choice.root)] if is_new(choice.root) else []
    while opened:
        folder, names = opened[-1]
        if not names:
            opened.pop()
            continue
        uri = folder + names.pop()
        if not uri.endswith("/"):
            if choice.takes(uri):
                yield uri
        elif choice.enters(uri) and is_new(uri):
            opened.append(_open_folder(choice, list_names, uri))


def _open_folder(
    choice: _Everything | _Matching, list_names: Callable[[str], list[str]], folder: str
) -> tuple[str, list[str]]:
    """The folder that may hold matches, and the names in it that may be some, the last one first."""
    within = choice.within(folder)
    folder, head = within[: within.rfind("/") + 1], within[within.rfind("/") + 1 :]
    return folder, sorted((name for name in list_names(folder) if name.startswith(head)), reverse=True)


def _scan(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):  # gone since its name was read
        return []
    except PermissionError:
        if folder.endswith("/lost+found/"):  # every file system of its own has one, which only root may read
            return []
        raise


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


class _Once:
    """Lets each real folder be looked into once where everything below one is, so that loops of links end."""

    def __init__(self, holds_all: Callable[[str], bool]):
        self._holds_all = holds_all
        self._tops: set[str] = (
            set()
        )  # real folders below which everything comes up: the first one, and what links lead to

    def __call__(self, folder: str) -> bool:
        if not self._holds_all(folder):
            return True
        real = os.path.realpath(folder)
        is_top = not self._tops or not self._holds_all(folder[: folder.rfind("/", 0, -1) + 1])
        if not is_top and not Path(folder).is_symlink():
            return real not in self._tops
        if self._comes_up(real):
            return False
        self._tops.add(real)
        return True

    def _comes_up(self, real: str) -> bool:
        while real not in self._tops and real != "/":
            real = real.rpartition("/")[0] or "/"
        return real in self._tops


def _list(store: Any, folder: str) -> list[str]:
    try:
        with stores.told(folder):
            infos = stores.call(store, "ls", store._strip_protocol(folder[:-1]), detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = ((store.unstrip_protocol(info["name"].rstrip("/")), info["type"] == "directory") for info in infos)
    return [name.removeprefix(folder) + "/" * is_folder for name, is_folder in named if name.startswith(folder)]


def _spelled(uri: str) -> str:
    store, path = storage.open_store(uri)
    return path if storage.is_local(uri) else store.unstrip_protocol(path.rstrip("/"))


def _as_folder(uri: str) -> str:
    return uri if uri.endswith("/") and uri.strip("/") == "" else f"{uri}/"
