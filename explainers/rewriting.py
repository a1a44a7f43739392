"""Graphs in which fused activations are steps of their own, for methods that look at every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import tensorflow as tf

from explainers import heads
from explainers.graph import Graph, Slot, Step


class Activation:
    """An activation that was fused into a layer."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor], name: str | None):
        self.function = function
        self.name = name  # such as "relu"; None for a function without a name

    def __call__(self, signal: tf.Tensor) -> tf.Tensor:
        """The function of the signal, shape and dtype unchanged."""
        return self.function(signal)


def unfuse(graph: Graph) -> Graph:
    """The same computation with two steps, linear layer and activation, wherever a layer fuses both.

    Slots keep their numbers: what a layer gave after its activation, the activation's step gives now.
    """
    steps: list[Step] = []
    last = max(slot.index for step in graph.steps for slot in (*step.inputs, *step.outputs))
    for step in graph.steps:
        if not _is_fused(step):
            steps.append(step)
            continue
        last += 1
        before, activation = replace(step.outputs[0], index=last), step.operation.activation  # type: ignore[attr-defined]
        steps.append(replace(step, operation=heads.WithoutActivation(step.operation), outputs=(before,)))
        steps.append(_activation_step(step, activation, before))
    return replace(graph, steps=tuple(steps))


def _is_fused(step: Step) -> bool:
    """Whether a step multiplies by a kernel and then applies an activation."""
    return heads.has_kernel(step) and heads.activation_of(step) not in (None, "linear")


def activation_name(step: Step) -> str | None:
    """As `heads.activation_of`, for the steps of an unfused graph too."""
    return step.operation.name if isinstance(step.operation, Activation) else heads.activation_of(step)


def _activation_step(step: Step, activation: Callable[[tf.Tensor], tf.Tensor], before: Slot) -> Step:
    name = heads.activation_of(step)
    return Step(Activation(activation, name), (*step.path[:-1], f"{step.path[-1]}:{name}"), (before,), {}, step.outputs)
