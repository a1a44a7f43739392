"""What an audit says, as data: findings, what each rule came to, and the whole of findings.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
"""Of findings.json; its JSON Schema lies beside this file."""

SEVERITIES = ("info", "warning", "error")
"""From the mildest to the gravest."""

STATES = ("new", "known", "resolved", "suppressed")
"""Against the baseline: not there before, there before, gone since, and told not to be counted by audit.toml."""

TITLES = {
    "BC101": "suspected shortcut",
    "BC102": "attention on the frame",
    "BC103": "suspected wrong labels",
    "BC104": "two classes share their evidence",
    "BC105": "maps that explain nothing",
    "BC106": "diffuse attention",
    "BC107": "fragmented attention",
    "BC108": "attention off the object",
    "BC109": "accuracy depends on where the model looks",
    "BC110": "small attention cluster",
    "BC201": "attention moved",
    "BC202": "mean map changed",
    "BC203": "predictions changed",
    "BC204": "class accuracy changed",
    "BC205": "class mix changed",
    "BC206": "statistic drifted",
    "BC301": "incomplete run",
    "BC302": "not comparable",
    "BC303": "class missing or small",
    "BC304": "expired ignore",
}
"""Every rule's name, by its id."""


@dataclass(frozen=True)
class Scope:
    """What a finding is about: a class, a pair of classes, or (all None) the whole data set."""

    index: int | None = None  # class index
    name: str | None = None  # the class's name, or "class 3" where the run has no names
    by: str | None = None  # how images come to the class: "predicted" or "label"
    other: int | None = None  # the second class of a pair
    other_name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it."""
        return {
            "class": self.index,
            "name": self.name,
            "by": self.by,
            "other": self.other,
            "other_name": self.other_name,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scope:
        """The inverse of `to_dict`."""
        return cls(values["class"], values["name"], values["by"], values["other"], values["other_name"])

    def __str__(self) -> str:
        if self.index is None:
            return "all images"
        return f"{self.name} / {self.other_name}" if self.other is not None else str(self.name)


DATASET = Scope()
"""The scope of findings on all images together."""


@dataclass(frozen=True)
class Example:
    """An image that shows a finding."""

    id: str
    uri: str

    def to_dict(self) -> dict[str, str]:
        """As findings.json has it."""
        return {"id": self.id, "uri": self.uri}


@dataclass(frozen=True)
class Examples:
    """Images of a finding: those that show it most, and some of all that it is about, by hash."""

    worst: tuple[Example, ...] = ()
    random: tuple[Example, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it."""
        return {"worst": [e.to_dict() for e in self.worst], "random": [e.to_dict() for e in self.random]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Examples:
        """The inverse of `to_dict`."""
        return cls(*(tuple(Example(e["id"], e["uri"]) for e in values[name]) for name in ("worst", "random")))


@dataclass(frozen=True)
class Finding:
    """One thing that a rule found; `severity` is "error", "warning" or "info", `state` one of `STATES`."""

    rule: str  # "BC101"
    severity: str
    scope: Scope
    value: float  # what was measured, in the unit of the threshold
    threshold: float
    n: int  # images that the value is made of
    message: str  # one line with the numbers in words
    action: str  # one line: what to do about it
    formula: str  # one line: how the value is computed
    ci: tuple[float, float] | None = None  # 95 % confidence interval, of the share that the message tells
    region: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 in [0, 1] of the original image
    place: str | None = None  # the region in words, such as "bottom-right corner"
    examples: Examples = Examples()
    files: str | None = None  # path beside findings.json: all images of the finding
    state: str = "new"
    evidence: Mapping[str, Any] = field(default_factory=dict)  # further measurements, such as those of --confirm

    @property
    def key(self) -> str:
        """Twelve hex digits that the same finding has every night: of its rule, its scope and where its region lies.

        Of the region it is the third of the image, across and down, that its centre lies in: most nights a region is a
        cell larger, smaller or farther.
        """
        scope = [self.scope.index, self.scope.name, self.scope.other, self.scope.other_name]
        text = json.dumps([self.rule, scope, None if self.region is None else _third_of(self.region)])
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()[:12]

    @property
    def counts(self) -> bool:
        """Whether it is there now, and not to be ignored."""
        return self.state in ("new", "known")

    def to_dict(self) -> dict[str, Any]:
        """As findings.json has it; numbers with six significant digits."""
        return {
            "key": self.key,
            "rule": self.rule,
            "title": TITLES[self.rule],
            "severity": self.severity,
            "state": self.state,
            "scope": self.scope.to_dict(),
            "value": rounded(self.value),
            "threshold": rounded(self.threshold),
            "ci": rounded(self.ci),
            "n": int(self.n),
            "region": rounded(self.region),
            "place": self.place,
            "formula": self.formula,
            "message": self.message,
            "action": self.action,
            "examples": self.examples.to_dict(),
            "files": self.files,
            "evidence": rounded(dict(self.evidence)),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """The inverse of `to_dict`, to six digits.

        Raises:
            KeyError: something is missing.
            TypeError: it is of another type.
            ValueError: there is no such rule, severity or state, or a number is none.
        """
        known = (("rule", TITLES), ("severity", SEVERITIES), ("state", STATES))
        wrong = [values[name] for name, valid in known if values[name] not in valid]
        if wrong or not all(isinstance(values[name], int | float) for name in ("value", "threshold", "n")):
            raise ValueError(f"no finding of this version: {wrong}")
        plain = ("rule", "severity", "value", "threshold", "n", "message", "action", "formula")
        more = ("place", "files", "state", "evidence")
        return cls(
            **{name: values[name] for name in (*plain, *more)},
            scope=Scope.from_dict(values["scope"]),
            ci=_as_tuple(values["ci"]),
            region=_as_tuple(values["region"]),
            examples=Examples.from_dict(values["examples"]),
        )


@dataclass(frozen=True)
class RuleResult:
    """What a rule came to, also when it found nothing."""

    rule: str
    ran: bool
    reason: str | None = None  # why it did not run
    n_tested: int = 0  # classes, pairs or images that it looked at
    findings: tuple[Finding, ...] = ()
    measurements: Mapping[str, Any] = field(default_factory=dict)  # what it measured, whether or not it found anything

    @classmethod
    def skipped(cls, rule: str, reason: str) -> RuleResult:
        """Of a rule that could not run."""
        return cls(rule, ran=False, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Its line in findings.json; findings and measurements stand in lists of their own."""
        return {
            "id": self.rule,
            "title": TITLES[self.rule],
            "ran": self.ran,
            "reason": self.reason,
            "n_tested": self.n_tested,
            "n_found": len(self.findings),
        }


@dataclass(frozen=True)
class Audit:
    """The content of findings.json."""

    tool: str  # "beamcam 0.1.0"
    run: Mapping[str, Any]  # {id, n_images, n_failed, fingerprints}
    baseline: Mapping[str, Any]  # {id, rubber_stamp, comparable: {paired, class, dataset}, differences: [...]}
    results: tuple[RuleResult, ...]  # in the order of their ids
    findings: tuple[Finding, ...]  # the gravest first
    omitted: Mapping[str, int] = field(default_factory=dict)  # rule -> findings beyond the limit of a rule

    @property
    def status(self) -> str:
        """`error` or `findings` by the gravest that counts; `ok` if there is none above info."""
        counted = [finding.severity for finding in self.findings if finding.counts]
        if "error" in counted:
            return "error"
        return "findings" if "warning" in counted else "ok"

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity; those that are suppressed are counted apart, resolved ones not at all."""
        counts = dict.fromkeys(("error", "warning", "info", "suppressed"), 0)
        for finding in self.findings:
            if finding.state == "suppressed":
                counts["suppressed"] += 1
            elif finding.state != "resolved":
                counts[finding.severity] += 1
        return counts

    def reaches(self, severity: str) -> bool:
        """Whether any finding that counts is of that severity or graver; `never` is reached by none."""
        if severity == "never":
            return False
        graver = SEVERITIES[SEVERITIES.index(severity) :]
        return any(self.counts[name] for name in graver)

    def to_dict(self) -> dict[str, Any]:
        """The content of findings.json, for `json.dumps(..., sort_keys=True)`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "tool": self.tool,
            "run": rounded(dict(self.run)),
            "baseline": rounded(dict(self.baseline)),
            "status": self.status,
            "counts": self.counts,
            "rules": [result.to_dict() for result in self.results],
            "findings": [finding.to_dict() for finding in self.findings],
            "omitted": dict(self.omitted),
            "measurements": {r.rule: rounded(dict(r.measurements)) for r in self.results if r.measurements},
        }


def rounded(value: Any) -> Any:
    """Numbers with six significant digits, however deep; what is not finite becomes None, NumPy's types Python's."""
    if isinstance(value, Mapping):
        return {str(name): rounded(item) for name, item in value.items()}
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return rounded(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def with_state(finding: Finding, state: str) -> Finding:
    """The finding in another state."""
    return dataclasses.replace(finding, state=state)


def _as_tuple(values: Sequence[float] | None) -> Any:
    return None if values is None else tuple(values)


def _third_of(region: Sequence[float]) -> list[int]:
    x0, y0, x1, y1 = region
    return [min(int(1.5 * (low + high)), 2) for low, high in ((x0, x1), (y0, y1))]
