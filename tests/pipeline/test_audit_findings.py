"""Findings as data: keys, JSON, what counts."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pipeline.audit.auditing import encode_json, limit_findings
from pipeline.audit.findings import Audit, Example, Examples, Finding, RuleResult, Scope, rounded, with_state
from pipeline.audit.junit import to_junit

FINDING = Finding(
    "BC101", "warning", Scope(3, "dog", "predicted"), 12.3456789, 4.0, 200, "dog: much of it", "look", "a / b",
    ci=(0.1234567, 0.9), region=(0.857142857, 0.857142857, 1.0, 1.0), place="bottom-right corner",
    examples=Examples((Example("ab" * 16, "/a"),), (Example("cd" * 16, "/b"),)), files="findings.parquet",
    evidence={"energy_z": np.float32(2.5), "nothing": float("nan"), "list": [np.int64(3), (1.23456789,)]},
)  # fmt: skip


def audit_of(*findings: Finding) -> Audit:
    results = (RuleResult("BC101", True, None, 5, findings), RuleResult.skipped("BC108", "no boxes"))
    return Audit("beamcam 0", {"id": "/run"}, {"id": None}, results, findings)


def test_a_finding_is_in_json_what_it_is() -> None:
    content = json.loads(encode_json(FINDING.to_dict()))
    assert Finding.from_dict(content) == dataclasses.replace(
        FINDING,
        value=12.3457,
        ci=(0.123457, 0.9),
        region=(0.857143, 0.857143, 1.0, 1.0),
        evidence={"energy_z": 2.5, "nothing": None, "list": [3, [1.23457]]},
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"rule": "BC999"}, ValueError),
        ({"severity": "fatal"}, ValueError),
        ({"state": "gone"}, ValueError),
        ({"value": "much"}, ValueError),
        ({"value": None}, ValueError),
        ({"severity": []}, ValueError),
        ({"rule": []}, TypeError),
        ({"scope": None}, TypeError),
        ({"scope": {}}, KeyError),
        ({"examples": {"worst": 3, "random": []}}, TypeError),
    ],
    ids=str,
)
def test_a_file_of_another_version_or_from_anybody_is_refused(change: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        Finding.from_dict({**FINDING.to_dict(), **change})


def test_json_is_sorted_and_refuses_what_is_no_number() -> None:
    assert encode_json({"b": "é", "a": 1}) == '{\n "a": 1,\n "b": "é"\n}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"a": float("inf")})


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "BC110"},
        {"scope": Scope(4, "dog", "predicted")},
        {"scope": Scope(3, "cat", "predicted")},
        {"scope": Scope(3, "dog", "predicted", 1, "ant")},
        {"region": (0.0, 6 / 7, 1 / 7, 1.0)},
        {"region": None},
    ],
    ids=str,
)
def test_another_rule_class_or_place_is_another_finding(change: dict) -> None:
    assert dataclasses.replace(FINDING, **change).key != FINDING.key


@pytest.mark.parametrize(
    "change",
    [{"value": 1.0}, {"severity": "error"}, {"state": "known"}, {"message": "x"}, {"region": (5 / 7, 5 / 7, 1.0, 1.0)}],
    ids=str,
)
def test_other_numbers_or_a_region_a_cell_larger_are_the_same_finding(change: dict) -> None:
    assert dataclasses.replace(FINDING, **change).key == FINDING.key
    assert len(FINDING.key) == 12


def test_known_findings_count_and_suppressed_and_resolved_ones_do_not() -> None:
    states = {state: with_state(FINDING, state) for state in ("new", "known", "resolved", "suppressed")}
    audit = audit_of(*states.values())
    assert audit.counts == {"error": 0, "warning": 2, "info": 0, "suppressed": 1}
    assert audit.status == "findings"
    assert (audit.reaches("info"), audit.reaches("warning"), audit.reaches("error")) == (True, True, False)
    assert not audit.reaches("never")
    silent = audit_of(states["resolved"], states["suppressed"])
    assert (silent.status, silent.reaches("info")) == ("ok", False)


def test_an_error_makes_the_status_and_information_does_not() -> None:
    assert audit_of(FINDING, dataclasses.replace(FINDING, severity="error")).status == "error"
    assert audit_of(dataclasses.replace(FINDING, severity="info")).status == "ok"


def test_of_many_findings_the_gravest_stay_and_the_others_are_counted() -> None:
    many = [dataclasses.replace(FINDING, scope=Scope(i, f"c{i}", "predicted"), value=4.0 + i) for i in range(10)]
    many[2] = dataclasses.replace(many[2], severity="error")
    kept, omitted = limit_findings([*many, dataclasses.replace(FINDING, rule="BC102")], most=3)
    assert [finding.scope.index for finding in kept] == [2, 9, 8, 3]
    assert omitted == {"BC101": 7}


def test_junit_has_failures_only_from_the_severity_that_fails() -> None:
    hostile = dataclasses.replace(FINDING, message='<&"\x00\x1b[2J\n')
    xml = to_junit(audit_of(hostile), "warning").decode()
    assert 'failures="1"' in xml
    assert 'message="&lt;&amp;&quot;\\x00\\x1b[2J\\n"' in xml
    assert 'failures="0"' in to_junit(audit_of(hostile), "error").decode()
    assert 'failures="0"' in to_junit(audit_of(hostile), "never").decode()
    assert "<skipped" in xml


def test_numbers_have_six_digits_however_deep_they_are() -> None:
    value = {"a": [np.float64(1 / 3), {"b": (np.arange(2), float("inf"))}], 3: "text", "n": None}
    assert rounded(value) == {"a": [0.333333, {"b": [[0, 1], None]}], "3": "text", "n": None}
