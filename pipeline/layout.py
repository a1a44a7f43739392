"""Where the files of a run lie: names that follow from the input alone, so that a second run meets the first one's."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pipeline import storage


@dataclass(frozen=True)
class RunLayout:
    """The paths below a run's folder."""

    output: str  # the folder's uri

    MANIFEST = "manifest.parquet"
    SUMMARY = "run.json"
    FOLDERS = ("records", "failures", "overlays", "shards")

    def uri(self, path: str) -> str:
        """The uri of a path below the run."""
        return storage.join(self.output, path)

    def records(self, shard: int) -> str:
        """The records of a shard."""
        return f"records/part-{shard:05d}.parquet"

    def failures(self, shard: int) -> str:
        """The failures of a shard."""
        return f"failures/part-{shard:05d}.parquet"

    def marker(self, shard: int) -> str:
        """The commit marker of a shard."""
        return f"shards/{shard:05d}.json"

    def overlay(self, image_id: str, method: str, target: int) -> str:
        """The overlay of one map; folders by the first two digits keep listings short."""
        return f"{self.overlay_folder(image_id)}/{image_id}-{as_file_name(method)}-{target}.png"

    def overlay_folder(self, image_id: str) -> str:
        """The folder of an image's overlays."""
        return f"overlays/{image_id[:2]}"


def as_file_name(method: str) -> str:
    """A method's name without what file names should not hold: `scorecam(channels=32)` is `scorecam-channels-32`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", method).strip("-")


def digest_of_overlays(overlays: dict[str, str]) -> str:
    """One SHA-256 for all overlays of a shard, from path -> SHA-256 of each."""
    return hashlib.sha256("".join(f"{path} {overlays[path]}\n" for path in sorted(overlays)).encode()).hexdigest()
