"""A run's manifest, shard by shard, with what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import parquet
from pipeline.idset import IdSet, as_ids
from pipeline.layout import RunLayout
from pipeline.records import image_id
from pipeline.verify.columns import Columns, check_empty, check_footer, check_schema
from pipeline.verify.problems import Problem, one_line, plain, shorten


@dataclass(frozen=True)
class Part:
    """A shard's part of the manifest."""

    number: int
    labels: Mapping[str, str | None]  # uri -> label
    earlier: frozenset[str] = frozenset()  # uris that an earlier run may have the record of


class Parts:
    """The parts of a manifest, in order; iterate once.

    Attributes:
        n_images: how many rows were read by now.
        n_shards: how many shards.
        is_whole: whether all of it was read.
    """

    def __init__(self, layout: RunLayout, digests: Mapping[str, str]):
        self.n_images, self.n_shards, self.is_whole = 0, 0, False
        self._path, self._uri = layout.MANIFEST, layout.uri(layout.MANIFEST)
        self._digests = digests
        self._ids = IdSet()

    def __iter__(self) -> Iterator[Part | Problem]:
        try:
            with parquet.open_batches(self._uri) as (schema, batches):
                wrong = list(check_schema(self._path, schema, parquet.MANIFEST.append(parquet.EARLIER)))
                yield from wrong
                if not wrong:
                    metadata = parquet.own_metadata(schema)
                    yield from check_footer(self._path, metadata, self._digests)
                    yield from self._join(map(Columns, batches))
                    yield from self._check_counts(metadata)
        except GeneratorExit:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes of itself
            words = "it lists the run's images, and without it nothing can be said of them"
            yield Problem("manifest cannot be read", f"{self._path} cannot be read: {one_line(error)}: {words}")

    def _join(self, batches: Iterable[Columns]) -> Iterator[Part | Problem]:
        """Shards whose rows may lie in several batches."""
        labels: dict[str, str | None] = {}
        earlier: set[str] = set()
        current = -1
        for batch in batches:
            wrong = list(check_empty(self._path, batch))
            yield from wrong
            if wrong:
                return
            uris, shards = batch.words("uri"), batch.numbers("shard").astype(np.int64)
            yield from self._check_ids(uris, batch.words("id"))
            known = batch.has("earlier_shard") if "earlier_shard" in batch.arrays else np.zeros(len(uris), bool)
            for uri, label, shard, is_known in zip(
                uris, batch.words("label"), shards.tolist(), known.tolist(), strict=True
            ):
                if shard != current or not labels:
                    if shard != current + 1:
                        words = f"has shard {shard} where shard {current + 1} should begin, at {plain(uri)}: nothing "
                        yield Problem(
                            "manifest with shards out of order", f"{self._path} {words}behind it can be checked"
                        )
                        return
                    if labels:
                        yield Part(current, labels, frozenset(earlier))
                    labels, earlier, current = {}, set(), shard
                labels[uri] = label
                if is_known:
                    earlier.add(uri)
            self.n_images += len(uris)
        if labels:
            yield Part(current, labels, frozenset(earlier))
        self.n_shards, self.is_whole = current + 1, True

    def _check_ids(self, uris: list[str], ids: list[str]) -> Iterator[Problem]:
        expected = [image_id(uri) for uri in uris]
        if ids != expected:
            for uri, given, right in zip(uris, ids, expected, strict=True):
                if given != right:
                    words = f"{self._path}: the id of {plain(uri)} is {shorten(given)}, and should be {right}"
                    yield Problem("manifest with another id", words)
        for row in np.flatnonzero(~self._ids.add(as_ids(expected))):
            yield Problem("image twice in the manifest", f"{self._path} lists {plain(uris[row])} more than once")

    def _check_counts(self, metadata: Mapping[str, Any]) -> Iterator[Problem]:
        for name, count in (("n_images", self.n_images), ("n_shards", self.n_shards)):
            if self.is_whole and metadata.get(name) != str(count):
                words = f"says {name} {plain(str(metadata.get(name)))} in its footer, and lists {count}"
                yield Problem("manifest with another count", f"{self._path} {words}")
