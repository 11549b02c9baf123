"""Stage 3: reader and judge, two classifiers on disjoint digits with all fifty combinations equally frequent."""

from pathlib import Path

import autoencoder
import build
import junk
import torch
import torch.nn.functional as F  # noqa: N812
from data import JUNK, LABELS, SIZE, Ink, even, label_of, paint, place, shades
from diffusers import AutoencoderKL
from steps import Log, Trainer
from torch import Tensor
from transformers import PreTrainedModel

JUNK_LABEL = LABELS.index(JUNK)
JUNK_SHARE = 0.2
RECONSTRUCTED_SHARE = 0.25  # of a batch: pictures that went through the autoencoder, as all generated ones did
BIG = 40  # the other side length in use


def coloured(ink: Ink, which: Tensor, rng: torch.Generator, wild: bool = True) -> tuple[Tensor, Tensor]:
    """The digits `which` (B,) in even colours with their labels; `wild` also varies size and place."""
    digit = ink.digit[which]
    colour = even(digit, rng)
    spot = place(ink.ink[which], rng, (0.75, 1.15), 3) if wild else place(ink.ink[which], rng)
    return paint(spot, shades(colour, rng)), label_of(colour, digit)


def resized(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 32, 32) enlarged to 40 x 40 and back, with Pillow's kind of smoothing."""
    big = F.interpolate(pictures, (BIG, BIG), mode="bilinear", antialias=True)
    return F.interpolate(big, (SIZE, SIZE), mode="bilinear", antialias=True)


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, pictures: Tensor, rng: torch.Generator) -> Tensor:
    """Pictures (N, 3, 32, 32) through the autoencoder, with up to a quarter of the latents' spread in noise."""
    parts = pictures.split(64)
    noises = torch.rand(len(parts), generator=rng) * 0.25
    return torch.cat([autoencoder.through(vae, part, float(n)) for part, n in zip(parts, noises, strict=True)])


class Examples:
    """Endless training batches: fresh digits, junk from a pool, and both after the autoencoder."""

    def __init__(self, ink: Ink, vae: AutoencoderKL, pool: int, seed: int) -> None:
        self.ink, self.rng = ink, torch.Generator().manual_seed(seed)
        self.junk = junk.draw(ink, pool, seed)
        plain, label = coloured(ink, torch.randint(len(ink.digit), (pool,), generator=self.rng), self.rng)
        kept = self.junk[: round(pool * JUNK_SHARE)]
        pictures = torch.cat([plain, kept])
        order = torch.randperm(len(pictures), generator=self.rng)
        self.again = reconstructed(vae, pictures[order], self.rng)
        self.again_label = torch.cat([label, torch.full((len(kept),), JUNK_LABEL)])[order]

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """n pictures (n, 3, 32, 32) and labels (n,)."""
        again, trash = round(n * RECONSTRUCTED_SHARE), round(n * (1 - RECONSTRUCTED_SHARE) * JUNK_SHARE)
        picks = [
            torch.randint(size, (k,), generator=self.rng)
            for size, k in ((len(self.again), again), (len(self.junk), trash), (len(self.ink.digit), n - again - trash))
        ]
        fresh, label = coloured(self.ink, picks[2], self.rng)
        pictures = torch.cat([self.again[picks[0]], self.junk[picks[1]], fresh])
        labels = torch.cat([self.again_label[picks[0]], torch.full((trash,), JUNK_LABEL), label])
        soft = torch.rand(n, generator=self.rng) < 0.3
        pictures[soft] = resized(pictures[soft])
        # The pools are finite; moving them by a pixel or two keeps them from being known by heart.
        moves = torch.randint(-1, 2, (2,), generator=self.rng).tolist()
        pictures = torch.roll(pictures, moves, (2, 3))
        return pictures + torch.randn(pictures.shape, generator=self.rng) * 0.02, labels


@torch.no_grad()
def predict(model: PreTrainedModel, pictures: Tensor) -> Tensor:
    """Labels (N,) for pictures (N, 3, 32, 32) in [0, 1]."""
    return torch.cat([model(part * 2 - 1).logits.argmax(-1) for part in pictures.split(512)])


def measure(model: PreTrainedModel, vae: AutoencoderKL, test: Ink, n_junk: int, seed: int) -> dict[str, float]:
    """Shares right on digits and junk that no training saw; all measured on the tensors, without Pillow."""
    rng = torch.Generator().manual_seed(seed)
    pictures, label = coloured(test, torch.arange(len(test.digit)), rng, wild=False)
    few = slice(0, 1000)
    rubbish, letters = junk.draw(test, n_junk, seed), junk.draw(test, n_junk // 4, seed, (junk.new_letter,))
    found = predict(model, pictures)
    return {
        "accuracy": (found == label).float().mean().item(),
        "accuracy_40": (predict(model, resized(pictures)) == label).float().mean().item(),
        "accuracy_vae": (predict(model, reconstructed(vae, pictures[few], rng)) == label[few]).float().mean().item(),
        "called_junk": (found == JUNK_LABEL).float().mean().item(),
        "junk_recall": (predict(model, rubbish) == JUNK_LABEL).float().mean().item(),
        "new_letters_recall": (predict(model, letters) == JUNK_LABEL).float().mean().item(),
    }


def train(name: str, ink: Ink, test: Ink, out: Path, steps: int, pool: int, seed: int, log: Log) -> None:
    """Trains `name` ("reader" or "judge") on its digits and saves it with its image processor to out/name."""
    torch.manual_seed(seed)
    vae = AutoencoderKL.from_pretrained(out / "model" / "vae", torch_dtype=torch.float32).requires_grad_(False)
    examples = Examples(ink, vae, pool, seed)
    log(junk=len(examples.junk), reconstructed=len(examples.again))
    model = build.classifier(name)
    trainer = Trainer(model.parameters(), 3e-3 if name == "reader" else 2e-3, steps, decay=0.05)
    every, mean = max(1, steps // 8), 0.0
    for step in range(1, steps + 1):
        pictures, label = examples.batch(256)
        loss = F.cross_entropy(model(pictures * 2 - 1).logits, label, label_smoothing=0.05)
        trainer.step(loss)
        mean += loss.item()
        if step % every == 0:
            log(step=step, loss=mean / every)
            mean = 0.0
    build.save(model, out / name)
    build.processor().save_pretrained(out / name)
    log(steps=steps, **measure(model.eval(), vae, test, 2200 if steps > 100 else 110, seed + 1000))
