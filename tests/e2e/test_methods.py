"""Every method as a job: the records hold what the library gives, with options, seeds and metrics."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import explainers as ex
from explainers.compiled import FAITHFULNESS, PREPROCESSES
from explainers.methods.noise import image_seeds
from pipeline import RunConfig, open_run, run_job
from pipeline.decode import decode_image
from pipeline.geometry import Geometry, fit_view, make_input
from pipeline.records import METRICS
from pipeline.storage import read_bytes
from pipeline.verify import verify_run

CHEAP = {
    "rise": "rise(grid=3, masks=5)", "occlusion": "occlusion(size=16)", "smoothgrad": "smoothgrad(samples=3)",
    "integrated_gradients": "integrated_gradients(steps=3)", "scorecam": "scorecam(channels=4)",
}  # fmt: skip
SPECS = [
    *(CHEAP.get(name, name) for name in ex.METHODS),
    "meta.smooth(gradcam, repetitions=3)",
    "meta.tta(gradcam, scales=())",
]


def views_of(records) -> np.ndarray:
    """What the model saw of every image: (N, 32, 32, 3) uint8."""
    views = []
    for record in records:
        photograph = decode_image(read_bytes(record.uri))
        view = fit_view("stretch", photograph.size, (32, 32))
        views.append(make_input(photograph, Geometry(*photograph.size, view)))
    return np.stack(views)


@pytest.fixture(scope="module")
def run(photographs: Path, tiny_model_path: str, tmp_path_factory: pytest.TempPathFactory):
    """One job with every method and every metric, in shards and batches that do not come out even."""
    config = RunConfig(
        (str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path_factory.mktemp("methods") / "run"),
        methods=tuple(SPECS), metrics=METRICS, preprocess="tf", targets="top:2", batch_size=4, shard_size=6, jit="off",
    )  # fmt: skip
    run_job(config, [])
    return open_run(config.output)


@pytest.mark.parametrize("spec", SPECS)
def test_the_records_of_a_job_hold_the_maps_of_the_library(spec: str, run, tiny_model_path: str) -> None:
    records = list(run)
    pixels = views_of(records)
    x = np.asarray(PREPROCESSES["tf"](pixels.astype(np.float32)))
    method = ex.methods.get_method(spec)
    stored = [[m for m in record.maps if m.method == method.name] for record in records]
    y = np.array([[m.target for m in maps] for maps in stored])
    seeds = {"seeds": image_seeds(pixels)} if method.seeded else {}
    _, maps = method.function(ex.expose(keras.saving.load_model(tiny_model_path)), x, y, **seeds)
    assert y.shape == (13, 2)
    for i, found in enumerate(stored):
        for k, values in enumerate(found):
            want = np.asarray(maps)[i, ..., k]
            np.testing.assert_allclose(values.array(), want, rtol=0, atol=5e-4 * np.abs(want).max() + 1e-12)


def test_every_map_has_every_metric_and_run_json_their_means(run) -> None:
    maps = [values for record in run for values in record.maps]
    assert len(maps) == 13 * len(SPECS) * 2
    for record in run:
        for values in record.maps:
            of_the_label = str(values.target) == record.label  # whose boxes the manifest holds
            assert set(values.metrics) == set(METRICS if of_the_label else FAITHFULNESS)
            assert all(0 <= value <= 1 for value in values.metrics.values())
    summary = json.loads((Path(run.path) / "run.json").read_text())
    for spec in SPECS:
        name = ex.methods.get_method(spec).name
        for metric in METRICS:
            found = [m.metrics[metric] for m in maps if m.method == name and metric in m.metrics]
            assert len(found) >= 3
            mean = np.mean(found)
            assert summary["metrics"][name][metric] == pytest.approx(mean, rel=1e-5)


def test_metrics_are_those_of_the_library(run, tiny_model_path: str) -> None:
    records = list(run)
    x = np.asarray(PREPROCESSES["tf"](views_of(records).astype(np.float32)))
    stored = [[m for m in record.maps if m.method == "gradcam"] for record in records]
    y = np.array([[m.target for m in maps] for maps in stored])
    exposed = ex.expose(keras.saving.load_model(tiny_model_path))
    _, maps = ex.methods.cams.gradcam(exposed, x, y)
    want = {
        "deletion": ex.metrics.deletion(exposed, x, y, maps), "insertion": ex.metrics.insertion(exposed, x, y, maps),
        **ex.metrics.confidence_change(exposed, x, y, maps)._asdict(),
    }  # fmt: skip
    for i, found in enumerate(stored):
        for k, values in enumerate(found):
            for name, expected in want.items():
                assert values.metrics[name] == pytest.approx(float(expected[i, k]), abs=1e-5)
            if str(values.target) == records[i].label:
                resized = np.maximum(values.resized(), 0)
                boxes = np.array([[1, 2, min(10, resized.shape[1] - 1), min(12, resized.shape[0] - 2)]])
                assert values.metrics["energy"] == pytest.approx(ex.metrics.energy_in_box(resized, boxes), abs=1e-3)
                assert values.metrics["pointing"] == ex.metrics.pointing_game(resized, boxes)


def test_overlays_have_file_names_without_brackets_and_the_run_verifies(run) -> None:
    names = [path.name for path in Path(run.path).rglob("*.png")]
    assert len(names) == 13 * len(SPECS) * 2
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in names)
    assert list(verify_run(str(run.path))) == []
