"""Real pretrained models over real photographs; skipped where these do not lie beside the checkout."""

from pathlib import Path

import keras
import numpy as np
import pytest

from pipeline import RunConfig, open_run, run_job
from pipeline.verify import verify_run

pytestmark = [pytest.mark.shared, pytest.mark.slow]

# preprocessing, signal, positions, least top-1 accuracy with the largest centred crop
MODELS = {
    "mobilenetv2_1.00_224": ("tf", "out_relu", 49, 0.88),
    "squeezenet_1_1": ("torch", "fire9_concat", 169, 0.55),
    "mobilenet_0.25_224": ("tf", "conv_pw_13_relu", 49, 0.55),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_pretrained_model_explains_two_hundred_photographs(name: str, shared_data: Path, tmp_path: Path) -> None:
    if keras.__version__ < "3.13":
        pytest.skip("these models were saved by a newer Keras than the last one for Python 3.10")
    preprocess, layer, positions, accuracy = MODELS[name]
    config = RunConfig(
        (str(shared_data / "manifest.csv"),), str(shared_data / "models" / f"{name}.keras"), str(tmp_path / "run"),
        class_names=str(shared_data / "labels.txt"), methods=("cam", "gradcam"), preprocess=preprocess, resize="crop",
        overlays="none", jit="off",
    )  # fmt: skip
    summary = run_job(config, [])
    assert (summary["records"], summary["failures"], summary["activation_layer"]) == (200, 0, layer)
    records = list(open_run(tmp_path / "run"))
    assert np.mean([record.predicted == int(record.label) for record in records]) >= accuracy
    if name != "squeezenet_1_1":  # whose ReLU between the classifier and the average closes some gradients
        for record in records:
            cam, gradcam = (values.array() for values in record.maps)
            # Each of the two maps was rounded to float16 against its own maximum.
            np.testing.assert_allclose(cam / positions, gradcam, atol=5e-4 * np.abs(gradcam).max(), rtol=0)
    assert list(verify_run(str(tmp_path / "run"))) == []
