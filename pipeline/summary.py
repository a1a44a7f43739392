"""What a run comes to: its markers, their sums, and run.json, which says that it is whole."""

from __future__ import annotations

import collections
import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline import parquet, storage
from pipeline.config import RunConfig
from pipeline.counting import count_workers
from pipeline.errors import RunError
from pipeline.idset import IdSet, hash_names
from pipeline.layout import RunLayout, is_overlay
from pipeline.records import SCHEMA_VERSION
from pipeline.timing import sum_timings
from pipeline.walking import walk_files

MAX_JSON = 64 << 20  # bytes; a run may be anybody's

_MARKER_KEYS = frozenset(
    ("shard", "config_digest", "model_digest", "inputs", "records", "failures", "failures_by_type", "overlays", "files",
     "overlays_sha256", "seconds")
)  # fmt: skip
_SUMMARY_KEYS = frozenset(
    ("config_digest", "model_digest", "class_names", "inputs", "records", "failures", "overlays", "shards")
)


def read_markers(layout: RunLayout, shards: range) -> list[dict[str, Any]]:
    """The contents of all markers.

    Raises:
        RunError: one is missing or damaged.
    """
    with ThreadPoolExecutor(16) as pool:  # an object store takes as long for one as for many
        return list(pool.map(lambda shard: _read_json(layout, layout.marker(shard), _MARKER_KEYS), shards))


def read_summary(layout: RunLayout) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        RunError: it is not there, or damaged.
    """
    if not storage.exists(layout.uri(layout.SUMMARY)):
        raise RunError(f"{layout.output!r} holds no finished run: there is no {layout.SUMMARY} in it")
    return _read_json(layout, layout.SUMMARY, _SUMMARY_KEYS)


def _read_json(layout: RunLayout, path: str, keys: frozenset[str]) -> dict[str, Any]:
    try:
        content = dict(json.loads(storage.read_bytes(layout.uri(path), MAX_JSON)))
        missing = sorted(keys - set(content))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} of {layout.output!r} cannot be read: {type(error).__name__}: {error}") from error
    if missing:
        raise RunError(f"{path} of {layout.output!r} is damaged: it lacks {', '.join(missing)}")
    return content


def summarize(
    config: RunConfig, metadata: Mapping[str, str], markers: Sequence[Mapping[str, Any]], seconds: float, done: int
) -> dict[str, Any]:
    """The content of run.json.

    Args:
        config: the job's.
        metadata: what the run's manifest says.
        markers: of all shards.
        seconds: that the job took.
        done: how many of the shards it committed.
    """
    described = ("model", "model_digest", "activation_layer", "logits_layer", "probability", "preprocess")
    return {
        "schema_version": SCHEMA_VERSION,
        "config": config.without_secrets(),
        "config_digest": metadata["config_digest"],
        **{name: metadata[name] for name in described},
        "class_names": json.loads(metadata["class_names"]),
        "versions": json.loads(metadata["versions"]),
        "inputs": int(metadata["n_images"]),
        "duplicates": int(metadata["n_duplicates"]),
        "records": sum(marker["records"] for marker in markers),
        "carried": sum(marker.get("carried", 0) for marker in markers),
        "failures": sum(marker["failures"] for marker in markers),
        "failures_by_type": dict(sorted(_sum_counts(marker["failures_by_type"] for marker in markers).items())),
        "overlays": sum(marker["overlays"] for marker in markers),
        "metrics": _mean_metrics(markers),
        "shards": len(markers),
        "shards_this_time": done,
        "seconds": round(seconds, 2),
        "store_troubles": _sum_counts(marker.get("store_troubles", {}) for marker in markers),
        "smallest_batch": min((marker["batch_size"] for marker in markers if "batch_size" in marker), default=None),
        **count_workers(markers),
        **{name: sum(marker.get(name, 0) for marker in markers) for name in ("bytes_read", "bytes_written")},
        **sum_timings(markers),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def remove_orphans(layout: RunLayout, n_shards: int) -> None:
    """Removes overlays that no record names: those of an earlier attempt at an image that has changed since."""
    named = IdSet()
    with ThreadPoolExecutor(16) as pool:
        uris = (layout.uri(layout.records(shard)) for shard in range(n_shards))
        for names in pool.map(parquet.read_overlay_names, uris):
            named.add(hash_names(names))
    base = layout.uri("")
    found = walk_files(layout.uri("overlays"))
    while some := list(itertools.islice(found, 10_000)):
        is_named = named.contains(hash_names(uri.removeprefix(base) for uri in some))
        for uri in itertools.compress(some, ~is_named):
            if uri.startswith(base) and is_overlay(
                uri.removeprefix(base)
            ):  # a link may have led here; and other people's files stay
                storage.remove_file(uri)


def _sum_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: collections.Counter[str] = collections.Counter()
    for part in parts:
        sums.update(part)
    return dict(sums)


def _mean_metrics(markers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Method -> metric -> its mean over all maps that have it."""
    sums: dict[str, dict[str, list[float]]] = {}
    for method, metric, (total, count) in (
        (method, metric, pair)
        for marker in markers
        for method, of_method in marker.get("metrics", {}).items()
        for metric, pair in of_method.items()
    ):
        found = sums.setdefault(method, {}).setdefault(metric, [0.0, 0])
        found[0] += total
        found[1] += count
    return {m: {name: total / count for name, (total, count) in of.items()} for m, of in sums.items()}
