"""How far a job is, said in a line or as JSON."""

import json
import sys

import pytest

from pipeline import logs
from pipeline.progress import show_bar, show_progress, tell, tell_progress


def test_a_line_tells_rate_and_time_left(capsys) -> None:
    tell_progress(300, 1000, 7.0)
    tell_progress(0, 1000, 0.0)
    assert capsys.readouterr().err.splitlines() == [
        "300 of 1000 images, 7.0 images/s, 1 min 40 s left", "0 of 1000 images, 0.0 images/s"
    ]  # fmt: skip


def test_in_json_the_numbers_are_fields(capsys, monkeypatch) -> None:
    monkeypatch.setitem(logs._state, "settings", logs.LogSettings("json"))
    tell_progress(1000, 1000, 7.0)
    told = json.loads(capsys.readouterr().err)
    numbers = {name: told[name] for name in ("images_done", "images", "images_per_second", "seconds_left")}
    assert numbers == {"images_done": 1000, "images": 1000, "images_per_second": 7.0, "seconds_left": 0}


def test_what_is_told_holds_no_secret_and_is_one_line(capsys) -> None:
    tell("a\n\x1b[31m gs://u:hunter2@b")
    assert capsys.readouterr().err == "a\\n\\x1b[31m gs://***@b\n"


@pytest.mark.parametrize("form", logs.FORMATS)
def test_a_job_on_a_terminal_has_a_bar_unless_it_writes_json(form, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setitem(logs._state, "settings", logs.LogSettings(form))
    with show_progress(10, lambda: 4, interval=60.0):
        pass
    assert ("4/10" in capsys.readouterr().err) == (form == "text")


def test_a_bar_shows_what_it_is_told_and_obeys_none_of_it(capsys) -> None:
    with show_bar(10, 0) as show:
        show(7, "2 workers\x1b[31m")
    shown = capsys.readouterr().err
    assert "70%" in shown
    assert "7/10 images" in shown
    assert "2 workers\\x1b[31m" in shown
