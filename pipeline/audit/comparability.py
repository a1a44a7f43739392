"""What decides whether two runs can be compared, layer by layer: BC302."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import parquet, storage
from pipeline.audit.advice import found_by
from pipeline.audit.findings import DATASET, RuleResult
from pipeline.errors import RunError
from pipeline.layout import RunLayout
from pipeline.reading import Run
from pipeline.sums import Sums

LAYERS = ("paired", "class", "dataset", "attention")
"""What is compared: images one by one, classes, the whole run, and maps in any of these."""

PREDICTIONS_HANG_ON = ("model_digest", "logits_layer", "probability", "preprocess", "resize", "input_size", "precision")

MAPS_HANG_ON = (*PREDICTIONS_HANG_ON, "layer", "reshape", "method")


@dataclass(frozen=True)
class Facts:
    """What a run was made of."""

    run: str  # its folder's uri
    n_inputs: int
    n_shards: int
    model_digest: str
    class_names: tuple[str, ...] | None = None
    method: str | None = None
    layer: str | None = None  # the spatial signal's
    logits_layer: str | None = None
    probability: str | None = None
    preprocess: str | None = None
    resize: str | None = None
    reshape: str | None = None
    input_size: tuple[int, ...] | None = None
    precision: str | None = None
    targets: str | None = None
    model: str | None = None  # as it was named
    input_digest: str | None = None
    finished: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, method: str | None) -> Facts:
        """Of a finished run, as its run.json and manifest tell.

        Args:
            run: the run.
            method: of its methods the one that is audited.

        Raises:
            RunError: run.json is damaged.
        """
        try:
            return cls._of(run, method)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise RunError(f"run.json of {run.path!r} is damaged: {type(error).__name__}: {error}") from error

    @classmethod
    def _of(cls, run: Run, method: str | None) -> Facts:
        summary, config = run.summary, run.summary.get("config") or {}
        names, size = summary.get("class_names"), config.get("input_size")
        return cls(
            run=run.path,
            n_inputs=int(summary["inputs"]),
            n_shards=int(summary["shards"]),
            model_digest=str(summary["model_digest"]),
            class_names=None if names is None else tuple(map(str, names)),
            method=method,
            layer=summary.get("activation_layer"),
            logits_layer=summary.get("logits_layer"),
            probability=summary.get("probability"),
            preprocess=summary.get("preprocess"),
            resize=config.get("resize"),
            reshape=config.get("reshape"),
            input_size=None if size is None else tuple(size),
            precision=config.get("precision", "float32"),
            targets=config.get("targets"),
            model=summary.get("model") or config.get("model"),
            input_digest=_input_digest(run),
            finished=summary.get("finished"),
            versions=dict(summary.get("versions") or {}),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """The inverse of `to_dict`; names that a later version may add are passed over."""
        known = {item.name for item in dataclasses.fields(cls)}
        tuples = {name: tuple(values[name]) for name in ("class_names", "input_size") if values.get(name) is not None}
        return cls(**{name: value for name, value in {**values, **tuples}.items() if name in known})

    def fingerprints(self) -> dict[str, Any]:
        """What findings.json says of how the run was made: all but the class names and the sizes."""
        left_out = ("run", "class_names", "n_inputs", "n_shards", "finished")
        return {name: value for name, value in self.to_dict().items() if name not in left_out}


@dataclass(frozen=True)
class Comparability:
    """What two runs differ in, and what can be compared all the same."""

    differences: tuple[str, ...] = ()  # one line each, such as "resize: stretch, now crop"
    reasons: Mapping[str, str] = field(default_factory=dict)  # layer -> why it is not compared
    same_predictions: bool = False  # whether the same image has to be predicted alike
    same_maps: bool = False  # whether it has to have the same map

    def reason(self, layer: str) -> str | None:
        """Why a layer is not compared; None if it is."""
        return self.reasons.get(layer)

    def to_dict(self) -> dict[str, bool]:
        """Layer -> whether it is compared, as findings.json has it."""
        return {layer: layer not in self.reasons for layer in LAYERS}

    def result(self) -> RuleResult:
        """BC302: a finding if something could not be compared; the differences are measurements in any case."""
        measured = {"differences": list(self.differences), "skipped": dict(self.reasons)}
        if not self.reasons:
            return RuleResult("BC302", True, None, 1, (), measured)
        skipped = "; ".join(f"{layer}: {reason}" for layer, reason in sorted(self.reasons.items()))
        finding = found_by(
            "BC302", "info", DATASET, value=float(len(self.reasons)), threshold=0.0, n=0,
            message=f"not everything was compared with the baseline: {skipped}", evidence=measured,
        )  # fmt: skip
        return RuleResult("BC302", True, None, 1, (finding,), measured)


def judge(new: Facts | None, old: Facts | None, new_sums: Sums, old_sums: Sums) -> Comparability:
    """What of two runs can be compared.

    Args:
        new: what the run was made of; None is not known, and hinders nothing.
        old: what the baseline was made of.
        new_sums: the run's.
        old_sums: the baseline's.
    """
    reasons = {}
    if new_sums.method != old_sums.method:
        reasons["attention"] = f"the maps are of {old_sums.method} and of {new_sums.method}"
    if (0, 0) in (new_sums.grid, old_sums.grid):
        reasons["attention"] = "one of the runs has no maps"
    differences = [] if new_sums.grid == old_sums.grid else [f"grid: {_grid(old_sums)}, now {_grid(new_sums)}"]
    if new is None or old is None:
        return Comparability(tuple(differences), reasons)
    reasons = {**_why_not_maps(new, old), **reasons}
    if new.class_names != old.class_names:
        reasons |= dict.fromkeys(("class", "paired", "attention"), _why_not_classes(new, old))
    return Comparability(
        differences=(*_differences(new, old), *differences),
        reasons=reasons,
        same_predictions=_agree(new, old, PREDICTIONS_HANG_ON),
        same_maps=_agree(new, old, MAPS_HANG_ON),
    )


def _why_not_maps(new: Facts, old: Facts) -> dict[str, str]:
    """Another model may well have another layer, and take its pixels otherwise; the same one may not."""
    hang_on = ["resize"]
    if new.model_digest == old.model_digest:
        hang_on += ["layer", "reshape", "preprocess", "input_size"]
    changed = [name for name in hang_on if getattr(new, name) != getattr(old, name)]
    if _explained_classes(new) != _explained_classes(old):
        changed.append("targets")
    words = [f"{name} was {getattr(old, name)} and is {getattr(new, name)}" for name in changed]
    return {"attention": ", ".join(words)} if words else {}


def _explained_classes(facts: Facts) -> str:
    """Whose maps an audit sees: the predicted class's wherever there are such."""
    targets = facts.targets or "top:1"
    return targets if targets == "label" or targets.startswith("ids:") else "predicted"


def _why_not_classes(new: Facts, old: Facts) -> str:
    if new.class_names is None or old.class_names is None:
        return "one of the runs has no class names"
    if len(new.class_names) != len(old.class_names):
        return f"there were {len(old.class_names)} classes, and are {len(new.class_names)}"
    both = zip(old.class_names, new.class_names, strict=True)
    number, names = next((i, names) for i, names in enumerate(both) if names[0] != names[1])
    return f"class {number} was {names[0]!r} and is {names[1]!r}"


def _differences(new: Facts, old: Facts) -> list[str]:
    plain = [name for name in (*MAPS_HANG_ON, "targets", "input_digest") if getattr(new, name) != getattr(old, name)]
    lines = [f"{name}: {_short(getattr(old, name))}, now {_short(getattr(new, name))}" for name in plain]
    if new.class_names != old.class_names:
        lines.append(f"class_names: {_why_not_classes(new, old)}")
    packages = sorted({*old.versions, *new.versions})
    return lines + [
        f"{name}: {old.versions.get(name)}, now {new.versions.get(name)}"
        for name in packages
        if old.versions.get(name) != new.versions.get(name)
    ]


def _agree(new: Facts, old: Facts, names: tuple[str, ...]) -> bool:
    return all(getattr(new, name) == getattr(old, name) for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _grid(sums: Sums) -> str:
    return f"{sums.grid[0]}x{sums.grid[1]}"


def _input_digest(run: Run) -> str | None:
    layout = RunLayout(run.path)
    try:
        return parquet.read_metadata(layout.uri(layout.MANIFEST)).get("input_digest")
    except (OSError, ValueError, storage.UnavailableError):
        return None  # nothing hangs on it but a line in the report
