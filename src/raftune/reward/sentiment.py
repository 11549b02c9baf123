"""VADER sentiment (Hutto & Gilbert 2014) of the output: the compound score, -1 (negative) … 1 (positive)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import UserError
from ..types import Candidate


@dataclass(frozen=True)
class Vader:
    """Needs the package vaderSentiment (extra ``vader``). An output without a word scores 0, VADER's own neutral."""

    name: str = "vader"

    @cached_property
    def _analyzer(self) -> Any:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError:
            raise UserError("reward 'vader' needs the package vaderSentiment; pip install 'raftune[vader]'") from None
        return SentimentIntensityAnalyzer()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        return [self._analyzer.polarity_scores(c.output.text)["compound"] for c in candidates]
