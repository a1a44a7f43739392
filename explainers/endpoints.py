"""Endpoints: what a user may call a tensor of a model by, and what is said when there is no such thing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from explainers import heads
from explainers.errors import LayerError
from explainers.graph import Graph, Slot, Step, as_functional

Endpoint: TypeAlias = str | int | Sequence[str] | dict[str, Any] | keras.layers.Layer


def resolve(graph: Graph, model: keras.Model, endpoint: Any) -> Slot:
    """The tensor that a user's description of an endpoint means."""
    link, node = "output", None
    if isinstance(endpoint, dict):
        link, node = endpoint.get("link", "output"), endpoint.get("node")
        if not {"name", "layer"} & set(endpoint):
            raise LayerError(f"an endpoint given as a dict has a 'name' or a 'layer', and this one is {endpoint!r}")
        endpoint = endpoint["layer"] if "layer" in endpoint else endpoint["name"]
    if link not in ("input", "output"):
        raise LayerError(f"an endpoint's link is 'input' or 'output', not {link!r}")
    if isinstance(endpoint, (int, np.integer)):
        endpoint = _layer_at(model, int(endpoint))
    if isinstance(endpoint, keras.layers.Layer):
        endpoint = _path_of(graph, model, endpoint)
    elif isinstance(endpoint, (tuple, list)):
        endpoint = ".".join(endpoint)
    if not isinstance(endpoint, str):
        raise LayerError(
            "an endpoint is a layer's name, a dotted path, an index, a layer or a dict with 'name' and 'link', "
            f"not {endpoint!r}"
        )
    return _named_slot(graph, model, endpoint, link, node)


def _layer_at(model: keras.Model, index: int) -> keras.layers.Layer:
    if not -len(model.layers) <= index < len(model.layers):
        raise LayerError(f"the model has {len(model.layers)} layers, so there is no layer {index}")
    return model.layers[index]


def _path_of(graph: Graph, model: keras.Model, layer: keras.layers.Layer) -> str:
    names = [step.name for step in graph.steps if layer in step.layers]
    names += [path for path in graph.submodels if layer_called(model, path) is layer]
    names += [layer.name for tensor in model.inputs if tensor._keras_history.operation is layer]
    if not names:
        raise LayerError(
            f"the layer {layer.name!r} is not one of this model's own: take it from the model itself. "
            + _unknown_layer(graph, layer.name)
        )
    return names[-1]


def layer_called(model: keras.Model, path: str) -> keras.layers.Layer | None:
    """The layer or nested model at a path; names may hold dots themselves."""
    functional = as_functional(model)
    for layer in functional.layers if functional is not None else ():
        if layer.name == path:
            return layer
        if path.startswith(f"{layer.name}.") and as_functional(layer) is not None:
            found = layer_called(layer, path.removeprefix(f"{layer.name}."))
            if found is not None:
                return found
    return None


def submodel_path(graph: Graph, name: str) -> str | None:
    """The path of the nested model of that path, or of its unique end."""
    if name in graph.submodels or any(step.name == name for step in graph.steps):
        return name if name in graph.submodels else None
    paths = [path for path in graph.submodels if path.endswith(f".{name}")]
    return paths[0] if len(paths) == 1 else None


def _named_slot(graph: Graph, model: keras.Model, name: str, link: str, node: int | str | None) -> Slot:
    for slot, tensor in zip(graph.inputs, model.inputs, strict=True):
        if name == tensor.name:
            return slot
    path = submodel_path(graph, name)
    if path is not None:
        first, last = graph.submodels[path]
        return first if link == "input" else last
    step = find_step(graph, name, node)
    return step.inputs[0] if link == "input" else step.outputs[0]


def find_step(graph: Graph, name: str, node: int | str | None) -> Step:
    """The step of a dotted path, or of its unique end; of a layer that is called several times, call `node` (last)."""
    steps = [step for step in graph.steps if step.name == name]
    if not steps:
        steps = [step for step in graph.steps if step.name.endswith(f".{name}")]
        if len({step.name for step in steps}) > 1:
            raise LayerError(
                f"the layer name {name!r} is not unique: write one of {', '.join(sorted({s.name for s in steps}))}"
            )
    if not steps:
        raise LayerError(_unknown_layer(graph, name))
    index = -1 if node in (None, "last") else int(node)
    if not -len(steps) <= index < len(steps):
        raise LayerError(f"the layer {name!r} is called {len(steps)} times, so there is no node {node}")
    return steps[index]


def _unknown_layer(graph: Graph, name: str) -> str:
    rank = heads.position_rank(graph)
    spatial = [step for step in graph.steps if any(heads.is_spatial(step.outputs[0], r) for r in (3, rank))]
    names = [step.name for step in graph.steps] + list(graph.submodels)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(f"{step.name} {step.outputs[0].shape[1:]}" for step in spatial[-8:])
    return f"the model has no layer {name!r}.{hint} The last spatial signals are: {shown or 'none'}"
