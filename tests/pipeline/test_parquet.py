"""Records, failures and manifests survive their files exactly, and other engines read the same numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from pipeline import parquet, storage
from pipeline.codec import encode_map
from pipeline.geometry import Geometry, View, fit_view
from pipeline.records import Entry, Failure, MapRecord, Record, image_id

METADATA = {"schema_version": "1", "model": "grün.keras", "class_names": '["cat", "dog"]', "empty": ""}


def _f32(value: float) -> float:
    return float(np.float32(value))


def _map(geometry: Geometry, seed: int = 0, **changes: object) -> MapRecord:
    values = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    whole = MapRecord(
        method="gradcam",
        target=281,
        rank=0,
        score=_f32(12.345),
        probability=_f32(0.1),
        encoded=encode_map(values),
        box=(_f32(1.1), 2.0, 3.0, _f32(4.4)),
        peak_x=_f32(10.1),
        peak_y=20.5,
        total=_f32(1e-20),
        negative_share=0.25,
        overlay="overlays/ab/ab-gradcam-281.png",
        geometry=geometry,
        com_x=_f32(11.1),
        com_y=30.25,
        peak_cell=14,
        corner=3,
        components50=2,
        top2_cc=_f32(-0.1),
    )
    return dataclasses.replace(whole, **changes)


def _records() -> list[Record]:
    wide = Geometry(640, 320, fit_view("crop", (640, 320), (224, 224)))
    odd = Geometry(97, 61, fit_view("pad", (97, 61), (224, 160)))
    logits = np.array([-1.5, 3e38, 1e-40, 0.1], np.float32)
    return [
        Record(
            id=image_id("gs://b/ü 1.jpg"),
            uri="gs://b/ü 1.jpg",
            content_sha256="0" * 64,
            label="cat",
            geometry=wide,
            logits=logits,
            logit_classes=None,
            maps=(_map(wide), _map(wide, 1, method="cam", target=0, rank=-1, encoded=encode_map(np.eye(2), "uint8"))),
            confidence=_f32(0.9),
            runner_up=3,
            runner_up_confidence=_f32(0.05),
            entropy=_f32(0.3),
        ),
        Record(
            id=image_id("/x/2.jpg"),
            uri="/x/2.jpg",
            content_sha256="f" * 64,
            label=None,
            geometry=odd,
            logits=logits[:2],
            logit_classes=np.array([7, 3], np.int32),
            maps=(_map(odd, 2, box=None, overlay=None, encoded=encode_map(np.zeros((1, 1)))),),
        ),
        Record(image_id("/x/3"), "/x/3", "", "", odd, logits[:0], np.zeros(0, np.int32), ()),
    ]


def _assert_equal(found: Record, expected: Record) -> None:
    for field in dataclasses.fields(Record):
        there, given = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(given, np.ndarray):
            assert there.dtype == given.dtype
            np.testing.assert_array_equal(there, given)
        else:
            assert there == given
            assert type(there) is type(given)


@pytest.fixture
def written(tmp_path: Path) -> str:
    uri = str(tmp_path / "part-00000.parquet")
    storage.write_bytes(uri, parquet.encode_records(_records(), METADATA))
    return uri


# Records


def test_records_come_back_exactly_and_in_order(written: str) -> None:
    found = list(parquet.read_records(written))
    assert len(found) == 3
    for there, given in zip(found, _records(), strict=True):
        _assert_equal(there, given)


def test_the_maps_of_a_record_come_back_with_their_values_and_their_geometry(written: str) -> None:
    found, expected = (record.maps[0] for record in (next(parquet.read_records(written)), _records()[0]))
    np.testing.assert_array_equal(found.array(), expected.array())
    np.testing.assert_array_equal(found.resized(), expected.resized())
    assert found.resized().shape == (320, 640)
    assert np.abs(found.resized()[:, 160:480]).max() > 1
    assert (found.resized()[:, :160] == 0).all()


def test_the_predicted_class_is_known_from_all_logits_or_from_the_best(written: str) -> None:
    first, second, _ = parquet.read_records(written)
    assert (first.predicted, second.predicted) == (1, 3)


def test_a_shard_without_records_is_a_file_of_no_rows_with_the_same_columns(tmp_path: Path) -> None:
    uri = str(tmp_path / "empty.parquet")
    storage.write_bytes(uri, parquet.encode_records([], METADATA))
    assert list(parquet.read_records(uri)) == []
    assert parquet.read_table(uri).schema.names == parquet.RECORDS.names
    assert parquet.read_metadata(uri) == METADATA


def test_the_columns_are_those_of_the_contract(written: str) -> None:
    schema = parquet.read_table(written).schema
    types = {field.name: str(field.type) for field in schema if field.name not in ("maps", "view")}
    assert types == {
        "id": "string",
        "uri": "string",
        "content_sha256": "string",
        "label": "string",
        "width": "int32",
        "height": "int32",
        "logits": "list<element: float>",
        "logit_classes": "list<element: int32>",
        "predicted": "int32",
        "confidence": "float",
        "runner_up": "int32",
        "runner_up_confidence": "float",
        "entropy": "float",
    }
    maps = {field.name: str(field.type) for field in schema.field("maps").type.value_type}
    assert maps == {
        "method": "string",
        "target": "int32",
        "rank": "int16",
        "score": "float",
        "probability": "float",
        "height": "int16",
        "width": "int16",
        "dtype": "string",
        "scale": "float",
        "data": "binary",
        "box": "list<element: float>",
        "peak_x": "float",
        "peak_y": "float",
        "total": "float",
        "negative_share": "float",
        "overlay": "string",
        "metrics": "struct<deletion: float, insertion: float, drop: float, increase: float, pointing: float, "
        "energy: float>",
        "com_x": "float",
        "com_y": "float",
        "peak_cell": "int32",
        "spread": "float",
        "eff_area": "float",
        "gini": "float",
        "coverage50": "float",
        "border_energy": "float",
        "border_ratio": "float",
        "corner_energy": "float",
        "corner": "int8",
        "components50": "int16",
        "largest_share50": "float",
        "top2_cc": "float",
    }
    view = {field.name: str(field.type) for field in schema.field("view").type}
    assert view == {"mode": "string", "width": "int32", "height": "int32"} | dict.fromkeys(
        ("scale_x", "scale_y", "offset_x", "offset_y"), "double"
    )


def test_the_same_records_give_the_same_bytes() -> None:
    assert parquet.encode_records(_records(), METADATA) == parquet.encode_records(_records(), METADATA)


def test_pages_are_compressed_with_zstd_and_repeated_words_are_stored_once() -> None:
    geometry = Geometry(64, 64, fit_view("stretch", (64, 64), (64, 64)))
    record = _records()[0]
    many = [dataclasses.replace(record, uri=f"/x/{i}", geometry=geometry) for i in range(500)]
    file = pq.ParquetFile(io.BytesIO(parquet.encode_records(many, {})))
    columns = [file.metadata.row_group(0).column(i) for i in range(file.metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    with_words = {column.path_in_schema for column in columns if any("DICT" in name for name in column.encodings)}
    assert with_words == {"label", "view.mode", "maps.list.element.method", "maps.list.element.dtype"}


# What other engines read


def _expected_values() -> list[np.ndarray]:
    return [values.array() for record in _records() for values in record.maps]


def _values(dtype: str, height: int, width: int, scale: float, data: bytes) -> np.ndarray:
    """The contract, in NumPy alone: value = data * scale, in C order."""
    return (np.frombuffer(data, dtype).astype(np.float64) * scale).astype(np.float32).reshape(height, width)


def test_duckdb_reads_the_very_values_of_every_map(written: str) -> None:
    rows = duckdb.sql(
        f"select m.dtype, m.height, m.width, m.scale, m.data, m.method, m.box, m.overlay, uri "
        f"from (select uri, unnest(maps) as m from '{written}')"
    ).fetchall()
    found = [_values(*row[:5]) for row in rows]
    for there, given in zip(found, _expected_values(), strict=True):
        np.testing.assert_array_equal(there, given)
    assert [row[5] for row in rows] == ["gradcam", "cam", "gradcam"]
    assert [row[6] is None for row in rows] == [False, False, True]
    assert rows[2][7:] == (None, "/x/2.jpg")


def test_duckdb_answers_the_questions_of_the_documentation(written: str) -> None:
    answer = duckdb.sql(
        f"select label, count(*), max(len(maps)), max(view.offset_x) from '{written}' "
        "group by label order by label nulls last"
    ).fetchall()
    assert answer == [("", 1, 0, 0.0), ("cat", 1, 2, 160.0), (None, 1, 1, 0.0)]


def test_polars_reads_the_very_values_of_every_map(written: str) -> None:
    frame = pl.read_parquet(written)
    maps = frame.select("uri", "maps").explode("maps").filter(pl.col("maps").is_not_null()).unnest("maps")
    found = [_values(*row) for row in maps.select("dtype", "height", "width", "scale", "data").rows()]
    for there, given in zip(found, _expected_values(), strict=True):
        np.testing.assert_array_equal(there, given)
    assert frame["label"].to_list() == ["cat", None, ""]
    assert frame["logit_classes"].to_list() == [None, [7, 3], []]
    np.testing.assert_array_equal(np.array(frame["logits"].to_list()[0], np.float32), _records()[0].logits)


def test_pandas_reads_the_rows(written: str) -> None:
    import pandas as pd

    frame = pd.read_parquet(written)
    assert frame["width"].tolist() == [640, 97, 97]
    first = frame["maps"][0][1]
    np.testing.assert_array_equal(
        _values(*(first[name] for name in ("dtype", "height", "width", "scale", "data"))), np.eye(2, dtype=np.float32)
    )


# Failures


def test_failures_come_back_exactly_and_in_order(tmp_path: Path) -> None:
    failures = [
        Failure(image_id("a"), "a", "decode", "BrokenImage", 'OSError: "quoted", ünïcode\nsecond line'),
        Failure(image_id("b"), "gs://x/b c.jpg", "read", "FileNotFoundError", ""),
    ]
    uri = str(tmp_path / "failures.parquet")
    for given in (failures, []):
        storage.write_bytes(uri, parquet.encode_failures(given, METADATA))
        assert list(parquet.read_failures(uri)) == given
        assert parquet.read_table(uri).schema.names == ["id", "uri", "stage", "error_type", "message"]
        assert parquet.read_metadata(uri) == METADATA


# Manifests


def _entries(count: int) -> list[Entry]:
    boxes = [None, (), ((1.0, 2.0, 3.5, 4.0),), ((0.0, 0.0, 1.0, 1.0), (5.0, 6.0, 7.0, 8.0))]
    labels = [None, "cat", "", "7"]
    return [Entry(f"/data/{i} ü.jpg", labels[i % 4], boxes[i // 4 % 4]) for i in range(count)]


@pytest.fixture(params=["local", "memory"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = str(tmp_path) if request.param == "local" else f"memory:///{tmp_path.name}"
    return storage.join(folder, "manifest.parquet")


def _write_manifest(uri: str, entries: list[Entry], shard_size: int, metadata: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_manifest(buffer, iter(entries), shard_size, metadata)
    storage.write_bytes(uri, buffer.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("count", "shard_size"), [(1, 4), (4, 4), (5, 4), (19, 4), (3, 1), (3, 256), (9001, 100), (8192, 256), (8193, 5000)]
)
def test_a_manifest_comes_back_exactly_and_a_shard_is_its_slice(manifest: str, count: int, shard_size: int) -> None:
    entries = _entries(count)
    _write_manifest(manifest, entries, shard_size, METADATA)
    assert list(parquet.read_manifest(manifest)) == entries
    n_shards = math.ceil(count / shard_size)
    for shard in {0, 1, n_shards // 2, n_shards - 2, n_shards - 1} & set(range(n_shards)):
        expected = entries[shard * shard_size : (shard + 1) * shard_size]
        assert parquet.read_manifest_shard(manifest, shard) == expected
    assert parquet.read_metadata(manifest) == METADATA


@pytest.mark.parametrize(
    ("shard_size", "groups"), [(256, [4096, 4096, 809]), (1000, [4000, 4000, 1001]), (5000, [5000, 4001])]
)
def test_a_row_group_of_a_manifest_holds_whole_shards(manifest: str, shard_size: int, groups: list[int]) -> None:
    file = pq.ParquetFile(io.BytesIO(_write_manifest(manifest, _entries(9001), shard_size, {})))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    shards = [set(file.read_row_group(i)["shard"].to_pylist()) for i in range(file.num_row_groups)]
    assert set.union(*shards) == set(range(math.ceil(9001 / shard_size)))
    assert sum(map(len, shards)) == len(set.union(*shards))
    assert file.read()["id"].to_pylist() == [image_id(entry.uri) for entry in _entries(9001)]


def test_a_manifest_with_a_row_group_a_shard_is_read_too(manifest: str) -> None:
    """As runs have them that were begun by an earlier program."""
    entries = _entries(19)
    table = pq.read_table(io.BytesIO(_write_manifest(manifest, entries, 4, {})))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=4)
    storage.write_bytes(manifest, buffer.getvalue())
    assert [parquet.read_manifest_shard(manifest, shard) for shard in range(5)] == [
        entries[i : i + 4] for i in range(0, 19, 4)
    ]


def test_a_copy_of_a_manifest_has_the_same_rows_and_its_own_metadata(tmp_path: Path) -> None:
    first, second = str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")
    parquet.write_manifest(first, _entries(9001), 256, {})
    parquet.copy_manifest(first, second, METADATA)
    assert list(parquet.read_manifest(second)) == _entries(9001)
    assert (parquet.read_metadata(first), parquet.read_metadata(second)) == ({}, METADATA)
    assert pq.ParquetFile(second).num_row_groups == pq.ParquetFile(first).num_row_groups == 3
    whole = str(tmp_path / "3.parquet")
    parquet.write_manifest(whole, _entries(9001), 256, METADATA)
    assert Path(second).read_bytes() == Path(whole).read_bytes()


@pytest.mark.parametrize(("most", "groups"), [(3, [4096, 4096, 809]), (2, [8192, 809]), (1, [9001])])
def test_a_long_manifest_is_copied_with_larger_row_groups(tmp_path: Path, monkeypatch, most: int, groups) -> None:
    monkeypatch.setattr(parquet, "MANIFEST_GROUPS", most)
    first, second = str(tmp_path / "1.parquet"), str(tmp_path / "2.parquet")
    parquet.write_manifest(first, _entries(9001), 256, {})
    parquet.copy_manifest(first, second, METADATA, lambda entries: list(range(len(entries))))
    file = pq.ParquetFile(second)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == groups
    earlier = [place for rows in groups for place in range(rows)]
    pairs = zip(_entries(9001), earlier, strict=True)
    entries = [dataclasses.replace(entry, earlier_shard=place) for entry, place in pairs]
    assert list(parquet.read_manifest(second)) == entries
    for shard in (0, 15, 16, 31, 32, 35):
        assert parquet.read_manifest_shard(second, shard) == entries[256 * shard : 256 * (shard + 1)]


def test_boxes_come_back_within_the_precision_of_float32(manifest: str) -> None:
    _write_manifest(manifest, [Entry("a", None, ((0.1, 1 / 3, 1234.56, 7.0),))], 1, {})
    (entry,) = parquet.read_manifest(manifest)
    np.testing.assert_allclose(entry.boxes, [(0.1, 1 / 3, 1234.56, 7.0)], rtol=1e-7)


# The rest


def test_metadata_of_others_is_not_ours(tmp_path: Path) -> None:
    import pyarrow as pa

    uri = str(tmp_path / "other.parquet")
    pq.write_table(pa.table({"uri": ["a"]}).replace_schema_metadata({"pandas": "{}", "beamcam.model": "m"}), uri)
    assert parquet.read_metadata(uri) == {"model": "m"}
    pq.write_table(pa.table({"uri": ["a"]}), uri)
    assert parquet.read_metadata(uri) == {}


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    for read in (parquet.read_table, parquet.read_metadata):
        with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
            read(str(tmp_path / "none.parquet"))


def test_a_truncated_file_is_a_value_error(written: str) -> None:
    data = storage.read_bytes(written)
    storage.write_bytes(written, data[: len(data) // 2])
    with pytest.raises(ValueError, match="Parquet"):
        parquet.read_table(written)


def test_tables_are_joined_and_none_gives_no_records(written: str) -> None:
    table = parquet.read_table(written)
    assert parquet.concat_tables([table, table])["uri"].to_pylist() == table["uri"].to_pylist() * 2
    empty = parquet.concat_tables([])
    assert empty.num_rows == 0
    assert empty.schema.names == parquet.RECORDS.names


def test_rows_of_any_file_of_a_user_are_read() -> None:
    import pandas as pd

    buffer = io.BytesIO()
    frame = pd.DataFrame({"uri": ["a", "b"], "label": ["cat", None], "boxes": [[[1.0, 2.0, 3.0, 4.0]], None]})
    frame.assign(more=[1, 2]).to_parquet(buffer)
    assert list(parquet.read_rows(buffer, ("uri", "breed", "boxes", "label"))) == [
        {"uri": "a", "label": "cat", "boxes": [[1.0, 2.0, 3.0, 4.0]]},
        {"uri": "b", "label": None, "boxes": None},
    ]
    assert next(parquet.read_rows(buffer, ("url", "label"))).keys() == {"uri", "label", "boxes", "more"}


def test_an_id_is_the_start_of_the_hash_of_the_uri() -> None:
    assert image_id("gs://bucket/a.jpg") == hashlib.sha256(b"gs://bucket/a.jpg").hexdigest()[:32]
    assert image_id("ü") == hashlib.sha256(b"\xc3\xbc").hexdigest()[:32]
    assert Entry("ü").id == image_id("ü")


def test_a_view_survives_with_all_its_digits(tmp_path: Path) -> None:
    view = View("pad", 224, 224, 1 / 3, 2 / 7, -1e-9, -123456.789012345)
    record = dataclasses.replace(_records()[2], geometry=Geometry(1, 2, view))
    uri = str(tmp_path / "view.parquet")
    storage.write_bytes(uri, parquet.encode_records([record], {}))
    assert next(parquet.read_records(uri)).geometry.view == view
