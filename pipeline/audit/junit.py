"""An audit as a JUnit file, which build servers show: a test for each rule."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from pipeline.audit.findings import SEVERITIES, TITLES, Audit, Finding, RuleResult
from pipeline.wording import shown


def to_junit(audit: Audit, fail_on: str) -> bytes:
    """JUnit XML: a rule fails if a finding of it counts and is of that severity or graver; `never` fails none."""
    graver = SEVERITIES[SEVERITIES.index(fail_on) :] if fail_on in SEVERITIES else ()
    cases = [_case(result, audit, graver) for result in audit.results]
    failed = sum(case.find("failure") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "skipped": str(skipped), "errors": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "beamcam audit", **counts})
    suite.extend(cases)
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True)


def _case(result: RuleResult, audit: Audit, graver: tuple[str, ...]) -> ET.Element:
    case = ET.Element("testcase", {"classname": "beamcam.audit", "name": f"{result.rule} {TITLES[result.rule]}"})
    found = [finding for finding in audit.findings if finding.rule == result.rule and finding.counts]
    failing = [finding for finding in found if finding.severity in graver]
    if failing:
        told = f"{len(failing)} findings" if len(failing) > 1 else shown(failing[0].message)
        failure = ET.SubElement(case, "failure", {"message": told, "type": failing[0].severity})
        failure.text = "\n".join(map(_line, failing))
    elif not result.ran:
        ET.SubElement(case, "skipped", {"message": shown(result.reason or "")})
    elif found:
        ET.SubElement(case, "system-out").text = "\n".join(map(_line, found))
    return case


def _line(finding: Finding) -> str:
    return shown(f"{finding.severity}: {finding.message}; {finding.action}")
