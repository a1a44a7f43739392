"""How options are written, for the command line and for YAML files; it imports nothing, since --help needs it."""

from __future__ import annotations


def split_names(text: str) -> tuple[str, ...]:
    """Splits at commas that stand outside of brackets: a method's options are separated by commas too."""
    names, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            names.append("")
        else:
            names[-1] += character
    return tuple(name.strip() for name in names if name.strip())
