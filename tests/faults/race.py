"""Two jobs started into one output: the run that is there in the end is wholly one job's."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.faults.jobs import Ended, Whole, Workplace, verify
from tests.faults.places import Place
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings

KINDS = ("same", "different", "overwrite")
"""The same job twice; two configurations; two configurations, the second of which may remove a run that is there."""

OTHER = ("--methods", "cam", "--overlays", "layer")
"""Another configuration, whose records and overlays are told from the first one's at sight."""


def run_races(settings: Settings) -> Iterator[Outcome]:
    """A row a store."""
    work = settings.workplace("race", count=100 if settings.quick else 300, shard_size=10)
    for store, rounds in settings.rounds_by_store(local=15, others=6):
        what = f"{store}: two jobs, one output"
        yield settings.measure("race", what, "never a mixture", store, race_rounds, work, rounds)


def race_rounds(work: Workplace, place: Place, rounds: int, chance: random.Random) -> Iterator[Round]:
    """Rounds of each kind in turn; half of them start within a moment, the others while the first job works."""
    wholes = {"first": work.whole, "second": work.undisturbed("other", *OTHER)}
    for number in range(rounds):
        kind = KINDS[number % len(KINDS)]
        near = number // len(KINDS) % 2 == 0
        offset = chance.uniform(0, 0.3) if near else chance.uniform(0.3, work.whole.seconds)
        yield race_round(work, place.new(), kind, offset, wholes)


def race_round(work: Workplace, place: Place, kind: str, offset: float, wholes: dict[str, Whole]) -> Round:
    """One race, and what came of it."""
    options = {"same": (), "different": OTHER, "overwrite": (*OTHER, "--overwrite")}[kind]
    first = work.job(place.root, environment=place.environment)
    second = work.job(place.root, *options, environment=place.environment)
    one = first.start()
    time.sleep(offset)
    two = second.start()
    ended = {"first": one.wait(), "second": two.wait()}
    problems = [*judge(kind, ended), *verify(place, first.temporary)]
    candidates = {"same": ["first"]}.get(kind, [name for name, job in ended.items() if job.code == 0])
    differences = {name: list(wholes[name].compare(place)) for name in candidates}
    owner = next((name for name, found in differences.items() if not found), None)
    if owner is None:
        problems += [f"not {name}'s: {line}" for name, found in differences.items() for line in found]
    notes = {name: f"{job.code} {job.complaint[:150] if job.code else ''}".strip() for name, job in ended.items()}
    return Round(kind, tuple(problems), {"offset": round(offset, 2), **notes, "run_is_of": owner})


def judge(kind: str, ended: dict[str, Ended]) -> Iterator[str]:
    """Yields what is wrong with how two jobs ended."""
    winners = [name for name, job in ended.items() if job.code == 0]
    if not winners:
        yield "neither job ended well"
    if kind == "different" and len(winners) > 1:
        yield "two configurations ended well in one output"
    for name, job in ended.items():
        # Who finds a run refuses it, as wrong usage; from whom a run was taken has failed.
        allowed = (0, 2) if kind == "different" else (0, 1, 2)
        if job.code not in allowed:
            yield f"the {name} job ended with {job.code}: {job.complaint}"
        if job.code and not is_clear(job):
            yield f"the {name} job's complaint is not one clear line: {job.said[-300:]!r}"


def is_clear(job: Ended) -> bool:
    """Whether a job that failed said why in one line of its own, and nothing of its insides."""
    complaints = [line for line in job.said.splitlines() if line.startswith("beamcam: ")]
    return len(complaints) == 1 and job.complaint == complaints[0] and "Traceback" not in job.said
