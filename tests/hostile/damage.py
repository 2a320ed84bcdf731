"""Saved things, damaged in many ways, and read again: what was saved, or one sentence."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tests.hostile.artefacts import LIGHT, READERS, leaves, with_value, write_all, write_light
from tests.hostile.doors import Refused, judged, pick, tried

from eenet.tables.files import MANIFEST, checksums, read_json, sha256, write_json
from eenet.tables.tensors import load_arrays, save_arrays

VALUES: tuple[Any, ...] = (
    True, False, None, 0, -1, 1.5, 1e308, -1e308, 1e-308, 10**19, "", "NaN", "x" * 3000, "\x1b[31m\n", "[/x]",
    "../../x", "=1+1", [], {}, [1, 2], ["a"], {"a": 1}, [[[]]], "float32", "<f8", 2**31,
)  # fmt: skip
TEXTS = (
    b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"1" * 5000,
    b'{"a": 1, "a": 2}', b'{"format": 3}', b"\x00" * 50, b'{"' + b"k" * 5000 + b'": 1, "' + b"k" * 5000 + b'": 1}',
)  # fmt: skip


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def flipped(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Flip a few bits."""
    content = bytearray(path.read_bytes())
    for _ in range(pick(rng, 1, 1, 1, 3)):
        place = int(rng.integers(min(len(content), pick(rng, 64, 512, len(content)))))
        content[pick(rng, place, len(content) - 1 - place)] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def cut(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Leave the end out."""
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])


def holed(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Replace a piece by zeros, or by chance."""
    content = bytearray(path.read_bytes())
    start, size = int(rng.integers(len(content))), int(rng.integers(1, 300))
    piece = content[start : start + size]
    content[start : start + size] = bytes(len(piece)) if rng.integers(2) else rng.bytes(len(piece))
    path.write_bytes(content)


def swapped(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Put the file of the same name of another result there."""
    shutil.copy(other, path)


def misplaced(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Put a neighbour's content there."""
    near = [file for file in path.parent.iterdir() if file.is_file() and file != path]
    path.write_bytes(pick(rng, *near).read_bytes() if near else b"")


def gone(rng: np.random.Generator, path: Path, other: Path) -> None:
    path.unlink()
    if rng.integers(2):
        path.mkdir()


def replaced(rng: np.random.Generator, path: Path, other: Path) -> None:
    path.write_bytes(pick(rng, *TEXTS, b"PK\x03\x04", b"\x93NUMPY\x01\x00", np.random.default_rng(1).bytes(300)))


def hostile(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Change a value, with checksums that fit it."""
    if path.suffix == ".json":
        value = read_json(path, "file")
        place = pick(rng, *leaves(value))
        new = pick(rng, *VALUES)
        if place and rng.integers(10) == 0:
            new = {"class": "ColumnScorer", "settings": {"column": 0, "num_columns": 10}}
        changed = with_value(value, place, new)
        write_json(path, changed, sealed=isinstance(changed, dict))
    elif path.suffix == ".npz":
        with np.load(path) as read:
            arrays = dict(read)
        name = pick(rng, *arrays)
        arrays[name] = array(rng, arrays[name])
        if rng.integers(4) == 0:
            arrays[pick(rng, "a/b", "../x", "probs", "logits", "features", "\x1b", "utility")] = arrays[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.savez(path, **arrays)
            if rng.integers(6) == 0:
                with zipfile.ZipFile(path, "a") as archive:
                    archive.writestr(f"{name}.npy", archive.read(f"{name}.npy"))
    elif path.suffix == ".npy":
        np.save(path, array(rng, np.load(path)))
    elif path.parent.name == "policy":
        arrays = load_arrays(path, "policy")
        name = pick(rng, *arrays)
        try:
            save_arrays(path, arrays | {name: array(rng, arrays[name])})
        except Exception:  # noqa: BLE001 - what safetensors does not hold
            return
    else:
        flipped(rng, path, other)


def array(rng: np.random.Generator, value: np.ndarray) -> np.ndarray:
    """Return an odd array in place of another."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = np.atleast_1d(value) if value.dtype.kind in "fiu" else np.ones(3)
        kind = pick(rng, "O", "M8[s]", "m8[s]", "c16", "?", "U3", "S3", "V4", "f2", "u8", "i1", ">f8", "f8,i4")
        odd = numbers.astype("f8")
        return pick(
            rng, numbers.astype(kind) if kind != "V4" else np.zeros(numbers.shape, "V4"), numbers[None],
            numbers.reshape(-1)[:1], np.array(pick(rng, 3, -1.5, np.nan, "text", True)), np.zeros(0),
            np.zeros((0, 3, 4), "f4"), odd * np.nan, odd * 1e308, -odd - 1, odd * 0, odd[::-1],
            np.array(["a", "b\x1b[31m"]), np.array(""), np.asfortranarray(odd), np.broadcast_to(odd, (2, *odd.shape)),
        )  # fmt: skip


def sealed_again(path: Path) -> None:
    """Let the checksums of a folder fit its files."""
    for policy in [path, *path.glob("policy")]:
        if (policy / "policy.json").is_file() and (policy / "policy.safetensors").is_file():
            stored = json.loads((policy / "policy.json").read_text())
            if isinstance(stored, dict) and isinstance(stored.get("sha256"), str):
                write_json(
                    policy / "policy.json", stored | {"sha256": sha256(policy / "policy.safetensors")}, sealed=True
                )
    if (path / MANIFEST).is_file():
        manifest = json.loads((path / MANIFEST).read_text())
        if isinstance(manifest, dict) and isinstance(manifest.get("sha256"), dict):
            write_json(path / MANIFEST, manifest | {"sha256": checksums(path)}, sealed=True)


WAYS: tuple[Callable[[np.random.Generator, Path, Path], None], ...] = (
    flipped, flipped, flipped, cut, holed, swapped, misplaced, gone, replaced, hostile, hostile, hostile,
)  # fmt: skip
SEALED = ("table", "policy", "bundle", "export")  # whose files are tied together by checksums


def damaged(seed: int, folder: Path, known: dict[str, str]) -> str:
    """Damage one saved thing and read it; return what became of it.

    The folder has a folder ``whole`` of what is saved, and one of ``others``; what is known are results, by name.
    """
    whole, others, scratch = (folder / name for name in ("whole", "others", "scratch"))
    rng = np.random.default_rng(seed)
    name, way = pick(rng, *known), pick(rng, *WAYS)
    path = scratch / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    (shutil.copytree if (whole / name).is_dir() else shutil.copyfile)(whole / name, path)
    files = [file for file in files_of(path) if file.name != "history.json"]
    file = pick(rng, *files)
    other = others / file.relative_to(scratch)
    way(rng, file, other)
    if way is hostile and path.is_dir():
        sealed_again(path)
    try:
        with judged():
            found = READERS[name](path)
    except Refused:
        return f"{way.__name__} refused"
    if way in (flipped, cut, holed) or (way is not hostile and name in SEALED):
        assert found == known[name], f"{way.__name__} of {file.relative_to(scratch)} changed the result without a word"
    return f"{way.__name__} read"


def main() -> None:
    """Damage many things, in a process of its own: arguments are a folder, whether all kinds, and the seeds."""
    folder, every, *seeds = sys.argv[1:]
    path, write = Path(folder), write_all if every == "all" else write_light
    for seed, name in enumerate(("whole", "others")):
        (path / name).mkdir(parents=True)
        write(path / name, seed)
    names = READERS if every == "all" else LIGHT
    known = {name: READERS[name](path / "whole" / name) for name in names}
    tried(lambda seed: damaged(seed, path, known), *map(int, seeds))


if __name__ == "__main__":
    main()
