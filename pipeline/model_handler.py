"""The explainers as a model handler, for people whose pipelines are made of Beam's RunInference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from pipeline.config import RunConfig
from pipeline.counting import Tally
from pipeline.errors import ConfigError
from pipeline.steps import as_unnamed, claim_stores, explain_entries, load_worker, step_config
from pipeline.transforms import book_metrics

if TYPE_CHECKING:
    from pipeline.worker import Worker

Example = Union[bytes, np.ndarray]  # noqa: UP007 - it is evaluated, also by Python 3.10


class ExplainModelHandler(ModelHandler[Example, PredictionResult, "Worker"]):
    """Explains images in `RunInference`; `inference` is a `pipeline.Record`, or a `pipeline.Failure`.

    An example is the bytes of an image's file, or its pixels, (H, W, 3) or (H, W) uint8, in any size: they are brought
    to the model's as in a run, and go through its `preprocess`. Images have no names here: their `uri` is "sha256:" and
    the hash of the bytes, or of the PPM file of the pixels. `KeyedModelHandler` carries your own keys along.

        >>> handler = KeyedModelHandler(ExplainModelHandler(model="model.keras", preprocess="tf"))
        >>> explained = pipe | beam.Create(pairs) | RunInference(handler)

    What `ExplainImages` does better: results here drag their images along, `RunInference` reads nothing ahead of the
    model, and a batch ends with its bundle. So batches have one size, as far as bundles allow, and partial ones are
    padded, since a program is compiled for one size; a map does not depend on it. An image that cannot be explained
    is a failure of its own, which takes no other along: `with_exception_handling` only sees what no image is to
    blame for.

    Args:
        config: see `step_config`.
        max_batch_duration_secs: how long a stream's images may wait for others, see `ModelHandler`.
        options: see `step_config`.

    Raises:
        ConfigError: the configuration is not as it must be.
    """

    def __init__(
        self, config: RunConfig | None = None, *, max_batch_duration_secs: int | None = None, **options: Any
    ) -> None:
        self.config = step_config(config, **options)
        size = self.config.batch_size
        super().__init__(min_batch_size=size, max_batch_size=size, max_batch_duration_secs=max_batch_duration_secs)

    def load_model(self) -> Worker:
        """The process's one worker for the configuration."""
        return load_worker(self.config, self)  # Beam tells no handler of its end: until nobody holds it

    def run_inference(
        self,
        batch: Sequence[Example],
        model: Worker,
        inference_args: dict[str, Any] | None = None,  # noqa: ARG002 - refused before anything begins
    ) -> list[PredictionResult]:
        """Explains a batch; a list and not a generator, so that RunInference's counters see what goes wrong."""
        claim_stores(self.config, self)
        tally = Tally()
        outcomes = explain_entries([as_unnamed(example) for example in batch], model, tally)
        book_metrics(tally)
        pairs = zip(batch, outcomes, strict=True)
        return [PredictionResult(example, outcome, model.model_digest) for example, outcome in pairs]

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        """Of the images."""
        return sum(len(example) if isinstance(example, bytes) else example.nbytes for example in batch)

    def get_metrics_namespace(self) -> str:
        """That of RunInference's own counters, such as num_inferences."""
        return "beamcam_inference"

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """There are none: what is computed is compiled ahead."""
        if inference_args:
            raise ConfigError(f"inference_args={inference_args!r} are not taken: give options to the handler")

    def update_model_path(self, model_path: str | None = None) -> None:
        """Takes another model from now on, as `RunInference` asks for with `model_metadata_pcoll`."""
        if model_path:
            self.config = dataclasses.replace(self.config, model=model_path)
