"""A second run over a finished one: it writes nothing, and is soon done."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.jobs import Ended, Workplace, start
from tests.faults.places import Place
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings
from tests.proxy import Proxy, running_proxy

LIMIT = 10.0  # seconds, beside listing

READING = ("GET", "HEAD")


def run_again(settings: Settings) -> Iterator[Outcome]:
    """A row a store."""
    work = settings.workplace("again", count=100 if settings.quick else 2000, shard_size=20)
    for store, rounds in settings.rounds_by_store(local=3, others=3):
        what, asked = f"{store}: the same command once more", f"no writes, {LIMIT:.0f} s"
        yield settings.measure("again", what, asked, store, again_rounds, work, rounds, not settings.quick)


def again_rounds(work: Workplace, place: Place, rounds: int, timed: bool, _: random.Random) -> Iterator[Round]:
    """A run, and then the same job again and again, the way of a user and the way of a careless one."""
    place = place.new()
    ended = work.job(place.root, environment=place.environment).run()
    if ended.code != 0:
        yield Round("first run", (f"ended with {ended.code}: {ended.complaint}",))
        return
    for number in range(rounds):
        options = (("--resume",), ())[number % 2]
        trial = again_locally if place.store == "local" else again_on_store
        yield trial(work, place, options, timed)


def again_locally(work: Workplace, place: Place, options: tuple[str, ...], timed: bool) -> Round:
    """Compares inodes, times of change and folders before and after."""
    before = stamps(Path(place.root))
    ended = work.job(place.root, *options).run()
    after = stamps(Path(place.root))
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    problems = [f"{len(changed)} files and folders were written to, such as {changed[0]}"] if changed else []
    return _judge(ended, timed, 0.0, problems)


def again_on_store(work: Workplace, place: Place, options: tuple[str, ...], timed: bool) -> Round:
    """Looks at every request that the job sends to the store."""
    with running_proxy(place.endpoint) as proxy:
        ended = work.job(place.root, *options, environment=place.through(proxy.url).environment).run()
        writes = writing_requests(proxy)
        problems = [f"{len(writes)} requests write, such as {writes[0]}"] if writes else []
        listing = seconds_to_list(place, work)
        return _judge(ended, timed, listing, problems, requests=len(proxy.requests()))


def writing_requests(proxy: Proxy) -> list[str]:
    """Requests of a kind that changes something."""
    return [f"{one['method']} {one['path']}" for one in proxy.requests() if one["method"] not in READING]


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Of every file and folder: the inode, the time of its last change, and its size."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        state = path.stat()
        found[str(path.relative_to(folder))] = (state.st_ino, state.st_mtime_ns, state.st_size)
    return found


def seconds_to_list(place: Place, work: Workplace) -> float:
    """How long one listing of the run takes: what a second run may take beside its own ten seconds."""
    command = [sys.executable, "-c", LISTING, place.root]
    ended = start(command, work.folder / "tmp" / "listing", place.environment).wait()
    return float(ended.complaint) if ended.code == 0 else 0.0


LISTING = """
import sys, time
from pipeline import storage
begun = time.monotonic()
for folder in ("shards", "records", "failures"):
    storage.list_files(sys.argv[1] + "/" + folder)
print(time.monotonic() - begun)
"""


def _judge(ended: Ended, timed: bool, listing: float, problems: list[str], **notes: Any) -> Round:
    if ended.code != 0:
        problems = [*problems, f"ended with {ended.code}: {ended.complaint}"]
    if timed and ended.seconds - listing > LIMIT:
        problems = [*problems, f"took {ended.seconds:.1f} s, {listing:.1f} of them for listing"]
    return Round("again", tuple(problems), {"seconds": round(ended.seconds, 2), "listing": round(listing, 2), **notes})
