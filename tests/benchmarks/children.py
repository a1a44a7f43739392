"""What `processes` starts: a job or a plan in a process of its own, which tells seconds and peak memory in JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline import RunConfig
from pipeline.run import list_input, plan_run
from tests.benchmarks.measuring import peak_megabytes


def job(images: str, model: str, preprocess: str, output: str, batch: str) -> dict[str, Any]:
    """A job without overlays: its seconds with listing and planning, the model loaded ahead."""
    from pipeline import run_job
    from pipeline.worker import shared_worker

    config = RunConfig(
        (images,), model, output, preprocess=preprocess, overlays="none", batch_size=int(batch), jit="off"
    )  # fmt: skip
    shared_worker(config)
    start = time.perf_counter()
    summary = run_job(config, [])
    seconds = time.perf_counter() - start
    shutil.rmtree(output)
    return {"seconds": seconds, "records": summary["records"]}


def plan(manifest: str, output: str) -> dict[str, Any]:
    """The plan of a run over a manifest, with what a worker says of its model made up."""
    config = RunConfig((manifest,), "made-up.keras", output)
    metadata = {
        "schema_version": "1",
        "config_digest": config.digest(),
        "model_digest": "0" * 64,
        "class_names": "null",
    }
    start = time.perf_counter()
    with list_input(config) as listing:
        seconds_listing = time.perf_counter() - start
        found = plan_run(config, listing, metadata)
    return {"seconds": time.perf_counter() - start, "seconds_listing": seconds_listing, "shards": found.n_shards}


FUNCTIONS: dict[str, Callable[..., dict[str, Any]]] = {"job": job, "plan": plan}

if __name__ == "__main__":
    measured = FUNCTIONS[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({**measured, "megabytes": peak_megabytes()}))
