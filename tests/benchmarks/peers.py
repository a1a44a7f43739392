"""The same job in straightforward scripts around other tools, as their documentation and Keras's examples have it.

Both scripts read the photographs, predict, explain the predicted class in batches of 32, save the maps, and lay each
map over its photograph in full size: matplotlib's colours, Pillow's PNG. Like our job, they find the model loaded.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import explainers as ex
from explainers.compiled import PREPROCESSES
from pipeline import open_run, run_job
from tests.benchmarks.jobs import clear, configure
from tests.benchmarks.measuring import Figure, LeftOut, Result, Samples, interleave
from tests.benchmarks.workloads import PREPROCESS, Settings, build_model, input_size, link_photographs

Explain = Callable[[np.ndarray, np.ndarray], np.ndarray]  # inputs (n, H, W, 3), classes (n,) -> maps (n, H, W)

NEEDED = ("tf_keras_vis", "xplique", "matplotlib")

TARGET = 8.0
BATCH = 32


def bench_peers(settings: Settings) -> Iterator[Result]:
    """Our job with full-size blended overlays against each script, on the same photographs."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield LeftOut("peers", f"{', '.join(missing)} not installed: pip install 'beamcam[bench]', or make bench")
        return
    images = link_photographs(settings, settings.peer_photographs)
    for name in settings.models:
        config = configure(settings, name, images, "blend")
        job = partial(run_job, config, [])
        scripts = make_scripts(build_model(name, settings.seed), images, settings.folder)
        took = interleave(settings.long_rounds, {"beamcam": job, **scripts}, before=partial(clear, config))
        job()  # once more, to be read: the others were cleared away
        for tool in scripts:
            notes = {"median_correlation_of_maps": correlate(config.output, settings.folder / tool / "maps.npz")}
            ours, base = (
                Samples(what, took[key], settings.peer_photographs)
                for key, what in (("beamcam", "job"), (tool, f"a script around {tool}"))
            )
            yield Figure("peers", "the job, overlays blend", "rate", ours, base, name, TARGET, notes=notes)


def make_scripts(model: keras.Model, images: Path, folder: Path) -> dict[str, Callable[[], None]]:
    """Each tool's script, ready to run."""
    scripts: dict[str, Callable[[], None]] = {}
    for tool, prepare in TOOLS.items():
        (folder / tool).mkdir(exist_ok=True)
        scripts[tool] = partial(run_script, model, prepare(model), images, folder / tool)
    return scripts


def with_tf_keras_vis(model: keras.Model) -> Explain:
    """`Gradcam` on logits, as its documentation recommends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports from a namespace that SciPy 2 will not have
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
        from tf_keras_vis.utils.scores import CategoricalScore

    gradcam = Gradcam(model, model_modifier=ReplaceToLinear(), clone=True)
    layer = last_signal(model)

    def explain(inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        score = CategoricalScore(classes.tolist())
        return gradcam(score, inputs, penultimate_layer=layer, seek_penultimate_conv_layer=False)

    return explain


def with_xplique(model: keras.Model) -> Explain:
    """`GradCAM` on logits, as its documentation recommends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # distutils, below TensorFlow Probability
        from xplique.attributions import GradCAM

    logits = keras.models.clone_model(model)
    logits.set_weights(model.get_weights())
    logits.layers[-1].activation = keras.activations.linear
    gradcam = GradCAM(logits, batch_size=BATCH, conv_layer=last_signal(model))

    def explain(inputs: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return gradcam(inputs, tf.one_hot(classes, model.output_shape[-1]))[..., 0].numpy()

    return explain


TOOLS = {"tf-keras-vis": with_tf_keras_vis, "xplique": with_xplique}


def last_signal(model: keras.Model) -> str:
    """The layer that beamcam explains, so that all explain the same."""
    return ex.expose(model).activation_layer


def run_script(model: keras.Model, explain: Explain, images: Path, output: Path) -> None:
    """The script, from the folder of photographs to a folder of overlays and one file of maps."""
    paths = sorted(images.iterdir())
    classes, all_maps = [], []
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        photographs = [Image.open(path).convert("RGB") for path in batch]
        pixels = np.stack([np.asarray(photograph.resize(input_size(model)[::-1])) for photograph in photographs])
        inputs = np.asarray(PREPROCESSES[PREPROCESS](pixels.astype("float32")))
        predicted = model.predict(inputs, batch_size=BATCH, verbose=0).argmax(axis=-1)
        maps = explain(inputs, predicted)
        for path, photograph, values in zip(batch, photographs, maps, strict=True):
            lay_over(photograph, values).save(output / f"{path.stem}.png")
        classes.append(predicted)
        all_maps.append(maps)
    uris = [str(path) for path in paths]
    np.savez(output / "maps.npz", uris=uris, classes=np.concatenate(classes), maps=np.concatenate(all_maps))


def lay_over(photograph: Image.Image, values: np.ndarray) -> Image.Image:
    """A map in jet's colours, blended over the photograph half and half."""
    from matplotlib import colormaps

    shown = values / max(values.max(), 1e-12)
    heat = np.asarray(Image.fromarray(shown.astype("float32")).resize(photograph.size, Image.Resampling.BILINEAR))
    colored = 255 * colormaps["jet"](heat)[..., :3]
    return Image.fromarray((0.5 * colored + 0.5 * np.asarray(photograph)).astype("uint8"))


def correlate(run: str, maps: Path) -> float:
    """How alike our maps and a script's are: the median correlation over images, at the script's size."""
    theirs = np.load(maps)
    by_uri = dict(zip(theirs["uris"].tolist(), theirs["maps"], strict=True))
    found = []
    for record in open_run(run):
        values = by_uri[record.uri]
        ours = Image.fromarray(np.maximum(record.maps[0].array(), 0)).resize(values.shape[::-1])
        found.append(np.corrcoef(np.asarray(ours).ravel(), values.ravel())[0, 1])
    return float(np.nanmedian(found))
