"""Diversity of texts: distinct-n (Li et al. 2016), unique-n and MSTTR-100 (Johnson 1944), on lower-cased words.

No torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

WORD = re.compile(r"\w+(?:'\w+)?")


def words(text: str) -> list[str]:
    """Lower-cased words, apostrophes inside kept."""
    return WORD.findall(text.lower())


def figures(texts: Sequence[str]) -> dict[str, float]:
    """``distinct_1``, ``distinct_2``, ``unique_1``, ``unique_2``, ``msttr_100``; absent where it cannot be measured."""
    split = [words(text) for text in texts]
    grams = {n: _ngrams(split, n) for n in (1, 2)}
    different = {n: len(set(some)) for n, some in grams.items()}
    found = {f"distinct_{n}": different[n] / len(some) if some else None for n, some in grams.items()}
    found |= {f"unique_{n}": count if texts else None for n, count in different.items()}
    found["msttr_100"] = _msttr(split, 100)
    return {name: value for name, value in found.items() if value is not None}


def ngrams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of words; none crosses from one text into the next."""
    return _ngrams([words(text) for text in texts], n)


def _ngrams(split: Sequence[list[str]], n: int) -> list[tuple[str, ...]]:
    return [gram for some in split for gram in zip(*(some[start:] for start in range(n)), strict=False)]


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams over all n-grams of all texts, 0..1; None where no text has n words."""
    grams = ngrams(texts, n)
    return len(set(grams)) / len(grams) if grams else None


def unique(texts: Sequence[str], n: int) -> int | None:
    """Number of different n-grams of all texts (the paper's tables); None where there is no text.

    It grows with the number and the length of the texts: only equal numbers of outputs compare.
    """
    return len(set(ngrams(texts, n))) if texts else None


def msttr(texts: Sequence[str], segment: int = 100) -> float | None:
    """Mean share of different words in successive segments of ``segment`` words of the joined texts, 0..1.

    The last, shorter segment is left out; None where there are fewer than ``segment`` words.
    """
    return _msttr([words(text) for text in texts], segment)


def _msttr(split: Sequence[list[str]], segment: int) -> float | None:
    joined = [word for some in split for word in some]
    segments = [joined[i : i + segment] for i in range(0, len(joined) - segment + 1, segment)]
    return sum(len(set(s)) / segment for s in segments) / len(segments) if segments else None
