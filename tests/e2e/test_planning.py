"""What a dry run says of a job, against the job itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import RunConfig, open_run, planning, run_job, storage
from pipeline.demo_data import make_dataset
from pipeline.run import list_input, new_plan
from pipeline.worker import shared_worker


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Iterator[str]:
    """Two hundred pictures, and thirty files that are none, under the same uris in each run: ids decide on samples."""
    folder, store = tmp_path_factory.mktemp("demo"), "memory:///planning"
    data = make_dataset(folder, 200, 0, broken=30)
    for path in (path for path in folder.rglob("*") if path.is_file()):
        storage.write_bytes(f"{store}/{path.relative_to(folder)}", path.read_bytes())
    yield f"{store}/{data.manifest.relative_to(folder)}"
    storage.remove_folder(store)


def estimate(config: RunConfig) -> planning.Estimate:
    with list_input(config) as listing:
        worker = shared_worker(config)
        return planning.measure(new_plan(worker.config, listing, worker.metadata), listing, worker, 0.0)


def written(folder: Path, *names: str) -> int:
    """The bytes of all files in some folders of a run."""
    files = (file for name in names for file in (folder / name).rglob("*"))
    return sum(file.stat().st_size for file in files if file.is_file())


@pytest.mark.parametrize(
    "options",
    [
        {"shard_size": 100, "methods": ("gradcam", "cam"), "targets": "top:2"},
        {"shard_size": 23, "overlays": "layer", "overlay_sample": 0.4, "logits": "top:2", "map_dtype": "uint8"},
        {"shard_size": 23, "overlays": "none", "methods": ("gradients",)},
    ],
)
def test_a_plan_tells_what_the_job_then_writes(tmp_path, manifest, tiny_model_path, monkeypatch, options) -> None:
    """From half of the images: 20, 20 and 100, the first of which come again in the end."""
    monkeypatch.setattr(planning, "TRIALS", 3)
    monkeypatch.setattr(planning, "SAMPLE", 100)
    monkeypatch.setattr(planning, "SECONDS", 1e6)
    config = RunConfig((manifest,), tiny_model_path, str(tmp_path / "run"), preprocess="tf", jit="off",
                       labels_from="none", batch_size=20, **options)  # fmt: skip
    found = estimate(config)
    assert found.cost.tried in (115, 116)  # every second, of those with overlays and of those without
    run_job(config, [])
    summary = open_run(tmp_path / "run").summary
    assert (found.plan.n_images, found.plan.n_shards) == (summary["inputs"], summary["shards"])
    assert summary["inputs"] == 230
    assert found.cost.failing == pytest.approx(summary["failures"] / summary["inputs"], abs=0.05)
    sizes, maps = found.storage(), len(config.methods) * (2 if config.targets == "top:2" else 1)
    assert sizes["records"] == pytest.approx(written(tmp_path / "run", "records"), rel=0.1)
    assert sizes["overlays"] == pytest.approx(written(tmp_path / "run", "overlays"), rel=0.1)
    others = written(tmp_path / "run", "failures", "shards") + (tmp_path / "run/manifest.parquet").stat().st_size
    assert sizes["others"] == pytest.approx(others, rel=0.25)  # failures stand together here
    assert sum(sizes.values()) == pytest.approx(written(tmp_path, "run"), rel=0.1)
    assert found.overlaid * (1 - found.cost.failing) * maps == pytest.approx(summary["overlays"], rel=0.1)
