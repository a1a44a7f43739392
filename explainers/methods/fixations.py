"""CNN Fixations: the strongest contributors of a logit, followed back layer by layer to pixels, without a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.errors import MethodError
from explainers.graph import Slot, Step, run_steps
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.backtracking import ForwardPass, Points, kind_of
from explainers.methods.fixation_rules import RULES, has_rule
from explainers.methods.signals import as_indices

BLUR = 0.05  # standard deviation of `fixation_density` in shorter sides: the authors' 20 pixels on photographs of 400


def fixations(model: keras.Model, inputs: tf.Tensor, indices: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
    r"""CNN Fixations: how many of a unit's fixations end at each pixel.

    After Mopuri, Garg & Babu, "CNN Fixations: An Unraveling Approach to Visualize the Discriminative Image Regions",
    IEEE TIP 2019, Algorithms 1 and 2, https://arxiv.org/abs/1708.06670. A point starts at the logit. Every layer hands
    its points on to the strongest of their contributors $A \odot W$, A being what the layer reads and W its kernel;
    biases contribute nothing:

    * Dense, and a convolution that reads its whole input at once: to every input with $A W > 0$. Points that meet
      there are one (Algorithm 1: a set).
    * Convolution, and Dense on positions: to one unit of the receptive field. First the channel whose contributions
      add up to most (Algorithm 2), then, in this channel, the position that contributes most. Never to padding.
      Depthwise: the channel is given. Separable: first through the pointwise, then through the depthwise kernel.
    * Pooling, of maximum or average, global or not: to the largest activation, as in the authors' program for
      GoogLeNet and ResNet.
    * Addition: to the branch with the largest value; of a signal multiplied by a gate: to the signal, which has the
      output's shape; concatenation: to the part that the unit came from.
    * Normalisation, rescaling, activations, reshaping, padding, cropping: to the same unit; resizing: to the nearest.

    What adds up evidence over positions does so first for the logit, and hands on to all, or again further down, and
    hands on to the strongest. So an average of class score maps, where no dense layer comes behind, has a point at
    every position with a positive score; and a dense layer that reads flattened positions behind another dense layer
    (VGG's first) has one strongest input for each point, as in the authors' program.

    The paper's networks have no negative activations. Where there are some (linear bottlenecks, swish), a point at a
    negative unit asks what makes it negative: contributions are multiplied by the sign of the unit, which
    normalisations and gates with negative factors turn around. So networks that compute the same thing with channels
    of other signs, or with normalisation folded into kernels, have the same fixations.

    Of equal contributors the most central one of the window is followed, then the first in C order: windows without
    evidence are common, and would pull fixations to a corner. A convolution has a strongest contributor even if none is
    positive, and it is followed, as by the authors; a dense layer or an average of scores may have no positive one, and
    then a map of zeros says that nothing speaks for the unit. The authors drop doubles at every layer; here only dense
    layers do, so that points that meet at a unit of a convolution count as many.

    Where several dense layers follow each other, as in VGG, nearly every active unit of the lower ones is a point of
    every class, and maps of different classes hardly differ: that is the method's own limit.

    Cost: one forward pass, all of whose signals are kept, and a few look-ups a layer for each unit and image.

    Args:
        model: exposed, or one that can be; where it is cut does not matter.
        inputs: what the model reads, of known size.
        indices: (N, K) units to explain, one row an image; None for every unit.

    Returns:
        The units' logits (N, K), and maps (N, H, W, K) of whole numbers, never negative, both float32.

    Raises:
        MethodError: a layer has no rule, or the model has several inputs.
        InputError: the size of the images is not known when the program is traced.
    """
    exposed = ensure_exposed(model, spatial=False)
    check_fixations(exposed)
    run = _run_forward(exposed, inputs)
    logits_slot, input_slot = exposed.head.output_slots[0], exposed.graph.inputs[0]
    logits, shape = run.signals[logits_slot.index], run.shape(input_slot)
    indices = as_indices(exposed, indices, logits)
    layers = _ways_back(exposed, run)
    positions, channels = (shape[:-1], shape[-1]) if _has_channels(exposed) else (shape, 1)

    @tf.autograph.experimental.do_not_convert  # map_fn would rewrite it, and every rule, for nothing
    def count_fixations(image_and_unit: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        image, unit = image_and_unit
        points = Points(tf.constant([logits_slot.index], tf.int64), unit[tf.newaxis], tf.ones(1), tf.ones(1))
        for layer in layers:
            points = layer.back(image, points)
        return tf.math.unsorted_segment_sum(points.count, points.unit // channels, math.prod(positions))

    n, k = tf.shape(indices)[0], tf.shape(indices)[1]
    rows = (tf.cast(tf.repeat(tf.range(n), k), tf.int64), tf.cast(tf.reshape(indices, [-1]), tf.int64))
    # One after the other, so that memory holds the points of one unit, whatever the batch.
    counts = tf.map_fn(count_fixations, rows, parallel_iterations=1, fn_output_signature=tf.float32)
    maps = tf.transpose(tf.reshape(counts, [n, k, *positions]), [0, *range(2, len(positions) + 2), 1])
    return tf.gather(logits, indices, batch_dims=1), tf.ensure_shape(maps, [None, *positions, indices.shape[1]])


def check_fixations(exposed: Exposed) -> None:
    """Refuses models that cannot be followed back, without running anything.

    Raises:
        MethodError: naming the layer that has no rule, and methods that do fit.
    """
    if len(exposed.graph.inputs) != 1:
        raise MethodError(
            f"fixations end in the pixels of one input, and this model has {len(exposed.graph.inputs)}: use gradcam"
        )
    for step, _ in _steps_back(exposed):
        if not has_rule(step):
            kind = type(step.layers[0] if step.layers else step.operation).__name__
            raise MethodError(
                f"fixations follow evidence back through every layer, and there is no rule for {kind} {step.name!r}: "
                "use gradcam or gradients, which need none"
            )


def fixation_density(maps: tf.Tensor) -> tf.Tensor:
    r"""Fixations as a smooth map: the sum of a Gaussian around each, over its maximum; zeros where there is none.

    $D_i = \sum_p n_p \exp(-|i - p|^2 / 2 \sigma^2)$ with $\sigma$ a twentieth of the shorter side, as Mopuri et
    al. make localisation maps of their fixations (their program: 20 pixels of the photograph).

    Args:
        maps: counts (N, *positions, K), of known size.

    Returns:
        Densities in [0, 1] of the same shape, float32.
    """
    maps = tf.cast(maps, tf.float32)
    sizes = maps.shape[1:-1]
    for axis, size in enumerate(sizes, start=1):
        distances = np.subtract.outer(np.arange(size), np.arange(size)) / (BLUR * min(sizes))
        gaussian = tf.constant(np.exp(-(distances**2) / 2), tf.float32)
        others = [i for i in range(len(maps.shape)) if i != axis]
        blurred = tf.tensordot(maps, gaussian, [[axis], [0]])  # the blurred axis comes out last
        maps = tf.transpose(blurred, np.argsort([*others, axis]))
    return tf.math.divide_no_nan(maps, tf.reduce_max(maps, axis=list(range(1, len(sizes) + 1)), keepdims=True))


class _Layer:
    """The way back through one step, for one forward pass.

    `alone` if no point can be anywhere but at its output; `summed` if a layer nearer to the logit added up evidence.
    """

    def __init__(self, step: Step, run: ForwardPass, *, alone: bool, summed: bool):
        rule = RULES[kind_of(step)]
        self.output, self.alone = step.outputs[0].index, alone
        self.spread = rule.spread(step, run, summed) if rule.spread is not None else None
        self.move = rule.move(step, run) if self.spread is None else None

    def back(self, image: tf.Tensor, points: Points) -> Points:
        """Takes points at the step's output to its inputs, and leaves all others where they are."""
        here = points.slot == self.output
        unit = points.unit if self.alone else tf.where(here, points.unit, 0)
        if self.spread is not None:
            found = self.spread(image, replace(points, unit=unit, count=tf.where(here, points.count, 0)))
            return found if self.alone else _join(replace(points, count=tf.where(here, 0, points.count)), found)
        assert self.move is not None
        slot, unit, sign = self.move(image, unit, points.sign)
        slot = tf.broadcast_to(tf.cast(slot, tf.int64), tf.shape(unit))
        if self.alone:
            return replace(points, slot=slot, unit=unit, sign=sign)
        return Points(
            tf.where(here, slot, points.slot),
            tf.where(here, unit, points.unit),
            tf.where(here, sign, points.sign),
            points.count,
        )


def _has_channels(exposed: Exposed) -> bool:
    """A row of features has none, nor a grey image (N, height, width) to which the model adds them."""
    rank = len(exposed.graph.inputs[0].shape)
    first = next((step for step in exposed.graph.steps if heads.n_kernels(step)), None)
    return rank > 2 and (first is None or len(first.inputs[0].shape) <= rank)


def _run_forward(exposed: Exposed, inputs: tf.Tensor) -> ForwardPass:
    graph = exposed.graph
    values = dict(zip((slot.index for slot in graph.inputs), as_inputs(exposed, inputs), strict=True))
    run_steps(graph.ancestors(exposed.head.output_slots), values)
    return ForwardPass(graph, {index: tf.cast(value, tf.float32) for index, value in values.items()})


def _ways_back(exposed: Exposed, run: ForwardPass) -> list[_Layer]:
    layers: list[_Layer] = []
    below: set[int] = set()  # slots between which and the logit evidence is added up
    for step, alone in _steps_back(exposed):
        summed = step.outputs[0].index in below
        layers.append(_Layer(step, run, alone=alone, summed=summed))
        if summed or layers[-1].spread is not None:
            below |= {slot.index for slot in _sources(step)}
    return layers


def _steps_back(exposed: Exposed) -> list[tuple[Step, bool]]:
    """The steps that points can pass, last first, each with whether all points are at its output then."""
    places = {exposed.head.output_slots[0].index}
    steps = []
    for step in reversed(exposed.graph.steps):
        outputs = {slot.index for slot in step.outputs}
        if places & outputs:
            steps.append((step, places <= outputs))
            places = (places - outputs) | {slot.index for slot in _sources(step)}
    return steps


def _sources(step: Step) -> tuple[Slot, ...]:
    return RULES[kind_of(step)].sources(step) if has_rule(step) else step.inputs


def _join(*points: Points) -> Points:
    return Points(
        *(tf.concat([getattr(p, name) for p in points], axis=0) for name in ("slot", "unit", "sign", "count"))
    )
