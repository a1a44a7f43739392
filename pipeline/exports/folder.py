"""The folder of an export: what was written into it is listed, so that nobody's own files are ever replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.exports.writing import Rows, as_json, write_parts

MARK = "beamcam-export.json"
"""The file that tells a folder of an export from others, and lists each file that the export wrote, with a digest."""

_LARGEST_MARK = 1 << 30  # bytes: a list of some five million files

_AT_ONCE = 16  # files of an earlier export that are read, or removed, at the same time


class Folder:
    """A folder under way. Files that an earlier export has not made, or that were changed since, stay as they are."""

    def __init__(self, uri: str, described: dict[str, Any], earlier: Sequence[str] = (), own: Iterable[str] = ()):
        self._uri, self._described = uri, described
        self._earlier, self._own = earlier, frozenset(own)
        self._listed = Rows(",\n")
        self.kept: list[str] = []
        """Paths that would have been written, but where a file of the user's own lies."""

    def clear(self) -> None:
        """Removes what the earlier export wrote, and marks the folder; to be called before anything is written.

        Raises:
            OSError: something cannot be removed or written.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda path: storage.remove_file(storage.join(self._uri, path)), self._earlier))
        storage.write_bytes(storage.join(self._uri, MARK), json.dumps(self._described, indent=1).encode())

    def write(self, path: str, data: bytes) -> None:
        """Writes a file, unless one of the user's own lies there."""
        uri = storage.join(self._uri, path)
        if self._is_own(uri, path):
            return
        storage.write_bytes(uri, data)
        self._list(path, _digest(data))

    def write_parts(self, path: str, parts: Iterable[str | Rows]) -> None:
        """Likewise, a file of any size from texts and rows."""
        uri = storage.join(self._uri, path)
        if not self._is_own(uri, path):
            self._list(path, write_parts(uri, parts))

    def close(self) -> None:
        """Lists what was written, also of an export that broke off."""
        described = json.dumps(self._described, indent=1).removesuffix("\n}")
        parts: list[str | Rows] = [described, ',\n "files": {\n', self._listed, "\n }\n}\n"]
        write_parts(storage.join(self._uri, MARK), parts)

    def _list(self, path: str, digest: str) -> None:
        self._listed.add(f"  {as_json(path)}: {as_json(digest)}")

    def _is_own(self, uri: str, path: str) -> bool:
        own = bool(self._own) and storage.canonical(uri) in self._own
        if own:
            self.kept.append(path)
        return own


def open_folder(uri: str, described: dict[str, Any], common: Sequence[str], overwrite: bool) -> Folder:
    """A folder to write an export to; nothing is changed yet.

    Args:
        uri: where it is, or will be.
        described: what the mark says of the export.
        common: paths of the files that hold for all images, which cannot be left as they are.
        overwrite: whether an earlier export there is to be replaced.

    Raises:
        ConfigError: there is something that is no export, or an export that is not to be replaced, or cannot be
            replaced without losing what the user has written.
    """
    there = storage.list_files(uri, recursive=True)
    if not there:
        return Folder(uri, described)
    mark = storage.join(uri, MARK)
    if not storage.exists(mark):
        raise ConfigError(f"{uri!r} is there already and no export: name another --output")
    if not overwrite:
        raise ConfigError(f"{uri!r} is there already: --overwrite replaces it")
    earlier = _unchanged(uri, _read_list(uri))
    ours = {storage.canonical(storage.join(uri, path)) for path in (*earlier, MARK)}
    own = {storage.canonical(one) for one in there} - ours
    for path in common:
        if storage.canonical(storage.join(uri, path)) in own:
            raise ConfigError(
                f"{storage.join(uri, path)!r} was changed or made by somebody since the export, and would be replaced: "
                "move it away, or name another --output"
            )
    return Folder(uri, described, earlier, own)


def _read_list(uri: str) -> dict[str, str]:
    """The files that the export in a folder wrote, with their digests."""
    content = json.loads(storage.read_bytes(storage.join(uri, MARK), limit=_LARGEST_MARK))
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise ConfigError(
            f"{uri!r} holds an export that broke off before it could list its files, so that yours cannot be told "
            "from them: name another --output, or remove that folder"
        )
    for path in files:
        # The list may come from anybody, and must not name files elsewhere.
        if {"", ".", ".."} & set(path.split("/")) or "\\" in path:
            raise ConfigError(
                f"{storage.join(uri, MARK)!r} lists {path!r}, which lies elsewhere: name another --output"
            )
    return files


def _unchanged(uri: str, files: dict[str, str]) -> list[str]:
    """Those files that are still what the export wrote."""

    def is_unchanged(path: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return _digest(storage.read_bytes(storage.join(uri, path))) == files[path]
        return False

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [path for path, same in zip(files, pool.map(is_unchanged, files), strict=True) if same]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
