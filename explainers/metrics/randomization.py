"""Is a map made of what the model has learned? It must change when the model forgets."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.errors import InputError, ModelError
from explainers.explaining import explain
from explainers.graph import Step
from explainers.inspection import Cut, Exposed, ensure_exposed
from explainers.methods.registry import method_of
from explainers.methods.specs import get_method
from explainers.metrics.similarity import spearman, ssim


@dataclass(frozen=True)
class Randomization:
    """How alike maps are before and after weights were drawn anew, averaged over images and units."""

    layer: str  # the dotted name of the layer that was randomised last; "all" where all were at once
    spearman: float  # of signed maps, in [-1, 1]
    spearman_absolute: float  # of their magnitudes
    ssim: float  # of signed maps


def randomization_check(
    method: str | Callable[..., tuple[tf.Tensor, tf.Tensor]],
    model: keras.Model,
    x: Any,
    y: Any = None,
    layers: Literal["cascade", "independent", "all"] = "cascade",
    seed: int = 0,
    batch_size: int = 32,
    **params: Any,
) -> list[Randomization]:
    """The model randomisation test: are a method's maps still the same when the model has forgotten what it learned?

    Then they show the image and not the model. Weights are drawn anew, and the raw maps compared with those of the
    trained model (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, Sec. 3,
    https://arxiv.org/abs/1810.03292).

    Layers get fresh values from their own initialisers (kernels that would start constant from Glorot's), as before
    training, normalisations included: gamma 1, beta 0, mean 0 and variance 1. Learned statistics, or permuted ones,
    would not belong to the new kernels, and a small variance would blow the signal up. Layers that standardise the
    input (`keras.layers.Normalization`) are kept. The layers are copies: the model itself is not touched.

    Args:
        method: a name in `METHODS` or a function, as for `explain`.
        model: exposed, or such that it can be exposed with nothing named.
        x: (N, *shape), images as the model reads them.
        y: (N, K) int units, one row an image. None takes the trained model's best unit of each image.
        layers: "cascade" randomises one layer after the other, from the logits down to the input, and keeps what it
            did; "independent" one layer at a time, the others as they were trained; "all" all at once.
        seed: another one gives other weights.
        batch_size: as for `explain`.
        **params: passed on to the method.

    Returns:
        A record for each layer that has weights, from the logits down to the input; a single one for "all".

    Raises:
        InputError: `layers` is unknown, or images or units do not fit.
        ModelError: a layer cannot be made anew.
    """
    if layers not in ("cascade", "independent", "all"):
        raise InputError(f"layers is 'cascade', 'independent' or 'all', not {layers!r}")
    known = get_method(method) if isinstance(method, str) else method_of(method)
    copied, twins = _copy(ensure_exposed(model, spatial=known is None or known.spatial), seed)
    y = np.argmax(copied.predict(x, batch_size, verbose=0)[0], axis=1)[:, np.newaxis] if y is None else y

    def explain_now() -> np.ndarray:
        return explain(method, copied, x, y, batch_size, postprocessing=None, resizing=None, verbose=0, **params)[1]

    trained = explain_now()
    if layers == "all":
        for twin in twins:
            twin.layer.set_weights(twin.fresh)
        return [_compare("all", trained, explain_now())]
    records = []
    for twin in twins:
        twin.layer.set_weights(twin.fresh)
        records.append(_compare(twin.name, trained, explain_now()))
        if layers == "independent":
            twin.layer.set_weights(twin.learned)
    return records


@dataclass(frozen=True)
class _Twin:
    """A copy of one of a model's layers, with its weights before and after training."""

    name: str
    layer: keras.layers.Layer
    fresh: list[np.ndarray]
    learned: list[np.ndarray]


def _copy(exposed: Exposed, seed: int) -> tuple[Exposed, list[_Twin]]:
    """The same model on copies of its layers, and these copies, from the logits down to the input."""
    twins: dict[int, _Twin] = {}
    state = random.getstate()
    random.seed(seed)  # where Keras's initialisers take their seeds from
    try:
        steps = tuple(_copy_step(step, twins) for step in exposed.graph.steps)
    finally:
        random.setstate(state)
    graph = replace(exposed.graph, steps=steps)
    (activations, *skips), (logits,) = exposed.head.input_slots, exposed.head.output_slots
    head_steps = graph.between(activations, logits)
    cut = Cut(activations, logits, head_steps, tuple(skips), exposed.activation_layer, exposed.logits_layer)
    used = {id(layer) for step in graph.ancestors([logits]) for layer in step.layers}
    kept = [twin for twin in twins.values() if id(twin.layer) in used and not _standardises(twin.layer)]
    return Exposed(exposed.source, graph, cut, exposed.probability), kept[::-1]


def _copy_step(step: Step, twins: dict[int, _Twin]) -> Step:
    without = isinstance(step.operation, heads.WithoutActivation)
    layer: Any = step.operation.layer if without else step.operation  # type: ignore[attr-defined]
    if not isinstance(layer, keras.layers.Layer) or not layer.weights:
        return step
    # A layer that is called several times has one copy, whose place is that of its last call.
    twin = twins.pop(id(layer)) if id(layer) in twins else _make_twin(step.name, layer)
    twins[id(layer)] = twin
    return replace(step, operation=heads.WithoutActivation(twin.layer) if without else twin.layer)


def _make_twin(name: str, layer: keras.layers.Layer) -> _Twin:
    # Functions that Keras does not know by name, such as tf.nn.softmax as an activation, are taken from the layer.
    functions = {value.__name__: value for value in vars(layer).values() if isinstance(value, FunctionType)}
    try:
        with keras.saving.custom_object_scope(functions):
            copy = type(layer).from_config(layer.get_config())
        copy.build_from_config(layer.get_build_config())
        fresh = [_anew(values) for values in copy.get_weights()]
        copy.set_weights(layer.get_weights())
    except (TypeError, ValueError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"the layer {name!r} cannot be made anew from its own configuration: {type(layer).__name__} needs a "
            f"get_config() that holds all arguments of its constructor, and no lambda among them ({error})"
        ) from error
    return _Twin(name, copy, fresh, layer.get_weights())


def _anew(values: np.ndarray) -> np.ndarray:
    """Initial values; a kernel that starts out constant is drawn from Glorot's distribution instead.

    A classifier that starts at zeros is common, and its maps would be zeros, which are like no other map.
    """
    if values.ndim < 2 or values.min() < values.max():
        return values
    return np.asarray(keras.initializers.GlorotUniform()(values.shape), values.dtype)


def _standardises(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Normalization)


def _compare(layer: str, trained: np.ndarray, randomized: np.ndarray) -> Randomization:
    pairs = [(trained[i, ..., k], randomized[i, ..., k]) for i in range(len(trained)) for k in range(trained.shape[-1])]
    return Randomization(
        layer,
        float(np.mean([spearman(a, b) for a, b in pairs])),
        float(np.mean([spearman(np.abs(a), np.abs(b)) for a, b in pairs])),
        float(np.mean([ssim(a, b) for a, b in pairs])),
    )
