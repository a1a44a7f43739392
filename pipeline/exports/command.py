"""The options of `beamcam export` as a configuration, and what it says at its end."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.exports.calibration import BoxScores, describe_scores, read_boxes, score_boxes
from pipeline.exports.choosing import TARGETS, Choice, class_index, read_findings
from pipeline.exports.exporting import ExportConfig, export_run, methods_of
from pipeline.exports.formats import EXPORTERS
from pipeline.exports.regions import Cut
from pipeline.reading import Run, open_run


def export(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Calibrates if asked, exports if asked, and tells what came of it.

    Raises:
        ConfigError: options are missing or do not go together.
        RunError: there is no finished run.
    """
    if arguments.to is None and arguments.calibrate is None:
        raise ConfigError(f"--to is needed, one of {', '.join(EXPORTERS)}; or --calibrate, to measure boxes")
    if arguments.to is not None and not arguments.output:
        raise ConfigError("--output is needed: the file, or for some formats the folder, to write")
    if arguments.threshold is not None and arguments.calibrate is not None:
        raise ConfigError("--threshold is what --calibrate finds: leave one of them out")
    run = open_run(arguments.run)
    method = _method(run, arguments.method)
    threshold = Cut.threshold if arguments.threshold is None else arguments.threshold
    if arguments.calibrate is not None:
        scores = _calibrate(run, arguments.calibrate, say)
        if method not in scores and arguments.to is not None:
            raise ConfigError(f"no image with boxes has a map of {method} to calibrate: leave --calibrate out")
        threshold = scores[method].best_threshold if method in scores else threshold
    if arguments.to is None:
        return
    config = make_config(arguments, run, method, threshold)
    summary = export_run(run, config)
    for line in summary.lines(config.output):
        say(line)


def make_config(arguments: argparse.Namespace, run: Run, method: str, threshold: float) -> ExportConfig:
    """The configuration that the options make.

    Raises:
        ConfigError: a class, a finding or a number is none.
    """
    cut = Cut(threshold, arguments.min_area, arguments.min_energy, _most(arguments.regions))
    shapes = None if arguments.shapes is None else frozenset(arguments.shapes)
    return ExportConfig(
        arguments.to,
        storage.absolute(str(arguments.output)).rstrip("/"),
        _choice(arguments, run, method),
        cut,
        shapes,
        arguments.per_file,
        None if arguments.root is None else storage.absolute(arguments.root).rstrip("/") + "/",
        arguments.image_prefix,
        arguments.copy_images,
        arguments.overwrite,
    )


def _choice(arguments: argparse.Namespace, run: Run, method: str) -> Choice:
    if arguments.targets not in TARGETS:
        raise ConfigError(f"--targets of an export is {' or '.join(TARGETS)}, not {arguments.targets!r}")
    classes = None if not arguments.classes else frozenset(_class(text, run) for text in arguments.classes)
    ids = None
    if arguments.findings or arguments.rule or arguments.finding:
        uri = storage.absolute(arguments.findings or storage.join(run.path, "audit/findings.json"))
        ids = read_findings(uri, arguments.rule or (), arguments.finding or ())
    return Choice(method, arguments.targets, classes, arguments.min_score, arguments.sample, ids)


def _method(run: Run, asked: str | None) -> str:
    known = methods_of(run)
    if not known:
        raise ConfigError(f"{run.path!r} has no maps to export")
    if asked is not None and asked not in known:
        raise ConfigError(f"--method is one that the run has, {', '.join(known)}, not {asked!r}")
    return asked or known[0]


def _class(text: str, run: Run) -> int:
    index = class_index(text, run.class_names)
    if index is None:
        raise ConfigError(f"--class is a name or an index of a class of the run, not {text!r}{_nearest(text, run)}")
    return index


def _nearest(text: str, run: Run) -> str:
    import difflib

    found = difflib.get_close_matches(text, run.class_names or (), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def _most(text: str) -> int | None:
    if text == "all":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"--regions is all, or how many of the strongest, from 1; not {text!r}")
    return int(text)


def _calibrate(run: Run, source: str, say: Callable[[str], None]) -> dict[str, BoxScores]:
    scores = score_boxes(run, read_boxes(run, source))
    for line in describe_scores(scores):
        say(line)
    return scores
