"""params/claims.yaml as pydantic models: the claims, and the numbers of the rule that gives each its verdict."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from depthprune_study import places, yaml_files
from depthprune_study.settings import StudyError

RuleOf = TypeVar("RuleOf")


class _OfClaims(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Equal(_OfClaims):
    kind: Literal["equal"]
    values: Annotated[list[float], Field(min_length=2, max_length=2)]
    tolerance: Annotated[float, Field(ge=0, description="points")]


class _AtMost(_OfClaims):
    kind: Literal["at_most"]
    threshold: float


class _AtMostCut(_OfClaims):
    kind: Literal["at_most_cut"]
    threshold: float
    removed: Annotated[float, Field(gt=0, lt=1, description="share of the parameters that the source's cut removes")]
    tolerance: Annotated[float, Field(ge=0, lt=1, description="how far a cut's share may be from it, as a part of it")]


class _BothAtMost(_OfClaims):
    kind: Literal["both_at_most"]
    threshold: float


class _AtLeast(_OfClaims):
    kind: Literal["at_least"]
    threshold: float


class _Within(_OfClaims):
    kind: Literal["within"]
    low: float
    high: float


class _CleanThenMixed(_OfClaims):
    kind: Literal["clean_then_mixed"]
    clean: float


class _Spread(_OfClaims):
    kind: Literal["spread"]
    reproduced: Annotated[float, Field(ge=0)]
    not_reproduced: Annotated[float, Field(ge=0)]


class _Probability(_OfClaims):
    kind: Literal["probability"]
    holds: Annotated[float, Field(ge=0, le=1)]
    fails: Annotated[float, Field(ge=0, le=1)]
    critical_share: Annotated[float, Field(gt=0, le=1)]


class _WinnerChanges(_OfClaims):
    kind: Literal["winner_changes"]
    pairs: Annotated[int, Field(ge=2)]
    seeds: Annotated[int, Field(ge=1)]


class _Claim(_OfClaims, Generic[RuleOf]):
    claim: str
    source: str
    rule: RuleOf


class _Target(_OfClaims):
    model: str
    fewer: Annotated[int, Field(ge=1, description="layers dropped")]
    tokens: Annotated[int, Field(ge=1, description="recovery tokens, at most")]
    threshold: Annotated[float, Field(gt=0, description="PPL ratio to the frozen whole model on the test articles, at most")]


class Claims(_OfClaims):
    """params/claims.yaml: every claim that claims.py measures, with the numbers of the rule that it applies."""

    C1: _Claim[_Equal]
    C2: _Claim[_AtMostCut]
    C3: _Claim[_Within]
    C4: _Claim[_AtMostCut]
    C5: _Claim[_AtMostCut]
    C6: _Claim[_CleanThenMixed]
    C7: _Claim[_Spread]
    C8: _Claim[_Probability]
    C9: _Claim[_WinnerChanges]
    C10: _Claim[_AtMost]
    C11: _Claim[_AtMost]
    C12: _Claim[_AtLeast]
    C13: _Claim[_BothAtMost]
    C14: _Claim[_AtLeast]
    target: _Target


def read() -> Claims:
    """The claims and their rules. Raises StudyError with every problem found."""
    found, claims = yaml_files.read(places.PARAMS / "claims.yaml", Claims)
    if found:
        raise StudyError("\n".join(f"params/claims.yaml: {problem}" for problem in found))
    return claims
