"""`explain`: any method over any number of images, the loop that a notebook uses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from explainers.errors import InputError
from explainers.filters import resize_maps
from explainers.inspection import Exposed, ensure_exposed
from explainers.methods.registry import Method, method_of
from explainers.methods.specs import get_method

Postprocessing = Callable[[tf.Tensor], tf.Tensor] | Literal["auto"] | None
Resizing = tuple[int, ...] | bool | None


def explain(
    method: str | Callable[..., tuple[tf.Tensor, tf.Tensor]],
    model: keras.Model,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    postprocessing: Postprocessing = "auto",
    resizing: Resizing = True,
    verbose: int | str = "auto",
    **params: Any,
) -> tuple[np.ndarray, ...]:
    """Explains every image of `x`, in compiled batches of one size.

    Args:
        method: a name in `METHODS`, with options or without (`"scorecam(channels=32)"`), or a function
            `(model, inputs, indices, **params) -> (logits, maps)`.
        model: exposed, or any classifier that `expose` cuts with nothing named.
        x: images as the model reads them: an array or tensor (N, *shape), or a `tf.data.Dataset` of images, or of
            (images, units) if `y` is None; batched or not.
        y: (N, K) int, the units to explain, one row an image. None explains every unit.
        batch_size: images a batch, for arrays and unbatched data sets. The last batch is padded.
        postprocessing: applied to the raw maps, e.g. one of `filters`; "auto" for what the method's paper shows, None
            for raw, signed maps.
        resizing: True for the input's size, a tuple for another one, None or False for the method's own. Bilinear,
            half-pixel centres.
        verbose: 1 for a progress bar, 0 for none; "auto" draws one if there is more than one batch.
        **params: passed on to the method.

    Returns:
        `logits` (N, K) and `maps` (N, h, w, K), float32; and what else the method returns, such as the gaps of
        `integrated_gradients(return_gap=True)`.

    Raises:
        InputError: images or units do not fit the model, or an image holds NaN or infinity.
        MethodError: the method is unknown or does not fit the model.
    """
    if isinstance(method, str):
        known: Method | None = get_method(method)
        function: Callable[..., Any] = get_method(method).function
    else:
        known, function = method_of(method), method
    exposed = ensure_exposed(model, spatial=known is None or known.spatial)
    if postprocessing == "auto":
        postprocessing = known.postprocessing if known else None
    if postprocessing is not None and not callable(postprocessing):
        raise InputError(f"postprocessing is a function, such as filters.positive_normalize, not {postprocessing!r}")
    if not (resizing is None or isinstance(resizing, (bool, tuple, list))):
        raise InputError(f"resizing is True, False, None or a size such as (224, 224), not {resizing!r}")
    resizing = tuple(resizing) if isinstance(resizing, list) else resizing
    run = _compiled_call(exposed, function, postprocessing, resizing, params)
    batches, n_batches = _batches(exposed, x, y, batch_size)
    progress = _progress(n_batches, verbose)
    results = []
    for images, units, n in batches:
        results.append([values.numpy()[:n] for values in run.get_concrete_function(images, units)(images, units)])
        progress(len(results))
    if not results:
        raise InputError("there are no images to explain: x is empty")
    progress(len(results), finalize=True)
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def shortcut(method: Method) -> Callable[..., tuple[np.ndarray, ...]]:
    """`explain` for one method, with the method's own post-processing: what `ex.gradcam` is."""

    @functools.wraps(explain)
    def explain_with_method(*args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        return explain(method.name, *args, **kwargs)

    explain_with_method.__name__ = explain_with_method.__qualname__ = method.name
    explain_with_method.__doc__ = (
        f"{method.title} ({method.paper}) of every image: `explain({method.name!r}, model, x, y, ...)`.\n\n"
        "Maps are post-processed as in the paper and resized to the input; `postprocessing=None, resizing=None` gives "
        "them raw. See `explain` for the arguments."
    )
    return explain_with_method


def _compiled_call(
    exposed: Exposed,
    method: Callable[..., Any],
    postprocessing: Callable[[tf.Tensor], tf.Tensor] | None,
    resizing: Resizing,
    params: dict[str, Any],
) -> tf.types.experimental.PolymorphicFunction:
    """A compiled function from a batch to finished maps, kept with the model for the next call."""
    key = (method, postprocessing, resizing, tuple((name, _as_key(value)) for name, value in sorted(params.items())))
    if key not in exposed.compiled_calls:

        def explain_batch(images: tf.Tensor, units: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
            logits, maps, *more = method(exposed, images, units, **params)
            if postprocessing is not None:
                maps = postprocessing(maps)
            if resizing is not None and resizing is not False:
                own = tuple(images.shape[1:-1]) or tuple(images.shape[1:])
                maps = resize_maps(maps, own if resizing is True else resizing)
            return logits, maps, *more

        exposed.compiled_calls[key] = tf.function(explain_batch, autograph=False)
    return exposed.compiled_calls[key]


def _as_key(value: Any) -> Any:
    """Something hashable that differs where the values differ; the text of a long array does not."""
    if isinstance(value, np.ndarray) or tf.is_tensor(value):
        array = np.asarray(value)
        return array.shape, array.dtype.str, array.tobytes()
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value), value


def _batches(
    exposed: Exposed, x: Any, y: Any, batch_size: int
) -> tuple[Iterator[tuple[tf.Tensor, tf.Tensor | None, int]], int | None]:
    """Batches of one size as (images, units, how many are not padding), and their number where it is known."""
    if batch_size < 1:
        raise InputError(f"batch_size is at least 1, not {batch_size}")
    if len(exposed.split.input_slots) != 1:
        raise InputError(f"explain feeds models with one input, and this has {len(exposed.split.input_slots)}")
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise InputError("units of a tf.data.Dataset come with it, as (images, units): leave y out")
        return _dataset_batches(exposed, x, batch_size)
    dtype = exposed.split.input_slots[0].dtype
    images = tf.cast(tf.convert_to_tensor(x), dtype)
    units = None if y is None else np.asarray(y)
    _check(exposed, images, units)
    size = min(batch_size, max(1, len(images)))
    starts = range(0, len(images), size)
    padded = (_pad(images[i : i + size], None if units is None else units[i : i + size], size) for i in starts)
    return padded, len(starts)


def _dataset_batches(
    exposed: Exposed, dataset: tf.data.Dataset, batch_size: int
) -> tuple[Iterator[tuple[tf.Tensor, tf.Tensor | None, int]], int | None]:
    first = keras.tree.flatten(dataset.element_spec)[0]
    if len(first.shape) < len(exposed.split.input_slots[0].shape):
        dataset = dataset.batch(batch_size)

    def pad_all() -> Iterator[tuple[tf.Tensor, tf.Tensor | None, int]]:
        size = None
        for element in dataset:
            images, units = element[:2] if isinstance(element, tuple) else (element, None)
            _check(exposed, images, None if units is None else units.numpy())
            size = size or len(images)  # the first batch is full; only the last one is shorter
            yield _pad(tf.cast(images, exposed.split.input_slots[0].dtype), units, max(size, len(images)))

    n_batches = int(dataset.cardinality())
    return pad_all(), n_batches if n_batches >= 0 else None


def _check(exposed: Exposed, images: tf.Tensor, units: np.ndarray | None) -> None:
    expected = exposed.split.input_slots[0].shape
    fits = len(images.shape) == len(expected) and all(
        want in (None, got) for want, got in zip(expected[1:], images.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(f"the model reads images of shape {('N', *expected[1:])}, and x has {tuple(images.shape)}")
    if images.dtype.is_floating:
        _refuse_not_finite(images)
    if units is None:
        return
    if units.ndim != 2 or len(units) != len(images) or units.shape[1] == 0:
        raise InputError(
            f"y holds one row of units an image, ({len(images)}, K), and has {units.shape}: "
            "for one unit an image write y[:, np.newaxis]"
        )
    if not np.issubdtype(units.dtype, np.integer):
        raise InputError(f"y holds integer units, not {units.dtype}")
    if units.size and not 0 <= units.min() <= units.max() < exposed.n_classes:
        wrong = units[(units < 0) | (units >= exposed.n_classes)][0]
        raise InputError(f"the model has the units 0 to {exposed.n_classes - 1}, and y asks for {wrong}")


def _refuse_not_finite(images: tf.Tensor) -> None:
    # Batch by batch it would be too late: the first images would be explained before the last one is refused.
    finite = tf.reduce_all(tf.math.is_finite(images), axis=list(range(1, len(images.shape)))).numpy()
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        raise InputError(
            f"images hold finite numbers, and x has NaN or infinity in image {wrong[0]}: leave it out, "
            f"or mend it ({len(wrong)} of {len(finite)} images)"
        )


def _pad(images: tf.Tensor, units: Any, size: int) -> tuple[tf.Tensor, tf.Tensor | None, int]:
    n = len(images)
    padding = tf.concat([tf.range(n), tf.zeros([size - n], tf.int32)], 0)  # repeats the first image
    if n < size:
        images = tf.gather(images, padding)
    if units is None:
        return images, None, n
    units = tf.cast(units, tf.int32)
    return images, tf.gather(units, padding) if n < size else units, n


def _progress(n_batches: int | None, verbose: int | str) -> Callable[..., None]:
    if verbose == 0 or (verbose == "auto" and n_batches == 1):
        return lambda *_, **__: None
    bar = keras.utils.Progbar(n_batches, verbose=1, unit_name="batch")

    def update(done: int, finalize: bool = False) -> None:
        if not finalize:
            bar.update(done)
        elif n_batches is None:  # else the bar has ended itself
            bar.update(done, finalize=True)

    return update
