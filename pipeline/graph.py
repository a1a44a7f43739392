"""The Beam graph of a run, and the runner that executes it."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.errors import ConfigError
from pipeline.lifetime import announce_job
from pipeline.run import Plan
from pipeline.totals import Basis
from pipeline.transforms import ProcessShards, WriteSums


def run_graph(plan: Plan, beam_options: Sequence[str]) -> None:
    """Runs the pending shards of a plan to the end."""
    options = parse_beam_options(beam_options)
    runner = _runner(options)
    if isinstance(runner, FnApiRunner):  # of others, workers may outlive the process that has launched the job
        announce_job()
    with beam.Pipeline(runner=runner, options=options) as root:
        define_pipeline(root, plan)


def define_pipeline(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """The graph: numbers of shards in, markers and their sums out; images and maps stay inside one stage."""
    # The manifest's path travels with the configuration, not its content: jobs have a size limit.
    shards = root | "PendingShards" >> beam.Create(plan.pending, reshuffle=False)
    # A break of fusion between numbers, so that shards spread over workers; only integers pass it.
    spread = shards | "Spread" >> beam.Reshuffle()
    markers = spread | ProcessShards(plan.running)
    return markers | WriteSums(plan.running, Basis.of_job(plan.config.methods, plan.metadata))


def parse_beam_options(arguments: Sequence[str], own: Sequence[str] = ()) -> PipelineOptions:
    """Beam's options from what is left of the command line.

    Args:
        arguments: as typed.
        own: the command's own options, for a hint at what was meant.

    Raises:
        ConfigError: an option is neither beamcam's nor Beam's.
    """
    takes_value = beam_option_names()
    words = list(arguments)
    while words:
        name, equals, _ = (word := words.pop(0)).partition("=")
        if name not in takes_value or not name.startswith("--"):
            raise ConfigError(_unexpected(word, [*own, *takes_value]))
        if takes_value[name] and not equals and words:
            words.pop(0)
    return _parse(arguments)


def beam_option_names() -> dict[str, bool]:
    """Every option that Beam knows, and whether it takes a value."""
    found: dict[str, bool] = {}
    for options in PipelineOptions.__subclasses__():
        parser = _BeamArgumentParser(add_help=False, conflict_handler="resolve")
        options._add_argparse_args(parser)
        found |= {name: action.nargs != 0 for action in parser._actions for name in action.option_strings}
    return found


def _unexpected(word: str, options: Sequence[str]) -> str:
    if not word.startswith("-"):
        return f"{word!r} stands alone: a glob must be quoted, and --images given once for each folder or file"
    name = word.partition("=")[0]
    nearest = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"there is no option {name}, neither of beamcam nor of Beam{hint}"


def _parse(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's own parser, whose complaints are some hundred lines, with the last of them alone."""
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            options = PipelineOptions(list(arguments))
            options.get_all_options()
            runner = _runner(options)
            if isinstance(runner, str):
                beam.runners.runner.create_runner(runner)
    except SystemExit:
        raise ConfigError(complaints.getvalue().strip().splitlines()[-1].removeprefix("cli.py: ")) from None
    except Exception as error:
        raise ConfigError(f"Beam refuses these options: {error}".splitlines()[0]) from error
    return options


def _runner(options: PipelineOptions) -> beam.runners.PipelineRunner | str:
    name = options.view_as(StandardOptions).runner
    # Beam's own DirectRunner is a switch between three runners, the first of which it downloads. What is meant by the
    # name is the one in this process.
    return FnApiRunner() if name in (None, "DirectRunner", "direct") else name
