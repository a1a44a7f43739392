"""Records that an earlier run has made, and that need not be made again: `--since` and `--retry-failures`."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline import parquet
from pipeline.config import RunConfig, describe_difference
from pipeline.errors import ConfigError
from pipeline.layout import RunLayout
from pipeline.records import Entry, Record

logger = logging.getLogger(__name__)

_MAY_DIFFER = ("shard_size",)  # between two runs whose records agree

_DECIDE_RECORDS = ("model_digest", "class_names", "activation_layer", "logits_layer", "preprocess", "schema_version")


def check_earlier(config: RunConfig, metadata: Mapping[str, str], earlier: Mapping[str, str] | None) -> str | None:
    """Whether the records of the run `config.since` are what this job would make of the same images.

    Args:
        config: the job.
        metadata: what its files say of the model.
        earlier: what the earlier run's manifest says; None if there is none.

    Returns:
        A note on what may differ all the same, or None.

    Raises:
        ConfigError: there is no such run, or it was made with other options or another model.
    """
    if earlier is None:
        raise ConfigError(f"--since {config.since!r} names no run: leave it out the first time")
    if difference := find_difference(config, metadata, earlier):
        raise ConfigError(
            f"--since {config.since!r} is a run of another configuration ({difference}), whose records are not those "
            "of this job: leave --since out, and every image is explained"
        )
    versions = [json.loads(part["versions"]) for part in (earlier, metadata)]
    words = [f"{name} {versions[0].get(name)}, now {new}" for name, new in versions[1].items()
             if versions[0].get(name) != new]  # fmt: skip
    return f"records are carried over from a run with {'; '.join(words)}" if words else None


def find_difference(config: RunConfig, metadata: Mapping[str, str], earlier: Mapping[str, str]) -> str:
    """What keeps the records of an earlier run from being those of this job; nothing if it is empty.

    The arguments are those of `check_earlier`.
    """
    options = [json.loads(earlier["config"]), config.identity()]
    old, new = ({name: value for name, value in part.items() if name not in _MAY_DIFFER} for part in options)
    changed = [name for name in _DECIDE_RECORDS if earlier.get(name) != metadata[name]]
    return describe_difference(old, new) or ", ".join(f"{name.replace('_', ' ')} has changed" for name in changed)


class EarlierShards:
    """Tells which shard of an earlier run has an image, by some twenty bytes for each.

    An image that had another label or other boxes counts as another image: what is explained may hang on them.
    """

    def __init__(self, layout: RunLayout):
        keys, shards = [np.empty(0, "S16")], [np.empty(0, np.int32)]
        for number, entries in parquet.read_manifest_shards(layout.uri(layout.MANIFEST)):
            keys.append(_keys(entries))
            shards.append(np.full(len(entries), number, np.int32))
        joined = np.concatenate(keys)
        order = np.argsort(joined, kind="stable")
        self._keys, self._shards = joined[order], np.concatenate(shards)[order]

    def find(self, entries: Sequence[Entry]) -> list[int | None]:
        """The shard of each image; None where the run did not have it."""
        if not len(self._keys):
            return [None] * len(entries)
        keys = _keys(entries)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[places] == keys
        return [int(shard) if there else None for shard, there in zip(self._shards[places], found, strict=True)]


def read_own(layout: RunLayout, number: int, metadata: dict[str, str]) -> dict[str, Record]:
    """The records that a run has of a shard, by id, also if it was not committed: a file is there whole or not at all.

    Args:
        layout: the run.
        number: the shard.
        metadata: what the run's manifest says.
    """
    uri = layout.uri(layout.records(number))
    try:
        found = parquet.read_metadata(uri)
        if any(found[name] != metadata[name] for name in ("config_digest", "model_digest")):
            return {}
        return {record.id: record for record in parquet.read_records(uri)}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def read_carried(since: str | None, entries: Iterable[Entry]) -> dict[str, Record]:
    """The records that the run `since` has of some images, by id; their overlays stay there, under absolute uris."""
    if not since:
        return {}
    wanted = collections.defaultdict(set)
    for entry in entries:
        if entry.earlier_shard is not None:
            wanted[entry.earlier_shard].add(entry.id)
    layout = RunLayout(since)
    found = (record for shard, ids in wanted.items() for record in _read_some(layout, shard, ids))
    return {record.id: _with_absolute_overlays(record, layout) for record in found}


def _read_some(layout: RunLayout, shard: int, ids: set[str]) -> Iterable[Record]:
    uri = layout.uri(layout.records(shard))
    try:
        return list(parquet.read_records(uri, ids))
    except FileNotFoundError:  # the earlier run was not finished
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read, and its images are explained anew: %s", uri, error)
        return []


def _with_absolute_overlays(record: Record, layout: RunLayout) -> Record:
    maps = (
        values if values.overlay is None else dataclasses.replace(values, overlay=layout.uri(values.overlay))
        for values in record.maps
    )
    return dataclasses.replace(record, maps=tuple(maps))


def _keys(entries: Iterable[Entry]) -> np.ndarray:
    """(n,) S16, equal where uri, label and boxes are."""
    texts = (repr((entry.uri, entry.label, entry.boxes)) for entry in entries)
    return np.frombuffer(b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts), "S16")
