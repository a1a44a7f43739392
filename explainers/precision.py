"""A model's steps in lower precision, on the user's own weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from explainers import folding, heads
from explainers.graph import Step, View, as_functional
from explainers.inspection import Exposed

PRECISIONS = ("float32", "bfloat16", "float16")
"""What the stem may compute in. The head, gradients and maps are float32 in any case."""


class Normalized:
    """Inference BatchNorm of a signal (N, h, w, C) in lower precision, in one pass and in float32 inside.

    Keras casts the whole signal to float32 for it, which makes ResNet50V2 half as fast.
    """

    def __init__(self, layer: keras.layers.BatchNormalization, dtype: str):
        self.layer = layer
        self.dtype = dtype
        self._scale, self._shift = (values.astype(np.float32) for values in folding.scale_and_shift(layer))

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """The normalised signal."""
        zeros, ones = np.zeros_like(self._scale), np.ones_like(self._scale)
        return tf.raw_ops.FusedBatchNormV3(
            x=tf.cast(signal, self.dtype),
            scale=self._scale,
            offset=self._shift,
            mean=zeros,
            variance=ones,
            epsilon=0.0,
            is_training=False,
        )[0]


def lowered(exposed: Exposed, dtype: str) -> Exposed:
    """The same exposed model with its stem computing in `dtype`; what the stem gives is float32 again.

    Layers are lowered from the first one on that has learned a kernel: what lies ahead of it scales pixels, which
    bfloat16 cannot do without harm. Operations that are no layers follow the dtype of what they are given.

    Args:
        exposed: the model, folded or not.
        dtype: "bfloat16" or "float16".
    """
    graph, stem = exposed.computing, {id(step) for step in exposed.split.steps}
    learned = heads.learned(graph)
    steps = (
        _lower(step, dtype) if id(step) in stem and step.outputs[0].index in learned else step for step in graph.steps
    )
    return exposed.computed_by(replace(graph, steps=tuple(steps)))


def _lower(step: Step, dtype: str) -> Step:
    operation = step.operation
    normalizes = folding.normalizes_channels(step) and len(step.inputs[0].shape) == 4
    if normalizes or isinstance(operation, folding.Scaled):
        layer = getattr(operation, "layer", operation)
        return replace(step, operation=Normalized(layer, dtype), args=step.inputs, kwargs={})
    if isinstance(operation, View):
        return replace(step, operation=operation.with_attributes(_dtype_policy=keras.DTypePolicy(f"mixed_{dtype}")))
    if isinstance(operation, keras.layers.Layer) and not any(map(_stays, operation._flatten_layers())):
        return replace(step, operation=View(operation, **_lowered_attributes(operation, dtype)))
    return step


def _stays(layer: keras.layers.Layer) -> bool:
    """Whether another policy would not do: integers are read through their own, and models by their own layers."""
    return layer.quantization_mode is not None or as_functional(layer) is not None


def _lowered_attributes(layer: keras.layers.Layer, dtype: str) -> dict[str, Any]:
    """The policy for a view of a layer, and such views of the layers that it is made of, in lists and dicts too."""
    own = {name: value for name, value in vars(layer).items() if name != "_layers"}  # that is Keras's list of them all
    views = {name: _lower_part(value, dtype) for name, value in own.items() if _holds_layers(value)}
    return {"_dtype_policy": keras.DTypePolicy(f"mixed_{dtype}"), **views}


def _holds_layers(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return isinstance(value, keras.layers.Layer) or any(map(_holds_layers, parts))


def _lower_part(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {key: _lower_part(part, dtype) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_lower_part(part, dtype) for part in value]
    if isinstance(value, keras.layers.Layer):
        return View(value, **_lowered_attributes(value, dtype)).view
    return value
