"""Programs in memory: one pass against the forward pass, and every method against what it is said to cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import explainers as ex
from explainers.errors import ExplainerError
from explainers.folding import folded
from tests.benchmarks.measuring import Figure, LeftOut, Result, Samples, interleave
from tests.benchmarks.workloads import (
    PREPROCESS,
    Settings,
    bare_forward,
    build_model,
    forward_pass,
    input_size,
    read_batch,
)

TARGETS = {"MobileNetV2": 1.25, "ResNet50V2": 1.03}

SHARING = ("gradcam", "gradcampp", "hirescam", "xgradcam", "layercam", "gradcam_guided")

BARE = "the forward pass"
FOLDED = "the forward pass with BatchNorm folded"
FOLDED_TARGET = 0.97
ONE = "Grad-CAM of the best class"
SIX = f"{len(SHARING)} methods of the 3 best classes"
LOWER = ("bfloat16", "float16")

METHODS_BATCH = 8
"""Images a batch of `methods`: with four passes of each they are one chunk of 32 rows."""


def bench_program(settings: Settings) -> Iterator[Result]:
    """One batch in memory, from uint8 pixels to logits, targets and maps, against `model(x)` in a `tf.function`."""
    for name in settings.models:
        model = build_model(name, settings.seed)
        pixels = read_batch(settings, input_size(model))
        explain = partial(_explainer, model, settings)
        explainers = {ONE: explain(["gradcam"]), SIX: explain(SHARING, top_k=min(3, model.output_shape[-1]))}
        explainers |= {f"{ONE}, {low}": explain(["gradcam"], precision=low) for low in LOWER}
        exact = explain(["gradcam"], fold=False, jit=False)
        calls: dict[str, Callable[[], object]] = {what: partial(of, pixels) for what, of in explainers.items()}
        calls[BARE] = bare_forward(model, pixels)
        calls[FOLDED] = forward_pass(_folded_logits(model), pixels)
        seconds = {what: Samples(what, s, settings.batch) for what, s in interleave(settings.rounds, calls).items()}
        rate = partial(Figure, "program", kind="rate", model=name)
        for what, explainer in explainers.items():
            target = TARGETS.get(name) if what == ONE else None
            notes = {"xla": explainer.jit, **compare(explainer(pixels), exact(pixels))}
            yield rate(what, ours=seconds[what], base=seconds[BARE], target=target, notes=notes)
        yield rate(ONE, ours=seconds[ONE], base=seconds[FOLDED], target=FOLDED_TARGET)


def compare(ours: ex.Explanation, exact: ex.Explanation) -> dict[str, float]:
    """How far logits and Grad-CAM's maps are off, the worst image and the median one, and how many best classes agree.

    Maps are compared where both explain the same class.
    """
    same = ours.targets[:, 0] == exact.targets[:, 0]
    logits = relative_errors(ours.logits, exact.logits)
    maps = relative_errors(*(explanation.maps["gradcam"][same, ..., 0] for explanation in (ours, exact)))
    return {
        "largest_logit_error": float(logits.max()),
        "median_logit_error": float(np.median(logits)),
        "largest_map_error": float(maps.max(initial=0)),
        "median_map_error": float(np.median(maps)) if len(maps) else 0.0,
        "same_best_class": float(same.mean()),
    }


def relative_errors(ours: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The largest difference of each image, as a share of its largest magnitude."""
    axes = tuple(range(1, exact.ndim))
    scale = np.maximum(np.abs(exact).max(axes), np.finfo(np.float32).tiny)
    return np.abs(ours - exact).max(axes) / scale


def _explainer(model: keras.Model, settings: Settings, methods: Any, **options: Any) -> ex.Explainer:
    return ex.Explainer(model, methods, batch_size=settings.batch, preprocess=PREPROCESS, **options)


def _folded_logits(model: keras.Model) -> Callable[[Any], Any]:
    exposed = folded(ex.expose(model))
    return lambda x: exposed(x)[0]


def bench_methods(settings: Settings) -> Iterator[Result]:
    """Every method in forward passes an image, beside what the registry says; many passes are made a few."""
    settings = replace(settings, batch=min(settings.batch, METHODS_BATCH), rounds=min(settings.rounds, 3))
    # Saliency first: the others' costs are stated in its backward pass.
    methods = sorted(ex.METHODS.values(), key=lambda method: method.name != "gradients")
    for name in settings.models:
        model = build_model(name, settings.seed)
        pixels = read_batch(settings, input_size(model))
        bare, backward = bare_forward(model, pixels), 0.0
        for method in methods:
            try:
                figure, passes = measure_method(settings, method, model, pixels, bare)
            except ExplainerError as error:
                yield LeftOut("methods", f"{method.name} on {name}: {error}")
                continue
            if method.name == "gradients":
                backward = figure.notes["function_alone"] - 1
            forwards, backwards = stated_passes(method.cost, passes)
            yield replace(figure, model=name, stated=forwards + backwards * backward)


def measure_method(
    settings: Settings, method: ex.methods.Method, model: keras.Model, pixels: np.ndarray, bare: Callable[[], object]
) -> tuple[Figure, int]:
    """A method with few passes in an `Explainer` against the forward pass, and how many passes these were.

    What the registry states is to be compared with the method's own function, which is measured beside it: an
    `Explainer` folds, which makes passes shorter, and makes a pass more to choose the class.
    """
    spec, passes = few_passes(method.name, settings.passes, input_size(model))
    explainer = _explainer(model, settings, [spec], jit=False)
    calls: dict[str, Callable[[], object]] = {
        BARE: bare,
        "Explainer": partial(explainer, pixels),
        "function": _alone(spec, model, pixels),
    }
    took = interleave(settings.rounds, calls)
    ours, alone, base = (Samples(what, took[what], settings.batch) for what in ("Explainer", "function", BARE))
    notes = {
        "cost": method.cost,
        "function_alone": Figure("methods", spec, "cost", alone, base).value,
        "seconds_function_alone": alone.values,
    }
    return Figure("methods", spec, "cost", ours, base, notes=notes), passes


def _alone(spec: str, model: keras.Model, pixels: np.ndarray) -> Callable[[], np.ndarray]:
    exposed, units = ex.expose(model), tf.zeros((len(pixels), 1), tf.int32)
    function = ex.methods.get_method(spec).function
    return forward_pass(lambda x: function(exposed, x, units)[1], pixels)


def few_passes(method: str, passes: int, size: tuple[int, int]) -> tuple[str, int]:
    """A method's spec with few passes, and how many these are."""
    options = {"scorecam": "channels", "scorecam_official": "channels", "integrated_gradients": "steps",
               "smoothgrad": "samples", "rise": "masks"}  # fmt: skip
    if method in options:
        return f"{method}({options[method]}={passes})", passes
    if method == "occlusion":  # four windows, side by side
        height, width = (-(-side // 2) for side in size)
        return f"occlusion(size=({height}, {width}), stride=({height}, {width}))", 4
    return method, 1


def stated_passes(cost: str, passes: int) -> tuple[int, int]:
    """Forward and backward passes through the whole model, of one target, that the registry's words mean.

    Passes through the head, and look-ups, count as nothing.
    """
    many = {"forward": (1 + passes, 0), "both": (passes, passes)}
    return {
        "1 f": (1, 0),
        "1 f + k h": (1, 0),
        "1 f + k b": (1, 1),
        "2 f + k (b + h)": (2, 1),
        "1 f + C head passes (1 f where CAM fits)": (1, 0),
        "1 f, and look-ups for each unit": (1, 0),
        "1 f + C f (or channels f)": many["forward"],
        "1 f + windows f": many["forward"],
        "1 f + masks f": many["forward"],
        "steps (f + k b)": many["both"],
        "samples (f + k b)": many["both"],
    }[cost]
