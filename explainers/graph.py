"""A Keras model as one flat list of steps, so that it can be cut anywhere, nested or not, without being touched."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import tensorflow as tf

from explainers.errors import ModelError


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in a graph."""

    index: int
    shape: tuple[int | None, ...]  # batch first; None where the model leaves it open
    dtype: str


@dataclass(frozen=True)
class Step:
    """One call of one layer or operation."""

    operation: Callable[..., Any]  # the user's own layer, shared and never changed
    path: tuple[str, ...]  # names from the outermost model inwards
    args: tuple[Any, ...]  # as in the model's graph, with a Slot for every tensor
    kwargs: dict[str, Any]
    outputs: tuple[Slot, ...]

    @property
    def name(self) -> str:
        """The path, joined by dots."""
        return ".".join(self.path)

    @functools.cached_property
    def inputs(self) -> tuple[Slot, ...]:
        """The tensors that the step reads."""
        leaves = keras.tree.flatten((self.args, self.kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Slot))

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The user's layers behind the operation: one, or none for a bare operation."""
        operation = getattr(self.operation, "layer", self.operation)
        return (operation,) if isinstance(operation, keras.layers.Layer) else ()


@dataclass(frozen=True)
class Graph:
    """Steps in the order of execution, from a model's inputs to its outputs."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    output_names: tuple[str, ...]  # keys where the model returns a dict, else the layers'
    steps: tuple[Step, ...]
    submodels: dict[str, tuple[Slot, Slot]] = field(default_factory=dict)  # dotted path -> first input, first output

    def producer(self, slot: Slot) -> Step | None:
        """The step that computes `slot`; None for an input of the model."""
        return self._producers.get(slot.index)

    @functools.cached_property
    def _producers(self) -> dict[int, Step]:
        return {slot.index: step for step in self.steps for slot in step.outputs}

    def next_index(self) -> int:
        """An index that no slot has."""
        slots = (slot for step in self.steps for slot in (*step.inputs, *step.outputs))
        return 1 + max(slot.index for slot in (*self.inputs, *slots))

    def replace_step(self, step: Step, operation: Callable[..., Any]) -> Graph:
        """The same graph with another operation at one step."""
        changed = replace(step, operation=operation)
        return replace(self, steps=tuple(changed if other is step else other for other in self.steps))

    def ancestors(self, targets: Iterable[Slot], stop: Iterable[Slot] = ()) -> tuple[Step, ...]:
        """The steps that `targets` need, in order, without going past `stop`."""
        wanted = {slot.index for slot in targets} - {slot.index for slot in stop}
        stopped = {slot.index for slot in stop}
        needed = []
        for step in reversed(self.steps):
            if any(slot.index in wanted for slot in step.outputs):
                needed.append(step)
                wanted |= {slot.index for slot in step.inputs} - stopped
        return tuple(reversed(needed))

    def descendants(self, source: Slot) -> tuple[Step, ...]:
        """The steps whose value depends on `source`, in order."""
        reached = {source.index}
        dependent = []
        for step in self.steps:
            if any(slot.index in reached for slot in step.inputs):
                dependent.append(step)
                reached |= {slot.index for slot in step.outputs}
        return tuple(dependent)

    def between(self, source: Slot, target: Slot) -> tuple[Step, ...]:
        """The steps on the ways from `source` to `target`, in order; empty if there is none."""
        dependent = {id(step) for step in self.descendants(source)}
        return tuple(step for step in self.ancestors([target], stop=[source]) if id(step) in dependent)

    def bottlenecks(self, target: Slot, sources: Iterable[Slot]) -> tuple[Slot, ...]:
        """The signals on the way to `target` that everything from `sources` passes through, the last one first."""
        sources = tuple(sources)
        informed = {slot.index for slot in sources}
        informed |= {slot.index for source in sources for step in self.descendants(source) for slot in step.outputs}
        wanted, found = {target.index: target}, list[Slot]()
        # Steps are in order of execution: where a single signal is wanted, there is no way around it.
        for step in reversed(self.ancestors([target])):
            for slot in step.outputs:
                wanted.pop(slot.index, None)
            wanted.update({slot.index: slot for slot in step.inputs if slot.index in informed})
            if len(wanted) == 1 and step.outputs[0].index in informed:
                found.extend(wanted.values())
        return tuple(found)


class Cast:
    """What Keras does at the door of a nested model: bring the signal to the dtype of its `Input`."""

    def __init__(self, dtype: str):
        self.dtype = dtype

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """`signal` in this dtype, shape unchanged."""
        return keras.ops.cast(signal, self.dtype)


class View:
    """A second view of the user's own layer, with other attributes: no weight is copied, and none goes stale."""

    def __init__(self, layer: keras.layers.Layer, /, **attributes: Any):  # wrappers have an attribute `layer` too
        self.layer = layer
        self.attributes = attributes
        # Built by hand: for a Keras layer copy.copy() goes through its configuration, to new variables.
        self.view = object.__new__(type(layer))
        vars(self.view).update(vars(layer) | attributes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes with these attributes."""
        return self.view(*args, **kwargs)

    def with_attributes(self, **attributes: Any) -> View:
        """The same view with other attributes still."""
        return View(self.layer, **self.attributes | attributes)


def run_steps(steps: Iterable[Step], values: dict[int, tf.Tensor]) -> None:
    """Executes `steps` in inference mode, reading and writing `values` (slot index -> tensor)."""

    def fill_in(leaf: Any) -> Any:
        return values[leaf.index] if isinstance(leaf, Slot) else leaf

    for step in steps:
        args, kwargs = keras.tree.map_structure(fill_in, (step.args, step.kwargs))
        outputs = keras.tree.flatten(step.operation(*args, **kwargs))
        values.update(zip((slot.index for slot in step.outputs), outputs, strict=False))


def flatten_model(model: keras.Model) -> Graph:
    """The graph of a functional or Sequential model, nested models laid open at any depth.

    Nothing is added to the model: the steps hold its own layers and call them on tensors, which leaves no trace.

    Raises:
        ModelError: the model is subclassed, or a Sequential that was never built.
    """
    functional = as_functional(model)
    if functional is None:
        raise ModelError(_why_not_functional(model))
    tracer = _Tracer()
    inputs = tuple(tracer.new_slot(tensor) for tensor in functional.inputs)
    outputs = tracer.trace(functional, inputs, ())
    graph = Graph(inputs, outputs, (), tuple(tracer.steps), tracer.submodels)
    return replace(graph, output_names=_output_names(functional, graph))


def as_functional(operation: Any) -> keras.Model | None:
    """The functional graph behind a model or layer; None if it is opaque: a plain layer, or a `call` of its own."""
    if not isinstance(operation, keras.Model) or not type(operation).call.__module__.startswith("keras."):
        return None
    if isinstance(operation, keras.Sequential):
        return operation._functional
    return operation if hasattr(operation, "_nodes_by_depth") else None


def _output_names(functional: keras.Model, graph: Graph) -> tuple[str, ...]:
    structure = functional._outputs_struct
    keys = {id(tensor): key for key, tensor in structure.items()} if isinstance(structure, dict) else {}
    steps = [graph.producer(slot) for slot in graph.outputs]
    names = [tensor.name if step is None else step.name for tensor, step in zip(functional.outputs, steps, strict=True)]
    return tuple(keys.get(id(tensor), name) for tensor, name in zip(functional.outputs, names, strict=True))


def in_order(model: keras.Model, inputs: Any) -> list[Any]:
    """`inputs` in the order of the model's own; a dict goes by their names, as Keras does it."""
    names = [tensor.name for tensor in model.inputs]
    if isinstance(inputs, dict) and set(names) <= set(inputs):
        return [inputs[name] for name in names]
    return list(keras.tree.flatten(inputs))


class _Tracer:
    """Collects steps while walking a functional graph and the graphs nested in it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.submodels: dict[str, tuple[Slot, Slot]] = {}
        self._count = 0

    def new_slot(self, tensor: keras.KerasTensor) -> Slot:
        self._count += 1
        return Slot(self._count, tuple(tensor.shape), str(tensor.dtype))

    def trace(self, model: keras.Model, inputs: tuple[Slot, ...], prefix: tuple[str, ...]) -> tuple[Slot, ...]:
        slots = {}
        for tensor, slot in zip(model.inputs, inputs, strict=True):
            slots[id(tensor)] = self._enter(tensor, slot, prefix)
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input and all(id(tensor) in slots for tensor in node.input_tensors):
                    outputs = self._visit(node, slots, prefix)
                    slots.update({id(t): slot for t, slot in zip(node.outputs, outputs, strict=True)})
        return tuple(slots[id(tensor)] for tensor in model.outputs)

    def _enter(self, tensor: keras.KerasTensor, slot: Slot, prefix: tuple[str, ...]) -> Slot:
        if slot.dtype == str(tensor.dtype):
            return slot
        cast = replace(self.new_slot(tensor), shape=slot.shape)
        self.steps.append(Step(Cast(cast.dtype), (*prefix, tensor.name), (slot,), {}, (cast,)))
        return cast

    def _visit(self, node: Any, slots: dict[int, Slot], prefix: tuple[str, ...]) -> tuple[Slot, ...]:
        args, kwargs = node.arguments.fill_in(slots)
        path = (*prefix, node.operation.name)
        nested = as_functional(node.operation)
        if nested is not None:
            inputs = tuple(in_order(nested, args[0] if args else kwargs["inputs"]))
            outputs = self.trace(nested, inputs, path)
            self.submodels[".".join(path)] = (inputs[0], outputs[0])
            return outputs
        outputs = tuple(self.new_slot(tensor) for tensor in node.outputs)
        if "training" in _call_parameters(node.operation):
            kwargs = {**kwargs, "training": False}
        self.steps.append(Step(node.operation, path, args, kwargs, outputs))
        return outputs


def _call_parameters(operation: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(operation.call).parameters)


def _why_not_functional(model: object) -> str:
    if isinstance(model, keras.Sequential):
        return (
            f"a Sequential model is exposed after it was built, and {model.name!r} was not: give it a keras.Input "
            "as its first layer, or call model.build((None, height, width, channels))"
        )
    if isinstance(model, keras.Model):
        return (
            f"only functional and Sequential models can be exposed, and {type(model).__name__!r} computes its output "
            "in a `call` of its own: build it as keras.Model(inputs, outputs), or wrap the parts that come before and "
            "after the signal as layers of a functional model"
        )
    return f"a Keras model is needed, got {type(model).__name__}: {model!r}"
