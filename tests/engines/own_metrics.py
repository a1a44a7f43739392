"""A job's graph on an engine, and what the engine was told while it ran.

python -m tests.engines.own_metrics photos/ model.keras run --runner FlinkRunner ...
"""

from __future__ import annotations

import contextlib
import json
import sys

import apache_beam as beam

from pipeline import RunConfig
from pipeline.counting import NAMESPACE
from pipeline.graph import define_pipeline, prepare_options
from pipeline.run import list_input, plan_run
from pipeline.worker import shared_worker


def main(images: str, model: str, output: str, *words: str) -> None:
    """Prints name -> value, or the sum, count, least and most of a distribution, as one line of JSON."""
    config = RunConfig(
        (images,), model, output, preprocess="tf", jit="off", batch_size=4, shard_size=5, labels_from="none"
    )
    worker = shared_worker(config)
    with list_input(worker.config) as listing, contextlib.ExitStack() as held:
        plan = plan_run(worker.config, listing, worker.metadata, held=held)
        root = beam.Pipeline(options=prepare_options(words, worker.config))
        define_pipeline(root, plan)
        result = root.run()
        result.wait_until_finish()
        found = result.metrics().query()
    metrics = {m.key.metric.name: m.result for m in found["counters"] if m.key.metric.namespace == NAMESPACE}
    for metric in (m for m in found["distributions"] if m.key.metric.namespace == NAMESPACE):
        values = metric.result
        metrics[metric.key.metric.name] = [values.sum, values.count, values.min, values.max]
    sys.stdout.write("\n" + json.dumps(metrics) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
