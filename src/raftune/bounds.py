"""How much memory a stage can need at most: bytes from shapes, term by term, so that a person sees what is large.

The terms of a stage stand side by side in memory, so they add up; a stage that first loads and then works needs the
larger of the two. Where a formula comes from stands beside it; docs/memory.md holds all against measured peaks.
No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Terms = Mapping[str, float]
HEAP = 1.15  # what an allocator holds over what is asked of it: freed holes between tensors that stay
LATER = 1.1  # what a process grows to with the libraries that it meets on its way
SHORT = 256  # tokens up to which attention on a CPU keeps its scores (models.attend)
BLOCK = 16  # positions of the suffix cache allocated at a time
FLOAT = 4


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. ``query``, ``key``: heads × head width; ``inner``: of the feed-forward; ``stored``: bytes of
    the checkpoint's files; ``width``: bytes a number in the precision that is computed in."""

    parameters: int
    layers: int
    hidden: int
    inner: int
    heads: int
    query: int
    key: int
    vocabulary: int
    stored: int
    width: int = 2

    @property
    def cache(self) -> int:
        """Bytes of keys and values a token."""
        return 2 * self.layers * self.key * self.width

    @property
    def weights(self) -> int:
        return self.parameters * self.width

    @property
    def within(self) -> int:
        """Bytes a token that one layer holds while it runs and keeps nothing: its input and output in float32, queries,
        keys and values, and the feed-forward's three products."""
        return 2 * FLOAT * self.hidden + self.width * (2 * self.query + 2 * self.key + 3 * self.inner)

    @property
    def kept(self) -> int:
        """Bytes a token and layer that the backward pass needs, under autocast over a float32 residual stream.

        After the count of Korthikanti et al. (arXiv 2205.05198, section 4.1) for the layers of today: two
        normalisations (each its input, the scaled input and their product in float32, the cast one in ``width``), the
        residual sums; queries, keys and values before and after their rotation, what attention returns, its projection;
        gate, up, the activation of the gate and their product. Attention itself keeps no scores (SDPA)."""
        floats = 2 * 3 * self.hidden + 2 * self.hidden
        cast = 2 * self.hidden + 4 * (self.query + self.key) + 2 * self.query + self.hidden + 4 * self.inner
        return FLOAT * floats + self.width * cast


def total(terms: Terms) -> float:
    return sum(terms.values())


def larger(*stages: Terms) -> Terms:
    """The stage that needs most."""
    return max(stages, key=total)


def loading(shape: Shape) -> Terms:
    """The file is mapped while its numbers are put into the precision that is computed in."""
    return {"weights": shape.weights, "file": shape.stored}


def sampling(shape: Shape, rows: int, prompts: int, prompt: int, new: int, tempered: bool = False) -> Terms:
    """``rows`` continuations at once of ``prompts`` prompts of ``prompt`` tokens, ``new`` tokens long.

    Logits: the step's, those of the step before (both in ``width``), and the weights they are drawn by (float32), of
    which a temperature or a cut needs another copy for the log-probability, and one more for its sum. The suffix cache
    is allocated in blocks; while it grows, one layer is there twice. Attention's scores go through one softmax in
    float32.
    """
    reach = min(new, -(-new // BLOCK) * BLOCK)
    scores = rows * shape.heads * (prompt + reach) * (3 * shape.width + FLOAT)
    return {
        "weights": shape.weights,
        "logits": rows * shape.vocabulary * (2 * shape.width + FLOAT * (3 if tempered else 1)),
        "prefix cache": prompts * prompt * shape.cache,
        "suffix cache": rows * reach * shape.cache * (1 + 1 / shape.layers),
        "activations": max(prompts * prompt * shape.within, rows * shape.within + scores),
    }


def reading(shape: Shape, rows: int, prompt: int, output: int) -> Terms:
    """A teacher-forced pass: logits where there is an output token and one beyond, in ``width``, and in float32 where
    rows do not go through a cache a few at a time."""
    return {
        "weights": shape.weights,
        "logits": rows * (output + 1) * shape.vocabulary * (shape.width + FLOAT),
        "activations": rows * (prompt + output) * shape.within,
    }


def tuning(
    shape: Shape,
    rows: int,
    prompt: int,
    output: int,
    adapter: int | None = None,
    moment: float = FLOAT,
    checkpointing: bool = False,
) -> Terms:
    """``rows`` outputs through the model at once, forward and backward. ``adapter``: parameters of a LoRA, None where
    all are tuned; ``moment``: bytes of one of the optimiser's two moments a parameter.

    Full: weights and gradients in float32 and, under autocast, the weights once more in ``width``. LoRA: the frozen
    weights in ``width``, the rest of the adapter alone. Logits: they and their gradients in ``width``, and where rows
    do not go through a cache a few at a time, the float32 numbers between them.
    """
    tuned = shape.parameters if adapter is None else adapter
    tokens = rows * (prompt + output)
    cast = shape.width * tuned if shape.width < FLOAT else 0
    per_token = shape.kept * shape.layers
    if prompt + output <= SHORT:  # plain attention on a CPU: every score, in float32 and cast, and keys and values
        per_token += shape.layers * (shape.heads * (prompt + output) * (FLOAT + shape.width) + shape.query * 4)
    if adapter is not None:  # the inputs of seven adapters in float32 and cast, and what they return
        per_token += shape.layers * (FLOAT + shape.width) * (4 * shape.hidden + shape.query + shape.inner) // 2
    if checkpointing:  # one layer's at a time, and each layer's input
        per_token = per_token // shape.layers + FLOAT * shape.hidden * shape.layers
    return {
        "weights": FLOAT * tuned if adapter is None else shape.weights + FLOAT * tuned,
        "gradients": FLOAT * tuned,
        "moments": 2 * moment * tuned,
        "cast weights": cast,
        "activations": tokens * per_token,
        "logits": rows * (output + 1) * shape.vocabulary * 2 * (shape.width + FLOAT),
    }


def reached(stages: Mapping[str, float], process: float, again: bool = True, kept: float = 0.0) -> dict[str, float]:
    """What the system will say a stage reached (``memory/<stage>_bytes``): what it needs with the process below it, or
    what the stages before it left with the allocator, which goes back when the next model is loaded.

    ``stages``: bytes that ``sample``, ``score``, ``tune`` and ``evaluate`` need by themselves; ``again``: there is a
    second round, whose sampling begins with what a tuning left; ``kept``: bytes of a tuned model that wait for the
    garbage collector while the next is evaluated.
    """
    need = {name: LATER * process + HEAP * value for name, value in stages.items()}
    left = max(need.get("tune", 0.0), need.get("evaluate", 0.0) + HEAP * kept)
    # In the first round the policy that was evaluated draws: nothing is loaded in between, so both hold their heaps
    both = need.get("evaluate", 0.0) + HEAP * stages.get("sample", 0.0)
    found = {
        "sample": max(need.get("sample", 0.0), both, left if again else 0.0),
        "score": max(need.get("score", 0.0), both),
    }
    return found | {"tune": max(need.get("tune", 0.0), both), "evaluate": left}
