"""The step in Beam YAML: the example as it is documented, and what becomes of rows."""

import dataclasses
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.typehints.row_type import RowTypeConstraint

from pipeline import ConfigError, RunConfig, open_run, parquet, run_job
from pipeline.beam_yaml import ExplainRows, record_to_row, to_image
from pipeline.records import METRICS, Entry
from tests.collecting import Basket

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "infra/yaml/example.yaml"


def documented_command(**variables: str) -> list[str]:
    """The words of the example's own comment, with these variables."""
    lines = [line[4:].rstrip("\\\n ") for line in EXAMPLE.read_text().splitlines() if line.startswith("#   ")]
    words = [sys.executable if word == "python" else word for word in shlex.split(" ".join(lines))]
    ((place, word),) = [(i, word) for i, word in enumerate(words) if word.startswith("--jinja_variables=")]
    name, _, given = word.partition("=")
    assert set(json.loads(given)) == set(variables)
    words[place] = f"{name}={json.dumps(variables)}"
    return words


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for path in photographs.glob("??.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "07b.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(folder, tiny_model_path, tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("run") / "run")
    run_job(RunConfig((str(folder),), tiny_model_path, output, preprocess="tf", jit="off", overlays="none"), [])
    return output


def assert_alike(ours: Any, theirs: Any) -> None:
    """The same but for rounding: whether XLA compiles the program is measured anew by each."""
    if isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    elif isinstance(theirs, bytes):
        values, expected = (np.frombuffer(data, "<f2") for data in (ours, theirs))
        np.testing.assert_allclose(values, expected, atol=2e-3)
    elif isinstance(theirs, dict | list):
        assert type(ours) is type(theirs)
        assert len(ours) == len(theirs)
        for key, value in theirs.items() if isinstance(theirs, dict) else enumerate(theirs):
            assert_alike(ours[key], value)
    else:
        assert ours == theirs


def test_the_documented_pipeline_writes_what_a_run_writes(folder, run, tiny_model_path, tmp_path) -> None:
    pytest.importorskip("docstring_parser", reason="Beam YAML asks for docstring-parser")
    (tmp_path / "uris.txt").write_text("".join(f"{path}\n" for path in sorted(folder.iterdir())))
    output = tmp_path / "explained"
    words = documented_command(
        uris=str(tmp_path / "uris.txt"), model=tiny_model_path, preprocess="tf", output=str(output)
    )
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    records = pq.read_table(output / "records")
    assert records.schema.equals(parquet.RECORDS)
    assert_alike(records.to_pylist(), open_run(run).to_arrow().to_pylist())
    assert pq.read_table(output / "failures").to_pylist() == [failure.to_row() for failure in open_run(run).failures()]


def test_rows_pass_from_one_worker_to_another_unchanged(folder, run, tiny_model_path) -> None:
    found = Basket()
    rows = [beam.Row(name=str(path), content=path.read_bytes(), label=3) for path in sorted(folder.iterdir())]
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        explained = pipe | beam.Create(rows) | ExplainRows(
            uri_column="name", data_column="content", model=tiny_model_path, preprocess="tf", jit="off"
        )  # fmt: skip
        assert set(explained) == {"records", "failures"}
        _ = explained["records"] | beam.Reshuffle() | "Keep" >> beam.Map(found.put)
    columns = [{name: getattr(row, name) for name in parquet.RECORDS.names} for row in found.items]
    stored = [row | {"label": "3"} for row in open_run(run).to_arrow().to_pylist()]
    table = pa.Table.from_pylist(sorted(columns, key=lambda row: row["uri"]), parquet.RECORDS)
    assert table.to_pylist() == stored


def test_a_row_has_the_columns_that_are_stored(run) -> None:
    record = next(iter(open_run(run)))
    assert list(record_to_row(record).as_dict()) == parquet.RECORDS.names


def test_a_row_has_the_metrics_that_were_asked_for_and_none_for_others(run) -> None:
    record = next(iter(open_run(run)))
    measured = dataclasses.replace(record.maps[0], metrics={"drop": 0.25})
    (row,) = record_to_row(dataclasses.replace(record, maps=(measured,))).maps
    assert row.metrics._asdict() == dict.fromkeys(METRICS) | {"drop": 0.25}


def test_a_row_without_a_label_is_an_image_without_one() -> None:
    assert to_image(beam.Row(uri="a.jpg", label=None), "label", "uri") == Entry("a.jpg")
    assert to_image(beam.Row(uri="a.jpg"), None, "uri") == Entry("a.jpg")
    assert to_image(beam.Row(n="a", b=b"x", label="cat"), "label", "n", "b") == Entry("a", "cat", data=b"x")


def test_rows_without_the_column_are_refused_with_those_they_have(tiny_model_path) -> None:
    rows = beam.Pipeline(runner=FnApiRunner()) | beam.Create([beam.Row(line="a.jpg", number=1)])
    with pytest.raises(ConfigError, match="the rows have no column 'uri', and line, number: name yours"):
        _ = rows | ExplainRows(model=tiny_model_path, preprocess="tf")


def test_failures_have_the_output_that_was_named(folder, tiny_model_path) -> None:
    found = Basket()
    rows = [beam.Row(uri=str(folder / name)) for name in ("07.png", "07b.png")]
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        explained = pipe | beam.Create(rows) | ExplainRows(
            error_handling={"output": "bad"}, model=tiny_model_path, preprocess="tf", jit="off"
        )  # fmt: skip
        assert set(explained) == {"records", "bad"}
        _ = explained["bad"] | beam.Map(found.put)
    assert [row.uri for row in found.items] == [str(folder / "07b.png")]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"output": "records"}, "a name other than 'records', the records' own, not 'records'"),
        ({"output": ""}, "a name other than 'records', the records' own, not ''"),
        ({"output": None}, "not None"),
        ({"output": "bad", "threshold": 0.1}, "has no option 'threshold': leave it out"),
        ({"dead_letter": "bad"}, "has no option 'dead_letter'"),
    ],
)
def test_other_ways_to_handle_errors_are_refused(spec, words, tiny_model_path) -> None:
    with pytest.raises(ConfigError, match=words):
        ExplainRows(error_handling=spec, model=tiny_model_path, preprocess="tf")


def test_a_row_with_a_null_is_a_failure_of_its_own(folder, tiny_model_path) -> None:
    found = Basket()
    path = str(folder / "07.png")  # a path that can be read, and must not be: its bytes are to be in the row
    content = Path(path).read_bytes()
    cells = {"whole": content, path: None, None: content}
    rows = [beam.Row(uri=uri, content=data) for uri, data in cells.items()]
    types = RowTypeConstraint.from_fields([("uri", Optional[str]), ("content", Optional[bytes])])  # noqa: UP045
    with beam.Pipeline(runner=FnApiRunner()) as pipe:
        explained = pipe | beam.Create(rows).with_output_types(types) | ExplainRows(
            data_column="content", model=tiny_model_path, preprocess="tf", jit="off"
        )  # fmt: skip
        _ = explained["records"] | "Keep" >> beam.Map(lambda row: found.put((row.uri, "record")))
        _ = explained["failures"] | "KeepFailures" >> beam.Map(
            lambda row: found.put((row.uri, f"{row.stage}:{row.error_type}: {row.message}"))
        )
    assert dict(found.items) == {
        "whole": "record",
        path: "decode:EmptyFile: the file has no bytes",
        "": "read:RefusedName: the image has no name: give its uri, or a name beside its bytes",
    }
