"""A findings.json of each schema version, which every later program must read; it was written by the demo's audit."""

import json
from pathlib import Path

import jsonschema
import pytest

import pipeline.audit
from pipeline.audit.findings import SCHEMA_VERSION, Finding

FOLDER = Path(__file__).parent / f"findings-{SCHEMA_VERSION}"
SCHEMA = json.loads((Path(pipeline.audit.__file__).parent / "findings.schema.json").read_text())


def golden() -> dict:
    return json.loads((FOLDER / "findings.json").read_text())


def test_there_is_a_golden_file_of_the_present_version() -> None:
    assert golden()["schema_version"] == SCHEMA_VERSION


def test_the_golden_file_is_what_the_schema_says() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(golden(), SCHEMA)


def test_findings_of_the_golden_file_are_read_and_written_as_they_were() -> None:
    findings = [Finding.from_dict(one) for one in golden()["findings"]]
    assert [one.to_dict() for one in findings] == golden()["findings"]
    first = findings[0]
    assert (first.rule, first.severity, str(first.scope), first.n) == ("BC101", "error", "octagon", 72)
    assert (first.place, first.evidence["confirmed"], len(first.examples.worst)) == ("bottom-right corner", True, 6)


@pytest.mark.parametrize("name", ["findings", "rules", "run", "counts"])
def test_the_schema_refuses_what_it_does_not_know(name: str) -> None:
    content = golden()
    target = content[name][0] if isinstance(content[name], list) else content[name]
    target["unheard_of"] = 1
    with pytest.raises(jsonschema.ValidationError, match="unheard_of"):
        jsonschema.validate(content, SCHEMA)
