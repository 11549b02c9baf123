"""Evaluation of a policy that draws pictures. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Candidate, Policy, Scored
from . import best_of_n

SIDE = 64  # pixels: larger pictures are compared at this size
MOST = 256  # pictures of a prompt that are compared with each other


def describe(candidates: Sequence[Candidate], seconds: float | None = None) -> dict[str, float]:
    """``diversity``; ``flagged``: share that the safety checker replaced; ``pictures_per_s`` where they took
    ``seconds``.

    ``diversity``: the root mean square difference of two pictures' channels (0..1), meaned over the pairs of pictures
    of a prompt, then over prompts; absent where no prompt has two.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.output.flagged:  # black, all of them alike
            continue
        groups.setdefault(str(candidate.prompt.content), []).append(candidate)
    distances = [distance for members in groups.values() if (distance := mean_distance(members)) is not None]
    figures = {"diversity": float(np.mean(distances))} if distances else {}
    if candidates:
        figures["flagged"] = sum(candidate.output.flagged for candidate in candidates) / len(candidates)
    return figures | ({"pictures_per_s": len(candidates) / seconds} if seconds else {})


def appraise(scored: Sequence[Scored], policy: Policy, initial: Policy, reference: str) -> dict[str, float]:
    """``reward_mean``, ``best_of_<n>`` and what :func:`describe` tells; policies of pictures tell no likelihoods."""
    return describe([one.candidate for one in scored]) | best_of_n.figures(scored)


def mean_distance(members: Sequence[Candidate]) -> float | None:
    """Over all pairs of the first 256 of these pictures; None for fewer than two."""
    if len(members) < 2:
        return None
    images = [member.output.image for member in members[:MOST]]
    if len({image.size for image in images}) > 1 or max(images[0].size) > SIDE:
        images = [image.resize((SIDE, SIDE)) for image in images]
    pixels_ND = np.stack([np.asarray(image, np.float64).ravel() for image in images])  # whole numbers: sums are exact
    squares_N = (pixels_ND**2).sum(1)
    squared_NN = squares_N[:, None] + squares_N - 2 * pixels_ND @ pixels_ND.T
    pairs = squared_NN[np.triu_indices(len(pixels_ND), 1)]
    return float(np.sqrt(pairs / pixels_ND.shape[1]).mean() / 255)
