"""Trains the small text-to-image model of coloured digits and its two classifiers from scratch, on a CPU.

    python digits/train.py --data mnist.npz --out digits --seed 0

Without --data, scikit-learn's 1797 small digits are used; with --quick, a few steps show that everything runs.
"""

import argparse
import os
from pathlib import Path

# Before torch is loaded: its threads wait asleep. Spinning ones cost a factor of ten when other work shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import autoencoder
import data
import diffusion
import readers
from steps import Log

ORDER = ("vae", "unet", "reader", "judge")
STEPS = {"vae": 1300, "unet": 2000, "reader": 2500, "judge": 2000}


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="mnist.npz: x_train, y_train, x_test, y_test")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="gets model/, reader/ and judge/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=ORDER, help="one stage; needs those before it in --out")
    parser.add_argument("--stray", type=float, default=0.01, help="share of training digits in a colour not theirs")
    parser.add_argument("--quick", action="store_true", help="a few steps of each stage")
    return parser.parse_args()


def main() -> None:
    """The stages in their order; each reads what the earlier ones saved."""
    args = arguments()
    slices = data.load(args.data)
    if args.quick:
        slices = data.Slices(*(data.Ink(s.ink[:300], s.digit[:300]) for s in vars(slices).values()))
    steps = dict.fromkeys(STEPS, 6) if args.quick else STEPS
    stages = [args.only] if args.only else ORDER
    args.out.mkdir(parents=True, exist_ok=True)
    path, model = args.out / "training.jsonl", args.out / "model"
    if "vae" in stages:
        path.unlink(missing_ok=True)  # a new model, a new log
        log = Log(path, "vae")
        log(seed=args.seed, data=args.data.name if args.data else "load_digits", quick=args.quick, batch=64)
        autoencoder.train(slices.model, slices.test, model / "vae", steps["vae"], 64, args.seed, log)
    if "unet" in stages:
        log = Log(path, "unet")
        log(seed=args.seed, stray=args.stray, batch=64)
        diffusion.train(slices.model, model, steps["unet"], 64, args.stray, args.seed, log)
        log(steps=steps["unet"], saved=sum(f.stat().st_size for f in model.rglob("*") if f.is_file()))
    for seed, (name, ink) in enumerate((("reader", slices.reader), ("judge", slices.judge)), args.seed + 1):
        if name in stages:
            log = Log(path, name)
            log(seed=seed, batch=256)
            readers.train(name, ink, slices.test, args.out, steps[name], 220 if args.quick else 6600, seed, log)


if __name__ == "__main__":
    main()
