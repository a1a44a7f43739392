"""A stream: items begin before the one ahead has ended, results come in order, and an error is never a hang."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from pipeline.stream import Stream


def square(numbers: Iterator[int]) -> Iterator[int]:
    for number in numbers:
        yield number * number


def test_every_item_has_its_result_in_order():
    stream = Stream(square)
    results = [result for number in range(200) for result in stream.put(number)]
    results += stream.close()
    assert results == [number * number for number in range(200)]


def test_a_stream_without_items_has_no_results():
    assert list(Stream(square).close()) == []


def test_the_next_item_is_there_before_the_one_ahead_has_ended():
    seen, looked_ahead = [], threading.Event()

    def work(items: Iterator[str]) -> Iterator[str]:
        ahead = None
        for item in items:
            seen.append(item)
            if ahead is not None:
                looked_ahead.set()
                yield ahead
            ahead = item
        yield ahead

    stream = Stream(work)
    assert list(stream.put("first")) == []  # returns while it is under way
    list(stream.put("second"))
    assert looked_ahead.wait(10)
    assert seen == ["first", "second"]
    list(stream.close())


def test_at_most_one_item_waits_so_that_an_engine_may_give_others_away():
    release, begun = threading.Event(), threading.Event()

    def work(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            begun.set()
            release.wait(10)
            yield item

    stream, accepted = Stream(work), []

    def feed() -> None:
        for item in range(5):
            list(stream.put(item))
            accepted.append(item)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert begun.wait(10)
    while len(accepted) < 2:  # the one at work, and the one that waits
        time.sleep(0.01)
    time.sleep(0.2)
    assert accepted == [0, 1]
    release.set()
    feeder.join(10)
    assert not feeder.is_alive()
    list(stream.close())


def fail_at(wrong: int):
    def work(items: Iterator[int]) -> Iterator[int]:
        for item in items:
            if item == wrong:
                raise OSError("the disk is full")
            yield item

    return work


def test_an_error_reaches_the_one_who_closes_after_the_results_before_it():
    stream = Stream(fail_at(1))
    got = list(stream.put(0))

    def end() -> None:
        got.extend(stream.put(1))
        got.extend(stream.close())

    with pytest.raises(OSError, match="the disk is full"):
        end()
    assert got == [0]


def test_an_error_reaches_the_one_who_puts_instead_of_a_hang():
    stream = Stream(fail_at(0))

    def feed() -> None:
        for item in range(100):
            list(stream.put(item))

    with pytest.raises(OSError, match="the disk is full"):
        feed()


def test_after_an_error_nothing_hangs_however_often_it_is_closed():
    stream = Stream(fail_at(1))
    list(stream.put(0))
    with contextlib.suppress(OSError):  # if it has failed by then
        list(stream.put(1))
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is full"):
            list(stream.close())


def test_a_stream_that_was_given_up_ends_its_thread_and_its_work():
    ended = threading.Event()

    def work(items: Iterator[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            ended.set()

    stream = Stream(work)
    list(stream.put(1))
    stream.stop()
    assert ended.is_set()
    stream.stop()  # again, or after the end, is no error
    closed = Stream(square)
    list(closed.close())
    closed.stop()
