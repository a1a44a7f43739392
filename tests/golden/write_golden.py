"""Writes the golden run of the present schema version. Run it once when the schema version rises, and never otherwise.

python -m tests.golden.write_golden
"""

import dataclasses
import io
from pathlib import Path

import numpy as np

from pipeline import parquet
from pipeline.codec import encode_map
from pipeline.geometry import Geometry, View
from pipeline.records import SCHEMA_VERSION, Entry, Failure, MapRecord, Record, image_id

FOLDER = Path(__file__).parent / f"schema-{SCHEMA_VERSION}"

WITH_ATTENTION = FOLDER.with_name(f"{FOLDER.name}-attention")
"""Records with the columns that an audit needs, which came to be within schema version 1."""

METADATA = {"schema_version": str(SCHEMA_VERSION), "model_digest": "0123abcd", "class_names": '["disc", "ring"]'}


def golden_records() -> list[Record]:
    """Two records that use every column, with values that can be told apart."""
    geometry = Geometry(500, 375, View("crop", 224, 224, 1.674107142857143, 1.674107142857143, 62.0, 0.0))
    ramp = (np.arange(12, dtype=np.float32).reshape(3, 4) - 5) / 4
    maps = (
        MapRecord("gradcam", 1, 0, 3.5, 0.75, encode_map(ramp), (1.5, 2.0, 30.0, 40.25), 10.5, 20.5, 5.25, 0.4,
                  "overlays/ab/ab-gradcam-1.png", geometry),
        MapRecord("cam", 0, -1, -3.5, 0.25, encode_map(np.zeros((2, 2), np.float32), "uint8"), None, 0.0, 0.0, 0.0, 0.0,
                  None, geometry),
    )  # fmt: skip
    logits = np.array([-3.5, 3.5], np.float32)
    first = Record(image_id("gs://a/ü 1.jpg"), "gs://a/ü 1.jpg", "ff" * 32, "disc", geometry, logits, None, maps)
    pad = Geometry(20, 10, View("pad", 8, 8, 2.5, 2.5, 0.0, -5.0))
    second = Record(image_id("/b.png"), "/b.png", "00" * 32, None, pad, logits[1:], np.array([1], np.int32), ())
    return [first, second]


def golden_records_with_attention() -> list[Record]:
    """The same with every column that was added since, and values that can be told apart."""
    first, second = golden_records()
    strong, empty = first.maps
    strong = dataclasses.replace(
        strong, metrics={"drop": 0.5}, com_x=100.5, com_y=200.25, peak_cell=11, spread=0.125, eff_area=0.375,
        gini=0.0625, coverage50=0.1875, border_energy=0.875, border_ratio=2.75, corner_energy=0.25, corner=3,
        components50=2, largest_share50=0.75, top2_cc=-0.5,
    )  # fmt: skip
    first = dataclasses.replace(
        first, maps=(strong, empty), confidence=0.75, runner_up=0, runner_up_confidence=0.25, entropy=0.5625
    )
    return [first, second]


def golden_failures() -> list[Failure]:
    """One failure."""
    return [Failure(image_id("/c.jpg"), "/c.jpg", "decode", "NotAnImage", "not an image: it is a PDF")]


def golden_entries() -> list[Entry]:
    """Three entries, in two shards of two."""
    return [Entry("gs://a/ü 1.jpg", "disc", ((1.0, 2.0, 3.0, 4.0),)), Entry("/b.png"), Entry("/c.jpg", "7", ())]


def encode_manifest() -> bytes:
    """The file of these entries."""
    buffer = io.BytesIO()
    parquet.write_manifest(buffer, golden_entries(), 2, METADATA)
    return buffer.getvalue()


if __name__ == "__main__":
    FOLDER.mkdir()
    WITH_ATTENTION.mkdir()
    with_attention = parquet.encode_records(golden_records_with_attention(), METADATA)
    (WITH_ATTENTION / "records.parquet").write_bytes(with_attention)
    (FOLDER / "records.parquet").write_bytes(parquet.encode_records(golden_records(), METADATA))
    (FOLDER / "failures.parquet").write_bytes(parquet.encode_failures(golden_failures(), METADATA))
    (FOLDER / "manifest.parquet").write_bytes(encode_manifest())
