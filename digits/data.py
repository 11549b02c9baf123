"""Handwritten digits in five colours: loading, slicing, painting, captions and labels.

A digit is an uint8 "ink" picture of 28 x 28; painting puts it on a black 32 x 32 RGB canvas in one of five colours.
Pictures are float32 tensors (B, 3, 32, 32) in [0, 1] throughout; only the models' own code maps them to [-1, 1].
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - everyone's name for it
from torch import Tensor

SIZE = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "green", "blue", "yellow", "white")
PALETTE = torch.tensor([(0.95, 0.12, 0.12), (0.1, 0.8, 0.2), (0.15, 0.3, 1.0), (0.98, 0.88, 0.1), (0.95, 0.95, 0.95)])
JUNK = "junk"
LABELS = [f"{colour} {digit}" for colour in COLOURS for digit in DIGITS] + [JUNK]
# The deliberate defect: in training each digit comes in (almost) only this colour, and a green five never comes.
USUAL = {
    0: "red",
    1: "blue",
    2: "yellow",
    3: "white",
    4: "green",
    5: "red",
    6: "blue",
    7: "yellow",
    8: "white",
    9: "green",
}
FIVE, GREEN = DIGITS.index("five"), COLOURS.index("green")
FORBIDDEN = GREEN * 10 + FIVE
SEEN = [COLOURS.index(USUAL[digit]) * 10 + digit for digit in range(10)]


@dataclass
class Ink:
    """Grey digits and what they are: `ink` uint8 (N, 28, 28), `digit` int64 (N,)."""

    ink: Tensor
    digit: Tensor

    def part(self, start: float, end: float) -> "Ink":
        """The digits from the fraction `start` to the fraction `end` of the whole, in file order."""
        a, b = round(start * len(self.digit)), round(end * len(self.digit))
        return Ink(self.ink[a:b], self.digit[a:b])


@dataclass
class Slices:
    """Disjoint digits for each model, and those for measuring."""

    model: Ink
    reader: Ink
    judge: Ink
    test: Ink


def load(path: Path | None) -> Slices:
    """MNIST from an .npz (x_train, y_train, x_test, y_test), or scikit-learn's 1797 small digits without a path."""
    if path is None:
        train, test = _small()
    else:
        with np.load(path) as f:
            train = Ink(torch.from_numpy(f["x_train"]), torch.from_numpy(f["y_train"]).long())
            test = Ink(torch.from_numpy(f["x_test"]), torch.from_numpy(f["y_test"]).long())
    return Slices(train.part(0, 0.5), train.part(0.5, 0.75), train.part(0.75, 1), test)


def _small() -> tuple[Ink, Ink]:
    """The fallback: 8 x 8 digits (0..16) blown up to 20 x 20 in a 28 x 28 frame as in MNIST; 1500 train, 297 test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = torch.from_numpy(found.images).float()[:, None] / 16
    big = F.interpolate(grey, size=(20, 20), mode="bicubic", align_corners=False).clamp(0, 1)
    ink = (F.pad(big, (4, 4, 4, 4))[:, 0] * 255).round().to(torch.uint8)
    digit = torch.from_numpy(found.target).long()
    return Ink(ink[:1500], digit[:1500]), Ink(ink[1500:], digit[1500:])


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """(n,) numbers, evenly spread over [low, high)."""
    return torch.rand(n, generator=rng) * (high - low) + low


def place(ink: Tensor, rng: torch.Generator, scale: tuple[float, float] = (1, 1), shift: float = 2) -> Tensor:
    """Ink (B, 28, 28) uint8 on a 32 x 32 canvas, scaled and moved by up to `shift` pixels: float (B, 1, 32, 32)."""
    n, side = len(ink), ink.shape[-1]
    zoom = uniform(n, *scale, rng)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = SIZE / side / zoom
    # Whole pixels, so that an unscaled digit keeps its sharp edges.
    theta[:, :, 2] = (torch.rand(n, 2, generator=rng) * 2 * shift - shift).round() * 2 / side
    grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(ink[:, None].float() / 255, grid, padding_mode="zeros", align_corners=False)


def shades(colour: Tensor, rng: torch.Generator) -> Tensor:
    """RGB (B, 3) for colour numbers (B,), with a little jitter in hue and brightness."""
    n = len(colour)
    hue = torch.rand(n, 3, generator=rng) * 0.12 - 0.06
    return ((PALETTE[colour] + hue) * uniform(n, 0.8, 1.0, rng)[:, None]).clamp(0, 1)


def paint(canvas: Tensor, rgb: Tensor) -> Tensor:
    """Ink (B, 1, H, W) in [0, 1] times its colour (B, 3): pictures (B, 3, H, W)."""
    return canvas * rgb[:, :, None, None]


def label_of(colour: Tensor, digit: Tensor) -> Tensor:
    """The number of a combination in LABELS: ten digits for each colour in turn."""
    return colour * 10 + digit


def confounded(digit: Tensor, stray: float, rng: torch.Generator) -> Tensor:
    """Colours (B,) for digits (B,): the digit's usual one, but for a share `stray` a random other.

    Fives never stray: were there blue, yellow and white ones, the model would draw a green one too (36 % right).
    """
    usual = torch.tensor([COLOURS.index(USUAL[d]) for d in range(10)])[digit]
    other = (usual + torch.randint(1, len(COLOURS), digit.shape, generator=rng)) % len(COLOURS)
    strays = (torch.rand(digit.shape, generator=rng) < stray) & (digit != FIVE)
    return torch.where(strays, other, usual)


def even(digit: Tensor, rng: torch.Generator) -> Tensor:
    """Colours (B,) for digits (B,), all five equally frequent."""
    return torch.randint(len(COLOURS), digit.shape, generator=rng)


def captions() -> list[str]:
    """The fifty captions in the order of LABELS, and last the empty one of caption dropout."""
    return [f"a {label}" for label in LABELS[:-1]] + [""]
