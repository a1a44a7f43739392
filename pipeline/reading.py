"""Open a run and read its records: for labeling tools and notebooks, without Beam or TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import parquet, storage
from pipeline.layout import RunLayout
from pipeline.records import Entry, Failure, Record
from pipeline.summary import read_summary

if TYPE_CHECKING:
    import pandas as pd


class Run:
    """A finished run; iterate over it for its records.

    Attributes:
        path: its folder's uri.
        summary: the content of run.json.
        class_names: one a class, or None.
    """

    def __init__(self, path: str):
        self.path = path
        self._layout = RunLayout(path)
        self.summary: dict[str, Any] = read_summary(self._layout)
        self.class_names: list[str] | None = self.summary["class_names"]

    def __len__(self) -> int:
        return self.summary["records"]

    def __iter__(self) -> Iterator[Record]:
        for uri in self._parts("records"):
            yield from parquet.read_records(uri)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {len(self)} records, {self.summary['failures']} failures>"

    def _repr_html_(self) -> str:
        """The run in a notebook."""
        from pipeline.notebook import run_html

        return run_html(self)

    def failures(self) -> Iterator[Failure]:
        """The images that could not be explained."""
        for uri in self._parts("failures"):
            yield from parquet.read_failures(uri)

    def manifest(self) -> Iterator[Entry]:
        """The resolved input, in order."""
        return parquet.read_manifest(self._layout.uri(self._layout.MANIFEST))

    def to_arrow(self) -> parquet.Table:
        """All records as one Arrow table, columns as stored."""
        return parquet.concat_tables([parquet.read_table(uri) for uri in self._parts("records")])

    def to_pandas(self) -> pd.DataFrame:
        """All records as a pandas data frame, columns as stored."""
        return self.to_arrow().to_pandas()

    def read_overlay(self, path: str) -> bytes:
        """The PNG of one overlay, from a map's `overlay`; see `RunLayout.overlay_uri` for what is read."""
        return storage.read_bytes(self._layout.overlay_uri(path))

    def _parts(self, folder: str) -> list[str]:
        name = self._layout.records if folder == "records" else self._layout.failures
        return [self._layout.uri(name(shard)) for shard in range(self.summary["shards"])]


def open_run(path: str | Path) -> Run:
    """Opens a finished run.

    Args:
        path: the run's folder, on any store that fsspec knows.

    Raises:
        RunError: there is no finished run.
    """
    return Run(storage.absolute(str(path)))
