"""The main job: validate everything, then plan, run the Beam graph, and sum up."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, RunError
from pipeline.layout import RunLayout
from pipeline.progress import images_done, show_progress
from pipeline.records import Entry
from pipeline.run import (
    Plan,
    check_output,
    committed_shards,
    finish_run,
    list_input,
    plan_run,
    read_run_metadata,
)
from pipeline.shard import process_shard
from pipeline.worker import Worker, shared_worker


def run_job(
    config: RunConfig,
    beam_options: list[str],
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Explains every image of the input, and returns the content of run.json.

    Raises:
        ConfigError: anything is wrong with the job as asked for; nothing was started then.
        RunError: the job broke off; what was committed stays, and the same call goes on from there.
    """
    from pipeline.graph import parse_beam_options, run_graph

    parse_beam_options(beam_options)
    entries, n_duplicates = list_input(config)
    worker = shared_worker(config if overwrite else _as_decided_before(config))
    for note in check_labels(worker, entries):
        say(note)
    plan = plan_run(worker.config, entries, n_duplicates, worker.metadata, overwrite)
    say(_describe_plan(plan, worker.exposed.activation_layer))
    start = time.monotonic()
    if plan.pending:
        try:
            with show_progress(plan.n_images, _counting(plan)):
                run_graph(plan, beam_options)
        except Exception as error:
            raise RunError(_broken_off(plan, error)) from error
    return finish_run(plan, time.monotonic() - start)


def check_labels(worker: Worker, entries: list[Entry]) -> Iterator[str]:
    """Yields a note if some labels match no class.

    Raises:
        ConfigError: the targets need labels, and none of them matches a class.
    """
    labels = [entry.label for entry in entries if entry.label is not None]
    strange = [label for label in labels if worker.label_index(label) is None]
    if not strange:
        return
    known = "the names of --class-names, or indices" if worker.class_names else "indices, as no --class-names is given"
    words = f"{len(strange)} of {len(labels)} labels match no class, such as {strange[0]!r}: labels are {known}"
    if worker.config.parsed_targets.need_labels and len(strange) == len(labels):
        raise ConfigError(words)
    if worker.config.parsed_targets.need_labels:
        yield words


def estimate_run(config: RunConfig) -> Iterator[str]:
    """The plan of a job, from one batch that is run for real into a folder that is thrown away."""
    entries, n_duplicates = list_input(config)
    worker = shared_worker(config)
    check_output(worker.config, entries, worker.metadata)
    sample = entries[:: max(1, len(entries) // config.batch_size)][: config.batch_size]
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        process_shard(0, sample, worker, RunLayout(folder))
        seconds = (time.monotonic() - start) / len(sample)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / len(sample)
    n_shards = -(-len(entries) // config.shard_size)
    yield f"{len(entries)} images in {n_shards} shards of {config.shard_size}" + (
        f", {n_duplicates} repetitions left out" if n_duplicates else ""
    )
    yield f"signal {worker.exposed.activation_layer}, logits {worker.exposed.logits_layer}, {worker.n_classes} classes"
    yield f"measured on {len(sample)}: {1 / seconds:.1f} images/s, {size / 1e3:.1f} kB an image"
    yield f"expected: {seconds * len(entries) / 60:.1f} minutes in one process, {size * len(entries) / 1e6:.1f} MB"


def _as_decided_before(config: RunConfig) -> RunConfig:
    """With the choice of XLA that the run in the output folder began with, so that all of its numbers agree."""
    found = read_run_metadata(RunLayout(config.output)) if config.jit == "auto" else None
    return dataclasses.replace(config, jit=found["jit"]) if found and "jit" in found else config


def _describe_plan(plan: Plan, layer: str) -> str:
    if not plan.pending:
        return f"the run in {plan.config.output} is complete: {plan.n_images} images; nothing to do"
    resumed = "" if len(plan.pending) == plan.n_shards else f", {plan.n_shards - len(plan.pending)} of them done before"
    return f"{plan.n_images} images in {plan.n_shards} shards{resumed}; {', '.join(plan.config.methods)} at {layer}"


def _counting(plan: Plan) -> Callable[[], int]:
    """Counts finished images: exactly in this process, by markers where workers are elsewhere."""
    before = sum(_size(plan, shard) for shard in range(plan.n_shards) if shard not in plan.pending)
    first, state = images_done.value, {"markers": before, "looked": time.monotonic()}

    def count() -> int:
        here = before + images_done.value - first
        if here == before and time.monotonic() - state["looked"] > 5:
            state.update(
                markers=sum(_size(plan, shard) for shard in committed_shards(plan.layout)), looked=time.monotonic()
            )
        return max(here, int(state["markers"]))

    return count


def _size(plan: Plan, shard: int) -> int:
    size = plan.config.shard_size
    return min(size, plan.n_images - shard * size)


def _broken_off(plan: Plan, error: Exception) -> str:
    done = len(committed_shards(plan.layout))
    # Beam wraps a worker's error in one of its own, and adds the name of the stage.
    reason = re.sub(r"^RuntimeError: | \[while running .*", "", f"{type(error).__name__}: {error}".splitlines()[0])
    return (
        f"the job broke off: {reason}. {done} of {plan.n_shards} shards are committed and kept; "
        "the same command goes on from there"
    )
