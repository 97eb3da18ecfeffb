"""Findings as a table for a terminal. Imports rich."""

from collections.abc import Sequence

from rich.table import Table

from .findings import Finding


def as_table(findings: Sequence[Finding]) -> Table:
    """One row a finding, a section for each check of a job."""
    table = Table("check", "what", "role", "measured", "bound", "ok", "", box=None, pad_edge=False)
    before = None
    for finding in findings:
        section = f"{finding.job}: {finding.check}"
        table.add_row(
            "" if section == before else section,
            finding.what,
            finding.role,
            f"{finding.measured:.3g}",
            "" if finding.bound is None else f"{finding.bound:.3g}",
            "" if finding.bound is None else "[green]ok[/]" if finding.ok else "[red]OFF[/]",
            finding.note,
        )
        before = section
    return table
