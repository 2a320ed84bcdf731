"""Artefacts: all or nothing, and never trusted."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from eenet.errors import InputError
from eenet.tables.files import atomic_path, load_arrays, read_json, save_arrays, write_json


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file") as draft:
        draft.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_folders_are_replaced_whole(tmp_path):
    for name in ("a", "b"):
        with atomic_path(tmp_path / "folder") as draft:
            draft.mkdir()
            (draft / name).touch()
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["b"]
    with pytest.raises(InputError, match="a folder of that name"), atomic_path(tmp_path / "folder") as draft:
        draft.touch()
    with pytest.raises(InputError, match="not a folder"), atomic_path(tmp_path / "folder" / "b" / "c") as draft:
        draft.touch()


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    code = (
        "import sys, time\nfrom eenet.tables.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as draft:\n    draft.write_text('ne')\n    print('writing', flush=True)\n  "
        "  time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    time.sleep(0.05)
    assert target.read_text() == "old"


def test_json_and_arrays_are_checked(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert read_json(tmp_path / "a.json", "settings") == {"x": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "c.json").write_text('{"x": ')
    for name in ("c.json", "none.json", "."):
        with pytest.raises(InputError, match="settings"):
            read_json(tmp_path / name, "settings")
    save_arrays(tmp_path / "t.safetensors", {"x": np.arange(3)})
    assert load_arrays(tmp_path / "t.safetensors", "weights")["x"].tolist() == [0, 1, 2]
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="weights"):
        load_arrays(tmp_path / "t.safetensors", "weights")


def test_an_interrupt_between_the_two_renames_leaves_the_old_folder(tmp_path, monkeypatch):
    def write(content):
        with atomic_path(tmp_path / "folder") as draft:
            draft.mkdir()
            (draft / "file").write_text(content)

    write("old")
    replace = os.replace

    def interrupted(source, target):
        replace(source, target)
        if str(target).endswith("replaced"):
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    monkeypatch.undo()
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
