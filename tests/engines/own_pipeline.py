"""A pipeline as users have them, with `ExplainImages` as one step: files in, Parquet files and words of failures out.

python -m tests.engines.own_pipeline "photos/*" model.keras explained --runner FlinkRunner ...
"""

from __future__ import annotations

import sys

import apache_beam as beam
from apache_beam.io.fileio import MatchFiles, ReadableFile, ReadMatches
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import Entry, ExplainImages, Record
from pipeline.parquet import RECORDS


def read_image(file: ReadableFile) -> Entry:
    """A file that Beam has read, as an image whose bytes are there."""
    return Entry(file.metadata.path, data=file.read())


def main(images: str, model: str, output: str, *words: str) -> None:
    """Runs it to the end."""
    with beam.Pipeline(options=PipelineOptions(list(words))) as pipe:
        files = pipe | MatchFiles(images) | beam.Reshuffle() | ReadMatches()
        read = files | beam.Map(read_image).with_output_types(Entry)
        # One image a batch: which images meet in one is left to the engine, and may decide the last bit of a logit.
        explained = read | ExplainImages(model=model, preprocess="tf", jit="off", batch_size=1)
        rows = explained.records | "ToRows" >> beam.Map(Record.to_row)
        _ = rows | beam.io.WriteToParquet(f"{output}/records", RECORDS)
        _ = explained.failures | "Tell" >> beam.Map(repr) | beam.io.WriteToText(f"{output}/failures")


if __name__ == "__main__":
    main(*sys.argv[1:])
