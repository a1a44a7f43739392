"""What is logged, and how: lines for people, or one JSON object a line for services; both say which run and shard.

In JSON, `time`, `severity`, `message` and `stack_trace` have the names that Cloud Logging gives a meaning of their own.
"""

from __future__ import annotations

import contextvars
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from pipeline.wording import SafeFormatter, safe_lines, show_traceback, shown

FORMATS = ("text", "json")

_SEVERITIES = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}


@dataclass(frozen=True)
class LogSettings:
    """How a process logs; travels to workers."""

    format: str = "text"  # or "json"
    level: int = logging.WARNING  # on this machine; elsewhere the engine's own options decide


What = tuple[str | None, int | None]
"""The run and the shard that a thread works on."""

_about: contextvars.ContextVar[What] = contextvars.ContextVar("beamcam_about")
_state: dict[str, Any] = {"settings": None, "about": (None, None)}  # of this process


def start(settings: LogSettings) -> None:
    """Sets up the logs of a process that runs a command; handlers of other kinds than Python's plain one stay."""
    _state.update(settings=settings, about=(None, None))
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(_formatter(settings))
    # Whoever logs on the root logger before us, as Beam's import does, leaves a plain handler there.
    others = [other for other in root.handlers if type(other) is not logging.StreamHandler]
    if not others or len(others) < len(root.handlers):
        root.handlers[:] = [*others, handler]
        root.setLevel(settings.level)
    _hide_arguments()
    sys.excepthook = show_traceback
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _tell_end_of_thread
    if settings.format == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_traceback


def current() -> LogSettings | None:
    """How this process logs; None if it runs no command of ours, so that its logs are none of our business."""
    return _state["settings"]


def is_json() -> bool:
    """Whether this process writes JSON."""
    return (current() or LogSettings()).format == "json"


def name_run(run: str) -> None:
    """Says which run this process works on from now on."""
    _state["about"] = (run, None)


class about:  # noqa: N801 - read as a word: `with about(run, shard):`, several times for each image, hence no generator
    """Says which shard this thread works on while the block runs."""

    __slots__ = ("_token", "_what")

    def __init__(self, run: str, shard: int):
        self._what = (run, shard)

    def __enter__(self) -> None:
        self._token = _about.set(self._what)

    def __exit__(self, *_: object) -> None:
        _about.reset(self._token)


def adopt(settings: LogSettings | None, run: str, is_local: bool) -> None:
    """Sets up the logs of a process in which an engine runs our workers, unless it runs the command itself.

    The engine's own channel keeps its form and its level, since what it makes of each line is the engine's business:
    there, lines begin with the run and the shard. What such a process writes by itself is as the command's logs are.

    Args:
        settings: of the process that runs the command; None if that is no command of ours, but somebody's own program,
            which may be this very process.
        run: the run's uri.
        is_local: whether the process writes to the command's own terminal: then nothing goes through the engine, which
            would show it a second time.
    """
    name_run(run)
    if _state["settings"] is not None:
        return
    root = logging.getLogger()
    channels = [handler for handler in root.handlers if type(handler).__module__.startswith("apache_beam.")]
    streams = [handler for handler in root.handlers if isinstance(handler, logging.StreamHandler)]
    if settings is not None:
        _state["settings"] = settings
        _hide_arguments()
        if is_local or not channels:
            replaced, streams, channels = [*channels, *streams], [logging.StreamHandler()], []
            root.handlers[:] = [*(handler for handler in root.handlers if handler not in replaced), *streams]
            root.setLevel(settings.level)
        for stream in streams:
            stream.setFormatter(_formatter(settings))
    for channel in channels:
        if not isinstance(channel.formatter, TextFormatter):
            channel.setFormatter(TextFormatter("%(message)s", tell_run=True))
            channel.addFilter(_take_trace)


def write(stream: TextIO, line: str, /, severity: str = "INFO", **fields: Any) -> None:
    """Writes a line of a command's own: as it is, or as a JSON object with further fields."""
    stream.write((_entry(time.time(), severity, shown(line), **fields) if is_json() else shown(line)) + "\n")
    stream.flush()


class TextFormatter(SafeFormatter):
    """Lines that begin with the shard that they are about.

    Args:
        form: of the line, see `logging.Formatter`.
        tell_run: whether those about no shard begin with the run.
    """

    def __init__(self, form: str, tell_run: bool = False):
        super().__init__(form)
        self._tell_run = tell_run

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line of a record."""
        run, shard = _about.get(_state["about"])
        if shard is not None:
            record.message = f"[{run} shard {shard}] {record.message}"
        elif run is not None and self._tell_run:
            record.message = f"[{run}] {record.message}"
        return super().formatMessage(record)


class JsonFormatter(SafeFormatter):
    """Records as JSON objects, a line each; what `extra={"fields": {...}}` says becomes fields of them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        severity = record.levelname if record.levelname in _SEVERITIES else "DEFAULT"
        fields: dict[str, Any] = {"logger": record.name} | _fields_of(record)
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = type(record.exc_info[1]).__name__
            fields["stack_trace"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["stack_trace"] = safe_lines(record.exc_text)
        return _entry(record.created, severity, shown(record.getMessage()), **fields)


def worker_name() -> str:
    """This process, as markers and logs tell it: "host/number"."""
    return f"{socket.gethostname()}/{os.getpid()}"


def _formatter(settings: LogSettings) -> logging.Formatter:
    return JsonFormatter() if settings.format == "json" else TextFormatter("%(levelname)s %(message)s")


def _hide_arguments() -> None:
    """A record that cannot be formatted is not told: logging would print its arguments as they are, with secrets."""
    logging.raiseExceptions = False


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What a record has as `fields`; a library may mean something else by the word."""
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) and all(isinstance(name, str) for name in fields) else {}


def _entry(at: float, severity: str, message: str, /, **fields: Any) -> str:
    """One object; fields that are None are left out, and their text is made harmless like the message."""
    run, shard = _about.get(_state["about"])
    told = {"run": run, "shard": shard, "worker": worker_name()} | fields
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}Z"
    harmless = {name: _harmless(value) for name, value in told.items() if value is not None}
    content = {"time": stamp, "severity": severity, "message": message} | harmless
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _harmless(value: Any) -> Any:
    if isinstance(value, dict):
        return {shown(str(name)): _harmless(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_harmless(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no others
    return value if value is None or isinstance(value, int) else safe_lines(str(value))


def _take_trace(record: logging.LogRecord) -> bool:
    """Puts the traceback into the text of a record, without secrets: Beam would send it along as it is."""
    if record.exc_info:
        record.exc_text = safe_lines("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        record.exc_info = None
    return True


def _log_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    stack = safe_lines("".join(traceback.format_exception(kind, error, trace)))
    write(sys.stderr, f"{kind.__name__}: {error}", "CRITICAL", error=kind.__name__, stack_trace=stack)


def _tell_end_of_thread(what: threading.ExceptHookArgs) -> None:
    """An error that ends a thread is told like one that ends the process; SystemExit does so in silence."""
    if what.exc_type is not SystemExit and what.exc_value is not None:
        sys.excepthook(what.exc_type, what.exc_value, what.exc_traceback)
