"""Files that an earlier program wrote are read by today's, value for value; a missing file is a failure."""

import dataclasses

import numpy as np
import pytest

from pipeline import parquet
from tests.golden.write_golden import (
    FOLDER,
    METADATA,
    encode_manifest,
    golden_entries,
    golden_failures,
    golden_records,
)

# What the bytes of the first map must mean, whatever the program: (arange(12) - 5) / 4, stored against its maximum 1.5.
RAMP = [-1.25, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]


def test_records_of_schema_1_are_read_as_they_were_written() -> None:
    found = list(parquet.read_records(str(FOLDER / "records.parquet")))
    for record, expected in zip(found, golden_records(), strict=True):
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
    assert parquet.read_metadata(str(FOLDER / "records.parquet")) == METADATA


def test_maps_of_schema_1_keep_their_values() -> None:
    first = next(parquet.read_records(str(FOLDER / "records.parquet"))).maps[0]
    assert (first.encoded.dtype, first.encoded.scale) == ("<f2", 1.5)
    np.testing.assert_allclose(first.array().ravel(), RAMP, atol=2.5e-4 * 1.5)


def test_columns_of_schema_1_are_those_of_the_contract() -> None:
    table = parquet.read_table(str(FOLDER / "records.parquet"))
    for field in table.schema:
        if field.name != "maps":
            assert field.equals(parquet.RECORDS.field(field.name))
    # Columns may be added within a version, as `metrics` was; none may change or go.
    maps, today = (schema.field("maps").type.value_type for schema in (table.schema, parquet.RECORDS))
    assert [field.name for field in today if field.name not in {old.name for old in maps}] == ["metrics"]
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
        ("records", lambda: parquet.encode_records(golden_records(), METADATA)),
        ("failures", lambda: parquet.encode_failures(golden_failures(), METADATA)),
        ("manifest", encode_manifest),
    ],
)
def test_the_same_values_give_the_same_bytes_twice(name, encode) -> None:
    assert encode() == encode()
    assert len(encode()) == pytest.approx((FOLDER / f"{name}.parquet").stat().st_size, rel=0.5)
