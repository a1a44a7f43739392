"""Data and models that several tests share, made on the spot; and where the real ones lie, if they are there."""

import json
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
from PIL import Image

import explainers as ex
from tests.comparing import ERRORS
from tests.emulators import gcs, gcs_environment, s3, s3_environment  # noqa: F401 - fixtures

ARTIFACTS = Path(__file__).parent.parent / "artifacts"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Pretrained models and photographs beside the checkout."""
    if not (SHARED / "models").is_dir():
        pytest.skip("the pretrained models and photographs are not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random classifier of 5 classes for 32x32 images, GAP and Dense with a fused softmax, saved."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="last")(x)
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    outputs = keras.layers.Dense(
        5, activation="softmax", name="predictions", bias_initializer="normal", kernel_initializer="he_normal"
    )(x)
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    keras.Model(inputs, outputs).save(path)
    return str(path)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirteen images of different sizes and formats, with a manifest that labels them."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(7)
    lines = []
    for i in range(13):
        height, width = int(rng.integers(20, 90)), int(rng.integers(20, 90))
        coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        name = f"{i:02d}.{'png' if i % 3 else 'jpg'}"
        picture.save(folder / name)
        lines.append({"uri": name, "label": str(i % 5), "boxes": [[1, 2, 10, 12]]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collects what a worker process has measured (pytest-xdist)."""
    ERRORS.update(getattr(node, "workeroutput", {}).get("errors", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes how far the methods were from the oracles that were written from their papers."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["errors"] = ERRORS
        return
    largest: dict[str, tuple[float, int]] = {}
    for test, error in ERRORS.items():
        if re.search("of_(its|the)_paper", test):
            name = method_of_test(test)
            worst, count = largest.get(name, (0.0, 0))
            largest[name] = (max(worst, error), count + 1)
    if largest:
        rows = [f"| {name} | {worst:.1e} | {count} |" for name, (worst, count) in sorted(largest.items())]
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / "oracle-errors.md").write_text(
            "Largest error over the largest value of a map (or logit), float32 against the float64 oracle, over all "
            "networks and seeds.\n\n| method | largest error | cases |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )


def method_of_test(test: str) -> str:
    """The method in a test's name or parameters: `..._that_of_its_paper[gradcam-valid-0]` or `test_rise_is_...`."""
    claim, _, parameters = test.rsplit("::", 1)[-1].partition("[")
    known = [name for name in sorted(ex.METHODS, key=len, reverse=True) if parameters.startswith(name)]
    return known[0] if known else re.sub(r"^test_|_(is|are)_that.*|_(is|are)_those.*", "", claim)
