"""The Beam graph of a run, and the runner that executes it."""

from __future__ import annotations

import contextlib
import difflib
import io
from collections.abc import Callable, Iterable, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import engines
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.lifetime import announce_job
from pipeline.run import Plan
from pipeline.totals import Basis
from pipeline.transforms import FinishRun, PendingShards, ProcessShards, WriteSums


def run_graph(plan: Plan, options: PipelineOptions) -> None:
    """Runs the pending shards of a plan to the end, or hands them over if the job is a detached one."""
    runner = _runner(options)
    if isinstance(runner, FnApiRunner):  # of others, workers may outlive the process that has launched the job
        announce_job()
    with beam.Pipeline(runner=runner, options=options) as root:
        define_pipeline(root, plan, is_detached(options))


def define_pipeline(root: beam.Pipeline, plan: Plan, detached: bool = False) -> beam.PCollection:
    """The graph: numbers of shards in, markers and their sums out; images and maps stay inside one stage.

    Args:
        root: the pipeline.
        plan: the run.
        detached: whether the graph is to sum the run up as well, since nobody waits for it.
    """
    if not plan.pending:
        return root | "Nothing" >> beam.Create([None], reshuffle=False) | FinishRun(plan.ending())
    # The manifest's path travels with the configuration, not its content, and of numbers only where they begin and
    # end: jobs have a size limit.
    shards = root | PendingShards(plan.pending)
    # A break of fusion between numbers, so that shards spread over workers; only integers pass it.
    spread = shards | "Spread" >> beam.Reshuffle()
    markers = spread | ProcessShards(plan.running)
    written = markers | WriteSums(plan.running, Basis.of_job(plan.config.methods, plan.metadata))
    return written | FinishRun(plan.ending()) if detached else written


def prepare_options(
    arguments: Sequence[str], config: RunConfig, say: Callable[[str], None] = lambda _: None
) -> PipelineOptions:
    """Beam's options for a job, with what its runner wants beside them.

    Args:
        arguments: as typed.
        config: the job.
        say: called with a line for each option that is filled in.

    Raises:
        ConfigError: an option is neither beamcam's nor Beam's, or the runner is known to fail the job.
    """
    given = _given(parse_beam_options(arguments))
    filled_in = engines.fill_in(given)
    options = parse_beam_options([*arguments, *(default.word for default in filled_in)])
    engines.check_job(_given(options), config)
    for default in filled_in:
        say(str(default))
    return options


def suit_machines(options: PipelineOptions, config: RunConfig, say: Callable[[str], None]) -> RunConfig:
    """See `engines.suit_machines`; what it decides is said."""
    config, decided = engines.suit_machines(_given(options), config)
    for default in decided:
        say(str(default))
    return config


def is_detached(options: PipelineOptions) -> bool:
    """Whether the job goes on without the process that has submitted it."""
    return engines.is_detached(_given(options))


def is_template(options: PipelineOptions) -> bool:
    """Whether the graph is only written down, to be run by somebody else."""
    return options.view_as(GoogleCloudOptions).template_location is not None


def check_images(options: PipelineOptions, uris: Iterable[str]) -> None:
    """See `engines.check_images`."""
    engines.check_images(_given(options), uris)


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


def _given(options: PipelineOptions) -> engines.Given:
    return options.get_all_options(drop_default=True)


def _runner(options: PipelineOptions) -> beam.runners.PipelineRunner | str:
    name = options.view_as(StandardOptions).runner
    # Beam's own DirectRunner is a switch between three runners, the first of which it downloads. What is meant by the
    # name is the one in this process.
    return FnApiRunner() if name in (None, "DirectRunner", "direct") else name
