"""A run while a job works on it: what its workers have to do, and whether it is still theirs to write to."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import parquet, storage
from pipeline.carrying import read_carried, read_own
from pipeline.config import RunConfig
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.records import Shard

_CLAIMS = ("config_digest", "model_digest", "class_names", "input_digest", "n_images", "since", "begun")


_NEEDED = ("config", "config_digest", "model_digest", "class_names", "schema_version", "n_images", "n_shards")


@dataclass(frozen=True)
class RunningJob:
    """What travels to workers, and what they read by it; the manifest stays where it is, since it may be long."""

    config: RunConfig
    claim: str  # of the manifest that the job began with
    mending: bool = False  # whether the run's own records stay, and only images without one are explained

    @property
    def layout(self) -> RunLayout:
        """Where the run's files lie."""
        return RunLayout(self.config.output)

    def read_shards(self, numbers: Iterable[int], skipped: Callable[[int], None] = lambda _: None) -> Iterator[Shard]:
        """What is to be explained in each shard; those that were committed meanwhile are passed over.

        Engines give a bundle that failed to another worker, with all of its shards.

        Args:
            numbers: of the shards.
            skipped: called with the number of each that is passed over.
        """
        manifest = self.layout.uri(self.layout.MANIFEST)
        metadata = parquet.read_metadata(manifest)
        for number in numbers:
            if read_commit(self.layout, number, metadata) is not None:
                skipped(number)
                continue
            entries = parquet.read_manifest_shard(manifest, number)
            if self.mending and (own := read_own(self.layout, number, metadata)):
                yield Shard(number, entries, own, mending=True)
            else:
                yield Shard(number, entries, read_carried(metadata.get("since"), entries))

    def find_commit(self, number: int) -> dict[str, Any] | None:
        """The marker of a shard, if it is committed.

        Raises:
            RunError: another job has taken the run over: its manifest is not the one that this job began with.
        """
        metadata = read_run_metadata(self.layout)
        if metadata is None or claim_of(metadata) != self.claim:
            raise RunError(
                f"another job has removed or overwritten the run in {self.config.output!r} meanwhile: nothing more is "
                "written to it by this one"
            )
        return read_commit(self.layout, number, metadata)


def read_run_metadata(layout: RunLayout) -> dict[str, str] | None:
    """What a run's manifest says of it; None if there is no manifest, or one that is not a run's."""
    try:
        metadata = parquet.read_metadata(layout.uri(layout.MANIFEST))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # Arrow's errors are ValueErrors
        return None
    return metadata if set(_NEEDED) <= set(metadata) else None


def claim_of(metadata: dict[str, str]) -> str:
    """A digest of what decides a run's content, and of its beginning: jobs of one claim work on the same run."""
    return hashlib.sha256(json.dumps([metadata.get(name) for name in _CLAIMS]).encode()).hexdigest()


def is_of_run(marker: Any, metadata: dict[str, str]) -> bool:
    """Whether a marker's content is one, and of the run with this manifest."""
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        if marker.get("claim", claim_of(metadata)) != claim_of(metadata):  # older markers have none
            return False
        return all(marker[name] == metadata[name] for name in ("config_digest", "model_digest"))
    return False


def committed_files(layout: RunLayout, number: int, marker: Any) -> list[str]:
    """The files that must be there for a shard to be committed; markers of before there were sums name none."""
    *needed, sums = layout.files(number)
    return [*needed, sums] if sums in marker.get("files", ()) else needed


def read_commit(layout: RunLayout, number: int, metadata: dict[str, str]) -> dict[str, Any] | None:
    """A shard's marker, if it is committed: the marker can be read, is of this run, and its files are there."""
    try:
        marker = json.loads(storage.read_bytes(layout.uri(layout.marker(number))))
    except (FileNotFoundError, ValueError):
        return None
    there = is_of_run(marker, metadata) and all(
        storage.exists(layout.uri(path)) for path in committed_files(layout, number, marker)
    )
    return marker if there else None
