"""Does a reward model prefer what people prefer, and is it as sure as it is right? Figures on held-out rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import replacing

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """``figures`` by name; of each decision how sure the model was (its probability) and whether it was right (a tie is
    half right); the ``scores`` that a histogram shows, by name."""

    figures: Mapping[str, float]
    confidence: np.ndarray
    right: np.ndarray
    scores: Mapping[str, np.ndarray]
    unit: str


def of_pairs(chosen: Sequence[float], rejected: Sequence[float]) -> Calibration:
    """Bradley-Terry: p = σ(r_chosen − r_rejected) is the probability that the chosen one is preferred.

    ``accuracy``: share of pairs with r_chosen > r_rejected, a tie counts half. ``auc``: each pair in both orders, "the
    first is preferred" against the margin. ``ece``: see :func:`expected_calibration_error`; ``margin_mean``,
    ``reward_mean`` and ``reward_std`` in the model's own unit.
    """
    from sklearn.metrics import roc_auc_score

    better, worse = _finite(chosen), _finite(rejected)
    margin = better - worse
    right = (margin > 0) + (margin == 0) / 2
    confidence = _sigmoid(abs(margin))
    both = np.concatenate([margin, -margin])
    figures = {
        "accuracy": float(right.mean()),
        "auc": float(roc_auc_score([1] * len(margin) + [0] * len(margin), both)),
        "ece": expected_calibration_error(confidence, right),
        "margin_mean": float(margin.mean()),
        "reward_mean": float(np.concatenate([better, worse]).mean()),
        "reward_std": float(np.concatenate([better, worse]).std()),
    }
    return Calibration(figures, confidence, right, {"chosen": better, "rejected": worse}, "reward")


def of_classes(logits: Sequence[Sequence[float]], labels: Sequence[int], names: Sequence[str]) -> Calibration:
    """A classifier: p is the softmax of ``logits`` (one row a text, one column a class).

    ``accuracy`` of the most probable class, ``majority`` what always naming the commonest would reach, ``auc`` (of more
    than two classes the mean of one against the rest; absent where a class is not among the labels), ``ece``.
    """
    from sklearn.metrics import roc_auc_score

    found_NC, labels_N = _finite(logits), np.asarray(labels)
    weights_NC = np.exp(found_NC - found_NC.max(-1, keepdims=True))
    p_NC = weights_NC / weights_NC.sum(-1, keepdims=True)
    right = (p_NC.argmax(-1) == labels_N).astype(float)
    confidence = p_NC.max(-1)
    counts = np.bincount(labels_N, minlength=len(names))
    figures = {
        "accuracy": float(right.mean()),
        "majority": float(counts.max() / len(labels_N)),
        "ece": expected_calibration_error(confidence, right),
    }
    if counts.min() > 0:
        binary = len(names) == 2
        margin = found_NC[:, -1] - found_NC[:, 0]  # the order that p has, without its rounding
        figures["auc"] = float(roc_auc_score(labels_N, margin if binary else p_NC, multi_class="ovr"))
    if len(names) == 2:
        margin = found_NC[:, 1] - found_NC[:, 0]
        return Calibration(
            figures,
            confidence,
            right,
            {name: margin[labels_N == at] for at, name in enumerate(names)},
            f"log-odds of {names[1]}",
        )
    shown = {"right": confidence[right == 1], "wrong": confidence[right == 0]}
    return Calibration(figures, confidence, right, shown, "confidence")


def expected_calibration_error(confidence: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> float:
    """Guo et al. 2017 (arXiv 1706.04599, eq. 3): decisions fall into M = 10 bins of equal width by confidence,
    ECE = Σ_m |B_m| / n · |acc(B_m) − conf(B_m)|; bin m holds confidences in ((m − 1) / M, m / M], the first 0 too."""
    return float(sum(count * abs(accuracy - sure) for count, accuracy, sure in _bins(confidence, right) if count))


def _bins(
    confidence: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray
) -> list[tuple[float, float, float]]:
    """Of each bin: its share of the decisions, their accuracy and their mean confidence; a share of 0: no such."""
    sure, correct = np.asarray(confidence, dtype=float), np.asarray(right, dtype=float)
    where = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    rows = [where == number for number in range(BINS)]
    return [
        (row.mean(), correct[row].mean(), sure[row].mean()) if row.any() else (0.0, float("nan"), float("nan"))
        for row in rows
    ]


def plot(path: Path, one: Calibration) -> None:
    """Left how right the model was by how sure it was; right the histogram of its scores. PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = [(number, *found) for number, found in enumerate(_bins(one.confidence, one.right)) if found[0]]
    left.bar([(at + 0.5) / BINS for at, *_ in bins], [accuracy for _, _, accuracy, _ in bins], 0.9 / BINS)
    left.plot([0, 1], [0, 1], "k--", linewidth=1)
    for at, share, accuracy, _ in bins:
        left.annotate(f"{share:.0%}", ((at + 0.5) / BINS, accuracy), ha="center", va="bottom", fontsize=7)
    left.set(xlim=(0, 1), ylim=(0, 1.08), ylabel="share right")
    left.set_xlabel("confidence (above a bar: its share of the decisions)")
    left.set_title(f"{len(one.right)} decisions, accuracy {one.figures['accuracy']:.3f}, ECE {one.figures['ece']:.3f}")
    everything = np.concatenate(list(one.scores.values()))
    edges = np.histogram_bin_edges(everything, 30)
    for name, values in one.scores.items():
        right.hist(values, bins=list(edges), alpha=0.6, label=name)
    right.set(xlabel=one.unit, ylabel="rows")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _finite(values: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    found = np.asarray(values, dtype=float)
    if not np.isfinite(found).all():
        raise UserError("reward-model: scores of the trained model are not numbers; lower --learning-rate")
    return found
