"""Options of Beam that nobody typed, and how it is told which ones somebody did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Given = Mapping[str, Any]
"""What was said on the command line: the names of Beam's options that differ from their defaults, with their values."""


@dataclass(frozen=True)
class Default:
    """A word of the command line that nobody typed."""

    word: str  # as it would have been typed: --name=value
    reason: str  # why it is better than Beam's own default

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


def missing(given: Given, *wanted: Default) -> Iterator[Default]:
    """Those of some defaults whose options were not given."""
    return (default for default in wanted if given.get(option_of(default.word)) is None)


def option_of(word: str) -> str:
    """The name of the option that a word of the command line sets."""
    return word.lstrip("-").partition("=")[0].removeprefix("no_")  # --no_x sets x
