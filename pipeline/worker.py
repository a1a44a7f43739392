"""The one door to `explainers`: a model loaded once, explaining batches of pixels."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
import platform
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import explainers as ex
from explainers.compiled import FAITHFULNESS, PREPROCESSES
from explainers.devices import gaining_precision, prepare_devices
from explainers.errors import ExplainerError
from pipeline import models
from pipeline.class_names import load_class_names
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.layout import as_file_name
from pipeline.progress import Counter
from pipeline.records import SCHEMA_VERSION

logger = logging.getLogger(__name__)

_SCALING_LAYERS = {"Rescaling", "Normalization"}


@dataclass(frozen=True)
class BatchResult:
    """What the model says of n images."""

    logits: np.ndarray  # (n, L) float32
    probabilities: np.ndarray  # (n, L) float32
    targets: np.ndarray  # (n, K) int32
    maps: dict[str, np.ndarray]  # method -> (n, h, w, K) float32, raw
    shown: dict[str, np.ndarray]  # the same as their papers show them, in [0, 1]; empty if there are no overlays
    metrics: dict[str, dict[str, np.ndarray]]  # method -> metric -> (n, K) float32


class Worker:
    """A model with its compiled explainers; make one a process, and call it from any thread.

    Attributes:
        config: the job, with `jit` and `precision` decided.
        input_size: (height, width) of the model, pixels.
        n_classes: L.
        class_names: one a class, or None.
        model_digest: SHA-256 of the model.
        metadata: what every Parquet file says of where its numbers come from.
    """

    def __init__(self, config: RunConfig):
        try:
            self._load(config)
        except ExplainerError as error:
            raise ConfigError(str(error)) from error

    def _load(self, config: RunConfig) -> None:
        config = _name_methods(config)  # a misspelt method is told before the model is loaded
        self.config = config
        prepare_devices()
        self.class_names = load_class_names(config.class_names) if config.class_names else None
        model, self.model_digest = models.load_model(config.model, config.allow_unsafe_model)
        self.exposed = _expose(model, config)
        self.n_classes = self.exposed.n_classes
        if self.class_names is not None and len(self.class_names) != self.n_classes:
            raise ConfigError(
                f"--class-names {config.class_names!r} holds {len(self.class_names)} names, and the model has "
                f"{self.n_classes} classes"
            )
        self.preprocess = config.preprocess or _tell_preprocess(config.model, self.exposed)
        preprocess: Any = self.preprocess
        if self.preprocess not in PREPROCESSES:
            preprocess = models.load_callable(self.preprocess, "--preprocess")
        precision = gaining_precision() if config.precision == "auto" else config.precision
        columns = config.parsed_targets.columns(self.n_classes)
        _check_targets(config, columns, self.n_classes)
        try:
            self.explainer = ex.Explainer(
                self.exposed,
                config.methods,
                top_k=columns,
                batch_size=config.batch_size,
                input_shape=_input_shape(self.exposed, config),
                preprocess=preprocess,
                jit="auto" if config.jit == "auto" else config.jit == "on",
                metrics=[name for name in config.metrics if name in FAITHFULNESS],
                precision=precision,
            )
            self.explainer.warm_up()
        except (ExplainerError, ConfigError):
            raise
        except Exception as error:  # TensorFlow's own errors, and those of a user's --preprocess
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"one batch could not be explained: {type(error).__name__}: {reason}") from error
        if precision != "float32":
            logger.warning(
                "in %s the logits of noise are off by %.1e of the largest", precision, self.explainer.deviation
            )
        # Decided once, here: workers in other processes must not measure again, and come to another program.
        self.config = dataclasses.replace(config, jit="on" if self.explainer.jit else "off", precision=precision)
        self.input_size = self.explainer.input_shape[:2]
        self.metadata = self._describe()
        loads.add(1)

    @property
    def batch_size(self) -> int:
        """How many images the program takes at a time: what the job asks for, or what fits in memory."""
        return self.explainer.batch_size

    @property
    def loads(self) -> int:
        """How many models this process has loaded by now: one, unless it works on jobs of several models."""
        return loads.value

    def explain(self, images: Sequence[np.ndarray], targets: Sequence[Sequence[int]]) -> BatchResult:
        """Explains at most as many images as the job's batches have.

        Args:
            images: (H, W, 3) uint8 each.
            targets: the classes of each; `PREDICTED` where the model chooses.
        """
        pixels = np.stack(images)
        if self.explainer.input_shape[-1] == 1:
            pixels = _to_grey(pixels)
        explanation = self.explainer(pixels, np.asarray(targets, np.int32))
        shown = {}
        if self.config.overlays != "none":
            methods = self.explainer.methods
            shown = {name: methods[name].postprocessing(maps).numpy() for name, maps in explanation.maps.items()}
        return BatchResult(
            explanation.logits,
            self.probabilities(explanation.logits),
            explanation.targets,
            explanation.maps,
            shown,
            explanation.metrics,
        )

    def localize(self, values: np.ndarray, boxes: Sequence[Sequence[float]]) -> dict[str, float]:
        """The metrics that --metrics asks for of a map (height, width) in the pixels of its boxes (x, y, w, h)."""
        measures = {"pointing": ex.metrics.pointing_game, "energy": ex.metrics.energy_in_box}
        positive, corners = np.maximum(values, 0), np.asarray(boxes, np.float64)  # nothing positive points nowhere
        return {name: float(measures[name](positive, corners)) for name in self.config.metrics if name in measures}

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Sigmoid where the model ends in one (or has a single unit), else softmax."""
        return self.exposed.probabilities(logits).numpy()

    def label_index(self, label: str | None) -> int | None:
        """The class that a label means: its name, or its index as a number; None if it means none."""
        if label is None:
            return None
        if self.class_names is not None and label in self.class_names:
            return self.class_names.index(label)
        number = re.fullmatch(r"(\d+)(\.0+)?", label)  # 7.0 is what pandas writes for 7 where other labels are missing
        return int(number[1]) if number and int(number[1]) < self.n_classes else None

    def _describe(self) -> dict[str, str]:
        return {
            "schema_version": str(SCHEMA_VERSION),
            "config_digest": self.config.digest(),
            "model": self.config.model,
            "model_digest": self.model_digest,
            "activation_layer": self.exposed.activation_layer,
            "logits_layer": self.exposed.logits_layer,
            "probability": self.exposed.probability or "",
            "preprocess": self.preprocess,
            "class_names": json.dumps(self.class_names),
            "versions": json.dumps(versions(), sort_keys=True),
        }


loads = Counter()
"""How many models this process has loaded."""

_told_loads = Counter()
_workers: weakref.WeakValueDictionary[str, Worker] = weakref.WeakValueDictionary()  # those that somebody holds
_latest: list[Worker] = []  # and one more, which nobody may hold yet, or any more: memory is for batches
_lock = threading.Lock()


def shared_worker(config: RunConfig) -> Worker:
    """The process's one worker for a configuration, loaded by whoever asks first.

    The launcher, which loads the model to validate the job, and a runner in the same process so share it.
    """
    with _lock:
        worker = _workers.get(_key(config))
        if worker is None:
            _latest.clear()  # before the next one needs room
            worker = Worker(config)
            _workers.update({_key(config): worker, _key(worker.config): worker})
            _latest.append(worker)
        return worker


def new_loads() -> int:
    """How many models this process has loaded since this was asked last."""
    with _lock:
        new = loads.value - _told_loads.value
        _told_loads.add(new)
    return new


def _key(config: RunConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)


def versions() -> dict[str, str]:
    """The versions of what computes the numbers."""
    packages = ("beamcam", "tensorflow", "keras", "numpy", "pillow", "pyarrow")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _expose(model: Any, config: RunConfig) -> ex.Exposed:
    named = config.layer or config.logits_layer or config.reshape
    if named or any(ex.methods.get_method(name).spatial for name in config.methods):
        return ex.expose(model, config.layer, config.logits_layer, config.parsed_reshape)
    return ex.inspection.ensure_exposed(model, spatial=False)


def _name_methods(config: RunConfig) -> RunConfig:
    """The configuration with methods as the registry writes them, whatever blanks they came with."""
    names = tuple(ex.methods.get_method(name).name for name in config.methods)
    if len({as_file_name(name) for name in names}) < len(names):
        raise ConfigError(f"--methods names a method twice: {', '.join(names)}")
    return dataclasses.replace(config, methods=names)


def _tell_preprocess(spec: str, exposed: ex.Exposed) -> str:
    mode = models.application_mode(spec)
    if mode is not None:
        return mode
    # A model that scales its pixels does so in its first layers.
    if any(type(step.operation).__name__ in _SCALING_LAYERS for step in exposed.graph.steps[:4]):
        return "none"
    raise ConfigError(
        "--preprocess is needed, since the model does not scale its pixels itself: tf for x/127.5-1, torch or caffe "
        "for ImageNet's means, unit for x/255, none for raw pixels, or module:function"
    )


def _input_shape(exposed: ex.Exposed, config: RunConfig) -> tuple[int, int, int]:
    declared = exposed.split.input_slots[0].shape
    if len(exposed.split.input_slots) != 1 or len(declared) != 4 or declared[-1] not in (1, 3):
        shapes = ", ".join(str(slot.shape) for slot in exposed.split.input_slots)
        raise ConfigError(f"a model for images reads one input (N, H, W, 3) or (N, H, W, 1), and this one {shapes}")
    height, width = config.input_size or declared[1:3]
    if height is None or width is None:
        raise ConfigError("the model leaves the size of its input open: give --input-size, such as 224 or 224x320")
    return height, width, declared[-1]


def _check_targets(config: RunConfig, columns: int, n_classes: int) -> None:
    wrong = [index for index in config.parsed_targets.ids if not 0 <= index < n_classes]
    if wrong or columns > n_classes:
        raise ConfigError(
            f"--targets {config.targets} does not fit a model of {n_classes} classes, 0 to {n_classes - 1}"
        )


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    """RGB to one channel by Rec. 601 luma, as Pillow weighs it."""
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    return np.rint(luma).astype(np.uint8)[..., np.newaxis]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe_methods() -> list[str]:
    """The table of methods as lines of text."""
    rows = [("name", "method", "needs", "cost", "paper", "options")]
    rows += [(m.name, m.title, m.needs, m.cost, m.paper, ", ".join(m.options)) for m in ex.METHODS.values()]
    rows += [
        (f"{m.name}(METHOD)", m.title, "what the method needs", m.cost, m.paper, ", ".join(m.options))
        for m in ex.methods.META_METHODS.values()
    ]
    return [
        *_align(rows),
        "cost: f forward, h backward through the head, b backward through the model; k targets, C channels",
        "options stand in brackets: scorecam(channels=32), meta.smooth(gradcam, repetitions=8)",
    ]


def describe_model(config: RunConfig) -> list[str]:
    """A model's layers, the signal and the logits that will be used, the methods that fit, and warnings.

    Raises:
        ConfigError: it cannot be loaded or exposed.
    """
    model, digest = models.load_model(config.model, config.allow_unsafe_model)
    no_signal = ""
    try:
        exposed = ex.expose(model, config.layer, config.logits_layer, config.parsed_reshape)
    except ExplainerError as error:
        no_signal = str(error)
        exposed = _expose_without_signal(model, config, error)
    marks = {exposed.activation_layer: "<- signal", exposed.logits_layer: "<- logits"}
    rows = [("layer", "type", "output", "")]
    for step in exposed.graph.steps:
        kind = type(step.layers[0] if step.layers else step.operation).__name__
        rows.append((step.name, kind, str(step.outputs[0].shape[1:]), marks.get(step.name, "")))
    lines = [*_align(rows), f"model {model.name}, {model.count_params():,} parameters, sha256 {digest[:16]}"]
    lines.append(
        f"signal {exposed.activation_layer} {exposed.activation_shape[1:]}, logits {exposed.logits_layer} "
        f"({exposed.n_classes} classes), {exposed.probability or 'nothing'} taken off"
    )
    for name, method in ex.METHODS.items():
        reason = no_signal if no_signal and method.spatial else _why_not(exposed, name)
        lines.append(f"{name}: does not fit: {reason}" if reason else f"{name}: fits")
    return [*lines, *(f"warning: {text}" for text in _warnings(config.model, exposed))]


def _why_not(exposed: ex.Exposed, name: str) -> str | None:
    check = ex.METHODS[name].check
    try:
        if check is not None:
            check(exposed)
    except ExplainerError as error:
        return str(error)
    return None


def _expose_without_signal(model: Any, config: RunConfig, reason: ExplainerError) -> ex.Exposed:
    """For the methods that need no spatial signal, as a job with them alone exposes a model."""
    if config.layer or config.logits_layer or config.reshape:
        raise ConfigError(str(reason)) from reason
    try:
        return ex.inspection.ensure_exposed(model, spatial=False)
    except ExplainerError as error:
        raise ConfigError(str(error)) from error


def _warnings(spec: str, exposed: ex.Exposed) -> list[str]:
    warnings = []
    try:
        _tell_preprocess(spec, exposed)
    except ConfigError as error:
        warnings.append(str(error))
    if exposed.probability is None:
        warnings.append("no softmax or sigmoid was found at the end: the output is taken for logits as it is")
    return warnings


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
