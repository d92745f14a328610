"""A rival as a student: known by what it is made from, made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from depthprune_core.records import Plan
from depthprune_study import provenance
from depthprune_study.lab import cache
from depthprune_study.lab.students import Student

if TYPE_CHECKING:
    from depthprune_study.lab.workspace import Workspace


def rival(
    lab: Workspace,
    name: str,
    plan: Plan,
    make: Callable[[], PreTrainedModel],
    *,
    module: str,
    on: Sequence[Any],
) -> Student:
    """A rival, known by what it is made from (the teacher, `on`) and by the code of `module`.

    It is made when something asks for its model: not where all its scores are kept already.
    """
    made_from = [provenance.code_hash(module), cache.content(lab.teacher), list(plan.dropped)]
    content = cache.short_hash([name, *made_from, *(cache.content(item) for item in on)])
    return Student(name, plan, content, make)
