"""The words of a report: what rules mean, numbers as people say them, and what a run and a comparison come to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.sums import UNIT, Sums
from pipeline.wording import printable, without_secrets

MANY = 24  # numbers that are told one by one

MEANINGS = {
    "BC101": "The maps of this class peak in one place far more often than those of other classes. The model may go by "
    "something that always lies there, such as a mark or a caption, and not by the object.",
    "BC102": "Much of the attention lies on the outermost tenth of the images, where objects rarely are: the model may "
    "go by padding, borders or frames.",
    "BC103": "The model contradicts the label, and is as sure as it is of images that it gets right. Either the label "
    "is wrong, or the model is confidently wrong.",
    "BC104": "The model confuses these two classes, and looks at the same place for both of them.",
    "BC105": "The method found nothing that speaks for the class in these images: their maps are empty.",
    "BC106": "The attention is spread over nearly all of the image, more than in other classes.",
    "BC107": "The attention falls into several parts: there may be several objects in an image.",
    "BC108": "The attention lies outside of the objects' boxes no less than inside of them.",
    "BC109": "The model is right far more often, or far less, when it looks at this place.",
    "BC110": "A small part of the images of this class has its attention in one cell that others leave alone.",
    "BC201": "Maps of this class peak elsewhere than in the baseline, by more than chance.",
    "BC202": "The mean map of this class is another one than in the baseline.",
    "BC203": "The same images are predicted as other classes than in the baseline.",
    "BC204": "This class is recognised more or less often than in the baseline, by more than chance.",
    "BC205": "The classes are predicted in other proportions than in the baseline.",
    "BC206": "A statistic of the maps has another distribution than in the baseline.",
    "BC301": "Parts of the input are missing in this run: all other numbers are of the rest.",
    "BC302": "This run and the baseline were made in different ways, so some comparisons were not made.",
    "BC303": "A class came or went, or has too few images to judge it by.",
    "BC304": "A finding was to be ignored until a day that has passed.",
}
"""What each rule's findings mean, for people who read the report for the first time."""

TRIALS = {
    "p_marked": "images that peak there",
    "p_masked": "with the place masked",
    "p_clean": "images of other classes",
    "p_transplanted": "with it pasted in",
}
"""What `--confirm` measures, in words."""

SIGNS = {"error": "◆", "warning": "▲", "info": "●", "ok": "✓"}

_PLACES = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))


def class_label(index: int, names: Sequence[str] | None) -> str:
    """A class's name as a page shows it."""
    return printable(names[index]) if names and 0 <= index < len(names) else f"class {index}"


def class_slug(index: int, name: str) -> str:
    """The name of a class's page, whatever the class is called: no two are the same, none leads elsewhere."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{index:04d}-{plain}.html" if plain else f"{index:04d}.html"


def subject_of(finding: Mapping[str, Any]) -> str:
    """What a finding is about, in words."""
    scope = finding["scope"]
    if scope.get("class") is None:
        return "All images"
    names = [scope.get("name") or f"class {scope['class']}"]
    if scope.get("other") is not None:
        names.append(scope.get("other_name") or f"class {scope['other']}")
    return " / ".join(map(printable, names))


def name_place(row: int, column: int, shape: tuple[int, ...]) -> str:
    """Which of nine parts of the image a cell lies in."""
    return _PLACES[3 * (2 * row + 1) // (2 * shape[0])][3 * (2 * column + 1) // (2 * shape[1])]


def compare_numbers(audit: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the whole run was and is, beside the baseline: name, before, now."""
    measured = audit.get("measurements", {})
    drift, mix = measured.get("BC206", {}), measured.get("BC205", {})
    lines = []
    if drift.get("confidence_before") is not None and drift.get("confidence") is not None:
        lines.append(("Mean confidence", f"{drift['confidence_before']:.3f}", f"{drift['confidence']:.3f}"))
    if drift.get("empty_before") is not None:
        lines.append(("Maps that are empty", say_share(drift["empty_before"]), say_share(drift.get("empty"))))
    if mix.get("total_variation") is not None:
        lines.append(("Difference of the classes' shares, in all", "", say_share(mix["total_variation"])))
    return lines


def say_paired(audit: Mapping[str, Any]) -> list[str]:
    """What became of the images that the baseline has as well, in sentences."""
    paired = audit.get("measurements", {}).get("BC203", {})
    n = {name: value for name, value in paired.items() if name.startswith("n_")}
    if not n.get("n_same"):
        return []
    flipped = f"{n['n_flipped']:,} of them are predicted as another class" if n["n_flipped"] else ""
    if flipped and n.get("n_labelled"):
        flipped += f" ({n['n_worse']:,} were right and are wrong now, {n['n_better']:,} the other way round)"
    parts = {
        "n_moved": "are looked at in another place",
        "n_changed": "have another content",
        "n_came": "are new",
        "n_went": "are gone",
        "n_failed": "can no longer be explained",
        "n_recovered": "can be explained again",
    }
    told = [f"{n[name]:,} {words}" for name, words in parts.items() if n.get(name)]
    said = [f"{n['n_same']:,} images are the same in both runs; {flipped or 'all of them are predicted as before'}"]
    return [f"{sentence(line)}." for line in [*said, *([", ".join(told)] if told else [])]]


CHANGES = {
    "regressions": "Right before and wrong now",
    "flips": "Predicted as another class",
    "moved": "Looked at in another place",
}
"""The kinds of changed images that BC203 names, in words."""


def changed_images(audit: Mapping[str, Any], most: int = 6) -> dict[str, list[Mapping[str, Any]]]:
    """Images that are not as they were, by kind: those of `CHANGES`, none twice."""
    paired, seen = audit.get("measurements", {}).get("BC203", {}), set()
    found: dict[str, list[Mapping[str, Any]]] = {}
    for kind in CHANGES:
        for change in paired.get(kind) or []:
            if change["id"] not in seen and len(found.setdefault(kind, [])) < most:
                seen.add(change["id"])
                found[kind].append(change)
    return found


def class_indices(sums: Sums) -> set[int]:
    """Every class that an image has, by label or prediction."""
    return {index for classes in (sums.by_label, sums.by_predicted) for index in classes.classes.tolist() if index >= 0}


def headline_numbers(sums: Sums) -> list[tuple[str, str]]:
    """What a run comes to, in a few numbers: value and name."""
    classes = sums.by_predicted
    n, labelled = int(classes.n.sum()), int(classes.n_labelled.sum())
    numbers = [(f"{sums.n_images:,}", "images explained"), (f"{sums.n_failed:,}", "images failed")]
    numbers.append((f"{len(class_indices(sums)):,}", "classes"))
    if labelled:
        numbers.append((say_share(int(classes.n_correct.sum()) / labelled), "predicted as labelled"))
    if n:
        numbers.append((f"{int(classes.confidence.sum()) / UNIT / n:.2f}", "mean confidence"))
    numbers.append((say_share(sums.n_empty / max(1, sums.n_images)), "of the maps empty"))
    return numbers


def verdict(audit: Mapping[str, Any]) -> tuple[str, str]:
    """The audit in a word for its colour, and a few for people."""
    counts = audit["counts"]
    said = [
        f"{counts[name]:,} {name}{'s' if counts[name] > 1 else ''}" for name in ("error", "warning") if counts[name]
    ]
    if said:
        return ("error" if counts["error"] else "warning"), " and ".join(said)
    if audit["status"] == "error":
        return "error", "This run cannot be judged"
    return "ok", "Nothing to worry about"


def run_facts(summary: Mapping[str, Any], sums: Sums) -> list[tuple[str, str]]:
    """What a run was: names and values, as far as its summary tells."""
    config, versions = summary.get("config", {}), summary.get("versions", {})
    facts = {
        "Finished": say_time(summary),
        "Model": summary.get("model") or config.get("model"),
        "Model digest": str(summary.get("model_digest", ""))[:16],
        "Maps of": f"{sums.method}, {sums.grid[0]} x {sums.grid[1]} cells",
        "Signal": summary.get("activation_layer"),
        "Logits": summary.get("logits_layer"),
        "Preprocessing": summary.get("preprocess") or config.get("preprocess"),
        "Resizing": config.get("resize"),
        "Targets": config.get("targets"),
        "Input": ", ".join(map(str, config.get("images", ()))),
        "Shards": summary.get("shards"),
        "Took": f"{summary['seconds']:,.0f} s" if summary.get("seconds") else None,
        "Carried over": summary.get("carried") or None,
        "Versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items())),
    }
    return [(name, printable(without_secrets(str(value)))) for name, value in facts.items() if value]


def sentence(text: str) -> str:
    """Text with a capital letter at its beginning, if a word stands there."""
    return text[:1].upper() + text[1:]


def say_time(summary: Mapping[str, Any]) -> str | None:
    """When a run was finished, as people write it."""
    told = str(summary.get("finished") or "")
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):\d\dZ", told)
    return f"{found[1]} {found[2]} UTC" if found else printable(told) or None


def say_share(share: float | None) -> str:
    """A share as people say it: never 0 % of what is there, nor 100 % of what is not all."""
    if share is None:
        return "–"
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) or 10 <= percent <= 99 else f"{percent:.1f} %"


def say_number(value: float | None) -> str:
    """A number in three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def file_name(uri: str) -> str:
    """The last part of a uri, as a page shows it."""
    return printable(PurePosixPath(uri).name or uri)


def flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested measurements as lines of a table: a path of names, and the value; of many numbers, only their range."""
    inner = list(values.values()) if isinstance(values, Mapping) else values if isinstance(values, list) else []
    numbers = [value for value in inner if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(inner) > MANY and len(numbers) == len([value for value in inner if value is not None]):
        span = f", from {_say(min(numbers))} to {_say(max(numbers))}" if numbers else ""
        return [(_name(prefix), f"{len(inner):,} values{span}")]
    if isinstance(values, Mapping):
        return [line for name, value in values.items() for line in flatten(value, f"{prefix}{name} · ")]
    if inner and isinstance(inner[0], Mapping | list):
        return [(_name(prefix), f"{len(inner):,} entries, in findings.json")]
    return [(_name(prefix), printable(", ".join(map(_say, inner)) if isinstance(values, list) else _say(values)))]


def _name(prefix: str) -> str:
    return printable(prefix.removesuffix(" · "))


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'s' if n != 1 else ''}"


def _say(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
