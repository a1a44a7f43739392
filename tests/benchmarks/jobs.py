"""The whole job, photographs to Parquet, against the forward pass of as many images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import RunConfig, open_run, run_job
from tests.benchmarks.measuring import Figure, Result, Samples, interleave
from tests.benchmarks.workloads import (
    PREPROCESS,
    Settings,
    bare_forward,
    build_model,
    input_size,
    link_photographs,
    read_batch,
    spec_of,
)

TARGETS = {
    ("MobileNetV2", "none"): 0.95,
    ("MobileNetV2", "blend"): 0.85,
    ("ResNet50V2", "none"): 0.98,
    ("ResNet50V2", "blend"): 0.95,
}


def bench_job(settings: Settings) -> Iterator[Result]:
    """Files to records and full-size overlays, the model loaded; listing, planning and summing up included."""
    batches = max(1, settings.photographs // settings.batch)
    images = link_photographs(settings, batches * settings.batch)
    for name in settings.models:
        model = build_model(name, settings.seed)
        forward = partial(repeat, batches, bare_forward(model, read_batch(settings, input_size(model))))
        for overlays in ("none", "layer", "blend"):
            config = configure(settings, name, images, overlays)
            job = partial(run_job, config, [])
            took = interleave(settings.long_rounds, {"forward": forward, "job": job}, before=partial(clear, config))
            job()  # once more, to be read: the others were cleared away
            yield Figure(
                part="job",
                what=f"overlays {overlays}",
                kind="rate",
                ours=Samples("job", took["job"], batches * settings.batch),
                base=Samples("the forward pass", took["forward"], batches * settings.batch),
                model=name,
                target=TARGETS.get((name, overlays)),
                notes=describe_run(config.output),
            )


def configure(settings: Settings, name: str, images: Path, overlays: str) -> RunConfig:
    """Grad-CAM of the best class of each image."""
    return RunConfig(
        images=(str(images),),
        model=spec_of(name),
        output=str(settings.folder / "run"),
        preprocess=PREPROCESS,
        overlays=overlays,
        batch_size=settings.batch,
    )


def clear(config: RunConfig) -> None:
    """Removes a run, so that the next one finds no files of it."""
    shutil.rmtree(config.output, ignore_errors=True)


def repeat(times: int, function: Callable[[], object]) -> None:
    """Calls a function so many times."""
    for _ in range(times):
        function()


def describe_run(output: str) -> dict[str, Any]:
    """How many records a run has, and what the work was, in milliseconds of one thread an image."""
    summary = open_run(output).summary
    stages = {stage: round(1000 * s / summary["inputs"], 3) for stage, s in summary["seconds_by_stage"].items()}
    return {"records": summary["records"], "failures": summary["failures"], "milliseconds_by_stage": stages}
