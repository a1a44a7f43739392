"""The main job: validate everything, then plan, run the Beam graph, and sum up."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, RunError
from pipeline.layout import RunLayout
from pipeline.progress import images_done, show_progress
from pipeline.run import (
    Plan,
    committed_shards,
    finish_run,
    list_input,
    marked_shards,
    plan_run,
    read_run_metadata,
)
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
    with list_input(config) as listing:
        worker = shared_worker(config if overwrite else as_decided_before(config))
        for note in check_labels(worker, listing.labels):
            say(note)
        plan = plan_run(worker.config, listing, worker.metadata, overwrite)
    say(describe_plan(plan, worker.exposed.activation_layer))
    start = time.monotonic()
    if plan.pending:
        try:
            with show_progress(plan.n_images, _counting(plan)):
                run_graph(plan, beam_options)
        except Exception as error:
            if "KeyboardInterrupt" in str(error):  # Beam wraps even that
                raise KeyboardInterrupt from error
            raise RunError(_broken_off(plan, error)) from error
    return finish_run(plan, time.monotonic() - start)


def check_labels(worker: Worker, labels: Mapping[str, int]) -> Iterator[str]:
    """Yields a note if some labels match no class; `labels` tells how many images have each.

    Raises:
        ConfigError: the targets need labels, and none of them matches a class.
    """
    strange = {label: count for label, count in labels.items() if worker.label_index(label) is None}
    if not strange:
        return
    known = "the names of --class-names, or indices" if worker.class_names else "indices, as no --class-names is given"
    words = (
        f"{sum(strange.values())} of {sum(labels.values())} labels match no class, such as {next(iter(strange))!r}: "
        f"labels are {known}"
    )
    if worker.config.parsed_targets.need_labels and len(strange) == len(labels):
        raise ConfigError(words)
    if worker.config.parsed_targets.need_labels:
        yield words


def as_decided_before(config: RunConfig) -> RunConfig:
    """With what the run in the output folder decided where it was left to it, so that all of its numbers agree."""
    found = read_run_metadata(RunLayout(config.output)) if "auto" in (config.jit, config.precision) else None
    if not found:
        return config
    jit = found.get("jit", "auto") if config.jit == "auto" else config.jit
    precision = (
        json.loads(found["config"]).get("precision", "float32") if config.precision == "auto" else config.precision
    )
    return dataclasses.replace(config, jit=jit, precision=precision)


def describe_plan(plan: Plan, layer: str) -> str:
    """What a run will do, in a line."""
    if not plan.pending:
        return f"the run in {plan.config.output} is complete: {plan.n_images} images; nothing to do"
    resumed = "" if len(plan.pending) == plan.n_shards else f", {plan.n_shards - len(plan.pending)} of them done before"
    return f"{plan.n_images} images in {plan.n_shards} shards{resumed}; {', '.join(plan.config.methods)} at {layer}"


def _counting(plan: Plan) -> Callable[[], int]:
    """Counts finished images: exactly in this process, by markers where workers are elsewhere."""
    before = plan.n_images - plan.n_pending
    first, state = images_done.value, {"markers": before, "looked": time.monotonic()}

    def count() -> int:
        here = before + images_done.value - first
        if here == before and time.monotonic() - state["looked"] > 5:
            marked = sum(map(plan.size_of, marked_shards(plan.layout)))
            state.update(markers=marked, looked=time.monotonic())
        return max(here, int(state["markers"]))

    return count


def _broken_off(plan: Plan, error: Exception) -> str:
    done = len(committed_shards(plan.layout))
    # Beam wraps a worker's error in one of its own, and adds the name of the stage.
    reason = re.sub(r"^RuntimeError: | \[while running .*", "", f"{type(error).__name__}: {error}".splitlines()[0])
    return (
        f"the job broke off: {reason}. {done} of {plan.n_shards} shards are committed and kept; "
        "the same command goes on from there"
    )
