"""The command line. It imports what a command needs when that command runs, so that --help comes at once."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from pipeline import logs, quiet
from pipeline.errors import BeamcamError, ConfigError
from pipeline.options import split_names

DESCRIPTION = "Explain every image of a data set with your own Keras classifier."

METHODS_HELP = (
    "names of `beamcam methods`, with options in brackets: 'gradcam,scorecam(channels=32)' (default: gradcam)"
)

RUN_EXAMPLES = """\
examples:
  beamcam run --images photos/ --model model.keras --preprocess tf --output run1
  beamcam run --images labels.csv --model gs://bucket/model.keras --preprocess torch --resize crop \\
              --methods cam,gradcam --targets predicted+label --class-names names.txt --output gs://bucket/run1
  beamcam run --config night.yaml --output runs/2026-11-22

Options that are not listed here go to Beam, such as --runner, --direct_num_workers or --region.
The same command again resumes a run that was interrupted, and does nothing to one that is complete.
"""


EXPORT_EXAMPLES = """\
examples:
  beamcam export run1 --to coco --output boxes.json
  beamcam export run1 --to label-studio --output tasks.json --per-file 1000 --class horse --min-score 0.8
  beamcam export run1 --to fiftyone --output dataset --rule BC101
  beamcam export run1 --calibrate boxes.csv
"""


AUDIT_EXAMPLES = """\
examples:
  beamcam audit run1                          judge a run: findings and a report in run1/audit/
  beamcam audit run2 --baseline run1          and what has changed since another run
  beamcam audit run1 --confirm model.keras    and whether the model goes by what looks like a shortcut
  beamcam audit show run1 octagon             the report's page of a class without findings
  beamcam audit accept run1                   make it the baseline

exit codes: 0 nothing as grave as --fail-on, 1 findings as grave, 2 wrong usage, 3 the run cannot be judged
"""


WITHOUT_MODEL = {"run", "verify", "watch", "export", "audit"}
"""Commands that need no TensorFlow at once: the first may find nothing to do, the others have no model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 if all went well, 1 if work failed or a check found something, 2 for wrong usage.
    """
    parser = make_parser()
    arguments, rest = parser.parse_known_args(argv)
    logs.start(logs.LogSettings(arguments.log_format, logging.INFO if arguments.verbose else logging.WARNING))
    quiet_libraries()
    if not arguments.verbose:
        # Beam logs the traceback of a worker's error; the error itself comes back to us, and is told in one line.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    if rest and not getattr(arguments, "takes_beam_options", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return arguments.command(arguments, rest)
    except ConfigError as error:
        return _complain(error, 2)
    except BeamcamError as error:
        return _complain(error, getattr(error, "exit_code", 1))
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{type(error).__name__}: {error}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted: what was committed is kept, and the same command goes on from there", 130)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser("beamcam", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_watch(commands)
    _add_inspect(commands)
    _add_show(commands)
    _add_audit(commands)
    _add_export(commands)
    _add_verify(commands)
    _add_methods(commands)
    return parser


def quiet_libraries() -> None:
    """Keeps TensorFlow's start-up notes off the terminal, unless the user has set their level."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in ("absl", "apache_beam", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Google's clients announce the end of Python 3.10, which is no news to somebody who waits for a run.
    warnings.filterwarnings("ignore", message="You are using a .*Python version", category=FutureWarning)
    # Beam warns through the root logger that a client for BigQuery is missing, which this project never uses.
    logging.getLogger().addFilter(lambda record: "apitools" not in str(record.msg))


def _add_demo(commands: Any) -> None:
    parser = _command(commands, "demo", "the two-minute tour: a data set and a model of its own, the whole job")
    parser.add_argument(
        "--output", default="demo", metavar="DIR", help="folder for all that it makes (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=480, metavar="N", help="images to make (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the training (default: %(default)s)")
    parser.add_argument(
        "--marked-share",
        type=float,
        default=0.875,
        metavar="SHARE",
        help="of the images of one class, 0 to 1, that carry the watermark to be found (default: %(default)s)",
    )
    parser.set_defaults(command=_lazily("demo"))


def _add_run(commands: Any) -> None:
    parser = _command(commands, "run", "the main job: images in, records and overlays out", epilog=RUN_EXAMPLES)
    parser.set_defaults(command=_lazily("run"), takes_beam_options=True)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options; the command line wins")
    _add_input_options(parser.add_argument_group("input"))
    _add_model_options(parser.add_argument_group("model"))
    _add_explaining_options(parser.add_argument_group("explaining"))
    _add_output_options(parser.add_argument_group("output"))
    _add_control_options(parser.add_argument_group("control"))
    parser.set_defaults(own_options=[name for action in parser._actions for name in action.option_strings])


def _add_input_options(group: Any) -> None:
    group.add_argument(
        "--images",
        action="append",
        metavar="SPEC",
        help="folder, glob, image, or manifest (.csv .tsv .jsonl .txt .parquet "
        "with a column uri, and label and boxes if you like) on any store; may be given again",
    )
    group.add_argument(
        "--labels-from",
        metavar="SOURCE",
        help="column (of the manifest), folder (each image's) or none (default: column)",
    )
    group.add_argument("--label-column", metavar="NAME", help="the manifest's column of labels (default: label)")
    group.add_argument(
        "--max-pixels", type=int, metavar="N", help="images with more pixels are failures (default: 100000000)"
    )
    group.add_argument("--max-bytes", type=int, metavar="N", help="larger files are failures (default: 200000000)")
    group.add_argument(
        "--since",
        metavar="RUN",
        help="explain only what is new or changed since that run (told by the files' content); records of all other "
        "images are carried over; latest is the last finished run beside --output whose name comes before its own",
    )


def _add_model_options(group: Any) -> None:
    group.add_argument("--model", metavar="SPEC", help=".keras or .h5 file, keras.applications:NAME, or module:factory")
    group.add_argument(
        "--preprocess",
        metavar="HOW",
        help="tf, caffe, torch, unit, none or module:function; needed unless the model tells",
    )
    group.add_argument("--layer", metavar="NAME", help="the spatial signal to explain (default: the last one)")
    group.add_argument("--logits-layer", metavar="NAME", help="the logits, where a model has several outputs")
    group.add_argument(
        "--reshape", metavar="HOW", help="a transformer's tokens as a grid: tokens (finds it), or HxW such as 14x14"
    )
    group.add_argument("--class-names", metavar="FILE", help="one name a line, or JSON as Keras's ImageNet index")
    group.add_argument("--input-size", type=_size, metavar="HxW", help="where the model leaves it open: 224 or 224x320")
    group.add_argument(
        "--resize", metavar="HOW", help="stretch, crop (the largest centred part) or pad (default: stretch)"
    )
    group.add_argument("--jit", metavar="MODE", help="XLA: auto times both ways once, on, off (default: auto)")
    group.add_argument(
        "--precision",
        metavar="TYPE",
        help="float32, bfloat16 or float16 up to the signal; auto is float32 on processors, what gains most on GPUs "
        "(default: auto)",
    )
    group.add_argument(
        "--allow-unsafe-model", action="store_true", default=None, help="run code that a model file brings along"
    )


def _add_explaining_options(group: Any) -> None:
    group.add_argument("--methods", type=split_names, metavar="A,B", help=METHODS_HELP)
    group.add_argument(
        "--targets", metavar="WHICH", help="top:K, label, predicted+label, ids:3,17 or all (default: top:1)"
    )
    group.add_argument(
        "--metrics",
        type=split_names,
        metavar="A,B",
        help="measure every map: deletion, insertion (51 passes a map each), drop, increase (2), pointing, energy "
        "(the label's map against the manifest's boxes) (default: none)",
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="images a batch (default: 32)")


def _add_output_options(group: Any) -> None:
    group.add_argument("--output", metavar="DIR", help="the run's folder, on any store")
    group.add_argument(
        "--overlays", metavar="STYLE", help="blend (over the photograph), layer (transparent) or none (default: blend)"
    )
    group.add_argument(
        "--overlay-size", type=int, metavar="PX", help="longest side of an overlay (default: the original's)"
    )
    group.add_argument(
        "--overlay-sample",
        type=float,
        metavar="SHARE",
        help="share of the images that get overlays, 0 to 1 (default: 1)",
    )
    group.add_argument("--colormap", metavar="NAME", help="inferno, viridis, cividis, ... (default: inferno)")
    group.add_argument("--logits", metavar="WHICH", help="all or top:K (default: all)")
    group.add_argument(
        "--map-dtype",
        metavar="TYPE",
        help="float16 keeps the sign; uint8 keeps the positive part in half the bytes (default: float16)",
    )
    group.add_argument(
        "--shard-size", type=int, metavar="N", help="images a shard, the unit of work and of resuming (default: 256)"
    )


def _add_control_options(group: Any) -> None:
    group.add_argument(
        "--dry-run", action="store_true", help="try a sample of the images, print the plan, write nothing"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with the run in the output folder (what happens anyway)"
    )
    group.add_argument("--overwrite", action="store_true", help="remove the run in the output folder first")
    group.add_argument(
        "--retry-failures",
        metavar="RUN",
        help="try the failed images of that run once more, in place; it needs no other option",
    )
    group.add_argument(
        "--max-failures", type=int, metavar="N", help="exit with 1 if more images failed (default: any number may)"
    )
    _add_storage_options(group)


def _add_storage_options(group: Any) -> None:
    group.add_argument(
        "--storage-option",
        action="append",
        dest="storage_options",
        metavar="SCHEME.NAME=VALUE",
        help="an option of a store's fsspec file system, such as gs.requester_pays=true, gs.project=NAME or "
        "s3.endpoint_url=URL; may be given again",
    )
    group.add_argument(
        "--storage-timeout",
        type=float,
        metavar="SECONDS",
        help="how long one read or write is tried when a store fails or stalls (default: 300)",
    )


def _add_watch(commands: Any) -> None:
    parser = _command(commands, "watch", "follow a run on any engine, by what it has committed, until it is complete")
    parser.add_argument("run", metavar="RUN", help="the run's folder, which need not be there yet")
    parser.add_argument("--once", action="store_true", help="look once, and end")
    parser.add_argument(
        "--interval",
        type=_seconds,
        metavar="SECONDS",
        help="between two looks (default: 2 on a terminal, 60 elsewhere; more where a look takes long)",
    )
    parser.add_argument(
        "--stalled-after",
        type=_seconds,
        default=30.0,
        metavar="MINUTES",
        help="exit with 1 if nothing has changed for so long (default: %(default)g)",
    )
    _add_storage_options(parser)
    parser.set_defaults(command=_lazily("watch"))


def _add_inspect(commands: Any) -> None:
    parser = _command(commands, "inspect", "a model's layers, the signal that will be explained, the methods that fit")
    parser.add_argument("model", metavar="MODEL", help="as for `beamcam run --model`")
    parser.add_argument("--layer", metavar="NAME", help="the spatial signal, instead of the last one")
    parser.add_argument("--logits-layer", metavar="NAME", help="the logits, where a model has several outputs")
    parser.add_argument("--reshape", metavar="HOW", help="a transformer's tokens as a grid: tokens, or HxW")
    parser.add_argument("--allow-unsafe-model", action="store_true", help="run code that a model file brings along")
    _add_storage_options(parser)
    parser.set_defaults(command=_lazily("inspect"))


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", "one image, explained without Beam, to a PNG")
    parser.add_argument("image", metavar="IMAGE", help="a path or uri")
    parser.add_argument("--output", metavar="FILE", help="the PNG (default: IMAGE's name with -explained.png, here)")
    _add_model_options(parser.add_argument_group("model"))
    explaining = parser.add_argument_group("explaining")
    explaining.add_argument("--methods", type=split_names, metavar="A,B", help=METHODS_HELP)
    explaining.add_argument("--targets", metavar="WHICH", help="top:K, ids:3,17 or all (default: top:1)")
    explaining.add_argument("--colormap", metavar="NAME", help="inferno, viridis, cividis, ... (default: inferno)")
    _add_storage_options(parser)
    parser.set_defaults(command=_lazily("show"))


def _add_audit(commands: Any) -> None:
    parser = _command(
        commands, "audit", "what a run says of the model and the data: findings, and a report", epilog=AUDIT_EXAMPLES
    )
    parser.add_argument("words", nargs="+", metavar="RUN", help="the run's folder; or show RUN CLASS, or accept RUN")
    parser.add_argument("--method", metavar="NAME", help="whose maps (default: the run's first)")
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="a run, or a file of `audit accept`, to compare with; none for nothing (default: what was accepted beside "
        "the run); with accept, the file to write",
    )
    parser.add_argument(
        "--history",
        type=int,
        default=0,
        metavar="N",
        help="audits of so many runs beside this one say what changes are usual (default: %(default)s)",
    )
    parser.add_argument(
        "--confirm",
        metavar="MODEL",
        help="ask the run's model whether it goes by suspected shortcuts: the place is masked, and pasted elsewhere",
    )
    parser.add_argument("--preprocess", metavar="HOW", help="for --confirm, where the run's is module:function")
    parser.add_argument("--allow-unsafe-model", action="store_true", help="run code that a model file brings along")
    parser.add_argument("--config", metavar="FILE", help="audit.toml: thresholds, severities, findings to ignore")
    parser.add_argument("--out", metavar="DIR", help="folder for findings and report (default: audit/ of the run)")
    parser.add_argument("--single-file", action="store_true", help="a report that is one file, with its photographs")
    parser.add_argument("--junit", metavar="FILE", help="write the outcome of each rule as JUnit XML as well")
    parser.add_argument(
        "--fail-on",
        choices=("never", "info", "warning", "error"),
        default="error",
        help="exit with 1 if a finding is as grave as that (default: %(default)s)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but a table of findings, with tabs")
    _add_storage_options(parser)
    parser.set_defaults(command=_lazily("audit"))


def _add_export(commands: Any) -> None:
    parser = _command(commands, "export", "a run's maps as pre-annotations for labelling tools", epilog=EXPORT_EXAMPLES)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--to", metavar="FORMAT", help="coco, label-studio, cvat, fiftyone, yolo or heatmaps")
    parser.add_argument("--output", metavar="PATH", help="the file (.json, .xml), or the folder, on any store")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export of that name")
    _add_choosing_options(parser.add_argument_group("images"))
    _add_region_options(parser.add_argument_group("regions"))
    group = parser.add_argument_group("files")
    group.add_argument("--per-file", type=int, metavar="N", help="images a file: NAME-00000.json and so on")
    group.add_argument("--root", metavar="URI", help="what images' names leave out (default: the folder common to all)")
    group.add_argument(
        "--image-prefix",
        metavar="TEXT",
        help="what Label Studio's addresses of images begin with (default: the bucket's own, or "
        "/data/local-files/?d= for local files)",
    )
    group.add_argument("--copy-images", action="store_true", help="into the folder; for fiftyone, yolo and heatmaps")
    _add_storage_options(group)
    parser.set_defaults(command=_lazily("export"))


def _add_choosing_options(group: Any) -> None:
    group.add_argument("--method", metavar="NAME", help="whose maps (default: the run's first)")
    group.add_argument("--targets", default="predicted", metavar="WHICH", help="predicted (default) or label")
    group.add_argument(
        "--class", action="append", dest="classes", metavar="NAME", help="images of that class; may be given again"
    )
    group.add_argument(
        "--min-score", type=float, default=0.5, metavar="P", help="least probability (default: %(default)s)"
    )
    group.add_argument("--sample", type=float, metavar="N", help="so many images, or a share below 1; by hash")
    group.add_argument(
        "--findings",
        metavar="FILE",
        help="images that an audit's findings are about (default with --rule or --finding: the run's own "
        "audit/findings.json)",
    )
    group.add_argument("--rule", action="append", metavar="ID", help="findings of that rule, such as BC101")
    group.add_argument("--finding", action="append", metavar="KEY", help="the finding of that key")


def _add_region_options(group: Any) -> None:
    group.add_argument("--threshold", type=float, metavar="T", help="share of the map's maximum (default: 0.2)")
    group.add_argument(
        "--calibrate",
        metavar="BOXES",
        help="measure MaxBoxAccV2 of every method, and take the best threshold: boxes (the run's manifest's), or a "
        "manifest with uri and boxes; without --to, only measure",
    )
    group.add_argument(
        "--min-area", type=float, default=0.01, metavar="S", help="least share of the image (default: %(default)s)"
    )
    group.add_argument(
        "--min-energy", type=float, default=0.1, metavar="S", help="least share of the map (default: %(default)s)"
    )
    group.add_argument("--regions", default="all", metavar="K", help="all, or so many of the strongest (default: all)")
    group.add_argument(
        "--shapes", type=split_names, metavar="A,B", help="class, box, mask, polygon, peak (default: the format's)"
    )


def _add_verify(commands: Any) -> None:
    parser = _command(commands, "verify", "prove that a run is whole; exit code 0 only if nothing is lost or doubled")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    _add_storage_options(parser)
    parser.set_defaults(command=_lazily("verify"))


def _add_methods(commands: Any) -> None:
    parser = _command(commands, "methods", "the table of methods: what each needs and costs")
    parser.set_defaults(command=_lazily("methods"))


def _command(commands: Any, name: str, summary: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # Beam's options would be taken for ours
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    parser.add_argument(
        "--log-format",
        choices=logs.FORMATS,
        default="text",
        help="text, or json: all that is said and logged as one object a line, with run, shard and worker",
    )
    return parser


def _lazily(name: str) -> Callable[[argparse.Namespace, list[str]], int]:
    def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
        if name not in WITHOUT_MODEL:
            quiet.import_tensorflow()
        from pipeline import commands

        return getattr(commands, name)(arguments, rest)

    return run_command


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not height.isdecimal() or (x and not width.isdecimal()):
        raise argparse.ArgumentTypeError(f"a size is 224 or 224x320, not {text!r}")
    return int(height), int(width or height)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a time is a number above 0, not {text!r}")
    return value


def _complain(what: object, code: int) -> int:
    fields = {"exit_code": code, "error": type(what).__name__ if isinstance(what, Exception) else None}
    logs.write(sys.stderr, str(what) if logs.is_json() else f"beamcam: {what}", "ERROR", **fields)
    return code


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"beamcam {version('beamcam')}"
    except PackageNotFoundError:
        return "beamcam (not installed)"


if __name__ == "__main__":
    sys.exit(main())
