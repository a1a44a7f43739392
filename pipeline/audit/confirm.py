"""Whether the model goes by what looks like a shortcut: take the place away, or paste it elsewhere, and ask again."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline import quiet, storage
from pipeline.audit.findings import Example, Finding
from pipeline.audit.patches import compare_recurrence, describe_part, grow, mask, mirror, transplant
from pipeline.audit.regions import Box
from pipeline.config import RunConfig
from pipeline.decode import decode_reduced
from pipeline.errors import ConfigError, ImageError, RunError
from pipeline.geometry import Geometry, fit_view, make_input
from pipeline.reading import Run
from pipeline.run import config_of_run

FLAGGED, OTHERS = 64, 200
"""Images of the class whose maps peak in the region, and images that are predicted as other classes."""

LEAST = 8
"""Images of either kind that say anything."""

LONGEST = 512
"""Pixels of an image's longest side here, or twice the model's input if that is more."""

Classify = Callable[[Iterable[Image.Image]], np.ndarray]
"""Upright RGB images to probabilities: (n, L) float."""


@dataclass(frozen=True)
class Model:
    """A model to ask, as a run asked it."""

    classify: Classify
    is_of_run: bool  # whether it is the one that made the run
    longest: int = LONGEST  # pixels of an image's longest side


def load_model(spec: str, run: Run, preprocess: str | None = None, allow_unsafe: bool = False) -> Model:
    """Loads a model to be asked as a run's was.

    Args:
        spec: as for `beamcam run --model`.
        run: whose options it is used with.
        preprocess: instead of the run's.
        allow_unsafe: run code that a model file brings along.

    Raises:
        ConfigError: it cannot be loaded, or does not fit the run.
    """
    quiet.import_tensorflow()
    from pipeline.worker import Worker

    worker = Worker(_make_config(spec, run, preprocess, allow_unsafe))
    names = run.class_names
    if names is not None and len(names) != worker.n_classes:
        raise ConfigError(f"--confirm {spec!r} has {worker.n_classes} classes, and the run {len(names)}")
    height, width = worker.input_size

    def classify(images: Iterable[Image.Image]) -> np.ndarray:
        inputs = (_to_input(image, worker.config.resize, (width, height)) for image in images)
        answers = []
        while batch := list(itertools.islice(inputs, worker.batch_size)):
            answers.append(worker.explain(batch, [[0]] * len(batch)).probabilities)
        return np.concatenate(answers)

    is_of_run = worker.model_digest == run.summary["model_digest"]
    return Model(classify, is_of_run, max(LONGEST, 2 * width, 2 * height))


def confirm_shortcut(
    finding: Finding,
    flagged: Sequence[Example],
    others: Sequence[Example],
    model: Model,
    grid: tuple[int, int],
    rise: float,
) -> Finding:
    """A finding of BC101 with what the model said: an error if the place alone makes it see the class elsewhere.

    Args:
        finding: of a class with a region.
        flagged: images of the class whose maps peak there.
        others: images that are predicted as other classes.
        model: to ask.
        grid: of the maps, (h, w).
        rise: of the class's probability, less that by the mirrored place, from which on it is an error.
    """
    assert finding.region is not None
    assert finding.scope.index is not None
    boxes = grow(finding.region, finding.place, grid)
    marked, clean = (_read_images(some, model.longest) for some in (flagged[:FLAGGED], others[:OTHERS]))
    if min(len(marked), len(clean)) < LEAST:
        reason = f"only {len(marked)} images of the class and {len(clean)} others could be read"
        return _not_confirmed(finding, reason)
    measured = measure(model.classify, finding.scope.index, marked, clean, boxes)
    parts, other_parts = (np.stack([describe_part(image, boxes[0]) for image in some]) for some in (marked, clean))
    evidence = {
        **finding.evidence,
        "model_of_run": model.is_of_run,
        **measured,
        **compare_recurrence(parts, other_parts),
    }
    if "transplant_mirrored" not in measured:
        reason = "the place lies around the centre, where no mirrored place tells chance"
        return _not_confirmed(dataclasses.replace(finding, evidence=evidence), reason)
    net = measured["transplant_rise"] - measured["transplant_mirrored"]
    confirmed = net >= rise
    return dataclasses.replace(
        finding,
        severity="error" if confirmed else finding.severity,
        message=f"{finding.message}; {_in_words(finding, measured, confirmed, len(clean))}",
        evidence={**evidence, "confirmed": confirmed},
    )


def measure(
    classify: Classify, index: int, marked: Sequence[Image.Image], clean: Sequence[Image.Image], boxes: Sequence[Box]
) -> dict[str, float]:
    """What becomes of the class's mean probability when the place is masked, and when it is pasted into other images.

    Returns:
        `p_marked`, `p_masked` and `p_clean`, `p_transplanted`, with `mask_drop` and `transplant_rise` between them; and
        the same by the mirrored place as `mask_mirrored` and `transplant_mirrored`, unless there is none.
    """

    def ask(images: Iterable[Image.Image]) -> float:
        return float(classify(images)[:, index].mean())

    def pasted(places: Sequence[Box]) -> Iterator[Image.Image]:
        return (transplant(marked[i % len(marked)], image, places) for i, image in enumerate(clean))

    before, masked = ask(marked), ask(mask(image, boxes) for image in marked)
    unchanged, changed = ask(clean), ask(pasted(boxes))
    measured = {
        "p_marked": before,
        "p_masked": masked,
        "mask_drop": before - masked,
        "p_clean": unchanged,
        "p_transplanted": changed,
        "transplant_rise": changed - unchanged,
    }
    other_side = mirror(boxes)
    if other_side is not None:
        measured["mask_mirrored"] = before - ask(mask(image, other_side) for image in marked)
        measured["transplant_mirrored"] = ask(pasted(other_side)) - unchanged
    return measured


def _in_words(finding: Finding, measured: dict[str, float], confirmed: bool, n: int) -> str:
    name = finding.scope.name
    return (
        f"{'confirmed' if confirmed else 'not confirmed'}: pasted into {n} other images, the place takes p({name}) "
        f"from {measured['p_clean']:.2f} to {measured['p_transplanted']:.2f} (the mirrored place to "
        f"{measured['p_clean'] + measured['transplant_mirrored']:.2f}); masked, from {measured['p_marked']:.2f} to "
        f"{measured['p_masked']:.2f}"
    )


def _not_confirmed(finding: Finding, reason: str) -> Finding:
    return dataclasses.replace(
        finding,
        message=f"{finding.message}; not confirmed: {reason}",
        evidence={**finding.evidence, "confirmed": None, "why_not_confirmed": reason},
    )


def _make_config(spec: str, run: Run, preprocess: str | None, allow_unsafe: bool) -> RunConfig:
    config = config_of_run(run.path)
    if preprocess is None:
        preprocess = run.summary.get("preprocess") or config.preprocess
        if preprocess and ":" in preprocess:  # a run may come from anybody: it is not to say what code is run
            raise ConfigError(
                f"the run was made with --preprocess {preprocess!r}, which is code: say --preprocess with --confirm "
                "if it is yours"
            )
    changes: dict[str, Any] = {
        "model": storage.absolute(spec) if storage.is_local(spec) and storage.exists(spec) else spec,
        "methods": ("gradcam",) if run.summary.get("activation_layer") else config.methods[:1],
        "targets": "top:1",
        "metrics": (),
        "overlays": "none",
        "class_names": None,
        "since": None,
        "jit": "off",
        "precision": "float32",
        "preprocess": preprocess,
        "allow_unsafe_model": allow_unsafe,
    }
    return dataclasses.replace(config, **changes)


def _read_images(examples: Sequence[Example], longest: int) -> list[Image.Image]:
    """Those that can be read and decoded, upright and not larger than needed."""
    with ThreadPoolExecutor(8) as pool:
        return [image for image in pool.map(lambda example: _read_image(example.uri, longest), examples) if image]


def _read_image(uri: str, longest: int) -> Image.Image | None:
    try:
        image = decode_reduced(storage.read_bytes(uri, limit=RunConfig.max_bytes), RunConfig.max_pixels).image
    except (OSError, ImageError, RunError):
        return None
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    return image


def _to_input(image: Image.Image, resize: str, input_size: tuple[int, int]) -> np.ndarray:
    return make_input(image, Geometry(*image.size, fit_view(resize, image.size, input_size)))
