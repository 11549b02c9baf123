"""LAION's aesthetic predictors: a linear head on the CLIP embedding of a picture, about 1 (ugly) … 10 (beautiful).

Shapes: B pictures, D width of the embedding.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError
from ..types import Candidate, digest
from .clip import clip
from .pictures import in_batches

if TYPE_CHECKING:
    from PIL.Image import Image

CLIP_OF_WIDTH = {768: "openai/clip-vit-large-patch14", 512: "openai/clip-vit-base-patch32"}
# Linear layers with dropout between and no activation. The published variants with ReLU have other numbers.
LAYERS_OF_MLP = [f"layers.{number}" for number in (0, 2, 4, 6, 7)]


@dataclass(frozen=True, eq=False)
class Head:
    """Linear layers on a picture's embedding, ``(weight, bias)`` each, read from ``path``.

    Known are one layer (``weight``, ``bias``: LAION-Aesthetics V1, ``sa_0_4_vit_l_14_linear.pth``) and the five of the
    improved aesthetic predictor (V2, ``sac+logos+ava1-l14-linearMSE.pth``), which DDPO uses (arXiv 2305.13301).
    """

    path: Path
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def width(self) -> int:
        """D of the embeddings it was trained on."""
        return self.layers[0][0].shape[1]

    def __call__(self, embeddings_BD: torch.Tensor) -> list[float]:
        """Embeddings of L2-norm 1 → scores."""
        for weight, bias in self.layers:
            embeddings_BD = torch.nn.functional.linear(embeddings_BD, weight, bias)
        return embeddings_BD[:, 0].tolist()


@dataclass(frozen=True, eq=False)
class AestheticReward:
    """``head`` on the L2-normalised CLIP embedding of the picture; the prompt does not matter.

    ``policy`` is the CLIP model; by default the published heads' own by width, OpenAI's ViT-L/14 (768) or ViT-B/32
    (512). A head for another one, as ViT-B/16, needs it named. Shares the model with a CLIP score on the same one.
    """

    head: Head
    policy: str | None = None
    name: str = "aesthetic"

    @property
    def version(self) -> str:
        """Changes with the head's file."""
        return digest(self.head.path.read_bytes()).hex()

    def __call__(self, candidates: Sequence[Candidate]) -> list[float | None]:
        policy = self.policy or CLIP_OF_WIDTH.get(self.head.width)
        if policy is None:
            raise UserError(
                f"reward {self.name!r}: no CLIP model is known for the head {self.head.path}, which takes embeddings "
                f"{self.head.width} wide; write aesthetic:HEAD@CLIPMODEL"
            )
        encoder = clip(policy)

        def score(some: Sequence[Candidate], images: Sequence[Image]) -> list[float]:
            embeddings_BD = encoder.images(images)
            if (found := embeddings_BD.shape[1]) != self.head.width:
                raise UserError(
                    f"reward {self.name!r}: the head {self.head.path} takes embeddings {self.head.width} wide, "
                    f"{policy} gives {found}; name the head's own model: aesthetic:HEAD@CLIPMODEL"
                )
            return self.head(embeddings_BD)

        return in_batches(self.name, candidates, score, "aesthetic")


def read_head(path: Path) -> Head:
    """The head in a .pth (read without running its code) or .safetensors file."""
    tensors = _tensors(path)
    for names in ([""], [f"{layer}." for layer in LAYERS_OF_MLP]):
        if tensors.keys() == {f"{name}{part}" for name in names for part in ("weight", "bias")}:
            layers = [(tensors[f"{name}weight"].float(), tensors[f"{name}bias"].float()) for name in names]
            if _fit(layers):
                return Head(path, tuple(layers))
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    raise UserError(
        f"reward: {path} is no aesthetic head; one linear layer (weight, bias) or the five of the improved aesthetic "
        f"predictor ({', '.join(LAYERS_OF_MLP)}) are known, it holds {shapes or 'nothing'}"
    )


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        found: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise UserError(f"reward: {path}: no such file; give an aesthetic head (.pth or .safetensors)") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"reward: {path} is not a file of weights: {line}") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"reward: {path} is not a file of weights: it holds no names and tensors")
    return found


def _fit(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Each layer takes what the one before gives, and the last gives one number."""
    if not all(weight.dim() == 2 and bias.shape == weight.shape[:1] for weight, bias in layers):
        return False
    sizes = [weight.shape for weight, _ in layers]
    return sizes[-1][0] == 1 and all(before[0] == after[1] for before, after in pairwise(sizes))
