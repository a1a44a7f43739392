"""Text that came from elsewhere, made fit to be shown: no secrets in it, and nothing that a terminal would obey."""

from __future__ import annotations

import copy
import logging
import re
import sys
import traceback
import unicodedata
from types import TracebackType

HIDDEN = "***"

_JOINERS = "\u200c\u200d"  # part of how Persian, Hindi and families of emoji are written

_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token|server-side-encryption-customer-key)|googleaccessid|awsaccesskeyid|signature|sig"
    r"|(?:[a-z0-9]+[-_])*(?:secret|token|password|passwd|pwd|api[-_]?key|access[-_]?key(?:[-_]?id)?|account[-_]?key"
    r"|secret[-_]?key|private[-_]?key|credentials?|authorization)|(?:account|shared|secret)accesskey|accountkey"
)
_START = "(?:(?<![a-z0-9_-])|(?<=%26)|(?<=%3f))"
_QUOTED = "\"[^\"]*\"|'[^']*'"
_VALUE = r"[^\s\"'&;,<>()\[\]{}]+"

_SECRETS = [
    # A key as a file has it; what follows the first line is gone even where the end was cut off.
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), HIDDEN),
    # scheme://user:password@host
    (re.compile(r"(?<=://)[^/\s\"'@:]*:[^/\s\"'@]*@"), f"{HIDDEN}@"),
    # Authorization: Bearer ..., in headers and in Python's or JSON's way of writing them
    (re.compile(rf"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{16,}"), rf"\1{HIDDEN}"),
    # AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...; ?X-Amz-Signature=...&sig=...; --token='...'
    (re.compile(rf"(?i){_START}([-_]*(?:{_NAMES})(?:\s*=\s*|%3d))(?:{_QUOTED}|{_VALUE})"), rf"\1{HIDDEN}"),
    # 'x-amz-security-token': '...', "private_key": "...", and <SecretAccessKey>...</
    (re.compile(rf"(?i)([\"'](?:{_NAMES})[\"']\s*:\s*b?[\"'])[^\"']*"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(<(?:secretaccesskey|sessiontoken|\w*accesskeyid|signature\w*)>)[^<]*"), rf"\1{HIDDEN}"),
    # What shows by itself that it is a secret: keys of AWS and Google, tokens of Google, GitHub, Hugging Face; JWT
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
    (re.compile(r"\bya29\.[\w.-]+|\bAIza[\w-]{30,}|\b1//[\w-]{30,}"), HIDDEN),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|hf_|xox[abprs]-)[\w-]{20,}"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,2000}\.[\w-]+\.[\w-]*"), HIDDEN),
]  # fmt: skip


def without_secrets(text: str) -> str:
    """Text with passwords, keys, tokens and signatures replaced by `***`; what surrounds them stays.

    Errors of stores repeat the requests that failed, signatures and all, and would carry them into logs and tables.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def printable(text: str) -> str:
    r"""Text as one line that a terminal shows and does not obey.

    Control characters (also newlines), characters that turn the direction of writing or are invisible, and halves of
    characters become escapes such as `\x1b`; all other letters of all scripts stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) if _is_harmful(character) else character for character in text)


def shown(text: str) -> str:
    """Text as it may reach a terminal: every line that a command says or complains of goes through here."""
    return printable(without_secrets(text))


class SafeFormatter(logging.Formatter):
    """Formats log records without secrets and without what a terminal obeys; only tracebacks have several lines."""

    def format(self, record: logging.LogRecord) -> str:
        """A record, anew: another handler may have left its own text of the traceback in it."""
        record = copy.copy(record)
        record.exc_text = None if record.exc_info or not record.exc_text else safe_lines(record.exc_text)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """The line of a record."""
        return shown(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802
        """The traceback of a record, line by line."""
        return safe_lines(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """The stack of a record, line by line."""
        return safe_lines(super().formatStack(stack_info))


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What `sys.excepthook` is to do with an error that nobody expected: its messages may hold secrets as well."""
    sys.stderr.write(safe_lines("".join(traceback.format_exception(kind, error, trace))))


def safe_lines(text: str) -> str:
    """Text of several lines, each as `shown` makes it."""
    return "\n".join(map(printable, without_secrets(text).split("\n")))


def _is_harmful(character: str) -> bool:
    # Cc: control, Cf: direction and invisible ones, Cs: halves, Zl and Zp: other ends of lines
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
