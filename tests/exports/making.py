"""Runs for the exporters: photographs with a marker in a known place, and maps that look at it, in every geometry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import parquet, storage
from pipeline.codec import encode_map
from pipeline.geometry import Geometry, cell_center, fit_view
from pipeline.layout import RunLayout
from pipeline.reading import Run, open_run
from pipeline.records import Entry, MapRecord, Record

METHOD = "gradcam"

# Two of one name, as ImageNet's cranes; and what XML, YAML, CSV and commas do not like.
NAMES = ["crane", 'a "b" & <c>', "naïve, 日本 🐎", "crane", "=SUM(A1)", "with space"]

INPUT = (32, 32)


@dataclass(frozen=True)
class Picture:
    """One image of a run; the marker is white, the rest dark."""

    name: str
    size: tuple[int, int]  # upright
    marker: tuple[int, int, int, int]  # left, top, right, bottom in upright pixels
    mode: str = "stretch"
    label: str | None = "crane"
    target: int = 0
    probability: float = 0.9
    orientation: int | None = None  # of EXIF
    values: np.ndarray | None = None  # the map; None for one that looks at the marker

    @property
    def geometry(self) -> Geometry:
        """As the pipeline has it."""
        return Geometry(*self.size, fit_view(self.mode, self.size, INPUT))


TWO = np.array([[9.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 8]])

PICTURES = [
    Picture("plain.png", (64, 48), (8, 12, 24, 24)),
    Picture("sub folder/tall, 1.png", (37, 91), (20, 60, 37, 91), label=NAMES[1], target=1),
    Picture("sub/日本.v2.png", (120, 40), (62, 10, 78, 30), "crop", NAMES[2], 2),
    Picture("sub/turned.jpg", (50, 80), (0, 0, 15, 20), "pad", "3", 3, orientation=6),
    Picture("wide.png", (150, 50), (5, 15, 45, 45), "pad", None, 4),
    Picture("full.png", (31, 17), (0, 0, 31, 17), values=np.ones((4, 4))),
    Picture("two.png", (80, 60), (0, 0, 20, 15), values=TWO, target=5),
    Picture(
        "hole.png", (70, 70), (0, 0, 70, 70),
        values=np.pad(np.full((3, 3), -9.0), 1, constant_values=9),
    ),
    Picture("empty.png", (30, 30), (0, 0, 5, 5), values=np.full((3, 3), -1.0)),
    Picture("unsure.png", (30, 30), (0, 0, 10, 10), probability=0.3),
]  # fmt: skip


def make_run(folder: Path, pictures: Sequence[Picture] = PICTURES, names: list[str] | None = NAMES) -> Run:
    """Writes photographs, and a run of two shards over them."""
    photos, layout = folder / "photos", RunLayout(str(folder / "run"))
    entries = [Entry(str(photos / one.name), one.label, (_box(one.marker),)) for one in pictures]
    for one in pictures:
        _draw(one, photos / one.name)
    half = -(-len(pictures) // 2)
    parquet.write_manifest(str(folder / "manifest"), entries, half, {})
    storage.write_file(layout.uri(layout.MANIFEST), str(folder / "manifest"))
    for shard in range(2):
        some = [make_record(one, entry) for one, entry in zip(pictures, entries, strict=True)]
        some = some[shard * half : (shard + 1) * half]
        storage.write_bytes(layout.uri(layout.records(shard)), parquet.encode_records(some, {}))
        storage.write_bytes(layout.uri(layout.failures(shard)), parquet.encode_failures([], {}))
    summary = {
        "schema_version": 1, "config": {}, "config_digest": "", "model": "/models/horses.keras",
        "model_digest": 64 * "d", "records": len(pictures), "inputs": len(pictures), "failures": 0,
        "failures_by_type": {}, "overlays": 0,
        "shards": 2, "class_names": names, "seconds": 1.0,
    }  # fmt: skip
    storage.write_bytes(layout.uri(layout.SUMMARY), json.dumps(summary).encode())
    return open_run(layout.output)


def make_record(one: Picture, entry: Entry) -> Record:
    """The record of an image, with one map."""
    values = (_look_at(one) if one.values is None else one.values).astype(np.float32)
    geometry = one.geometry
    logits = np.zeros(len(NAMES), np.float32)
    logits[one.target] = 3
    x, y = cell_center(*np.unravel_index(np.argmax(values), values.shape), values.shape, geometry.view)
    shown = MapRecord(METHOD, one.target, 0, 3.0, one.probability, encode_map(values), None, x, y,
                      float(np.maximum(values, 0).sum()), 0.0, None, geometry)  # fmt: skip
    return Record(entry.id, entry.uri, "ab" * 32, entry.label, geometry, logits, None, (shown,))


def with_names(pictures: Sequence[Picture], names: Sequence[str]) -> list[Picture]:
    """The same pictures under other names."""
    return [replace(one, name=name) for one, name in zip(pictures, names, strict=False)]


def _look_at(one: Picture, side: int = 16) -> np.ndarray:
    """The share of each cell that the marker covers: (side, side) float64."""
    view = one.geometry.view
    left, top = (np.array(one.marker[:2]) - (view.offset_x, view.offset_y)) / (view.scale_x, view.scale_y)
    right, bottom = (np.array(one.marker[2:]) - (view.offset_x, view.offset_y)) / (view.scale_x, view.scale_y)
    columns = np.clip(np.minimum(np.arange(1, side + 1), right * side / INPUT[0])
                      - np.maximum(np.arange(side), left * side / INPUT[0]), 0, None)  # fmt: skip
    rows = np.clip(np.minimum(np.arange(1, side + 1), bottom * side / INPUT[1])
                   - np.maximum(np.arange(side), top * side / INPUT[1]), 0, None)  # fmt: skip
    return rows[:, None] * columns


def _draw(one: Picture, path: Path) -> None:
    """Writes the photograph; a turned one as a camera does, with the turn in its EXIF."""
    width, height = one.size
    pixels = np.full((height, width, 3), 40, np.uint8)
    left, top, right, bottom = one.marker
    pixels[top:bottom, left:right] = 255
    picture, exif = Image.fromarray(pixels), Image.Exif()
    if one.orientation == 6:  # to be shown turned by 90 degrees clockwise
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif, quality=95)


def _box(marker: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    left, top, right, bottom = marker
    return float(left), float(top), float(right - left), float(bottom - top)
