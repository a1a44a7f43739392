"""Manifests by anybody: what each row means, and memory that does not grow with what is wrong in them."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import parquet
from pipeline.errors import ConfigError
from pipeline.manifests import MAX_LINE, MAX_NUMBER, MAX_URI, read_manifest
from pipeline.records import Entry


def _read(path: Path, content: bytes | str, column: str = "label") -> list[Entry]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_manifest(str(path), column))


def _error(path: Path, content: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        _read(path, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _line(uri: str, **more: object) -> str:
    return json.dumps({"uri": uri, **more}) + "\n"


@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl"])
def test_a_line_without_an_end_is_not_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="line 1 is longer than 1048576 characters: write a line for each image"):
            list(read_manifest(str(path), "label"))
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


def test_the_longest_line_is_read_and_one_letter_more_is_not(tmp_path: Path) -> None:
    padding = MAX_LINE - len(_line("a.png", more=""))
    assert len(_read(tmp_path / "m.jsonl", _line("a.png", more="x" * padding))) == 1
    message = _error(tmp_path / "m.jsonl", _line("b.png") + _line("a.png", more="x" * (padding + 1)))
    assert "line 2 is longer than" in message


def test_the_longest_uri_is_read_and_one_letter_more_is_not(tmp_path: Path) -> None:
    longest = "gs://" + "x" * (MAX_URI - 5)
    assert _read(tmp_path / "m.txt", longest)[0].uri == longest
    message = _error(tmp_path / "m.txt", "a.png\n" + longest + "x")
    assert "the uri in row 2 of the manifest" in message
    assert len(message) < 600


def test_lists_in_lists_without_end_are_told_by_their_row(tmp_path: Path) -> None:
    deep = '{"uri": "a", "x": ' + "[" * 200_000
    assert "row 2: lists are nested too deeply" in _error(tmp_path / "m.jsonl", _line("a") + deep)
    assert "row 1 of the manifest" in _error(tmp_path / "m.jsonl", _line("a", boxes="[" * 200_000))


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400, "NaN", "-Infinity", str(2 * MAX_NUMBER)])
def test_a_box_of_a_number_that_is_no_place_is_told(tmp_path: Path, number: str) -> None:
    content = '{"uri": "a.png", "boxes": [[0, ' + number + ", 1, 1]]}"
    assert "row 1 of the manifest" in _error(tmp_path / "m.jsonl", content)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("NaN", None),
        ("null", None),
        ('""', None),
        ("0", "0"),
        ("3.0", "3"),
        ("0.5", "0.5"),
        ("true", "True"),
        ('"ü"', "ü"),
    ],
)
def test_a_label_is_text_or_a_number(tmp_path: Path, value: str, label: str | None) -> None:
    assert _read(tmp_path / "m.jsonl", '{"uri": "a", "label": ' + value + "}")[0].label == label


@pytest.mark.parametrize("value", ['["cat"]', '{"name": "cat"}'])
def test_a_label_that_is_neither_is_told(tmp_path: Path, value: str) -> None:
    message = _error(tmp_path / "m.jsonl", _line("a") + '{"uri": "b", "label": ' + value + "}")
    assert "row 2 of the manifest" in message
    assert "neither text nor a number" in message


def test_half_a_letter_in_a_label_is_told_by_its_row(tmp_path: Path) -> None:
    assert "row 1 of the manifest" in _error(tmp_path / "m.jsonl", '{"uri": "a", "label": "\\udc80"}')


def test_a_table_that_breaks_is_told_by_its_line(tmp_path: Path) -> None:
    assert "line 3: " in _error(tmp_path / "m.csv", 'uri\na\n"b"c\n')
    assert "line 4: field larger than field limit" in _error(tmp_path / "m.csv", "uri\na\nb\n" + "c" * 140_000)


def test_a_column_uri_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert "2 columns 'uri': keep one" in _error(tmp_path / "m.csv", "uri,label,uri\na,b,c\n")


def test_other_encodings_are_told_with_the_way_out(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "utf-32"):
        assert "save it as UTF-8" in _error(tmp_path / "m.txt", "grün.png\n".encode(encoding))


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.csv"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    with pytest.raises(ConfigError, match="cannot be read: it is a folder, a pipe or a device, and no file"):
        list(read_manifest(str(path), "label"))


# Parquet


def _table(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_of_every_kind_is_text(tmp_path: Path, kind: pa.DataType) -> None:
    uris, labels = pa.array(["/b.png", "/ä.png", "/b2.png"]), pa.array(["dog", None, "ü"])
    data = _table(label=labels.cast(kind), more=[1, 2, 3], uri=uris.cast(kind))
    assert _read(tmp_path / "m.parquet", data) == [Entry("/b.png", "dog"), Entry("/ä.png", None), Entry("/b2.png", "ü")]


def test_numbers_are_labels_and_lists_are_boxes(tmp_path: Path) -> None:
    data = _table(uri=["/a", "/b"], label=[3.0, None], boxes=[[[1.0, 2.0, 3.0, 4.0]], None])
    assert _read(tmp_path / "m.parquet", data) == [Entry("/a", "3", ((1.0, 2.0, 3.0, 4.0),)), Entry("/b", None, None)]


def test_more_rows_than_a_batch_come_in_their_order(tmp_path: Path) -> None:
    count = 2 * parquet.GROUP_ROWS + 5
    data = _table(uri=[f"/{i // 3}" for i in range(count)], label=[str(i) for i in range(count)])
    assert [(e.uri, e.label) for e in _read(tmp_path / "m.parquet", data)] == [
        (f"/{i // 3}", str(i)) for i in range(count)
    ]


@pytest.mark.parametrize("column", ["uri", "label", "boxes"])
def test_a_long_text_is_not_unpacked_for_each_row_that_repeats_it(tmp_path: Path, column: str) -> None:
    count = parquet.GROUP_ROWS
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["x" * (1 << 20)]))
    sink = io.BytesIO()  # without Arrow's own schema, which would tell that it is a dictionary
    pq.write_table(pa.table({"uri": [str(i) for i in range(count)], column: texts}), sink, store_schema=False)
    data = sink.getvalue()
    assert len(data) < 1_000_000
    before = pa.default_memory_pool().bytes_allocated()
    assert "far too large: the longest text has 1048576 bytes" in _error(tmp_path / "m.parquet", data)
    assert pa.default_memory_pool().max_memory() - before < 1 << 30


def test_a_row_group_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _table(uri=[str(i) for i in range(1000)])
    monkeypatch.setattr(parquet, "MAX_GROUP", 100)
    assert "row group 0 unpacks to" in _error(tmp_path / "m.parquet", data)


def test_a_table_without_the_column_uri_tells_which_it_has_and_is_not_read(tmp_path: Path) -> None:
    data = _table(path=["/a", "/b"], pixels=[b"x" * 1000] * 2)
    broken = data[:4] + bytes(len(data) // 4) + data[4 + len(data) // 4 :]
    assert "needs a column 'uri', and row 1 has: path, pixels" in _error(tmp_path / "m.parquet", broken)
    assert _read(tmp_path / "m.parquet", _table(path=pa.array([], pa.string()))) == []


NEGATIVE_ROWS = base64.b85decode(
    "s6kRO6$BX^H2@d}b7N>_ZDADv02Tll92pE202crM|Nj6085|f4K~hprS2}ZJXk~3-7)&oOFE1~8K|w)5K~X_LK|w)5K}$hFcR@mD"
    "K}JDAXF)?}K|w)5K|(@7K}|tHK|w=7K}kVDK|w-6K}kVDK|w-6K|w)5K|w)5K|KH%AaG%Fadl;MEn{$SEn#wUZ+9SeWpZ<AZ*Cwm"
    "H7+nNF&PX1qyPW_P(e~L"
)


def test_a_row_group_of_fewer_than_no_rows_is_refused(tmp_path: Path) -> None:
    """Found by the fuzzer: pyarrow ended the process."""
    message = _error(tmp_path / "m.parquet", NEGATIVE_ROWS)
    assert "row group 0 has -134217728 of 0 rows: the file is damaged" in message


def test_a_damaged_footer_does_not_end_the_process(tmp_path: Path) -> None:
    """Where pyarrow is asked for a group's column, it aborts on statistics that contradict each other."""
    data = _table(uri=["/a", "/b"], label=["x", "y"])
    for place in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data)):
        changed = data[:place] + bytes((data[place] ^ 0x15,)) + data[place + 1 :]
        with contextlib.suppress(ConfigError):
            _read(tmp_path / "m.parquet", changed)
