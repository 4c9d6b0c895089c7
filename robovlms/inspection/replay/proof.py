"""Do recorded actions replay? What is computed of it for a report."""

from __future__ import annotations

from dataclasses import dataclass

from robovlms.actions.checks import Finding, Severity
from robovlms.data.windows import WindowDataset
from robovlms.errors import UserError
from robovlms.inspection.replay.following import EntryReplay, follow
from robovlms.inspection.replay.round_trip import EntryRoundTrip, round_trip
from robovlms.inspection.scan import ScannedRows


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """Actions through the policy's words and back, and how the recorded states follow them."""

    round_trip: list[EntryRoundTrip]
    following: list[EntryReplay]
    not_compared: list[str]  # entries of the arm without a recorded state


def prove_replay(dataset: WindowDataset, rows: ScannedRows) -> tuple[ReplayReport, list[Finding]]:
    """Return what replays of the rows that were read, and findings where it does not."""
    findings: list[Finding] = []
    entries: list[EntryRoundTrip] = []
    try:
        there_and_back = round_trip(dataset, rows)
        entries, findings = there_and_back.entries, list(there_and_back.findings)
    except UserError as error:
        what, to_do = f"the actions cannot be normalised: {error}", "Correct what the other findings name first."
        findings.append(Finding(severity=Severity.error, what=what, where="data", to_do=to_do))
    following = follow(dataset.config, rows)
    report = ReplayReport(round_trip=entries, following=following.entries, not_compared=following.not_compared)
    return report, [*findings, *following.findings]
