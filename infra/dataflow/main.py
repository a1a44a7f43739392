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
    given by `true`, and what may be given several times is JSON, `["one", "two"]`.

    Args:
        arguments: `--name=value`: parameters, and what the launcher adds of its own.
        image: this image's own name, which workers are to start; None if it is not known.
    """
    own = _own_options()
    words = [word for argument in arguments for word in _translate(argument, own)]
    given = {word.partition("=")[0] for word in words}
    defaults = {"--runner": "DataflowRunner", "--sdk_container_image": image, "--log-format": "json"}
    return ["run", *words, *(f"{name}={value}" for name, value in defaults.items() if value and name not in given)]


def _own_options() -> dict[str, argparse.Action]:
    """The options of `beamcam run` by the names that parameters have."""
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    options = commands.choices["run"]._actions
    return {name.lstrip("-").replace("-", "_"): option for option in options for name in option.option_strings}


def _translate(argument: str, own: dict[str, argparse.Action]) -> Iterator[str]:
    name, _, value = argument.lstrip("-").partition("=")
    option = own.get(name.replace("-", "_"))
    if not value:
        return
    if option is None:
        # Dataflow itself refuses parameters that the template does not declare: what else comes is from the launcher.
        if f"--{name}" in _names_of_beam():
            yield f"--{name}={value}"
        else:
            sys.stderr.write(f"beamcam: --{name} is passed over: Beam has no such option\n")
    elif option.nargs == 0:
        if value.lower() == "true":
            yield option.option_strings[-1]
    else:
        for one in json.loads(value) if value.startswith("[") else [value]:
            yield f"{option.option_strings[-1]}={one}"


def _names_of_beam() -> dict[str, bool]:
    from pipeline.graph import beam_option_names

    return beam_option_names()


if __name__ == "__main__":
    sys.exit(main(run_words(sys.argv[1:], os.environ.get("BEAMCAM_IMAGE"))))
