"""The corpus and the fuzzer as rows of the report, beside the other faults."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.faults import corpus, fuzz
from tests.faults.jobs import Workplace
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings


def run_corpus(settings: Settings) -> Iterator[Outcome]:
    """One row: a round a kind, and one for the run as a whole."""
    begun = time.monotonic()
    work = Workplace(settings.folder / "corpus", settings.seed)
    work.folder.mkdir()
    rows, problems = corpus.run_job(work.folder, work.model)
    rows += corpus.try_manifests(work.folder)
    rounds = [Round(row.name, _became(row), {"message": row.message[:200]}) for row in rows]
    rounds.append(Round("the run", tuple(problems)))
    what, asked = f"{len(rows)} kinds of files, names and manifests", "0 crashes, hangs, unaccounted for"
    yield Outcome("corpus", what, asked, tuple(rounds), time.monotonic() - begun)


def run_fuzz(settings: Settings) -> Iterator[Outcome]:
    """One row, which names each input that broke something."""
    minutes = 0.2 if settings.quick else 10.0
    found = fuzz.fuzz(minutes, settings.seed, settings.folder / "offenders")
    offenders = tuple(f"input {one['number']}: {one['what'][:300]}" for one in found.offenders)
    facts = {"inputs": found.count, "peak MB": found.peak >> 20, "slowest s": round(found.slowest[0], 2)}
    what = f"{minutes:g} minutes of mutated images and manifests"
    yield Outcome("fuzz", what, "0 crashes, 0 hangs", (Round("campaign", offenders, facts),), found.seconds, facts)


def _became(row: corpus.Row) -> tuple[str, ...]:
    return () if row.is_right else (f"became {row.found}, not {row.expected} {row.says}".strip(),)
