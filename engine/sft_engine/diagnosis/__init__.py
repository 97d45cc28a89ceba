"""Diagnosis of a run: findings from its records, each with evidence and remedies; imports no torch."""

from __future__ import annotations

from sft_engine.diagnosis.evidence import Evidence, read_evidence
from sft_engine.diagnosis.finding import LEVELS, Finding, Remedy
from sft_engine.diagnosis.rules import findings_of

__all__ = ["LEVELS", "Evidence", "Finding", "Remedy", "findings_of", "read_evidence"]
