"""Others who work in the same place: readers, writers, and users who save a file there."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.hostile.test_kills import ENVIRONMENT, ROOT, need
from tests.support.faults import with_fault

from eenet import ExitTable, load_policy, save_policy
from eenet.errors import InputError
from eenet.policies import store
from eenet.schedulers import GeometricScheduler
from eenet.tables import atomic, storage
from eenet.tables.atomic import require_replaceable
from eenet.tables.files import write_json
from eenet.testing import synthetic_table

POLICY = GeometricScheduler().fit(synthetic_table(100), budget="60%")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("2", "plain", "policy", "table", "recorded", "costs.json"), ("4", "torch", "bundle", "export")]
)
def test_readers_see_one_version_while_two_processes_write(words: tuple[str, ...], tmp_path: Path) -> None:
    if "torch" in words:
        need("torch", "onnxruntime", "onnxscript", "sklearn")
    command = [sys.executable, "-m", "tests.hostile.races", str(tmp_path / "races"), *words]
    ran = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["failures"] == []
    assert all(done["read"] and done["written"] for done in found["counts"].values()), found


@pytest.fixture(params=["one step", "two renames"])
def _exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_renameat2", lambda: None)


def saved(kind: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Write a result, and return what writes it again while a user saves a file into it."""
    module, name = (store, "save_arrays") if kind == "policy" else (storage, "seal")
    write = (lambda: save_policy(POLICY, target)) if kind == "policy" else (lambda: synthetic_table(20).save(target))
    write()
    real = getattr(module, name)

    def late(*arguments: object) -> None:
        real(*arguments)
        (target / "thesis.txt").write_text("mine")

    monkeypatch.setattr(module, name, late)
    return write


@pytest.mark.usefixtures("_exchange")
@pytest.mark.parametrize("kind", ["policy", "table"])
def test_what_a_user_saved_meanwhile_stays(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    write = saved(kind, target, monkeypatch)
    with pytest.raises(InputError, match=r"result is taken: it contains thesis\.txt"):
        write()
    assert (target / "thesis.txt").read_text() == "mine"
    assert load_policy(target) if kind == "policy" else ExitTable.load(target)
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.usefixtures("_exchange")
@pytest.mark.parametrize("kind", ["policy", pytest.param("table", marks=pytest.mark.slow)])
def test_and_stays_whatever_stops_the_writer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    write = saved(kind, target, monkeypatch)
    saves = []
    for after in range(1, 80):
        (target / "thesis.txt").unlink(missing_ok=True)
        end = with_fault(write, str(tmp_path), after, "KILL")
        atomic.restore(target)
        assert load_policy(target) if kind == "policy" else ExitTable.load(target)
        saves.append((target / "thesis.txt").exists())
        if end.startswith("raised"):
            break
    assert saves == sorted(saves) and any(saves)  # from the operation on that saved it
    assert os.listdir(tmp_path) == ["result"]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path: Path) -> None:
    for name in ("policy", "table", "costs.json"):
        (tmp_path / name).symlink_to(tmp_path / "store" / name)
    for _ in range(2):
        save_policy(POLICY, tmp_path / "policy")
        synthetic_table(20).save(tmp_path / "table")
        write_json(tmp_path / "costs.json", {"cumulative": [1, 2], "unit": "ms"}, sealed=True)
    assert all(path.is_symlink() for path in tmp_path.iterdir() if path.name != "store")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["costs.json", "policy", "table"]
    assert load_policy(tmp_path / "policy") and ExitTable.load(tmp_path / "store" / "table")


def test_a_folder_of_the_users_own_arrays_is_not_replaced(tmp_path: Path) -> None:
    table = synthetic_table(20)
    table.save(tmp_path / "table")
    (tmp_path / "table" / "manifest.json").unlink()  # now it is as a user made it, who may have no other copy
    assert ExitTable.load(tmp_path / "table").num_samples == 20
    with pytest.raises(InputError, match=r"is taken: it contains .*\.npy"):
        table.save(tmp_path / "table")
    for other in ("link", "folder"):
        table.save(tmp_path / other)
        if other == "link":
            (tmp_path / other / "inside").symlink_to(tmp_path)
        else:
            (tmp_path / other / "inside" / "deep").mkdir(parents=True)
            (tmp_path / other / "inside" / "deep" / ".hidden").touch()
        with pytest.raises(InputError, match="is taken: it contains inside"):
            table.save(tmp_path / other)


def test_what_nothing_can_take_the_place_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    os.mkfifo(tmp_path / "pipe")
    for path in (".", "..", "", tmp_path / "here", tmp_path / "pipe", "/dev/null", "/", "/proc"):
        with pytest.raises(InputError, match="would be replaced"):
            require_replaceable(path)
        with pytest.raises(InputError, match="would be replaced"):
            save_policy(POLICY, path)
    require_replaceable(tmp_path / "here" / "new")


def test_names_that_share_their_beginning_and_names_of_many_bytes(tmp_path: Path) -> None:
    for name in ("x" * 240 + "a", "x" * 240 + "b", "木" * 80, "\udcff" * 200):
        save_policy(POLICY, tmp_path / name)
        assert load_policy(tmp_path / name)
    assert len({atomic._prefix(path) for path in tmp_path.iterdir()}) == 4
