"""File systems of stores, whose requests are watched over by patience: the one user of fsspec, gcsfs and s3fs."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

# gcsfs asks for a bucket's storage layout over gRPC before each first access, which takes a minute and more where that
# port is closed. Set the variable to "true" yourself to use hierarchical namespaces.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec

from pipeline import patience
from pipeline.wording import without_secrets

HEDGED_BYTES = 8_000_000
"""Larger bodies are sent once, however slow."""

SENT_AT_ONCE = 500_000
"""Larger bodies are sent part by part."""

READ_BYTES = 200_000_000
"""How much a read may take in whose size is not known: it gets the time for as much."""

_LOCAL = ("", "file", "local")
_SAME = {"gcs": "gs", "s3a": "s3"}
_SECRET = re.compile(
    r"(?i)(^|_|-)(key|secret|password|passwd|pwd|token|credentials?|authorization|connection_string|aws_access_key_id)$"
    r"|[a-z](Key|Secret|Password|Token|Credentials?)$"
)
_TOKENS = re.compile(
    r"anon|google_default|cloud|cache|~?/.*|\.{1,2}/.*|.*\.json"
)  # ways to gcsfs's token, or where it lies

# It tells whole tracebacks of requests that fail, which are told by our own errors.
_talkative = logging.getLogger("gcsfs")
if "GCSFS_DEBUG" not in os.environ and _talkative.level == logging.NOTSET:
    _talkative.setLevel(logging.CRITICAL + 1)

_options: dict[str, dict[str, Any]] = {}
_anonymous: set[str] = set()  # schemes for which no credentials were found
_lock = threading.Lock()


def configure(options: Sequence[str]) -> None:
    """Sets the options of file systems, of this process, in place of those before.

    Args:
        options: "SCHEME.NAME=VALUE" each, such as "gs.project=audits" or "s3.requester_pays=true"; a value is a number,
            true, false, null, JSON, or else text.

    Raises:
        ValueError: one has another form, or gives a secret.
    """
    found = parse_options(options)
    if found != _options:
        _options.clear()
        _options.update(found)
        _file_system.cache_clear()


def parse_options(options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of `configure` by scheme and name, without setting them.

    Raises:
        ValueError: one has another form, or gives a secret.
    """
    found: dict[str, dict[str, Any]] = {}
    for option in options:
        scheme, name, value = _parse(option)
        found.setdefault(scheme, {})[name] = value
    return found


def scheme_of(uri: str) -> str:
    """What stands before "://"; nothing for a local path."""
    return uri.split("://", 1)[0] if "://" in uri else ""


def is_local(uri: str) -> bool:
    """Whether a uri is a path of this machine."""
    return scheme_of(uri) in _LOCAL


def _scheme_of_store(store: Any) -> str:
    protocol = store.protocol if isinstance(store.protocol, str) else store.protocol[0]
    return _SAME.get(protocol, protocol)


def open_store(uri: str) -> tuple[Any, str]:
    """The file system of a uri, and the path inside it.

    Raises:
        OSError: there is no store of that scheme, or it cannot be made with these options.
    """
    scheme = scheme_of(uri) or "file"
    with _lock:
        store = _file_system(_SAME.get(scheme, scheme))
    path = store._strip_protocol(uri)
    return store, os.path.abspath(path) if is_local(uri) else path  # noqa: PTH100 - one spelling of a/../b and ./b


def holds_secret(uri: str) -> bool:
    """Whether a uri gives a password, or a signature by which whoever reads it may read the object."""
    query = "&" + uri.partition("?")[2] if "://" in uri else ""
    return bool(re.match(r"[^/]*://[^/@]*:[^/@]*@", uri)) or without_secrets(query) != query


@contextlib.contextmanager
def told(uri: str) -> Iterator[None]:
    """Makes one kind of error of what the clients of stores raise: an OSError that names the uri, without secrets."""
    try:
        yield
    except Exception as error:
        translated = error if is_local(uri) else _translated(error, uri)
        if translated is error:
            raise
        raise translated from error


def call(store: Any, verb: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of a file system patiently."""
    scheme = _scheme_of_store(store)
    if scheme in _WATCHED:
        return getattr(store, verb)(*args, **kwargs)
    limit = None if verb in _SINGLE else 3600.0  # others may make many requests
    if getattr(store, "async_impl", False):
        ask = getattr(store, f"_{verb}")
        return fsspec.asyn.sync(
            store.loop,
            patience.patiently_async,
            f"{scheme} {verb}",
            lambda: ask(*args, **kwargs),
            repeatable=verb in _READS,
            size=READ_BYTES,
            limit=limit,
        )
    return patience.patiently(lambda: getattr(store, verb)(*args, **kwargs), limit=limit or patience.ATTEMPT)


def create(store: Any, verb: str, *args: Any, is_ours: Callable[[], bool]) -> bool:
    """Calls a writing method of a file system so that of several callers at once only one succeeds.

    Args:
        store: the file system.
        verb: "pipe_file" or "put_file".
        args: what the method takes.
        is_ours: whether what is there has the content that was to be written; for stores that cannot do it at once.

    Returns:
        Whether this call succeeded.
    """
    scheme = _scheme_of_store(store)
    try:
        if scheme in _MARKS:
            return _create_marked(store, scheme, verb, *args)
        call(store, verb, *args, mode="create")
    except Exception as error:
        if not _says_exists(error):
            raise
        return False
    return scheme == "memory" or is_ours()  # elsewhere it may be looked first, and then written


def _create_marked(store: Any, scheme: str, verb: str, *args: Any) -> bool:
    """Creates an object that tells who made it.

    A first attempt may get through though its answer does not, and the second, which aiohttp makes by itself where a
    connection broke, then meets our own object.
    """
    maker = uuid.uuid4().hex
    write = getattr(store, f"_{verb}")
    marks = {_MARKS[scheme]: {"maker": maker}}
    target = args[0] if verb == "pipe_file" else args[1]

    async def attempt() -> bool:
        try:
            await write(*args, mode="create", **marks)
        except Exception as error:
            if not _says_exists(error):
                raise
            return (await _marks_of(store, target)).get("maker") == maker
        return True

    return fsspec.asyn.sync(store.loop, patience.patiently_async, f"{scheme} create", attempt, size=READ_BYTES)


async def _marks_of(store: Any, path: str) -> dict[str, str]:
    if _scheme_of_store(store) == "s3":
        bucket, key, _ = store.split_path(path)
        return (await store._call_s3("head_object", Bucket=bucket, Key=key))["Metadata"]
    return (await store._info(path)).get("metadata", {})


def _says_exists(error: BaseException) -> bool:
    return isinstance(error, FileExistsError) or patience.http_status(error) == 412


_MARKS = {"gs": "metadata", "s3": "Metadata"}  # stores that create an object at once, and what they call notes on it
_WATCHED = (*_LOCAL, "gs", "s3", "memory")  # each of whose requests is watched over, or that make none
_READS = ("cat_file", "info")
_SINGLE = (*_READS, "pipe_file", "rm_file")


def _parse(option: str) -> tuple[str, str, Any]:
    word = re.fullmatch(r"([a-z][a-z0-9+-]*)\.([A-Za-z_]\w*)=(.*)", option, re.DOTALL)
    if word is None:
        shown = option.partition("=")[0]
        raise ValueError(f"an option of a store is SCHEME.NAME=VALUE, such as gs.project=audits, not {shown!r}")
    scheme, name, text = word.groups()
    value = _value(text)
    scheme = _SAME.get(scheme, scheme)
    secret = _secret_in(scheme, name, value)
    if secret is not None:
        raise ValueError(
            f"{scheme}.{secret} is a secret, and options are stored and travel with the job: give it by the store's "
            "own means on each machine, such as GOOGLE_APPLICATION_CREDENTIALS, AWS_PROFILE, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or the machine's service account"
        )
    return scheme, name, value


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("null", "none", "~"):
        return None
    try:
        return json.loads(text, parse_constant=str)
    except ValueError:
        return text


def _secret_in(scheme: str, name: str, value: Any) -> str | None:
    """The name of a secret within an option; None if there is none."""
    if isinstance(value, dict):
        return next(
            (f"{name}.{found}" for key, inner in value.items() if (found := _secret_in(scheme, key, inner))), None
        )
    if isinstance(value, str) and holds_secret(value):
        return name
    is_way = scheme == "gs" and name == "token" and isinstance(value, str) and _TOKENS.fullmatch(value)
    return name if _SECRET.search(name) and not is_way and value not in (None, False, True) else None


@lru_cache(maxsize=16)
def _file_system(scheme: str) -> Any:
    options = _options.get(scheme, {})
    try:
        if scheme == "gs":
            return _make_gcs(options)
        if scheme == "s3":
            return _make_s3(options)
        return fsspec.filesystem(scheme, **options)
    except (ValueError, ImportError, TypeError) as error:
        hint = " (install beamcam[s3])" if scheme == "s3" and isinstance(error, ImportError) else ""
        raise OSError(errno.EPROTONOSUPPORT, f"there is no store for {scheme}:// here: {error}{hint}") from error


def _make_gcs(options: dict[str, Any]) -> Any:
    import aiohttp

    defaults: dict[str, Any] = {
        "use_listings_cache": False,
        "requests_timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30),
    }
    if "token" not in {**fsspec.config.conf.get("gs", {}), **options}:
        defaults |= _google_credentials(str(options.get("endpoint_url", "")))
    return _gcs_class()(**(defaults | options))


def _google_credentials(endpoint: str) -> dict[str, Any]:
    """What gcsfs is to be told: the default credentials, as all of Google's libraries find them, or none.

    gcsfs by itself asks more places, for 17 seconds where there are none, and takes none at all where the project asked
    for is not that of the credentials.
    """
    import google.auth

    if os.environ.get("STORAGE_EMULATOR_HOST") or endpoint.startswith("http://"):
        return {"token": "anon"}  # an emulator, as Google's own clients take it; a token goes to nobody unencrypted
    try:
        token, project = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.full_control"])
    except google.auth.exceptions.DefaultCredentialsError:
        _anonymous.add("gs")
        return {"token": "anon"}
    return {"token": token, "project": project}


def _make_s3(options: dict[str, Any]) -> Any:
    config = {
        "max_pool_connections": 64,
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1},
    }
    defaults = {"use_listings_cache": False}
    return _s3_class()(**(defaults | options | {"config_kwargs": config | options.get("config_kwargs", {})}))


_BYTES = (bytes, bytearray, memoryview)


@lru_cache(maxsize=1)
def _gcs_class() -> type:
    # Who has imported gcsfs before us got the class that asks for layouts under its usual name.
    asks = os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"].lower() in ("true", "1")
    GCSFileSystem: Any = importlib.import_module("gcsfs" if asks else "gcsfs.core").GCSFileSystem

    once = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)  # without retries of its own

    class PatientGCS(GCSFileSystem):
        """gcsfs, whose requests pass through patience one by one."""

        async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
            data = kwargs.pop("data", None)
            size = len(data) if isinstance(data, _BYTES) else HEDGED_BYTES + 1 if data else 0
            is_upload = kwargs.get("uploadType") == "multipart" and "ifGenerationMatch" not in kwargs
            is_body = path.startswith("http")

            def ask() -> Any:
                # A file is sent in parts; bytes would be sent at once, and hold up all other requests meanwhile.
                body = io.BytesIO(data) if isinstance(data, _BYTES) and size > SENT_AT_ONCE else data
                return once(self, method, path, *args, data=body, **kwargs)

            return await patience.patiently_async(
                f"gs {method} {'body' if is_body else path}",
                ask,
                repeatable=method == "GET" or (is_upload and size <= HEDGED_BYTES),
                size=READ_BYTES if is_body and method == "GET" else size,
            )

    return PatientGCS


@lru_cache(maxsize=1)
def _s3_class() -> type:
    from s3fs import S3FileSystem

    class PatientS3(S3FileSystem):
        """s3fs, whose requests pass through patience one by one, the bodies that it reads included."""

        retries = 1  # its own

        async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
            ask: Callable[..., Any] = super()._call_s3
            size = len(kwargs.get("Body") or b"")
            is_upload = method == "put_object" and "IfNoneMatch" not in kwargs
            return await patience.patiently_async(
                f"s3 {method}",
                lambda: ask(method, *args, **kwargs),
                repeatable=method in _S3_READS or (is_upload and size <= HEDGED_BYTES),
                size=size,
            )

        call_s3 = fsspec.asyn.sync_wrapper(_call_s3)

        async def _cat_file(self, path: str, version_id: Any = None, start: Any = None, end: Any = None) -> bytes:
            # Without a range it would ask for the size first.
            read: Callable[..., Any] = super()._cat_file
            return await patience.patiently_async(
                "s3 body", lambda: read(path, version_id, start or 0, end), size=READ_BYTES
            )

    return PatientS3


_S3_READS = {"get_object", "head_object", "head_bucket", "list_objects_v2"}


def _translated(error: Exception, uri: str) -> OSError:
    """An error of the standard library's kinds, in one line."""
    status, name = patience.http_status(error), type(error).__name__
    told: OSError
    if isinstance(error, patience.UnavailableError):
        told = patience.UnavailableError(f"{uri}: {_reason(error)}")
    elif isinstance(error, FileNotFoundError) or status == 404:
        told = FileNotFoundError(errno.ENOENT, "there is no such file, folder or bucket", uri)
    elif _says_exists(error):
        told = FileExistsError(errno.EEXIST, "there is one already", uri)
    elif re.search("requester pays|UserProjectMissing", str(error), re.IGNORECASE):
        told = PermissionError(errno.EACCES, f"whoever reads this bucket pays for it: {_pays(uri)}", uri)
    elif status in (401, 403) or isinstance(error, PermissionError) or name in _UNKNOWN or "Forbidden" in str(error):
        told = PermissionError(errno.EACCES, f"the store does not permit it{_hint(uri, name)} ({_reason(error)})", uri)
    elif not isinstance(error, OSError) or error.errno is None:
        told = OSError(f"{uri}: {name}: {_reason(error)}")
    else:
        told = error if error.filename == uri else OSError(error.errno, _reason(error), uri)
    return told


_UNKNOWN = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"}


def _hint(uri: str, name: str) -> str:
    scheme = _SAME.get(scheme_of(uri), scheme_of(uri))
    if scheme == "gs" and "gs" in _anonymous:
        return (
            ", and no Google credentials were found here: `gcloud auth application-default login`, "
            "GOOGLE_APPLICATION_CREDENTIALS, or a service account of the machine"
        )
    if scheme == "s3" and name in _UNKNOWN:
        return (
            ", and no AWS credentials were found here: AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "a role of the machine, or s3.anon=true for a public bucket"
        )
    return ""


def _pays(uri: str) -> str:
    scheme = _SAME.get(scheme_of(uri), scheme_of(uri))
    return f"--storage-option {scheme}.requester_pays={'PROJECT' if scheme == 'gs' else 'true'}"


def _reason(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return without_secrets((text.strip().splitlines() or [""])[-1])
