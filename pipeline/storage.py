"""Every byte in and out: local paths, gs://, s3:// and whatever else fsspec knows.

What a store will not do is an OSError that names the uri; what it cannot do for the moment is tried until a deadline.
"""

from __future__ import annotations

import contextlib
import errno
import io
import mimetypes
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline import patience, stores
from pipeline.patience import UnavailableError
from pipeline.stores import holds_secret, is_local, open_store, parse_options

__all__ = [
    "TEMPORARY",
    "UnavailableError",
    "absolute",
    "canonical",
    "configure",
    "create_bytes",
    "create_file",
    "download",
    "exists",
    "holds_secret",
    "is_absolute",
    "is_folder",
    "is_local",
    "join",
    "list_files",
    "open_file",
    "open_store",
    "parse_options",
    "read_bytes",
    "read_many",
    "remove_file",
    "remove_folder",
    "remove_temporaries",
    "write_bytes",
    "write_file",
]

TEMPORARY = ".tmp-"  # the prefix of files that are being written; then who writes: machine, process, a number

_HOST = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())
_TEMPORARY_NAME = re.compile(re.escape(TEMPORARY) + r"(?P<host>[A-Za-z0-9.]*)-(?P<process>\d+)-[0-9a-f]{32}")
_LOCAL_DEADLINE = 10.0  # seconds for which a drive that falters is tried
_PART = 8_000_000  # bytes of a large object that one request asks for
_AT_ONCE = 16  # requests under way, which mostly wait

T = TypeVar("T")


def configure(options: Sequence[str], timeout: float = 300.0) -> None:
    """Sets, for this process, how stores are spoken to.

    Args:
        options: "SCHEME.NAME=VALUE" each, for fsspec's file system of that scheme: "gs.requester_pays=PROJECT".
        timeout: seconds that all attempts at one request may take together.

    Raises:
        ValueError: an option has another form, or gives a secret.
    """
    stores.configure(options)
    patience.configure(timeout)


def absolute(uri: str) -> str:
    """A uri that means the same from any working directory; local ones become plain absolute paths."""
    return open_store(uri)[1] if is_local(uri) else uri


def join(base: str, *parts: str) -> str:
    """A path below `base`."""
    return "/".join([base.rstrip("/"), *parts])


def is_absolute(uri: str) -> bool:
    """Whether a uri stands on its own, and not below some folder."""
    return bool(stores.scheme_of(uri)) or os.path.isabs(uri)  # noqa: PTH117 - pathlib takes five times as long


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole content of a file or object.

    Args:
        uri: which one.
        limit: the most bytes that it may have; None for any number.

    Raises:
        OSError: it is missing, a folder or a pipe, larger than the limit (`errno.EFBIG`), or cannot be read.
    """
    if is_local(uri):
        data = _locally(lambda: _read_local(open_store(uri)[1], limit))
    else:
        with stores.told(uri):
            data = _read_object(uri, limit)
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", uri)
    return data


def open_file(uri: str) -> Any:
    """A file or object opened for reading its bytes bit by bit; close it.

    Raises:
        OSError: it is missing, a folder, or cannot be opened.
    """
    if is_local(uri):
        return _locally(lambda: Path(open_store(uri)[1]).open("rb"))
    return io.BufferedReader(_ObjectFile(uri), 1 << 20)


def read_many(uris: Sequence[str], threads: int = _AT_ONCE) -> list[bytes | None]:
    """The contents of many small files, read at the same time; None of those that are not there."""
    return list(_at_once(_read_if_there, uris, threads))


def _read_if_there(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except FileNotFoundError:
        return None


def write_bytes(uri: str, data: bytes) -> None:
    """Writes a file so that it appears whole or not at all: one PUT, or a temporary name and a rename."""
    if is_local(uri):
        _locally(lambda: _write_local(uri, lambda temporary: temporary.write_bytes(data)))
    else:
        with stores.told(uri):
            _ask(uri, "pipe_file", data, **_content_type(uri))


def write_file(uri: str, source: str) -> None:
    """Copies a local file, of any size, so that it appears whole or not at all."""
    if is_local(uri):
        _locally(lambda: _write_local(uri, lambda temporary: shutil.copyfile(source, temporary)))
    else:
        with stores.told(uri):
            store, path = open_store(uri)
            stores.call(store, "put_file", source, path)


def create_bytes(uri: str, data: bytes) -> bool:
    """Writes a file unless there is one: of several that do so at once, one succeeds.

    Returns:
        Whether this call made it.

    Raises:
        OSError: it cannot be written.
    """
    if is_local(uri):
        return _locally(lambda: _create_local(uri, lambda temporary: temporary.write_bytes(data)))
    store, path = open_store(uri)
    with stores.told(uri):
        return stores.create(store, "pipe_file", path, data, is_ours=lambda: read_bytes(uri) == data)


def create_file(uri: str, source: str) -> bool:
    """Copies a local file to where there must be none yet: of several that do so at once, one succeeds.

    Returns:
        Whether this call made it.

    Raises:
        OSError: it cannot be written.
    """
    if is_local(uri):
        return _locally(lambda: _create_local(uri, lambda temporary: shutil.copyfile(source, temporary)))
    store, path = open_store(uri)
    with stores.told(uri):
        return stores.create(store, "put_file", source, path, is_ours=lambda: _is_same(source, uri))


def exists(uri: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        OSError: the store does not tell.
    """
    return _kind(uri) is not None


def is_folder(uri: str) -> bool:
    """Whether a uri is a folder (a prefix, on an object store).

    Raises:
        OSError: the store does not tell.
    """
    return _kind(uri) == "directory"


def list_files(uri: str, recursive: bool = False) -> list[str]:
    """The files of a folder, sorted, as uris; empty if there is no such folder."""
    store, path = open_store(uri)
    if is_local(uri):
        return sorted(_walk(path)) if recursive else _locally(lambda: _list_local(path))
    with stores.told(uri):
        store.invalidate_cache()
        try:
            found = _ask(uri, "find", detail=True) if recursive else _by_name(_ask(uri, "ls", detail=True))
        except FileNotFoundError:
            return []
    inside = path.rstrip("/") + "/"
    names = (name for name, info in found.items() if info["type"] != "directory" and not name.endswith("/"))
    return sorted(store.unstrip_protocol(name) for name in names if name.lstrip("/").startswith(inside.lstrip("/")))


def list_folders(uri: str) -> list[str]:
    """The folders right below a folder, sorted, as uris; empty if there is no such folder."""
    store, path = open_store(uri)
    if is_local(uri):
        return _locally(lambda: _list_local(path, folders=True))
    with stores.told(uri):
        store.invalidate_cache()
        try:
            found = _by_name(_ask(uri, "ls", detail=True))
        except FileNotFoundError:
            return []
    own = path.strip("/")
    names = (name.rstrip("/") for name, info in found.items() if info["type"] == "directory")
    return sorted(store.unstrip_protocol(name) for name in names if name.strip("/").startswith(f"{own}/"))


def remove_file(uri: str) -> None:
    """Removes a file; it is no error if it is not there."""
    with contextlib.suppress(FileNotFoundError):
        if is_local(uri):
            _locally(lambda: Path(open_store(uri)[1]).unlink())
        else:
            with stores.told(uri):
                _ask(uri, "rm_file")


def remove_folder(uri: str) -> None:
    """Removes a folder with all that it holds; it is no error if it is not there."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(open_store(uri)[1])
        return
    # One by one: fsspec's own way takes brackets and stars in names for patterns.
    for _ in _at_once(remove_file, list_files(uri, recursive=True)):
        pass


def download(uri: str, folder: str) -> str:
    """A local path with the content of `uri`: itself if it is local, else a copy in `folder`."""
    path = open_store(uri)[1]
    if is_local(uri):
        return path
    target = Path(folder) / Path(path).name
    if not is_folder(uri):
        _copy_object(uri, target)
        return str(target)
    base = uri.rstrip("/") + "/"
    copies = {name: target / canonical(name).removeprefix(canonical(base)) for name in list_files(uri, recursive=True)}
    for name, copy in copies.items():
        if ".." in copy.parts:
            raise OSError(f"{name}: a name with '..' is not copied, since it could lie outside {str(target)!r}")
    for _ in _at_once(lambda name: _copy_object(name, copies[name]), list(copies)):
        pass
    return str(target)


def remove_temporaries(uri: str) -> None:
    """Removes what killed writers of this machine left in a folder; only local stores have temporary files."""
    if not is_local(uri):
        return
    for path in Path(open_store(uri)[1]).rglob(f"{TEMPORARY}*"):
        named = _TEMPORARY_NAME.fullmatch(path.name)
        if named and named["host"] == _HOST and not _is_running(int(named["process"])):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _appearing(target: Path, appear: Callable[[Path, Path], Any] = os.replace) -> Iterator[Path]:
    """A temporary name to write to; the file gets its own name when the block ends well."""
    temporary = target.with_name(f"{TEMPORARY}{_HOST}-{os.getpid()}-{uuid.uuid4().hex}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        appear(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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


def _list_local(path: str, folders: bool = False) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(f"{path.rstrip('/')}/{entry.name}" for entry in entries if entry.is_dir() == folders)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _locally(call: Callable[[], T]) -> T:
    """Tries again what a network drive would not do for the moment."""
    try:
        return call()
    except OSError as error:
        if not patience.is_transient_locally(error):
            raise
    return patience.patiently(call, patience.is_transient_locally, deadline=_LOCAL_DEADLINE)


def _read_local(path: str, limit: int | None) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("neither a file nor a folder, but a pipe or a device, which would never end")
        if limit is not None and status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", path)
        if limit is None:
            return file.read()
        # Python asks for as much memory as it is told to read, and a limit may be a gigabyte.
        data = file.read(min(limit, status.st_size) + 1)
        return data if len(data) <= status.st_size else data + file.read(limit + 1 - len(data))  # it grows


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would be waited for


def _write_local(uri: str, write: Callable[[Path], Any]) -> None:
    with _appearing(Path(open_store(uri)[1])) as temporary:
        write(temporary)


def _create_local(uri: str, write: Callable[[Path], Any]) -> bool:
    target = Path(open_store(uri)[1])
    if os.path.lexists(target):
        return False
    try:
        with _appearing(target, os.link) as temporary:
            write(temporary)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_without_links(target, write)
    return True


_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


def _create_without_links(target: Path, write: Callable[[Path], Any]) -> bool:
    """Claims the name, empty, and then writes; for file systems where a file has but one name."""
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        with _appearing(target) as temporary:
            write(temporary)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return True


def _ask(uri: str, verb: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of a uri's file system with the path inside it."""
    store, path = open_store(uri)
    return stores.call(store, verb, path, *args, **kwargs)


def _content_type(uri: str) -> dict[str, str]:
    """How the store is told what a file is, so that browsers show its pictures."""
    kind = mimetypes.guess_type(uri)[0] or "application/octet-stream"
    name = {"gs": "content_type", "gcs": "content_type", "s3": "ContentType", "s3a": "ContentType"}.get(
        stores.scheme_of(uri)
    )
    return {} if name is None else {name: kind}


def _kind(uri: str) -> str | None:
    """What there is: "file", "directory", or None for nothing."""
    if is_local(uri):
        path = open_store(uri)[1]
        return "directory" if os.path.isdir(path) else "file" if os.path.exists(path) else None  # noqa: PTH110, PTH112
    try:
        with stores.told(uri):
            return _ask(uri, "info")["type"]
    except FileNotFoundError:
        return None


def _by_name(infos: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {info["name"]: info for info in infos}


def canonical(uri: str) -> str:
    """One spelling of each object's uri, as listings tell it: gs:// for gcs://."""
    store, path = open_store(uri)
    return store.unstrip_protocol(path) + "/" * (uri.endswith("/") and not path.endswith("/"))


def _copy_object(uri: str, target: Path) -> None:
    """Copies an object to a local file, part by part, so that any size can be tried again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_file(uri) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _PART)


def _is_same(source: str, uri: str) -> bool:
    """Whether an object has the content of a local file."""
    with open_file(uri) as there, Path(source).open("rb") as ours:
        while True:
            part = ours.read(_PART)
            if there.read(_PART) != part:
                return False
            if not part:
                return True


def _at_once(function: Callable[[str], T], uris: Sequence[str], threads: int = _AT_ONCE) -> Iterator[T]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(function, uris)


def _read_object(uri: str, limit: int | None) -> bytes:
    if limit is None:
        return _unless_empty(lambda: _ask(uri, "cat_file"))
    return _unless_empty(lambda: _ask(uri, "cat_file", start=0, end=limit + 1))


def _unless_empty(read: Callable[[], bytes]) -> bytes:
    """What is read; stores refuse any range of an object that has no bytes."""
    try:
        return read()
    except Exception as error:
        if patience.http_status(error) != 416:
            raise
        return b""


class _ObjectFile(io.RawIOBase):
    """An object as a file to read from, each part by a request of its own."""

    def __init__(self, uri: str):
        super().__init__()
        with stores.told(uri):
            info = _ask(uri, "info")
            if info["type"] == "directory":
                raise IsADirectoryError(errno.EISDIR, "a folder, and not a file", uri)
        self._uri, self._size, self._place = uri, int(info["size"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = self._read(min(len(buffer), _PART))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._read(_PART), b""))

    def _read(self, count: int) -> bytes:
        end = min(self._size, self._place + count)
        if end <= self._place:
            return b""
        with stores.told(self._uri):
            data = _ask(self._uri, "cat_file", start=self._place, end=end)
        if len(data) != end - self._place:
            raise OSError(
                f"{self._uri}: {len(data)} bytes came of {end - self._place} at {self._place}: it has changed"
            )
        self._place = end
        return data
