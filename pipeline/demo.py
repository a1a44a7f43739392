"""`beamcam demo`: the whole job on a data set and a model of its own, for a first look without any download."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from pipeline import demo_data, demo_model, storage
from pipeline.audit.auditing import AuditOptions, audit_run
from pipeline.audit.command import describe
from pipeline.config import RunConfig
from pipeline.decode import decode_image
from pipeline.job import run_job
from pipeline.reading import Run, open_run
from pipeline.records import Record
from pipeline.sheet import make_sheet

METHODS = ("cam", "gradcam", "gradients")

EXAMPLES_A_CLASS = 2


def run_demo(
    folder: Path, count: int, seed: int, say: Callable[[str], None], marked_share: float = demo_data.MARKED_SHARE
) -> Run:
    """Makes images, trains a model, explains every image, draws a contact sheet, and audits the run.

    Args:
        folder: where everything goes: `data`, `model.keras`, `run` and `contact-sheet.png`.
        count: images to make; a few broken files come on top.
        seed: of the images and of the training.
        say: tells the user a line.
        marked_share: of the pictures of one class, 0 to 1, that carry the watermark to be found.
    """
    start = time.monotonic()
    say(f"making {count} images, some of them broken, in {folder / 'data'}")
    data = demo_data.make_dataset(folder / "data", count, seed, marked_share=marked_share)
    say(f"training a small network on them ({time.monotonic() - start:.0f} s so far)")
    demo_model.train_model(data, seed).save(folder / "model.keras")
    say(f"explaining every image ({time.monotonic() - start:.0f} s so far)")
    config = RunConfig(
        images=(str(data.manifest),),
        model=str(folder / "model.keras"),
        output=storage.absolute(str(folder / "run")),
        class_names=str(data.class_names),
        methods=METHODS,
        targets="top:2",
        preprocess="tf",
    )
    run_job(config, [], overwrite=True, say=say)
    run = open_run(folder / "run")
    storage.write_bytes(str(folder / "contact-sheet.png"), draw_contact_sheet(run))
    say(f"auditing the run ({time.monotonic() - start:.0f} s so far)")
    options = AuditOptions(config.output, baseline="none")
    found = describe(audit_run(options), options.folder)
    for line in [*describe_demo(run, folder, time.monotonic() - start), *found]:
        say(line)
    return run


def draw_contact_sheet(run: Run) -> bytes:
    """A PNG: a few images of each class, each beside its overlays."""
    tiles = []
    for record in choose_examples(run):
        photograph = decode_image(storage.read_bytes(record.uri))
        predicted = run.class_names[record.predicted] if run.class_names else str(record.predicted)
        tiles.append((photograph, f"{record.label}\npredicted {predicted}"))
        for values in record.maps:
            if values.rank == 0 and values.overlay is not None:
                overlay = Image.open(io.BytesIO(run.read_overlay(values.overlay)))
                tiles.append((overlay, f"{values.method}\np {values.probability:.2f}"))
    return make_sheet(tiles, columns=2 * (1 + len(METHODS)), tile_size=160)


def choose_examples(run: Run) -> Iterator[Record]:
    """The first images of each class, in the order of classes."""
    by_label = sorted(run, key=lambda record: str(record.label))
    for _, group in itertools.groupby(by_label, key=lambda record: record.label):
        yield from itertools.islice(group, EXAMPLES_A_CLASS)


def describe_demo(run: Run, folder: Path, seconds: float) -> list[str]:
    """What was made, and where to look first."""
    summary = run.summary
    names = run.class_names or []
    right = sum(names[record.predicted] == record.label for record in run)
    kinds = ", ".join(f"{count} x {kind}" for kind, count in summary["failures_by_type"].items())
    return [
        f"{len(run)} records ({right / max(1, len(run)):.1%} predicted right), {summary['overlays']} overlays",
        f"{summary['failures']} failures ({kinds}); {seconds:.0f} s in all",
        f"look at   {folder / 'contact-sheet.png'}",
        f"records   {folder / 'run' / 'records'}",
        f"overlays  {folder / 'run' / 'overlays'}",
        f"failures  {folder / 'run' / 'failures'}",
        f"check it  beamcam verify {folder / 'run'}",
        f"audit it  beamcam audit {folder / 'run'} --confirm {folder / 'model.keras'}",
        f"read it   python -c \"import pipeline; print(next(iter(pipeline.open_run('{folder / 'run'}'))))\"",
    ]
