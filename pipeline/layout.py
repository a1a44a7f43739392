"""Where the files of a run lie: names that follow from the input alone, so that a second run meets the first one's."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass

from pipeline import storage
from pipeline.errors import RunError

_OVERLAY = re.compile(r"(?s:.*/)?overlays/([0-9a-f]{2})/\1[0-9a-f]{30}-[A-Za-z0-9_.-]*-\d+\.png")


@dataclass(frozen=True)
class RunLayout:
    """The paths below a run's folder."""

    output: str  # the folder's uri

    MANIFEST = "manifest.parquet"
    SUMMARY = "run.json"
    TOTAL = "sums/total.npz"
    PARTIAL = "sums/partial.npz"  # of the shards of one job, until it is summed up
    FOLDERS = ("records", "failures", "overlays", "sums", "shards")

    def __post_init__(self) -> None:
        # Listings spell uris in the store's way, and are compared with ours. A store that is not there is told later.
        with contextlib.suppress(OSError):
            if not storage.is_local(self.output):
                object.__setattr__(self, "output", storage.canonical(self.output).rstrip("/"))

    def uri(self, path: str) -> str:
        """The uri of a path below the run; overlays of another run that are carried over have a uri already."""
        return path if storage.is_absolute(path) else storage.join(self.output, path)

    def records(self, shard: int) -> str:
        """The records of a shard."""
        return f"records/part-{shard:05d}.parquet"

    def failures(self, shard: int) -> str:
        """The failures of a shard."""
        return f"failures/part-{shard:05d}.parquet"

    def sums(self, shard: int) -> str:
        """The sums of a shard."""
        return f"sums/part-{shard:05d}.npz"

    def files(self, shard: int) -> tuple[str, str, str]:
        """What a shard consists of beside its marker: records, failures, sums, which older shards have not."""
        return self.records(shard), self.failures(shard), self.sums(shard)

    def marker(self, shard: int) -> str:
        """The commit marker of a shard."""
        return f"shards/{shard:05d}.json"

    def overlay(self, image_id: str, method: str, target: int) -> str:
        """The overlay of one map; folders by the first two digits keep listings short."""
        return f"{self.overlay_folder(image_id)}/{image_id}-{as_file_name(method)}-{target}.png"

    def overlay_uri(self, path: str) -> str:
        """The uri of an overlay that a record names.

        A run may come from anybody, and its records may name any file. Only files that are named as overlays are read:
        below the run or, where they were carried over, below another one on this machine, in a bucket or in this store.

        Raises:
            RunError: it is none.
        """
        uri, stores = self.uri(path), ("gs://", "s3://", f"{self.output.partition('://')[0]}://")
        if not is_overlay(path) or not (storage.is_local(uri) or uri.startswith(stores)):
            raise RunError(
                f"a record of {self.output!r} names {path!r} as its overlay, which is not read: overlays lie below "
                "overlays/ of the run, or of another one on this machine, in a bucket or in the run's store"
            )
        return uri

    def overlay_folder(self, image_id: str) -> str:
        """The folder of an image's overlays."""
        return f"overlays/{image_id[:2]}"


def is_overlay(path: str) -> bool:
    """Whether a path, or a uri, is named as overlays are."""
    return _OVERLAY.fullmatch(path) is not None and ".." not in path.split("/")


def as_file_name(method: str) -> str:
    """A method's name without what file names should not hold: `scorecam(channels=32)` is `scorecam-channels-32`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", method).strip("-")


def digest_of_overlays(overlays: dict[str, str]) -> str:
    """One SHA-256 for all overlays of a shard, from path -> fingerprint of each."""
    return hashlib.sha256("".join(f"{path} {overlays[path]}\n" for path in sorted(overlays)).encode()).hexdigest()
