"""The only Keras surgery: find the spatial signal and the logits of any classifier, and cut the model there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from explainers import heads, tokens
from explainers.endpoints import Endpoint, find_step, layer_called, resolve, submodel_path
from explainers.errors import LayerError, ModelError
from explainers.graph import Graph, Slot, Step, flatten_model, in_order, run_steps
from explainers.tokens import Reshape

logger = logging.getLogger(__name__)


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
        # A stretch that computes in lower precision gives what the model's own steps would give.
        outputs = [tf.cast(values[slot.index], slot.dtype) for slot in self.output_slots]
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
        linear_head: whether the logits are a linear function of the activations' averages: then dy/dA is
            `class_kernel` over the number of positions, everywhere.
        graph: every step of the model, on the user's own layers.
        computing: the graph that `stem`, `split` and `head` compute with: `graph`, or a cheaper one of the same value.
        source: the user's model.
    """

    def __init__(
        self, source: keras.Model, graph: Graph, cut: Cut, probability: str | None, computing: Graph | None = None
    ):
        super().__init__(name=f"exposed_{source.name}")
        self.activation_layer, self.logits_layer = cut.activation_layer, cut.logits_layer
        self.probability = probability
        self.computing = computing or graph
        passing = (cut.activations, *cut.skips)
        self.stem = Segment(self.computing.ancestors(passing[:1]), graph.inputs, passing[:1], "stem")
        self.split = Segment(self.computing.ancestors(passing), graph.inputs, passing, "split")
        self.head = Segment(self.computing.between(cut.activations, cut.logits), passing, (cut.logits,), "head")
        self.class_kernel, self.why_no_cam = heads.class_kernel(cut.head_steps, cut.activations)
        self.linear_head = self.class_kernel is not None and heads.is_linear(cut.head_steps)
        self.graph = graph
        self.source = source
        self._cut = cut
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

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """Sigmoid where the model ends in one or has a single unit, else softmax: (..., L), float32."""
        logits = tf.cast(logits, tf.float32)
        return tf.sigmoid(logits) if self.probability == "sigmoid" or self.n_classes == 1 else tf.nn.softmax(logits)

    def computed_by(self, graph: Graph) -> Exposed:
        """The same exposed model, computing with another graph of the same slots."""
        return Exposed(self.source, self.graph, self._cut, self.probability, graph)

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


def expose(
    model: keras.Model,
    arguments: Endpoint | None = None,
    outputs: Endpoint | None = None,
    reshape: Reshape | None = None,
) -> Exposed:
    """Cuts a classifier at its last spatial signal, and takes the softmax or sigmoid off its logits.

    The model is not changed, and the exposed one shares its weights: train on, and the exposed model follows.

    Args:
        model: a functional or Sequential classifier, nested to any depth, with outputs of shape (N, L).
        arguments: the spatial signal: a layer's name, a dotted path into nested models
            (`"resnet50.conv5_block3_out"`), an index, a layer, or a dict `{"name": ..., "link": "input" | "output"}`.
            By default the signal that the classifier reads: the last one before global pooling or flattening, or
            before the convolution that makes the class score maps. The choice is logged.
        outputs: the logits, named likewise, or by their key where the model returns a dict. By default the model's
            only output.
        reshape: for transformers. "tokens" takes a signal (N, tokens, C) as a grid (N, h, w, C), whose class and
            register tokens lie ahead of the patches; a pair (h, w) is the grid itself, where it cannot be told from
            the model. The tokens ahead of the grid reach the head unchanged. With no signal named, the last tokens
            that all evidence of the patches passes through: for a class token those that the last attention reads.

    Returns:
        A `keras.Model`, inputs -> `[logits, activations]`, with `.stem`, `.head`, `.activation_layer` and
        `.logits_layer`.

    Raises:
        ModelError: the model is subclassed, has no spatial signal or only one in each of several branches, holds its
            positions in tokens, has several outputs of which none was named, or its output is not (N, L).
        LayerError: a named layer is not there; the message lists the nearest and the candidates. Or its tokens make
            no such grid.
        InputError: `reshape` is neither "tokens" nor a pair.
    """
    if isinstance(model, Exposed):
        if arguments is None and outputs is None and reshape is None:
            return model
        model = model.source
    graph = flatten_model(model)
    _refuse_channels_first(graph)
    graph, logits = _find_logits(graph, model, outputs)
    graph, probability = heads.undo_activation(graph, logits)
    activations = None if arguments is None else resolve(graph, model, arguments)
    if reshape is not None:
        graph, activations = tokens.as_grid(graph, *tokens.find_grid(graph, logits, reshape, activations))
    elif activations is None:
        activations = _choose_signal(graph, logits)
    cut = _cut(graph, activations, logits)
    if arguments is None:
        _log_choice(model, cut)
    return Exposed(model, graph, cut, probability)


def _log_choice(model: keras.Model, cut: Cut) -> None:
    logger.info(
        "%s: explaining the signal %r %s, logits of %r",
        model.name,
        cut.activation_layer,
        cut.activations.shape[1:],
        cut.logits_layer,
    )


def ensure_exposed(model: keras.Model, *, spatial: bool = True) -> Exposed:
    """`model` itself if it is exposed, else `expose(model)`.

    With `spatial=False`, for methods that need no spatial signal, a model that has none is cut at its input.
    """
    if isinstance(model, Exposed):
        if spatial and len(model.activation_shape) < 3:
            raise ModelError(
                f"a map needs a signal with positions, and {model.activation_layer!r} has the shape "
                f"{model.activation_shape}: expose the model at a layer before its global pooling"
            )
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
    path = submodel_path(graph, wanted)
    if path is None:
        return find_step(graph, wanted, None).layers[0]
    return layer_called(model, path)


def get_logits_layer(model: keras.Model, name: Endpoint | None = None) -> keras.layers.Layer:
    """The layer that computes the logits of `model`; see `expose`."""
    exposed = ensure_exposed(model) if name is None else expose(model, outputs=name)
    return find_step(exposed.graph, exposed.logits_layer, None).layers[0]


def _refuse_channels_first(graph: Graph) -> None:
    for step in graph.steps:
        if getattr(step.operation, "data_format", None) == "channels_first":
            raise ModelError(
                f"layers must have data_format='channels_last', and {step.name!r} has 'channels_first': "
                "rebuild the model with keras.config.set_image_data_format('channels_last')"
            )


def _find_logits(graph: Graph, model: keras.Model, outputs: Endpoint | None) -> tuple[Graph, Slot]:
    if isinstance(outputs, str) and outputs in graph.output_names:
        logits = graph.outputs[graph.output_names.index(outputs)]
    elif outputs is not None:
        logits = resolve(graph, model, outputs)
    elif len(graph.outputs) == 1:
        logits = graph.outputs[0]
    else:
        raise ModelError(
            f"the model has {len(graph.outputs)} outputs ({', '.join(graph.output_names)}): name the one to explain, "
            f"as in expose(model, outputs={graph.output_names[0]!r})"
        )
    graph, logits = heads.flatten_logits(graph, logits)
    if len(logits.shape) != 2:
        raise ModelError(
            f"a classifier's output has the shape (N, classes), and this one has {logits.shape}: "
            "end the model in global pooling or Flatten, or name its logits with outputs="
        )
    return graph, logits


def _choose_signal(graph: Graph, logits: Slot) -> Slot:
    """The last spatial signal that all evidence passes through, taken before the convolution that is the classifier."""
    rank, learned = heads.position_rank(graph), heads.learned(graph)
    ways = graph.bottlenecks(logits, heads.image_inputs(graph))
    signal = next((slot for slot in ways if slot.index in learned and _holds_positions(graph, slot, rank)), None)
    hint = tokens.why_reshape(graph, logits, signal) if rank == 4 else None
    if signal is None or hint is not None:
        raise ModelError(hint or _no_signal(graph, logits, rank))
    signal = _before_idle_steps(graph, signal)
    if not any(heads.n_kernels(step) for step in graph.between(signal, logits)):
        signal = _before_classifier(graph, signal, rank, learned)
    return signal


def _holds_positions(graph: Graph, slot: Slot, rank: int) -> bool:
    """Whether a signal is one of the model's own, over the image's positions, and not just padded or turned."""
    step = graph.producer(slot)
    return step is not None and heads.is_spatial(slot, rank) and not _moves_positions(step, rank) and not _pads(step)


def _pads(step: Step) -> bool:
    """Whether a step shifts positions against the image: padding and cropping are no evidence of their own."""
    return type(step.operation).__name__.startswith(("ZeroPadding", "Cropping"))


def _moves_positions(step: Step, rank: int) -> bool:
    """Whether a step takes a spatial signal to one whose axes mean something else."""
    return type(step.operation).__name__ in {"Permute", "Transpose", "Reshape"} and heads.is_spatial(
        step.inputs[0], rank
    )


def _before_idle_steps(graph: Graph, signal: Slot) -> Slot:
    step = graph.producer(signal)
    while step is not None and heads.same_at_inference(step) and graph.producer(step.inputs[0]) is not None:
        signal = step.inputs[0]
        step = graph.producer(signal)
    return signal


def _before_classifier(graph: Graph, signal: Slot, rank: int, learned: set[int]) -> Slot:
    """The input of the convolution that makes the class score maps, which nothing but elementwise steps may follow."""
    step = graph.producer(signal)
    while step is not None and not heads.n_kernels(step):
        if len(step.inputs) != 1 or step.inputs[0].shape != step.outputs[0].shape:
            return signal
        step = graph.producer(step.inputs[0])
    if step is None or not heads.is_spatial(step.inputs[0], rank) or step.inputs[0].index not in learned:
        return signal
    return _before_idle_steps(graph, step.inputs[0])


def _no_signal(graph: Graph, logits: Slot, rank: int) -> str:
    if rank < 3:
        return (
            f"class activation maps need inputs with positions, (N, height, width, channels), and this model reads "
            f"{[slot.shape for slot in graph.inputs]}: only gradients explains such a model"
        )
    learned = heads.learned(graph)
    slots = [step.outputs[0] for step in graph.ancestors([logits]) if step.outputs[0].index in learned]
    spatial = [slot for slot in slots if _holds_positions(graph, slot, rank)]
    if spatial:
        return (
            "the logits read several spatial signals, and none that all evidence passes through: name one with "
            f"arguments=, such as {_slot_name(graph, spatial[-1])!r}, and maps tell of that branch alone"
        )
    shape = graph.inputs[0].shape[1:]
    if rank == 3 and any(heads.is_spatial(slot, 4) for slot in slots):
        return (
            f"images need an axis for channels, and this model reads {(None, *shape)}: put one in front, as in "
            f"keras.Sequential([keras.Input({(*shape, 1)}), keras.layers.Reshape({shape}), model])"
        )
    return (
        f"the model has no spatial signal: no tensor of rank {rank} with more than one position lies between its input "
        "and its logits, behind a convolution. Name one with arguments=, or use gradients, which needs none"
    )


def _cut(graph: Graph, activations: Slot, logits: Slot) -> Cut:
    head_steps = graph.between(activations, logits)
    if not head_steps:
        raise LayerError(
            f"the logits of {_slot_name(graph, logits)!r} do not depend on the signal "
            f"{_slot_name(graph, activations)!r}: choose a layer on the way from the input to the output"
        )
    inside = {slot.index for step in head_steps for slot in step.outputs} | {activations.index}
    skips = {slot.index: slot for step in head_steps for slot in step.inputs if slot.index not in inside}
    logits_step = next((step for step in reversed(head_steps) if heads.n_kernels(step)), head_steps[-1])
    return Cut(activations, logits, head_steps, tuple(skips.values()), _slot_name(graph, activations), logits_step.name)


def _slot_name(graph: Graph, slot: Slot) -> str:
    step = graph.producer(slot)
    return step.name if step is not None else "input"
