"""What a fault test found: a line a row of the issue's table, and JSON with every round."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Round:
    """One trial."""

    what: str
    problems: tuple[str, ...] = ()  # a sentence each
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A row of the report."""

    part: str
    what: str
    asked: str
    rounds: tuple[Round, ...]
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    left_out: str = ""  # why it could not be tried here

    @property
    def good(self) -> int:
        """How many rounds went as they should."""
        return sum(not one.problems for one in self.rounds)

    @property
    def reached(self) -> bool:
        """Whether all of them did; what was left out is not reached."""
        return not self.left_out and self.good == len(self.rounds)

    @property
    def problems(self) -> list[str]:
        """What went wrong, each under its round."""
        return [f"{one.what}: {problem}" for one in self.rounds for problem in one.problems]

    def tell(self) -> str:
        """One line for the terminal, and one for each problem."""
        if self.left_out:
            return f"{self.part}, {self.what}: left out: {self.left_out}"
        facts = ", ".join(f"{name} {value}" for name, value in self.notes.items())
        head = f"{self.part}, {self.what}: {self.good} of {len(self.rounds)} in {self.seconds:.0f} s" + (
            f" ({facts})" if facts else ""
        )
        return "\n".join([head, *(f"    {problem}" for problem in self.problems)])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        rounds = [{"what": one.what, "problems": list(one.problems), **one.notes} for one in self.rounds]
        return {**vars(self), "rounds": rounds, "good": self.good, "reached": self.reached}


@dataclass
class Report:
    """Outcomes as they come."""

    seed: int
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def reached(self) -> bool:
        """Whether nothing went wrong; what had to be left out does not count."""
        return all(outcome.reached or outcome.left_out for outcome in self.outcomes)

    def write(self, folder: Path) -> None:
        """faults.json and faults.md."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "seed": self.seed,
            "python": platform.python_version(),
            "machine": platform.platform(),
            "outcomes": [outcome.to_dict() for outcome in self.outcomes],
        }
        (folder / "faults.json").write_text(json.dumps(content, indent=1, default=str))
        (folder / "faults.md").write_text(self.to_markdown())

    def to_markdown(self) -> str:
        """The table, and under it what went wrong."""
        rows = [f"Seed {self.seed}.", "", "| part | what | asked | found | seconds | notes |", "|---" * 6 + "|"]
        for one in self.outcomes:
            notes = "; ".join(f"{name} {value}" for name, value in one.notes.items())
            found = f"left out: {one.left_out}" if one.left_out else f"{one.good} of {len(one.rounds)}"
            rows.append(f"| {one.part} | {one.what} | {one.asked} | {found} | {one.seconds:.0f} | {notes} |")
        problems = [f"* {one.part}, {one.what}, {problem}" for one in self.outcomes for problem in one.problems]
        return "\n".join([*rows, *(["", "What went wrong:", *problems] if problems else [])]) + "\n"
