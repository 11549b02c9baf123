"""What every training stage shares: the optimiser with its learning-rate curve, one step, and the log."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR


class Log:
    """Prints figures and appends them as JSON lines, each with its stage and the seconds since the stage began."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage, self.began = path, stage, time.perf_counter()

    def __call__(self, **figures: Any) -> None:
        seconds = round(time.perf_counter() - self.began, 1)
        figures = {k: round(v, 5) if isinstance(v, float) else v for k, v in figures.items()}
        line = json.dumps({"stage": self.stage, "seconds": seconds, **figures})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Trainer:
    """AdamW under a one-cycle learning rate, for a number of steps known beforehand."""

    def __init__(self, parameters: Iterable[Parameter], peak: float, steps: int, decay: float = 0.01) -> None:
        self.parameters = list(parameters)
        self.optimiser = AdamW(self.parameters, lr=peak, weight_decay=decay)
        self.curve = OneCycleLR(self.optimiser, peak, total_steps=steps + 1, pct_start=0.1)

    def step(self, loss: Tensor) -> None:
        """One update, the gradient's norm held to 1 against the rare wild batch."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.curve.step()
