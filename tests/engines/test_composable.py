"""`ExplainImages` in a pipeline of one's own, on an engine: an image is one record or one failure, as anywhere."""

import io
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import parquet
from pipeline.records import Entry, Failure, Record
from pipeline.steps import explain_entries, load_worker, step_config
from tests.engines import commands
from tests.faults.jobs import ROOT, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    """Thirty-nine photographs, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for path in photographs.glob("??.*"):
        for i in range(3):
            (folder / f"{i}-{path.name}").write_bytes(path.read_bytes())
    (folder / "no.png").write_bytes(b"no image")
    return folder


def test_on_flink_each_image_is_one_record_or_one_failure(folder, tiny_model_path, tmp_path, watched) -> None:
    if why := commands.missing_flink():
        pytest.skip(why)
    options = (
        *commands.documented("infra/flink/README.md", "[local]"),
        "--environment_type=LOOPBACK",
        "--parallelism=2",
        f"--job_server_jvm_properties=-Djava.io.tmpdir={tmp_path}",
    )
    words = [sys.executable, "-m", "tests.engines.own_pipeline", f"{folder}/*", tiny_model_path, str(tmp_path / "out")]
    ended = watched(start([*words, *options], tmp_path / "tmp", {"PYTHONPATH": str(ROOT)})).wait(250)
    assert ended.code == 0, ended.said[-3000:]

    worker = load_worker(step_config(model=tiny_model_path, preprocess="tf", jit="off", batch_size=1))
    direct = explain_entries([Entry(str(path)) for path in sorted(folder.iterdir())], worker)
    rows = [row for path in (tmp_path / "out").glob("records*") for row in pq.read_table(path).to_pylist()]
    stored = parquet.encode_records((item for item in direct if isinstance(item, Record)), {})
    expected = pq.read_table(io.BytesIO(stored)).to_pylist()
    assert sorted(rows, key=lambda row: row["uri"]) == expected
    told = "".join(path.read_text() for path in (tmp_path / "out").glob("failures*"))
    assert told.splitlines() == [repr(item) for item in direct if isinstance(item, Failure)]
