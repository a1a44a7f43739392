"""The rules of one run that look at its sums alone; BC103 looks at images as well (`suspects`)."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.audit.against_labels import find_off_object, find_place_dependent, find_shared_evidence
from pipeline.audit.classes import Names
from pipeline.audit.findings import RuleResult
from pipeline.audit.looks import find_diffuse, find_fragmented, find_framed, find_unexplained
from pipeline.audit.settings import Settings
from pipeline.audit.shortcuts import find_clusters, find_shortcuts
from pipeline.sums import Sums

Rule = Callable[[Sums, Settings, Names], RuleResult]

RULES: dict[str, Rule] = {
    "BC101": find_shortcuts,
    "BC102": find_framed,
    "BC104": find_shared_evidence,
    "BC105": find_unexplained,
    "BC106": find_diffuse,
    "BC107": find_fragmented,
    "BC108": find_off_object,
    "BC109": find_place_dependent,
    "BC110": find_clusters,
}
"""Rule -> the function that applies it."""
