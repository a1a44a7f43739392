"""A disk that fills up, and one that stops to be writable: one clear line, and the same command goes on afterwards."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.jobs import Ended, Workplace, verify, wait_for
from tests.faults.places import Place
from tests.faults.race import is_clear
from tests.faults.reporting import Outcome, Round
from tests.faults.settings import Settings

ROOMY = "size=1g"


def run_room(settings: Settings) -> Iterator[Outcome]:
    """One row; a file system of our own takes a privilege that is not there everywhere."""
    work = settings.workplace("room", count=100 if settings.quick else 400, shard_size=10)
    rounds = settings.rounds or (1 if settings.quick else 3)
    what, asked = "disk full, and read-only", "one line, nothing lost, goes on"
    if why := no_mount(work.folder):
        yield Outcome("room", what, asked, (), left_out=why)
    else:
        yield settings.measure("room", what, asked, "local", room_rounds, work, rounds)


ATTEMPTS = 5  # at a moment in time


def room_rounds(work: Workplace, place: Place, rounds: int, chance: random.Random) -> Iterator[Round]:
    """Rounds of both kinds, with different amounts of room and at different moments."""
    _ = work.whole  # made before anything is in its way
    for number in range(rounds):
        for trial in (full, unwritable):
            with mounted(work.folder / f"disk-{trial.__name__}-{number}") as disk:
                yield trial(work, Place("local", str(disk / "run"), {}), disk, chance)


def full(work: Workplace, place: Place, disk: Path, chance: random.Random) -> Round:
    """The room ends somewhere on the way; then there is room."""
    needed = work.whole.size
    room = int(needed * chance.uniform(0.1, 0.9))
    remount(disk, f"size={room // 1024}k")
    ended = work.job(place.root).run()
    problems = [*judge(ended, "No space left on device"), *intact(work, place)]
    problems += [f"a temporary file is left: {name}" for name in place.names() if ".tmp-" in name]
    kept = len(place.names("shards"))
    remount(disk, ROOMY)
    size = f"{room >> 20} of {needed >> 20} MB"
    return finish(work, place, "full", problems, room=size, kept=kept, line=ended.complaint)


def unwritable(work: Workplace, place: Place, disk: Path, chance: random.Random) -> Round:
    """Somewhere on the way the folder cannot be written to any more; then it can."""
    for _ in range(ATTEMPTS):
        running = work.job(place.root).start()
        wait_for(lambda: place.has("shards/00000.json"), running)
        changed = remount(disk, "ro")
        ended = running.wait()
        if ended.code != 0:
            break
        remount(disk, "rw")  # it was over before: all anew
        shutil.rmtree(place.root)
    problems = [*judge(ended, "Read-only file system"), *intact(work, place)]
    kept = len(place.names("shards"))
    remount(disk, "rw")
    if not changed:
        problems.append("the file system stayed busy, and could not be made read-only")
    return finish(work, place, "read-only", problems, kept=kept, line=ended.complaint)


def finish(work: Workplace, place: Place, what: str, problems: list[str], **notes: object) -> Round:
    """The same command again, with nothing in its way."""
    job = work.job(place.root)
    ended = job.run()
    if ended.code != 0:
        problems.append(f"the same command again ended with {ended.code}: {ended.complaint}")
    else:
        problems += [*work.whole.compare(place), *verify(place, job.temporary)]
    return Round(what, tuple(problems), notes)


def judge(ended: Ended, reason: str) -> Iterator[str]:
    """Yields what is wrong with how a job broke off."""
    if ended.code != 1:
        yield f"ended with {ended.code}: {ended.complaint}"
    if not is_clear(ended):
        yield f"its complaint is not one clear line: {ended.said[-300:]!r}"
    if reason not in ended.complaint:
        yield f"the reason, {reason!r}, is not in its complaint: {ended.complaint}"


def intact(work: Workplace, place: Place) -> Iterator[str]:
    """Yields which files of committed shards are not what they should be."""
    for marker in place.names("shards"):
        number = marker[-10:-5]
        for name in (f"records/part-{number}.parquet", f"failures/part-{number}.parquet"):
            if marker.endswith(".json") and place.digests(name.split("/")[0]).get(name) != work.whole.digests[name]:
                yield f"{name} of a committed shard is not what it should be"


def no_mount(folder: Path) -> str:
    """Why no file system can be mounted here; nothing if one can."""
    if sys.platform != "linux":
        return "tmpfs is Linux's"
    try:
        with mounted(folder / "trial"):
            return ""
    except subprocess.CalledProcessError as error:
        return f"mount is not permitted here: {error.stderr.strip()}"
    except FileNotFoundError:
        return "there is no mount command here"


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A file system in memory, for as long as the block runs."""
    folder.mkdir(parents=True)
    _call("mount", "-t", "tmpfs", "-o", ROOMY, "faults", str(folder))
    try:
        yield folder
    finally:
        _call("umount", "--lazy", str(folder))


def remount(folder: Path, options: str, patience: float = 20) -> bool:
    """Changes a mounted file system; tries again while it is busy. Whether it was changed."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(subprocess.CalledProcessError):
            _call("mount", "-o", f"remount,{options}", str(folder))
            return True
        time.sleep(0.005)
    return False


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
