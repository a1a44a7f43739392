"""The whole of `beamcam audit`: sums, rules, comparison, examples, and the files that tell of them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from pipeline import parquet, storage
from pipeline.audit.advice import found_by
from pipeline.audit.baseline import (
    Baseline,
    choose_method,
    default_state,
    describe_baseline,
    encode_state,
    pair_with,
    read_baseline,
    read_history,
)
from pipeline.audit.between import Context
from pipeline.audit.comparability import Comparability, Facts, judge
from pipeline.audit.comparison import calm_by_history, compare, with_states
from pipeline.audit.confirm import Model, confirm_shortcut, load_model
from pipeline.audit.examples import Gathered, Pool, gather_examples
from pipeline.audit.findings import DATASET, SEVERITIES, Audit, Examples, Finding, RuleResult, Scope, with_state
from pipeline.audit.report import write_report
from pipeline.audit.rules import RULES
from pipeline.audit.settings import Ignore, Settings
from pipeline.audit.suspects import find_suspects_among, look_for_suspects, sure_from
from pipeline.errors import ConfigError, RunError
from pipeline.observations import read_observations
from pipeline.reading import Run, open_run
from pipeline.sums import Sums
from pipeline.totals import read_sums

FINDINGS, IMAGES, STATE = "findings.json", "findings.parquet", "state.npz"
"""The files of an audit, beside its report."""

NO_BASELINE = "none"

MOST_FINDINGS = 200
"""Of a rule; how many more there are is told, and every class's measurements stand in findings.json."""

MOST_CONFIRMED = 20
"""Shortcuts that a model is asked about: each takes it some 800 images."""


@dataclass(frozen=True)
class AuditOptions:
    """What an audit is asked to do."""

    run: str  # its folder's uri
    out: str | None = None  # folder for the audit's files; None: audit/ of the run
    method: str | None = None  # whose maps are audited; None: the run's first
    baseline: str | None = None  # a run, or an accepted state; "none", or None: what was accepted beside the run
    history: int = 0  # earlier nights beside the run that say what changes are usual
    settings: Settings = field(default_factory=Settings)
    confirm: str | None = None  # a model to ask whether it goes by suspected shortcuts
    preprocess: str | None = None  # for that model; None: as the run's
    allow_unsafe_model: bool = False
    single_file: bool = False  # a report that is one file
    today: datetime.date = field(default_factory=datetime.date.today)

    @property
    def folder(self) -> str:
        """Where the audit's files go."""
        return self.out or storage.join(self.run, "audit")


class UnwrittenError(ConfigError):
    """The folder for an audit's files cannot be written.

    Attributes:
        audit: what was found all the same.
    """

    def __init__(self, message: str, audit: Audit):
        super().__init__(message)
        self.audit = audit


def audit_run(options: AuditOptions) -> Audit:
    """Judges a finished run, and writes findings.json, findings.parquet, state.npz and the report.

    Raises:
        ConfigError: the run has no maps of the method.
        RunError: it cannot be judged: it is missing or damaged, or has no record.
        UnwrittenError: it was judged, and the files cannot be written.
    """
    run = open_run(options.run)
    sums = read_sums(run, choose_method(run, options.method))
    if not sums.n_images and not sums.n_failed:
        raise RunError(f"{options.run!r} cannot be judged: it has no image")
    with tempfile.TemporaryDirectory() as folder:
        images = os.path.join(folder, IMAGES)  # noqa: PTH118 - a string, as all paths of storage
        audit = judge_run(run, sums, options, images)
        try:
            storage.write_file(storage.join(options.folder, IMAGES), images)
            write_audit(audit, sums, run, options)
        except OSError as error:
            why = f"{error.strerror or error} (name another place with --out)"
            raise UnwrittenError(f"the audit in {options.folder!r} cannot be written: {why}", audit) from error
    return audit


def judge_run(run: Run, sums: Sums, options: AuditOptions, images: str) -> Audit:
    """What the rules say of a run; the images of the findings are written to a local Parquet file `images`."""
    settings, baseline = options.settings, find_baseline(options, sums.method)
    model = None
    if options.confirm is not None:
        model = load_model(options.confirm, run, options.preprocess, options.allow_unsafe_model)
    context = _make_context(run, sums, settings, baseline)
    results = run_rules(sums, settings, run.class_names)
    results += compare(sums, baseline.sums if baseline else None, context)
    results = [result for result in results if result.rule not in settings.disabled]
    if options.history:
        results = calm_by_history(results, read_history(options.run, options.history))
    results, gathered = _look_at_images(results, run, sums, model, options, images)
    comparability = judge(context.facts, baseline.facts, sums, baseline.sums) if baseline else None
    results = with_states(results, _earlier_findings(baseline, comparability, context))
    results = [_in_severity(result, settings.severities) for result in results]
    findings, omitted = limit_findings([finding for result in results for finding in result.findings])
    findings = [_with_examples(finding, gathered.get(finding.key)) for finding in findings]
    findings, expired = apply_ignores(findings, settings.ignores, options.today)
    results += [RuleResult.skipped(rule, "switched off by audit.toml") for rule in settings.disabled - {expired.rule}]
    return Audit(
        tool=_tool(),
        run=_describe_run(run, sums, context),
        baseline=describe_baseline(baseline, comparability, context.paired),
        results=tuple(sorted([*results, expired], key=lambda result: result.rule)),
        findings=tuple(sorted(findings, key=_by_gravity)),
        omitted=omitted,
    )


def _look_at_images(
    results: list[RuleResult], run: Run, sums: Sums, model: Model | None, options: AuditOptions, images: str
) -> tuple[list[RuleResult], dict[str, Gathered]]:
    """With the rules that look at images: BC103, and a model's word on BC101; and the images of all findings."""
    settings, wanted = options.settings, [finding for result in results for finding in result.findings]
    wanted, _ = limit_findings(wanted)
    suspects = look_for_suspects(sums) if "BC103" not in settings.disabled else None
    gathered, pool = _gather(run, sums, [*wanted, *([suspects] if suspects else [])], images)
    if "BC103" not in settings.disabled:
        results = [*results, find_suspects_among(sums, settings, gathered.get(suspects.key) if suspects else None)]
    if model is not None:
        results = [_confirmed(result, model, gathered, pool, sums, settings) for result in results]
    return results, gathered


def _describe_run(run: Run, sums: Sums, context: Context) -> dict[str, Any]:
    return {
        "id": run.path,
        "n_images": sums.n_images,
        "n_failed": sums.n_failed,
        "method": sums.method,
        "fingerprints": context.facts.fingerprints() if context.facts else {},
    }


def find_baseline(options: AuditOptions, method: str) -> Baseline | None:
    """What the run is to be compared with: what was named, else what was accepted beside the run, if anything was."""
    if options.baseline == NO_BASELINE:
        return None
    if options.baseline is not None:
        return read_baseline(options.baseline, method)
    accepted = default_state(options.run)
    return read_baseline(accepted) if storage.exists(accepted) else None


def run_rules(sums: Sums, settings: Settings, names: Sequence[str] | None) -> list[RuleResult]:
    """All rules on sums alone."""
    return [find(sums, settings, names) for find in RULES.values()]


def limit_findings(findings: Sequence[Finding], most: int = MOST_FINDINGS) -> tuple[list[Finding], dict[str, int]]:
    """At most so many findings of each rule, the gravest; and rule -> how many more there were."""
    kept, omitted = [], {}
    for rule in sorted({finding.rule for finding in findings}):
        of_rule = sorted((finding for finding in findings if finding.rule == rule), key=_by_gravity)
        kept += of_rule[:most]
        if len(of_rule) > most:
            omitted[rule] = len(of_rule) - most
    return kept, omitted


def apply_ignores(
    findings: Sequence[Finding], ignores: Sequence[Ignore], today: datetime.date
) -> tuple[list[Finding], RuleResult]:
    """Suppresses what is ignored; an ignore whose day has passed is a finding itself, of rule BC304."""
    valid = [ignore for ignore in ignores if ignore.until >= today]
    judged = [with_state(f, "suppressed") if any(i.matches(f) for i in valid) and f.counts else f for f in findings]
    expired = tuple(_expired(ignore, today) for ignore in ignores if ignore.until < today)
    result = RuleResult("BC304", ran=True, n_tested=len(ignores), findings=expired)
    return [*judged, *expired], result


def write_audit(audit: Audit, sums: Sums, run: Run, options: AuditOptions) -> None:
    """Writes findings.json, the state that a later audit can be told to compare with, and the report."""
    content = audit.to_dict()
    storage.write_bytes(storage.join(options.folder, FINDINGS), encode_json(content))
    state = Baseline(run.path, Facts.of(run, sums.method), sums, audit.findings)
    storage.write_bytes(storage.join(options.folder, STATE), encode_state(state))
    write_report(content, sums, run, options.folder, options.single_file)


def encode_json(content: Any) -> bytes:
    """JSON for people and programs: the same bytes for the same content."""
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _make_context(run: Run, sums: Sums, settings: Settings, baseline: Baseline | None) -> Context:
    paired, why_not = pair_with(run, baseline, sums.method)
    return Context(
        run.class_names, settings, Facts.of(run, sums.method), baseline.facts if baseline else None, paired, why_not
    )


def _earlier_findings(
    baseline: Baseline | None, comparability: Comparability | None, context: Context
) -> Sequence[Finding] | None:
    """What the baseline's audit found, or would find by rules on sums; None if that says nothing of this run.

    Of other classes, or of maps that were made otherwise, nothing is known or new: the baseline could not have it.
    """
    if baseline is None or comparability is None:
        return None
    if comparability.reason("class") or comparability.reason("attention"):
        return None
    if baseline.findings is not None:
        return baseline.findings
    return [f for result in run_rules(baseline.sums, context.settings, context.names) for f in result.findings]


def _in_severity(result: RuleResult, severities: Mapping[str, str]) -> RuleResult:
    """With the severity that audit.toml gives the rule."""
    if result.rule not in severities:
        return result
    findings = (dataclasses.replace(finding, severity=severities[result.rule]) for finding in result.findings)
    return dataclasses.replace(result, findings=tuple(findings))


def _confirmed(
    result: RuleResult, model: Model, gathered: Mapping[str, Gathered], pool: Pool, sums: Sums, settings: Settings
) -> RuleResult:
    """With what the model says of the shortcuts; of many only the gravest are asked about."""
    if result.rule != "BC101":
        return result
    rise, asked = settings.of("BC101")["confirmed_rise"], []
    for finding in sorted(result.findings, key=_by_gravity)[:MOST_CONFIRMED]:
        images = gathered[finding.key].sample() if finding.key in gathered else []
        others = pool.others(-1 if finding.scope.index is None else finding.scope.index)
        asked.append(confirm_shortcut(finding, images, others, model, sums.grid, rise))
    told = {finding.key for finding in asked}
    rest = (finding for finding in result.findings if finding.key not in told)
    return dataclasses.replace(result, findings=(*asked, *rest))


def _gather(run: Run, sums: Sums, findings: Sequence[Finding], images: str) -> tuple[dict[str, Gathered], Pool]:
    """The images of all findings that are about images, by the finding's key; the file `images` has them all."""
    pool = Pool()
    wanted = {finding.key: finding for finding in findings if _is_about_images(finding)}
    with parquet.findings_writer(images, {"schema_version": "1"}) as write:
        parts: Iterable[Any] = read_observations(run, sums.method) if wanted else ()
        gathered = gather_examples(list(wanted.values()), parts, sure_from(sums), write, pool)
    return {one.finding.key: one for one in gathered}, pool


def _with_examples(finding: Finding, gathered: Gathered | None) -> Finding:
    """With what the pass has found for it; examples that a finding has already stay."""
    if gathered is None:  # of no images, or of those of another run, which this one's files do not list
        return dataclasses.replace(finding, files=None)
    examples = finding.examples if finding.examples != Examples() else gathered.examples()
    return dataclasses.replace(finding, examples=examples, files=IMAGES if gathered.n else None)


def _is_about_images(finding: Finding) -> bool:
    """Whether images show it; some findings have examples of their own, or are about the run as a whole."""
    if finding.rule in ("BC203", "BC301", "BC302", "BC303", "BC304"):
        return False
    return finding.scope.index is not None or not finding.rule.startswith("BC2")


def _expired(ignore: Ignore, today: datetime.date) -> Finding:
    scope = Scope(None, ignore.class_name) if ignore.class_name else DATASET
    days = (today - ignore.until).days
    message = (
        f"{ignore.rule} of {ignore.class_name or 'all classes'} was to be ignored until {ignore.until} "
        f"({ignore.reason}), and is no more"
    )
    return found_by("BC304", "warning", scope, value=float(days), threshold=0.0, n=0, message=message)


def _by_gravity(finding: Finding) -> tuple[Any, ...]:
    """What counts comes before what does not, the gravest first, and of a rule what exceeds its threshold most."""
    excess = -abs(finding.value) / finding.threshold if finding.threshold > 0 else 0.0
    scope = finding.scope
    place = (-1 if scope.index is None else scope.index, -1 if scope.other is None else scope.other)
    return not finding.counts, -SEVERITIES.index(finding.severity), finding.rule, excess, place, finding.key


def _tool() -> str:
    try:
        return f"beamcam {metadata.version('beamcam')}"
    except metadata.PackageNotFoundError:
        return "beamcam"
