"""Every method on fixed images, as pictures to be looked at: `artifacts/montage-*.png`."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import explainers as ex
from explainers.compiled import PREPROCESSES
from pipeline import demo_data, demo_model
from pipeline.sheet import make_sheet

ARTIFACTS = Path(__file__).parent.parent.parent / "artifacts"
DEMO = {"rise": "rise(masks=300)", "occlusion": "occlusion(size=20, stride=8)"}
PHOTOGRAPHS = {
    "rise": "rise(masks=200)", "scorecam": "scorecam(channels=64)", "scorecam_official":
    "scorecam_official(channels=64)", "occlusion": "occlusion(size=48, stride=24)",
}  # fmt: skip
META = ["meta.smooth(gradcam)", "meta.tta(gradcam)", "meta.tta(layercam, scales=(2.0,))"]

pytestmark = pytest.mark.slow


def draw(
    name: str, model: keras.Model, pixels: np.ndarray, y: np.ndarray, specs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Writes a sheet, a row a method and a column an image, and returns the maps as they are shown."""
    exposed, x = ex.expose(model), np.asarray(PREPROCESSES["tf"](pixels.astype(np.float32)))
    tiles = [(Image.fromarray(image), "image") for image in pixels]
    shown = {}
    for spec in specs:
        _, maps = ex.explain(spec, exposed, x, y[:, np.newaxis], batch_size=len(x), verbose=0)
        shown[spec] = maps[..., 0]
        for image, values in zip(pixels, shown[spec], strict=True):
            picture = ex.visualize([image], [values], alpha=0.85)
            tiles.append((Image.fromarray(picture.pixels), spec))
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / f"montage-{name}.png").write_bytes(make_sheet(tiles, columns=len(pixels), tile_size=128))
    return shown


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> demo_data.DemoData:
    return demo_data.make_dataset(tmp_path_factory.mktemp("montage"), 240, seed=0, broken=0)


def test_every_method_on_the_demo(data: demo_data.DemoData) -> None:
    model = demo_model.train_model(data, seed=0)
    pixels, labels = demo_model.load_images(data)
    chosen = np.array([np.flatnonzero(labels == label)[1] for label in range(6)])
    specs = [*(DEMO.get(name, name) for name in ex.METHODS), *META]
    shown = draw("demo", model, pixels[chosen], labels[chosen], specs)
    for spec, maps in shown.items():
        assert np.isfinite(maps).all(), spec
        assert (maps.min(), maps.max()) >= (0, 0.5), spec
        assert maps.max() <= 1 + 1e-6, spec
    # Maps of different methods are different maps: the registry has not tied two names to one function.
    names = [spec for spec in specs if spec not in ("cam", "hirescam", "xgradcam", "layercam", "gradcampp_official")]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(shown[first] - shown[second]).max() > 0.01, (first, second)


@pytest.mark.shared
def test_every_method_on_photographs(shared_data: Path) -> None:
    if keras.__version__ < "3.13":
        pytest.skip("these models were saved by a newer Keras than the last one for Python 3.10")
    model = keras.saving.load_model(shared_data / "models" / "mobilenet_0.25_224.keras", compile=False)
    names = ["beagle", "lesser_panda", "sports_car", "church"]
    found = [next(shared_data.glob(f"images/*_{name}.JPEG")) for name in names]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in found])
    logits = np.asarray(ex.expose(model)(np.asarray(PREPROCESSES["tf"](pixels.astype(np.float32))))[0])
    specs = [*(PHOTOGRAPHS.get(name, name) for name in ex.METHODS), *META]
    shown = draw("photographs", model, pixels, logits.argmax(axis=1), specs)
    for spec, maps in shown.items():
        assert np.isfinite(maps).all(), spec
        assert (maps.min(), maps.max()) >= (0, 0.5), spec
