"""Logs: what each line says of its run and shard, in both forms, and what must not be in it."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.logs import JsonFormatter, LogSettings, TextFormatter, worker_name

ROOT = Path(__file__).parent.parent.parent
SECRET = "gs://user:hunter2@bucket/x?sig=abcdef"

logger = logging.getLogger("pipeline.somewhere")


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has no logs yet."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setitem(logs._state, "settings", None)
    monkeypatch.setitem(logs._state, "about", (None, None))
    level = root.level
    yield
    root.setLevel(level)
    logging.captureWarnings(False)


class EngineHandler(logging.Handler):
    """What Beam sends to the runner: its own fields of a record, and the record as its formatter has it."""

    __module__ = "apache_beam.runners.worker.log_handler"

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.sent.append((self.format(record), record.exc_info))


def fail() -> None:
    raise ValueError(f"no way to {SECRET}\nand more")


def log_failure() -> None:
    try:
        fail()
    except ValueError:
        logger.exception("it went wrong with %s", SECRET)


def logged(formatter: logging.Formatter) -> io.StringIO:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    return stream


def test_a_line_of_json_says_what_services_ask_for() -> None:
    stream = logged(JsonFormatter())
    logs.name_run("gs://bucket/run")
    logger.info("%d records", 12, extra={"fields": {"records": 12, "kinds": {"a:B": 1}, "nothing": None}})
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told.pop("time"))
    assert told == {
        "severity": "INFO", "message": "12 records", "run": "gs://bucket/run", "worker": worker_name(),
        "logger": "pipeline.somewhere", "records": 12, "kinds": {"a:B": 1},
    }  # fmt: skip


def test_an_error_is_one_line_of_json_with_its_traceback_and_without_secrets() -> None:
    stream = logged(JsonFormatter())
    log_failure()
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert (told["severity"], told["error"]) == ("ERROR", "ValueError")
    assert told["stack_trace"].splitlines()[0] == "Traceback (most recent call last):"
    assert "in fail" in told["stack_trace"]
    assert "hunter2" not in line
    assert "abcdef" not in line


def test_fields_are_as_harmless_as_messages() -> None:
    stream = logged(JsonFormatter())
    logger.info("x", extra={"fields": {"uri": f"\x1b[31m{SECRET}", "deep": {"\u202egpj": [SECRET]}}})
    text = stream.getvalue()
    assert "hunter2" not in text
    assert "abcdef" not in text
    assert json.loads(text)["deep"] == {r"\u202egpj": ["gs://***@bucket/x?sig=***"]}
    assert "\x1b" not in json.loads(text)["uri"]


def test_what_json_has_no_word_for_is_null_or_harmless_text() -> None:
    stream = logged(JsonFormatter())
    numbers = {"nan": float("nan"), "deep": [float("inf"), 1.5, True], "bytes": b"password=hunter2\n"}
    logger.info("x", extra={"fields": numbers | {"error": OSError(SECRET)}})
    told = json.loads(stream.getvalue(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert told["nan"] is None
    assert told["deep"] == [None, 1.5, True]
    assert told["error"] == "gs://***@bucket/x?sig=***"
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("fields", ["text", ["a"], {3: "a"}, None])
def test_what_a_library_means_by_fields_does_not_stop_its_line(fields: object) -> None:
    stream = logged(JsonFormatter())
    logger.info("told", extra={"fields": fields})
    assert json.loads(stream.getvalue())["message"] == "told"


@pytest.mark.parametrize("form", logs.FORMATS)
def test_arguments_that_do_not_fit_their_message_are_not_shown_raw(form: str, capsys) -> None:
    logging.getLogger().handlers[:] = [logging.StreamHandler()]  # instead of pytest's, which raise such errors
    logs.start(LogSettings(form))
    logger.warning("%d", "password=hunter2")
    logger.warning("%d records", 2)
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert len(said.splitlines()) == 1
    assert "2 records" in said


def test_a_worker_shows_no_raw_arguments_either(capsys) -> None:
    adopt([logging.StreamHandler()], "json")
    logger.warning("%d", "password=hunter2")
    assert capsys.readouterr().err == ""


def test_levels_that_services_do_not_know_are_none_of_theirs() -> None:
    stream = logged(JsonFormatter())
    logger.log(25, "between two levels")
    assert json.loads(stream.getvalue())["severity"] == "DEFAULT"


def test_each_thread_tells_of_its_own_shard() -> None:
    stream, ready = logged(JsonFormatter()), threading.Barrier(4)

    def work(shard: int) -> None:
        for _ in range(20):
            with logs.about("run", shard):
                ready.wait(10)  # all of them are in one by now
                logger.info("%d", shard)
        logger.info("done")

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(told) == 84
    assert all(line.get("shard") == (None if line["message"] == "done" else int(line["message"])) for line in told)


def test_a_shard_within_a_shard_ends_with_its_block() -> None:
    stream = logged(TextFormatter("%(levelname)s %(message)s"))
    with logs.about("run", 1):
        with logs.about("run", 2):
            logger.info("a")
        logger.info("b")
    logger.info("c")
    assert stream.getvalue() == "INFO [run shard 2] a\nINFO [run shard 1] b\nINFO c\n"


def test_what_a_message_holds_cannot_pose_as_another_line() -> None:
    stream = logged(TextFormatter("%(levelname)s %(message)s"))
    with logs.about("run\nERROR forged", 1):
        logger.info("a\nERROR [run shard 2] forged")
    assert len(stream.getvalue().splitlines()) == 1


def adopt(handlers: list[logging.Handler], form: str | None = "text", is_local: bool = False) -> None:
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(logging.INFO)
    logs.adopt(None if form is None else LogSettings(form), "gs://bucket/run", is_local)


def test_what_goes_through_an_engine_begins_with_run_and_shard_whatever_the_form() -> None:
    for form in (*logs.FORMATS, None):
        logs._state["settings"] = None
        handler = EngineHandler()
        adopt([handler], form)
        logger.info("before any shard")
        with logs.about("gs://bucket/run", 7):
            logger.info("in one, with %s", SECRET)
        assert [text for text, _ in handler.sent] == [
            "[gs://bucket/run] before any shard",
            "[gs://bucket/run shard 7] in one, with gs://***@bucket/x?sig=***",
        ]


def test_no_traceback_reaches_an_engine_but_in_the_text_where_secrets_are_hidden() -> None:
    handler, stream = EngineHandler(), io.StringIO()
    adopt([handler, logging.StreamHandler(stream)], "json")
    log_failure()
    ((text, exc_info),) = handler.sent
    assert exc_info is None, "Beam sends the traceback of a record along, as it is"
    assert "in fail" in text
    told = json.loads(stream.getvalue())
    assert "in fail" in told["stack_trace"]
    assert "hunter2" not in text + stream.getvalue()


@pytest.mark.parametrize("streams", [0, 2])
def test_a_process_that_no_engine_listens_to_logs_as_the_command_does(streams: int) -> None:
    adopt([logging.StreamHandler(io.StringIO()) for _ in range(streams)])
    (only,) = logging.getLogger().handlers
    only.setStream(stream := io.StringIO())
    logger.info("not told")
    logger.warning("told")
    assert stream.getvalue() == "WARNING told\n"


def test_logs_of_somebody_elses_program_stay_as_they_are() -> None:
    theirs: list[logging.Handler] = [logging.StreamHandler(io.StringIO()), logging.Handler()]
    for handler in theirs:
        handler.setFormatter(form := logging.Formatter("theirs: %(message)s"))
    adopt(theirs, None)
    assert logging.getLogger().handlers == theirs
    assert all(handler.formatter._fmt == form._fmt for handler in theirs)
    assert logging.getLogger().level == logging.INFO
    assert logs.current() is None


def test_a_process_on_the_commands_terminal_says_each_line_once_and_as_quietly() -> None:
    handler = EngineHandler()
    adopt([handler, logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())], is_local=True)
    (only,) = logging.getLogger().handlers
    stream = io.StringIO()
    only.setStream(stream)
    logger.info("not told")
    logger.warning("told")
    assert (handler.sent, stream.getvalue()) == ([], "WARNING told\n")


def test_no_line_is_written_beside_what_an_engine_takes() -> None:
    handler = EngineHandler()
    adopt([handler])
    assert logging.getLogger().handlers == [handler]
    assert logging.getLogger().level == logging.INFO


def test_a_process_that_runs_the_command_keeps_its_logs() -> None:
    logs.start(LogSettings("json"))
    handlers = list(logging.getLogger().handlers)
    logs.adopt(LogSettings("text"), "gs://bucket/run", True)
    assert logging.getLogger().handlers == handlers
    assert logs.is_json()


def test_handlers_that_are_not_pythons_plain_one_stay_as_they_are() -> None:
    root, theirs = logging.getLogger(), EngineHandler()
    root.handlers[:] = [theirs]
    logs.start(LogSettings("json"))
    assert root.handlers == [theirs]
    root.handlers[:] = [logging.StreamHandler(), theirs]
    logs.start(LogSettings("json"))
    first, second = root.handlers
    assert (first, type(second.formatter)) == (theirs, JsonFormatter)


def test_a_line_of_a_command_is_text_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    for form in logs.FORMATS:
        stream = io.StringIO()
        monkeypatch.setitem(logs._state, "settings", LogSettings(form))
        logs.write(stream, f"12 records of {SECRET}\n", records=12, line=1, stream=2)
        lines.append(stream.getvalue())
    assert lines[0] == "12 records of gs://***@bucket/x?sig=***\\n\n"
    told = json.loads(lines[1])
    assert (told["message"] + "\n", told["severity"], told["records"], told["line"]) == (lines[0], "INFO", 12, 1)


def run_in_json(code: str) -> dict:
    """The one line that a process with logs in JSON says of some code."""
    code = f"import warnings\nfrom pipeline import logs\nlogs.start(logs.LogSettings('json'))\n{code}"
    (line,), code = lines_of(code)
    return {**json.loads(line), "exit": code}


def lines_of(code: str) -> tuple[list[str], int]:
    """What a process says of some code on standard error, and its exit code."""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stderr.splitlines(), result.returncode


def test_warnings_of_libraries_are_logged_in_json() -> None:
    told = run_in_json("warnings.warn('old: password=hunter2')")
    assert (told["severity"], told["logger"], told["exit"]) == ("WARNING", "py.warnings", 0)
    assert "old: password=***" in told["message"]


def test_an_error_that_nobody_foresaw_is_json_too() -> None:
    told = run_in_json("raise RuntimeError('password=hunter2')")
    assert (told["exit"], told["severity"], told["error"]) == (1, "CRITICAL", "RuntimeError")
    assert told["message"] == "RuntimeError: password=***"
    assert "hunter2" not in str(told)
    assert told["stack_trace"].startswith("Traceback")


def test_who_logs_before_a_command_does_not_take_its_format_from_it() -> None:
    (before, line), _ = lines_of(
        "import logging; logging.warning('x')\nfrom pipeline import logs\nlogs.start(logs.LogSettings('json'))\n"
        f"logging.getLogger('library').warning('no way to {SECRET}')"
    )
    assert before == "WARNING:root:x"
    told = json.loads(line)
    assert (told["message"], told["logger"]) == ("no way to gs://***@bucket/x?sig=***", "library")


THREADS = "import threading, sys\ndef run(work): t = threading.Thread(target=work); t.start(); t.join()\n"
THREADS += "def fail(): raise RuntimeError('password=hunter2')\n"


def test_an_error_that_ends_a_thread_is_told_like_one_that_ends_the_process() -> None:
    told = run_in_json(f"{THREADS}run(sys.exit)\nrun(fail)")
    assert (told["exit"], told["severity"], told["message"]) == (0, "CRITICAL", "RuntimeError: password=***")
    lines, _ = lines_of(f"{THREADS}from pipeline import logs\nlogs.start(logs.LogSettings())\nrun(fail)")
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "RuntimeError: password=***")
    assert "hunter2" not in "".join(lines)
