"""One job at a time on a run: a job locks the manifest while it works, and the system unlocks it when a job dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.layout import RunLayout

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def hold_run(layout: RunLayout) -> Iterator[None]:
    """Keeps other jobs off a run while the block runs.

    Object stores know no locks: there, jobs of the same configuration, model and input write the same files, and any
    other is refused, or stops at its next commit.

    Raises:
        ConfigError: another job works on the run.
    """
    uri = layout.uri(layout.MANIFEST)
    if fcntl is None or not storage.is_local(uri):
        yield
        return
    with _locked(storage.open_store(uri)[1], layout):
        yield


@contextlib.contextmanager
def _locked(path: str, layout: RunLayout) -> Iterator[None]:
    while True:
        with _opened(path, layout) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another job is at work on the run in {layout.output!r}: wait until it has ended, or choose "
                    "another folder"
                ) from error
            except OSError:  # a file system without locks, or NFS, which has them for writers: as on an object store
                yield
                return
            # Between the opening and the locking the file may have been replaced.
            if _is_still(path, file):
                yield
                return


def _opened(path: str, layout: RunLayout) -> IO[bytes]:
    try:
        # For reading alone: a file that is open for writing would keep its disk from being made read-only.
        return open(path, "rb")  # noqa: PTH123
    except FileNotFoundError as error:
        raise ConfigError(
            f"another job has removed the run in {layout.output!r} at this very moment: try again"
        ) from error


def _is_still(path: str, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # noqa: PTH116
    except FileNotFoundError:
        return False
