"""What an audit is told by audit.toml: thresholds, severities, and findings that somebody has looked at already."""

from __future__ import annotations

import datetime
import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.audit.findings import SEVERITIES, TITLES, Finding, Scope
from pipeline.errors import ConfigError, as_config_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1_000_000  # of an audit.toml

_Q = 0.005 / 6
"""Six rules ask what chance may do. Where nothing has changed, all together find something in one night of 200."""

THRESHOLDS: dict[str, dict[str, float]] = {
    "BC101": {"lift": 4.0, "least_images": 8, "least_share": 0.05, "confirmed_rise": 0.10},
    "BC102": {"dataset_ratio": 1.3, "class_ratio": 2.0, "least_images": 20},
    "BC103": {"least_images": 1},
    "BC104": {"confusion": 0.05, "correlation": 0.9, "least_images": 20},
    "BC105": {"share": 0.05, "least_images": 3},
    "BC106": {"mads": 4.0, "area": 0.6, "least_images": 20, "least_classes": 5},
    "BC107": {"components": 3, "share": 0.5, "least_images": 20},
    "BC108": {"ratio": 1.0, "least_images": 20, "least_area": 0.06, "most_area": 0.95},
    "BC109": {"difference": 0.15, "q": 0.01, "least_images": 30},
    "BC110": {"lift": 6.0, "least_images": 8, "least_share": 0.05},
    "BC201": {"moved": 0.10, "moved_same_model": 0.03, "moved_error": 0.25, "q": _Q, "least_images": 50},
    "BC202": {"moved": 0.02, "moved_same_model": 0.01, "moved_error": 0.05, "q": _Q, "least_images": 50},
    "BC203": {"flips": 0.001, "median_correlation": 0.99, "lowest_correlation": 0.9},
    "BC204": {"difference": 0.03, "q": _Q, "least_images": 50},
    "BC205": {"largest": 0.01, "variation": 0.05, "q": _Q, "least_images": 50},
    "BC206": {"distance": 0.10, "confidence": 0.02, "empty": 0.05, "q": _Q, "least_images": 50},
    "BC301": {"failed": 0.005, "failed_error": 0.05, "volume": 0.20, "q": _Q},
    "BC302": {},
    "BC303": {"q": _Q, "least_images": 50},
    "BC304": {},
}
"""Rule -> name -> default: what AUDIT's experiments with planted shortcuts came to."""

RULE_KEYS = ("enabled", "severity")

IGNORE_KEYS = ("rule", "class", "until", "reason")


@dataclass(frozen=True)
class Ignore:
    """Findings that somebody has looked at, and does not want to be told again until a day."""

    rule: str
    class_name: str | None  # None: of any class
    until: datetime.date
    reason: str

    def matches(self, finding: Finding) -> bool:
        """Whether a finding is one of these."""
        return finding.rule == self.rule and (self.class_name is None or _is_class(finding.scope, self.class_name))


@dataclass(frozen=True)
class Settings:
    """Everything that an audit can be told beside its command line."""

    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: THRESHOLDS)
    severities: Mapping[str, str] = field(default_factory=dict)  # rule -> what all of its findings are to be
    disabled: frozenset[str] = frozenset()
    ignores: tuple[Ignore, ...] = ()

    def of(self, rule: str) -> Mapping[str, float]:
        """A rule's thresholds by name."""
        return self.thresholds[rule]


def read_settings(uri: str) -> Settings:
    """Reads an audit.toml.

    Raises:
        ConfigError: it cannot be read, or says what no audit understands.
    """
    what = f"--config {uri!r}"
    with as_config_errors(f"{what} cannot be read"):
        data = storage.read_bytes(uri, limit=MAX_BYTES)
    try:
        content = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise ConfigError(f"{what} is no TOML: {error}") from error
    return parse_settings(content, what)


def parse_settings(content: Mapping[str, Any], what: str = "audit.toml") -> Settings:
    """Settings from the content of an audit.toml.

    Raises:
        ConfigError: a rule, a name or a value that is none.
    """
    thresholds = {rule: dict(values) for rule, values in THRESHOLDS.items()}
    severities, disabled = {}, set()
    for rule, values in content.items():
        if rule == "ignore":
            continue
        _check_name(rule, (*TITLES, "ignore"), f"{what} has a table")
        if not isinstance(values, dict):
            raise ConfigError(f"{what}: {rule} is a table, as in [{rule}], not {values!r}")
        for name, value in values.items():
            _check_name(name, (*RULE_KEYS, *thresholds[rule]), f"{what}, [{rule}] has a name")
            if name == "enabled":
                disabled |= (
                    set() if _checked(value, isinstance(value, bool), what, rule, name, "true or false") else {rule}
                )
            elif name == "severity":
                severities[rule] = _checked(value, value in SEVERITIES, what, rule, name, ", ".join(SEVERITIES))
            else:
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
                thresholds[rule][name] = _checked(value, is_number, what, rule, name, "a number of at least 0")
    ignores = content.get("ignore", [])
    if not isinstance(ignores, list):
        raise ConfigError(f"{what}: ignores stand in [[ignore]], with two brackets on either side")
    return Settings(thresholds, severities, frozenset(disabled), tuple(_parse_ignore(item, what) for item in ignores))


def _parse_ignore(item: Any, what: str) -> Ignore:
    what = f"{what}, [[ignore]]"
    if not isinstance(item, dict):
        raise ConfigError(f"{what} is a table, not {item!r}")
    for name in item:
        _check_name(name, IGNORE_KEYS, f"{what} has a name")
    missing = [name for name in ("rule", "until", "reason") if name not in item]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}: nothing is ignored for ever, or without a reason")
    _check_name(item["rule"], tuple(TITLES), f"{what} has a rule")
    return Ignore(item["rule"], _as_text(item.get("class")), _as_date(item["until"], what), str(item["reason"]))


def _check_name(name: Any, valid: tuple[str, ...], what: str) -> None:
    if name not in valid:
        nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise ConfigError(f"{what} {name!r} that no audit knows: {hint}It is one of {', '.join(valid)}")


def _checked(value: Any, is_right: bool, what: str, rule: str, name: str, valid: str) -> Any:
    if not is_right:
        raise ConfigError(f"{what}: {rule}.{name} is {valid}, not {value!r}")
    return value


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _as_date(value: Any, what: str) -> datetime.date:
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    raise ConfigError(f"{what}: until is a day such as 2026-12-31, not {value!r}")


def _is_class(scope: Scope, name: str) -> bool:
    return name in (scope.name, scope.other_name, *(str(i) for i in (scope.index, scope.other) if i is not None))
