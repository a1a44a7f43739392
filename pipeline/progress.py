"""Progress of long work: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipeline import logs
from pipeline.wording import shown


class Counter:
    """A number that threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def add(self, amount: int) -> None:
        """Adds to it."""
        with self._lock:
            self.value += amount


images_done = Counter()
"""Images finished in this process; workers add, the progress bar reads."""


@contextmanager
def show_progress(total: int, done: Callable[[], int], interval: float = 0.5) -> Iterator[None]:
    """Shows how far a job is while the block runs.

    Args:
        total: images in all.
        done: how many are finished, counted anew at each call.
        interval: seconds between two looks on a terminal; a log gets a line every twenty times that.
    """
    watch = _watch_terminal if shows_bars() else _watch_log
    with _watching(watch, total, done, interval):
        yield


@contextmanager
def show_count(what: str, done: Callable[[], int], after: float = 3.0, interval: float = 0.5) -> Iterator[None]:
    """Shows how many there are by now while the block runs, if it takes a while; nobody knows how many there will be.

    Args:
        what: the words behind the number.
        done: how many there are, counted anew at each call.
        after: seconds before anything is shown.
        interval: seconds between two looks on a terminal; a log gets a line every twenty times that.
    """
    with _watching(_watch_count, what, done, after, interval):
        yield


def tell(line: str, /, **fields: Any) -> None:
    """Says on standard error what is going on, which is no part of a command's result; in JSON, with further fields."""
    logs.write(sys.stderr, line, **fields)


def tell_progress(done: int, total: int, rate: float) -> None:
    """How far a job is, in a line."""
    left = (total - done) / rate if rate > 0 else None
    words = f", {describe_duration(left)} left" if left is not None else ""
    fields: dict[str, Any] = {"images_done": done, "images": total, "images_per_second": round(rate, 3)}
    fields["seconds_left"] = None if left is None else round(left)
    tell(f"{done} of {total} images, {rate:.1f} images/s{words}", **fields)


@contextmanager
def _watching(watch: Callable[..., None], *args: Any) -> Iterator[None]:
    """Runs `watch` in a thread while the block runs; its last argument is the event that ends it."""
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(*args, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def show_bar(total: int, first: int) -> Iterator[Callable[[int, str], None]]:
    """A bar on a terminal, for as long as the block runs, that is told how many images are done, and more words."""
    form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} images [{elapsed}{postfix}]"
    with tqdm(total=total, initial=first, bar_format=form, dynamic_ncols=True) as bar:

        def show(done: int, words: str) -> None:
            bar.set_postfix_str(shown(words), refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        yield show


def shows_bars() -> bool:
    """Whether somebody looks at standard error, and no service."""
    return sys.stderr.isatty() and not logs.is_json()


def _watch_terminal(total: int, done: Callable[[], int], interval: float, stop: threading.Event) -> None:
    first = done()
    with tqdm(total=total, initial=first, unit="img", dynamic_ncols=True, smoothing=0.1) as bar:
        while not stop.wait(interval):
            bar.update(done() - bar.n)
        bar.update(done() - bar.n)


def _watch_log(total: int, done: Callable[[], int], interval: float, stop: threading.Event) -> None:
    first, start = done(), time.monotonic()
    while not stop.wait(20 * interval):
        now, seconds = done(), time.monotonic() - start
        tell_progress(now, total, (now - first) / seconds)


def _watch_count(what: str, done: Callable[[], int], after: float, interval: float, stop: threading.Event) -> None:
    if stop.wait(after):
        return
    if shows_bars():
        with tqdm(unit=f" {what}", dynamic_ncols=True, leave=False) as bar:
            while not stop.is_set():
                bar.update(done() - bar.n)
                stop.wait(interval)
        return
    while not stop.is_set():
        tell(f"{done()} {what}")
        stop.wait(20 * interval)


def describe_duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
