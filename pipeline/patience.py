"""What becomes of a request that fails or does not end: tried again, timed out, asked for a second time.

Stores refuse a few requests in a thousand for the moment, and a few never end. `patiently` and `patiently_async` try
again what may go better, with waits that grow and differ, until a deadline. An asynchronous request that takes much
longer than others of its kind is begun again beside itself, and the one that ends first is taken (J. Dean and
L. A. Barroso, "The Tail at Scale", 2013): images are explained in order, so a slow read holds up all behind it.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import errno
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import stamina

ATTEMPT = 60.0
"""Seconds after which an attempt is given up, beside a second for each million bytes that it carries."""

FIRST_CONTACT = 30.0
"""Seconds for which a store is asked that has never answered: most often its address is wrong."""

HEDGED_SHARE = 0.1
"""At most this part of the requests is begun again beside themselves."""

troubles: dict[str, int] = {"retries": 0, "hedges": 0, "timeouts": 0}
"""What happened in this process so far."""

_WAITS = {"wait_initial": 0.05, "wait_max": 20.0, "wait_jitter": 0.2}
_KNOWN = 10  # requests after which it is known how long they take
_UNKNOWN = 1.0  # seconds until a request is begun again, before that is known
_BESIDE = 3  # of one request, at the same time; those that failed do not count
_SLOW, _LEAST = 4.0, 0.25  # times the 95th percentile of what others took; seconds

T = TypeVar("T")

_told: dict[str, int] = {}
_deadline = 300.0
_lock = threading.Lock()
_paces: dict[str, _Pace] = {}
_reached: set[str] = set()  # stores that have answered
_is_watched = contextvars.ContextVar("_is_watched", default=False)

# It would tell of each wait on the terminal; `troubles` counts them.
logging.getLogger("stamina").setLevel(logging.ERROR)


class UnavailableError(OSError):
    """A store did not do what it was asked for until the deadline, though it may some other time."""


def new_troubles() -> dict[str, int]:
    """What happened in this process since this was asked last."""
    with _lock:
        new = {name: count - _told.get(name, 0) for name, count in troubles.items()}
        _told.update(troubles)
    return new


def configure(deadline: float) -> None:
    """Sets how many seconds all attempts at one request may take together."""
    global _deadline  # noqa: PLW0603 - one for the process, as the stores themselves are
    _deadline = deadline


def patiently(
    call: Callable[[], T],
    transient: Callable[[BaseException], bool] | None = None,
    limit: float | None = None,
    deadline: float | None = None,
) -> T:
    """The result of a call that is tried again while its errors are transient.

    Args:
        call: safe to call several times.
        transient: tells the errors after which a call may go better; None for `is_transient`.
        limit: seconds for one attempt, which then runs in a thread of its own; None for as long as it takes.
        deadline: seconds for all attempts, where they are to be fewer than what was configured.

    Raises:
        UnavailableError: a transient error lasted until the deadline.
        Exception: whatever else the call raises.
    """
    tries = _Tries(transient or is_transient, deadline=deadline)
    try:
        for attempt in tries.attempts():
            with attempt:
                return tries.answered(call() if limit is None else _within(limit, call))
    except Exception as error:
        if not tries.are_over(error):
            raise
        raise tries.told(error) from error
    raise AssertionError("unreachable")


async def patiently_async(
    kind: str, call: Callable[[], Awaitable[T]], repeatable: bool = True, size: int = 0, limit: float | None = None
) -> T:
    """The result of a request that is tried again while its errors are transient, and begun twice where it is slow.

    A request within another such request is made as it is: the outer one watches over both.

    Args:
        kind: store and verb ("gs GET"): what takes about the same time.
        call: begins the request; what it returns is cancelled when it takes too long.
        repeatable: whether two of them at the same time do the same as one.
        size: bytes that it carries.
        limit: seconds for one attempt; None for `ATTEMPT` and what its size needs.

    Raises:
        UnavailableError: a transient error lasted until the deadline.
        Exception: whatever else the call raises.
    """
    if _is_watched.get():
        return await call()
    watched = _is_watched.set(True)
    tries = _Tries(is_transient, kind.split(" ", 1)[0])
    pace = _paces.setdefault(kind, _Pace())
    longest = ATTEMPT + size / 1e6 if limit is None else limit
    try:
        async for attempt in tries.attempts():
            with attempt:
                return tries.answered(await _race(call, pace, tries.left(longest), repeatable))
    except Exception as error:
        if not tries.are_over(error):
            raise
        raise tries.told(error) from error
    finally:
        _is_watched.reset(watched)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether a request to a store over the network may go better if it is made again."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    if isinstance(error, UnavailableError) or names & _PERMANENT:
        return False
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or (status >= 500 and status not in _NEVER) or _tells_of_haste(error)
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return False
    if isinstance(error, ConnectionError | TimeoutError | asyncio.TimeoutError | EOFError) or names & _TRANSIENT:
        return True
    if getattr(error, "retryable", False):  # Google's own word for it
        return True
    return isinstance(error, OSError) and (error.errno in _TRANSIENT_ERRNO or _tells_of_haste(error))


def is_transient_locally(error: BaseException) -> bool:
    """Whether reading or writing a local file, which may lie on a network drive, may go better a second time."""
    return isinstance(error, OSError) and error.errno in _TRANSIENT_LOCALLY


_PERMANENT = {
    "aiohttp.InvalidURL",
    "aiohttp.ClientConnectorCertificateError",
    "requests.InvalidURL",
    "requests.MissingSchema",
}
_TRANSIENT = {
    "aiohttp.ClientError",
    "botocore.ChecksumError",
    "botocore.ConnectionError",
    "botocore.FlexibleChecksumError",
    "botocore.HTTPClientError",
    "botocore.IncompleteReadError",
    "botocore.ResponseParserError",
    "gcsfs.ChecksumError",
    "google.TransportError",
    "requests.RequestException",
    "urllib3.HTTPError",
}
_TRANSIENT_STATUS = {408, 425, 429}
_NEVER = {501, 505}  # what the store cannot do it will not learn
_TRANSIENT_CODES = {  # of S3, where the status alone would say that the request was wrong
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_ERRNO = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR"),
        *("ENETDOWN", "ENETRESET", "ENETUNREACH", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
_TRANSIENT_LOCALLY = {errno.EAGAIN, errno.EINTR, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


def http_status(error: BaseException) -> int | None:
    """The status of the store's answer, as the clients' exceptions tell it, or those that they were made from."""
    cause = error.__cause__
    response = getattr(error, "response", None) or getattr(cause, "response", None)
    if isinstance(response, dict):  # botocore
        if response.get("Error", {}).get("Code") in _TRANSIENT_CODES:
            return 503
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif getattr(cause, "retryable", False):  # gcsfs says 401 when the server of tokens was away
        return 503
    else:
        named = (getattr(error, name, None) for name in ("status", "status_code", "code"))
        status = next((value for value in named if value is not None), None)
    return int(status) if str(status).isdigit() else None


def _tells_of_haste(error: BaseException) -> bool:
    """Google says 403, too, where there were too many requests."""
    text = str(error).lower()
    return "ratelimitexceeded" in text or "rate limit" in text


class _Tries:
    """The attempts at one request."""

    def __init__(
        self, transient: Callable[[BaseException], bool], store: str | None = None, deadline: float | None = None
    ):
        self._transient, self._store = transient, store
        self._begin, self._failed = time.monotonic(), 0
        is_known = store is None or store in _reached
        self._deadline = min(_deadline, deadline or (_deadline if is_known else FIRST_CONTACT))

    def attempts(self) -> Any:
        """Stamina's, for as long as the deadline allows."""
        return stamina.retry_context(on=self._again, attempts=None, timeout=self._deadline, **_WAITS)

    def answered(self, result: T) -> T:
        """Takes note that the store answers."""
        if self._store is not None:
            _reached.add(self._store)
        return result

    def left(self, limit: float) -> float:
        """The seconds for the next attempt, of which there are to be at least three."""
        return min(limit, self._deadline / 3)

    def are_over(self, error: Exception) -> bool:
        """Whether an error that came out is one that another attempt might have mended."""
        return self._transient(error) and self._failed > 0

    def told(self, error: Exception) -> UnavailableError:
        """What to raise after the last attempt."""
        seconds = time.monotonic() - self._begin
        reason = (str(error).strip().splitlines() or [""])[0]
        return UnavailableError(
            f"given up after {self._failed} attempts in {seconds:.0f} seconds, "
            f"the last: {type(error).__name__}: {reason}"
        )

    def _again(self, error: Exception) -> bool:
        self._failed += 1
        if not self._transient(error):
            self.answered(None)
            return False
        if time.monotonic() - self._begin < self._deadline:
            _count("retries")
        return True


@dataclass
class _Pace:
    """How long requests of a kind take; used on the loop's thread alone."""

    took: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=100))  # seconds
    spare: float = 3.0  # requests that may be begun again

    def slow(self) -> float:
        """Seconds after which a request is slow."""
        self.spare = min(10.0, self.spare + HEDGED_SHARE)
        if len(self.took) < _KNOWN:
            return _UNKNOWN
        return max(_LEAST, _SLOW * sorted(self.took)[int(0.95 * (len(self.took) - 1))])

    def allows(self) -> bool:
        """Whether one more may be begun again."""
        if self.spare < 1:
            return False
        self.spare -= 1
        return True


async def _race(call: Callable[[], Awaitable[T]], pace: _Pace, limit: float, repeatable: bool) -> T:
    """The result of the first request that ends well; another is begun whenever nothing has come for too long."""
    end, slow = time.monotonic() + limit, pace.slow()
    tasks = [asyncio.ensure_future(_timed(call, pace))]
    waiting = set(tasks)
    try:
        while (left := end - time.monotonic()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=min(slow, left), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None or not waiting or not is_transient(error):
                    return task.result()
            if not done and repeatable and len(waiting) < _BESIDE and left > slow and pace.allows():
                _count("hedges")
                tasks.append(asyncio.ensure_future(_timed(call, pace)))
                waiting.add(tasks[-1])
        _count("timeouts")
        raise TimeoutError(f"no answer in {limit:.0f} seconds")
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_take_note)


async def _timed(call: Callable[[], Awaitable[T]], pace: _Pace) -> T:
    begin = time.monotonic()
    result = await call()
    pace.took.append(time.monotonic() - begin)
    return result


def _take_note(task: asyncio.Future) -> None:
    """Looks at the error of a request that nobody waits for any more, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()


def _within(limit: float, call: Callable[[], T]) -> T:
    """The result of a call that cannot be broken off: it is left behind in a thread if it takes too long."""
    outcome: list[T | BaseException] = []
    ended = threading.Event()
    is_good = False

    def work() -> None:
        nonlocal is_good
        try:
            outcome.append(call())
            is_good = True
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            outcome.append(error)
        ended.set()

    threading.Thread(target=work, name="patience", daemon=True).start()
    if not ended.wait(limit):
        _count("timeouts")
        raise TimeoutError(f"no answer in {limit:.0f} seconds")
    result = outcome[0]
    if is_good:
        return result  # type: ignore[return-value]
    assert isinstance(result, BaseException)
    raise result


def _count(trouble: str) -> None:
    with _lock:
        troubles[trouble] += 1
