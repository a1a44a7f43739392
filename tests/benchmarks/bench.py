"""`make bench`: what explaining costs beside the model's own forward pass, measured in turns, as ratios of one run.

    program   one-pass explanations of a batch in memory against `model(x)` in a `tf.function`, and lower precision
    methods   every method in forward passes, beside the cost that the registry states
    job       photographs to Parquet, with overlays and without, against that forward pass
    peers     the same job in scripts around tf-keras-vis and xplique
    growth    memory and time an image of a long job against a short one
    planning  a manifest of a million uris into shards
    startup   seconds to the help, to an import, to the first record

Each figure is the median over rounds in which both sides take turns, so that a machine that slows down slows both.
Every raw sample goes to bench.json, with the seed and the device; bench.md has the table, and bench.png the plot.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.benchmarks.jobs import bench_job
from tests.benchmarks.measuring import describe_device
from tests.benchmarks.peers import bench_peers
from tests.benchmarks.processes import bench_growth, bench_planning, bench_startup
from tests.benchmarks.programs import bench_methods, bench_program
from tests.benchmarks.reporting import Report
from tests.benchmarks.workloads import QUICK, ROOT, Settings, list_photographs, spec_of

PARTS = {
    "program": bench_program,
    "methods": bench_methods,
    "job": bench_job,
    "peers": bench_peers,
    "growth": bench_growth,
    "planning": bench_planning,
    "startup": bench_startup,
}


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measures what was asked for, or everything; writes after each part, so that what is done is kept."""
    options = make_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(options, Path(folder))
        facts = {**asdict(settings), "folder": None, "quick": options.quick, "specs": [*map(spec_of, settings.models)]}
        facts["source"] = str(list_photographs(settings)[0].parent)
        report = Report(describe_device(), facts)
        print(report.describe(), flush=True)
        for part in options.what or PARTS:
            for result in PARTS[part](settings):
                print(report.add(result), flush=True)
            report.write(options.output)
    print(f"\n{report.to_markdown()}\nraw samples in {options.output / 'bench.json'}")
    return report


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small counts, to see that it works; figures mean little")
    parser.add_argument("--rounds", type=int, help="counted rounds; half as many of what takes minutes")
    parser.add_argument("--models", help="names of keras.applications or module:factory (default: both of the targets)")
    parser.add_argument("--batch", type=int, help="images a batch (default: 32)")
    parser.add_argument("--photographs", type=int, help="images of a job (default: 512)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of random weights and made pictures (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts", help="folder (default: artifacts)")
    return parser


def make_settings(options: argparse.Namespace, folder: Path) -> Settings:
    """How much to measure; what is said on the command line wins."""
    if unknown := sorted(set(options.what) - set(PARTS)):
        make_parser().error(f"there is no part {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    values: dict[str, Any] = dict(QUICK) if options.quick else {}
    if options.rounds:
        values |= {"rounds": options.rounds, "long_rounds": max(1, options.rounds // 2)}
    if options.photographs:
        values |= {"photographs": options.photographs, "peer_photographs": options.photographs}
    if options.models:
        values["models"] = tuple(options.models.split(","))
    if options.batch:
        values["batch"] = options.batch
    return Settings(folder, seed=options.seed, **values)


if __name__ == "__main__":
    main(sys.argv[1:])
