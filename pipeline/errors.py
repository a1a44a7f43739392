"""The exceptions of the pipeline.

BeamcamError
├── ConfigError     options, manifest, model or output folder are not as they must be: nothing was started
├── RunError        a run on disk is not there, not whole, or could not be finished
└── ImageError      one image cannot be explained: becomes its failure row
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.wording import without_secrets

__all__ = ["BeamcamError", "ConfigError", "ImageError", "RunError", "as_config_errors", "without_secrets"]


class BeamcamError(Exception):
    """What the pipeline raises when the user can do something about it; no message of it holds a secret."""

    def __init__(self, message: str = ""):
        super().__init__(without_secrets(str(message)))


class ConfigError(BeamcamError, ValueError):
    """The job as asked for cannot be started; the message is one line for the user."""


class RunError(BeamcamError):
    """A run on disk is missing, damaged, or could not be completed."""


class ImageError(BeamcamError):
    """One image could not be read, decoded or explained.

    Attributes:
        stage: "read", "decode" or "explain".
        error_type: what went wrong, in one word that failures are counted by.
    """

    def __init__(self, stage: str, error_type: str, message: str):
        super().__init__(message)
        self.stage = stage
        self.error_type = error_type


@contextmanager
def as_config_errors(what: str) -> Iterator[None]:
    """Tells whatever goes wrong in the block in one line; stores and users' own functions raise errors of any kind."""
    try:
        yield
    except BeamcamError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{what}: {type(error).__name__}: {reason}") from error
