"""audit.toml: what it may say, and how it is told what it may not."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.advice import ACTIONS, FORMULAS
from pipeline.audit.auditing import apply_ignores
from pipeline.audit.findings import TITLES, Finding, Scope
from pipeline.audit.settings import THRESHOLDS, Ignore, parse_settings, read_settings
from pipeline.errors import ConfigError

TODAY = datetime.date(2026, 11, 22)


def finding(rule: str = "BC101", name: str = "ant", index: int = 0) -> Finding:
    return Finding(rule, "warning", Scope(index, name, "predicted"), 5.0, 4.0, 100, "", "", "")


def ignore(days: int = 0, rule: str = "BC101", name: str | None = "ant") -> Ignore:
    return Ignore(rule, name, TODAY + datetime.timedelta(days), "known")


def test_every_rule_has_thresholds_a_formula_and_something_to_do() -> None:
    assert set(THRESHOLDS) == set(FORMULAS) == set(ACTIONS) == set(TITLES)


def test_what_is_not_set_stays_as_it_is() -> None:
    settings = parse_settings({"BC101": {"lift": 9}, "BC105": {"severity": "error"}, "BC107": {"enabled": False}})
    assert settings.of("BC101") == {**THRESHOLDS["BC101"], "lift": 9}
    assert THRESHOLDS["BC101"]["lift"] == 4
    assert settings.of("BC102") == THRESHOLDS["BC102"]
    assert settings.severities == {"BC105": "error"}
    assert settings.disabled == {"BC107"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"BC101": {"lifts": 4}}, r"\[BC101\] has a name 'lifts' that no audit knows: did you mean 'lift'\?"),
        ({"ignores": []}, r"has a table 'ignores' that no audit knows: did you mean 'ignore'\?"),
        ({"BC101": {"lift": "4"}}, r"BC101.lift is a number of at least 0, not '4'"),
        ({"BC101": {"lift": True}}, r"BC101.lift is a number of at least 0, not True"),
        ({"BC101": {"lift": -1}}, r"BC101.lift is a number of at least 0, not -1"),
        ({"BC101": {"lift": float("nan")}}, r"BC101.lift is a number of at least 0, not nan"),
        ({"BC101": {"severity": "fatal"}}, r"BC101.severity is info, warning, error, not 'fatal'"),
        ({"BC101": {"severity": ["error"]}}, r"BC101.severity is info, warning, error"),
        ({"BC101": {"enabled": 0}}, r"BC101.enabled is true or false, not 0"),
        ({"BC101": 4}, r"BC101 is a table, as in \[BC101\], not 4"),
        ({"ignore": {}}, r"\[\[ignore\]\], with two brackets"),
        ({"ignore": [3]}, r"\[\[ignore\]\] is a table, not 3"),
        ({"ignore": [{"rule": "BC101"}]}, r"needs until, reason: nothing is ignored for ever"),
        ({"ignore": [{"rule": "X", "until": TODAY, "reason": ""}]}, r"has a rule 'X' that no audit knows"),
        ({"ignore": [{"rule": "BC101", "untill": TODAY}]}, r"did you mean 'until'\?"),
        ({"ignore": [{"rule": "BC101", "until": "tomorrow", "reason": ""}]}, r"a day such as 2026-12-31, not 'tomorr"),
        ({"ignore": [{"rule": "BC101", "until": "2026-13-31", "reason": ""}]}, r"a day such as 2026-12-31, not '2026"),
    ],
)
def test_nonsense_is_told_with_what_would_be_right(content: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_settings(content)


def test_a_file_is_read_and_what_is_no_toml_is_told(tmp_path: Path) -> None:
    path = tmp_path / "audit.toml"
    path.write_text('[BC101]\nlift = 5\n[[ignore]]\nrule = "BC101"\nclass = 3\nuntil = 2026-12-31\nreason = "é"\n')
    settings = read_settings(str(path))
    assert settings.of("BC101")["lift"] == 5
    assert settings.ignores == (Ignore("BC101", "3", datetime.date(2026, 12, 31), "é"),)
    for data in (b"[BC101", b"\xff", b"a = " + b"[" * 100_000):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="is no TOML"):
            read_settings(str(path))
    with pytest.raises(ConfigError, match=r"cannot be read"):
        read_settings(str(tmp_path / "nowhere.toml"))


def test_a_finding_is_ignored_up_to_the_last_day() -> None:
    (judged,), expired = apply_ignores([finding()], [ignore(0)], TODAY)
    assert (judged.state, expired.findings) == ("suppressed", ())
    (judged, told), expired = apply_ignores([finding()], [ignore(-1)], TODAY)
    assert (judged.state, told.rule, told.severity, told.value) == ("new", "BC304", "warning", 1.0)
    assert expired.findings == (told,)
    assert "BC101 of ant was to be ignored until 2026-11-21 (known)" in told.message


@pytest.mark.parametrize(
    ("one", "matches"),
    [
        (ignore(), True),
        (ignore(name=None), True),
        (ignore(name="0"), True),
        (ignore(name="an"), False),
        (ignore(name="1"), False),
        (ignore(rule="BC102"), False),
    ],
)
def test_an_ignore_is_of_a_rule_and_of_a_class_by_name_or_number(one: Ignore, matches: bool) -> None:
    assert one.matches(finding()) is matches


def test_a_pair_is_ignored_by_either_class() -> None:
    pair = Finding("BC104", "info", Scope(0, "ant", "predicted", 1, "bee"), 1, 1, 1, "", "", "")
    assert all(ignore(rule="BC104", name=name).matches(pair) for name in ("ant", "bee", "1"))
