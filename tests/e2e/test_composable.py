"""Images explained in other people's pipelines: the same records as a run's, wherever an image comes from."""

from __future__ import annotations

import dataclasses
import doctest
import gc
import hashlib
import importlib.util
import random
import threading
import urllib.request
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream as Arriving  # pytest takes classes of that name for tests
from apache_beam.transforms.window import FixedWindows, IntervalWindow, TimestampedValue
from apache_beam.typehints.decorators import TypeCheckError
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue
from PIL import Image

from pipeline import (
    ConfigError,
    Entry,
    ExplainImages,
    ExplainModelHandler,
    Failure,
    Record,
    RunConfig,
    open_run,
    parquet,
    run_job,
    shard,
    storage,
)
from pipeline.composable import ExplainImagesDoFn
from pipeline.steps import as_entry, as_unnamed, explain_entries, load_worker, step_config
from pipeline.worker import Worker, loads, new_loads, shared_worker
from tests.collecting import Basket
from tests.emulators import NEEDED, running_s3


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    """Fifteen photographs, of which two are none."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in photographs.glob("??.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "03b.jpg").write_bytes(b"")
    (folder / "07b.png").write_bytes((folder / "07.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def options(tiny_model_path) -> dict[str, Any]:
    return {"model": tiny_model_path, "preprocess": "tf", "jit": "off", "batch_size": 4,
            "methods": ("cam", "gradcam"), "targets": "top:2"}  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, options, tmp_path_factory) -> str:
    """What `beamcam run` makes of them; its shards are as long as a batch, as the batches of a step are."""
    output = str(tmp_path_factory.mktemp("run") / "run")
    run_job(RunConfig(images=(str(folder),), output=output, shard_size=4, **options), [])
    return output


def explain(images: Iterable[Any], **options) -> tuple[list[Record], list[Failure], dict[str, int]]:
    """What comes out of a pipeline, in no order, and its counters."""
    found = Basket()
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        explained = pipe | beam.Create(list(images)) | ExplainImages(**options)
        _ = explained.records | "Keep" >> beam.Map(found.put)
        _ = explained.failures | "KeepFailures" >> beam.Map(found.put)
    records = sorted((item for item in found.items if isinstance(item, Record)), key=lambda record: record.uri)
    return records, [item for item in found.items if isinstance(item, Failure)], counters_of(pipe)


def counters_of(pipe: beam.Pipeline) -> dict[str, int]:
    return {counter.key.metric.name: counter.committed for counter in pipe.result.metrics().query()["counters"]}


def uris_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir())  # in the order of a run


def as_bytes(records: Iterable[Record], **changes) -> bytes:
    """All that a run stores of records, bit for bit; but for their overlays' names."""
    plain = [
        dataclasses.replace(record, maps=tuple(dataclasses.replace(m, overlay=None) for m in record.maps), **changes)
        for record in records
    ]
    return parquet.encode_records(plain, {})


INPUTS: dict[str, Callable[[str], Any]] = {
    "uris": lambda uri: uri,
    "bytes": lambda uri: (uri, Path(uri).read_bytes()),
    "entries": Entry,
    "entries with bytes": lambda uri: Entry(uri, data=Path(uri).read_bytes()),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_records_and_failures_are_those_of_a_run_bit_for_bit(folder, options, run, kind) -> None:
    records, failures, _ = explain(map(INPUTS[kind], uris_of(folder)), **options)
    assert len(records) == 13
    assert as_bytes(records) == as_bytes(open_run(run))
    assert set(failures) == set(open_run(run).failures())


def test_an_image_is_explained_alike_among_others(folder, options, run) -> None:
    uris = uris_of(folder)
    random.Random(5).shuffle(uris)
    records, failures, _ = explain(uris, **options | {"overlays": "none"})
    for record, expected in zip(records, open_run(run), strict=True):
        # The place in a batch decides how a matrix product is rounded: the last bit of a logit, and what follows of it.
        np.testing.assert_allclose(record.logits, expected.logits, rtol=1e-5, atol=1e-6)
        assert record.uri == expected.uri
        assert (record.predicted, record.runner_up) == (expected.predicted, expected.runner_up)
        for ours, theirs in zip(record.maps, expected.maps, strict=True):
            assert (ours.method, ours.target, ours.rank) == (theirs.method, theirs.target, theirs.rank)
            np.testing.assert_allclose(ours.array(), theirs.array(), atol=1e-3 * np.abs(theirs.array()).max())
    assert set(failures) == set(open_run(run).failures())


def test_labels_and_boxes_come_with_entries(photographs, options, tmp_path) -> None:
    asked = {"targets": "predicted+label", "metrics": ("pointing",)}
    manifest = str(photographs / "manifest.jsonl")
    output = str(tmp_path / "run")
    run_job(RunConfig(images=(manifest,), output=output, overlays="none", shard_size=4, **options | asked), [])
    entries = list(open_run(output).manifest())
    records, _, _ = explain(entries, **options | asked)
    assert any(stored.metrics for record in records for stored in record.maps)
    assert as_bytes(records) == as_bytes(open_run(output))


def test_rows_are_what_a_run_stores(folder, options, run) -> None:
    records, _, _ = explain(uris_of(folder), **options | {"overlays": "none"})
    table = pa.Table.from_pylist([record.to_row() for record in records], parquet.RECORDS)
    stored = open_run(run).to_arrow().to_pylist()
    for row in stored:
        for values in row["maps"]:
            values["overlay"] = None
    assert table.to_pylist() == stored


@pytest.mark.parametrize("kind", ["uris", "bytes"])
def test_overlays_are_written_where_they_are_asked_for_as_a_run_does(folder, options, run, tmp_path, kind) -> None:
    config = RunConfig(images=("-",), output=str(tmp_path), **options)
    images = list(map(INPUTS[kind], uris_of(folder)))
    found = Basket()
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        _ = (pipe | beam.Create(images) | ExplainImages(config)).records | "Keep" >> beam.Map(found.put)
    paths = {stored.overlay for record in found.items for stored in record.maps}
    assert len(paths) == 13 * 2 * 2
    assert {path: (tmp_path / path).read_bytes() for path in paths} == {
        str(path.relative_to(run)): path.read_bytes() for path in Path(run).glob("overlays/**/*.png")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["overlays"]


def test_nothing_is_written_unless_it_is_asked_for(folder, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    explain(uris_of(folder), **options)
    assert list(tmp_path.iterdir()) == []


def test_each_outcome_keeps_the_time_and_the_window_of_its_image(folder, options) -> None:
    uris = uris_of(folder)
    found = Basket()

    def keep(item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam) -> None:
        found.put((item.uri, (float(time), window)))

    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        add_time = beam.MapTuple(lambda i, uri: TimestampedValue(uri, 7 * i)).with_output_types(str)
        timed = pipe | beam.Create(list(enumerate(uris))) | add_time
        explained = timed | beam.WindowInto(FixedWindows(10)) | ExplainImages(**options)
        _ = explained.records | "Keep" >> beam.Map(keep)
        _ = explained.failures | "KeepFailures" >> beam.Map(keep)
    # Batches of four images go across the windows.
    starts = {uri: 7 * i // 10 * 10 for i, uri in enumerate(uris)}
    windows = {uri: IntervalWindow(start, start + 10) for uri, start in starts.items()}
    assert dict(found.items) == {uri: (7.0 * i, windows[uri]) for i, uri in enumerate(uris)}


def test_a_stream_is_explained_as_it_comes(folder, options) -> None:
    """Bundle by bundle: what is ahead of a window's end comes out ahead of it."""
    uris = uris_of(folder)
    stream = Arriving()
    for i in range(0, len(uris), 5):  # no batch is full when its bundle ends
        stream = stream.add_elements([TimestampedValue(uri, i) for uri in uris[i : i + 5]]).advance_watermark_to(i + 4)
    found = Basket()

    def keep(count, window=beam.DoFn.WindowParam, pane=beam.DoFn.PaneInfoParam) -> None:
        found.put((*count, int(window.start), PaneInfoTiming.to_string(pane.timing)))

    with beam.Pipeline(runner="BundleBasedDirectRunner", options=PipelineOptions(["--streaming"])) as pipe:
        windows = pipe | stream.advance_watermark_to_infinity() | beam.WindowInto(FixedWindows(5))
        for name, outcomes in zip(("record", "failure"), windows | ExplainImages(**options), strict=True):
            named = outcomes | f"Name {name}" >> beam.WithKeys(name)
            counted = named | f"Count {name}" >> beam.combiners.Count.PerKey()
            _ = counted | f"Keep {name}" >> beam.Map(keep)
    assert sorted(found.items) == [
        ("failure", 1, 0, "ON_TIME"),
        ("failure", 1, 5, "ON_TIME"),
        ("record", 4, 0, "ON_TIME"),
        ("record", 4, 5, "ON_TIME"),
        ("record", 5, 10, "ON_TIME"),
    ]


def test_the_runner_is_told_what_became_of_images(folder, options) -> None:
    *_, counters = explain([*uris_of(folder), "https://user:secret@host/a.png"], **options)
    expected = {"images_in": 16, "records": 13, "failures": 3, "failures/decode:EmptyFile": 1,
                "failures/decode:BrokenImage": 1, "failures/read:RefusedName": 1}  # fmt: skip
    assert {name: counters[name] for name in expected} == expected
    assert counters["bytes_read"] == sum(path.stat().st_size for path in folder.iterdir())
    assert counters["batches"] == 4
    assert "shards_committed" not in counters


def test_a_name_with_a_secret_is_a_failure_that_does_not_repeat_it(options) -> None:
    _, (failure,), _ = explain(["https://user:secret@host/a.png"], **options)
    assert (failure.stage, failure.error_type) == ("read", "RefusedName")
    assert "secret" not in repr(failure)
    assert "host/a.png" in failure.uri


def test_a_name_that_no_table_takes_is_a_failure() -> None:
    failure = as_entry("/photos/\udcff.jpg")
    assert isinstance(failure, Failure)
    assert failure.uri == "/photos/\\udcff.jpg"


def test_frames_of_one_name_are_images_of_their_own(photographs, options) -> None:
    files = [path.read_bytes() for path in sorted(photographs.glob("??.png"))[:3]]
    records, _, _ = explain([("camera", data) for data in files], **options)
    assert [record.uri for record in records] == ["camera"] * 3
    assert [record.content_sha256 for record in records] == [hashlib.sha256(data).hexdigest() for data in files]
    direct = [explain([("camera", data)], **options)[0][0] for data in files]
    for record, alone in zip(records, direct, strict=True):
        np.testing.assert_allclose(record.maps[0].array(), alone.maps[0].array(), rtol=1e-3, atol=1e-6)


def test_bytes_are_measured_as_files_are(folder, options) -> None:
    path = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    limit = {"max_bytes": path.stat().st_size - 1}
    (from_file,), (from_bytes,) = (
        explain([image], **options | limit)[1] for image in (str(path), (str(path), path.read_bytes()))
    )
    assert from_file == from_bytes
    assert from_bytes.error_type == "TooLarge"


def test_a_large_photograph_that_came_as_bytes_is_not_looked_for_by_its_name(
    photographs, options, monkeypatch, tmp_path
):
    monkeypatch.setattr(shard, "KEPT_PIXELS", 0)
    monkeypatch.setattr(shard, "KEPT_BYTES", 0)
    image = ("no file", (photographs / "01.png").read_bytes())
    (record,), _, _ = explain([image], overlays="blend", output=str(tmp_path), **options)
    assert all((tmp_path / str(stored.overlay)).exists() for stored in record.maps)


def test_what_no_image_is_to_blame_for_ends_the_bundle(folder, options, monkeypatch) -> None:
    def explode(worker, pixels, targets) -> None:
        raise ValueError("the device is gone")

    load_worker(step_config(**options))
    monkeypatch.setattr(Worker, "explain", explode)
    with pytest.raises(Exception, match="4 images could not be explained: ValueError: the device is gone"):
        explain([str(path) for path in sorted(folder.glob("1?.png"))[:2]] * 2, **options)


def test_a_bundle_that_was_given_up_leaves_nothing_to_the_next(photographs, options) -> None:
    first, second = (str(path) for path in sorted(photographs.glob("??.png"))[:2])
    step = ExplainImagesDoFn(step_config(**options))
    step.setup()
    given = {"timestamp": 7, "window": IntervalWindow(0, 10), "pane": PaneInfo(False, True, 2, 1, 1)}
    step.start_bundle()
    for _ in range(5):
        list(step.process(first, **given))
    step.start_bundle()
    assert list(step.process(second, **given)) == []
    (outcome,) = step.finish_bundle()
    assert outcome == WindowedValue(outcome.value, given["timestamp"], (given["window"],), given["pane"])
    assert outcome.value.uri == second
    step.teardown()


def test_an_empty_bundle_says_nothing(options) -> None:
    step = ExplainImagesDoFn(step_config(**options))
    step.setup()
    step.start_bundle()
    assert list(step.finish_bundle()) == []


@pytest.mark.parametrize("end", [ExplainImagesDoFn.start_bundle, ExplainImagesDoFn.teardown])
def test_a_bundle_that_was_given_up_leaves_no_thread(photographs, options, end) -> None:
    step = ExplainImagesDoFn(step_config(**options))
    step.setup()
    step.start_bundle()
    before = set(threading.enumerate())
    list(step._send())
    (thread,) = (one for one in set(threading.enumerate()) - before if one is step.stream._thread)
    assert thread.is_alive()
    end(step)
    assert not thread.is_alive()
    step.teardown()


def test_a_model_that_a_step_loads_is_counted_once(photographs, options) -> None:
    new_loads()
    images, ours = [str(photographs / "01.png")], options | {"check_model": False, "max_bytes": 1_234_567}
    assert explain(images, **ours)[2]["model_loads"] == 1
    assert explain(images, **ours)[2].get("model_loads", 0) == 0


@pytest.fixture
def own_stores() -> Iterator[None]:
    """Leaves the process without options of stores."""
    yield
    storage.configure(())


SLOW, SLOWER = {"storage_timeout": 200.0}, {"storage_timeout": 201.0, "storage_options": "s3.anon=true"}

OTHERS = (
    r"a step with storage_options=\['s3.anon=true'\] and storage_timeout=201.0 cannot begin while one with "
    r"storage_options=\[\] and storage_timeout=200.0 .* give all steps of a pipeline the same"
)


@pytest.mark.parametrize("kind", [ExplainImages, ExplainModelHandler])
def test_secrets_of_stores_are_refused_before_they_are_in_a_pipeline(kind, options) -> None:
    checks = {"check_model": False} if kind is ExplainImages else {}
    for secret in ("s3.secret=hunter2", "hunter2"):
        for config in (None, RunConfig(images=("-",), output="-", overlays="none", **options)):
            with pytest.raises(ConfigError, match=r"--storage-option: .*(is a secret|is SCHEME\.NAME=VALUE)"):
                kind(config, storage_options=secret, **checks, **options)


def test_options_of_stores_are_set_when_a_step_begins_and_not_where_it_is_made(
    options, own_stores, monkeypatch
) -> None:
    told = []
    monkeypatch.setattr(storage, "configure", lambda *args: told.append(args))
    step = ExplainImagesDoFn(ExplainImages(**options | SLOWER).config)
    handler = ExplainModelHandler(**options | SLOWER)
    assert told == []
    step.setup()
    handler.load_model()
    assert told == [(("s3.anon=true",), 201.0)] * 2


def test_steps_at_work_in_one_process_agree_about_stores(options, own_stores) -> None:
    first, alike, other = (ExplainImagesDoFn(step_config(**options | some)) for some in (SLOW, SLOW, SLOWER))
    handler = ExplainModelHandler(**options | SLOWER)
    first.setup()
    alike.setup()
    images = beam.Pipeline(runner=FnApiRunner()) | beam.Create(["a.jpg"])
    for begin in (other.setup, handler.load_model, lambda: images | ExplainImages(**options | SLOWER)):
        with pytest.raises(ConfigError, match=OTHERS):
            begin()
        first.start_bundle()
    first.teardown()
    alike.start_bundle()
    with pytest.raises(ConfigError, match=OTHERS):
        other.setup()
    alike.start_bundle()
    alike.teardown()
    other.setup()
    other.teardown()
    worker = handler.load_model()
    with pytest.raises(ConfigError, match="cannot begin while one with"):
        first.setup()
    first.setup()  # a refusal forgets those at work, whose job has failed; if one goes on, it is heard of
    with pytest.raises(ConfigError, match=OTHERS):
        handler.run_inference([], worker)
    handler.load_model()
    with pytest.raises(ConfigError, match="cannot begin while one with"):
        first.start_bundle()


def test_a_step_whose_model_cannot_be_loaded_is_not_at_work(options, own_stores, tmp_path) -> None:
    failed = ExplainImagesDoFn(step_config(**options | SLOW | {"model": str(tmp_path / "nothing.keras")}))
    with pytest.raises(ConfigError, match=r"nothing\.keras"):
        failed.setup()
    other = ExplainImagesDoFn(step_config(**options | SLOWER))
    other.setup()
    other.teardown()


@pytest.mark.parametrize("kind", ["images", "handlers"])
def test_two_steps_of_a_pipeline_with_other_stores_are_refused_and_later_jobs_are_not(
    photographs, options, own_stores, kind
) -> None:
    path = photographs / "01.png"

    def work(*steps: dict[str, Any]) -> int:
        found = Basket()
        with beam.Pipeline(runner=FnApiRunner()) as pipe:
            images = pipe | beam.Create([str(path)])
            for i, some in enumerate(steps):
                if kind == "images":
                    outcomes = (images | f"Explain {i}" >> ExplainImages(**options | some)).records
                else:
                    data = images | f"Read {i}" >> beam.Map(lambda uri: Path(uri).read_bytes()).with_output_types(bytes)
                    outcomes = data | f"Infer {i}" >> RunInference(ExplainModelHandler(**options | some))
                _ = outcomes | f"Keep {i}" >> beam.Map(lambda _, i=i: found.put(i))
        return len(found.items)

    assert work(SLOW, SLOW) == 2
    with pytest.raises(ConfigError, match="cannot begin while one with") as refused:
        work(SLOW, SLOWER)
    assert work(SLOWER) == 1
    assert work(SLOW) == 1
    assert "give all steps of a pipeline the same storage_options" in str(refused.value)


def test_a_step_reads_from_the_store_that_its_options_name(photographs, options, own_stores, monkeypatch) -> None:
    if missing := [package for package in NEEDED["s3"] if importlib.util.find_spec(package) is None]:
        pytest.skip(f"no emulator of s3: {', '.join(missing)} missing")
    data = (photographs / "01.png").read_bytes()
    with running_s3("own") as variables:
        url = variables["AWS_ENDPOINT_URL"]
        kind = {"Content-Type": "image/png"}  # without one, urllib says that it is a form
        urllib.request.urlopen(urllib.request.Request(f"{url}/own/a.png", data, kind, method="PUT"), timeout=30).close()
        for name, value in (variables | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():
            monkeypatch.setenv(name, value)
        where = {"storage_options": f"s3.endpoint_url={url}", "storage_timeout": 20.0}
        (record,), failures, _ = explain(["s3://own/a.png"], **options | where)
    assert (record.content_sha256, failures) == (hashlib.sha256(data).hexdigest(), [])


def test_workers_in_other_processes_explain_the_same(folder, options, tmp_path) -> None:
    options = options | {"batch_size": 1}  # who explains which images is left to Beam
    expected, _, _ = explain(uris_of(folder), **options)
    words = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    with beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(words)) as pipe:
        explained = pipe | beam.Create(uris_of(folder)) | beam.Reshuffle() | ExplainImages(**options)
        rows = explained.records | beam.Map(lambda record: parquet.encode_records([record], {}).hex())
        _ = rows | beam.io.WriteToText(str(tmp_path / "rows"))
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().split()]
    assert sorted(lines) == sorted(as_bytes([record]).hex() for record in expected)


def test_a_step_is_checked_where_it_is_built(options, tmp_path) -> None:
    wrong = {
        r"needs a model: say model='model\.keras'": {"model": None},
        "the step has an unknown option 'metods'; did you mean 'methods'": {"metods": "cam"},
        "since='/run' is for a whole job": {"since": "/run"},
        "max_failures=3 is for a whole job": {"max_failures": 3},
        "overlays='layer' needs a folder to write them to": {"overlays": "layer"},
        "--batch-size is at least 1, not 0": {"batch_size": 0},
    }
    for words, changes in wrong.items():
        with pytest.raises(ConfigError, match=words):
            ExplainImages(**options | changes)
    pipe = beam.Pipeline(runner=FnApiRunner())
    with pytest.raises(ConfigError, match=r"nothing\.keras"):
        _ = pipe | beam.Create(["a.jpg"]) | ExplainImages(**options | {"model": str(tmp_path / "nothing.keras")})


def test_options_are_taken_as_yaml_has_them_and_win_over_a_configuration(options) -> None:
    config = RunConfig(images=("-",), output="/run", **options)
    step = step_config(config, methods="gradcam, layercam", input_size="8x9", jit=True)
    assert (step.methods, step.input_size, step.jit) == (("gradcam", "layercam"), (8, 9), "on")
    assert step == dataclasses.replace(config, methods=("gradcam", "layercam"), input_size=(8, 9), jit="on")


def test_the_model_is_loaded_where_the_pipeline_is_built_unless_it_is_not_wanted(options) -> None:
    pipe, before = beam.Pipeline(runner=FnApiRunner()), loads.value
    images = pipe | beam.Create(["a.jpg"])
    _ = images | "Unchecked" >> ExplainImages(**options | {"layer": "no such"}, check_model=False)
    assert loads.value == before
    with pytest.raises(ConfigError, match="no such"):
        _ = images | "Checked" >> ExplainImages(**options | {"layer": "no such"})


def test_what_is_no_image_is_refused_where_the_pipeline_is_built_or_by_name(options) -> None:
    pipe = beam.Pipeline(runner=FnApiRunner())
    for image in (1, b"bytes", ("a.jpg", "b.jpg"), (1, b"bytes")):
        with pytest.raises(TypeCheckError):
            _ = pipe | f"Create{image}" >> beam.Create([image]) | f"Explain{image}" >> ExplainImages(**options)
        with pytest.raises(TypeError, match="an image is its uri, a pair of a name and its file's bytes"):
            as_entry(image)  # type: ignore[arg-type]


def test_an_entry_of_other_types_is_refused_by_name() -> None:
    wrong = {"uri": {"uri": 3}, "label": {"uri": "a.jpg", "label": 3}, "data": {"uri": "a.jpg", "data": bytearray(3)}}
    for name, values in wrong.items():
        with pytest.raises(TypeError, match=f"the {name} of an image is of type (str|bytes), and not (3|bytearray)"):
            as_entry(Entry(**values))


def test_a_runner_that_would_lose_images_is_refused(options) -> None:
    class DaskRunner(FnApiRunner):
        """What Beam's own is called."""

    images = beam.Pipeline(runner=DaskRunner()) | beam.Create(["a.jpg"])
    with pytest.raises(ConfigError, match="DaskRunner loses what comes out at the end of a bundle"):
        _ = images | ExplainImages(**options)


def test_outputs_have_their_types(options) -> None:
    explained = beam.Pipeline(runner=FnApiRunner()) | beam.Create(["a.jpg"]) | ExplainImages(**options)
    records, failures = explained
    assert (records.element_type, failures.element_type) == (Record, Failure)
    assert (records, failures) == (explained.records, explained.failures)


def test_models_that_are_in_use_stay_and_others_go(options) -> None:
    one, other = (step_config(**options | {"methods": name}) for name in ("cam", "gradcam"))
    first = shared_worker(one)
    second = shared_worker(other)
    assert shared_worker(one) is first
    assert shared_worker(other) is second
    assert shared_worker(second.config) is second
    gone = weakref.ref(first)
    del first
    shared_worker(step_config(**options | {"methods": "layercam"}))
    gc.collect()
    assert gone() is None
    assert shared_worker(other) is second


def inferred(
    examples: list[tuple[str, Any]], handler: ExplainModelHandler
) -> tuple[dict[str, PredictionResult], dict[str, int]]:
    """The results by key, and the counters."""
    found = Basket()
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        results = pipe | beam.Create(examples) | RunInference(KeyedModelHandler(handler))
        _ = results | "Keep" >> beam.Map(found.put)
    return dict(found.items), counters_of(pipe)


def test_run_inference_finds_the_same_in_bytes(folder, options, run) -> None:
    results, counters = inferred([INPUTS["bytes"](uri) for uri in uris_of(folder)], ExplainModelHandler(**options))
    outcomes = {uri: result.inference for uri, result in results.items()}
    expected = {record.uri: record for record in open_run(run)}
    assert {uri for uri, outcome in outcomes.items() if isinstance(outcome, Record)} == set(expected)
    for uri, record in expected.items():
        assert outcomes[uri].uri == f"sha256:{record.content_sha256}"
        assert as_bytes([outcomes[uri]], uri=uri, id=record.id) == as_bytes([record])
    told = {uri: (outcome.stage, outcome.error_type, outcome.message) for uri, outcome in outcomes.items()
            if isinstance(outcome, Failure)}  # fmt: skip
    assert told == {f.uri: (f.stage, f.error_type, f.message) for f in open_run(run).failures()}
    assert {result.model_id for result in results.values()} == {open_run(run).summary["model_digest"]}
    expected_counts = {"num_inferences": 15, "images_in": 15, "records": 13, "failures": 2, "batches": 4}
    assert {name: counters[name] for name in expected_counts} == expected_counts


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_run_inference_takes_pixels_for_the_file_that_holds_them(photographs, options, mode) -> None:
    path = sorted(photographs.glob("??.png"))[2]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert(mode))
    worker = load_worker(step_config(**options))
    (direct,) = explain_entries([Entry("name", data=_png(pixels))], worker)
    (record,) = explain_entries([as_unnamed(pixels)], worker)
    same = {"uri": "", "id": "", "content_sha256": ""}
    assert as_bytes([record], **same) == as_bytes([direct], **same)
    result = inferred([("key", pixels)], ExplainModelHandler(**options))[0]["key"]
    assert as_bytes([result.inference]) == as_bytes([record])


def _png(pixels: np.ndarray) -> bytes:
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4), np.uint8), "a.jpg"]
)
def test_run_inference_refuses_other_arrays(pixels) -> None:
    with pytest.raises(TypeError, match=r"\(H, W, 3\) or \(H, W\) uint8|its file's bytes or an array"):
        as_unnamed(pixels)


def test_run_inference_batches_as_the_program_was_compiled(options) -> None:
    sizes = ExplainModelHandler(**options).batch_elements_kwargs()
    assert (sizes["min_batch_size"], sizes["max_batch_size"]) == (4, 4)


def test_a_handler_tells_how_long_images_may_wait_and_how_large_they_are(options) -> None:
    handler = ExplainModelHandler(max_batch_duration_secs=7, **options)
    assert handler.batch_elements_kwargs()["max_batch_duration_secs"] == 7
    assert handler.get_num_bytes([b"abc", np.zeros((4, 5, 3), np.uint8), np.zeros((2, 2), np.uint8)]) == 3 + 60 + 4


def test_a_handler_takes_no_other_arguments_and_takes_another_model(options, tmp_path) -> None:
    handler = ExplainModelHandler(**options)
    with pytest.raises(ConfigError, match="give options to the handler"):
        handler.validate_inference_args({"targets": 3})
    handler.validate_inference_args(None)
    other = tmp_path / "other.keras"
    other.write_bytes(Path(options["model"]).read_bytes())
    handler.update_model_path(str(other))
    assert handler.load_model().config.model == str(other)
    handler.update_model_path("")
    assert handler.load_model().config.model == str(other)


@pytest.mark.parametrize("documented", [ExplainImages, ExplainModelHandler])
def test_the_examples_of_the_documentation_run(documented, folder, options, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.keras").write_bytes(Path(options["model"]).read_bytes())
    examples = doctest.DocTestParser().get_examples(str(documented.__doc__))
    assert examples
    uris = uris_of(folder)
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        names = {"pipe": pipe, "uris": uris, "pairs": [INPUTS["bytes"](uri) for uri in uris], "beam": beam,
                 "ExplainImages": ExplainImages, "ExplainModelHandler": ExplainModelHandler,
                 "KeyedModelHandler": KeyedModelHandler, "RunInference": RunInference}  # fmt: skip
        for example in examples:
            exec(compile(example.source, "<example>", "exec"), names)
        found = Basket()
        for name in ("records", "failures", "explained"):
            if name in names:
                _ = names[name] | f"Count {name}" >> beam.Map(lambda _, name=name: found.put(name))
    assert Counter(found.items) in ({"records": 13, "failures": 2}, {"explained": 15})
