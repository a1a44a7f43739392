"""What the commands do: read options, call the pipeline, and tell the user in a few lines."""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline import logs, quiet, storage
from pipeline.config import RunConfig, Targets, configure_storage, parse_options
from pipeline.errors import ConfigError, RunError, as_config_errors
from pipeline.layout import RunLayout
from pipeline.nights import absolute_since, find_since
from pipeline.progress import tell
from pipeline.records import Entry, Failure, MapRecord, Record, Shard
from pipeline.timing import describe_timings
from pipeline.wording import shown

MAX_CONFIG_BYTES = 1_000_000  # of a YAML file
MAX_CONFIG_DEPTH = 20

SUMMED_UP = (
    "inputs", "duplicates", "records", "carried", "failures", "failures_by_type", "overlays", "shards", "workers",
    "model_loads", "bytes_read", "bytes_written", "seconds", "seconds_by_stage", "bottleneck", "store_troubles",
    "metrics",
)  # fmt: skip
"""What of run.json `beamcam run` says at its end, in JSON."""


def run(arguments: argparse.Namespace, beam_options: list[str]) -> int:
    """`beamcam run`."""
    from pipeline.graph import parse_beam_options, prepare_options
    from pipeline.job import mend_run, run_job
    from pipeline.run import check_failures

    parse_beam_options(beam_options, arguments.own_options)
    if arguments.retry_failures is not None:
        config = make_config_of_run(arguments)
        logs.name_run(config.output)
        summary = mend_run(config, beam_options, say=say)
    else:
        config, note = find_since(make_config(arguments), arguments.overwrite)
        logs.name_run(config.output)
        if note is not None:
            say(note)
        if arguments.dry_run:
            prepare_options(beam_options, config, say)
            return _dry_run(config, arguments.overwrite, latest=note is not None)
        summary = run_job(config, beam_options, overwrite=arguments.overwrite, latest=note is not None, say=say)
    if not summary:
        say(f"submitted: the engine goes on alone, and writes {config.output}/run.json when every image is explained")
        return 0
    first, *others = describe_summary(summary, config.output)
    say(first, **{name: summary.get(name) for name in SUMMED_UP})
    for line in others if not logs.is_json() else ():
        say(line)
    check_failures(summary, config)
    return 0


def _dry_run(config: RunConfig, overwrite: bool, latest: bool) -> int:
    quiet.import_tensorflow()
    from pipeline.planning import estimate_run

    for line in estimate_run(config, overwrite, latest):
        say(line)
    return 0


def inspect(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam inspect`."""
    _configure_storage(_storage_options(arguments))
    from pipeline.worker import describe_model

    config = RunConfig(
        ("-",),
        arguments.model,
        "-",
        layer=arguments.layer,
        logits_layer=arguments.logits_layer,
        reshape=arguments.reshape,
        allow_unsafe_model=arguments.allow_unsafe_model,
    )
    for line in describe_model(config):
        say(line)
    return 0


def show(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam show`."""
    from pipeline.shard import ShardJob
    from pipeline.worker import Worker

    target = arguments.output or f"{Path(arguments.image).stem}-explained.png"
    if arguments.targets and Targets.parse(arguments.targets).need_labels:
        raise ConfigError(f"one image has no label: --targets is top:K, ids:3,17 or all, not {arguments.targets!r}")
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            arguments, images=(arguments.image,), output=folder, batch_size=1, jit="off", labels_from="none"
        )
        worker = Worker(config)
        entry = Entry(storage.absolute(arguments.image))
        job = ShardJob(worker, RunLayout(folder), Shard(0, [entry]))
        (outcome,) = map(job.make_record, job.explain([job.load(entry)]))
        if isinstance(outcome, Failure):
            raise RunError(f"{arguments.image}: {outcome.message}")
        assert isinstance(outcome, Record)
        picture = _show_sheet(outcome, Path(folder), worker.class_names)
    with as_config_errors(f"the picture {target!r} cannot be written"):
        storage.write_bytes(target, picture)
    for line in _describe_record(outcome, worker.class_names):
        say(line)
    say(f"written: {target}")
    return 0


def verify(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam verify`."""
    _configure_storage(_storage_options(arguments))
    from pipeline.reading import open_run
    from pipeline.verify import Told, verify_run

    logs.name_run(arguments.run)
    told = Told()
    for line in told.lines(verify_run(arguments.run)):
        say(line)
    if told.total:
        raise RunError(f"{arguments.run}: {told.total} problem{'s' if told.total > 1 else ''} found")
    found = open_run(arguments.run)
    counts = ", ".join(f"{found.summary[name]} {name}" for name in ("records", "failures", "overlays"))
    say(f"{arguments.run}: {counts} of {found.summary['inputs']} images: nothing lost, doubled or damaged")
    return 0


def watch(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam watch`."""
    _configure_storage(_storage_options(arguments))
    from pipeline.watching import watch_run

    uri = storage.absolute(arguments.run).rstrip("/")
    logs.name_run(uri)
    try:
        watch_run(uri, say, once=arguments.once, interval=arguments.interval, stalled_after=arguments.stalled_after)
    except KeyboardInterrupt:
        tell("not watched any more; the run goes on")
        return 130
    return 0


def audit(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam audit`."""
    _configure_storage(_storage_options(arguments))
    from pipeline.audit import command

    logs.name_run(arguments.words[0] if len(arguments.words) == 1 else arguments.words[1])
    return command.audit(arguments, say_cells)


def export(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam export`."""
    _configure_storage(_storage_options(arguments))
    from pipeline.exports import command

    logs.name_run(arguments.run)
    command.export(arguments, say)
    return 0


def methods(_: argparse.Namespace, __: list[str]) -> int:
    """`beamcam methods`."""
    from pipeline.worker import describe_methods

    for line in describe_methods():
        say(line)
    return 0


def demo(arguments: argparse.Namespace, _: list[str]) -> int:
    """`beamcam demo`."""
    from pipeline.demo import run_demo

    run_demo(Path(arguments.output), arguments.count, arguments.seed, say, arguments.marked_share)
    return 0


def _storage_options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("storage_options", "storage_timeout")
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}


def say(line: str, /, **fields: Any) -> None:
    """Prints a line; in JSON, with further fields."""
    logs.write(sys.stdout, line, **fields)


def say_cells(*cells: str) -> None:
    """Prints a line of cells with tabs between them."""
    if logs.is_json():
        say("  ".join(cells), cells=cells)
        return
    sys.stdout.write("\t".join(map(shown, cells)) + "\n")
    sys.stdout.flush()


def make_config(arguments: argparse.Namespace, **fixed: Any) -> RunConfig:
    """The configuration from the options, a YAML file under them, and the defaults under that.

    Raises:
        ConfigError: a required option is missing, or a value is wrong.
    """
    values = _given_options(arguments) | fixed
    missing = [f"--{name}" for name in ("images", "model", "output") if not values.get(name)]
    if missing:
        raise ConfigError(f"these options are needed: {', '.join(missing)} (see `beamcam run --help`)")
    values["output"] = storage.absolute(str(values["output"])).rstrip("/")
    return RunConfig(**values)


def make_config_of_run(arguments: argparse.Namespace) -> RunConfig:
    """The configuration of the run that --retry-failures names, with the options that were given beside it.

    Raises:
        ConfigError: there is no run, or an option does not go with it.
    """
    from pipeline.run import config_of_run

    for option in ("dry_run", "overwrite", "images", "output", "since"):
        if getattr(arguments, option):
            raise ConfigError(
                f"--retry-failures tries the images of a run again, in place: leave --{option.replace('_', '-')} out"
            )
    values = _given_options(arguments)
    for name in ("images", "output", "since"):  # of the night's --config
        values.pop(name, None)
    config = config_of_run(storage.absolute(str(arguments.retry_failures)).rstrip("/"))
    return dataclasses.replace(config, **values)


def _given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the configuration that the command line or its YAML file names."""
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in fields and value is not None}
    _configure_storage(given)
    values = read_config_file(arguments.config) if getattr(arguments, "config", None) else {}
    values |= given
    _configure_storage(values)
    for name in ("images", "storage_options"):
        if name in values:
            values[name] = tuple(values[name])
    # A run is the same run from any working directory.
    if values.get("since"):
        values["since"] = absolute_since(values["since"])
    for name in ("model", "class_names"):
        value = values.get(name)
        if value and storage.is_local(value) and storage.exists(value):
            values[name] = storage.absolute(value)
    return values


def _configure_storage(options: Mapping[str, Any]) -> None:
    """For all that is read from here on; every command may be given options of stores."""
    configure_storage(options.get("storage_options", ()), options.get("storage_timeout", RunConfig.storage_timeout))


def read_config_file(uri: str) -> dict[str, Any]:
    """Reads options from YAML: the names of the command line, with or without dashes.

    Raises:
        ConfigError: it cannot be read, or holds an unknown option.
    """
    import yaml

    with as_config_errors(f"--config {uri!r} cannot be read"):
        data = storage.read_bytes(uri, limit=MAX_CONFIG_BYTES)
        _check_yaml(yaml.parse(data, Loader=yaml.SafeLoader), f"--config {uri!r}")
        content = yaml.safe_load(data) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {uri!r} holds options as `name: value`, not {type(content).__name__}")
    return parse_options(content, f"--config {uri!r}")


def _check_yaml(events: Iterable[Any], what: str) -> None:
    import yaml

    depth = 0
    for event in events:
        # A few aliases of aliases stand for more text than any memory holds, as soon as somebody shows it.
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{what} refers back to its own values (*name): write them out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:  # each level makes the reading of all that follows slower
            raise ConfigError(
                f"{what} is nested more than {MAX_CONFIG_DEPTH} levels deep: options are names and values"
            )


def describe_summary(summary: dict[str, Any], output: str) -> list[str]:
    """What a run did, for the end of the terminal's output."""
    rate = f" ({summary['inputs'] / summary['seconds']:.1f} images/s)" if summary["seconds"] else ""
    counts = ", ".join(f"{summary[name]} {name}" for name in ("records", "failures", "overlays"))
    if summary.get("carried"):
        counts += f" ({summary['carried']} records carried over)"
    lines = [f"{counts} in {summary['seconds']:.0f} s{rate}"]
    if summary["duplicates"]:
        lines.append(f"{summary['duplicates']} repetitions in the input were left out")
    troubles = summary.get("store_troubles", {})
    if any(troubles.values()):
        lines.append(
            "of the stores' requests, {retries} were tried again, {hedges} begun a second time beside a slow one, and "
            "{timeouts} given up as hanging".format(**troubles)
        )
    lines += [f"  {count} x {kind}" for kind, count in summary["failures_by_type"].items()]
    if summary["failures"]:
        lines.append(f"  each with its reason in {output}/failures/")
    for method, metrics in summary.get("metrics", {}).items():
        lines.append(f"{method}: mean " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    lines += describe_timings(summary)
    lines.append(f"read it with pipeline.open_run({output!r}), or any Parquet reader: {output}/records/*.parquet")
    return lines


def _describe_record(record: Record, names: list[str] | None) -> list[str]:
    lines = [f"{record.uri}: {record.geometry.width} x {record.geometry.height} pixels"]
    for values in record.maps:
        box = (
            "nothing in the map is positive"
            if values.box is None
            else ("strongest region x {:.0f} y {:.0f} w {:.0f} h {:.0f}".format(*values.box))
        )
        lines.append(f"  {values.method}: {class_name(values.target, names)}, p {values.probability:.3f}, {box}")
    return lines


def _show_sheet(record: Record, folder: Path, names: list[str] | None) -> bytes:
    from PIL import Image

    from pipeline.decode import decode_image
    from pipeline.sheet import make_sheet

    photograph = decode_image(storage.read_bytes(record.uri))
    tiles = []
    for target, group in itertools.groupby(sorted(record.maps, key=_by_rank), key=lambda values: values.target):
        tiles.append((photograph, f"{class_name(target, names)}\n{Path(record.uri).name}"))
        for values in group:
            overlay = Image.open(io.BytesIO((folder / str(values.overlay)).read_bytes()))
            tiles.append((overlay, f"{values.method}\np {values.probability:.3f}"))
    methods_shown = len({values.method for values in record.maps})
    side = min(max(record.geometry.width, record.geometry.height), 640)
    return make_sheet(tiles, columns=1 + methods_shown, tile_size=side)


def _by_rank(values: MapRecord) -> tuple[float, int]:
    return -values.score, values.target


def class_name(index: int, names: list[str] | None) -> str:
    """A class's name and index."""
    return f"{names[index]} ({index})" if names else f"class {index}"
