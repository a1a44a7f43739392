"""Where a run is written to: a local folder, or a bucket of an emulator; looked at past the program under test."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests import emulators

STORES = ("local", "gcs", "s3")
SCHEMES = {"gcs": "gs", "s3": "s3"}


@dataclass(frozen=True)
class Place:
    """A folder or a prefix."""

    store: str  # of STORES
    root: str  # its uri
    environment: Mapping[str, str]  # what a process needs to reach it

    def below(self, name: str) -> Place:
        """A place inside it."""
        return Place(self.store, f"{self.root}/{name}", self.environment)

    def new(self) -> Place:
        """A place inside it that nothing has been written to."""
        return self.below(uuid.uuid4().hex[:12])

    def through(self, endpoint: str) -> Place:
        """The same place, reached by way of another endpoint."""
        name = {"gcs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}[self.store]
        return Place(self.store, self.root, {**self.environment, name: endpoint})

    @property
    def endpoint(self) -> str:
        """Where the store listens."""
        return self.environment[{"gcs": "STORAGE_EMULATOR_HOST", "s3": "AWS_ENDPOINT_URL"}[self.store]]

    @cached_property
    def system(self) -> Any:
        """A file system of our own, not the program's, and without its memory of listings."""
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self.store == "gcs":
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            return fsspec.filesystem("gs", endpoint_url=self.endpoint, token="anon", **options)
        key = {"key": "testing", "secret": "testing", "client_kwargs": {"region_name": "us-east-1"}}
        return fsspec.filesystem("s3", endpoint_url=self.endpoint, **key, **options)

    @property
    def path(self) -> str:
        """The bucket and prefix, or the folder."""
        return self.root.partition("://")[2] or self.root

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        if self.store == "local":
            return Path(self.root, name).exists()
        return bool(self.system.exists(f"{self.path}/{name}"))

    def has_begun(self) -> bool:
        """Whether the first of it is there: the folder of a manifest that is being written, or the manifest."""
        return Path(self.root).exists() if self.store == "local" else self.has("manifest.parquet")

    def names(self, folder: str = "") -> set[str]:
        """The files below a folder, as paths below the place; folders and what vanishes meanwhile are none."""
        if self.store == "local":
            base = Path(self.root)
            found = (Path(top, name) for top, _, names in os.walk(base / folder) for name in names)
            return {path.relative_to(base).as_posix() for path in found}
        try:
            listed = self.system.find(f"{self.path}/{folder}".rstrip("/"))
        except FileNotFoundError:
            return set()
        return {name.removeprefix(f"{self.path}/") for name in listed}

    def read(self, names: set[str]) -> dict[str, bytes]:
        """The contents of files."""
        if self.store == "local":
            return {name: Path(self.root, name).read_bytes() for name in names}
        contents = self.system.cat([f"{self.path}/{name}" for name in sorted(names)]) if names else {}
        return {name.removeprefix(f"{self.path}/"): data for name, data in contents.items()}

    def digests(self, folder: str) -> dict[str, str]:
        """The SHA-256 of every file below a folder."""
        return {name: hashlib.sha256(data).hexdigest() for name, data in self.read(self.names(folder)).items()}

    def write(self, name: str, data: bytes) -> None:
        """Writes a file."""
        if self.store == "local":
            Path(self.root, name).parent.mkdir(parents=True, exist_ok=True)
            Path(self.root, name).write_bytes(data)
        else:
            self.system.pipe_file(f"{self.path}/{name}", data)


@contextlib.contextmanager
def opened(store: str, folder: Path) -> Iterator[Place]:
    """A place on a store, whose emulator runs for as long as the block does."""
    if store == "local":
        yield Place("local", str(folder / "runs"), {})
        return
    running = {"gcs": emulators.running_gcs, "s3": emulators.running_s3}[store]
    with running() as environment:
        yield Place(store, f"{SCHEMES[store]}://{emulators.BUCKET}/faults", environment)


def missing(store: str) -> str:
    """Why there is no such store here; nothing if there is one."""
    import importlib.util

    absent = [name for name in emulators.NEEDED.get(store, ()) if importlib.util.find_spec(name) is None]
    return f"no emulator of {store}: {', '.join(absent)} missing" if absent else ""
