"""Requests that fail or do not end: what is tried again, for how long, and what is begun a second time."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import botocore.exceptions
import google.auth.exceptions
import pytest
import requests
from gcsfs.retry import ChecksumError, HttpError
from s3fs.errors import translate_boto_error

from pipeline import patience
from pipeline.patience import is_transient, is_transient_locally, patiently, patiently_async

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Patience that knows of no request yet, with short waits."""
    monkeypatch.setattr(patience, "_paces", {})
    monkeypatch.setattr(patience, "_reached", set())
    monkeypatch.setattr(patience, "troubles", dict.fromkeys(patience.troubles, 0))
    monkeypatch.setattr(patience, "_WAITS", {"wait_initial": 0.001, "wait_max": 0.01, "wait_jitter": 0.001})
    yield
    patience.configure(300.0)


def failing(*errors: BaseException, result: object = "done") -> tuple[Callable[[], object], list[int]]:
    """A call that raises these errors one after the other, and then succeeds; and how often it was called."""
    calls: list[int] = []

    def call() -> object:
        calls.append(len(calls))
        if len(calls) <= len(errors):
            raise errors[len(calls) - 1]
        return result

    return call, calls


def answered(code: str, status: int) -> Exception:
    """What s3fs raises for an answer of S3."""
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(botocore.exceptions.ClientError(response, "GetObject"))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


TRANSIENT = [
    *(HttpError({"code": code, "message": "m"}) for code in (408, 429, 500, 502, 503, 504)),
    ChecksumError("md5"),
    requests.exceptions.ProxyError(),
    OSError("Forbidden: b/o\nThe rate limit for object updates was exceeded: rateLimitExceeded"),
    caused(HttpError({"code": 401}), google.auth.exceptions.RefreshError("away", retryable=True)),
    google.auth.exceptions.TransportError("away"),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError("Response payload is not completed"),
    aiohttp.ClientOSError(errno.ECONNRESET, "reset"),
    aiohttp.SocketTimeoutError("slow"),
    *(answered(code, 503) for code in ("SlowDown", "ServiceUnavailable", "503")),
    answered("InternalError", 500),
    answered("RequestTimeout", 400),
    answered("IncompleteBody", 400),
    answered("OperationAborted", 409),
    answered("ConditionalRequestConflict", 409),
    answered("SomethingNew", 502),
    botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="u"),
    botocore.exceptions.ConnectionClosedError(endpoint_url="u"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    botocore.parsers.ResponseParserError("not XML"),
    ConnectionResetError(),
    BrokenPipeError(),
    TimeoutError(),
    asyncio.TimeoutError(),
    OSError(errno.EHOSTUNREACH, "no route"),
]

PERMANENT = [
    *(HttpError({"code": code, "message": "m"}) for code in (400, 401, 403, 409, 416, 501)),
    caused(HttpError({"code": 401}), google.auth.exceptions.RefreshError("revoked")),
    google.auth.exceptions.DefaultCredentialsError("none"),
    OSError("Forbidden: b/o\nno storage.objects.get access"),
    ValueError("Bad Request: b/o"),
    *(answered(code, 404) for code in ("NoSuchKey", "NoSuchBucket", "404")),
    *(answered(code, 403) for code in ("AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "403")),
    answered("PreconditionFailed", 412),
    answered("InvalidRange", 416),
    answered("NotImplemented", 501),
    botocore.exceptions.NoCredentialsError(),
    botocore.exceptions.ParamValidationError(report="r"),
    aiohttp.InvalidURL("u"),
    FileNotFoundError("x"),
    FileExistsError("x"),
    PermissionError("x"),
    IsADirectoryError("x"),
    NotADirectoryError("x"),
    OSError(errno.ENOSPC, "disk full"),
    OSError(errno.EROFS, "read-only"),
    OSError(errno.EFBIG, "large"),
    OSError(errno.EDQUOT, "quota"),
    patience.UnavailableError("given up"),
    KeyError("x"),
    MemoryError(),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert is_transient(error)
    call, calls = failing(error, error)
    assert patiently(call) == "done"
    assert len(calls) == 3
    assert patience.troubles["retries"] == 2


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_will_not_pass_is_raised_at_once_as_it_is(error: BaseException) -> None:
    assert not is_transient(error)
    call, calls = failing(error)
    with pytest.raises(type(error)) as caught:
        patiently(call)
    assert caught.value is error
    assert len(calls) == 1
    assert patience.troubles["retries"] == 0


def test_locally_only_what_drives_do_for_a_moment_is_tried_again() -> None:
    passing = ("ESTALE", "EAGAIN", "ETIMEDOUT", "EINTR", "EIO")
    lasting = ("ENOSPC", "EROFS", "EFBIG", "EDQUOT", "EACCES", "ENOENT", "EISDIR", "ENOTDIR", "ENAMETOOLONG", "EBUSY")
    assert all(is_transient_locally(OSError(getattr(errno, name), name)) for name in passing)
    assert not any(is_transient_locally(OSError(getattr(errno, name), name)) for name in lasting)
    assert not is_transient_locally(ConnectionResetError())
    assert not is_transient_locally(ValueError())


def test_a_permanent_error_after_transient_ones_is_raised_as_it_is() -> None:
    call, calls = failing(TimeoutError(), FileNotFoundError("a.jpg"))
    with pytest.raises(FileNotFoundError, match=r"^a\.jpg$"):
        patiently(call)
    assert len(calls) == 2


def test_at_the_deadline_it_is_told_how_often_and_how_long_it_was_tried() -> None:
    patience.configure(0.2)
    calls = []

    def call() -> None:
        calls.append(time.monotonic())
        raise ConnectionResetError("the line was cut\nand more")

    with pytest.raises(patience.UnavailableError) as caught:
        patiently(call)
    assert str(caught.value) == (
        f"given up after {len(calls)} attempts in 0 seconds, the last: ConnectionResetError: the line was cut"
    )
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert len(calls) >= 3
    assert calls[-1] - calls[0] < 5


def test_a_shorter_deadline_holds_for_one_call() -> None:
    begin = time.monotonic()
    with pytest.raises(patience.UnavailableError):
        patiently(failing(*[TimeoutError()] * 100_000)[0], deadline=0.1)
    assert time.monotonic() - begin < 20


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits: list[list[float]] = []

    def sleep(seconds: float) -> None:
        waits[-1].append(seconds)

    monkeypatch.setattr(time, "sleep", sleep)
    for _ in range(2):
        waits.append([])
        patiently(failing(*[TimeoutError()] * 12)[0])
    for row in waits:
        assert len(row) == 12
        assert 0.05 <= row[0] <= 0.25
        assert row[0] < row[5] < row[8]
        assert all(wait <= 20 for wait in row)
    assert waits[0] != waits[1]


def test_a_call_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, calls = threading.Event(), []

    def call() -> str:
        calls.append(threading.get_ident())
        if len(calls) == 1:
            hanging.wait(60)
        return "done"

    assert patiently(call, limit=0.2) == "done"
    hanging.set()
    assert len(calls) == 2
    assert threading.get_ident() not in calls
    assert patience.troubles == {"retries": 1, "hedges": 0, "timeouts": 1}


def test_errors_of_a_call_with_a_limit_come_out() -> None:
    with pytest.raises(FileNotFoundError, match="x"):
        patiently(failing(FileNotFoundError("x"))[0], limit=30)
    with pytest.raises(KeyboardInterrupt):
        patiently(failing(KeyboardInterrupt())[0], limit=30)


# Requests on a loop


class Requests:
    """Requests of a store that take as long as told, and how they went."""

    def __init__(self, *seconds: float):
        self.seconds = list(seconds)
        self.begun = 0
        self.ended: list[int] = []
        self.cancelled: list[int] = []

    async def __call__(self) -> int:
        number = self.begun
        self.begun += 1
        try:
            await asyncio.sleep(self.seconds[number] if number < len(self.seconds) else 0.001)
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        self.ended.append(number)
        return number


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def known(kind: str, seconds: float = 0.001) -> None:
    """Lets patience know how long requests of a kind take."""
    pace = patience._paces.setdefault(kind, patience._Pace())
    pace.took.extend([seconds] * 100)


def run(main: Callable[[], Awaitable[object]]) -> object:
    return asyncio.run(main())  # type: ignore[arg-type]


def test_a_slow_request_is_overtaken_by_a_second_one_and_cancelled() -> None:
    known("s read")
    asked = Requests(60.0)

    async def main() -> int:
        result = await patiently_async("s read", asked)
        await settled()
        return result

    assert run(main) == 1
    assert (asked.begun, asked.ended, asked.cancelled) == (2, [1], [0])
    assert patience.troubles == {"retries": 0, "hedges": 1, "timeouts": 0}


def test_the_first_of_two_is_taken_where_it_is_faster_after_all() -> None:
    known("s read")
    asked = Requests(0.4, 60.0)

    async def main() -> int:
        result = await patiently_async("s read", asked)
        await settled()
        return result

    assert run(main) == 0
    assert asked.cancelled == [1]


def test_a_second_one_that_is_slow_or_fails_is_followed_by_a_third_and_no_fourth() -> None:
    known("s read")
    patience._paces["s read"].spare = 10.0
    asked = Requests(60.0, 60.0)
    assert run(lambda: patiently_async("s read", asked)) == 2
    assert patience.troubles == {"retries": 0, "hedges": 2, "timeouts": 0}
    begun = []

    async def ask() -> str:
        begun.append(len(begun))
        if len(begun) == 2:
            raise ConnectionResetError
        await asyncio.sleep(60.0 if len(begun) == 1 else 0.0)
        return "third"

    assert run(lambda: patiently_async("s read", ask)) == "third"
    stuck = Requests(*[60.0] * 3)
    assert run(lambda: patiently_async("s read", stuck, limit=1.5)) == 3
    assert patience.troubles == {"retries": 1, "hedges": 6, "timeouts": 1}


def test_requests_that_failed_make_room_for_others_beside_one_that_hangs() -> None:
    known("s read")
    patience._paces["s read"].spare = 10.0
    begun = []

    async def ask() -> str:
        begun.append(len(begun))
        if len(begun) in (2, 3):
            raise ConnectionResetError
        await asyncio.sleep(60.0 if len(begun) == 1 else 0.0)
        return "fourth"

    assert run(lambda: patiently_async("s read", ask, limit=5.0)) == "fourth"
    assert patience.troubles == {"retries": 0, "hedges": 3, "timeouts": 0}


def test_what_cannot_be_done_twice_is_begun_once() -> None:
    known("s create")
    asked = Requests(0.6)
    assert run(lambda: patiently_async("s create", asked, repeatable=False)) == 0
    assert asked.begun == 1


def test_a_request_of_a_usual_length_is_begun_once() -> None:
    known("s read", 0.3)
    asked = Requests(0.9)
    assert run(lambda: patiently_async("s read", asked)) == 0
    assert asked.begun == 1


def test_while_all_are_slow_at_most_a_tenth_is_begun_twice() -> None:
    known("s read")
    asked = Requests(*[0.6] * 1000)

    async def main() -> None:
        await asyncio.gather(*(patiently_async("s read", asked) for _ in range(200)))

    run(main)
    assert patience.troubles["hedges"] <= 0.1 * 200 + 3
    assert asked.begun == 200 + patience.troubles["hedges"]


def test_a_request_that_never_ends_is_cancelled_and_made_again() -> None:
    asked = Requests(60.0, 60.0)

    async def main() -> int:
        result = await patiently_async("s create", asked, repeatable=False, limit=0.1)
        await settled()
        return result

    assert run(main) == 2
    assert asked.cancelled == [0, 1]
    assert patience.troubles == {"retries": 2, "hedges": 0, "timeouts": 2}


def test_a_failure_of_one_of_two_waits_for_the_other() -> None:
    known("s read")
    begun = []

    async def ask() -> str:
        begun.append(len(begun))
        if len(begun) == 1:
            await asyncio.sleep(0.6)
            return "first"
        raise ConnectionResetError

    assert run(lambda: patiently_async("s read", ask)) == "first"
    assert len(begun) in (2, 3)
    assert patience.troubles["retries"] == 0


def test_when_both_fail_they_are_made_again_and_a_permanent_answer_counts_at_once() -> None:
    known("s read")
    begun = []

    async def ask() -> str:
        begun.append(len(begun))
        if len(begun) == 1:
            await asyncio.sleep(0.4)
        if len(begun) <= 2:
            raise ConnectionResetError
        raise FileNotFoundError("a.jpg")

    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        run(lambda: patiently_async("s read", ask))
    assert len(begun) == 3


def test_a_request_within_a_request_is_watched_over_once() -> None:
    inner = []

    async def ask() -> str:
        inner.append(len(inner))
        raise ConnectionResetError

    async def outer() -> str:
        return await patiently_async("s get", ask)

    patience.configure(0.3)
    with pytest.raises(patience.UnavailableError) as caught:
        run(lambda: patiently_async("s body", outer))
    assert f"after {len(inner)} attempts" in str(caught.value)
    assert patience.troubles["retries"] <= len(inner)


def test_a_cancelled_request_is_not_made_again() -> None:
    asked = Requests(60.0)

    async def main() -> None:
        task = asyncio.ensure_future(patiently_async("s read", asked))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await settled()

    run(main)
    assert (asked.begun, asked.cancelled) == (1, [0])


def test_a_store_that_never_answered_is_given_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_CONTACT", 0.1)

    async def refuse() -> None:
        raise ConnectionRefusedError

    begin = time.monotonic()
    with pytest.raises(patience.UnavailableError):
        run(lambda: patiently_async("new read", refuse))
    assert time.monotonic() - begin < 20

    async def missing() -> None:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        run(lambda: patiently_async("new read", missing))
    assert patience._Tries(is_transient, "new")._deadline == 300, "an answer of any kind shows that the store is there"


def test_large_bodies_get_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    async def race(call: object, pace: object, limit: float, repeatable: bool) -> None:
        limits.append(limit)

    monkeypatch.setattr(patience, "_race", race)
    patience._reached.add("s")
    for size in (0, 20_000_000, 500_000_000):
        run(lambda: patiently_async("s write", Requests(), size=size))  # noqa: B023
    assert limits == [60.0, 80.0, 100.0]


def test_nothing_is_written_to_the_terminal_when_something_is_tried_again() -> None:
    program = (
        "from pipeline import patience\n"
        "errors = [TimeoutError(), ConnectionResetError()]\n"
        "def call():\n"
        "    if errors: raise errors.pop()\n"
        "    return 7\n"
        "print(patience.patiently(call), patience.troubles)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout, done.stderr) == ("7 {'retries': 2, 'hedges': 0, 'timeouts': 0}\n", "")
