"""The audit as pages that people read: plain HTML files that need no server, no network and no other program."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from pipeline import storage
from pipeline.audit import phrases, views
from pipeline.audit.gallery import find_facts, make_pictures
from pipeline.audit.pictures import color_stops
from pipeline.audit.views import ClassRow, Picture
from pipeline.errors import ConfigError
from pipeline.reading import Run
from pipeline.sums import Sums
from pipeline.wording import printable, without_secrets

INDEX = "index.html"
MAX_CARDS = 20  # findings with pictures on the first page
MAX_LINES = 500  # findings without pictures on the first page; the others are in findings.json
MAX_PAGES = 200  # classes with a page of their own
SAMPLES = 12  # images of a class's page that no finding chose
SAMPLES_ALONE = 36  # of a page that was asked for
COLORMAPS = ("inferno", "cividis", "viridis", "gray")
BINS_SHOWN = ("confidence", "eff_area", "border_energy", "spread", "coverage50", "negative_share")

_OURS = re.compile(r"(?:class/\d{4,}(?:-[a-z0-9-]+)?\.html|thumbs/[0-9a-f]{32}\.jpg)")


@dataclasses.dataclass(frozen=True)
class _Report:
    """What the pages of a report have in common."""

    audit: Mapping[str, Any]  # the content of findings.json
    sums: Sums
    run: Run
    out: str  # folder
    pictures: Mapping[str, Picture]  # by id of the image
    totals: Mapping[str, np.ndarray]  # statistic -> (32,) images a bin, of all classes

    @property
    def findings(self) -> list[Mapping[str, Any]]:
        """The gravest first."""
        return self.audit["findings"]


def write_report(audit: Mapping[str, Any], sums: Sums, run: Run, out: str, single_file: bool = False) -> str:
    """Writes the report of an audit: index.html, a page for each class with findings, and small photographs.

    The first page stands by itself; without the folder beside it, only its photographs are missing.

    Args:
        audit: the content of findings.json.
        sums: of the run.
        run: where the images of the findings are found.
        out: a folder, on any store; other files in it stay.
        single_file: everything in index.html, with photographs, and without pages of classes.

    Returns:
        The uri of index.html.
    """
    rows = _with_pages(views.class_rows(sums, run.class_names, audit["findings"]), 0 if single_file else MAX_PAGES)
    paged, by_class = [row for row in rows if row.page], _findings_by_class(audit["findings"])
    shown = [*audit["findings"][:MAX_CARDS], *(finding for row in paged for finding in by_class[row.index])]
    wanted = _example_ids(shown) | _changed_ids(audit) | _sample_ids(sums, paged)
    report = _gather(audit, sums, run, out, wanted, single_file)
    if not single_file:
        _remove_stale(out, {row.page for row in paged} | {picture.source for picture in report.pictures.values()})
    for row in paged:
        _write_class_page(report, row, by_class[row.index])
    return _write_index(report, rows)


def write_class_page(audit: Mapping[str, Any], sums: Sums, run: Run, wanted: str, out: str) -> str:
    """Writes the page of one class, whether or not it has findings.

    Args:
        audit: the content of findings.json.
        sums: of the run.
        run: where its images are found.
        wanted: the class's name or index.
        out: the report's folder.

    Returns:
        The page's uri.

    Raises:
        ConfigError: no image is of that class.
    """
    row = _choose_row(views.class_rows(sums, run.class_names, audit["findings"]), wanted)
    findings = _findings_by_class(audit["findings"]).get(row.index, [])
    ids = _example_ids(findings) | _sample_ids(sums, [row], SAMPLES_ALONE)
    return _write_class_page(_gather(audit, sums, run, out, ids), row, findings)


def _gather(
    audit: Mapping[str, Any], sums: Sums, run: Run, out: str, ids: set[str], single_file: bool = False
) -> _Report:
    """Reads the images that are to be shown."""
    facts = find_facts(run, sums.method, ids)
    pictures = make_pictures(facts, run.class_names, None if single_file else out)
    return _Report(audit, sums, run, out, pictures, views.total_histograms(sums))


def _write_index(report: _Report, rows: Sequence[ClassRow]) -> str:
    audit, pages = report.audit, {row.index: row.page for row in rows}
    page_of = [pages.get(finding["scope"]["class"]) for finding in report.findings]
    told = list(zip(report.findings, page_of, strict=True))
    page = _render(
        "index.html",
        **_common(report, ""),
        cards=[views.make_card(f, report.sums, report.pictures, page) for f, page in told[:MAX_CARDS]],
        lines=[(f, phrases.subject_of(f), page) for f, page in told[MAX_CARDS:][:MAX_LINES]],
        n_left_out=max(0, len(told) - MAX_CARDS - MAX_LINES),
        rows=rows,
        changed=_show_changes(report),
        compared=phrases.compare_numbers(audit),
        paired=phrases.say_paired(audit),
        charts=_charts(report.totals),
        measured=phrases.flatten(audit.get("measurements", {})),
        data=_as_json({"classes": views.table_data(rows), "colors": color_stops(COLORMAPS)}),
    )
    return _write(report.out, INDEX, page)


def _write_class_page(report: _Report, row: ClassRow, findings: Sequence[Mapping[str, Any]]) -> str:
    sums, chosen = views.sums_of(report.sums, row), _example_ids(findings)
    own, others = views.mean_maps(views.keyed(report.sums, row.by), row.index)
    samples = [key for key in _ids_of(sums.sample_ids) if key in report.pictures and key not in chosen]
    page = _render(
        "class.html",
        **_common(report, "../"),
        row=row,
        cards=[views.make_card(finding, report.sums, report.pictures) for finding in findings],
        samples=[report.pictures[key] for key in samples],
        own=None if own is None else views.view_map(own),
        others=None if others is None else views.view_map(others),
        peaks=views.view_map(sums.peaks) if sums.peaks.any() else None,
        confusions=views.confusions(report.sums, row.index, report.run.class_names),
        charts=_charts(sums.histograms, report.totals),
        data=_as_json({"colors": color_stops(COLORMAPS)}),
    )
    return _write(report.out, f"class/{phrases.class_slug(row.index, row.name)}", page)


def _write(out: str, path: str, page: str) -> str:
    uri = storage.join(out, path)
    storage.write_bytes(uri, page.encode())
    return uri


def _with_pages(rows: Sequence[ClassRow], most: int) -> list[ClassRow]:
    """The rows, those with findings with a page: the gravest, if there are more than `most`."""
    found = sorted((row for row in rows if row.severities), key=views.gravity, reverse=True)[:most]
    pages = {row.index: f"class/{phrases.class_slug(row.index, row.name)}" for row in found}
    return [dataclasses.replace(row, page=pages.get(row.index)) for row in rows]


def _findings_by_class(findings: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    by_class: dict[int, list[Mapping[str, Any]]] = {}
    for finding in findings:
        for index in {finding["scope"]["class"], finding["scope"].get("other")} - {None}:
            by_class.setdefault(index, []).append(finding)
    return by_class


def _choose_row(rows: Sequence[ClassRow], wanted: str) -> ClassRow:
    by_name = {name: row for row in rows for name in (str(row.index), row.name)}
    if wanted not in by_name:
        some = ", ".join(repr(row.name) for row in rows[:5])
        raise ConfigError(f"no image of this run is of class {wanted!r}: give a class's name or index, such as {some}")
    return by_name[wanted]


def _example_ids(findings: Iterable[Mapping[str, Any]]) -> set[str]:
    """The ids of the images that findings name."""
    return {e["id"] for finding in findings for kind in ("worst", "random") for e in finding["examples"][kind]}


def _changed_ids(audit: Mapping[str, Any]) -> set[str]:
    return {change["id"] for some in phrases.changed_images(audit).values() for change in some}


def _sample_ids(sums: Sums, rows: Iterable[ClassRow], most: int = SAMPLES) -> set[str]:
    return {key for row in rows for key in _ids_of(views.sums_of(sums, row).sample_ids)[:most]}


def _ids_of(stored: np.ndarray) -> list[str]:
    return [key.decode("ascii", "replace") for key in stored.tolist() if key]


def _show_changes(report: _Report) -> list[tuple[str, list[Picture]]]:
    """Images that are not as they were, with what they were: a heading and pictures, kind by kind."""
    shown = []
    for kind, changes in phrases.changed_images(report.audit).items():
        there = [_with_past(report, change) for change in changes if change["id"] in report.pictures]
        if there:
            shown.append((phrases.CHANGES[kind], there))
    return shown


def _with_past(report: _Report, change: Mapping[str, Any]) -> Picture:
    name = phrases.class_label(change["predicted_before"], report.run.class_names)
    sure = change["confidence_before"]
    past = name if sure is None else f"{sure:.2f} {name}"
    return dataclasses.replace(report.pictures[change["id"]], before=past)


def _remove_stale(out: str, kept: set[str | None]) -> None:
    """Removes what an earlier report has left here, by its names; nothing else in the folder is ours."""
    base = storage.join(out, "")
    for folder in ("class", "thumbs"):
        for uri in storage.list_files(storage.join(out, folder)):
            path = f"{folder}/{uri.rsplit('/', 1)[-1]}"
            if _OURS.fullmatch(path) and path not in kept:
                storage.remove_file(storage.join(base, path))


def _charts(
    histograms: Mapping[str, np.ndarray], outlines: Mapping[str, np.ndarray] | None = None
) -> dict[str, views.Bars]:
    bars = {name: views.histogram_bars(histograms[name], name, (outlines or {}).get(name)) for name in BINS_SHOWN}
    return {name: found for name, found in bars.items() if found is not None}


def _common(report: _Report, base: str) -> dict[str, Any]:
    """What every page is given; `base` leads to the report's folder."""
    script, run, sums = _asset("report.js"), report.run, report.sums
    return {
        "audit": report.audit,
        "base": base,
        "title": printable("/".join(run.path.rstrip("/").split("/")[-2:])),
        "path": printable(without_secrets(run.path)),
        "finished": phrases.say_time(run.summary),
        "failures": dict(sorted(sums.failures_by_type.items(), key=lambda item: -item[1])),
        "facts": phrases.run_facts(run.summary, sums),
        "numbers": phrases.headline_numbers(sums),
        "verdict": phrases.verdict(report.audit),
        "signs": phrases.SIGNS,
        "colormaps": COLORMAPS,
        "style": _asset("report.css"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _as_json(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element, or begins another."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@lru_cache(maxsize=4)
def _asset(name: str) -> str:
    return resources.files("pipeline.audit").joinpath("templates", name).read_text(encoding="utf-8").strip()


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.audit", "templates"),
        autoescape=True,  # whatever a template ends in
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": phrases.say_share,
        "number": phrases.say_number,
        "plain": printable,
        "sentence": phrases.sentence,
    }
    return environment


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
