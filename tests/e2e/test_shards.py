"""Shards as a stream: nothing waits for a commit, batches stay inside their shard, and every second is booked."""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline import RunConfig, RunError, flow, open_run, parquet, run_job, shard, storage
from pipeline.flow import process_shards
from pipeline.layout import RunLayout
from pipeline.records import Entry, Shard
from pipeline.timing import STAGES, describe_timings
from pipeline.worker import Worker


@pytest.fixture(scope="module")
def worker(tiny_model_path) -> Worker:
    return Worker(RunConfig(("-",), tiny_model_path, "-", preprocess="tf", jit="off", batch_size=4))


@pytest.fixture(scope="module")
def entries(tmp_path_factory) -> list[Entry]:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return [Entry(str(path)) for path in sorted(folder.iterdir())]


def cut(entries: list[Entry], size: int) -> list[Shard]:
    return [Shard(i // size, entries[i : i + size]) for i in range(0, len(entries), size)]


def test_markers_come_in_order_each_after_its_files(worker, entries, tmp_path) -> None:
    layout = RunLayout(str(tmp_path))
    for number, marker in enumerate(process_shards(cut(entries, 5), worker, layout)):
        assert (marker["shard"], marker["records"]) == (number, 5 if number < 4 else 4)
        assert json.loads(Path(layout.uri(layout.marker(number))).read_text()) == marker
        assert all(Path(layout.uri(path)).exists() for path in marker["files"])
    assert number == 4


def test_the_next_shard_is_explained_while_one_is_being_committed(worker, entries, tmp_path, monkeypatch) -> None:
    went_on, commit = threading.Event(), shard.ShardJob.commit

    def commit_slowly(job):
        if job.number == 0:
            assert went_on.wait(30), "the model waited for the commit"
        return commit(job)

    def explain(images, targets):
        calls.append(len(images))
        if len(calls) == 3:  # the first batch of the second shard
            went_on.set()
        return Worker.explain(worker, images, targets)

    calls: list[int] = []
    monkeypatch.setattr(shard.ShardJob, "commit", commit_slowly)
    monkeypatch.setattr(worker, "explain", explain)
    markers = list(process_shards(cut(entries[:16], 8), worker, RunLayout(str(tmp_path))))
    assert [marker["records"] for marker in markers] == [8, 8]


def test_images_of_the_next_shard_are_read_before_the_model_has_seen_this_one(worker, entries, tmp_path) -> None:
    pulled = []

    def arriving() -> Iterator[Shard]:
        for part in cut(entries, 4):
            pulled.append(part.number)
            yield part

    stream = process_shards(arriving(), worker, RunLayout(str(tmp_path)))
    next(stream)
    assert pulled[-1] >= 3  # a batch is a shard here, and twenty images are under way beside it


@pytest.fixture
def far_entries(entries) -> Iterator[list[Entry]]:
    """A hundred images in a store that is not this machine's disk."""
    far = fsspec.filesystem("memory")
    for i in range(100):
        far.pipe_file(f"/far/images/{i:03d}.png", Path(entries[i % len(entries)].uri).read_bytes())
    yield [Entry(f"memory://far/images/{i:03d}.png") for i in range(100)]
    far.rm("/far", recursive=True)


@pytest.mark.parametrize("step", ["read_bytes", "write_bytes"])
def test_sixty_four_images_beyond_a_batch_go_on_while_a_store_keeps_one_waiting(
    step, worker, far_entries, monkeypatch
) -> None:
    answered: set[str] = set()
    enough, work = threading.Event(), getattr(storage, step)

    def answer(uri, *rest):
        if uri not in stalled and not stalled and (step == "read_bytes" or "overlays" in uri):
            stalled.append(uri)
            assert enough.wait(60), f"only {len(answered)} others went on"
        result = work(uri, *rest)
        answered.add(uri)
        if len(answered) >= worker.batch_size + 64 - 1:
            enough.set()
        return result

    stalled: list[str] = []
    monkeypatch.setattr(storage, step, answer)
    layout = RunLayout("memory://far/run")
    marker = next(process_shards([Shard(0, far_entries)], worker, layout))
    assert (marker["records"], marker["overlays"], len(stalled)) == (100, 100, 1)


def test_a_batch_holds_images_of_one_shard(worker, entries, tmp_path, monkeypatch) -> None:
    sizes: list[int] = []

    def explain(images, targets):
        sizes.append(len(images))
        return Worker.explain(worker, images, targets)

    monkeypatch.setattr(worker, "explain", explain)
    list(process_shards(cut(entries, 6), worker, RunLayout(str(tmp_path))))
    assert sizes == [4, 2] * 4  # so that a shard's numbers do not depend on its neighbours


def test_a_shard_of_failures_alone_stands_between_others(worker, entries, tmp_path) -> None:
    missing = [Entry(str(tmp_path / f"{i}.png")) for i in range(3)]
    parts = [entries[:3], missing, [missing[0], entries[3], missing[1]], missing[:1]]
    shards = [Shard(number, part) for number, part in enumerate(parts)]
    markers = list(process_shards(shards, worker, RunLayout(str(tmp_path / "run"))))
    assert [(m["records"], m["failures"]) for m in markers] == [(3, 0), (0, 3), (1, 2), (0, 1)]


def test_no_shards_are_no_markers(worker, tmp_path) -> None:
    assert list(process_shards([], worker, RunLayout(str(tmp_path)))) == []
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_refuses_stops_the_job_at_once_and_what_is_committed_stays(
    worker, entries, tmp_path, monkeypatch
) -> None:
    commit = shard.ShardJob.commit

    def fail_at_two(job):
        if job.number >= 2:
            tried.append(job.number)
            raise OSError("no space left")
        return commit(job)

    tried: list[int] = []
    monkeypatch.setattr(shard.ShardJob, "commit", fail_at_two)
    layout = RunLayout(str(tmp_path))
    with pytest.raises(OSError, match="no space left"):
        list(process_shards(cut(entries, 3), worker, layout))
    assert {path.stem for path in Path(layout.uri("shards")).glob("*.json")} == {"00000", "00001"}
    assert len(tried) <= 2  # one may have been begun


@pytest.mark.parametrize("step", ["commit", "make_record", "explain"])
def test_a_shard_that_breaks_costs_no_other(step, worker, entries, tmp_path, monkeypatch) -> None:
    work = getattr(shard.ShardJob, step)

    def break_two(job, *item):
        if job.number == 2:
            raise RuntimeError("a fault of nobody's")
        return work(job, *item)

    monkeypatch.setattr(shard.ShardJob, step, break_two)
    layout, markers = RunLayout(str(tmp_path)), []
    with pytest.raises(RunError, match="shard 2 broke: RuntimeError: a fault of nobody's"):
        markers.extend(process_shards(cut(entries, 5), worker, layout))
    assert {path.stem for path in Path(layout.uri("shards")).glob("*.json")} == {"00000", "00001", "00003", "00004"}
    monkeypatch.undo()
    (again,) = process_shards(cut(entries, 5)[2:3], worker, layout)
    assert (again["records"], again["failures"]) == (5, 0)


def test_three_broken_shards_in_a_row_stop_the_job(worker, entries, tmp_path, monkeypatch) -> None:
    def fail(images, targets):
        calls.append(len(images))
        raise RuntimeError("the device is lost")

    calls: list[int] = []
    monkeypatch.setattr(worker, "explain", fail)
    layout = RunLayout(str(tmp_path))
    with pytest.raises(RunError, match="shards 0, 1, 2 broke: RuntimeError: the device is lost"):
        list(process_shards(cut(entries, 2), worker, layout))
    assert list(tmp_path.rglob("*.json")) == []
    assert 6 <= len(calls) < 24  # a batch and a blank image of each of them, and few of those behind


def test_an_image_that_the_model_cannot_take_costs_no_other(worker, entries, tmp_path, monkeypatch) -> None:
    def explain(images, targets):
        if any((image == poison).all() for image in images):
            raise ValueError("bad pixels\nsecond line")
        return Worker.explain(worker, images, targets)

    plain = list(process_shards(cut(entries[:8], 8), worker, RunLayout(str(tmp_path / "plain"))))
    poison = shard.ShardJob(worker, RunLayout("-"), Shard(0, [])).load(entries[5]).pixels
    monkeypatch.setattr(worker, "explain", explain)
    layout = RunLayout(str(tmp_path / "run"))
    (marker,) = process_shards(cut(entries[:8], 8), worker, layout)
    assert (marker["records"], marker["failures_by_type"]) == (7, {"explain:ValueError": 1})
    (failure,) = parquet.read_failures(layout.uri(layout.failures(0)))
    assert (failure.uri, failure.message) == (entries[5].uri, "bad pixels")
    good = {record.uri: record for record in parquet.read_records(layout.uri(layout.records(0)))}
    expected = {record.uri: record for record in parquet.read_records(f"{tmp_path}/plain/{layout.records(0)}")}
    assert plain[0]["records"] == 8
    assert set(expected) - set(good) == {entries[5].uri}
    for uri, record in good.items():
        np.testing.assert_allclose(record.logits, expected[uri].logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(record.maps[0].array(), expected[uri].maps[0].array(), rtol=1e-3, atol=1e-6)


def test_an_error_that_nobody_foresaw_is_the_failure_of_its_image(worker, entries, tmp_path, monkeypatch) -> None:
    def trip(data, *_):
        if data == Path(entries[1].uri).read_bytes():
            raise KeyError("surprise")
        return decode(data, *_)

    decode = shard.decode_reduced
    monkeypatch.setattr(shard, "decode_reduced", trip)
    (marker,) = process_shards(cut(entries[:3], 3), worker, RunLayout(str(tmp_path)))
    assert (marker["records"], marker["failures_by_type"]) == (2, {"decode:KeyError": 1})


def test_a_store_that_is_away_ends_the_job_and_one_that_falters_does_not(
    worker, entries, tmp_path, monkeypatch
) -> None:
    def read(uri: str, limit: int | None = None) -> bytes:
        if entries.index(Entry(uri)) in away:
            raise storage.UnavailableError("no answer")
        return Path(uri).read_bytes()

    monkeypatch.setattr(storage, "read_bytes", read)
    monkeypatch.setattr(shard.Outage, "UNANSWERED", 4)
    away = {1, 5, 9}  # never four in a row, whichever thread is faster
    markers = list(process_shards(cut(entries[:12], 12), worker, RunLayout(str(tmp_path / "falters"))))
    assert markers[0]["failures_by_type"] == {"read:UnavailableError": 3}
    away = set(range(5, 24))
    layout = RunLayout(str(tmp_path / "away"))
    with pytest.raises(RunError, match="4 reads in a row were not answered, the last: no answer"):
        list(process_shards(cut(entries, 5), worker, layout))
    assert {path.stem for path in Path(layout.uri("shards")).glob("*.json")} <= {"00000"}


def test_a_shard_that_another_job_has_committed_is_left_as_it_is(worker, entries, tmp_path) -> None:
    theirs = {"shard": 1, "records": 5}
    layout = RunLayout(str(tmp_path))
    shards = cut(entries[:15], 5)
    markers = list(process_shards(shards, worker, layout, find_commit=lambda number: theirs if number == 1 else None))
    assert [marker["shard"] for marker in markers] == [0, 1, 2]
    assert markers[1] is theirs
    assert {path.stem for path in tmp_path.glob("shards/*")} == {"00000", "00002"}
    assert {path.stem for path in tmp_path.glob("records/*")} == {"part-00000", "part-00002"}


def test_of_two_jobs_that_commit_at_once_the_second_writes_all_files(worker, entries, tmp_path) -> None:
    layout = RunLayout(str(tmp_path))

    def find_commit(number: int) -> None:
        calls.append(number)
        if len(calls) == 2:  # between our files and our marker: theirs
            storage.write_bytes(layout.uri(layout.records(0)), b"their records")
            storage.write_bytes(layout.uri(layout.marker(0)), b"{}")

    calls: list[int] = []
    (marker,) = process_shards(cut(entries[:5], 5), worker, layout, find_commit=find_commit, claim="ours")
    assert json.loads(Path(layout.uri(layout.marker(0))).read_text()) == marker
    assert marker["claim"] == "ours"
    for path, told in marker["files"].items():
        assert hashlib.sha256(Path(layout.uri(path)).read_bytes()).hexdigest() == told["sha256"]


def test_an_image_that_trips_the_recorder_up_leaves_no_overlay(worker, entries, tmp_path, monkeypatch) -> None:
    localize, calls = shard.ShardJob._localize, []

    def trip(job, item, values, target):
        calls.append(item.loaded.entry.uri)
        if (
            item.loaded.entry == entries[2] and calls.count(entries[2].uri) == 2
        ):  # its second map: the first one's overlay is written
            raise ValueError("surprise")
        return localize(job, item, values, target)

    monkeypatch.setattr(shard.ShardJob, "_localize", trip)
    config = dataclasses.replace(worker.config, targets="top:2")
    layout = RunLayout(str(tmp_path))
    (marker,) = process_shards(cut(entries[:4], 4), Worker(config), layout)
    assert (marker["records"], marker["failures_by_type"], marker["overlays"]) == (3, {"explain:ValueError": 1}, 6)
    assert len(list(tmp_path.rglob("*.png"))) == 6


def test_nothing_is_committed_to_a_run_that_another_job_has_taken(worker, entries, tmp_path) -> None:
    def find_commit(number: int) -> None:
        checks.append(number)
        if len(checks) > 2:
            raise RunError("taken")

    checks: list[int] = []
    layout = RunLayout(str(tmp_path))
    with pytest.raises(RunError, match="taken"):
        list(process_shards(cut(entries, 5), worker, layout, find_commit=find_commit))
    assert checks[:3] == [0, 0, 1]
    assert sorted(path.name for path in tmp_path.glob("shards/*")) == ["00000.json"]


def test_every_second_of_a_run_is_in_its_markers_and_its_summary(photographs, tiny_model_path, tmp_path) -> None:
    config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / "run"), preprocess="tf",
                       jit="off", shard_size=5, batch_size=4)  # fmt: skip
    summary = run_job(config, [])
    markers = [json.loads(path.read_text()) for path in sorted(Path(config.output, "shards").glob("*.json"))]
    for stage in ("read", "decode", "preprocess", "model", "codec", "overlay", "encode", "write"):
        assert summary["seconds_by_stage"][stage] == pytest.approx(sum(m["seconds"][stage] for m in markers), abs=2e-3)
        assert all(marker["seconds"][stage] >= 0 <= marker["waiting"][stage] for marker in markers)
    assert set(summary["seconds_by_stage"]) <= set(STAGES)
    assert summary["waiting_by_stage"]["model"] == pytest.approx(sum(summary["model_waits"].values()), abs=5e-3)
    assert summary["bottleneck"] in STAGES
    assert summary["smallest_batch"] == 4
    assert any("<- bottleneck" in line for line in describe_timings(open_run(config.output).summary))


@pytest.mark.parametrize(("pixels", "content"), [(0, 4_000_000), (0, 0)])
def test_large_photographs_are_decoded_again_and_large_files_read_again_for_the_same_overlays(
    pixels, content, worker, entries, tmp_path, monkeypatch
) -> None:
    kept = list(process_shards([Shard(0, entries[:5])], worker, RunLayout(str(tmp_path / "kept"))))
    monkeypatch.setattr(shard, "KEPT_PIXELS", pixels)
    monkeypatch.setattr(shard, "KEPT_BYTES", content)
    again = list(process_shards([Shard(0, entries[:5])], worker, RunLayout(str(tmp_path / "again"))))
    assert again[0]["overlays"] == 5
    assert again[0]["overlays_sha256"] == kept[0]["overlays_sha256"]
    assert again[0]["files"] == kept[0]["files"]


def test_a_file_that_changes_between_the_model_and_its_overlay_is_a_failure(
    worker, entries, tmp_path, monkeypatch
) -> None:
    picture = tmp_path / "changing.png"
    picture.write_bytes(Path(entries[0].uri).read_bytes())

    def explain(images, targets):
        picture.write_bytes(Path(entries[1].uri).read_bytes())
        return Worker.explain(worker, images, targets)

    monkeypatch.setattr(shard, "KEPT_PIXELS", 0)
    monkeypatch.setattr(shard, "KEPT_BYTES", 0)
    monkeypatch.setattr(worker, "explain", explain)
    shards = [Shard(0, [Entry(str(picture)), entries[2]])]
    (marker,) = process_shards(shards, worker, RunLayout(str(tmp_path / "run")))
    assert (marker["records"], marker["failures_by_type"], marker["overlays"]) == (1, {"read:Changed": 1}, 1)


@pytest.mark.parametrize("cancel", [True, False])
def test_what_was_begun_is_cancelled_or_kept_when_later_items_fail(cancel) -> None:
    started, release, done = threading.Event(), threading.Event(), []

    def work(item: int) -> int:
        started.set()
        assert release.wait(30)
        done.append(item)
        return item

    def items() -> Iterator[int]:
        yield from (0, 1)
        assert started.wait(30)
        raise OSError("no space left")

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(OSError, match="no space left"):
            list(flow.map_ahead(pool, work, items(), 5, cancel=cancel))
        release.set()
    assert done == ([0] if cancel else [0, 1])  # a complete shard is committed, whatever becomes of the next one
