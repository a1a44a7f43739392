"""TensorFlow's start, without the notes that its libraries write to the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def import_tensorflow() -> None:
    """Imports TensorFlow; call it before anything else does."""
    if "tensorflow" not in sys.modules:
        with _no_native_chatter():
            import tensorflow  # noqa: F401


@contextlib.contextmanager
def _no_native_chatter() -> Iterator[None]:
    """Keeps what native libraries write while they load off the terminal, which no setting of theirs does."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
