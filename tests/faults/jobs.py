"""Jobs as users start them, in processes that can be killed, and what they leave behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.storage import TEMPORARY
from tests import models
from tests.faults.places import Place

ROOT = Path(__file__).parent.parent.parent

PROCESSES = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

PATIENCE = 600  # seconds until a job hangs

COMPARED = ("records/", "failures/", "overlays/", "sums/", "manifest.parquet")
"""What two runs of one job have in common, byte for byte; markers and the summary tell of times."""


@dataclass(frozen=True)
class Ended:
    """A process that is over."""

    code: int
    said: str  # standard output and error
    seconds: float

    @property
    def complaint(self) -> str:
        """The last line."""
        return (self.said.strip().splitlines() or [""])[-1]


@dataclass(frozen=True)
class Running:
    """A job in a session of its own."""

    process: subprocess.Popen
    output: Path
    start: float

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself."""
        return self.process.poll() is not None

    def kill(self, alone: bool = False) -> bool:
        """Kills it at once, without a warning, with its workers or alone; whether it was still running."""
        struck = not self.is_over
        with contextlib.suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(self.process.pid, signal.SIGKILL)
        self.process.wait(60)
        return struck

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Waits for the end; a job that hangs is killed, and has the code of that signal."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        return Ended(self.process.returncode, self.output.read_text(errors="replace"), time.monotonic() - self.start)

    def left_processes(self) -> list[str]:
        """Processes of its session that are still there, by their command lines; the dying have none any more."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                state, _, _, session = folder.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
                line = folder.joinpath("cmdline").read_text().replace("\0", " ")[:80]
                if int(session) == self.process.pid and state != "Z" and line:
                    found.append(line)
        return found

    def outlived(self, patience: float = 20) -> list[str]:
        """Workers that are still there some time after the job itself was killed; they are killed then."""
        deadline = time.monotonic() + patience
        while (found := self.left_processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return found


@dataclass(frozen=True)
class Job:
    """A `beamcam run`."""

    images: str
    model: str
    output: str
    temporary: Path  # where its process keeps its own temporary files
    shard_size: int
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> list[str]:
        """What a user types."""
        beamcam = [sys.executable, "-m", "pipeline.cli", "run", "--images", self.images, "--model", self.model]
        numbers = ["--preprocess", "tf", "--jit", "off", "--batch-size", "8", "--shard-size", str(self.shard_size)]
        return [*beamcam, *numbers, "--output", self.output, *self.options]

    def start(self) -> Running:
        """Starts it."""
        return start(self.command, self.temporary, self.environment)

    def run(self) -> Ended:
        """Starts it and waits for its end."""
        return self.start().wait()


def start(command: list[str], temporary: Path, environment: Mapping[str, str]) -> Running:
    """Starts a command, with what it says in a file: a pipe that nobody reads would hold it up."""
    temporary.mkdir(parents=True, exist_ok=True)
    said = temporary.parent / f"said-{time.monotonic_ns()}.txt"
    variables = {**os.environ, **environment, "TMPDIR": str(temporary), "COLUMNS": "200", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with said.open("w") as file:
        begun = time.monotonic()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=variables, start_new_session=True
        )
    return Running(process, said, begun)


@dataclass(frozen=True)
class Workplace:
    """Photographs, a model, and what a run over them looks like when nothing disturbs it."""

    folder: Path
    seed: int
    count: int = 600
    shard_size: int = 20

    @property
    def n_shards(self) -> int:
        """How many shards a run has."""
        return -(-self.count // self.shard_size)

    @cached_property
    def images(self) -> Path:
        """Small JPEGs of different sizes; every fiftieth is damaged in one of three ways."""
        folder = self.folder / "images"
        draw_images(folder, self.count, self.seed)
        for number, path in enumerate(sorted(folder.iterdir())[7::50]):
            path.write_bytes((b"", path.read_bytes()[:90], b"<html>404</html>")[number % 3])
        return folder

    @cached_property
    def model(self) -> Path:
        """A tiny classifier of 32x32 images."""
        path = self.folder / "model.keras"
        if not path.exists():
            models.gap_dense(self.seed, size=32).save(path)
        return path

    def job(self, output: str, *options: str, environment: Mapping[str, str] | None = None) -> Job:
        """The job over these photographs."""
        return self.job_over(str(self.images), output, *options, environment=environment)

    def job_over(self, images: str, output: str, *options: str, environment: Mapping[str, str] | None = None) -> Job:
        """A job over other photographs."""
        temporary = self.folder / "tmp" / f"{time.monotonic_ns()}"
        return Job(images, str(self.model), output, temporary, self.shard_size, options, environment or {})

    @cached_property
    def whole(self) -> Whole:
        """What nothing has disturbed."""
        return self.undisturbed("whole")

    def undisturbed(self, name: str, *options: str) -> Whole:
        """Runs a job to its end, and keeps what it wrote.

        Raises:
            RuntimeError: even that failed.
        """
        place = Place("local", str(self.folder / name), {})
        running = self.job(place.root, *options).start()
        wait_for(lambda: place.has("manifest.parquet"), running)
        planned = time.monotonic() - running.start
        ended = running.wait()
        if ended.code != 0:
            raise RuntimeError(f"an undisturbed job failed with {ended.code}: {ended.said}")
        return Whole.of(place, planned, ended.seconds)


@dataclass(frozen=True)
class Whole:
    """An undisturbed run."""

    place: Place
    digests: dict[str, str]  # path -> SHA-256, of COMPARED
    size: int  # bytes of all of its files
    planned: float  # seconds until its manifest was there
    seconds: float  # until its end
    repacked: list[str] = field(default_factory=list)  # pictures met so far that had the same pixels in other bytes

    @classmethod
    def of(cls, place: Place, planned: float, seconds: float) -> Whole:
        """What a run that ended well has written."""
        files = place.read(place.names())
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name.startswith(COMPARED)}
        return cls(place, digests, sum(map(len, files.values())), planned, seconds)

    @property
    def working(self) -> float:
        """Seconds from the manifest to the end."""
        return self.seconds - self.planned

    def compare(self, place: Place) -> Iterator[str]:
        """Yields what is different about another run, and which temporary files it holds, a sentence each.

        Pictures may differ in bytes where they do not in pixels: igzip packs one in ten thousand another way.
        """
        found = place.digests("")
        kept = {name: digest for name, digest in found.items() if name.startswith(COMPARED)}
        other = {name for name in set(kept) & set(self.digests) if kept[name] != self.digests[name]}
        other -= {name for name in other & {MANIFEST} if says_same(*self._both(place, name))}
        repacked = {name for name in other if name.endswith(".png") and self._shows_same(place, name)}
        self.repacked.extend(sorted(repacked))
        for what, names in (
            ("missing", set(self.digests) - set(kept)),
            ("too much", set(kept) - set(self.digests)),
            ("of other content", other - repacked),
            ("left from a writer that was killed", {name for name in found if TEMPORARY in name}),
        ):
            if names:
                yield f"{len(names)} files {what}, such as {min(names)}"
        for name in sorted(other - repacked)[:3]:
            yield f"{name}: {describe_difference(*self._both(place, name))}"

    def _shows_same(self, place: Place, name: str) -> bool:
        return describe_difference(*self._both(place, name)).endswith(SAME)

    def _both(self, place: Place, name: str) -> tuple[bytes, bytes]:
        return self.place.read({name})[name], place.read({name})[name]


SAME = ", the same pixels"

MANIFEST = "manifest.parquet"


def says_same(mine: bytes, theirs: bytes) -> bool:
    """Whether two manifests say the same but for the token that each run begins with."""
    tables = [pq.read_table(io.BytesIO(data)) for data in (mine, theirs)]
    facts = [{key: v for key, v in table.schema.metadata.items() if key != b"beamcam.begun"} for table in tables]
    return tables[0].equals(tables[1]) and facts[0] == facts[1]


def describe_difference(mine: bytes, theirs: bytes) -> str:
    """What is different about a file, by its pixels if it is a picture."""
    words = f"{len(mine)} bytes undisturbed, {len(theirs)} here"
    try:
        one, other = (np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (mine, theirs))
    except OSError:
        return words
    if one.shape != other.shape:
        return f"{words}, {one.shape} and {other.shape} pixels"
    apart = np.abs(one - other)
    if not apart.any():
        return words + SAME
    return f"{words}, {np.count_nonzero(apart)} of {apart.size} values differ, by {apart.max()} at most"


def draw_images(folder: Path, count: int, seed: int, largest: int = 480) -> None:
    """Coarse random pictures as JPEGs, each with a content of its own."""
    if folder.is_dir():
        return
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        size = int(rng.integers(largest // 3, largest)), int(rng.integers(largest // 3, largest))
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg")


def verify(place: Place, temporary: Path) -> Iterator[str]:
    """Yields what `beamcam verify` finds."""
    command = [sys.executable, "-m", "pipeline.cli", "verify", place.root]
    ended = start(command, temporary, place.environment).wait()
    if ended.code != 0:
        yield from (f"verify: {line}" for line in ended.said.splitlines()[:5])


def wait_for(arrived, running: Running, pause: float = 0.002, limit: float = PATIENCE) -> bool:
    """Polls until something is there; False if the job ended before, or never came to it."""
    deadline = time.monotonic() + limit
    while not arrived():
        if running.is_over or time.monotonic() > deadline:
            return bool(arrived())
        time.sleep(pause)
    return True


def name_seed(seed: int | None) -> int:
    """A seed that was given, or a new one, which the report tells."""
    return random.SystemRandom().randrange(10**6) if seed is None else seed
