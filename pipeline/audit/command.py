"""The options of `beamcam audit`, what it says, and its exit code."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import storage
from pipeline.audit.auditing import FINDINGS, AuditOptions, UnwrittenError, audit_run
from pipeline.audit.findings import Audit, Finding
from pipeline.audit.junit import to_junit
from pipeline.audit.settings import Settings, read_settings
from pipeline.errors import ConfigError, RunError
from pipeline.reading import open_run
from pipeline.totals import read_sums

FOUND, UNJUDGED = 1, 3
"""Exit codes beside 0 (nothing found) and 2 (wrong usage)."""

MOST_LINES = 20  # findings that are told on the terminal

COLUMNS = ("key", "rule", "severity", "state", "class", "value", "threshold", "n", "message")
"""Of the lines of --quiet."""

Say = Callable[..., None]
"""Tells the user a line of some cells."""


def audit(arguments: argparse.Namespace, say: Say) -> int:
    """Runs the verb that the command's words begin with.

    Returns:
        The exit code.

    Raises:
        ConfigError: wrong usage.
    """
    verb, *words = arguments.words if arguments.words[0] in _VERBS else ["", *arguments.words]
    try:
        return _VERBS[verb](words, arguments, say)
    except BrokenPipeError:  # somebody has read enough of what we say
        raise
    except RunError as error:
        raise UnjudgedError(str(error)) from error
    except OSError as error:
        raise UnjudgedError(f"{type(error).__name__}: {error}") from error


class UnjudgedError(RunError):
    """A run that cannot be judged: it is missing, damaged, or has nothing to judge."""

    exit_code = UNJUDGED


def _audit(words: list[str], arguments: argparse.Namespace, say: Say) -> int:
    _check_words(words, "audit RUN")
    options = make_options(words[0], arguments)
    folder: str | None = options.folder
    problems = []
    try:
        found = audit_run(options)
    except UnwrittenError as error:  # what was found is told first
        found, folder = error.audit, None
        problems.append(str(error))
    if arguments.junit:
        problems += _write_junit(storage.absolute(arguments.junit), to_junit(found, arguments.fail_on))
    rows = describe_quietly(found) if arguments.quiet else [(line,) for line in describe(found, folder)]
    for row in rows:
        say(*row)
    if problems:
        raise ConfigError("; ".join(problems))
    return FOUND if found.reaches(arguments.fail_on) else 0


def _write_junit(uri: str, data: bytes) -> list[str]:
    """Writes the file; returns what went wrong."""
    try:
        storage.write_bytes(uri, data)
    except OSError as error:
        return [f"the file {uri!r} cannot be written: {error.strerror or error} (name another place with --junit)"]
    return []


def _show(words: list[str], arguments: argparse.Namespace, say: Say) -> int:
    from pipeline.audit.report import write_class_page

    _check_words(words, "audit show RUN CLASS", 2)
    options = make_options(words[0], arguments)
    run = open_run(options.run)
    content = read_audit(options.folder)
    say(write_class_page(content, read_sums(run, content["run"].get("method")), run, words[1], options.folder))
    return 0


def _accept(words: list[str], arguments: argparse.Namespace, say: Say) -> int:
    from pipeline.audit.baseline import accept

    _check_words(words, "audit accept RUN")
    run = storage.absolute(words[0]).rstrip("/")
    target = accept(run, storage.absolute(arguments.baseline) if arguments.baseline else None, arguments.method)
    say(f"{target}: later audits of runs beside this one are compared with {run}")
    return 0


_VERBS = {"": _audit, "show": _show, "accept": _accept}


def make_options(run: str, arguments: argparse.Namespace) -> AuditOptions:
    """The options of an audit, checked as far as they can be before anything is read.

    Raises:
        ConfigError: a value is wrong.
    """
    if arguments.history < 0:
        raise ConfigError(f"--history is a number of audits, 0 for none, not {arguments.history}")
    return AuditOptions(
        run=storage.absolute(run).rstrip("/"),
        out=storage.absolute(arguments.out).rstrip("/") if arguments.out else None,
        method=arguments.method,
        baseline=arguments.baseline,
        history=arguments.history,
        confirm=arguments.confirm,
        preprocess=arguments.preprocess,
        allow_unsafe_model=arguments.allow_unsafe_model,
        settings=read_settings(arguments.config) if arguments.config else Settings(),
        single_file=arguments.single_file,
    )


def read_audit(folder: str) -> dict[str, Any]:
    """The findings.json of an earlier audit.

    Raises:
        RunError: there is none, or it is damaged.
    """
    uri = storage.join(folder, FINDINGS)
    try:
        content = json.loads(storage.read_bytes(uri, limit=64 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{uri!r} cannot be read ({type(error).__name__}): say `beamcam audit RUN` first") from error
    if not isinstance(content, dict) or not isinstance(content.get("findings"), list):
        raise RunError(f"{uri!r} is no audit: say `beamcam audit RUN` again")
    return content


def describe(found: Audit, folder: str | None) -> list[str]:
    """What an audit says on a terminal: the findings, and one line that sums them up.

    Args:
        found: the audit.
        folder: where its files are; None if they could not be written.
    """
    told = [finding for finding in found.findings if finding.counts]
    lines = [_line(finding) for finding in told[:MOST_LINES]]
    if len(told) > MOST_LINES:
        where = f" in {storage.join(folder, FINDINGS)}" if folder else ""
        lines.append(f"  and {len(told) - MOST_LINES} more{where}")
    counts, n_rules = found.counts, sum(result.ran for result in found.results)
    numbers = ", ".join(f"{counts[name]} {name}" for name in ("error", "warning", "info"))
    suppressed = f", {counts['suppressed']} suppressed" if counts["suppressed"] else ""
    resolved = sum(finding.state == "resolved" for finding in found.findings)
    gone = f", {resolved} resolved" if resolved else ""
    images = f"{found.run['n_images']} images, {n_rules} of {len(found.results)} rules"
    report = f"; report: {storage.join(folder, 'index.html')}" if folder else ""
    return [*lines, f"{found.status}: {numbers}{suppressed}{gone} ({images}){report}"]


def describe_quietly(found: Audit) -> list[Sequence[str]]:
    """A row for each finding that counts, under the names of the columns."""
    rows: list[Sequence[str]] = [COLUMNS]
    for finding in found.findings:
        if finding.counts:
            content = finding.to_dict() | {"class": str(finding.scope)}
            rows.append([str(content[name]) for name in COLUMNS])
    return rows


def _line(finding: Finding) -> str:
    mark = " (known)" if finding.state == "known" else ""
    return f"{finding.severity:7} {finding.rule}{mark} {finding.message}"


def _check_words(words: list[str], usage: str, count: int = 1) -> None:
    if len(words) != count:
        given = f"not with {' '.join(words)!r}" if words else "and a folder of that name is ./show or ./accept"
        raise ConfigError(f"the command is `beamcam {usage}`, {given}")
