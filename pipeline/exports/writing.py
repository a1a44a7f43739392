"""Large text files from parts that come one by one: what is not yet written waits on disk and not in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import storage


class Rows:
    """Rows of text that wait on disk for their place in a file."""

    def __init__(self, separator: str = ""):
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        self._separator = separator
        self._count = 0

    def __del__(self) -> None:
        self._file.close()  # also of an export that broke off

    def add(self, text: str) -> None:
        """Adds a row; the separator comes between two."""
        self._file.write((self._separator if self._count else "") + text)
        self._count += 1

    def add_json(self, value: Any) -> None:
        """Adds a row of JSON."""
        self.add(as_json(value))

    def close(self) -> None:
        """Gives back the disk's room."""
        self._file.close()

    def copy_to(self, file: Any) -> None:
        """Writes all rows so far."""
        self._file.flush()
        self._file.seek(0)
        shutil.copyfileobj(self._file, file, 1 << 20)


def as_json(value: Any) -> str:
    """JSON of one line: ASCII, so that no program's encoding changes it, and numbers that JSON has."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def write_parts(uri: str, parts: Iterable[str | Rows]) -> str:
    """Writes a file of any size from texts and rows, so that it appears whole or not at all; tells its digest."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "whole"
        with local.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for part in parts:
                if isinstance(part, Rows):
                    part.copy_to(file)
                    part.close()
                else:
                    file.write(part)
        storage.write_file(uri, str(local))
        return _digest_of(local)


def _digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
