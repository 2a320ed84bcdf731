"""Artefacts: all or nothing, and never trusted."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from eenet.core.files import atomic_path, load_tensors, read_json, save_tensors, write_json
from eenet.errors import BundleError, InputError, ShapeError
from eenet.schedulers import GeometricScheduler, load_policy, save_policy
from eenet.testing import synthetic_table


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
        "import sys, time\nfrom eenet.core.files import atomic_path\n"
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


def test_json_and_tensors_are_checked(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1.5})
    assert read_json(tmp_path / "a.json", "settings") == {"x": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()
    (tmp_path / "c.json").write_text('{"x": ')
    for name in ("c.json", "none.json", "."):
        with pytest.raises(InputError, match="settings"):
            read_json(tmp_path / name, "settings")
    save_tensors(tmp_path / "t.safetensors", {"x": torch.arange(3)})
    assert load_tensors(tmp_path / "t.safetensors", "weights")["x"].tolist() == [0, 1, 2]
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[:-4])
    with pytest.raises(InputError, match="weights"):
        load_tensors(tmp_path / "t.safetensors", "weights")


@pytest.mark.parametrize("file", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_policy_is_refused(tmp_path, file, damage):
    save_policy(GeometricScheduler().fit(synthetic_table(50), budget=2.0), tmp_path / "policy")
    target = tmp_path / "policy" / file
    content = bytearray(target.read_bytes())
    if damage == "gone":
        target.unlink()
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    else:
        position = content.rindex(b"thresholds") if file == "policy.json" else len(content) - 1
        content[position] ^= 1
        target.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_policy(tmp_path / "policy")
    assert "\n" not in str(error.value)


def test_a_policy_knows_which_exits_it_is_for(tmp_path):
    policy = GeometricScheduler().fit(synthetic_table(50), budget=2.0)
    save_policy(policy, tmp_path / "policy", exits=[1, 3, 4, 7])
    assert load_policy(tmp_path / "policy").exits == (1, 3, 4, 7)
    with pytest.raises(ShapeError, match="decides over 4 exits"):
        save_policy(policy, tmp_path / "policy", exits=[1, 3])
    stored = read_json(tmp_path / "policy" / "policy.json", "policy")
    write_json(tmp_path / "policy" / "policy.json", stored | {"exits": [1, 3]})
    with pytest.raises(BundleError, match="are not 4"):
        load_policy(tmp_path / "policy")


def test_a_policy_does_not_overwrite_other_folders(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    policy = GeometricScheduler().fit(synthetic_table(50), budget=2.0)
    with pytest.raises(InputError, match="taken"):
        save_policy(policy, tmp_path / "notes")
    with pytest.raises(BundleError, match="missing"):
        load_policy(tmp_path / "none")
