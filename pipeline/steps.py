"""Explaining images without a run on disk: what transforms for other people's pipelines are made of, without Beam."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import threading
import weakref
from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import quiet, storage
from pipeline.config import RunConfig, configure_storage, parse_options
from pipeline.counting import Tally
from pipeline.errors import ConfigError, without_secrets
from pipeline.flow import explain_shards
from pipeline.layout import RunLayout
from pipeline.listing import check_uri
from pipeline.records import Entry, Failure, Record, Shard, image_id

if TYPE_CHECKING:
    from pipeline.worker import Worker

NOWHERE = "-"  # stands for the images and the output that a job must have and a step has not

_OF_A_JOB = ("since", "max_failures")

_at_work: weakref.WeakKeyDictionary[object, RunConfig] = weakref.WeakKeyDictionary()  # the steps of this process
_lock = threading.Lock()


def step_config(config: RunConfig | None = None, **options: Any) -> RunConfig:
    """The configuration of a step that explains images in a pipeline which is not `beamcam run`'s.

    Args:
        config: that of a job, or None. Its `images`, `shard_size` and `labels_from` mean nothing to a step, and its
            `output` only where there are overlays.
        options: those of `beamcam run`, by name: `model`, `methods`, `targets`, `preprocess`, ... They win over
            `config`; without one, `overlays` is "none".

    Raises:
        ConfigError: an option is unknown or wrong, or only a whole job can have it, or it gives a store's secret.
    """
    values = parse_options(options, "the step")
    if config is not None:
        config = dataclasses.replace(config, **values)
    elif not values.get("model"):
        raise ConfigError("a step needs a model: say model='model.keras'")
    else:
        config = RunConfig(**{"images": (NOWHERE,), "output": NOWHERE, "overlays": "none"} | values)
    for name in _OF_A_JOB:
        if getattr(config, name) is not None:
            raise ConfigError(f"{name}={getattr(config, name)!r} is for a whole job, and a step has none: leave it out")
    if config.overlays != "none" and config.output == NOWHERE:
        raise ConfigError(f"overlays={config.overlays!r} needs a folder to write them to: give an output, too")
    _options_of_stores(config)  # here, and not on a worker: a secret would be stored with the pipeline until then
    return config


def load_worker(config: RunConfig, step: object | None = None) -> Worker:
    """The process's one worker for a configuration, see `worker.shared_worker`; its stores' options are now set.

    Args:
        config: the configuration.
        step: who reads with these options from now on, until `end_step` or until nobody holds it any more; None for
            whoever only looks at the model.

    Raises:
        ConfigError: the model cannot be loaded, or does not go with the configuration; or a step that is at work in
            this process has other options of stores, which are the process's.
    """
    claim_stores(config, step)
    try:
        quiet.import_tensorflow()
        from pipeline.worker import shared_worker

        return shared_worker(config)
    except BaseException:
        end_step(step)
        raise


def claim_stores(config: RunConfig, step: object | None) -> None:
    """Sets the options of stores of a step, see `load_worker`; again with each bundle, since a refusal forgets all.

    Raises:
        ConfigError: a step that is at work in this process has other ones.
    """
    with _lock:
        _check_others(config, step)
        configure_storage(config.storage_options, config.storage_timeout)
        if step is not None:
            _at_work[step] = config


def end_step(step: object | None) -> None:
    """Says that a step is done with the options of stores that it has claimed."""
    if step is not None:
        with _lock:
            _at_work.pop(step, None)


def _check_others(config: RunConfig, step: object | None) -> None:
    ours = _options_of_stores(config)

    def others() -> list[RunConfig]:
        return [other for who, other in list(_at_work.items()) if who is not step and _options_of_stores(other) != ours]

    if not others():
        return
    gc.collect()  # the steps of a job that is over may be waiting for it
    for other in others():
        _at_work.clear()  # a job that ends so tears nothing down, and the error itself may hold its steps
        raise ConfigError(
            f"a step with {_describe_stores(config)} cannot begin while one with {_describe_stores(other)} is at work "
            "in the same process, which has one set of them: give all steps of a pipeline the same storage_options and "
            "storage_timeout"
        )


def _options_of_stores(config: RunConfig) -> tuple[dict[str, dict[str, Any]], float]:
    try:
        return storage.parse_options(config.storage_options), config.storage_timeout
    except ValueError as error:
        raise ConfigError(f"--storage-option: {error}") from error


def _describe_stores(config: RunConfig) -> str:
    return f"storage_options={list(config.storage_options)} and storage_timeout={config.storage_timeout}"


def as_entry(image: str | tuple[str, bytes] | Entry) -> Entry | Failure:
    """What is to be explained; a failure if it has no name, or one that must not be written down.

    Args:
        image: a uri, a name with the bytes of an image's file, or what is to be returned.

    Raises:
        TypeError: it is nothing of these.
    """
    match image:
        case str(uri):
            entry = Entry(uri)
        case (str(name), bytes(data)):
            entry = Entry(name, data=data)
        case Entry():
            entry = image
        case _:
            raise TypeError(
                "an image is its uri, a pair of a name and its file's bytes, or a pipeline.Entry, and not "
                f"{type(image).__name__}: {repr(image)[:80]}"
            )
    for name, kinds in {"uri": (str,), "label": (str, NoneType), "data": (bytes, NoneType)}.items():
        if not isinstance(value := getattr(entry, name), kinds):
            raise TypeError(f"the {name} of an image is of type {kinds[0].__name__}, and not {repr(value)[:80]}")
    try:
        _check_name(entry.uri)
    except ConfigError as error:
        shown = without_secrets(entry.uri).encode(errors="backslashreplace").decode()
        return Failure(image_id(shown), shown, "read", "RefusedName", str(error))
    return entry


def as_unnamed(image: bytes | np.ndarray) -> Entry:
    """An image without a name: it is called by the SHA-256 of its file's bytes.

    Args:
        image: the file's bytes; or pixels, (H, W, 3) or (H, W) uint8, which count as the PPM file of them.

    Raises:
        TypeError: it is neither.
    """
    data = _as_ppm(image) if isinstance(image, np.ndarray) else image
    if not isinstance(data, bytes):
        raise TypeError(f"an image is its file's bytes or an array of uint8, and not {type(image).__name__}")
    return Entry(f"sha256:{hashlib.sha256(data).hexdigest()}", data=data)


def explain_entries(entries: Sequence[Entry], worker: Worker, tally: Tally | None = None) -> list[Record | Failure]:
    """What becomes of some images, in order; they are read ahead of the model, and explained in batches.

    Args:
        entries: the images.
        worker: the model, with the configuration.
        tally: gets what was counted.

    Raises:
        RunError: no image was to blame for what went wrong, or a store is away.
    """
    outcomes: list[Record | Failure] = []
    for shard in explain_shards([Shard(0, list(entries))], worker, RunLayout(worker.config.output)):
        outcomes += shard.take_outcomes()
        if tally is not None:
            tally.absorb(shard.tally)
    return outcomes


def _check_name(uri: str) -> None:
    if not uri:
        raise ConfigError("the image has no name: give its uri, or a name beside its bytes")
    check_uri(uri)


def _as_ppm(pixels: np.ndarray) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise TypeError(f"pixels are (H, W, 3) or (H, W) uint8, and not {pixels.shape} {pixels.dtype}")
    kind = "P6" if pixels.ndim == 3 else "P5"
    return f"{kind}\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode() + pixels.tobytes()
