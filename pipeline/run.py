"""A run from plan to summary: resolve the input, refuse what does not belong together, sum up what was committed."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import json
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import parquet, storage
from pipeline.carrying import EarlierShards
from pipeline.config import LATER, NOT_PART_OF_A_RESULT, RunConfig, configure_storage, describe_difference
from pipeline.errors import ConfigError, RunError, as_config_errors
from pipeline.layout import RunLayout
from pipeline.listing import Listing, list_images
from pipeline.locking import hold_run
from pipeline.records import Entry
from pipeline.running import RunningJob, claim_of, committed_files, is_of_run, read_run_metadata
from pipeline.summary import read_markers, read_summary, remove_orphans, summarize
from pipeline.totals import Basis, write_total

MOST_RANGES = 1000  # of numbers of shards, in a job that has some left here and there


@dataclass(frozen=True)
class Ending:
    """What a worker needs to sum a run up, in a job that nobody waits for."""

    job: RunningJob
    n_pending: int  # shards that the job was given
    resumed: bool  # whether an earlier job may have left files behind
    begun: float  # seconds since 1970, when the job was handed over


@dataclass(frozen=True)
class Plan:
    """A run that is ready to start, or to go on."""

    config: RunConfig
    n_images: int
    n_duplicates: int  # repetitions of a uri that were left out
    n_shards: int
    pending: tuple[int, ...]  # shards without a marker
    metadata: dict[str, str]
    resumed: bool = False  # whether an earlier job may have left files behind
    mending: bool = False  # whether the run's own records stay, and only images without one are explained

    @property
    def layout(self) -> RunLayout:
        """Where its files lie."""
        return RunLayout(self.config.output)

    @property
    def running(self) -> RunningJob:
        """What travels to the workers."""
        return RunningJob(self.config, claim_of(self.metadata), self.mending)

    def ending(self) -> Ending:
        """What travels to the worker that sums the run up, if that is not this process."""
        return Ending(self.running, len(self.pending), self.resumed, time.time())

    @property
    def n_pending(self) -> int:
        """How many images are still to be explained."""
        return sum(map(self.size_of, self.pending))

    def size_of(self, shard: int) -> int:
        """How many images a shard has."""
        size = self.config.shard_size
        return max(0, min(size, self.n_images - shard * size))


@contextlib.contextmanager
def list_input(config: RunConfig) -> Iterator[Listing]:
    """The images of a job, for as long as the block runs.

    Raises:
        ConfigError: nothing matches, or targets need labels and there are none.
    """
    with list_images(
        config.images, config.labels_from, config.label_column, config.output, config.shard_size
    ) as listing:
        if config.parsed_targets.need_labels and not listing.labels:
            raise ConfigError(
                f"--targets {config.targets} needs labels, and the input has none: give a manifest with a column "
                f"{config.label_column!r}, or --labels-from folder"
            )
        yield listing


def plan_run(
    config: RunConfig,
    listing: Listing,
    metadata: dict[str, str],
    overwrite: bool = False,
    held: contextlib.ExitStack | None = None,
) -> Plan:
    """Starts a run on disk, or finds the one that is there.

    Args:
        config: the job.
        listing: its input, for a run that is not there yet; one that is there goes on with its own.
        metadata: what the run's files say of the model.
        overwrite: whether to remove another run from the output folder first.
        held: keeps the run from other jobs until it is closed.

    Raises:
        ConfigError: the folder holds a run of another configuration, model or input, or one that another job works on,
            holds something else, or cannot be written.
    """
    layout, held = RunLayout(config.output), held or contextlib.ExitStack()
    found = check_output(config, listing, metadata, overwrite)
    if found is not None:
        held.enter_context(hold_run(layout))
    begins = found is None or overwrite
    if begins:
        with _write_manifest(config, listing, metadata) as manifest:
            if found is not None:
                remove_run(layout)
            with as_config_errors(f"the output folder {config.output!r} cannot be written"):
                begins = storage.create_file(layout.uri(layout.MANIFEST), manifest)
        held.enter_context(hold_run(layout))
        if begins and found is not None:
            remove_files(layout)  # what a job on the old run has written meanwhile, which knows by now that it is gone
        if not begins:  # another job was faster: this one helps it, or is refused
            found = check_output(config, listing, metadata)
    storage.remove_temporaries(config.output)
    plan = read_plan(config, resumed=found is not None)
    if not begins and (found is None or claim_of(plan.metadata) != claim_of(found)):
        raise ConfigError(f"the run in {config.output!r} was overwritten by another job at this very moment: try again")
    return plan


def config_of_run(uri: str) -> RunConfig:
    """The configuration of a run, as far as it decides what is written; its input is its own manifest.

    Raises:
        ConfigError: there is no run.
    """
    layout = RunLayout(uri)
    found = _find_run(layout)
    # A run may come from anybody: it is not to say whether code in models is run, or what stores are asked with.
    options = {name: v for name, v in json.loads(found["config"]).items() if name not in NOT_PART_OF_A_RESULT}
    return RunConfig.from_dict(
        {
            **LATER,
            **options,
            "images": (layout.uri(layout.MANIFEST),),
            "output": uri,
            "jit": found.get("jit", "auto"),
            "since": found.get("since"),
        }
    )


def check_same_options(config: RunConfig) -> None:
    """Raises ConfigError unless a configuration is that of the run in its output folder."""
    found = _find_run(RunLayout(config.output))
    difference = describe_difference(json.loads(found["config"]), config.identity())
    if difference:
        raise ConfigError(
            f"the run in {config.output!r} is of another configuration ({difference}): --retry-failures takes the "
            "run's own options, and needs no other"
        )


def find_mended(config: RunConfig) -> Plan | None:
    """The plan of a run that is complete and has no failures; None of any other."""
    plan = read_plan(config)
    if plan.pending or not storage.exists(plan.layout.uri(plan.layout.SUMMARY)):
        return None
    return None if read_summary(plan.layout)["failures"] else plan


def plan_mending(config: RunConfig, metadata: dict[str, str], held: contextlib.ExitStack) -> Plan:
    """Opens the shards of a run again that have failures, or finds those that another job has left open.

    Args:
        config: the run's own.
        metadata: what the model says of itself, see `plan_run`.
        held: see `plan_run`.

    Raises:
        ConfigError: the model or its class names have changed since, or another job works on the run.
    """
    layout = RunLayout(config.output)
    found = _find_run(layout)
    _check_same_model(config, metadata, found, "start a new run, with --since this one if you like")
    held.enter_context(hold_run(layout))
    with as_config_errors(f"the run in {config.output!r} cannot be written"):
        storage.remove_temporaries(config.output)
        reopen_failures(layout, found)
    return read_plan(config, resumed=True, mending=True)


def check_output(
    config: RunConfig, listing: Listing, metadata: dict[str, str], overwrite: bool = False
) -> dict[str, str] | None:
    """What the manifest of the run in the output folder says, which this job may go on with; writes nothing.

    Returns:
        None if there is no run.

    Raises:
        ConfigError: it holds a run that the job may not touch, or something that is no run.
    """
    layout = RunLayout(config.output)
    with as_config_errors(f"the output folder {config.output!r} cannot be reached"):
        there = storage.exists(layout.uri(layout.MANIFEST))
        strangers = [name for name in layout.FOLDERS if not there and storage.exists(layout.uri(name))]
    if strangers:
        raise ConfigError(
            f"the output folder {config.output!r} holds {', '.join(strangers)} but no manifest of a run: "
            "choose an empty folder"
        )
    if not there:
        return None
    with as_config_errors(f"the run in {config.output!r} cannot be read"):
        found = read_run_metadata(layout)
        if found is None:
            raise ConfigError(
                f"the output folder {config.output!r} holds a {layout.MANIFEST} that is not a run's: "
                "choose an empty folder"
            )
        if not overwrite:
            _check_same_run(config, layout, listing, metadata, found)
    return found


def new_plan(config: RunConfig, listing: Listing, metadata: dict[str, str]) -> Plan:
    """The plan of a run that is not there yet; writes nothing."""
    n_shards = -(-listing.n_images // config.shard_size)
    return Plan(config, listing.n_images, listing.n_duplicates, n_shards, tuple(range(n_shards)), metadata)


def read_plan(config: RunConfig, resumed: bool = False, mending: bool = False) -> Plan:
    """The plan of the run that is on disk.

    Raises:
        ConfigError: its manifest contradicts itself.
    """
    plan = _read_start(config, resumed, mending)
    done = committed_shards(plan.layout, plan.metadata)
    return dataclasses.replace(plan, pending=tuple(shard for shard in range(plan.n_shards) if shard not in done))


def _read_start(config: RunConfig, resumed: bool, mending: bool = False) -> Plan:
    """What the manifest alone says of a run: its plan, as if nothing were pending."""
    layout = RunLayout(config.output)
    metadata = parquet.read_metadata(layout.uri(layout.MANIFEST))
    n_images = parquet.count_rows(layout.uri(layout.MANIFEST))
    n_shards = -(-n_images // config.shard_size)
    if (metadata["n_images"], metadata["n_shards"]) != (str(n_images), str(n_shards)):
        told = f"{metadata['n_images']} in {metadata['n_shards']} shards"
        raise ConfigError(
            f"the manifest of the run in {config.output!r} is damaged: it has {n_images} rows, and tells of {told}"
        )
    return Plan(config, n_images, int(metadata["n_duplicates"]), n_shards, (), metadata, resumed, mending)


def cover(numbers: Iterable[int], most: int = MOST_RANGES) -> list[tuple[int, int]]:
    """Ranges, each its first number and the one after its last, in which all of some ascending numbers are.

    Few of them are told exactly. Of more than `most`, those with the smallest gaps between them become one: a worker
    that is given a shard which is committed passes it over.
    """
    numbers = list(numbers)
    gaps = ((after - before, before, after) for before, after in itertools.pairwise(numbers) if after > before + 1)
    cuts = sorted((before, after) for _, before, after in heapq.nlargest(most - 1, gaps))
    firsts = numbers[:1] + [after for _, after in cuts]
    ends = [before + 1 for before, _ in cuts] + [number + 1 for number in numbers[-1:]]
    return list(zip(firsts, ends, strict=True))


def committed_shards(layout: RunLayout, metadata: dict[str, str]) -> dict[int, dict[str, Any]]:
    """The markers of the shards that are committed: those that can be read, are of this run, and whose files are there.

    Args:
        layout: the run.
        metadata: what its manifest says.
    """
    uris = [uri for uri in storage.list_files(layout.uri("shards")) if uri.endswith(".json")]
    there = {uri for name in ("records", "failures", "sums") for uri in storage.list_files(layout.uri(name))}
    done = {}
    for content in storage.read_many(uris):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            marker = json.loads(content or b"")
            number = int(marker["shard"])
            files = {layout.uri(path) for path in committed_files(layout, number, marker)}
            if files <= there and is_of_run(marker, metadata):
                done[number] = marker
    return done


def reopen_failures(layout: RunLayout, metadata: dict[str, str]) -> int:
    """Takes the commitment back of every shard with failures; its records stay where they are, to be kept.

    Returns:
        The number of failures.
    """
    markers = committed_shards(layout, metadata)
    failing = {number: marker["failures"] for number, marker in markers.items() if marker["failures"]}
    if failing:
        storage.remove_file(layout.uri(layout.SUMMARY))
    for number in failing:
        storage.remove_file(layout.uri(layout.marker(number)))
    return sum(failing.values())


def marked_shards(layout: RunLayout) -> list[int]:
    """The shards with a marker, by its name alone: quick, for showing progress."""
    names = (uri.rsplit("/", 1)[-1].removesuffix(".json") for uri in storage.list_files(layout.uri("shards")))
    return [int(name) for name in names if name.isdecimal()]


def finish_run(plan: Plan, seconds: float, done: int | None = None) -> dict[str, Any]:
    """Sums the markers up, checks that nothing is missing, and writes run.json.

    A run that was complete already keeps the summary it has.

    Args:
        plan: the run.
        seconds: that the job took.
        done: how many shards the job has committed; None for those that the plan has pending.

    Raises:
        RunError: a shard is missing, records and failures do not add up to the input, or another job has overwritten
            the run meanwhile.
    """
    layout, done = plan.layout, len(plan.pending) if done is None else done
    if not done:
        with contextlib.suppress(RunError):  # none, or a damaged one
            return read_summary(layout)
    markers = read_markers(layout, range(plan.n_shards))
    summary = summarize(plan.config, plan.metadata, markers, seconds, done)
    if summary["records"] + summary["failures"] != plan.n_images:
        raise RunError(
            f"{plan.n_images} images went in, but {summary['records']} records and {summary['failures']} failures came "
            f"out: `beamcam verify {layout.output}` tells which are missing"
        )
    summary["sums"] = write_total(layout, markers, Basis.of_job(plan.config.methods, plan.metadata))
    if plan.resumed:
        _check_not_overwritten(plan)
        remove_orphans(layout, plan.n_shards)
    _check_not_overwritten(plan)  # once more: of hundreds of thousands of shards all this has taken minutes
    storage.write_bytes(layout.uri(layout.SUMMARY), json.dumps(summary, indent=1).encode())
    return summary


def finish_detached(ending: Ending, _: object = None) -> dict[str, Any]:
    """`finish_run` on a worker, after the last shard, in a job that nobody waits for; a second time is no harm.

    Args:
        ending: what the worker needs.
        _: what Beam has made before, which is on disk.

    Raises:
        RunError: as `finish_run`; another job has taken the run over; or more images failed than the job allows.
            Nobody sees an exit code, so the job itself is to fail.
    """
    config = ending.job.config
    configure_storage(config.storage_options, config.storage_timeout)
    plan = _read_start(config, ending.resumed)
    if claim_of(plan.metadata) != ending.job.claim:
        raise _overwritten(plan)
    summary = finish_run(plan, time.time() - ending.begun, ending.n_pending)
    check_failures(summary, config)
    return summary


def _check_not_overwritten(plan: Plan) -> None:
    found = read_run_metadata(plan.layout)
    if found is None or claim_of(found) != claim_of(plan.metadata):
        raise _overwritten(plan)


def _overwritten(plan: Plan) -> RunError:
    return RunError(f"another job has overwritten the run in {plan.config.output!r} meanwhile: it is not summed up")


def check_failures(summary: Mapping[str, Any], config: RunConfig) -> None:
    """Raises RunError if more images failed than the job allows."""
    if config.max_failures is not None and summary["failures"] > config.max_failures:
        raise RunError(f"{summary['failures']} images failed, and --max-failures allows {config.max_failures}")


def remove_run(layout: RunLayout) -> None:
    """Removes a run's files and nothing else; the manifest last, so that a removal cut short can be repeated."""
    remove_files(layout)
    with as_config_errors(f"the run in {layout.output!r} cannot be removed"):
        for name in (layout.SUMMARY, layout.MANIFEST):
            storage.remove_file(layout.uri(name))


def remove_files(layout: RunLayout) -> None:
    """Removes all that a run's shards have written."""
    with as_config_errors(f"the run in {layout.output!r} cannot be removed"):
        for folder in layout.FOLDERS:
            storage.remove_folder(layout.uri(folder))


@contextlib.contextmanager
def _write_manifest(config: RunConfig, listing: Listing, metadata: dict[str, str]) -> Iterator[str]:
    """The manifest of a new run, in a local file."""
    plan = new_plan(config, listing, metadata)
    facts = {
        "n_images": str(plan.n_images),
        "n_shards": str(plan.n_shards),
        "n_duplicates": str(plan.n_duplicates),
        "input_digest": listing.digest,
        "config": json.dumps(config.identity(), sort_keys=True),
        "jit": config.jit,
        "begun": uuid.uuid4().hex,  # so that a job knows a run that replaced its own, though it be of the same options
    }
    find_earlier = None
    if config.since is not None:
        facts["since"] = config.since
        with as_config_errors(f"the manifest of --since {config.since!r} cannot be read"):
            find_earlier = EarlierShards(RunLayout(config.since)).find
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        parquet.copy_manifest(listing.path, file.name, metadata | facts, find_earlier)
        yield file.name


def _check_same_run(
    config: RunConfig, layout: RunLayout, listing: Listing, metadata: dict[str, str], found: dict[str, str]
) -> None:
    ways_out = "choose another folder, or say --overwrite to remove that run"
    holds = f"the output folder {config.output!r} holds a run"
    difference = describe_difference(json.loads(found["config"]), config.identity())
    if difference:
        raise ConfigError(f"{holds} of another configuration ({difference}): {ways_out}")
    _check_same_model(config, metadata, found, ways_out)
    if config.since is not None and config.since != found.get("since"):
        before = f"since {found['since']!r}" if "since" in found else "without --since"
        raise ConfigError(f"{holds} that was begun {before}, and not since {config.since!r}: {ways_out}")
    # Images that vanished meanwhile become failures of the run that listed them; new ones would be passed over.
    new, changed = _compare(listing, parquet.read_manifest(layout.uri(layout.MANIFEST)))
    if new:
        raise ConfigError(
            f"{holds} over another input: {len(new)} of the {listing.n_images} images are not in it, such as "
            f"{new[0]!r}; {ways_out}"
        )
    if changed:
        raise ConfigError(f"{holds} with other labels: {len(changed)} differ, such as {changed[0]!r}'s; {ways_out}")


def _check_same_model(config: RunConfig, metadata: dict[str, str], found: dict[str, str], ways_out: str) -> None:
    holds = f"the output folder {config.output!r} holds a run"
    if found["model_digest"] != metadata["model_digest"]:
        raise ConfigError(f"{holds} of another model: {config.model!r} has changed since; {ways_out}")
    if found["class_names"] != metadata["class_names"]:
        raise ConfigError(f"{holds} with other class names: {config.class_names!r} has changed since; {ways_out}")


def _find_run(layout: RunLayout) -> dict[str, str]:
    with as_config_errors(f"the run in {layout.output!r} cannot be reached"):
        found = read_run_metadata(layout)
    if found is None:
        raise ConfigError(f"there is no run in {layout.output!r}: check the path")
    return found


def _compare(listing: Iterable[Entry], known: Iterator[Entry]) -> tuple[list[str], list[str]]:
    """The uris of a listing that are not known, and those that are known by another label."""
    new, changed = [], []
    passed: dict[str, str | None] = {}  # uri -> label of known entries that were not met yet: few, where orders agree
    for entry in listing:
        while entry.uri not in passed and (other := next(known, None)) is not None:
            passed[other.uri] = other.label
        if entry.uri not in passed:
            new.append(entry.uri)
        elif passed.pop(entry.uri) != entry.label:
            changed.append(entry.uri)
    return new, changed
