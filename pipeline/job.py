"""The main job: validate everything, then plan, run the Beam graph, and sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline import models, quiet, storage
from pipeline.carrying import check_earlier, find_difference
from pipeline.class_names import load_class_names
from pipeline.config import RunConfig, configure_storage
from pipeline.errors import ConfigError, RunError, as_config_errors
from pipeline.layout import RunLayout
from pipeline.listing import Listing
from pipeline.progress import images_done, show_progress
from pipeline.run import (
    Plan,
    check_output,
    check_same_options,
    committed_shards,
    find_mended,
    finish_run,
    list_input,
    marked_shards,
    plan_mending,
    plan_run,
    read_plan,
)
from pipeline.running import read_run_metadata

if TYPE_CHECKING:
    from pipeline.graph import PipelineOptions
    from pipeline.worker import Worker

LOOKED_AT = 1000
"""Images of the input that are looked at before a job is handed to other machines: those of a list are alike."""


def run_job(
    config: RunConfig,
    beam_options: list[str],
    *,
    overwrite: bool = False,
    latest: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Explains every image of the input, and returns the content of run.json.

    Args:
        config: the job.
        beam_options: words of the command line for Beam.
        overwrite: whether to remove another run from the output folder first.
        latest: whether the run `config.since` was chosen by `find_since`, see `settle_since`.
        say: called with a line now and then.

    Returns:
        Nothing in it if the job was handed over to an engine that goes on alone, and writes run.json in the end
        (`--template_location`, `--no_wait_until_finish`).

    Raises:
        ConfigError: anything is wrong with the job as asked for; nothing was started then.
        RunError: the job broke off; what was committed stays, and the same call goes on from there.
    """
    from pipeline.graph import check_images, prepare_options, suit_machines

    configure_storage(config.storage_options, config.storage_timeout)
    options = prepare_options(beam_options, config, say)
    with contextlib.ExitStack() as held:
        with list_input(config) as listing:
            check_images(options, (entry.uri for entry in itertools.islice(listing, LOOKED_AT)))
            plan = None if overwrite else find_finished(config, listing)
            if plan is None:
                worker = _load_worker(suit_machines(options, as_decided_before(config, overwrite), say))
                for note in check_labels(worker, listing.labels):
                    say(note)
                config, notes = settle_since(worker.config, worker.metadata, latest)
                for note in notes:
                    say(note)
                plan = plan_run(config, listing, worker.metadata, overwrite, held)
                del worker  # that of another configuration, if --since was given up, makes room for the job's own
        return _finish(plan, options, say)


def mend_run(
    config: RunConfig, beam_options: list[str], *, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Tries the images of a run once more that failed, in place, and returns the new content of run.json.

    Args:
        config: as `config_of_run` tells it, with changes to what is no part of a result.
        beam_options: words of the command line for Beam.
        say: called with a line now and then.

    Returns:
        As `run_job`.

    Raises:
        ConfigError: there is no run, or the configuration or the model is not the run's; nothing was changed then.
        RunError: the job broke off; the same call goes on from there.
    """
    from pipeline.graph import prepare_options

    configure_storage(config.storage_options, config.storage_timeout)
    options = prepare_options(beam_options, config, say)
    config = as_decided_before(config)
    check_same_options(config)
    with contextlib.ExitStack() as held:
        plan = find_mended(config)
        if plan is None:
            worker = _load_worker(config)
            plan = plan_mending(worker.config, worker.metadata, held)
        return _finish(plan, options, say)


def _load_worker(config: RunConfig) -> Worker:
    quiet.import_tensorflow()
    from pipeline.worker import shared_worker

    return shared_worker(config)


def _finish(plan: Plan, options: PipelineOptions, say: Callable[[str], None]) -> dict[str, Any]:
    from pipeline.graph import is_detached, is_template, run_graph

    say(describe_plan(plan))
    start = time.monotonic()
    # A template that is launched has to give a job, even one that finds nothing to do.
    if plan.pending or is_template(options):
        detached = is_detached(options)
        try:
            with contextlib.nullcontext() if detached else show_progress(plan.n_images, _counting(plan)):
                run_graph(plan, options)
        except Exception as error:
            if "KeyboardInterrupt" in str(error):  # Beam wraps even that
                raise KeyboardInterrupt from error
            raise RunError(_broken_off(plan, error)) from error
        if detached:
            return {}
    try:
        return finish_run(plan, time.monotonic() - start)
    except (OSError, ValueError) as error:
        raise RunError(
            f"every shard is committed, but the run could not be summed up: {type(error).__name__}: {error}. "
            "The same command goes on from there"
        ) from error


def find_finished(config: RunConfig, listing: Listing) -> Plan | None:
    """The plan of a job that has nothing left to do, told without loading the model; None if that is not certain.

    Raises:
        ConfigError: the run in the output folder is over another input.
    """
    layout = RunLayout(config.output)
    with as_config_errors(f"the output folder {config.output!r} cannot be reached"):
        found = read_run_metadata(layout)
    with as_config_errors("what a finished run is told by cannot be read"):
        config = as_decided_before(config)
        if found is None or found["config"] != json.dumps(config.identity(), sort_keys=True):
            return None
        names = load_class_names(config.class_names) if config.class_names else None
        known = {"model_digest": models.digest_of_file(config.model), "class_names": json.dumps(names)}
        if any(found[name] != value for name, value in known.items()):
            return None
        plan = read_plan(config)
        is_finished = not plan.pending and storage.exists(layout.uri(layout.SUMMARY))
    if not is_finished:
        return None
    check_output(config, listing, {name: found[name] for name in known})
    return plan


def settle_since(config: RunConfig, metadata: Mapping[str, str], latest: bool = False) -> tuple[RunConfig, list[str]]:
    """What a job goes on from, now that its model is known, and lines on it for the user.

    Args:
        config: the job.
        metadata: what its files say of the model.
        latest: whether `config.since` is the run that `--since latest` meant. Whoever says that wants the night's run
            in any case, so a run of which nothing can be carried over is passed over; one that was named is refused.

    Raises:
        ConfigError: see `check_since`.
    """
    earlier = _read_earlier(config) if latest else None
    if earlier is not None and (difference := find_difference(config, metadata, earlier)):
        why = f"the run {config.since} is of another configuration ({difference})"
        return dataclasses.replace(config, since=None), [f"{why}: every image is explained"]
    return config, list(check_since(config, metadata))


def check_since(config: RunConfig, metadata: Mapping[str, str]) -> Iterator[str]:
    """Yields a note if records that are carried over may differ from those that this job would make.

    Raises:
        ConfigError: see `check_earlier`.
    """
    if config.since is None:
        return
    if RunLayout(config.since).output == RunLayout(config.output).output:
        raise ConfigError("--since is an earlier run, and --output a new one: they are the same folder")
    note = check_earlier(config, metadata, _read_earlier(config))
    if note is not None:
        yield note


def _read_earlier(config: RunConfig) -> dict[str, str] | None:
    if config.since is None:
        return None
    with as_config_errors(f"--since {config.since!r} cannot be reached"):
        return read_run_metadata(RunLayout(config.since))


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


def as_decided_before(config: RunConfig, overwrite: bool = False) -> RunConfig:
    """With what the run in the output folder, or that of --since, decided where it was left to it.

    So all of its numbers agree. A run that is to be overwritten decides nothing.
    """
    if "auto" not in (config.jit, config.precision):
        return config
    runs = (RunLayout(uri) for uri in (None if overwrite else config.output, config.since) if uri)
    found = next(filter(None, map(read_run_metadata, runs)), None)
    if found is None:
        return config
    jit = found.get("jit", "auto") if config.jit == "auto" else config.jit
    precision = (
        json.loads(found["config"]).get("precision", "float32") if config.precision == "auto" else config.precision
    )
    return dataclasses.replace(config, jit=jit, precision=precision)


def describe_plan(plan: Plan) -> str:
    """What a run will do, in a line."""
    layer = plan.metadata["activation_layer"]
    if not plan.pending:
        return f"the run in {plan.config.output} is complete: {plan.n_images} images; nothing to do"
    resumed = "" if len(plan.pending) == plan.n_shards else f", {plan.n_shards - len(plan.pending)} of them done before"
    return f"{plan.n_images} images in {plan.n_shards} shards{resumed}; {', '.join(plan.config.methods)} at {layer}"


def _counting(plan: Plan) -> Callable[[], int]:
    """Counts finished images: exactly in this process, by markers where workers are elsewhere."""
    before = plan.n_images - plan.n_pending
    first, state = images_done.value, {"markers": before, "next": time.monotonic() + 5}

    def count() -> int:
        here, begun = before + images_done.value - first, time.monotonic()
        if here == before and begun > state["next"]:
            with contextlib.suppress(OSError):
                state["markers"] = sum(map(plan.size_of, marked_shards(plan.layout)))
            ended = time.monotonic()  # hundreds of thousands of markers take a while to list: a twentieth of the time
            state["next"] = ended + max(5, 20 * (ended - begun))
        return max(here, int(state["markers"]))

    return count


def _broken_off(plan: Plan, error: Exception) -> str:
    try:
        kept = f"{len(committed_shards(plan.layout, plan.metadata))} of {plan.n_shards} shards are committed and kept"
    except OSError:  # the very store that is away
        kept = "What is committed is kept"
    return f"the job broke off: {describe_cause(error)}. {kept}; the same command goes on from there"


def describe_cause(error: Exception) -> str:
    """The error that a worker raised, in a line, out of those that Beam wraps around it.

    Beam adds the name of the stage, and sends that of another process as the text of its traceback.
    """
    lines = f"{type(error).__name__}: {error}".splitlines()
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(: |$)", line) and "Traceback" not in line][
            -1:
        ] or lines
    return re.sub(r"^RuntimeError: (?=\w+: )|^(\w+\.)+(?=\w+: )| \[while running .*", "", lines[0])
