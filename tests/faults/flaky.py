"""A store that fails and stalls, against the same store that does not: what comes out, and how long it takes."""

from __future__ import annotations

import collections
import random
import statistics
from collections.abc import Iterator

from tests.faults.jobs import Whole, Workplace, verify
from tests.faults.places import Place
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings
from tests.proxy import Faults, running_proxy

LATENCY = 0.02  # seconds, of each request on either side

TARGET = 1.5  # times the clean time


def run_flaky(settings: Settings) -> Iterator[Outcome]:
    """A row a store, with the ratio of the medians of rounds taken in turns."""
    work = settings.workplace("flaky", count=120 if settings.quick else 1200, shard_size=40)
    for store in settings.stores:
        if store == "local":
            continue
        rounds = settings.rounds or (1 if settings.quick else 3)
        asked = f"0 lost, 0 doubled, at most {TARGET} times the clean time"
        what = f"{store}: 5 % of requests fail, 1 % stall"
        yield settings.measure("flaky", what, asked, store, flaky_rounds, work, rounds, not settings.quick)


def flaky_rounds(work: Workplace, place: Place, rounds: int, timed: bool, chance: random.Random) -> Iterator[Round]:
    """Clean and flaky runs in turns, from the store to the store; then the ratio of their times."""
    upload(work, place.below("images"))
    clean, flaky = Faults(latency=LATENCY), Faults(0.05, 0.01, LATENCY, seed=chance.randrange(10**6))
    seconds: dict[str, list[float]] = {"clean": [], "flaky": []}
    whole: Whole | None = None
    with running_proxy(place.endpoint, clean) as easy, running_proxy(place.endpoint, flaky) as hard:
        for _ in range(rounds):
            for name, proxy in (("clean", easy), ("flaky", hard)):
                target = place.new()
                passed = len(proxy.requests())
                environment = place.through(proxy.url).environment
                job = work.job_over(f"{place.root}/images", target.root, environment=environment)
                ended = job.run()
                seconds[name].append(ended.seconds)
                outcomes = collections.Counter(one["outcome"] for one in proxy.requests()[passed:])
                problems = [f"ended with {ended.code}: {ended.complaint}"] if ended.code else []
                whole = whole or Whole.of(target, 0.0, ended.seconds)
                problems += [*whole.compare(target), *verify(target, job.temporary)]
                yield Round(name, tuple(problems), {"seconds": round(ended.seconds, 1), **outcomes})
    if timed:
        yield compare_times(seconds)


def upload(work: Workplace, place: Place) -> None:
    """Puts the photographs on the store, past all faults."""
    place.system.pipe({f"{place.path}/{path.name}": path.read_bytes() for path in work.images.iterdir()})


def compare_times(seconds: dict[str, list[float]]) -> Round:
    """Whether the flaky store costs no more than is allowed."""
    clean, flaky = (statistics.median(values) for values in (seconds["clean"], seconds["flaky"]))
    ratio = flaky / clean
    problems = (f"{ratio:.2f} times the clean time",) if ratio > TARGET else ()
    return Round("time", problems, {"ratio": round(ratio, 2), "clean": round(clean, 1), "flaky": round(flaky, 1)})
