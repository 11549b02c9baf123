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


def ngrams(texts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams of words; none crosses from one text into the next."""
    return [tuple(w[i : i + n]) for w in map(words, texts) for i in range(len(w) - n + 1)]


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
    joined = [word for text in texts for word in words(text)]
    segments = [joined[i : i + segment] for i in range(0, len(joined) - segment + 1, segment)]
    return sum(len(set(s)) / segment for s in segments) / len(segments) if segments else None
