"""Transformers: a row of tokens taken as a grid, so that every method that reads a spatial signal can read patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from explainers import heads
from explainers.errors import InputError, LayerError, ModelError
from explainers.graph import Graph, Slot, Step, run_steps

Reshape: TypeAlias = Literal["tokens"] | tuple[int, int]
Grid: TypeAlias = tuple[int, int]
Values: TypeAlias = dict[int, tf.Tensor]  # slot index -> signal

MAX_PREFIX = 8  # so many class and register tokens are looked for ahead of the patches


class SplitTokens:
    """Tokens (N, T, C) to the grid of the last h * w of them, (N, h, w, C), and those ahead, (N, T - h * w, C)."""

    def __init__(self, grid: Grid):
        self.grid = grid

    def __call__(self, tokens: tf.Tensor) -> list[tf.Tensor]:
        """`[grid, prefix]`, or the grid alone if nothing lies ahead of it; positions go by rows."""
        prefix, patches = tf.split(tokens, [tokens.shape[1] - math.prod(self.grid), math.prod(self.grid)], axis=1)
        grid = tf.reshape(patches, [-1, *self.grid, tokens.shape[-1]])
        return [grid, prefix] if prefix.shape[1] else [grid]


class MergeTokens:
    """What `SplitTokens` took apart, in a row again: (N, h, w, C) and (N, p, C) to (N, p + h * w, C)."""

    def __call__(self, grid: tf.Tensor, *prefix: tf.Tensor) -> tf.Tensor:
        """The tokens, the prefix first."""
        patches = tf.reshape(grid, [-1, math.prod(grid.shape[1:3]), grid.shape[-1]])
        return tf.concat([*prefix, patches], axis=1)


def find_grid(graph: Graph, logits: Slot, reshape: Reshape, named: Slot | None = None) -> tuple[Slot, Grid]:
    """The tokens to explain, and their grid (h, w).

    By default the last tokens that all evidence of the patches passes through. For a class token these are what the
    last attention reads: behind it nothing but the class token is read, and patches have no gradient.

    Args:
        graph: of a model that computes `logits`.
        logits: the scores.
        reshape: "tokens", or the grid itself.
        named: the user's own choice of tokens.

    Raises:
        InputError: `reshape` is neither "tokens" nor two sizes.
        LayerError: the signal that was named is not of tokens, makes no such grid, or has no patch that is read.
        ModelError: none was named, and none fits.
    """
    given = _as_sizes(reshape)
    if named is not None:
        return named, _grid_of_named(graph, logits, named, given)
    rows = rows_of_tokens(graph, logits)
    grids = ((slot, given or infer_grid(graph, slot)) for slot in rows)
    fitting = [(slot, grid) for slot, grid in grids if grid is not None and _fits(slot, grid)]
    values = _values_of_an_image(graph, logits) if fitting else {}
    for slot, grid in fitting:
        if all(_patches_read(graph, slot, logits, grid, values)):
            return _behind(graph, slot, logits, grid, values), grid
    raise ModelError(_no_tokens(graph, rows, given, found=bool(fitting)))


def as_grid(graph: Graph, tokens: Slot, grid: Grid) -> tuple[Graph, Slot]:
    """Lays tokens out as a grid where they are computed, and in a row again for all who read them.

    A cut at the grid leaves the tokens ahead of it to the head, as a signal that passes by; gradients with respect to
    the grid are then those of the patches.

    Returns:
        A graph that computes what it did before, and the grid's slot (N, h, w, C).
    """
    producer = graph.producer(tokens)
    place = 1 + next(i for i, step in enumerate(graph.steps) if step is producer)
    index, (batch, length, channels) = graph.next_index(), tokens.shape
    patches = replace(tokens, index=index, shape=(batch, *grid, channels))
    prefix = replace(tokens, index=index + 1, shape=(batch, length - math.prod(grid), channels))  # type: ignore[operator]
    parts = (patches, prefix) if prefix.shape[1] else (patches,)
    merged = replace(tokens, index=index + 2)
    path = graph.steps[place - 1].path
    detour = (
        Step(SplitTokens(grid), path, (tokens,), {}, parts),  # by the layer's own name: the grid is what it computes
        Step(MergeTokens(), (*path[:-1], f"{path[-1]}:row"), parts, {}, (merged,)),
    )
    after = (_redirect(step, tokens, merged) for step in graph.steps[place:])
    outputs = tuple(merged if slot == tokens else slot for slot in graph.outputs)
    return replace(graph, steps=(*graph.steps[:place], *detour, *after), outputs=outputs), patches


def rows_of_tokens(graph: Graph, logits: Slot) -> list[Slot]:
    """The signals (N, tokens, channels) that all evidence passes through, behind some kernel; the last one first."""
    learned = heads.learned(graph)
    slots = [slot for slot in graph.bottlenecks(logits, heads.image_inputs(graph)) if slot.index in learned]
    steps = [graph.producer(slot) for slot in slots]
    idle = [step is None or heads.same_at_inference(step) for step in steps]
    return [slot for slot, same in zip(slots, idle, strict=True) if heads.is_spatial(slot, 3) and not same]


def infer_grid(graph: Graph, tokens: Slot) -> Grid | None:
    """The grid of tokens: that of the patches they come from, else one of the image's proportions, else None.

    Of several, the one with the fewest tokens ahead of it.
    """
    length = tokens.shape[1]
    if length is None:
        return None
    for step in graph.ancestors([tokens]):
        grid = _grid_of(step.outputs[0])
        if grid is not None and _fits(tokens, grid):
            return grid
    height, width = _proportions(graph)
    for n_patches in range(length, max(1, length - MAX_PREFIX - 1), -1):
        scale = math.isqrt(n_patches // (height * width))
        if n_patches == height * width * scale**2:
            return height * scale, width * scale
    return None


def why_reshape(graph: Graph, logits: Slot, signal: Slot | None) -> str | None:
    """What to tell the user of a transformer who gave no `reshape`; None if `signal` is the one to explain.

    It is where more has been learned ahead of it than behind it on tokens, as in a CNN with some attention on top.
    """
    rows = rows_of_tokens(graph, logits)
    if signal is not None:
        behind = graph.between(signal, rows[0]) if rows else ()
        of_patches = any(_may_be_tokens_of(slot, signal) for step in behind for slot in step.outputs)
        if not of_patches or _count_kernels(behind) <= _count_kernels(graph.ancestors([signal])):
            return None
    if not rows:
        return None
    way = 'reshape="tokens"' if infer_grid(graph, rows[0]) else "reshape=(height, width), the grid of its tokens"
    return (
        f"the last positions of this model are tokens, {_name(graph, rows[0])!r} {rows[0].shape[1:]}: expose it with "
        f"{way}, or name a spatial signal with arguments="
    )


def _redirect(step: Step, old: Slot, new: Slot) -> Step:
    args, kwargs = keras.tree.map_structure(
        lambda leaf: new if isinstance(leaf, Slot) and leaf == old else leaf, (step.args, step.kwargs)
    )
    return replace(step, args=args, kwargs=kwargs)


def _as_sizes(reshape: Any) -> Grid | None:
    if isinstance(reshape, str) and reshape == "tokens":
        return None
    sizes = tuple(reshape) if isinstance(reshape, (tuple, list)) else ()
    if len(sizes) != 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes):
        raise InputError(f'reshape is "tokens", or the grid of the tokens such as (14, 14), not {reshape!r}')
    return int(sizes[0]), int(sizes[1])


def _grid_of_named(graph: Graph, logits: Slot, tokens: Slot, given: Grid | None) -> Grid:
    name, length = _name(graph, tokens), tokens.shape[1] if len(tokens.shape) == 3 else None
    if length is None or graph.producer(tokens) is None:
        raise LayerError(
            f"reshape takes tokens, a signal (N, tokens, channels) with a fixed number of them, and {name!r} has the "
            f"shape {tokens.shape}: name another layer, or leave reshape out"
        )
    grid = given or infer_grid(graph, tokens)
    if grid is None or math.prod(grid) > length:
        raise LayerError(_no_grid(name, length, grid))
    values = _values_of_an_image(graph, logits)
    if not any(_patches_read(graph, tokens, logits, grid, values)):
        raise LayerError(
            f"the logits read none of the patches of {name!r}, but only tokens ahead of them: name a layer ahead of "
            'the last attention; with no layer named, reshape="tokens" finds the last one that fits'
        )
    return grid


def _grid_of(slot: Slot) -> Grid | None:
    """The height and width of a spatial signal; None where they are open, or not there."""
    if len(slot.shape) != 4 or slot.shape[1] is None or slot.shape[2] is None:
        return None
    return slot.shape[1], slot.shape[2]


def _fits(tokens: Slot, grid: Grid) -> bool:
    length = tokens.shape[1]
    return length is not None and 1 < math.prod(grid) <= length <= math.prod(grid) + MAX_PREFIX


def _proportions(graph: Graph) -> Grid:
    """Height and width of the image in lowest terms; a square where they are open."""
    height, width = _grid_of(heads.image_inputs(graph)[0]) or (1, 1)
    divisor = math.gcd(height, width)
    return height // divisor, width // divisor


def _values_of_an_image(graph: Graph, logits: Slot) -> Values:
    """Every signal of the model for one random image."""
    rng = np.random.default_rng(0)
    shapes = ([1, *(32 if size is None else size for size in slot.shape[1:])] for slot in graph.inputs)
    pairs = zip(graph.inputs, shapes, strict=True)
    values = {slot.index: tf.cast(rng.uniform(size=shape), slot.dtype) for slot, shape in pairs}
    run_steps(graph.ancestors([logits]), values)
    return values


def _patches_read(graph: Graph, tokens: Slot, logits: Slot, grid: Grid, values: Values) -> tuple[bool, bool]:
    """Whether the logits read any patch of even, and any of odd number: both, if they read more than one."""
    head = graph.between(tokens, logits)
    even, odd = (_reach(head, tokens, logits, grid, values, np.arange(math.prod(grid)) % 2 == rest) for rest in (0, 1))
    return even, odd


def _behind(graph: Graph, tokens: Slot, logits: Slot, grid: Grid, values: Values) -> Slot:
    """The last signal behind `tokens` that their patches must pass to reach the logits; `tokens` itself if none.

    Class tokens take another way, past the attention. What is read through a normalisation is better explained behind
    it: ahead of it, gradient and activation are at right angles, and HiResCAM is zero.
    """
    dependent = graph.between(tokens, logits)
    known = {id(step) for step in dependent}
    for step in reversed(dependent):
        slot = step.outputs[0]
        if slot.shape[:2] != tokens.shape[:2] or len(slot.shape) != 3 or heads.same_at_inference(step):
            continue
        around = [other for other in graph.ancestors([logits], stop=[slot]) if id(other) in known]
        passed_by = _reach(around, tokens, logits, grid, values, np.array(True))
        if not passed_by and all(_patches_read(graph, slot, logits, grid, values)):
            return slot
    return tokens


def _reach(steps: Sequence[Step], tokens: Slot, logits: Slot, grid: Grid, values: Values, patches: np.ndarray) -> bool:
    """Whether any of some patches (h * w,) bool would change the logits, on the way of these steps.

    A NaN is put in the patches' place, and looked for in the logits: unlike a gradient it passes saturated softmaxes
    and kernels of zeros.
    """
    poison = np.zeros((tokens.shape[1] or 0, 1))
    poison[-math.prod(grid) :, 0] = np.where(patches, np.nan, 0)
    poisoned = {**values, tokens.index: values[tokens.index] + tf.cast(poison, tokens.dtype)}
    run_steps(steps, poisoned)
    return bool(tf.reduce_any(tf.math.is_nan(poisoned[logits.index])))


def _may_be_tokens_of(tokens: Slot, grid: Slot) -> bool:
    sizes = _grid_of(grid)
    return len(tokens.shape) == 3 and (tokens.shape[1] is None or sizes is None or _fits(tokens, sizes))


def _count_kernels(steps: Sequence[Step]) -> int:
    return sum(heads.n_kernels(step) for step in steps)


def _no_grid(name: str, length: int, grid: Grid | None) -> str:
    if grid is not None:
        return f"{name!r} has {length} tokens, fewer than the grid {grid} needs: give the grid of its own patches"
    return (
        f"the {length} tokens of {name!r} make no grid of the image's proportions with at most {MAX_PREFIX} tokens "
        "ahead of it: give the grid, as in reshape=(14, 14)"
    )


def _no_tokens(graph: Graph, rows: Sequence[Slot], given: Grid | None, *, found: bool) -> str:
    if not rows:
        return (
            "reshape is for transformers, and no signal (N, tokens, channels) of this model has all evidence passing "
            "through it: leave reshape out, or name tokens with arguments="
        )
    name, length = _name(graph, rows[0]), rows[0].shape[1]
    if length is None:
        return f"the number of tokens of {name!r} is left open: build the model for images of one size"
    if found:
        return f"the logits read at most one patch of the tokens of {name!r} and of all ahead of it: name a layer"
    if given is None:
        return _no_grid(name, length, None)
    return f"no tokens fit the grid {given} with at most {MAX_PREFIX} ahead of it; {name!r} has {length}"


def _name(graph: Graph, slot: Slot) -> str:
    step = graph.producer(slot)
    return step.name if step is not None else "input"
