"""`Explainer`: one compiled program of one static shape, from uint8 pixels to logits, targets and maps."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeVar

import keras
import numpy as np
import tensorflow as tf

from explainers.errors import InputError
from explainers.folding import folded, has_scaled
from explainers.inspection import Exposed, as_inputs, ensure_exposed
from explainers.methods.noise import image_seeds
from explainers.methods.registry import Method
from explainers.methods.signals import combine_methods
from explainers.methods.specs import get_method
from explainers.metrics import confidence_change, deletion, insertion
from explainers.precision import PRECISIONS, lowered

logger = logging.getLogger(__name__)

PREDICTED = -1  # a target that means: the next of the model's best classes

Preprocess = Callable[[tf.Tensor], tf.Tensor]

TRIED_IMAGES = 4  # in a first trial of XLA

FOLDING_BOUND = 1e-4
"""How far folding may move a logit, as a share of the largest: float32's rounding through a deep model is 1e-6."""

FAITHFULNESS = ("deletion", "insertion", "drop", "increase")
"""Metrics that are measured inside the program, since they ask the model."""

T = TypeVar("T")

# logits (n, L), targets (n, K), maps: method -> (n, h, w, K), metrics: method -> metric -> (n, K)
Results = tuple[Any, Any, dict[str, Any], dict[str, dict[str, Any]]]

PREPROCESSES: dict[str, Preprocess] = {
    "tf": lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="tf"),
    "caffe": lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="caffe"),
    "torch": lambda x: keras.applications.imagenet_utils.preprocess_input(x, mode="torch"),
    "unit": lambda x: x / 255.0,
    "none": lambda x: x,
}
"""Pixels (N, H, W, 3), float32 RGB in [0, 255], to what a model was trained on: `tf` in [-1, 1], `caffe` BGR minus
ImageNet's mean, `torch` standardised by ImageNet's mean and deviation, `unit` in [0, 1], `none` as they are."""


@dataclass(frozen=True)
class Explanation:
    """What an `Explainer` says of n images."""

    logits: np.ndarray  # (n, L) float32, before any softmax or sigmoid
    targets: np.ndarray  # (n, K) int32, the classes explained
    maps: dict[str, np.ndarray]  # method -> (n, h, w, K) float32, raw and signed
    metrics: dict[str, dict[str, np.ndarray]]  # method -> metric -> (n, K) float32


@dataclass(frozen=True)
class Program:
    """A compiled explanation of one static shape."""

    function: Callable[..., Any]  # images, targets -> logits, targets, maps, metrics
    images: tuple[int, ...]  # the shape of its images, (size, H, W, C)
    targets: tuple[int, ...]  # and of its targets, (size, K)

    @property
    def size(self) -> int:
        """How many images it takes at a time."""
        return self.images[0]

    def __call__(self, images: np.ndarray, targets: np.ndarray) -> Results:
        """Explains at most `size` images; results are NumPy arrays."""
        n, padding = len(images), self.size - len(images)
        if padding:
            images = np.concatenate([images, np.zeros((padding, *self.images[1:]), np.uint8)])
            targets = np.concatenate([targets, np.full((padding, *self.targets[1:]), PREDICTED, targets.dtype)])
        results = self.function(tf.constant(images), tf.constant(targets, tf.int32))
        return keras.tree.map_structure(lambda values: values.numpy()[:n], results)

    def run_empty(self) -> None:
        """Explains a batch of black images."""
        self(np.zeros(self.images, np.uint8), np.full(self.targets, PREDICTED))


class Explainer:
    """Explains batches of uint8 images by several methods in one compiled program.

    Preprocessing, the forward pass, the choice of targets and the maps are one program of one static shape; batches
    that are not full are padded. Methods that read only the activations and their gradient share one forward pass and
    one gradient through the head; the others make passes of their own. Noise and masks follow from the content of an
    image's pixels. It may be called from several threads.

    Args:
        exposed: the model, exposed or such that it can be exposed with nothing named.
        methods: names in `METHODS`, with options where wanted: `"scorecam(channels=32)"`.
        top_k: how many of the best classes to explain where no targets are given.
        batch_size: the static batch size. A batch that does not fit in memory is halved, and those after it as well.
        input_shape: (H, W, C), where the model leaves the size of its input open.
        preprocess: a name in `PREPROCESSES` or a function of a float32 tensor in [0, 255]; None for none.
        metrics: names in `FAITHFULNESS` to measure every map by.
        jit: True compiles with XLA, False does not, "auto" times both once and keeps the faster.
        fold: whether to fold inference BatchNorm into the layers ahead of it: the same numbers within float32's
            rounding, which is checked, in as little as half the time. Weights are then copied now: after training make
            a new Explainer, since an old one mixes old kernels with new ones.
        precision: what the stem computes in, of `PRECISIONS`. The head, gradients and maps stay float32, and methods
            that look at every layer (guided backpropagation, FullGrad, fixations) compute as the model does. Below
            float32 BatchNorms are copied, too.

    Attributes:
        batch_size: what the program takes at a time: what was asked for, or what fits.
        deviation: the largest difference that folding and precision make to the logits of two images of noise, as a
            share of the largest logit.

    Raises:
        InputError: a number or name is out of range, or the input's size is not known.
        MethodError: a method is unknown or does not fit the model.
    """

    def __init__(
        self,
        exposed: keras.Model,
        methods: Sequence[str] = ("gradcam",),
        top_k: int = 1,
        batch_size: int = 32,
        input_shape: tuple[int, int, int] | None = None,
        preprocess: str | Preprocess | None = None,
        jit: bool | Literal["auto"] = "auto",
        metrics: Sequence[str] = (),
        fold: bool = True,
        precision: str = "float32",
    ):
        self.methods = {name: get_method(name) for name in methods}
        self.exposed = ensure_exposed(exposed, spatial=any(method.spatial for method in self.methods.values()))
        self._source = self.exposed
        self.top_k, self.batch_size, self.metrics = top_k, batch_size, tuple(metrics)
        self.largest_batch = batch_size
        self.input_shape = _input_shape(self.exposed, input_shape)
        self.preprocess = _as_preprocess(preprocess)
        self.precision = precision
        self._check()
        self.exposed, self.deviation = self._cheaper(fold, jit is True)
        self._for_xla = self._cheaper(fold, xla=True)[0] if jit == "auto" and has_scaled(self.exposed) else self.exposed
        self.jit = _faster_with_xla(self) if jit == "auto" else jit
        # What XLA computes is the same whether it was chosen here or asked for: a resumed run must not differ.
        self.exposed = self._for_xla if self.jit else self.exposed
        self._lock = threading.Lock()
        self._program = self.compile(self.jit)

    def __call__(self, images: np.ndarray, targets: np.ndarray | None = None) -> Explanation:
        """Explains at most `batch_size` images.

        Args:
            images: (n, H, W, C) uint8.
            targets: (n, top_k) int32 classes; `PREDICTED` (-1) in column j stands for the j-th best class. None for
                the best `top_k`.

        Raises:
            InputError: shapes, dtypes or targets do not fit.
        """
        targets = np.full((len(images), self.top_k), PREDICTED, np.int32) if targets is None else targets
        self._check_batch(images, targets)

        def explain(program: Program) -> list[Results]:
            starts = range(0, len(images), program.size)
            return [program(images[i : i + program.size], targets[i : i + program.size]) for i in starts]

        parts = self._in_memory(explain)
        return Explanation(*keras.tree.map_structure(lambda *values: np.concatenate(values), *parts))

    def warm_up(self) -> None:
        """Runs one empty batch, so that everything that happens once has happened.

        Without XLA, methods and metrics with many passes are left out: a batch of theirs takes long, nothing of it
        happens once, and their passes are the model's own.
        """
        few = self.jit or self._has_few_passes()
        self._in_memory(lambda program: (program if few else self.compile(self.jit, whole=False)).run_empty())

    def compile(self, jit: bool, whole: bool = True, size: int | None = None) -> Program:
        """The program for batches of `size`, by default `batch_size`; not `whole`: without what takes many passes."""
        size = size or self.batch_size
        signature = [
            tf.TensorSpec((size, *self.input_shape), tf.uint8),
            tf.TensorSpec((size, self.top_k), tf.int32),
        ]
        explain = functools.partial(self._explain, whole, self._for_xla if jit else self.exposed)
        # The concrete function, traced here and now: threads that call it later can never trace it a second time.
        function = tf.function(explain, jit_compile=jit, autograph=False).get_concrete_function(*signature)
        return Program(function, *(tuple(spec.shape) for spec in signature))

    def _in_memory(self, run: Callable[[Program], T]) -> T:
        """Runs the program, and again with half of its batch for as long as that does not fit in memory."""
        while True:
            program = self._program
            try:
                return run(program)
            except Exception as error:
                if not _ran_out_of_memory(error) or program.size == 1:
                    raise
            with self._lock:
                if self._program is program:  # else another thread has halved it meanwhile
                    self.batch_size = program.size // 2
                    logger.warning("a batch of %d does not fit in memory: halved to %d", program.size, self.batch_size)
                    self._program = self.compile(self.jit)

    def _cheaper(self, fold: bool, xla: bool) -> tuple[Exposed, float]:
        """The exposed model with cheaper steps of the same value, and how far its logits are off."""
        cheaper, deviation = self._source, 0.0
        if fold:
            cheaper = folded(self._source, xla)
            deviation = self._deviation(cheaper)
            if not deviation <= FOLDING_BOUND:  # NaN too
                logger.warning("BatchNorm is not folded: it would change logits by %.1e of the largest", deviation)
                cheaper, deviation = self._source, 0.0
        if self.precision != "float32":
            cheaper = lowered(cheaper, self.precision)
            deviation = self._deviation(cheaper)
        return cheaper, deviation

    def _deviation(self, cheaper: Exposed) -> float:
        """The largest difference of two models' logits for two images of noise, as a share of the largest logit."""
        if cheaper.computing is self._source.computing:
            return 0.0
        pixels = np.random.default_rng(0).integers(0, 256, (2, *self.input_shape))
        noise = as_inputs(self._source, self.preprocess(tf.constant(pixels, tf.float32)))
        want = self._source(noise)[0].numpy()
        try:
            got = cheaper(noise)[0].numpy()
        except tf.errors.NotFoundError as error:  # a kernel that this device does not have
            raise InputError(f"this device cannot compute the model in {self.precision}: choose another") from error
        with np.errstate(invalid="ignore"):
            return float(np.abs(got - want).max() / max(np.abs(want).max(), np.finfo(np.float32).tiny))

    def _has_few_passes(self) -> bool:
        return not self.metrics and not any(method.expanding for method in self.methods.values())

    def _explain(self, whole: bool, exposed: Exposed, images: tf.Tensor, targets: tf.Tensor) -> Results:
        methods = {name: method for name, method in self.methods.items() if whole or not method.expanding}
        inputs = self.preprocess(tf.cast(images, tf.float32))
        signals = keras.tree.flatten(exposed.split(as_inputs(exposed, inputs)))
        combines = {name: method.combine for name, method in methods.items() if method.combine is not None}
        logits, chosen, maps = combine_methods(
            combines,
            exposed,
            signals,
            lambda y: _choose(y, targets),
            self.top_k,
            gradients=any(methods[name].reads_gradients for name in combines),
            weights=any(methods[name].reads_weights for name in combines),
        )
        # Seeds of the pixels and not of the preprocessed inputs, which differ in their last bit from device to device.
        seeds = image_seeds(images)
        for name, method in methods.items():
            if name not in combines:
                maps[name] = self._own_passes(exposed, method, inputs, chosen, seeds)
        measured = {name: self._measure(exposed, inputs, chosen, values) for name, values in maps.items() if whole}
        return logits, chosen, {name: maps[name] for name in methods}, measured

    def _measure(self, exposed: Exposed, inputs: tf.Tensor, chosen: tf.Tensor, maps: tf.Tensor) -> dict[str, tf.Tensor]:
        measured = {}
        if "deletion" in self.metrics:
            measured["deletion"] = deletion(exposed, inputs, chosen, maps)
        if "insertion" in self.metrics:
            measured["insertion"] = insertion(exposed, inputs, chosen, maps)
        if "drop" in self.metrics or "increase" in self.metrics:
            change = confidence_change(exposed, inputs, chosen, maps)
            measured |= {name: getattr(change, name) for name in ("drop", "increase") if name in self.metrics}
        return measured

    def _own_passes(
        self, exposed: Exposed, method: Method, inputs: tf.Tensor, chosen: tf.Tensor, seeds: tf.Tensor
    ) -> tf.Tensor:
        options = {"seeds": seeds} if method.seeded else {}
        return method.function(exposed, inputs, chosen, **options)[1]

    def _check(self) -> None:
        if not self.methods:
            raise InputError("an Explainer needs at least one method")
        unknown = [name for name in self.metrics if name not in FAITHFULNESS]
        if unknown:
            raise InputError(f"metrics are of {', '.join(FAITHFULNESS)}, not {unknown[0]!r}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if self.batch_size < 1:
            raise InputError(f"batch_size is at least 1, not {self.batch_size}")
        if not 1 <= self.top_k <= self.exposed.n_classes:
            raise InputError(f"top_k is between 1 and the model's {self.exposed.n_classes} classes, not {self.top_k}")
        for method in self.methods.values():
            if method.check is not None:
                method.check(self.exposed)

    def _check_batch(self, images: np.ndarray, targets: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != self.input_shape:
            raise InputError(
                f"images are uint8 of shape (n, {', '.join(map(str, self.input_shape))}), and these are "
                f"{images.dtype} of shape {images.shape}"
            )
        if not 1 <= len(images) <= self.largest_batch:
            raise InputError(f"a batch holds 1 to {self.largest_batch} images, and this one {len(images)}")
        if targets.shape != (len(images), self.top_k):
            raise InputError(f"targets have the shape ({len(images)}, {self.top_k}), and these {targets.shape}")
        if not np.issubdtype(targets.dtype, np.integer):
            raise InputError(f"targets are integers, and these are {targets.dtype}")
        if targets.min() < PREDICTED or targets.max() >= self.exposed.n_classes:
            raise InputError(
                f"targets are classes 0 to {self.exposed.n_classes - 1}, or -1 for predicted ones, and these lie in "
                f"{targets.min()} to {targets.max()}"
            )


def _choose(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    _, best = tf.math.top_k(logits, targets.shape[1])
    return tf.where(targets == PREDICTED, best, targets)


def _as_preprocess(preprocess: str | Preprocess | None) -> Preprocess:
    if preprocess is None:
        return PREPROCESSES["none"]
    if callable(preprocess):
        return preprocess
    if preprocess not in PREPROCESSES:
        raise InputError(f"there is no preprocessing {preprocess!r}: choose one of {', '.join(PREPROCESSES)}")
    return PREPROCESSES[preprocess]


def _input_shape(exposed: Exposed, given: tuple[int, int, int] | None) -> tuple[int, ...]:
    if len(exposed.split.input_slots) != 1:
        raise InputError(f"an Explainer needs a model with one input, and this has {len(exposed.split.input_slots)}")
    declared = exposed.split.input_slots[0].shape[1:]
    if given is None:
        if None in declared:
            raise InputError(f"the model leaves its input's size open, {declared}: give input_shape=(H, W, C)")
        return declared  # type: ignore[return-value]
    if len(given) != len(declared) or any(w not in (None, g) for w, g in zip(declared, given, strict=True)):
        raise InputError(f"the model reads images of shape {declared}, which input_shape={tuple(given)} does not fit")
    return tuple(given)


def _faster_with_xla(explainer: Explainer) -> bool:
    """Times the program with and without XLA, and says whether XLA is worth its compilation.

    No rule would do: on one and the same CPU, XLA is level for ResNet50V2 and ten times slower for MobileNetV2. Some
    images are tried first, since where XLA loses a whole batch takes it half a minute.
    """
    try:
        # What takes many passes takes the model's own: these few tell enough, in seconds.
        for size in sorted({min(TRIED_IMAGES, explainer.batch_size), explainer.batch_size}):
            plain, compiled = (_seconds_a_batch(explainer.compile(jit, False, size)) for jit in (False, True))
            logger.info("%d images take %.3f s, and %.3f s with XLA", size, plain, compiled)
            # A margin of a tenth: below it, the difference is noise and compilation is not paid back.
            if compiled >= 0.9 * plain:
                return False
        if not explainer._has_few_passes():
            explainer.compile(True).run_empty()  # XLA may refuse the rest
    except (tf.errors.OpError, NotImplementedError) as error:
        logger.info("XLA cannot compile this program, so it runs without: %s", error)
        return False
    return True


def _seconds_a_batch(program: Program) -> float:
    program.run_empty()
    samples = []
    for _ in range(3):
        start = time.perf_counter()
        program.run_empty()
        samples.append(time.perf_counter() - start)
        if samples[-1] > 1:  # long batches need no repetition
            break
    return median(samples)


def _ran_out_of_memory(error: Exception) -> bool:
    # XLA reports it as an internal error, by this word.
    return isinstance(error, tf.errors.ResourceExhaustedError | MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
