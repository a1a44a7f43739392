"""Explain every image of a data set, and read what was written; importing this needs neither Beam nor TensorFlow."""

from pipeline.errors import BeamcamError, ConfigError, ImageError, RunError
from pipeline.reading import Run, open_run
from pipeline.records import Failure, Geometry, MapRecord, Record, View

__all__ = [
    "BeamcamError",
    "ConfigError",
    "Failure",
    "Geometry",
    "ImageError",
    "MapRecord",
    "Record",
    "Run",
    "RunError",
    "View",
    "open_run",
]
