"""Every byte in and out: the one user of fsspec. Local paths, gs://, s3:// and whatever else fsspec knows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

# gcsfs asks for a bucket's storage layout over gRPC before each first access, which takes a minute and more where that
# port is closed. Set the variable to "true" yourself to use hierarchical namespaces.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec

TEMPORARY = ".tmp-"  # the prefix of files that are being written; then who writes: machine, process, a number

_HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())
_TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + r"(?P<host>[A-Za-z0-9.]*)-(?P<process>\d+)-[0-9a-f]{32}")


def configure(options: Sequence[str], timeout: float = 300.0) -> None:  # H-storage: to be made real
    """Stand-in."""


def create_file(uri: str, source: str) -> bool:  # H-storage: to be made real
    """Stand-in: writes a file unless it is there."""
    if exists(uri):
        return False
    write_file(uri, source)
    return True


def open_store(uri: str) -> tuple[Any, str]:
    """The file system of a uri, and the path inside it."""
    store = _file_system(_scheme(uri) or "file")
    path = store._strip_protocol(uri)
    return store, os.path.abspath(path) if is_local(uri) else path  # noqa: PTH100 - one spelling of a/../b and ./b


def is_local(uri: str) -> bool:
    """Whether a uri is a path of this machine."""
    return _scheme(uri) in ("", "file", "local")


def absolute(uri: str) -> str:
    """A uri that means the same from any working directory; local ones become plain absolute paths."""
    return open_store(uri)[1] if is_local(uri) else uri


def join(base: str, *parts: str) -> str:
    """A path below `base`."""
    return "/".join([base.rstrip("/"), *parts])


def is_absolute(uri: str) -> bool:
    """Whether a uri stands on its own, and not below some folder."""
    return bool(_scheme(uri)) or os.path.isabs(uri)  # noqa: PTH117 - asked of each line of a manifest, and five times as fast


def read_bytes(uri: str, limit: int | None = None) -> bytes:  # H-storage: limit is to be made real
    """The whole content of a file or object.

    Raises:
        OSError: it is missing, a folder or a pipe, or cannot be read.
    """
    store, path = open_store(uri)
    if is_local(uri) and Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise OSError("neither a file nor a folder, but a pipe or a device, which would never end")
    return store.cat_file(path)


def open_file(uri: str) -> Any:
    """A file or object opened for reading its bytes bit by bit; close it.

    Raises:
        OSError: it is missing, a folder, or cannot be opened.
    """
    store, path = open_store(uri)
    return store.open(path, "rb")


def read_many(uris: Sequence[str], threads: int = 16) -> list[bytes]:
    """The contents of many small files, read at the same time."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(read_bytes, uris))


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all: one PUT, or a temporary name and a rename."""
    store, path = open_store(uri)
    if not is_local(uri):
        store.pipe_file(path, data)
        return
    with _appearing(Path(path)) as temporary:
        temporary.write_bytes(data)


def write_file(uri: str, source: str) -> None:
    """Copies a local file, of any size, so that it appears whole or not at all."""
    store, path = open_store(uri)
    if is_local(uri):
        with _appearing(Path(path)) as temporary:
            shutil.copyfile(source, temporary)
    else:
        store.put_file(source, path)


def exists(uri: str) -> bool:
    """Whether there is a file or folder."""
    store, path = open_store(uri)
    return bool(store.exists(path))


def is_folder(uri: str) -> bool:
    """Whether a uri is a folder (a prefix, on an object store)."""
    store, path = open_store(uri)
    return bool(store.isdir(path))


def list_files(uri: str, recursive: bool = False) -> list[str]:
    """The files of a folder, sorted, as uris; empty if there is no such folder."""
    store, path = open_store(uri)
    store.invalidate_cache()
    if is_local(uri) and recursive:
        return sorted(_walk(path))
    try:
        found = store.find(path, maxdepth=None if recursive else 1)
    except FileNotFoundError:
        return []
    return sorted(_as_uri(uri, store, name) for name in found)


def glob(pattern: str) -> list[str]:
    """The files that match a pattern, sorted, as uris."""
    store, path = open_store(pattern)
    return sorted(
        _as_uri(pattern, store, name)
        for name, info in store.glob(path, detail=True).items()
        if info["type"] == "file" or (info.get("islink") and store.isfile(name))
    )


def remove_file(uri: str) -> None:
    """Removes a file; it is no error if it is not there."""
    store, path = open_store(uri)
    with contextlib.suppress(FileNotFoundError):
        store.rm_file(path)


def remove_folder(uri: str) -> None:
    """Removes a folder with all that it holds; it is no error if it is not there."""
    store, path = open_store(uri)
    with contextlib.suppress(FileNotFoundError):
        store.rm(path, recursive=True)


def download(uri: str, folder: str) -> str:
    """A local path with the content of `uri`: itself if it is local, else a copy in `folder`."""
    store, path = open_store(uri)
    if is_local(uri):
        return path
    target = str(Path(folder) / Path(path).name)
    store.get(path, target, recursive=bool(store.isdir(path)))
    return target


def remove_temporaries(uri: str) -> None:
    """Removes what killed writers of this machine left in a folder; only local stores have temporary files."""
    if not is_local(uri):
        return
    for path in Path(open_store(uri)[1]).rglob(f"{TEMPORARY}*"):
        named = _TEMPORARY_NAME.fullmatch(path.name)
        if named and named["host"] == _HOST and not _is_running(int(named["process"])):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A temporary name to write to; the file gets its own name when the block ends well."""
    temporary = target.with_name(f"{TEMPORARY}{_HOST}-{os.getpid()}-{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _walk(top: str) -> Iterator[str]:
    """All files below a local folder, folders that are links included, which fsspec passes by; each folder once."""
    seen = set()
    for folder, subfolders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        yield from (f"{folder.rstrip('/')}/{name}" for name in names)


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0] if "://" in uri else ""


@lru_cache(maxsize=16)
def _file_system(scheme: str) -> Any:
    try:
        return fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise OSError(f"there is no store for {scheme}:// here: {error}") from error


def _as_uri(like: str, store: Any, path: str) -> str:
    return path if is_local(like) else store.unstrip_protocol(path)
