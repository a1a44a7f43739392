"""The report in a real browser: what a reader clicks, types and sees. Skipped where there is no Chromium or Chrome."""

from __future__ import annotations

import json
import shutil
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import report
from tests.audits import Looks, make_sums
from tests.reports import HOSTILE, everything, make_audit, make_run, sum_up

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = next((found for found in map(shutil.which, BROWSERS) if found), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("there is no Chromium or Chrome with its driver (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile names and three findings."""
    folder = tmp_path_factory.mktemp("small")
    run = make_run(folder, names=HOSTILE)
    report.write_report(everything(run), sum_up(run), run, str(folder / "out"))
    return folder / "out"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 450 classes, class k of 1 + k % 7 images, without findings."""
    folder = tmp_path_factory.mktemp("large")
    run = make_run(folder, 4)
    run.class_names = [f"species {k}" for k in range(450)]
    sums = make_sums(*[Looks(n=1 + k % 7) for k in range(450)])
    report.write_report(make_audit(run), sums, run, str(folder / "out"))
    return folder / "out"


@pytest.fixture
def at(browser: Any) -> Iterator[Any]:
    """Opens a page; afterwards, nothing may have been complained of, and nothing asked of a network."""
    browser.get_log("browser")
    browser.get_log("performance")

    def visit(path: Path, state: str = "") -> Any:
        browser.get("about:blank")
        browser.get(path.as_uri() + state)
        return browser

    yield visit
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert complaints == []
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "about"}
    assert browser.execute_script("return window.hacked") is None


def run_script(page: Any, script: str, *values: Any) -> Any:
    return page.execute_script(script, *values)


def click(page: Any, selector: str) -> None:
    run_script(page, "document.querySelector(arguments[0]).click()", selector)


def press(page: Any, key: str) -> None:
    page.switch_to.active_element.send_keys(key)


def find(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def column(page: Any, number: int) -> list[str]:
    script = "return [...document.querySelectorAll('#table tbody tr')].map(row => row.cells[arguments[0]].textContent)"
    return run_script(page, script, number)


def type_in(page: Any, selector: str, text: str) -> None:
    script = "const e=document.querySelector(arguments[0]);e.value=arguments[1];e.dispatchEvent(new Event('input'))"
    run_script(page, script, selector, text)


# The table


def test_a_press_on_a_column_sorts_by_it_and_another_the_other_way_round(at: Any, large: Path) -> None:
    page = at(large / "index.html")
    assert column(page, 0)[:3] == ["species 0", "species 1", "species 2"]
    click(page, "[data-sort=n]")
    images = [int(n) for n in column(page, 3)]
    assert images[:64] == [7] * 64
    assert column(page, 0)[0] == "species 6"
    click(page, "[data-sort=n]")
    assert [int(n) for n in column(page, 3)][:65] == [1] * 65
    click(page, "[data-sort=name]")
    assert column(page, 0)[9:12] == ["species 9", "species 10", "species 11"]  # numbers in names count as numbers
    click(page, "[data-sort=name]")
    assert column(page, 0)[0] == "species 449"
    assert run_script(page, "return document.querySelector('[aria-sort=descending]').textContent") == "Class"


def test_rows_come_two_hundred_at_a_time(at: Any, large: Path) -> None:
    page = at(large / "index.html")
    assert len(column(page, 0)) == 200
    click(page, "#more-rows")
    assert len(column(page, 0)) == 400
    click(page, "#more-rows")
    assert len(column(page, 0)) == 450
    assert not find(page, "#more-rows")[0].is_displayed()


def test_a_search_shows_what_it_says_and_counts_it(at: Any, large: Path) -> None:
    page = at(large / "index.html")
    type_in(page, "#search", "SPECIES 44")
    assert column(page, 0) == ["species 44", *[f"species {k}" for k in range(440, 450)]]
    assert find(page, "#count")[0].text == "11 of 450 classes"
    type_in(page, "#search", "no such thing")
    assert column(page, 0) == []
    type_in(page, "#search", "")
    assert find(page, "#count")[0].text == "450 classes"


def test_the_address_keeps_what_was_chosen(at: Any, large: Path) -> None:
    page = at(large / "index.html")
    type_in(page, "#search", "44")
    click(page, "[data-sort=n]")
    click(page, "#attention")
    address = page.current_url
    again = at(large / "index.html", "#" + urllib.parse.urlsplit(address).fragment)
    assert len(column(again, 0)) == 14
    assert [int(n) for n in column(again, 3)] == sorted((int(n) for n in column(again, 3)), reverse=True)
    assert find(again, "#search")[0].get_attribute("value") == "44"
    assert run_script(again, "return document.body.classList.contains('bare')")


def test_classes_with_findings_can_be_had_alone_and_come_first(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    assert column(page, 2) == ["◆ ", "▲ ", "", "", ""]
    click(page, "#found")
    assert len(column(page, 0)) == 2


# Findings


def test_findings_can_be_had_by_severity(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    shown = "return [...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.severity)"
    assert run_script(page, shown) == ["error", "warning", "info"]
    click(page, ".chip[data-filter=warning]")
    assert run_script(page, shown) == ["warning"]
    click(page, ".chip[data-filter=warning]")
    assert run_script(page, shown) == ["error", "warning", "info"]


def test_keys_lead_through_the_findings_and_to_the_search(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    rule = "return document.activeElement.dataset.rule"
    steps = []
    for key in "jjjk":
        press(page, key)
        steps.append(run_script(page, rule))
    assert steps == ["BC101", "BC105", "BC205", "BC105"]
    press(page, "/")
    assert run_script(page, "return document.activeElement.id") == "search"
    press(page, "jo")  # is typed, not obeyed
    assert find(page, "#search")[0].get_attribute("value") == "jo"
    assert not run_script(page, "return document.body.classList.contains('bare')")


# Pictures


def test_a_click_takes_the_attention_off_a_photograph_and_lays_it_on_again(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    frame = find(page, ".frame")[0]
    layer = frame.find_element("css selector", ".attention")
    assert layer.is_displayed()
    frame.click()
    assert not layer.is_displayed()
    assert find(page, ".frame")[1].find_element("css selector", ".attention").is_displayed()
    frame.click()
    assert layer.is_displayed()


def test_attention_covers_its_photograph_to_the_pixel(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    script = """
        const box = (element) => { const r = element.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
        return [...document.querySelectorAll('.frame')].slice(0, 4).map(
          (frame) => ['.photo', '.attention .cells'].map((selector) => box(frame.querySelector(selector))))"""
    for photo, layer in run_script(page, script):
        assert photo == layer
        assert photo[2] > 40


def test_all_attention_can_be_taken_off_and_made_weaker(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    press(page, "o")
    assert not any(layer.is_displayed() for layer in find(page, ".attention"))
    press(page, "o")
    assert all(layer.is_displayed() for layer in find(page, "#findings .attention"))
    type_in(page, "#strength", "40")
    assert find(page, ".attention")[0].value_of_css_property("opacity") == "0.4"


def test_other_colours_show_the_same_map(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    read = """const done = arguments[1];
        const image = document.querySelector(arguments[0]);
        image.decode().then(() => {
          const canvas = document.createElement('canvas'), context = canvas.getContext('2d');
          canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
          context.drawImage(image, 0, 0);
          done([...context.getImageData(0, 0, canvas.width, canvas.height).data]);
        })"""
    choose = "const e=document.querySelector('#colors');e.value=arguments[0];e.dispatchEvent(new Event('change'))"
    for selector in (".attention .cells", ".plane .cells"):
        run_script(page, choose, "inferno")
        before = page.execute_async_script(read, selector)
        run_script(page, choose, "gray")
        after = page.execute_async_script(read, selector)
        assert len(after) == len(before) == 4 * 6
        assert after[3::4] == before[3::4]
        assert all(max(after[4 * k : 4 * k + 3]) - min(after[4 * k : 4 * k + 3]) <= 2 for k in range(6))
        assert any(max(before[4 * k : 4 * k + 3]) - min(before[4 * k : 4 * k + 3]) > 40 for k in range(6))
        strongest = max(range(6), key=lambda k: sum(before[4 * k : 4 * k + 3]) * before[4 * k + 3])
        assert strongest == max(range(6), key=lambda k: after[4 * k] * after[4 * k + 3])


# Hostile names


def test_names_are_shown_and_not_obeyed(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    assert set(HOSTILE[:4]) <= set(column(page, 0))
    assert find(page, ".subject")[0].text == HOSTILE[0]
    for path in sorted((small / "class").iterdir()):
        assert at(path).find_elements("css selector", "h1")[0].text in HOSTILE


def test_no_cell_of_the_csv_file_starts_a_formula(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    run_script(page, "document.querySelector('#csv').addEventListener('click', e => e.preventDefault())")
    click(page, "#csv")
    text = urllib.parse.unquote(find(page, "#csv")[0].get_attribute("href").split(",", 1)[1])
    assert text.startswith('"index","name","n",')
    assert "\"'=cmd|'/c calc'!A0 " in text
    assert '"""><img src=x onerror=window.hacked=1>"' in text
    assert text.count("\r\n") == 6


# Readers of all kinds


@pytest.mark.parametrize("name", ["index.html", "class"])
def test_nothing_sticks_out_of_a_phones_screen(at: Any, small: Path, name: str) -> None:
    path = small / name if name.endswith("html") else next((small / name).iterdir())
    page = at(path)
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert run_script(page, "return document.documentElement.scrollWidth") <= 390
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_without_scripts_there_is_a_table_all_the_same(at: Any, small: Path) -> None:
    at(small / "index.html").execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = at(small / "index.html")
        text = page.find_element("css selector", "noscript").text
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert HOSTILE[1] in text
    assert "1 error" in text


def test_paper_is_white_whatever_the_screen_is(at: Any, small: Path) -> None:
    page = at(small / "index.html")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    ground = "return getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color"
    try:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
        assert run_script(page, ground) == "rgb(255, 255, 255)rgb(28, 27, 25)"
        assert not find(page, "nav")[0].is_displayed()
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": dark})
        assert run_script(page, ground) == "rgb(22, 21, 20)rgb(236, 234, 229)"
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_a_single_file_works_alone(at: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    report.write_report(everything(run), sum_up(run), run, str(tmp_path / "out"), single_file=True)
    alone = tmp_path / "alone.html"
    (tmp_path / "out/index.html").rename(alone)
    page = at(alone)
    loaded = "return [...document.images].filter(i => i.offsetParent).every(i => i.complete && i.naturalWidth > 0)"
    page.execute_script("document.querySelectorAll('img').forEach(i => (i.loading = 'eager'))")
    wait = "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode()))"
    assert page.execute_async_script(wait + ".then(() => done(true), () => done(false))")
    assert run_script(page, loaded)
