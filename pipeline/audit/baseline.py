"""What a run is compared with: another run's folder or a state that was accepted, and the audits of earlier nights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.audit.comparability import Comparability, Facts
from pipeline.audit.findings import Finding
from pipeline.audit.pairing import Paired, pair_runs
from pipeline.errors import ConfigError, RunError
from pipeline.layout import RunLayout
from pipeline.npz import read_arrays, write_arrays
from pipeline.observations import first_method
from pipeline.reading import Run, open_run
from pipeline.sums import Sums
from pipeline.totals import read_sums

STATE = "baseline.npz"
"""The name of an accepted state, which lies beside the runs that are compared with it."""

FINDINGS = "audit/findings.json"
"""Where a run's audit lies, below the run."""

VERSION = 1
"""Of an accepted state."""

MAX_BYTES = 1 << 30  # that a state from anybody may take
MAX_FINDINGS = 1 << 28


@dataclass(frozen=True)
class Baseline:
    """A run to compare with, as far as it is needed."""

    uri: str  # where it was read
    facts: Facts
    sums: Sums
    findings: tuple[Finding, ...] | None = None  # of its audit; None if it was not audited

    def open_run(self) -> Run | None:
        """The run itself, to look at its images; None if it is no longer there, or another one by now."""
        try:
            run = open_run(self.facts.run)
        except (RunError, OSError, ValueError):
            return None
        same = (
            run.summary["model_digest"] == self.facts.model_digest
            and run.summary.get("finished") == self.facts.finished
        )
        return run if same else None


def read_baseline(where: str, method: str | None = None) -> Baseline:
    """Reads a baseline.

    Args:
        where: a run's folder, or a file that `accept` wrote.
        method: whose maps to compare; None for the first of the run's methods, or the accepted one.

    Raises:
        ConfigError: there is neither, or it has no sums of the method.
        RunError: the run is not finished, or damaged.
    """
    uri = storage.absolute(where)
    if uri.endswith(".npz"):
        baseline = _read_state(uri)
        if method is not None and baseline.sums.method != method:
            raise ConfigError(
                f"the baseline {where!r} has sums of {baseline.sums.method!r}, not of {method!r}: "
                "accept a run by that method as well, or give a run's folder"
            )
        return baseline
    if not storage.exists(RunLayout(uri).uri(RunLayout.SUMMARY)):
        raise ConfigError(
            f"the baseline {where!r} is neither a finished run nor a file that `beamcam audit accept` wrote: "
            "check the path"
        )
    return describe_run(open_run(uri), method)


def describe_run(run: Run, method: str | None = None) -> Baseline:
    """A finished run as one to compare with.

    Raises:
        ConfigError: it has no maps of the method.
        RunError: it is damaged.
    """
    method = choose_method(run, method)
    return Baseline(run.path, Facts.of(run, method), read_sums(run, method), read_findings(run, method))


def choose_method(run: Run, method: str | None = None) -> str:
    """The method whose maps are looked at: the one that was asked for, or the run's first.

    Raises:
        ConfigError: the run has no maps of the method.
        RunError: run.json does not say what its methods are.
    """
    first = first_method(run.summary)
    methods = run.summary["config"]["methods"]
    if method is not None and method not in methods:
        known = ", ".join(map(str, methods))
        raise ConfigError(f"the run {run.path!r} has no maps of {method!r}: name one of its methods, {known}")
    return method or first


def default_state(run: str) -> str:
    """Where the accepted state of a run lies unless another place is named: beside its folder."""
    parent, _, _ = storage.absolute(run).rstrip("/").rpartition("/")
    return storage.join(parent or "/", STATE)


def accept(run: str, target: str | None = None, method: str | None = None) -> str:
    """Makes a finished run the baseline of later ones.

    The state holds the run's sums, what it was made of and what its audit found. The run itself may be removed later:
    only the comparison of single images needs it.

    Args:
        run: its folder.
        target: the file to write, which ends in .npz; None for `default_state`.
        method: whose maps; None for the first.

    Returns:
        The file's uri.

    Raises:
        ConfigError: the target cannot be written, or is no .npz, or the run has no maps of the method.
        RunError: there is no finished run.
    """
    target = default_state(run) if target is None else storage.absolute(target)
    if not target.endswith(".npz"):
        raise ConfigError(f"a baseline is written to a file that ends in .npz, not to {target!r}: name it so")
    data = encode_state(describe_run(open_run(run), method))
    try:
        storage.write_bytes(target, data)
    except OSError as error:
        raise ConfigError(f"the baseline {target!r} cannot be written: {error}") from error
    return target


def encode_state(baseline: Baseline) -> bytes:
    """A baseline as a file: the same bytes for the same run."""
    findings = None if baseline.findings is None else [finding.to_dict() for finding in baseline.findings]
    about = json.dumps({"version": VERSION, "facts": baseline.facts.to_dict(), "findings": findings}, sort_keys=True)
    return write_arrays(
        {
            "about": np.frombuffer(about.encode(), np.uint8),
            "sums": np.frombuffer(baseline.sums.to_bytes(), np.uint8),
        }
    )


def read_findings(run: Run, method: str) -> tuple[Finding, ...] | None:
    """What a run's audit found in a method's maps; None if it was not audited by them, or its file is damaged."""
    content = _read_json(RunLayout(run.path).uri(FINDINGS))
    try:
        if content is None or content["run"]["method"] != method:
            return None
        return tuple(Finding.from_dict(values) for values in content["findings"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_history(run: str, nights: int) -> list[Mapping[str, Any]]:
    """The findings.json of runs beside this one, those with the latest names first, up to so many.

    Runs of a night each are named by their dates: only those whose names come before this one's are read.

    Args:
        run: its folder.
        nights: at most.
    """
    parent, _, own = storage.absolute(run).rstrip("/").rpartition("/")
    earlier = [uri for uri in storage.list_folders(parent or "/") if _name(uri) < own]
    found: list[Mapping[str, Any]] = []
    for uri in sorted(earlier, key=_name, reverse=True):
        if len(found) == nights:
            break
        content = _read_json(storage.join(uri, FINDINGS))
        if isinstance(content, dict):
            found.append(content)
    return found


def pair_with(run: Run, baseline: Baseline | None, method: str) -> tuple[Paired | None, str]:
    """What became of the images that a run shares with its baseline, or None and why it is not known.

    Raises:
        RunError: a file of one of the runs is damaged.
    """
    if baseline is None:
        return None, "there is no baseline yet"
    earlier = baseline.open_run()
    if earlier is None:
        return None, f"the baseline's run {baseline.facts.run!r} is no longer there: its images cannot be looked at"
    return pair_runs(run, earlier, method, baseline.sums.method), ""


def describe_baseline(
    baseline: Baseline | None, comparability: Comparability | None, paired: Paired | None
) -> dict[str, Any]:
    """The `baseline` of findings.json.

    Args:
        baseline: what was compared with; None if there is none yet.
        comparability: what `judge` said of both.
        paired: what became of shared images, where that is known.
    """
    if baseline is None or comparability is None:
        nothing = dict.fromkeys(("paired", "class", "dataset", "attention"), False)
        return {"id": None, "rubber_stamp": True, "comparable": nothing, "differences": []}
    comparable = comparability.to_dict()
    return {
        "id": baseline.facts.run,
        "read_from": baseline.uri,
        "finished": baseline.facts.finished,
        "n_images": baseline.sums.n_images,
        "rubber_stamp": False,
        "comparable": {**comparable, "paired": comparable["paired"] and paired is not None},
        "differences": list(comparability.differences),
    }


def _read_state(uri: str) -> Baseline:
    try:
        arrays = read_arrays(storage.read_bytes(uri, MAX_BYTES), MAX_BYTES)
        return _parse_state(uri, json.loads(arrays["about"].tobytes()), arrays["sums"].tobytes())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no baseline {uri!r}: write one with `beamcam audit accept RUN`") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"the baseline {uri!r} cannot be read: {type(error).__name__}: {error}") from error


def _parse_state(uri: str, about: Any, sums: bytes) -> Baseline:
    if about["version"] != VERSION:
        raise ValueError(f"it is of version {about['version']!r}, and this program reads {VERSION}")
    findings = about["findings"]
    parsed = None if findings is None else tuple(Finding.from_dict(values) for values in findings)
    return Baseline(uri, Facts.from_dict(about["facts"]), Sums.from_bytes(sums), parsed)


def _read_json(uri: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri, MAX_FINDINGS))
    except (OSError, ValueError, RecursionError):
        return None


def _name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
