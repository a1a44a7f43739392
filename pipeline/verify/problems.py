"""What is wrong with a run, in sentences; and its JSON files, read from anybody without believing a word of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.wording import printable, without_secrets

Kinds = Mapping[str, tuple[Callable[[Any], bool], str]]
"""For each value of a JSON file whether it is right, and how what is right is called."""


MISSING = "file is missing"

MAX_JSON = 64 << 20  # bytes of a JSON file that is read


@dataclass(frozen=True)
class Problem:
    """Something wrong with a run."""

    kind: str  # what it has in common with others like it, which are not all told
    sentence: str  # what and where, and what to do about it


def is_count(value: Any) -> bool:
    """Whether it is a whole number that images and files are counted by."""
    return type(value) is int and 0 <= value < 1 << 53


def is_counts(value: Any) -> bool:
    """Whether it is such numbers by name."""
    return isinstance(value, dict) and all(map(is_count, value.values()))


def is_file(value: Any) -> bool:
    """Whether it says how many bytes a file has, and their checksum."""
    return isinstance(value, dict) and is_count(value.get("bytes")) and isinstance(value.get("sha256"), str)


COUNT = (is_count, "a whole number of at least 0")
COUNTS = (is_counts, "whole numbers by name")
WORD = (lambda value: isinstance(value, str), "a word")
OPTIONS = (lambda value: isinstance(value, dict), "values by name")


def read_object(
    layout: RunLayout, path: str, kinds: Kinds, hint: str, optional: Container[str] = ()
) -> dict[str, Any] | Problem:
    """A JSON file of a run, or what is wrong with it.

    Args:
        layout: the run.
        path: of the file, below the run.
        kinds: what it must say; what else it says is of no account.
        hint: what to do if it is not there or damaged.
        optional: what of it older files do not say.
    """
    try:
        content = json.loads(read_file(layout, path))
    except RunError as error:
        kind = MISSING if isinstance(error.__cause__, FileNotFoundError) else "file cannot be read"
        return Problem(kind, f"{error}: {hint}")
    except (ValueError, RecursionError) as error:
        return Problem("file is no JSON", f"{path} is damaged: it is no JSON ({one_line(error)}): {hint}")
    wrong = list(_wrong_values(content, kinds, optional))
    if wrong:
        return Problem("file without what it must say", f"{path} is damaged: {'; '.join(wrong[:3])}: {hint}")
    return content


def read_file(layout: RunLayout, path: str, limit: int = MAX_JSON) -> bytes:
    """The content of a run's file.

    Raises:
        RunError: it cannot be read, for whatever reason, or has more bytes than the limit.
    """
    try:
        return storage.read_bytes(layout.uri(path), limit)
    except Exception as error:  # stores have errors of all kinds
        raise RunError(f"{path} cannot be read: {one_line(error)}") from error


def plain(text: str, limit: int = 300) -> str:
    """A name in one line that a terminal shows and does not obey."""
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def shorten(value: Any, limit: int = 80) -> str:
    """How a value is written in Python, cut off where it gets long."""
    text = repr(value[:limit] if isinstance(value, str | list) else value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def one_line(error: BaseException) -> str:
    """An error's type and the first line of what it says; of a missing file, which is named anyway, the type."""
    reason = (str(error).splitlines() or [""])[0]
    name = type(error).__name__
    return plain(without_secrets(f"{name}: {reason}" if reason and not isinstance(error, FileNotFoundError) else name))


def _wrong_values(content: Any, kinds: Kinds, optional: Container[str]) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"it holds {shorten(content)}, and not values by name"
        return
    missing = sorted(name for name in kinds if name not in content and name not in optional)
    if missing:
        yield f"it lacks {', '.join(missing)}"
    for name, (is_right, words) in kinds.items():
        if name in content and not is_right(content[name]):
            yield f"its {name} is {words}, not {shorten(content[name])}"
