"""Files that an earlier program wrote are read by today's, value for value; a missing file is a failure."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline import parquet
from pipeline.attention import NOTHING
from pipeline.records import Record
from tests.golden.write_golden import (
    FOLDER,
    METADATA,
    WITH_ATTENTION,
    encode_manifest,
    golden_entries,
    golden_failures,
    golden_records,
    golden_records_with_attention,
)

# What the bytes of the first map must mean, whatever the program: (arange(12) - 5) / 4, stored against its maximum 1.5.
RAMP = [-1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


@pytest.mark.parametrize(
    ("folder", "written"), [(FOLDER, golden_records), (WITH_ATTENTION, golden_records_with_attention)]
)
def test_records_of_schema_1_are_read_as_they_were_written(folder: Path, written: Callable[[], list[Record]]) -> None:
    found = list(parquet.read_records(str(folder / "records.parquet")))
    for record, expected in zip(found, written(), strict=True):
        for field in dataclasses.fields(record):
            value, wanted = getattr(record, field.name), getattr(expected, field.name)
            if isinstance(wanted, np.ndarray):
                assert value.dtype == wanted.dtype
                np.testing.assert_array_equal(value, wanted)
            elif field.name == "maps":
                assert [dataclasses.replace(m, negative_share=0.0) for m in value] == [
                    dataclasses.replace(m, negative_share=0.0) for m in wanted
                ]
                assert [m.negative_share for m in value] == [np.float32(m.negative_share) for m in wanted]
            else:
                assert value == wanted
    assert parquet.read_metadata(str(folder / "records.parquet")) == METADATA


def test_what_records_did_not_have_at_first_is_none_in_older_files() -> None:
    first, _ = parquet.read_records(str(FOLDER / "records.parquet"))
    assert (first.predicted, first.confidence, first.runner_up, first.entropy) == (1, None, None, None)
    assert all(getattr(first.maps[0], name) is None for name in (*vars(NOTHING), "top2_cc"))


@pytest.mark.parametrize("order", [1, -1])
def test_older_and_newer_files_are_one_table(order: int) -> None:
    tables = [parquet.read_table(str(folder / "records.parquet")) for folder in (FOLDER, WITH_ATTENTION)][::order]
    rows = parquet.concat_tables(tables).to_pylist()
    older, newer = (rows[:2], rows[2:])[::order]
    assert newer == tables[::order][1].to_pylist()
    for row, written in zip(older, tables[::order][0].to_pylist(), strict=True):
        assert {name: row[name] for name in written if name != "maps"} == {
            name: value for name, value in written.items() if name != "maps"
        }
        assert {row[name] for name in row if name not in written} == {None}
        for values, expected in zip(row["maps"], written["maps"], strict=True):
            assert {name: values[name] for name in expected} == expected
            assert {values[name] for name in values if name not in expected} == {None}


def test_older_records_are_completed_wherever_a_table_was_cut() -> None:
    older, newer = (parquet.read_table(str(folder / "records.parquet")) for folder in (FOLDER, WITH_ATTENTION))
    rows = older.to_pylist()
    rows[1]["maps"] = [rows[0]["maps"].pop()]
    cut = parquet.complete_records(pa.Table.from_pylist(rows, schema=older.schema).slice(1))
    assert cut.schema.equals(parquet.RECORDS)
    (found,) = cut.to_pylist()
    assert [found["uri"], *((values["method"], values["gini"]) for values in found["maps"])] == [
        "/b.png",
        ("cam", None),
    ]
    assert cut.schema.metadata == older.schema.metadata
    assert parquet.complete_records(older.slice(0, 0)).to_pylist() == []
    assert parquet.complete_records(newer) is newer


def test_columns_of_a_later_program_are_kept() -> None:
    table = parquet.read_table(str(WITH_ATTENTION / "records.parquet"))
    later = parquet.complete_records(table.append_column("mood", [["good", "bad"]]).drop_columns(["entropy"]))
    assert later.schema.names == [*parquet.RECORDS.names, "mood"]
    assert later["mood"].to_pylist() == ["good", "bad"]
    assert later["maps"].to_pylist() == table["maps"].to_pylist()


def test_what_was_added_is_stored_under_its_own_name() -> None:
    first, second = parquet.read_table(str(WITH_ATTENTION / "records.parquet")).to_pylist()
    names = ("predicted", "confidence", "runner_up", "runner_up_confidence", "entropy")
    assert [first[name] for name in names] == [1, 0.75, 0, 0.25, 0.5625]
    assert [second[name] for name in names] == [1, None, None, None, None]
    strong, empty = first["maps"]
    added = (*vars(NOTHING), "top2_cc")
    assert [strong[name] for name in added] == [
        100.5, 200.25, 11, 0.125, 0.375, 0.0625, 0.1875, 0.875, 2.75, 0.25, 3, 2, 0.75, -0.5
    ]  # fmt: skip
    assert [empty[name] for name in added] == [None] * len(added)


def test_maps_of_schema_1_keep_their_values() -> None:
    first = next(parquet.read_records(str(FOLDER / "records.parquet"))).maps[0]
    assert (first.encoded.dtype, first.encoded.scale) == ("<f2", 1.5)
    np.testing.assert_allclose(first.array().ravel(), RAMP, atol=2.5e-4 * 1.5)


def test_columns_of_schema_1_are_those_of_the_contract() -> None:
    table = parquet.read_table(str(FOLDER / "records.parquet"))
    for field in table.schema:
        if field.name != "maps":
            assert field.equals(parquet.RECORDS.field(field.name))
    # Columns may be added within a version, as `metrics` was, and then what an audit needs; none may change or go.
    maps, today = (schema.field("maps").type.value_type for schema in (table.schema, parquet.RECORDS))
    added = [field.name for field in today if field.name not in {old.name for old in maps}]
    assert added == ["metrics", *vars(NOTHING), "top2_cc"]
    assert all(field.equals(today.field(field.name)) for field in maps)
    assert table.schema.names == [
        "id", "uri", "content_sha256", "label", "width", "height", "logits", "logit_classes", "maps", "view"
    ]  # fmt: skip


def test_failures_and_manifest_of_schema_1_are_read_as_they_were_written() -> None:
    assert list(parquet.read_failures(str(FOLDER / "failures.parquet"))) == golden_failures()
    assert list(parquet.read_manifest(str(FOLDER / "manifest.parquet"))) == golden_entries()
    assert parquet.read_manifest_shard(str(FOLDER / "manifest.parquet"), 1) == golden_entries()[2:]


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        (WITH_ATTENTION / "records", lambda: parquet.encode_records(golden_records_with_attention(), METADATA)),
        (FOLDER / "failures", lambda: parquet.encode_failures(golden_failures(), METADATA)),
        (FOLDER / "manifest", encode_manifest),
    ],
)
def test_the_same_values_give_the_same_bytes_twice(name, encode) -> None:
    assert encode() == encode()
    assert len(encode()) == pytest.approx(name.with_suffix(".parquet").stat().st_size, rel=0.5)
