"""What Dataflow's launcher calls in the template's image: its parameters as the words of `beamcam run`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

from pipeline.cli import main, make_parser


def run_words(arguments: Sequence[str], image: str | None = None) -> list[str]:
    """The command line of `beamcam run` for a launch of the template.

    A template's parameters have names with underscores, and are all text: an empty one counts as not given, a flag is
    given by `true`, and what may be given several times is JSON, `["one", "two"]`. What is passed over is said in a
    line.

    Args:
        arguments: `--name=value`, or `--name` of a flag: parameters, and what the launcher adds of its own.
        image: this image's own name, which workers are to start; None if it is not known.
    """
    own, beams = _own_options(), _names_of_beam()
    words = [word for argument in arguments for word in _translate(argument, own, beams)]
    given = {word.partition("=")[0] for word in words}
    defaults = {"--runner": "DataflowRunner", "--sdk_container_image": image, "--log-format": "json"}
    return ["run", *words, *(f"{name}={value}" for name, value in defaults.items() if value and name not in given)]


def _own_options() -> dict[str, argparse.Action]:
    """The options of `beamcam run` by the names that parameters have."""
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = commands.choices["run"]._actions
    return {name.lstrip("-").replace("-", "_"): option for option in options for name in option.option_strings}


def _translate(argument: str, own: dict[str, argparse.Action], beams: dict[str, bool]) -> Iterator[str]:
    name, equals, value = argument.lstrip("-").partition("=")
    option = own.get(name.replace("-", "_"))
    word = option.option_strings[-1] if option else f"--{name}"
    if equals and not value:
        return
    if not equals and not argument.startswith("--"):
        _pass_over(argument, "it stands alone, and options are --name=value")
    elif option is None and word not in beams:
        # Dataflow itself refuses parameters that the template does not declare: what else comes is from the launcher.
        _pass_over(word, "Beam has no such option")
    elif option.nargs == 0 if option else not beams[word]:
        yield from _translate_flag(word, value.lower() if equals else "true", beams, option is None)
    elif not equals:
        _pass_over(word, "it has no value")
    else:
        for one in json.loads(value) if option and value.startswith("[") else [value]:
            yield f"{word}={one}"


def _translate_flag(word: str, value: str, beams: dict[str, bool], is_beams: bool) -> Iterator[str]:
    """A flag takes no value: `true` is the flag itself, `false` the one that says the opposite, if there is one."""
    opposite = f"--{word[5:]}" if word.startswith("--no_") else f"--no_{word[2:]}"
    if value == "true":
        yield word
    elif value != "false":
        _pass_over(f"{word}={value}", "a flag is true or false")
    elif is_beams and opposite in beams:
        yield opposite
    elif is_beams:  # some are on by default
        _pass_over(f"{word}=false", "it has no opposite, and the default holds")


def _pass_over(what: str, why: str) -> None:
    sys.stderr.write(f"beamcam: {what} is passed over: {why}\n")


def _names_of_beam() -> dict[str, bool]:
    from pipeline.graph import beam_option_names

    return beam_option_names()


if __name__ == "__main__":
    sys.exit(main(run_words(sys.argv[1:], os.environ.get("BEAMCAM_IMAGE"))))
