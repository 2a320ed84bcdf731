"""Artefacts: checked, and never trusted."""

import io
import json
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eenet.errors import InputError
from eenet.tables import files
from eenet.tables.atomic import atomic_path
from eenet.tables.files import read_arrays, read_json, write_json
from eenet.tables.tensors import load_arrays, save_arrays


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_json_is_written_and_read(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert read_json(tmp_path / "a.json", "settings") == {"x": 1.5}
    (tmp_path / "bom.json").write_text('{"x": [1, -2, 3e-4, true, null, "é"]}', encoding="utf-8-sig")
    assert read_json(tmp_path / "bom.json", "settings") == {"x": [1, -2, 3e-4, True, None, "é"]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()
    for name in ("none.json", ".", "a.json/b.json"):
        with pytest.raises(InputError, match="settings"):
            read_json(tmp_path / name, "settings")


@pytest.mark.parametrize(
    ("content", "fact"),
    {
        b'{"x": ': "not JSON",
        b"": "not JSON",
        b"\xff\xfe{}": "not JSON",
        b'{"x": NaN}': "NaN is no finite number",
        b'{"x": -Infinity}': "Infinity is no finite number",
        b'{"x": 1e400}': "1e400 is no finite number",
        b'{"x": ' + b"9" * 5000 + b"}": "5000 digits",
        b'{"x": 1, "y": 2, "x": 3}': "key 'x' stands twice",
        b"[" * 100 + b"]" * 100: "64 levels",
        b"[" * 1_000_000: "not JSON",
        b'{"x": "\\ud800"}': "surrogates not allowed",
    }.items(),
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_json_that_is_refused(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"settings .*a\.json cannot be read") as caught:
        read_json(tmp_path / "a.json", "settings")
    assert fact in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_flipped_bit_anywhere_in_a_safetensors_file_is_noticed(tmp_path):
    arrays = {"x": np.arange(3.0), "mask": np.array([True, False]), "empty": np.zeros((0, 4), np.float16)}
    path = tmp_path / "t.safetensors"
    save_arrays(path, arrays)
    read = load_arrays(path, "weights")
    content = {name: array.tolist() for name, array in arrays.items()}
    assert {name: array.tolist() for name, array in read.items()} == content
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read = load_arrays(path, "weights")
            except InputError as error:
                assert "weights" in str(error)
            else:  # blanks of the head, or the name under which the checksum stands
                assert {name: array.tolist() for name, array in read.items()} == content
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="weights"):
            load_arrays(path, "weights")


def test_safetensors_of_others_have_no_checksum_and_are_read(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.arange(3)}, tmp_path / "t.safetensors", metadata={"format": "pt"})
    assert load_arrays(tmp_path / "t.safetensors", "weights")["x"].tolist() == [0, 1, 2]


def head(shape: str, dtype: str = "<f4") -> bytes:
    """Return the head of an array file that claims a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    {
        "a thousand billion rows": head("(1000000000000, 10)") + b"\0" * 40,
        "fewer than there are": head("(2, 2)") + b"\0" * 40,
        "below zero": head("(-5, 2)") + b"\0" * 40,
        "objects": head("(2,)", "|O") + b"\0" * 16,
        "a head without end": b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f4', ",
        "a head of brackets": head("(" * 3000 + "1" + ")" * 3000),
        "a head that calls": head("__import__('os').getcwd()"),
        "rows in an archive": archive(x=head("(1000000000000, 10)") + b"\0" * 40),
        "objects in an archive": archive(x=head("(2,)", "|O") + b"\0" * 16),
        "no array": b"hello",
        "nothing": b"",
    }.items(),
    ids=lambda one: one[0],
)
def test_arrays_that_are_refused_before_memory_is_taken(tmp_path: Path, content: tuple[str, bytes]) -> None:
    (tmp_path / "a.npz").write_bytes(content[1])
    start = time.monotonic()
    with pytest.raises(InputError, match=r"inputs .*a\.npz .*cannot be read"):
        read_arrays(tmp_path / "a.npz", "inputs")
    assert time.monotonic() - start < 5


def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros(1 << 20))
    assert read_arrays(tmp_path / "zeros.npz", "inputs")["x"].shape == (1 << 20,)
    monkeypatch.setattr(files, "_BOMB_BYTES", 1 << 20)
    with pytest.raises(InputError, match="claim to unpack"):
        read_arrays(tmp_path / "zeros.npz", "inputs")


def test_arrays_are_read_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.array("text"), z=np.asfortranarray(np.ones((2, 3))))
    assert sorted(read_arrays(tmp_path / "a.npz", "inputs")) == ["x", "y", "z"]
    assert sorted(read_arrays(tmp_path / "a.npz", "inputs", ["x", "w"])) == ["x"]
    np.save(tmp_path / "b.npy", np.arange(100_000))
    mapped = read_arrays(tmp_path / "b.npy", "inputs")[""]
    assert isinstance(mapped, np.memmap)
    mapped[0] = 7
    assert np.load(tmp_path / "b.npy")[0] == 0
    assert json.dumps(read_arrays(tmp_path / "a.npz", "inputs")["z"].tolist()) == "[[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]"
