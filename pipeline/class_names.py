"""The names of a model's classes, from the files that people keep them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline import storage
from pipeline.errors import as_config_errors

MAX_BYTES = 50_000_000  # a hundred thousand classes have five


def load_class_names(uri: str) -> list[str]:
    """Reads class names: one a line, or `index wnid name`, or a JSON list or object as Keras's ImageNet index.

    Raises:
        ConfigError: it cannot be read.
    """
    with as_config_errors(f"--class-names {uri!r} cannot be read"):
        text = storage.read_bytes(uri, limit=MAX_BYTES).decode("utf-8-sig")
        return _names_from_json(json.loads(text)) if uri.endswith(".json") else _names_from_lines(text.splitlines())


def _names_from_json(content: Any) -> list[str]:
    values = [content[str(i)] for i in range(len(content))] if isinstance(content, dict) else content
    return [value[-1] if isinstance(value, list) else str(value) for value in values]


def _names_from_lines(lines: Sequence[str]) -> list[str]:
    names = [line.strip() for line in lines if line.strip()]
    if names and all(name.split()[0] == str(i) and " " in name for i, name in enumerate(names)):
        names = [name.split(maxsplit=1)[1] for name in names]
    if names and all(_starts_with_wnid(name) for name in names):
        names = [name.split(maxsplit=1)[1] for name in names]
    return names


def _starts_with_wnid(name: str) -> bool:
    first, _, rest = name.partition(" ")
    return bool(rest) and len(first) == 9 and first[0] == "n" and first[1:].isdigit()
