"""The Beam graph of a run, and the runner that executes it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, _BeamArgumentParser
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.errors import ConfigError
from pipeline.run import Plan
from pipeline.transforms import ProcessShards


def run_graph(plan: Plan, beam_options: Sequence[str]) -> None:
    """Runs the pending shards of a plan to the end."""
    options = parse_beam_options(beam_options)
    with beam.Pipeline(runner=_runner(options), options=options) as root:
        define_pipeline(root, plan)


def define_pipeline(root: beam.Pipeline, plan: Plan) -> beam.PCollection:
    """The graph: numbers of shards in, markers out; images and maps stay inside one stage."""
    # The manifest's path travels with the configuration, not its content: jobs have a size limit.
    shards = root | "PendingShards" >> beam.Create(plan.pending, reshuffle=False)
    # A break of fusion between numbers, so that shards spread over workers; only integers pass it.
    spread = shards | "Spread" >> beam.Reshuffle()
    return spread | ProcessShards(plan.config)


def parse_beam_options(arguments: Sequence[str], own: Sequence[str] = ()) -> PipelineOptions:
    """Beam's options from what is left of the command line.

    Args:
        arguments: as typed.
        own: the command's own options, for a hint at what was meant.

    Raises:
        ConfigError: an option is neither beamcam's nor Beam's.
    """
    known = beam_option_names()
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name.startswith("--") and name not in known:
            nearest = difflib.get_close_matches(name, [*own, *known], n=1, cutoff=0.6)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"there is no option {name}, neither of beamcam nor of Beam{hint}")
    return PipelineOptions(list(arguments))


def beam_option_names() -> set[str]:
    """Every option that Beam knows."""
    found: set[str] = set()
    for options in PipelineOptions.__subclasses__():
        parser = _BeamArgumentParser(add_help=False, conflict_handler="resolve")
        options._add_argparse_args(parser)
        found |= {name for action in parser._actions for name in action.option_strings}
    return found


def _runner(options: PipelineOptions) -> beam.runners.PipelineRunner | str:
    name = options.view_as(StandardOptions).runner
    # Beam's own DirectRunner is a switch between three runners, the first of which it downloads. What is meant by the
    # name is the one in this process.
    return FnApiRunner() if name in (None, "DirectRunner", "direct") else name
