"""Plain grey pictures of maps in original pixels, and a table of them, for whatever reads PNG and CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.exports.folder import Folder
from pipeline.exports.items import ExportFacts, Item, file_name
from pipeline.exports.writing import Rows
from pipeline.geometry import project_map

_COLUMNS = ("uri", "map", "label", "class", "score", "peak_x", "peak_y", "left", "top", "width", "height", "maximum")


class HeatmapsExporter:
    """Writes `maps/NAME.png`, 8-bit grey with 255 for the map's maximum, and `index.csv` with the strongest region."""

    def __init__(self, facts: ExportFacts, folder: Folder):
        self._facts, self._folder = facts, folder
        self._rows = Rows()
        self._rows.add(_line(_COLUMNS))

    def add(self, item: Item) -> None:
        """Writes a map, and the image if asked."""
        name = file_name(item)
        shown = np.maximum(project_map(item.shown.array(), item.record.geometry), 0)
        peak = float(shown.max())
        self._folder.write(f"maps/{name}.png", grey_png(shown / peak))
        if item.content is not None:
            self._folder.write(f"images/{name}", item.content)
        strongest = item.regions[0]
        box = (strongest.left, strongest.top, strongest.width, strongest.height)
        self._rows.add(
            _line((item.record.uri, f"maps/{name}.png", item.record.label or "", item.label, f"{item.score:.6g}",
                   *(f"{place:.2f}" for place in item.peak), *box, f"{peak:.6g}"))
        )  # fmt: skip

    def finish(self) -> None:
        """Writes the table."""
        self._folder.write_parts("index.csv", [self._rows])


def grey_png(values: np.ndarray) -> bytes:
    """A map in [0, 1], (height, width), as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _line(cells: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_defused(cell) for cell in cells])
    return text.getvalue()


def _defused(cell: Any) -> Any:
    """Text that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
