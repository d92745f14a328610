"""Findings: sentences about the records that stay true for every outcome.

Notebooks and the report call these functions. Every number is formatted from a record.
"""

from depthprune_study.report.findings.choice import choice, regret, sizes, speed, winner
from depthprune_study.report.findings.healing import (
    control,
    conventional,
    curves,
    divergences,
    elsewhere,
    path,
    probes,
)
from depthprune_study.report.findings.layers import criteria, pairs, profile, rules
from depthprune_study.report.findings.limits import budget, depth, recipe, rivals, rounding
from depthprune_study.report.findings.repeats import adapters, seeds, staged, transfer, width
from depthprune_study.report.rules import SOURCE_POINTS
from depthprune_study.report.wording import Finding
