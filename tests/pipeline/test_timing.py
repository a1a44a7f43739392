"""Stage timings: what is booked as work and as waiting, how shards add up, and which stage is named."""

import json
import threading
import time

import pytest

from pipeline.timing import STAGES, Stopwatch, describe_timings, find_bottleneck, sum_timings


def busy(seconds: float) -> float:
    """Computes until this thread has used so much of a processor."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


def test_work_is_what_a_thread_computes_and_waiting_is_the_rest():
    watch = Stopwatch()
    assert watch.time("decode", busy, 0.05) == 0.05
    watch.time("read", time.sleep, 0.05)
    assert watch.working["decode"] >= 0.05
    assert watch.working["read"] < 0.04 <= watch.waiting["read"]


def test_the_model_works_while_others_compute_for_it():
    watch = Stopwatch()
    watch.time_model(time.sleep, 0.05)
    assert watch.working["model"] >= 0.05
    assert watch.waiting["model"] == 0


def test_the_model_waits_for_images_or_for_room():
    watch = Stopwatch()
    watch.time_wait("images", 1.5)
    watch.time_wait("room", 0.25)
    watch.time_wait("images", 0.5)
    assert (watch.model_waits, watch.waiting["model"]) == ({"images": 2.0, "room": 0.25}, 2.25)


def test_a_stage_that_fails_is_booked_all_the_same():
    watch = Stopwatch()

    def fail() -> None:
        busy(0.02)
        raise OSError("no such file")

    with pytest.raises(OSError, match="no such file"):
        watch.time("read", fail)
    assert watch.working["read"] >= 0.02


def test_threads_add_up():
    watch = Stopwatch()
    threads = [threading.Thread(target=lambda: [watch.add("codec", 1.0, 2.0) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (watch.working["codec"], watch.waiting["codec"]) == (2000.0, 4000.0)


def test_a_run_is_the_sum_of_its_markers_older_ones_included():
    watch = Stopwatch()
    watch.add("decode", 3.0, 1.0)
    watch.add("model", 5.0, 0.0)
    watch.time_wait("images", 2.0)
    marker = json.loads(json.dumps(watch.to_dict()))
    older = {"seconds": {"decode": 0.5, "model": 1.0}}
    assert sum_timings([marker, older, marker]) == {
        "seconds_by_stage": {"decode": 6.5, "model": 11.0},
        "waiting_by_stage": {"decode": 2.0, "model": 4.0},
        "model_waits": {"images": 4.0},
        "bottleneck": "decode",
    }


@pytest.mark.parametrize(
    ("working", "waits", "stage"),
    [
        ({"model": 9.0, "decode": 30.0}, {"images": 0.5, "room": 0.4}, "model"),  # it is fed, whatever that took
        ({"model": 9.0, "decode": 3.0, "read": 2.0}, {"images": 3.0}, "decode"),
        ({"model": 9.0, "decode": 1.0, "read": 2.0, "encode": 9.0}, {"images": 3.0, "room": 1.0}, "read"),
        ({"model": 9.0, "decode": 5.0, "encode": 2.0, "overlay": 1.0}, {"images": 1.0, "room": 3.0}, "encode"),
        ({"model": 9.0, "decode": 5.0, "write": 3.0, "encode": 2.0}, {"room": 1.1}, "write"),
        ({"read": 1.0}, {}, None),  # every image failed
        ({}, {}, None),
    ],
)
def test_the_bottleneck_is_the_model_unless_it_waits(working, waits, stage):
    assert find_bottleneck(working, waits) == stage


def test_waiting_for_storage_counts_when_the_longest_stage_is_sought():
    working, waiting = {"model": 1.0, "read": 0.1, "decode": 0.5}, {"read": 60.0, "decode": 0.1}
    assert find_bottleneck(working, {"images": 3.0}, waiting) == "read"


def test_the_table_has_the_stages_in_order_and_names_the_bottleneck():
    summary = {
        "seconds_by_stage": {"write": 0.2, "model": 8.0, "decode": 4.0, "read": 0.1},
        "waiting_by_stage": {"read": 30.0, "model": 2.0},
        "model_waits": {"images": 1.8, "room": 0.2},
        "bottleneck": "read",
    }
    lines = list(describe_timings(summary))
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["read", "0.1", "30.0"], ["decode", "4.0", "0.0"], ["model", "8.0", "2.0"], ["write", "0.2", "0.0"]
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if "<- bottleneck" in line] == ["read"]
    assert lines[-1].startswith("the model ran 80 % of the time, and waited 18 % for images")
    assert "2 % for records" in lines[-1]


def test_a_run_of_before_there_were_waits_is_described_too():
    lines = list(describe_timings({"seconds_by_stage": {"decode": 1.0}}))
    assert [line.split()[0] for line in lines] == ["stage", "decode"]


def test_every_stage_stands_once_in_the_order_of_an_images_way():
    assert len(set(STAGES)) == len(STAGES)
    assert [*STAGES].index("decode") < [*STAGES].index("model") < [*STAGES].index("encode") < [*STAGES].index("write")
