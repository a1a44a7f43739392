"""What is measured in processes of their own: a long run beside a short one, planning, starting up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.jobs import clear, configure
from tests.benchmarks.measuring import Figure, Result, Samples, interleave, last_json
from tests.benchmarks.workloads import PREPROCESS, ROOT, Settings, link_photographs, spec_of


def bench_growth(settings: Settings) -> Iterator[Result]:
    """Peak memory and time an image of a job over many images, against one over few; the model loaded, no overlays.

    The short job runs before and after the long one: what the machine does meanwhile is seen on both sides.
    """
    few, many = settings.few, settings.many
    runs = [(count, run_job_of(settings, count)) for count in (few, many, few)]

    def grown(what: str, key: str, target: float, per_image: bool) -> Figure:
        ours, base = (
            Samples(f"{n:,} images", tuple(run[key] for count, run in runs if count == n), n if per_image else 1)
            for n in (many, few)
        )
        what = f"{what}, {many:,} images against {few:,}"
        return Figure("growth", what, "growth", ours, base, settings.models[0], target)

    yield grown("peak memory", "megabytes", 1.05, per_image=False)
    yield grown("time an image", "seconds", 1.03, per_image=True)


def run_job_of(settings: Settings, count: int) -> dict[str, float]:
    """A job over so many images, in a process of its own."""
    images, model = link_photographs(settings, count), spec_of(settings.models[0])
    return run_child("job", images, model, PREPROCESS, settings.folder / "growth", settings.batch)


def bench_planning(settings: Settings) -> Iterator[Result]:
    """A manifest of many uris, listed and planned into shards; nothing of it is read but the manifest."""
    manifest = settings.folder / "uris.csv"
    with manifest.open("w") as file:
        file.write("uri,label\n")
        file.writelines(f"gs://some-bucket/photographs/{i // 1000:05d}/{i:09d}.jpg,{i % 1000}\n"
                        for i in range(settings.uris))  # fmt: skip
    found = [
        run_child("plan", manifest, settings.folder / f"plan-{i}") for i in range(max(1, settings.long_rounds - 1))
    ]
    what, notes = f"a manifest of {settings.uris:,} uris", {key: found[0][key] for key in ("shards", "seconds_listing")}
    for kind, target in (("seconds", 60), ("megabytes", 1000)):
        samples = Samples("planning", tuple(child[kind] for child in found))
        yield Figure("planning", what, kind, samples, target=target, notes=notes)


def bench_startup(settings: Settings) -> Iterator[Result]:
    """Seconds of a fresh process, its files in the system's cache."""
    name = settings.models[0]
    config = configure(settings, name, link_photographs(settings, 1), "blend")
    beamcam = [sys.executable, "-m", "pipeline.cli"]
    run = [*beamcam, "run", "--images", config.images[0], "--model", config.model, "--preprocess", PREPROCESS]
    run += ["--output", config.output]
    calls: dict[str, Callable[[], object]] = {
        "beamcam --help": partial(run_process, [*beamcam, "--help"]),
        "import pipeline": partial(run_process, [sys.executable, "-c", "import pipeline"]),
        "beamcam run, to the first record": partial(first_record, run, Path(config.output)),
        "beamcam run --jit off, to the first record": partial(
            first_record, [*run, "--jit", "off"], Path(config.output)
        ),
    }
    took = interleave(max(1, settings.long_rounds - 1), calls, before=lambda: clear(config))
    for what, values in took.items():
        yield Figure("startup", what, "seconds", Samples(what, values), model=name if " run" in what else "")


def first_record(command: Sequence[str], output: Path) -> None:
    """Runs a job until its first record can be read, and ends it there."""
    records = output / "records" / "part-00000.parquet"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while not records.exists():
            if process.poll() is not None and not records.exists():
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} and wrote no record")
            time.sleep(0.005)
        process.kill()


def run_child(function: str, *arguments: Any) -> dict[str, Any]:
    """What a function of `tests.benchmarks.children` measures of itself in a process of its own."""
    done = run_process([sys.executable, "-m", "tests.benchmarks.children", function, *map(str, arguments)])
    return last_json(done.stdout)


def run_process(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A process that must end well."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done
