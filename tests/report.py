"""`python -m tests.report WHAT`: tables of what the tests prove, in figures.

    shapes   every method on every shape of model: it fits, or is refused with which sentence
    batches  how far the map of an image in a batch is from its map alone
    memory   peak memory of a process that makes many passes, against one that makes few
    sanity   rank correlation of every method's maps before and after parts of the demo's model are made anew
    forgetting  the same for all layers of a pretrained model, where one lies beside the checkout

The errors against the oracles are written by the tests themselves, to `artifacts/oracle-errors.md`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import explainers as ex
from explainers.compiled import PREPROCESSES
from explainers.errors import ExplainerError
from pipeline import demo_data, demo_model
from tests import models

SMALL = {
    "rise": "rise(grid=3, masks=4)", "occlusion": "occlusion(size=4)", "smoothgrad": "smoothgrad(samples=2)",
    "integrated_gradients": "integrated_gradients(steps=2)", "scorecam": "scorecam(channels=4)",
    "scorecam_official": "scorecam_official(channels=4)",
}  # fmt: skip
"""Methods with so few passes that a table is done in minutes; none of them fits more or fewer models for it."""

APPLICATIONS = {
    "MobileNetV2": 64, "ResNet50V2": 64, "VGG16": 32, "DenseNet121": 64, "EfficientNetB0": 64, "ConvNeXtTiny": 64,
    "InceptionV3": 75, "MobileNetV3Small": 64, "Xception": 71,
}  # fmt: skip


def shapes() -> Iterator[str]:
    """A row a model, a column a method; refusals are numbered, and their sentences listed below."""
    columns = list(ex.METHODS)
    yield "| model | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    sentences: dict[str, int] = {}
    for name, exposed, x in _exposed_models():
        cells = []
        for method in columns:
            refusal = _try(method, exposed, x)
            cells.append("yes" if refusal is None else str(sentences.setdefault(refusal, len(sentences) + 1)))
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield from (f"{number}. {sentence}" for sentence, number in sentences.items())


def _exposed_models() -> Iterator[tuple[str, ex.Exposed, np.ndarray]]:
    for name, case in models.CASES.items():
        model = case.model(1)
        yield name, ex.expose(model), models.inputs_of(model, 2)
    for name, size in APPLICATIONS.items():
        keras.utils.set_random_seed(0)
        model = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
        yield name, ex.expose(model), models.images(2, shape=(size, size, 3))
        keras.backend.clear_session()


def _try(method: str, exposed: ex.Exposed, x: np.ndarray) -> str | None:
    """The sentence with which a method is refused; None if it explains the images."""
    units = tf.zeros((len(x), 1), tf.int32)
    small = {**SMALL, "occlusion": f"occlusion(size={x.shape[1] // 2})"}
    try:
        _, maps = ex.methods.get_method(small.get(method, method)).function(exposed, tf.constant(x), units)
    except ExplainerError as error:
        return str(error)
    if not np.isfinite(maps).all():
        raise AssertionError(f"{method} gave a map that is not finite")
    return None


def batches() -> Iterator[str]:
    """The largest difference over the map's maximum: each of eight images alone, and in the batch."""
    yield "| method | " + " | ".join(BATCHED) + " |"
    yield "|---" * (len(BATCHED) + 1) + "|"
    exposed = {name: (ex.expose(build()), models.images(8, shape=shape)) for name, (build, shape) in BATCHED.items()}
    for method in ex.METHODS:
        cells = [_difference(ex.methods.get_method(SMALL.get(method, method)), *pair) for pair in exposed.values()]
        yield f"| {method} | " + " | ".join(cells) + " |"


BATCHED = {
    "residual": (models.residual, (8, 8, 3)),
    "vgg": (models.vgg, (8, 8, 3)),
    "MobileNetV2": (lambda: keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3)), (64, 64, 3)),
}


def _difference(method: ex.methods.Method, exposed: ex.Exposed, x: np.ndarray) -> str:
    units = tf.constant([[i % 5] for i in range(len(x))])
    try:
        together = method.function(exposed, tf.constant(x), units)[1].numpy()
    except ExplainerError:
        return "does not fit"
    alone = np.concatenate([method.function(exposed, x[i : i + 1], units[i : i + 1])[1] for i in range(len(x))])
    difference = np.abs(together - alone).max() / np.abs(alone).max()
    return "0" if difference == 0 else f"{difference:.0e}"


FEW_AND_MANY = {
    "scorecam": ("channels", 8, 128), "occlusion": ("stride", 6, 2), "rise": ("masks", 16, 128),
    "integrated_gradients": ("steps", 8, 64), "smoothgrad": ("samples", 8, 64),
}  # fmt: skip


def memory() -> Iterator[str]:
    """MobileNetV2 on eight images of 96 pixels, max_rows 32; each figure is that of a process of its own."""
    yield "| method | few | MB | many | MB | ratio |"
    yield "|---|---|---|---|---|---|"
    for method, (option, *values) in FEW_AND_MANY.items():
        size = ", size=12" if method == "occlusion" else ""
        few, many = (f"{method}({option}={value}{size})" for value in values)
        low, high = (_peak_memory(spec) for spec in (few, many))
        yield f"| {method} | {few} | {low:.0f} | {many} | {high:.0f} | {high / low:.3f} |"


def _peak_memory(spec: str) -> float:
    code = (
        "import resource, keras, tensorflow as tf, explainers as ex; "
        "exposed = ex.expose(keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))); "
        f"ex.explain({spec!r}, exposed, tf.zeros((8, 96, 96, 3)), tf.zeros((8, 1), tf.int32), resizing=None); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def sanity() -> Iterator[str]:
    """Correlation of signed maps, mean over images: the classifier made anew, then the upper half of all layers."""
    with tempfile.TemporaryDirectory() as folder:
        data = demo_data.make_dataset(Path(folder), 240, seed=0, broken=0)
        model = demo_model.train_model(data, seed=0)
        pixels, labels = demo_model.load_images(data)
    x, y = np.asarray(PREPROCESSES["tf"](pixels[:12].astype(np.float32))), labels[:12, np.newaxis]
    yield "| method | classifier | upper half of the layers |"
    yield "|---|---|---|"
    exposed = ex.expose(model)
    for method in ex.METHODS:
        spec = {**SMALL, "rise": "rise(masks=200)", "occlusion": "occlusion"}.get(method, method)
        steps = ex.metrics.randomization_check(ex.methods.get_method(spec).function, exposed, x, y)
        yield f"| {method} | {steps[0].spearman:.2f} | {steps[len(steps) // 2].spearman:.2f} |"


def forgetting() -> Iterator[str]:
    """A pretrained model on photographs, all layers made anew: correlation of signed maps, of magnitudes, and SSIM."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        yield "there is no pretrained model beside this checkout"
        return
    model = keras.saving.load_model(folder / "models" / "mobilenet_0.25_224.keras", compile=False)
    files = sorted(folder.glob("images/*.JPEG"))[::25]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files])
    exposed, x = ex.expose(model), np.asarray(PREPROCESSES["tf"](pixels.astype(np.float32)))
    few = {"rise": "rise(masks=64)", "occlusion": "occlusion(size=56)", "scorecam": "scorecam(channels=32)",
           "scorecam_official": "scorecam_official(channels=32)"}  # fmt: skip
    yield "| method | signed | magnitudes | SSIM |"
    yield "|---|---|---|---|"
    for method in ex.METHODS:
        function = ex.methods.get_method(few.get(method, method)).function
        (record,) = ex.metrics.randomization_check(function, exposed, x, layers="all")
        yield f"| {method} | {record.spearman:.2f} | {record.spearman_absolute:.2f} | {record.ssim:.2f} |"


def main() -> None:
    """Prints the tables that were asked for."""
    tables = {"shapes": shapes, "batches": batches, "memory": memory, "sanity": sanity, "forgetting": forgetting}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=tables, metavar="WHAT", help=", ".join(tables))
    for what in parser.parse_args().what:
        print(f"\n## {what}\n")
        for line in tables[what]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
