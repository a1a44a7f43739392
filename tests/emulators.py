"""Object stores for the tests, each a process of its own: Google Cloud Storage (gcp-storage-emulator) and S3 (moto).

    with running_gcs() as env: ...  # env: the variables by which gs://bucket/... is that emulator, for subprocesses too

As fixtures, `gcs` and `s3` give a prefix that no other test has. `python tests/emulators.py gcs` is the process itself.

What Google's store does and the emulator does not is added here, as Google documents it: several requests at a time,
connections that stay open, pages of a listing (maxResults, pageToken) and its bounds (startOffset, endOffset),
ifGenerationMatch, 416 for a range behind the end, uploads that end in a carriage return.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import pytest

BUCKET = "bucket"
NEEDED = {"gcs": ("gcp_storage_emulator", "gcsfs"), "s3": ("moto", "flask", "flask_cors", "s3fs")}
"""The packages without which there is no such store here."""

_ALWAYS = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@contextlib.contextmanager
def running_gcs(bucket: str = BUCKET) -> Iterator[dict[str, str]]:
    """A Google Cloud Storage with one bucket; yields the variables of the environment that lead to it."""
    with _running("gcs", bucket) as url:
        yield {
            **_ALWAYS,
            "STORAGE_EMULATOR_HOST": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GS_TOKEN": "anon",
        }


@contextlib.contextmanager
def running_s3(bucket: str = BUCKET) -> Iterator[dict[str, str]]:
    """An S3 with one bucket; yields the variables of the environment that lead to it."""
    with _running("s3", bucket) as url:
        urllib.request.urlopen(urllib.request.Request(f"{url}/{bucket}", method="PUT")).close()
        yield {
            **_ALWAYS,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }


@pytest.fixture(scope="session")
def gcs_environment() -> Iterator[dict[str, str]]:
    """The variables that lead to the emulator, set in this process as well."""
    with _skipped_without("gcs"), running_gcs() as env, _environment(env):
        yield env


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """The variables that lead to the emulator, set in this process as well."""
    with _skipped_without("s3"), running_s3() as env, _environment(env):
        yield env


@pytest.fixture
def gcs(gcs_environment: dict[str, str]) -> str:
    """A prefix on a Google Cloud Storage, with nothing below it."""
    return f"gs://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def s3(s3_environment: dict[str, str]) -> str:
    """A prefix on an S3, with nothing below it."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@contextlib.contextmanager
def _running(store: str, bucket: str) -> Iterator[str]:
    command = [sys.executable, __file__, store, bucket]
    # The emulator ends when its input does, so also when this process is killed.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, f"the emulator of {store} did not start"
            yield url
        finally:
            process.stdin.close()
            process.wait(20)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    import fsspec.config

    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        if "FSSPEC_GS_TOKEN" in variables:  # fsspec has read its variables when it was imported
            patch.setitem(fsspec.config.conf, "gs", {"token": variables["FSSPEC_GS_TOKEN"]})
        yield


@contextlib.contextmanager
def _skipped_without(store: str) -> Iterator[None]:
    missing = [package for package in NEEDED[store] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"no emulator of {store}: {', '.join(missing)} missing")
    yield


# The processes


def _serve_gcs(bucket: str) -> str:
    import logging

    from gcp_storage_emulator import server
    from gcp_storage_emulator.handlers import buckets, objects
    from gcp_storage_emulator.storage import Storage

    logging.disable(logging.CRITICAL)
    Storage._write_config_to_file = lambda self: (
        None
    )  # everything is in memory; it would cost each write a dump of all names
    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(bucket, storage)
    lock = threading.RLock()  # one of these handlers calls another
    for name in ("insert", "upload_partial", "delete", "xml_upload"):
        setattr(objects, name, _with_preconditions(getattr(objects, name), lock))
    objects.ls, objects.download = _with_pages(objects.ls), _with_416(objects.download)
    server._read_data = _with_exact_parts(server._read_data)
    server.HANDLERS = tuple((pattern, _renewed(handlers, objects)) for pattern, handlers in server.HANDLERS)
    handler = type(
        "Handler", (server.RequestHandler,), {"protocol_version": "HTTP/1.1", "disable_nagle_algorithm": True}
    )
    return _serve(functools.partial(handler, storage))


def _renewed(handlers: dict[str, Callable], module: Any) -> dict[str, Callable]:
    ours = {method: call for method, call in handlers.items() if call.__module__ == module.__name__}  # not of buckets
    return handlers | {method: getattr(module, call.__name__) for method, call in ours.items()}


def _with_preconditions(handle: Callable, lock: Any) -> Callable:
    """A writing handler that looks at ifGenerationMatch first (0: there must be no object), one request at a time."""

    @functools.wraps(handle)
    def checked(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        wanted = request.query.get("ifGenerationMatch")
        name = request.params.get("object_id") or (request.query.get("name") or [None])[0]
        data = request.data  # read before the lock is taken: a slow sender must not hold up the others
        if name is None and isinstance(data, dict):
            name = data.get("meta", data).get("name")
        with lock:
            there = storage.objects.get(request.params["bucket_name"], {}).get(name, {}).get("generation", "0")
            if wanted and there != wanted[0]:
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "At least one of the pre-conditions did not hold."}})
                return
            handle(request, response, storage, *args, **kwargs)

    return checked


def _with_pages(handle: Callable) -> Callable:
    """Listing that heeds startOffset, endOffset, maxResults and pageToken (here: the first name not told yet)."""

    @functools.wraps(handle)
    def paged(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        handle(request, response, storage, *args, **kwargs)
        if response.status != HTTPStatus.OK:
            return
        query = {name: values[0] for name, values in request.query.items()}
        listing = json.loads(response._content)
        found = {item["name"]: item for item in listing["items"]} | dict.fromkeys(listing["prefixes"])
        first, end = max(query.get("startOffset", ""), query.get("pageToken", "")), query.get("endOffset")
        names = sorted(
            (name for name in found if name >= first and (end is None or name < end)), key=lambda name: name.encode()
        )
        rows = min(int(query.get("maxResults", 1000)), 1000)
        page = names[:rows]
        told = {
            "kind": listing["kind"],
            "items": [found[name] for name in page if found[name]],
            "prefixes": [name for name in page if not found[name]],
        }
        response.json(told | ({"nextPageToken": names[rows]} if len(names) > rows else {}))

    return paged


def _with_416(handle: Callable) -> Callable:
    @functools.wraps(handle)
    def ranged(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
        handle(request, response, storage, *args, **kwargs)
        if response.status == HTTPStatus.PARTIAL_CONTENT and not response._content:
            response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            response._content = "The requested range cannot be satisfied."

    return ranged


def _with_exact_parts(read: Callable) -> Callable:
    """Uploads of two parts, split as they are: Python's parser of e-mail, which the emulator uses, drops a last \\r."""

    @functools.wraps(read)
    def split(request_handler: Any, query: Any) -> Any:
        kind = request_handler.headers.get("Content-Type") or ""
        if not kind.startswith("multipart/related"):
            return read(request_handler, query)
        raw = request_handler.rfile.read(int(request_handler.headers["Content-Length"]))
        boundary = b"--" + kind.split("boundary=", 1)[1].split(";")[0].strip("\"' ").encode()
        _, first, rest = raw.split(boundary, 2)
        line = b"\r\n" if first.endswith(b"\r\n") else b"\n"
        _, meta = first.strip().split(2 * line, 1)
        head, content = rest.removeprefix(line).split(2 * line, 1)
        content = content[: content.rindex(line + boundary)]
        named = re.search(rb"(?im)^content-type:\s*(\S+)", head)
        return {"meta": json.loads(meta), "content": content, "content-type": named[1].decode() if named else None}

    return split


def _serve(handler: Callable) -> str:
    from http.server import ThreadingHTTPServer

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that hang up are no news."""

    serving = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{serving.server_address[1]}"


def _serve_s3(bucket: str) -> str:
    import logging

    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    serving = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    serving.start()
    return f"http://127.0.0.1:{serving.get_host_and_port()[1]}"


if __name__ == "__main__":
    print({"gcs": _serve_gcs, "s3": _serve_s3}[sys.argv[1]](sys.argv[2]), flush=True)
    sys.stdin.read()
