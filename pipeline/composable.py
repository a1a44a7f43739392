"""The way of an image as one step of somebody else's Beam pipeline: uris or bytes in, records and failures out."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Union

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.typehints import with_input_types
from apache_beam.utils.windowed_value import WindowedValue

from pipeline.config import RunConfig
from pipeline.counting import Tally, kinds
from pipeline.engines import name_of_runner
from pipeline.errors import ConfigError
from pipeline.flow import explain_shards
from pipeline.layout import RunLayout
from pipeline.records import Entry, Failure, Record, Shard
from pipeline.steps import as_entry, claim_stores, end_step, load_worker, step_config
from pipeline.stream import Stream
from pipeline.transforms import book_metrics

Image = Union[str, tuple[str, bytes], Entry]  # noqa: UP007 - it is evaluated, also by Python 3.10
"""What stands for an image: its uri; a name, and the bytes of its file; or either with a label and boxes."""

RECORDS, FAILURES = "records", "failures"


class ExplainImagesDoFn(beam.DoFn):
    """`explain_shards` for the images of a bundle, a batch of them at a time; the model is loaded once a process."""

    def __init__(self, config: RunConfig):
        self.config = config

    def setup(self) -> None:
        """Loads the model; never in the constructor, which is pickled."""
        self.worker = load_worker(self.config, self)
        self.tally = Tally()

    def start_bundle(self) -> None:
        """Begins with nothing: what is left is of a bundle that was given up."""
        from pipeline.worker import new_loads

        self._stop()
        claim_stores(self.config, self)
        self.tally.add("model_loads", new_loads())
        self.stream: Stream[list[WindowedValue], WindowedValue] | None = None
        self.waiting: list[WindowedValue] = []

    def process(
        self,
        image: Image,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[WindowedValue | TaggedOutput]:
        """Adds an image; yields the outcomes that are there by now, each with its own image's time and window."""
        entry = WindowedValue(as_entry(image), timestamp, (window,), pane)
        if isinstance(entry.value, Failure):
            for name in ("images_in", "failures", kinds.name(f"{entry.value.stage}:{entry.value.error_type}")):
                self.tally.add(name)
            yield from self._tell([entry])
            return
        self.waiting.append(entry)
        if len(self.waiting) == self.config.batch_size:
            yield from self._tell(self._send())

    def finish_bundle(self) -> Iterator[WindowedValue | TaggedOutput]:
        """Explains what is left, and waits for it."""
        if self.waiting:
            yield from self._tell(self._send())
        if self.stream is not None:
            yield from self._tell(self.stream.close())

    def teardown(self) -> None:
        """Ends the stream of a bundle that was given up; others may now set other options of stores."""
        self._stop()
        end_step(self)

    def _stop(self) -> None:
        if (stream := getattr(self, "stream", None)) is not None:
            stream.stop()

    def _send(self) -> Iterator[WindowedValue]:
        if self.stream is None:
            self.stream = Stream(self._explain)
        images, self.waiting = self.waiting, []
        return self.stream.put(images)

    def _explain(self, batches: Iterable[list[WindowedValue]]) -> Iterator[WindowedValue]:
        """In the stream's thread: while one batch is with the model, the next one is being read."""
        under_way: collections.deque[list[WindowedValue]] = collections.deque()

        def shards() -> Iterator[Shard]:
            for number, images in enumerate(batches):
                under_way.append(images)
                yield Shard(number, [image.value for image in images])

        with contextlib.closing(explain_shards(shards(), self.worker, RunLayout(self.config.output))) as explained:
            for shard in explained:
                outcomes = shard.take_outcomes()
                self.tally.absorb(shard.tally)
                for image, outcome in zip(under_way.popleft(), outcomes, strict=True):
                    yield image.with_value(outcome)

    def _tell(self, outcomes: Iterable[WindowedValue]) -> Iterator[WindowedValue | TaggedOutput]:
        for outcome in outcomes:
            yield outcome if isinstance(outcome.value, Record) else TaggedOutput(FAILURES, outcome)
        book_metrics(self.tally)


@with_input_types(Image)
class ExplainImages(beam.PTransform):
    """Images to records and failures: the way of an image through `beamcam run`, as a step of any pipeline.

        >>> records, failures = pipe | beam.Create(uris) | ExplainImages(model="model.keras", preprocess="tf")

    An element is a uri (str), a pair of a name and the bytes of an image's file (str, bytes), or a `pipeline.Entry`,
    which may have a label and boxes besides. Each becomes one `pipeline.Record` or one `pipeline.Failure`, with the
    timestamp, window and pane of its element; outputs are also `.records` and `.failures`. `uri` is the uri or the name
    as given, and `id` a hash of it; `Record.to_row` gives the columns that a run stores.

    Records are those of a run of the same images. The place of an image in its batch, which the run's shards or the
    engine's bundles decide, may change how its logits are rounded, in the last bit; with equal batches all bits agree.

    Nothing is written; maps are in the records. If `overlays` are asked for, they lie below `output`, named by the
    image's id and the method, and `MapRecord.overlay` tells where; so with overlays, names must differ: of images with
    one name, each overwrites the others' overlays.

    * Batches end with their bundle, and partial ones cost as much as full ones: streams of small bundles want a small
      `batch_size`, and images that come from few elements a `Reshuffle` ahead.
    * An image in several (sliding) windows is explained once for each: assign these behind the step.
    * What no image is to blame for (the model fails on any, a store is away) ends the bundle, which the engine may try
      again.
    * The options of stores are the process's: steps that are at work in one must agree in `storage_options` and
      `storage_timeout`, and the second is refused when it is set up if it does not.

    Args:
        config: see `steps.step_config`.
        check_model: whether to load the model where the pipeline is built, which finds mistakes before anything is
            started, and decides `jit` and `precision` once for all workers. Without it, each worker does so for itself:
            better where workers have GPUs and this machine has none, unless both are named.
        options: see `steps.step_config`.

    Raises:
        ConfigError: the configuration or the model is not as it must be, or the runner is one that loses images.
    """

    def __init__(self, config: RunConfig | None = None, *, check_model: bool = True, **options: Any):
        super().__init__()
        self.config = step_config(config, **options)
        self.check_model = check_model

    def expand(self, images: beam.PCollection) -> beam.pvalue.DoOutputsTuple:
        """One ParDo: pixels never cross a stage boundary."""
        if name_of_runner({"runner": type(images.pipeline.runner).__name__}) == "dask":
            raise ConfigError(
                "Beam's DaskRunner loses what comes out at the end of a bundle, as images here do: take another runner"
            )
        config = load_worker(self.config).config if self.check_model else self.config
        explain = beam.ParDo(ExplainImagesDoFn(config)).with_output_types(Record, **{FAILURES: Failure})
        return images | "ExplainImages" >> explain.with_outputs(FAILURES, main=RECORDS)
