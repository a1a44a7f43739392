"""The names and values of metrics, which dashboards rely on, are the same on every engine."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.counting import COUNTERS, DISTRIBUTIONS
from tests.engines import commands
from tests.faults.jobs import ROOT, Running, start

pytestmark = pytest.mark.slow

ENGINES = {
    "flink": (commands.missing_flink, ("infra/flink/README.md", "[local]")),
    "prism": (commands.missing_prism, ("infra/prism/README.md", "PrismRunner")),
}


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory) -> Path:
    """Thirteen photographs, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for path in photographs.glob("??.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "99.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_told_what_was_done(
    engine: str, folder: Path, tiny_model_path: str, tmp_path: Path, watched: Callable[[Running], Running]
) -> None:
    missing, place = ENGINES[engine]
    if why := missing():
        pytest.skip(why)
    words = [sys.executable, "-m", "tests.engines.own_metrics", str(folder), tiny_model_path, str(tmp_path / "run")]
    options = [*commands.documented(*place)]
    if engine == "flink":
        options.append(f"--job_server_jvm_properties=-Djava.io.tmpdir={tmp_path}")
    ended = watched(start([*words, *options], tmp_path / "tmp", {"PYTHONPATH": str(ROOT)})).wait(250)
    assert ended.code == 0, ended.said[-3000:]
    metrics: dict[str, Any] = json.loads(next(line for line in ended.said.splitlines() if line.startswith("{")))

    sizes = [path.stat().st_size for path in folder.iterdir()]
    written = [
        *tmp_path.glob("run/[rf]*/part-*"),
        *tmp_path.glob("run/sums/part-*"),
        *tmp_path.glob("run/overlays/*/*"),
    ]
    counts = {name: value for name, value in metrics.items() if isinstance(value, int)}
    assert counts == {
        "images_in": 14, "records": 13, "failures": 1, "failures/decode:NotAnImage": 1, "overlays": 13, "batches": 5,
        "model_loads": 1, "bytes_read": sum(sizes), "bytes_written": sum(path.stat().st_size for path in written),
        "shards_committed": 3,
    }  # fmt: skip
    assert set(counts) - {"failures/decode:NotAnImage"} <= set(COUNTERS)
    assert metrics["image_bytes"] == [sum(sizes), 14, min(sizes), max(sizes)]
    assert metrics["batch_size"] == [13, 5, 1, 4]  # 4 + 1, 4 + 1, and 3 beside the one that is no image
    assert set(metrics) - set(counts) <= set(DISTRIBUTIONS)
    assert all(metrics[name][1] == 3 for name in ("shard_ms", "stage_ms/read", "stage_ms/model", "model_wait_ms/room"))
