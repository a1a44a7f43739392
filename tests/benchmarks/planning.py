"""How far `beamcam run --dry-run` is off: what it says of a job, against the job.

python -m tests.benchmarks.planning [images [model]]
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline import RunConfig, run_job
from pipeline.demo_data import make_dataset
from pipeline.planning import Estimate, measure
from pipeline.run import list_input, new_plan
from pipeline.worker import shared_worker
from tests.benchmarks.workloads import PREPROCESS, spec_of

CONFIGURATIONS = {
    "no overlays": {"overlays": "none"},
    "overlays blended at full size": {"overlays": "blend"},
}


def planning_error(count: int = 1000, model: str = "MobileNetV2") -> Iterator[str]:
    """Estimated and real failures, images/s and bytes of a job over so many images and some broken ones, in lines."""
    with tempfile.TemporaryDirectory() as folder:
        # Every picture is another one: records of copies would compress each other.
        images = make_dataset(Path(folder) / "data", count, seed=0, broken=count // 50).manifest
        for name, options in CONFIGURATIONS.items():
            config = RunConfig(
                (str(images),), spec_of(model), f"{folder}/run", preprocess=PREPROCESS, labels_from="none", **options
            )
            start = time.perf_counter()
            planned = plan(config)
            measured = time.perf_counter() - start
            summary = run_job(dataclasses.replace(config, jit=planned.plan.config.jit), [])
            yield f"{model}, {name}, {count} images, {planned.cost.tried} of them tried in {measured:.0f} s"
            yield compare("failures", planned.cost.failing * summary["inputs"], summary["failures"])
            yield compare("images/s", planned.rate, summary["inputs"] / summary["seconds"])
            sizes = {**planned.storage(), "in all": sum(planned.storage().values())}
            for what, real in measure_files(Path(config.output)).items():
                yield compare(f"bytes, {what}", sizes[what], real)
            shutil.rmtree(config.output)


def plan(config: RunConfig) -> Estimate:
    """The dry run, without its words."""
    with list_input(config) as listing:
        worker = shared_worker(config)
        return measure(new_plan(worker.config, listing, worker.metadata), listing, worker, 0.0)


def measure_files(run: Path) -> dict[str, float]:
    """The bytes of a run's files, by what they are."""
    sizes = {name: _bytes(run / name) for name in ("records", "overlays")}
    total = _bytes(run)
    return {**sizes, "others": total - sum(sizes.values()), "in all": total}


def compare(what: str, planned: float, real: float) -> str:
    """A line: the plan, the job, and the one over the other."""
    ratio = f"{planned / real:.3f}" if real else "-"
    return f"  {what:16} planned {planned:>14,.1f}   real {real:>14,.1f}   planned/real {ratio}"


def _bytes(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def main() -> None:
    """Prints them."""
    arguments = sys.argv[1:]
    for line in planning_error(*map(int, arguments[:1]), *arguments[1:2]):
        print(line, flush=True)


if __name__ == "__main__":
    main()
