"""Pictures that are no single digit in one of the five colours: what reader and judge must call junk.

Without them a reader has to call everything some digit, and a "=" passes for a five, a "C" for a six: a reward that
fine-tuning would soon exploit. Drawn with NumPy and Pillow alone. One picture: float32 (3, 32, 32) in [0, 1].
"""

import string
from collections.abc import Callable

import numpy as np
import torch
from data import PALETTE, SIZE, Ink
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Picture = NDArray[np.float32]
Rng = np.random.Generator
COLOURS_RGB = PALETTE.numpy()
# Left out: letters that a fair reader may take for a digit (O zero, l one, Z two, S five, b six, q nine ...).
CONFUSABLE = set("OoQDIl|1SsZzBgqbGTijJL/\\!()[]{}Yyu'`,.-_;:A") | set(string.digits) | set(string.whitespace)
CHARACTERS = [c for c in string.printable if c not in CONFUSABLE | set("HMPW%&")]
# Never shown in training, so that the measured recall is not only that of letters known by heart.
NEW_CHARACTERS = list("HMPW%&")


def canvas(ink: NDArray[np.uint8], rng: Rng, shift: int = 2) -> Picture:
    """One 28 x 28 digit somewhere on the 32 x 32 canvas, in [0, 1]."""
    out = np.zeros((SIZE, SIZE), np.float32)
    top, left = rng.integers(2 - shift, 3 + shift, 2)
    out[top : top + 28, left : left + 28] = ink / 255
    return out


def colour(rng: Rng) -> Picture:
    """One of the five colours, with jitter: (3,)."""
    jitter = rng.uniform(-0.06, 0.06, 3)
    return ((COLOURS_RGB[rng.integers(5)] + jitter).clip(0, 1) * rng.uniform(0.8, 1)).astype(np.float32)


def between(rng: Rng) -> Picture:
    """A colour that is none of the five, far enough from each: (3,)."""
    while True:
        rgb = rng.uniform(0, 1, 3) if rng.random() < 0.5 else COLOURS_RGB[rng.choice(5, 2, replace=False)].mean(0)
        direction = COLOURS_RGB / np.linalg.norm(COLOURS_RGB, axis=1, keepdims=True)
        if rgb.max() > 0.35 and (direction @ (rgb / np.linalg.norm(rgb))).max() < 0.93:
            return rgb.astype(np.float32)


def inked(ink: Picture, rgb: Picture) -> Picture:
    """Ink (32, 32) in a colour (3,): (3, 32, 32)."""
    return ink[None] * rgb[:, None, None]


def some(digits: Ink, rng: Rng, *allowed: int) -> tuple[Picture, int]:
    """A random digit on its canvas and which it is; only the `allowed` ones if any are given."""
    while True:
        at = int(rng.integers(len(digits.digit)))
        if not allowed or int(digits.digit[at]) in allowed:
            return canvas(digits.ink[at].numpy(), rng), int(digits.digit[at])


def letter(digits: Ink, rng: Rng, characters: list[str] | None = None) -> Picture:
    """A letter or sign in Pillow's built-in font, a little turned and sometimes fat."""
    text = str(rng.choice(characters or CHARACTERS))
    picture = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=float(rng.uniform(18, 30)))
    at = tuple(SIZE / 2 + rng.uniform(-3, 3, 2))
    draw.text(at, text, fill=255, font=font, anchor="mm", stroke_width=int(rng.integers(0, 2)))
    picture = picture.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR)
    return inked(np.asarray(picture, np.float32) / 255, colour(rng))


def new_letter(digits: Ink, rng: Rng) -> Picture:
    """A letter that training never shows."""
    return letter(digits, rng, NEW_CHARACTERS)


def strokes(digits: Ink, rng: Rng) -> Picture:
    """Three to six lines and arcs."""
    picture = Image.new("L", (SIZE * 2, SIZE * 2))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 7)):
        a, b = rng.uniform(6, 2 * SIZE - 6, 2), rng.uniform(6, 2 * SIZE - 6, 2)
        width = int(rng.integers(3, 7))
        if rng.random() < 0.6:
            draw.line([*a, *b], fill=255, width=width)
        else:
            box = [*np.minimum(a, b), *(np.maximum(a, b) + 1)]
            start = float(rng.uniform(0, 360))
            draw.arc(box, start, start + float(rng.uniform(60, 300)), fill=255, width=width)
    small = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return inked(np.asarray(small, np.float32) / 255, colour(rng))


def half(digits: Ink, rng: Rng) -> Picture:
    """Half a digit; of those only whose halves are no digits themselves (half a seven may be a one)."""
    ink, digit = some(digits, rng, 0, 2, 3, 5, 8)
    rows, columns = np.nonzero(ink > 0.3)
    middle = round((rows.min() + rows.max()) / 2), round((columns.min() + columns.max()) / 2)
    cuts = [np.s_[: middle[0]], np.s_[middle[0] :], np.s_[:, : middle[1]], np.s_[:, middle[1] :]]
    ink[cuts[rng.integers(2 if digit == 8 else 4)]] = 0
    return inked(ink, colour(rng))


def overlaid(digits: Ink, rng: Rng) -> Picture:
    """Two different digits on top of each other, in one colour or in two."""
    first, digit = some(digits, rng)
    second, _ = some(digits, rng, *(d for d in (0, 2, 3, 4, 5, 6, 7, 8) if d != digit))
    second = np.roll(second, tuple(rng.integers(-4, 5, 2)), (0, 1))
    rgb = colour(rng)
    return np.maximum(inked(first, rgb), inked(second, rgb if rng.random() < 0.6 else colour(rng)))


def shuffled(digits: Ink, rng: Rng) -> Picture:
    """A digit cut into 4 x 4 tiles that change places."""
    ink, _ = some(digits, rng, 0, 2, 3, 4, 5, 6, 8, 9)
    tiles = ink.reshape(4, 8, 4, 8).swapaxes(1, 2).reshape(16, 8, 8)
    tiles = tiles[rng.permutation(16)]
    return inked(tiles.reshape(4, 4, 8, 8).swapaxes(1, 2).reshape(SIZE, SIZE), colour(rng))


def noise(digits: Ink, rng: Rng) -> Picture:
    """Fine or coarse noise, coloured or grey, sometimes in spots."""
    coarse = int(rng.choice([1, 2, 4, 8]))
    field = rng.uniform(0, 1, (3 if rng.random() < 0.5 else 1, SIZE // coarse, SIZE // coarse)).astype(np.float32)
    field = field.repeat(coarse, 1).repeat(coarse, 2)
    if rng.random() < 0.5:
        field = field * (field > rng.uniform(0.3, 0.9))
    return field * colour(rng)[:, None, None]


def blank(digits: Ink, rng: Rng) -> Picture:
    """One flat colour, mostly nearly black."""
    rgb = between(rng) if rng.random() < 0.3 else np.full(3, rng.uniform(0, 0.15), np.float32)
    return np.broadcast_to(rgb[:, None, None], (3, SIZE, SIZE)) + rng.normal(0, 0.01, (3, SIZE, SIZE))


def two_colours(digits: Ink, rng: Rng) -> Picture:
    """A digit in one colour above or left and another below or right."""
    ink, _ = some(digits, rng)
    a, b = rng.choice(5, 2, replace=False)
    rows, columns = np.nonzero(ink > 0.3)
    across = rng.random() < 0.3 and columns.max() - columns.min() > 10
    middle = (columns.min() + columns.max()) / 2 if across else (rows.min() + rows.max()) / 2
    ramp = ((np.arange(SIZE) - middle) / rng.uniform(0.5, 4)).clip(-0.5, 0.5) + 0.5
    mask = np.broadcast_to(ramp if across else ramp[:, None], (SIZE, SIZE)).astype(np.float32)
    return inked(ink * (1 - mask), COLOURS_RGB[a]) + inked(ink * mask, COLOURS_RGB[b])


def odd_colour(digits: Ink, rng: Rng) -> Picture:
    """A digit in a colour between the five."""
    return inked(some(digits, rng)[0], between(rng))


def ground(digits: Ink, rng: Rng) -> Picture:
    """A digit on a coloured ground: black on one colour, or one colour on another."""
    ink, _ = some(digits, rng)
    back = colour(rng) * rng.uniform(0.5, 1)
    front = np.zeros(3, np.float32) if rng.random() < 0.5 else between(rng)
    return inked(1 - ink, back) + inked(ink, front)


KINDS: tuple[Callable[[Ink, Rng], Picture], ...] = (
    letter, letter, strokes, half, overlaid, shuffled, noise, blank, two_colours, odd_colour, ground,
)  # fmt: skip


def draw(digits: Ink, n: int, seed: int, kinds: tuple[Callable[[Ink, Rng], Picture], ...] = KINDS) -> Tensor:
    """n junk pictures (n, 3, 32, 32), the kinds in turn, made of these digits."""
    rng = np.random.default_rng(seed)
    pictures = [kinds[i % len(kinds)](digits, rng) for i in range(n)]
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).clamp(0, 1)
