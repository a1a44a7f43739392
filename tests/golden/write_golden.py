"""Writes the golden run of the present schema version. Run it once when the schema version rises, and never otherwise.

python -m tests.golden.write_golden
"""

import io
from pathlib import Path

import numpy as np

from pipeline import parquet
from pipeline.codec import encode_map
from pipeline.geometry import Geometry, View
from pipeline.records import SCHEMA_VERSION, Entry, Failure, MapRecord, Record, image_id

FOLDER = Path(__file__).parent / f"schema-{SCHEMA_VERSION}"

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
    (FOLDER / "records.parquet").write_bytes(parquet.encode_records(golden_records(), METADATA))
    (FOLDER / "failures.parquet").write_bytes(parquet.encode_failures(golden_failures(), METADATA))
    (FOLDER / "manifest.parquet").write_bytes(encode_manifest())
