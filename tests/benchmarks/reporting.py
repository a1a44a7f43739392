"""A report of figures: JSON with every raw sample, a table, and a plot."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import KINDS, Figure, LeftOut, Result

# Okabe and Ito's colours, told apart by every eye; what missed its target is hatched too.
REACHED, MISSED, PLAIN, TARGET = "#0072B2", "#D55E00", "#56B4E9", "#000000"

LEGEND = "bars: medians, dots: rounds, black lines: targets; dark: reached, hatched: missed, light: without a target"


@dataclass
class Report:
    """Figures as they come, and where they came from."""

    device: dict[str, Any]
    settings: dict[str, Any]  # with the seed
    figures: list[Figure] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, result: Result) -> str:
        """Takes a result in, and tells it in a line."""
        if isinstance(result, LeftOut):
            self.left_out.append(result)
            return f"{result.part}: left out: {result.why}"
        self.figures.append(result)
        return tell(result)

    def write(self, folder: Path) -> None:
        """bench.json, bench.md, and bench.png where matplotlib is installed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(self.to_dict(), indent=1))
        (folder / "bench.md").write_text(self.to_markdown())
        if self.figures:
            draw(self, folder / "bench.png")

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {
            "seed": self.settings["seed"],
            "device": self.device,
            "settings": self.settings,
            "figures": [figure.to_dict() for figure in self.figures],
            "left_out": [vars(left) for left in self.left_out],
        }

    def to_markdown(self) -> str:
        """A table a part, under what it was measured on."""
        lines = [self.describe(), ""]
        for part, figures in itertools.groupby(self.figures, key=lambda figure: figure.part):
            lines += [f"### {part}", "", *table(list(figures)), ""]
        lines += [f"{left.part}: left out: {left.why}" for left in self.left_out]
        return "\n".join(lines).rstrip() + "\n"

    def describe(self) -> str:
        """The machine and the conditions, in one paragraph."""
        versions = self.device["versions"]
        return (
            f"{self.device['cores']} cores of {self.device['processor']}, TensorFlow {versions['tensorflow']}, "
            f"Keras {versions['keras']}, Python {versions['python']}; batch {self.settings['batch']}, seed "
            f"{self.settings['seed']}. Medians of interleaved rounds, with the quartiles of the rounds behind them."
        )


def table(figures: Sequence[Figure]) -> list[str]:
    """Rows of Markdown."""
    rows = ["| what | model | figure | quartiles | aimed at | rates | notes |", "|---" * 7 + "|"]
    for figure in figures:
        low, high = figure.quartiles
        notes = ", ".join(
            f"{key} {brief(value)}" for key, value in figure.notes.items() if not isinstance(value, dict | tuple)
        )
        spread = f"{number(low)} to {number(high)}"
        cells = (figure.what, figure.model, phrase(figure), spread, aim(figure), rates(figure), notes)
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def tell(figure: Figure) -> str:
    """One line for the terminal."""
    low, high = figure.quartiles
    what = ", ".join(filter(None, (figure.part, figure.what, figure.model)))
    notes = ", ".join(f"{key} {brief(value)}" for key, value in figure.notes.items() if not isinstance(value, tuple))
    value = f"{phrase(figure)} ({number(low)} to {number(high)})"
    return "; ".join(filter(None, (f"{what}: {value}", aim(figure), rates(figure), notes)))


def phrase(figure: Figure) -> str:
    """The figure in words: a number, and of what."""
    base = "" if figure.base is None else f" {figure.base.name}"
    return f"{number(figure.value)} {KINDS[figure.kind]}{base}"


def aim(figure: Figure) -> str:
    """The target and whether it was reached, or what is stated."""
    if figure.target is not None:
        least = "at least" if figure.kind == "rate" else "at most"
        return f"{least} {number(figure.target)}: {'reached' if figure.reached else 'missed'}"
    return "" if figure.stated is None else f"stated {number(figure.stated)}"


def rates(figure: Figure) -> str:
    """Images a second of both sides, where images were counted."""
    sides = [side for side in (figure.ours, figure.base) if side is not None and side.images > 1]
    return " against ".join(f"{side.images / statistics.median(side.values):.1f}" for side in sides) + (
        " images/s" if sides else ""
    )


def number(value: float) -> str:
    """A figure with three digits that mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def brief(value: Any) -> str:
    """A note's value, short."""
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def draw(report: Report, path: Path) -> None:
    """Bars, a panel a part and unit: a dot a round, a black line where a target is. Nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return
    panels = [list(group) for _, group in itertools.groupby(report.figures, key=lambda f: (f.part, f.kind, f.model))]
    heights = [1.2 + len(panel) for panel in panels]
    canvas = Canvas(figsize=(10, 0.32 * sum(heights) + 1), dpi=120, layout="constrained")
    axes = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel)
    canvas.suptitle(f"{report.describe().split(';')[0]}\n{LEGEND}", fontsize=8)
    canvas.savefig(path)


def _draw_panel(axis: Any, figures: Sequence[Figure]) -> None:
    colors = {True: REACHED, False: MISSED, None: PLAIN}
    for row, figure in enumerate(figures):
        hatch = "//" if figure.reached is False else None
        axis.barh(row, figure.value, color=colors[figure.reached], hatch=hatch, edgecolor="white", height=0.7)
        axis.plot(figure.rounds, [row] * len(figure.rounds), ".", color="black", markersize=3, alpha=0.6)
        mark = figure.target if figure.target is not None else figure.stated
        if mark is not None:
            axis.plot([mark, mark], [row - 0.45, row + 0.45], color=TARGET, linewidth=2)
        text = f"  {number(figure.value)}" + (f"   ({aim(figure)})" if mark is not None else "")
        axis.text(max([figure.value, mark or 0, *figure.rounds]), row, text, va="center", fontsize=7)
    axis.set_yticks(range(len(figures)), map(_label, figures), fontsize=7)
    axis.set_ylim(len(figures) - 0.4, -0.6)
    axis.margins(x=0.35)
    axis.set_xlim(left=0)
    if figures[0].base is not None:
        axis.axvline(1, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    title = (figures[0].part, figures[0].model, KINDS[figures[0].kind].removesuffix(" of"))
    axis.set_title(", ".join(filter(None, title)), fontsize=8, loc="left")


def _label(figure: Figure) -> str:
    against = figure.base is not None and figure.kind == "rate"
    return f"{figure.what}\nagainst {figure.base.name}" if against and figure.base else figure.what
