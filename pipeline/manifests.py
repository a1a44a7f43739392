"""Users' own manifests: CSV, TSV, JSON lines, text and Parquet, read row by row, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline import parquet, storage
from pipeline.errors import ConfigError, as_config_errors
from pipeline.records import Entry

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".parquet")

MAX_LINE = 1 << 20
"""Characters of a line: ten thousand boxes fit."""

MAX_URI = 1 << 16
"""Characters; signed addresses have some thousand, paths and names of objects no more than that."""

MAX_NUMBER = 1e9
"""Of a box's, in pixels; float32 holds no more than that to some pixels."""

Boxes = tuple[tuple[float, float, float, float], ...]


def read_manifest(uri: str, label_column: str) -> Iterator[Entry]:
    """The images of a manifest, in its order.

    Args:
        uri: of the manifest; its suffix, one of `MANIFEST_SUFFIXES`, tells how it is read.
        label_column: the name of the column with labels.

    Raises:
        ConfigError: it is missing or cannot be read, or a row of it is none; the message names the row.
    """
    with as_config_errors(f"the manifest {uri!r} cannot be read"):
        if not storage.exists(uri):
            raise ConfigError(f"the manifest {uri!r} is not there")
        if storage.is_local(uri) and not Path(storage.absolute(uri)).is_file():
            raise ConfigError(f"the manifest {uri!r} cannot be read: it is a folder, a pipe or a device, and no file")
        file = storage.open_file(uri)
    folder = storage.absolute(uri).rsplit("/", 1)[0]
    with file, as_config_errors(f"the manifest {uri!r} cannot be read"):
        try:
            for number, row in enumerate(_rows(uri.lower(), file, label_column), 1):
                yield _entry(row, number, uri, folder, label_column)
        except UnicodeError as error:
            raise ConfigError(f"the manifest {uri!r} cannot be parsed: {error}; save it as UTF-8") from error
        except (ValueError, csv.Error) as error:  # Arrow's errors are ValueErrors
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the manifest {uri!r} cannot be parsed: {_first_line(error)}") from error


def _rows(name: str, file: IO[bytes], label_column: str) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".parquet"):
        yield from parquet.read_rows(file, ("uri", label_column, "boxes"))
        return
    # Spreadsheets put a byte order mark in front. Lines end at \n alone: other ends may stand inside a JSON string.
    is_table = name.endswith((".csv", ".tsv"))
    with io.TextIOWrapper(file, "utf-8-sig", newline="" if is_table else "\n") as text:
        lines = _lines(text)
        if is_table:
            yield from _table_rows(lines, "\t" if name.endswith(".tsv") else ",")
        elif name.endswith(".txt"):
            yield from ({"uri": line.strip()} for line in lines if line.strip() and not line.startswith("#"))
        else:
            rows = (line for line in lines if line.strip())
            yield from (_parse_line(row, number) for number, row in enumerate(rows, 1))


def _lines(text: IO[str]) -> Iterator[str]:
    """Lines with their ends; one without an end would be as long as the file."""
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} is longer than {MAX_LINE} characters: write a line for each image")
        yield line


def _table_rows(lines: Iterator[str], delimiter: str) -> Iterator[Mapping[str, Any]]:
    rows = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    names = list(rows.fieldnames or ())
    if names.count("uri") > 1:
        raise ValueError(f"it has {names.count('uri')} columns 'uri': keep one")
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"line {rows.reader.line_num}: {error}") from error


def _parse_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"row {number}: lists are nested too deeply") from error


def _entry(row: Any, number: int, manifest: str, folder: str, label_column: str) -> Entry:
    if not isinstance(row, Mapping) or "uri" not in row:
        columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)
        raise ConfigError(f"the manifest {manifest!r} needs a column 'uri', and row {number} has: {_short(columns)}")
    uri = _text(row["uri"])
    if not isinstance(uri, str) or not uri.strip():
        raise ConfigError(f"row {number} of the manifest {manifest!r} has no uri: {_short(repr(uri))}")
    if len(uri) > MAX_URI:
        raise ConfigError(
            f"the uri in row {number} of the manifest {manifest!r} is longer than {MAX_URI}: {_short(uri)}"
        )
    resolved = storage.absolute(uri if storage.is_absolute(uri) else storage.join(folder, uri))
    label = _label(row.get(label_column), number, manifest)
    return Entry(resolved, label, _boxes(row.get("boxes"), number, manifest))


def _label(value: Any, number: int, manifest: str) -> str | None:
    if value is None or value == "":
        return None
    value = _text(value)
    if value == "" or (isinstance(value, float) and math.isnan(value)):  # pandas' missing value
        return None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of a column of integers with a gap
        value = int(value)
    if not isinstance(value, str | int | float):
        raise ConfigError(
            f"row {number} of the manifest {manifest!r} has a label that is neither text nor a number: "
            f"{_short(repr(value))}"
        )
    label = value if isinstance(value, str) else str(value)
    if not label.isascii() and label.encode(errors="replace").decode() != label:
        raise ConfigError(f"row {number} of the manifest {manifest!r} has a label that is no Unicode: {label!r}")
    return label


def _boxes(value: Any, number: int, manifest: str) -> Boxes | None:
    if value in (None, "", b""):
        return None
    try:
        value = _text(value)
        rows = json.loads(value) if isinstance(value, str) else value
        boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in rows)
    except (TypeError, ValueError, OverflowError, RecursionError):
        boxes = None
    if boxes is None or not all(_is_box(box) for box in boxes):
        raise ConfigError(
            f"row {number} of the manifest {manifest!r} has boxes that are no list of [x, y, width, height]: "
            f"{_short(repr(value))}"
        )
    return boxes


def _is_box(box: tuple[float, float, float, float]) -> bool:
    return all(math.isfinite(number) and abs(number) <= MAX_NUMBER for number in box) and min(box[2:]) >= 0


def _text(value: Any) -> Any:
    """Text that a Parquet writer did not mark as such, as text."""
    return value.decode() if isinstance(value, bytes) else value


def _short(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def _first_line(error: Exception) -> str:
    return _short((str(error).splitlines() or [type(error).__name__])[0])
