"""A run's start on disk: what its manifest says, what it may go on with, and what its markers tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import parquet, storage
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, RunError
from pipeline.layout import RunLayout
from pipeline.records import Entry
from pipeline.run import (
    Plan,
    _compare,
    committed_shards,
    list_input,
    marked_shards,
    plan_run,
    read_plan,
)
from pipeline.summary import read_markers

METADATA = {"schema_version": "1", "model_digest": "d", "class_names": "null", "config_digest": "c"}


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "run") if request.param == "local" else f"memory:///{tmp_path.name}"
    yield folder
    if request.param == "memory":
        storage.remove_folder(folder)


def start(lines: list[str], output: str, folder: Path, shard_size: int = 2, **options: object) -> Plan:
    """Plans a run over a manifest of these lines."""
    path = folder / "m.csv"
    path.write_text("\n".join(["uri,label", *lines]))
    config = RunConfig((str(path),), "m.keras", output, preprocess="tf", shard_size=shard_size, **options)
    with list_input(config) as listing:
        return plan_run(config, listing, METADATA)


def test_a_runs_manifest_holds_each_image_once_and_says_how_many_there_are(tmp_path: Path, output: str) -> None:
    plan = start(["/a,1", "/b,2", "/a,3", "/c,", "/d,4", "/e,5"], output, tmp_path)
    assert (plan.n_images, plan.n_duplicates, plan.n_shards, plan.pending) == (5, 1, 3, (0, 1, 2))
    assert [plan.size_of(shard) for shard in range(4)] == [2, 2, 1, 0]
    assert plan.n_pending == 5
    uri = plan.layout.uri("manifest.parquet")
    assert [parquet.read_manifest_shard(uri, shard) for shard in range(3)] == [
        [Entry("/a", "1"), Entry("/b", "2")], [Entry("/c"), Entry("/d", "4")], [Entry("/e", "5")]
    ]  # fmt: skip
    found = parquet.read_metadata(uri)
    assert METADATA.items() <= found.items()
    assert {name: found[name] for name in ("n_images", "n_shards", "n_duplicates", "jit")} == {
        "n_images": "5", "n_shards": "3", "n_duplicates": "1", "jit": "auto"
    }  # fmt: skip
    assert read_plan(plan.config) == plan
    assert not list(tmp_path.glob("run/.tmp-*"))


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path: Path, output: str) -> None:
    start(["/a,1", "/b,2", "/c,3"], output, tmp_path)
    assert start(["/c,3", "/a,1"], output, tmp_path).n_images == 3
    with pytest.raises(ConfigError, match=r"over another input: 2 of the 4 images are not in it, such as '/x'"):
        start(["/c,3", "/x,9", "/a,2", "/y,1"], output, tmp_path)
    with pytest.raises(ConfigError, match=r"with other labels: 2 differ, such as '/c''s"):
        start(["/c,1", "/b,2", "/a,"], output, tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_two_lists_are_compared_whatever_their_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some(count: int) -> list[Entry]:
        numbers = rng.permutation(30)[:count]
        return [Entry(f"/{number}", [None, "1", "2"][rng.integers(0, 3)]) for number in numbers]

    listing, known = some(20), some(int(rng.integers(0, 31)))
    labels = {entry.uri: entry.label for entry in known}
    new, changed = _compare(listing, iter(known))
    assert new == [entry.uri for entry in listing if entry.uri not in labels]
    assert changed == [entry.uri for entry in listing if entry.label != labels.get(entry.uri, entry.label)]


def test_labels_are_asked_for_where_targets_need_them(tmp_path: Path) -> None:
    start(["/a,", "/b,2"], str(tmp_path / "run"), tmp_path, targets="label")
    with pytest.raises(ConfigError, match=r"--targets label needs labels, and the input has none"):
        start(["/a,", "/b,"], str(tmp_path / "other"), tmp_path, targets="label")


def test_markers_count_by_their_names_and_are_believed_by_their_content(tmp_path: Path, output: str) -> None:
    layout = RunLayout(output)
    assert marked_shards(layout) == []
    for shard in (3, 0, 10):
        for path in (layout.records(shard), layout.failures(shard)):
            storage.write_bytes(layout.uri(path), b"")
        marker = {"shard": shard, "config_digest": "c", "model_digest": "other" if shard == 3 else "m"}
        storage.write_bytes(layout.uri(layout.marker(shard)), json.dumps(marker).encode())
    storage.write_bytes(layout.uri(layout.marker(7)), b"")
    storage.write_bytes(layout.uri("shards/notes.txt"), b"")
    storage.remove_file(layout.uri(layout.records(10)))
    assert marked_shards(layout) == [0, 3, 7, 10]
    assert committed_shards(layout, {"config_digest": "c", "model_digest": "m"}).keys() == {0}
    with pytest.raises(RunError, match=r"shards/00000\.json of .* is damaged: it lacks failures"):
        read_markers(layout, range(4))
    storage.remove_file(layout.uri(layout.marker(0)))
    with pytest.raises(RunError, match=r"shards/00000\.json of .* cannot be read: FileNotFoundError"):
        read_markers(layout, range(4))


def test_a_manifest_that_contradicts_itself_is_told_and_not_believed(tmp_path: Path) -> None:
    plan = start([f"/{i}" for i in range(5)], str(tmp_path / "run"), tmp_path, shard_size=2)
    manifest = plan.layout.uri(plan.layout.MANIFEST)
    entries = list(parquet.read_manifest(manifest))
    parquet.write_manifest(manifest, entries, 2, plan.metadata | {"n_shards": str(10**15)})
    with pytest.raises(ConfigError, match=r"is damaged: it has 5 rows, and tells of 5 in 1000000000000000 shards"):
        read_plan(plan.config)
