"""The only Keras surgery: find the spatial signal and the logits of any classifier, and cut the model there."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.errors import LayerError, ModelError
from explainers.graph import Graph, Slot, Step, as_functional, flatten_model, in_order, run_steps

logger = logging.getLogger(__name__)

Endpoint: TypeAlias = str | int | Sequence[str] | dict[str, Any] | keras.layers.Layer


class Segment(keras.Model):
    """A stretch of a model's graph that is called like a model; it shares the model's layers and owns nothing.

    Call it with one tensor for each of its inputs (a list where there are several).
    """

    def __init__(self, steps: Iterable[Step], inputs: Sequence[Slot], outputs: Sequence[Slot], name: str):
        super().__init__(name=name)
        self.steps = tuple(steps)
        self.input_slots = tuple(inputs)
        self.output_slots = tuple(outputs)
        self.shared_layers = list({id(layer): layer for step in self.steps for layer in step.layers}.values())

    def build(self, input_shape: Any) -> None:  # noqa: ARG002
        """Nothing to build: every layer has its weights already."""
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Runs the steps in inference mode."""
        values = dict(zip((slot.index for slot in self.input_slots), keras.tree.flatten(inputs), strict=True))
        run_steps(self.steps, values)
        outputs = [values[slot.index] for slot in self.output_slots]
        return outputs[0] if len(outputs) == 1 else outputs


class Exposed(keras.Model):
    """A classifier cut at its spatial signal: `exposed(inputs)` returns `[logits, activations]`.

    Attributes:
        stem: inputs -> activations (N, h, w, C).
        head: activations -> logits (N, L). Where the cut lies inside a residual branch the head also needs the signals
            that pass by the cut: `head(split(inputs))` always works.
        split: inputs -> everything that the head needs, activations first.
        activation_layer: dotted name of the layer whose output the activations are.
        logits_layer: dotted name of the layer that computes the logits.
        probability: "softmax", "sigmoid" or None: the activation that was taken off behind the logits.
        class_kernel: reads CAM's weights as a (C, L) float32 tensor; None where the head has none.
        why_no_cam: the reason, where `class_kernel` is None.
        source: the user's model.
    """

    def __init__(self, source: keras.Model, graph: Graph, cut: Cut, probability: str | None):
        super().__init__(name=f"exposed_{source.name}")
        self.activation_layer, self.logits_layer = cut.activation_layer, cut.logits_layer
        self.probability = probability
        passing = (cut.activations, *cut.skips)
        self.stem = Segment(graph.ancestors(passing[:1]), graph.inputs, passing[:1], "stem")
        self.split = Segment(graph.ancestors(passing), graph.inputs, passing, "split")
        self.head = Segment(cut.head_steps, passing, (cut.logits,), "head")
        self.class_kernel, self.why_no_cam = heads.class_kernel(cut.head_steps, cut.activations)
        self.graph = graph
        self.source = source
        self.compiled_calls: dict[Any, Callable[..., Any]] = {}  # what `explain` compiled for this model

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The symbolic inputs of the user's model."""
        return self.source.inputs

    @property
    def n_classes(self) -> int:
        """L, the number of logits."""
        return int(self.head.output_slots[0].shape[-1] or 0)

    @property
    def activation_shape(self) -> tuple[int | None, ...]:
        """The shape of the activations, batch first; None where the input's size leaves it open."""
        return self.head.input_slots[0].shape

    def build(self, input_shape: Any) -> None:  # noqa: ARG002
        """Nothing to build: every layer has its weights already."""
        self.built = True

    def call(self, inputs: Any) -> list[tf.Tensor]:
        """`[logits (N, L), activations (N, h, w, C)]` of `inputs`, in inference mode."""
        signals = keras.tree.flatten(self.split(as_inputs(self, inputs)))
        return [self.head(signals), signals[0]]


class Cut(NamedTuple):
    """Where a graph is cut, and what the parts are called."""

    activations: Slot
    logits: Slot
    head_steps: tuple[Step, ...]
    skips: tuple[Slot, ...]  # signals that the head needs beside the activations
    activation_layer: str
    logits_layer: str


def expose(model: keras.Model, arguments: Endpoint | None = None, outputs: Endpoint | None = None) -> Exposed:
    """Cuts a classifier at its last spatial signal, and takes the softmax or sigmoid off its logits.

    The model is not changed, and the exposed one shares its weights: train on, and the exposed model follows.

    Args:
        model: a functional or Sequential classifier, nested to any depth, with outputs of shape (N, L).
        arguments: the spatial signal: a layer's name, a dotted path into nested models
            (`"resnet50.conv5_block3_out"`), an index, a layer, or a dict `{"name": ..., "link": "input" | "output"}`.
            By default the signal that the classifier reads: the last one before global pooling or flattening, or
            before the convolution that makes the class score maps. The choice is logged.
        outputs: the logits, named likewise. By default the model's only output.

    Returns:
        A `keras.Model`, inputs -> `[logits, activations]`, with `.stem`, `.head`, `.activation_layer` and
        `.logits_layer`.

    Raises:
        ModelError: the model is subclassed, has no spatial signal, has several outputs of which none was named, or
            its output is not (N, L).
        LayerError: a named layer is not there; the message lists the nearest and the candidates.
    """
    if isinstance(model, Exposed):
        if arguments is None and outputs is None:
            return model
        model = model.source
    graph = flatten_model(model)
    _refuse_channels_first(graph)
    logits = _find_logits(graph, model, outputs)
    graph, probability = heads.undo_activation(graph, logits)
    activations = _choose_signal(graph, logits) if arguments is None else _resolve(graph, model, arguments)
    cut = _cut(graph, activations, logits)
    if arguments is None:
        logger.info(
            "%s: explaining the signal %r %s, logits of %r",
            model.name,
            cut.activation_layer,
            activations.shape[1:],
            cut.logits_layer,
        )
    return Exposed(model, graph, cut, probability)


def ensure_exposed(model: keras.Model, *, spatial: bool = True) -> Exposed:
    """`model` itself if it is exposed, else `expose(model)`.

    With `spatial=False`, for methods that need no spatial signal, a model that has none is cut at its input.
    """
    if isinstance(model, Exposed):
        return model
    try:
        return expose(model)
    except ModelError:
        if spatial or len(getattr(model, "inputs", ())) != 1:
            raise
        return expose(model, arguments={"name": model.inputs[0].name, "link": "output"})


def as_inputs(exposed: Exposed, inputs: Any) -> list[tf.Tensor]:
    """`inputs` as one tensor for each input of the model, in the dtype that the model declares."""
    pairs = zip(in_order(exposed.source, inputs), exposed.split.input_slots, strict=True)
    return [tf.cast(tf.convert_to_tensor(x), slot.dtype) for x, slot in pairs]


def get_nested_layer(model: keras.Model, name: str | Sequence[str]) -> keras.layers.Layer:
    """The layer at a dotted path (or a sequence of names) inside nested models.

    Raises:
        LayerError: there is no such layer, or several.
    """
    graph = flatten_model(model)
    wanted = name if isinstance(name, str) else ".".join(name)
    path = _submodel(graph, wanted)
    if path is None:
        return _one_step(graph, wanted, None).layers[0]
    return _layer_called(model, path)


def get_logits_layer(model: keras.Model, name: Endpoint | None = None) -> keras.layers.Layer:
    """The layer that computes the logits of `model`; see `expose`."""
    exposed = ensure_exposed(model) if name is None else expose(model, outputs=name)
    return _one_step(exposed.graph, exposed.logits_layer, None).layers[0]


def _refuse_channels_first(graph: Graph) -> None:
    for step in graph.steps:
        if getattr(step.operation, "data_format", None) == "channels_first":
            raise ModelError(
                f"layers must have data_format='channels_last', and {step.name!r} has 'channels_first': "
                "rebuild the model with keras.config.set_image_data_format('channels_last')"
            )


def _find_logits(graph: Graph, model: keras.Model, outputs: Endpoint | None) -> Slot:
    if outputs is not None:
        logits = _resolve(graph, model, outputs)
    elif len(graph.outputs) == 1:
        logits = graph.outputs[0]
    else:
        raise ModelError(
            f"the model has {len(graph.outputs)} outputs ({', '.join(graph.output_names)}): name the one to explain, "
            f"as in expose(model, outputs={graph.output_names[0]!r})"
        )
    if len(logits.shape) != 2:
        raise ModelError(
            f"a classifier's output has the shape (N, classes), and this one has {logits.shape}: "
            "end the model in global pooling or Flatten, or name its logits with outputs="
        )
    return logits


def _choose_signal(graph: Graph, logits: Slot) -> Slot:
    """The last spatial signal on the way to the logits, taken before the convolution that is the classifier."""
    rank = max(len(slot.shape) for slot in graph.inputs)
    signal = _last_spatial(graph, logits, rank)
    if signal is None:
        raise ModelError(_no_spatial_signal(graph, rank))
    signal = _before_idle_steps(graph, signal)
    if not any(heads.has_kernel(step) for step in _between(graph, signal, logits)):
        signal = _before_classifier(graph, signal, rank)
    return signal


def _last_spatial(graph: Graph, logits: Slot, rank: int) -> Slot | None:
    frontier, reached = [logits], []
    seen = set()
    while frontier:
        slot = frontier.pop()
        if slot.index in seen:
            continue
        seen.add(slot.index)
        step = graph.producer(slot)
        if heads.is_spatial(slot, rank) and not _moves_positions(step, rank):
            if step is not None:  # the image itself is an input, not a signal of the model
                reached.append(slot)
        elif step is not None:
            frontier.extend(step.inputs)
    return max(reached, key=lambda slot: graph.steps.index(graph.producer(slot)), default=None)


def _moves_positions(step: Step | None, rank: int) -> bool:
    """Whether a step takes a spatial signal to one whose axes mean something else."""
    moves = step is not None and type(step.operation).__name__ in {"Permute", "Transpose", "Reshape"}
    return moves and heads.is_spatial(step.inputs[0], rank)  # type: ignore[union-attr]


def _between(graph: Graph, signal: Slot, logits: Slot) -> list[Step]:
    dependent = {id(step) for step in graph.descendants(signal)}
    return [step for step in graph.ancestors([logits], stop=[signal]) if id(step) in dependent]


def _before_idle_steps(graph: Graph, signal: Slot) -> Slot:
    step = graph.producer(signal)
    while step is not None and heads.same_at_inference(step) and graph.producer(step.inputs[0]) is not None:
        signal = step.inputs[0]
        step = graph.producer(signal)
    return signal


def _before_classifier(graph: Graph, signal: Slot, rank: int) -> Slot:
    """The input of the convolution that makes the class score maps, which nothing but elementwise steps may follow."""
    step = graph.producer(signal)
    while step is not None and not heads.has_kernel(step):
        if len(step.inputs) != 1 or step.inputs[0].shape != step.outputs[0].shape:
            return signal
        step = graph.producer(step.inputs[0])
    if step is None or not heads.is_spatial(step.inputs[0], rank) or graph.producer(step.inputs[0]) is None:
        return signal
    return _before_idle_steps(graph, step.inputs[0])


def _no_spatial_signal(graph: Graph, rank: int) -> str:
    if rank < 3:
        return (
            f"class activation maps need inputs with positions, (N, height, width, channels), and this model reads "
            f"{[slot.shape for slot in graph.inputs]}: only gradients explains such a model"
        )
    return (
        f"the model has no spatial signal: no tensor of rank {rank} with more than one position lies between its input "
        "and its logits. Name one with arguments=, or use gradients, which needs none"
    )


def _cut(graph: Graph, activations: Slot, logits: Slot) -> Cut:
    head_steps = _between(graph, activations, logits)
    if not head_steps:
        raise LayerError(
            f"the logits do not depend on the signal {_slot_name(graph, activations)!r}: choose a layer on the way "
            "from the input to the output"
        )
    inside = {slot.index for step in head_steps for slot in step.outputs} | {activations.index}
    skips = {slot.index: slot for step in head_steps for slot in step.inputs if slot.index not in inside}
    logits_step = next((step for step in reversed(head_steps) if heads.has_kernel(step)), head_steps[-1])
    return Cut(
        activations, logits, tuple(head_steps), tuple(skips.values()), _slot_name(graph, activations), logits_step.name
    )


def _slot_name(graph: Graph, slot: Slot) -> str:
    step = graph.producer(slot)
    return step.name if step is not None else "input"


def _resolve(graph: Graph, model: keras.Model, endpoint: Any) -> Slot:
    """The tensor that a user's description of an endpoint means."""
    link, node = "output", None
    if isinstance(endpoint, dict):
        link, node = endpoint.get("link", "output"), endpoint.get("node")
        endpoint = endpoint["layer"] if "layer" in endpoint else endpoint.get("name")
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
    names += [path for path in graph.submodels if _layer_called(model, path) is layer]
    names += [layer.name for tensor in model.inputs if tensor._keras_history.operation is layer]
    if not names:
        raise LayerError(
            f"the layer {layer.name!r} is not one of this model's own: take it from the model itself. "
            + _unknown_layer(graph, layer.name)
        )
    return names[-1]


def _layer_called(model: keras.Model, path: str) -> keras.layers.Layer | None:
    """The layer or nested model at a path; names may hold dots themselves."""
    functional = as_functional(model)
    for layer in functional.layers if functional is not None else ():
        if layer.name == path:
            return layer
        if path.startswith(f"{layer.name}.") and as_functional(layer) is not None:
            found = _layer_called(layer, path.removeprefix(f"{layer.name}."))
            if found is not None:
                return found
    return None


def _submodel(graph: Graph, name: str) -> str | None:
    """The path of the nested model of that path, or of its unique end."""
    if name in graph.submodels or any(step.name == name for step in graph.steps):
        return name if name in graph.submodels else None
    paths = [path for path in graph.submodels if path.endswith(f".{name}")]
    return paths[0] if len(paths) == 1 else None


def _named_slot(graph: Graph, model: keras.Model, name: str, link: str, node: int | str | None) -> Slot:
    for slot, tensor in zip(graph.inputs, model.inputs, strict=True):
        if name == tensor.name:
            return slot
    path = _submodel(graph, name)
    if path is not None:
        first, last = graph.submodels[path]
        return first if link == "input" else last
    step = _one_step(graph, name, node)
    return step.inputs[0] if link == "input" else step.outputs[0]


def _one_step(graph: Graph, name: str, node: int | str | None) -> Step:
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
    rank = max(len(slot.shape) for slot in graph.inputs)
    spatial = [step for step in graph.steps if heads.is_spatial(step.outputs[0], rank)]
    names = [step.name for step in graph.steps] + list(graph.submodels)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    shown = ", ".join(f"{step.name} {step.outputs[0].shape[1:]}" for step in spatial[-8:])
    return f"the model has no layer {name!r}.{hint} The last spatial signals are: {shown or 'none'}"
