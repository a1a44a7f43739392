"""SIGKILL of a job at a random moment, and the same command again: what is there then is what nothing disturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from tests.faults.jobs import PROCESSES, Running, Workplace, verify, wait_for
from tests.faults.places import Place
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings

AIMS = ("anywhere", "commit", "anywhere", "several", "summary", "head", "commit", "plan", "processes", "anywhere")
"""What the rounds aim at, again and again: a random moment from the manifest to the end; a commit, between a shard's
records and its marker; several kills in a row; the summary, when all markers are there; the moment when the manifest is
written; a random moment of a job with two worker processes, killed with them, or (the head) from under them."""

ATTEMPTS = 10  # to hit a job that is sometimes over before the blow


def run_kills(settings: Settings) -> Iterator[Outcome]:
    """A row a store."""
    work = settings.workplace("kill", count=200 if settings.quick else 600)
    for store, rounds in settings.rounds_by_store(local=30, others=10):
        yield settings.measure("kill", f"{store}: killed, resumed, compared", "all", store, kill_rounds, work, rounds)


def kill_rounds(work: Workplace, place: Place, rounds: int, chance: random.Random) -> Iterator[Round]:
    """Rounds with different aims; a job in two processes writes the same as one in threads."""
    _ = work.whole  # made before anything is killed
    for number in range(rounds):
        yield kill_round(work, place.new(), AIMS[number % len(AIMS)], chance)


def kill_round(work: Workplace, place: Place, aim: str, chance: random.Random) -> Round:
    """One job: killed, perhaps again, then run to the end."""
    options = PROCESSES if aim in ("processes", "head") else ()
    job = work.job(place.root, *options, environment=place.environment)
    blows = chance.randint(2, 5) if aim == "several" else 1
    problems: list[str] = []
    struck: list[dict[str, object]] = []
    orphans: list[Running] = []
    for _ in range(ATTEMPTS):
        running = job.start()
        moment = take_aim(aim, running, place, work, chance)
        if running.kill(alone=aim == "head"):
            struck.append(moment | {"left": _state(place, work)})
        if aim == "head":
            orphans.append(running)  # they go on while the same command is given again
        else:
            problems += [f"still running after the kill: {line}" for line in running.left_processes()]
        if len(struck) == blows or (struck and place.has("run.json")):
            break
        if running.process.returncode == 0:  # it was over before the blow: all anew
            place = place.new()
            job = work.job(place.root, *options, environment=place.environment)
    if not struck:
        problems.append(f"was over before it could be killed, {ATTEMPTS} times")
    ended = job.run()
    outlived = sum(len(one.outlived()) for one in orphans)  # Beam's workers look for their job for a while
    if ended.code != 0:
        problems.append(f"the same command again ended with {ended.code}: {ended.complaint}")
    else:
        problems += [*work.whole.compare(place), *verify(place, job.temporary)]
    kept = sum(1 for path in job.temporary.rglob("*") if path.is_file())
    notes = {"kills": struck, "seconds_after": round(ended.seconds, 1), "files_in_tmp": kept, "outlived": outlived}
    notes |= {"repacked": len(work.whole.repacked)} if work.whole.repacked else {}
    return Round(aim, tuple(problems), notes)


def take_aim(aim: str, running: Running, place: Place, work: Workplace, chance: random.Random) -> dict[str, object]:
    """Waits for the moment to strike; tells what it was."""
    whole, begun = work.whole, time.monotonic()
    if aim == "plan":
        wait_for(place.has_begun, running, pause=0.0002)
        time.sleep(chance.uniform(0, 0.01))
    elif aim == "commit":
        shard = chance.randrange(max(1, work.n_shards - 4))
        reached = wait_for(lambda: _is_committing(place, shard), running, pause=0.0005)
        return {"aim": aim, "shard": shard, "reached": reached, "seconds": round(time.monotonic() - begun, 3)}
    elif aim == "summary":
        wait_for(lambda: len(_marked(place)) >= work.n_shards, running)
        time.sleep(chance.uniform(0, 0.03))
    else:  # by progress, since the machine may be faster or slower than when nothing disturbed the job
        before = len(_marked(place))
        shards = chance.randrange(before, max(before + 1, (before + work.n_shards) // (2 if aim == "several" else 1)))
        wait_for(lambda: place.has("manifest.parquet") and len(_marked(place)) >= shards, running)
        time.sleep(chance.uniform(0, 2 * whole.working / work.n_shards))
    return {"aim": aim, "seconds": round(time.monotonic() - begun, 3)}


def _is_committing(place: Place, first: int) -> bool:
    """Whether some shard from this one on has records and no marker."""
    if place.store != "local":
        written = {int(name[-13:-8]) for name in place.names("records") if name.endswith(".parquet")}
        return any(number >= first for number in written - _marked(place))
    number = first
    while place.has(f"shards/{number:05d}.json"):  # this one was missed
        number += 1
    return place.has(f"records/part-{number:05d}.parquet") and not place.has(f"shards/{number:05d}.json")


def _marked(place: Place) -> set[int]:
    return {int(name[-10:-5]) for name in place.names("shards") if name.endswith(".json")}


def _state(place: Place, work: Workplace) -> str:
    """What a kill left, in short."""
    names = place.names()
    written = {int(name[-13:-8]) for name in names if name.startswith("records/") and name.endswith(".parquet")}
    marked = {int(name[-10:-5]) for name in names if name.startswith("shards/") and name.endswith(".json")}
    temporary = sum(".tmp-" in name for name in names)
    words = f"{len(marked)} of {work.n_shards} committed"
    if written - marked:
        words += f", shard {min(written - marked)} half"
    return words + (f", {temporary} temporary files" if temporary else "") + ("" if names else ", nothing written")
