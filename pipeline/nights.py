"""Which run a night's job goes on from: `--since latest`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from pipeline import models, storage
from pipeline.class_names import load_class_names
from pipeline.config import LATER, RunConfig, describe_difference
from pipeline.errors import as_config_errors
from pipeline.layout import RunLayout
from pipeline.running import read_run_metadata

LATEST = "latest"
"""What --since says instead of a run's name; a folder of that name is ./latest."""

LOOK_BACK = 31  # runs beside this one that are looked at

_MAY_DIFFER = ("shard_size",)  # as in `carrying`


def find_since(config: RunConfig, overwrite: bool = False) -> tuple[RunConfig, str | None]:
    """The configuration with the run that `latest` means, and a line on it for the user; any other comes back as it is.

    Runs of a night each lie side by side and are named by their dates, so `latest` is the last of the names before this
    run's: of the finished runs, else of those that broke off. One of another configuration or model is passed over,
    since nothing of it can be carried over. A run that is there already goes on with what it began with.

    Args:
        config: the job.
        overwrite: whether the run in the output folder is to be removed.

    Raises:
        ConfigError: the folder of the runs cannot be listed, or one of them cannot be read.
    """
    if config.since != LATEST:
        return config, None
    with as_config_errors(f"--since {LATEST}: the runs beside {config.output!r} cannot be looked at"):
        own = None if overwrite else read_run_metadata(RunLayout(config.output))
        if own is not None:
            return dataclasses.replace(config, since=own.get("since")), None
        found, refused = _find_earlier(config)
    if found is not None:
        return dataclasses.replace(config, since=found), f"records of unchanged images are carried over from {found}"
    why = refused or f"there is no earlier run beside {config.output}"
    return dataclasses.replace(config, since=None), f"{why}: every image is explained"


def _find_earlier(config: RunConfig) -> tuple[str | None, str | None]:
    """The run to go on from, if any, and why the latest of the others is not it."""
    unfinished, refused = None, None
    expected = _expect(config)
    for layout, metadata in _earlier_runs(config.output):
        if difference := _difference(config, expected, metadata):
            refused = refused or f"the run {layout.output} is of another configuration ({difference})"
        elif storage.exists(layout.uri(layout.SUMMARY)):
            return layout.output, None
        else:
            unfinished = unfinished or layout.output
    return unfinished, refused


def _earlier_runs(output: str) -> Iterator[tuple[RunLayout, dict[str, str]]]:
    """The runs beside a run whose names come before its own, the latest first, with what their manifests say."""
    parent, _, own = output.rstrip("/").rpartition("/")
    names = (uri.rstrip("/").rpartition("/")[2] for uri in storage.list_folders(parent or "/"))
    for name in sorted((name for name in names if name < own), reverse=True)[:LOOK_BACK]:
        layout = RunLayout(storage.join(parent or "/", name))
        metadata = read_run_metadata(layout)
        if metadata is not None:
            yield layout, metadata


def _expect(config: RunConfig) -> dict[str, str]:
    """What a manifest must say beside the options, as far as it is known before the model is loaded."""
    expected = {}
    digest = models.digest_of_file(config.model)
    if digest is not None:  # of others it is told when they are loaded, and a run of another model is refused then
        expected["model_digest"] = digest
    if config.class_names:
        expected["class_names"] = json.dumps(load_class_names(config.class_names))
    return expected


def _difference(config: RunConfig, expected: dict[str, str], metadata: dict[str, str]) -> str:
    """What keeps records of a run from being carried over; nothing if it is empty."""
    options = [LATER | part for part in (json.loads(metadata["config"]), config.identity())]
    free = {*_MAY_DIFFER, *(["precision"] if config.precision == "auto" else [])}  # what is left open, that run decides
    old, new = ({name: value for name, value in part.items() if name not in free} for part in options)
    changed = [name.replace("_", " ") for name, value in expected.items() if metadata[name] != value]
    return describe_difference(old, new) or ", ".join(f"{name} has changed" for name in changed)


def absolute_since(since: Any) -> str:
    """The uri of what --since names, unless it leaves the choice to us."""
    return LATEST if since == LATEST else storage.absolute(str(since)).rstrip("/")
