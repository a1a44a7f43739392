"""Work that comes bit by bit, done in a thread of its own, so that an item begins before the one ahead has ended."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_END = object()


class Stream(Generic[T, U]):
    """Feeds items to a generator of results that runs in a thread.

    Args:
        work: takes an iterator of items, which waits for the next one, and yields results.
    """

    def __init__(self, work: Callable[[Iterator[T]], Iterable[U]]):
        self._work = work
        # One item may wait: the thread looks that far ahead, and an engine can still give the rest to other workers.
        self._items: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._results: queue.SimpleQueue[U] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: T) -> Iterator[U]:
        """Adds an item, once there is room for it; yields the results that are there by now.

        Raises:
            Exception: what `work` raised.
        """
        self._put(item)
        yield from self._take()
        if self._error is not None:
            raise self._error

    def close(self) -> Iterator[U]:
        """Waits until everything is done; yields the results that are left.

        Raises:
            Exception: what `work` raised.
        """
        self._put(_END)
        self._thread.join()
        yield from self._take()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Lets the thread go when nobody will put or close any more: what is under way ends, nothing new begins."""
        self._stopped.set()
        self._thread.join()

    def _put(self, item: Any) -> None:
        while self._thread.is_alive():
            try:
                self._items.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def _take(self) -> Iterator[U]:
        while not self._results.empty():
            yield self._results.get()

    def _arriving(self) -> Iterator[T]:
        while True:
            if self._stopped.is_set():
                raise RuntimeError("the stream was stopped")
            try:
                item = self._items.get(timeout=0.5)
            except queue.Empty:
                continue
            if item is _END:
                return
            yield item

    def _run(self) -> None:
        try:
            for result in self._work(self._arriving()):
                self._results.put(result)
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            self._error = error
