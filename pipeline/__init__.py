"""Explain every image of a data set, and read what was written; importing this needs neither Beam nor TensorFlow."""

import importlib
from typing import Any

_MODULES = {
    "BeamcamError": "pipeline.errors",
    "ConfigError": "pipeline.errors",
    "Entry": "pipeline.records",
    "ExplainImages": "pipeline.composable",
    "ExplainModelHandler": "pipeline.model_handler",
    "Failure": "pipeline.records",
    "Geometry": "pipeline.geometry",
    "ImageError": "pipeline.errors",
    "MapRecord": "pipeline.records",
    "Record": "pipeline.records",
    "Run": "pipeline.reading",
    "RunConfig": "pipeline.config",
    "RunError": "pipeline.errors",
    "View": "pipeline.geometry",
    "open_run": "pipeline.reading",
    "run_job": "pipeline.job",
}

__all__ = sorted(_MODULES)  # noqa: PLE0605 - the table above is the one place that lists the names


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `beamcam --help` need not wait for Arrow."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
