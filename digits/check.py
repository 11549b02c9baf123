"""Draws with the saved model, has reader and judge read the pictures, and prints what share is as asked.

python digits/check.py --each 20 --sheet /tmp/sheet.png
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # see train.py

import torch
from data import FORBIDDEN, LABELS, SEEN, SIZE
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

STEPS, GUIDANCE, BATCH = 8, 2.5, 64


class Reader:
    """A saved classifier: PIL pictures to labels."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageClassification.from_pretrained(folder).eval()
        self.processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, pictures: list[Image.Image]) -> list[str]:
        found = []
        for start in range(0, len(pictures), 256):
            pixels = self.processor(pictures[start : start + 256], return_tensors="pt").pixel_values
            found += self.model(pixel_values=pixels).logits.argmax(-1).tolist()
        return [self.model.config.id2label[number] for number in found]


def draw(
    pipe: DiffusionPipeline, labels: list[str], side: int, rng: torch.Generator, steps: int, guidance: float
) -> list[Image.Image]:
    """One picture per label."""
    pictures = []
    for start in range(0, len(labels), BATCH):
        prompts = [f"a {label}" for label in labels[start : start + BATCH]]
        drawn = pipe(
            prompts, side, side, num_inference_steps=steps, guidance_scale=guidance, generator=rng, output_type="pil"
        )
        pictures += drawn.images
    return pictures


def right(readers: dict[str, Reader], pictures: list[Image.Image], labels: list[str]) -> dict[str, float]:
    """Share of pictures read as asked, for each reader."""
    found = {name: read(pictures) for name, read in readers.items()}
    return {name: sum(a == b for a, b in zip(f, labels, strict=True)) / len(labels) for name, f in found.items()}


def sheet(pictures: list[Image.Image], columns: int, path: Path) -> None:
    """All pictures in one, row by row, three times as large."""
    side = pictures[0].width
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * side, rows * side))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % columns * side, i // columns * side))
    whole.resize((whole.width * 3, whole.height * 3), Image.Resampling.NEAREST).save(path)


def main() -> None:
    """Prints the table, and one line of JSON with the same figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--each", type=int, default=20, help="pictures of each combination")
    parser.add_argument("--fives", type=int, default=200, help="green fives")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="PNG: a row for each colour, then rows of green fives")
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.folder / "model", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    readers = {name: Reader(args.folder / name) for name in ("reader", "judge")}
    rng = torch.Generator().manual_seed(args.seed)
    fifty, seen, five = LABELS[:-1], [LABELS[i] for i in SEEN], LABELS[FORBIDDEN]
    tasks = {
        "green five": ([five] * args.fives, SIZE),
        "all fifty": (fifty * args.each, SIZE),
        "seen ten": (seen * args.each, SIZE),
        "all fifty at 40x40": (fifty * args.each, 40),
        "seen ten at 40x40": (seen * args.each, 40),
    }
    figures, shown = {}, []
    for name, (labels, side) in tasks.items():
        began = time.perf_counter()
        pictures = draw(pipe, labels, side, rng, args.steps, args.guidance)
        speed = len(pictures) / (time.perf_counter() - began)
        figures[name] = {k: round(v, 4) for k, v in right(readers, pictures, labels).items()}
        figures[name] |= {"pictures": len(pictures), "per_second": round(speed)}
        print(f"{name:20}", *(f"{k} {v:<8}" for k, v in figures[name].items()), flush=True)
        if side == SIZE:
            shown += pictures[:50]
    print(json.dumps({"stage": "check", "steps": args.steps, "guidance": args.guidance, **figures}))
    if args.sheet:
        sheet(shown, 10, args.sheet)


if __name__ == "__main__":
    main()
