"""Tallies and the names of metrics: nothing is lost between threads, and no failure makes names without end."""

import re
import threading
from pathlib import Path

import pytest

from pipeline.counting import (
    COUNTERS,
    DISTRIBUTIONS,
    KINDS,
    Kinds,
    Tally,
    count_workers,
    tally_shard,
)
from pipeline.logs import worker_name
from pipeline.timing import STAGES

README = (Path(__file__).parent.parent.parent / "README.md").read_text()

MARKER = {
    "inputs": 10, "records": 7, "carried": 2, "failures": 3, "failures_by_type": {"read:A": 1, "decode:B": 2},
    "overlays": 5, "store_troubles": {"retries": 4, "hedges": 0, "timeouts": 1},
    "seconds": {"read": 0.25, "model": 2.0}, "waiting": {"read": 1.5, "model": 0.75}, "model_waits": {"images": 0.75},
}  # fmt: skip


def test_what_threads_add_is_taken_once() -> None:
    tally, taken = Tally(), []

    def add() -> None:
        for i in range(2000):
            tally.add("records", 2)
            tally.note("batch_size", i)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken.append(tally.take())
    for thread in threads:
        thread.join()
    taken.append(tally.take())
    assert sum(new.counts.get("records", 0) for new in taken) == 16000
    values = [value for new in taken for value in new.values.get("batch_size", [])]
    assert sorted(values) == sorted([*range(2000)] * 4)
    assert (tally.take().counts, tally.take().values) == ({}, {})


def test_a_tally_absorbs_another_and_leaves_it_empty() -> None:
    run, shard = Tally(), Tally()
    run.add("batches", 3)
    shard.add("batches", 4)
    shard.note("shard_ms", 12.6)
    run.absorb(shard)
    run.absorb(shard)
    new = run.take()
    assert (new.counts, new.values) == ({"batches": 7}, {"shard_ms": [13]})


def test_a_shard_is_counted_as_its_marker_says() -> None:
    tally = Tally()
    tally_shard(tally, MARKER, 3.5)
    new = tally.take()
    assert new.counts == {
        "shards_committed": 1, "images_in": 10, "records": 7, "carried": 2, "failures": 3, "overlays": 5,
        "failures/read:A": 1, "failures/decode:B": 2, "store_retries": 4, "store_timeouts": 1,
    }  # fmt: skip
    assert new.values == {
        "shard_ms": [3500], "stage_ms/read": [1750], "stage_ms/model": [2000], "model_wait_ms/images": [750]
    }  # fmt: skip


def test_kinds_beyond_a_number_are_counted_together() -> None:
    kinds = Kinds(2)
    names = [kinds.name(kind) for kind in ("a:A", "b:B", "c:C", "a:A", "d:D")]
    assert names == ["failures/a:A", "failures/b:B", "failures/other", "failures/a:A", "failures/other"]


def test_no_kind_makes_a_name_that_services_refuse() -> None:
    name = Kinds().name("explain:Ünfug\n/" + "x" * 500)
    assert re.fullmatch(r"failures/[A-Za-z0-9_.:-]{1,80}", name)


def test_a_job_has_at_most_a_hundred_series_of_metrics_whatever_goes_wrong() -> None:
    counters = len(COUNTERS) - 1 + KINDS + 1  # of kinds: so many, and the others
    assert counters + 4 * len(DISTRIBUTIONS) <= 100  # services show least, most, mean and count of each distribution


def test_every_stage_has_its_distribution() -> None:
    assert {name for name in DISTRIBUTIONS if name.startswith("stage_ms/")} == {f"stage_ms/{stage}" for stage in STAGES}


@pytest.mark.parametrize("name", [*COUNTERS, *(name for name in DISTRIBUTIONS if "/" not in name), "stage_ms/<stage>"])
def test_the_readme_has_every_name(name: str) -> None:
    assert f"`{name}`" in README


def test_a_process_that_loaded_the_model_is_counted_once() -> None:
    markers = [
        {"worker": "a/1", "model_loads": 1}, {"worker": "a/1", "model_loads": 1}, {"worker": "a/2", "model_loads": 1},
        {"worker": "b/1", "model_loads": 1}, {"worker": "b/1", "model_loads": 2}, {},
    ]  # fmt: skip
    assert count_workers(markers) == {"workers": 3, "model_loads": 4}
    assert re.fullmatch(r"[^/]+/\d+", worker_name())
