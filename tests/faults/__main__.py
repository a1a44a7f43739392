"""`make faults`: what may go wrong goes wrong on purpose, and the run has to be whole in the end.

    kill      SIGKILL at random moments, also during a commit; the same command again: as if nothing had been
    flaky     a store that fails 5 % of requests and never answers 1 %, against one that does not
    corrupt   a tenth of the images damaged, in every way that has a name
    race      two jobs started into one output
    again     a second run over a finished one
    room      a disk that is full, and one that cannot be written to any more
    corpus    files, names and manifests of every odd kind
    fuzz      ten minutes of mutated images and manifests

Rows are told as they come; faults.md has the table, and faults.json every round with the seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.faults.again import run_again
from tests.faults.corrupt import run_corrupt
from tests.faults.flaky import run_flaky
from tests.faults.inputs import run_corpus, run_fuzz
from tests.faults.jobs import ROOT, name_seed
from tests.faults.kill import run_kills
from tests.faults.places import STORES
from tests.faults.race import run_races
from tests.faults.reporting import Report
from tests.faults.room import run_room
from tests.faults.settings import Settings

PARTS = {
    "kill": run_kills,
    "flaky": run_flaky,
    "corrupt": run_corrupt,
    "race": run_races,
    "again": run_again,
    "room": run_room,
    "corpus": run_corpus,
    "fuzz": run_fuzz,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries what was asked for, or everything; 0 if all of it held."""
    options = make_parser().parse_args(arguments)
    if unknown := sorted(set(options.what) - set(PARTS)):
        make_parser().error(f"there is no part {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    report = Report(name_seed(options.seed))
    print(f"seed {report.seed}", flush=True)
    stores = tuple(options.store) if options.store else STORES
    with tempfile.TemporaryDirectory(prefix="faults-", dir=options.folder) as folder:
        settings = Settings(Path(folder), report.seed, stores, options.rounds, options.quick)
        for part in options.what or PARTS:
            for outcome in PARTS[part](settings):
                report.outcomes.append(outcome)
                print(outcome.tell(), flush=True)
                report.write(options.output)
    print(f"\n{report.to_markdown()}\nevery round in {options.output / 'faults.json'}")
    return 0 if report.reached else 1


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        "faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--store", action="append", choices=STORES, help="may be given again (default: all)")
    parser.add_argument("--rounds", type=int, help="of each row (default: what the issue asks for)")
    parser.add_argument("--quick", action="store_true", help="small counts, to see that it works")
    parser.add_argument("--seed", type=int, help="of pictures and moments (default: a new one, which is told)")
    parser.add_argument("--folder", type=Path, help="where everything is written to meanwhile")
    parser.add_argument("--output", type=Path, default=ROOT / "artifacts", help="of the report (default: artifacts)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
