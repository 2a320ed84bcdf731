"""Writers that are stopped anywhere, and readers that meet them."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.faults import with_fault

from eenet.errors import InputError
from eenet.tables import ExitTable, atomic, locks
from eenet.tables.atomic import atomic_files, atomic_path, holding, restore, steady


def write(folder: Path, text: str, check: Callable[[Path], None] | None = None) -> None:
    with atomic_path(folder, check) as draft:
        draft.mkdir()
        for name in ("a", "b"):
            (draft / name).write_text(text)


def texts(folder: Path) -> set[str]:
    return {file.read_text() for file in folder.iterdir()}


@steady
def read(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("a", "b")}


@pytest.fixture(params=["one step", "two renames"])
def _exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_renameat2", lambda: None)


@pytest.mark.usefixtures("_exchange")
@pytest.mark.parametrize("fault", ["full", "KILL", "INT"])
def test_a_fault_before_any_file_operation_leaves_the_old_or_the_new_whole(tmp_path: Path, fault: str) -> None:
    ends = set()
    for after in range(1, 60):
        write(tmp_path / "result", "old")
        end = with_fault(lambda: write(tmp_path / "result", "new"), str(tmp_path), after, fault)
        ends.add(end)
        assert read(tmp_path / "result") in ({"old"}, {"new"}), (after, end)
        assert texts(tmp_path / "result") in ({"old"}, {"new"}), (after, end)
        write(tmp_path / "result", "next")
        assert [path.name for path in tmp_path.iterdir()] == ["result"], (after, end)
        if end == "done":
            break
    else:
        pytest.fail("the writer never came to its end")
    assert ends - {"survived"} == {
        "done",
        {"full": "raised OSError", "KILL": "killed", "INT": "raised KeyboardInterrupt"}[fault],
    }


@pytest.mark.usefixtures("_exchange")
def test_readers_see_one_version_while_two_writers_replace_it(tmp_path: Path) -> None:
    write(tmp_path / "result", "0")
    end = time.monotonic() + 1.5
    failures: list[BaseException] = []

    def loop(work: Callable[[int], object]) -> None:
        i = 0
        while time.monotonic() < end and not failures:
            i += 1
            try:
                work(i)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

    def reading(_: int) -> None:
        assert len(read(tmp_path / "result")) == 1

    threads = [
        threading.Thread(target=loop, args=[work])
        for work in (
            lambda i: write(tmp_path / "result", f"a{i}"),
            lambda i: write(tmp_path / "result", f"b{i}"),
            reading,
            reading,
        )
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.usefixtures("_exchange")
def test_a_file_saved_into_the_folder_during_the_work_stops_the_replacement(tmp_path: Path) -> None:
    def check(folder: Path) -> None:
        if (folder / "thesis.txt").exists():
            if str(folder) == str(tmp_path / "result") and not seen:
                seen.append(folder)
                return  # the file comes after this look
            raise InputError(f"output {folder} is taken: it holds thesis.txt. Choose another.")

    seen: list[Path] = []
    write(tmp_path / "result", "old")
    (tmp_path / "result" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"result is taken: it holds thesis\.txt"):
        write(tmp_path / "result", "new", check)
    assert seen
    assert texts(tmp_path / "result") == {"old", "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    write(tmp_path / "store" / "result", "old")
    (tmp_path / "link").symlink_to(tmp_path / "store" / "result")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert texts(tmp_path / "store" / "result") == {"new"}
    with atomic_path(tmp_path / "link" / "a") as draft:
        draft.write_text("newer")
    assert texts(tmp_path / "store" / "result") == {"new", "newer"}


def test_files_and_folders_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="a file of that name is in the way"):
        write(tmp_path / "file", "new")
    write(tmp_path / "folder", "old")
    with pytest.raises(InputError, match="a folder of that name"), atomic_path(tmp_path / "folder") as draft:
        draft.write_text("text")
    with pytest.raises(InputError, match="is not a folder"):
        write(tmp_path / "file" / "inside", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_drafts_of_the_living_and_folders_of_the_user_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".result.settings").mkdir()
    (tmp_path / ".result.eenet-0123456").mkdir()
    (tmp_path / ".result.eenet-01234567").mkdir()  # what a dead writer left
    with atomic_path(tmp_path / "result") as draft:
        draft.write_text("slow")
        restore(tmp_path / "result")
        assert draft.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".result.eenet-0123456", ".result.settings", "result"]


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 250), "text")
    assert texts(tmp_path / ("x" * 250)) == {"text"}


def test_one_process_works_in_a_folder_and_the_next_is_told_who(tmp_path: Path) -> None:
    with holding(tmp_path, "training"):
        with pytest.raises(InputError, match=f"in use: process {os.getpid()} on .* since"), holding(tmp_path, "x"):
            pass
        child = os.fork()
        if child == 0:
            try:
                with holding(tmp_path, "training"):
                    os._exit(0)
            except InputError:
                os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with holding(tmp_path, "training"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").exists()
    with holding(tmp_path, "training"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_files_moves_into_a_folder_that_has_others(tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "mine.txt").write_text("mine")
    for text in ("old", "new"):
        with atomic_files(tmp_path / "out", "results") as draft:
            for name in ("a", "b"):
                (draft / name).write_text(text)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "mine.txt", "sub"]
    assert {(tmp_path / "out" / name).read_text() for name in ("a", "b")} == {"new"}
    with pytest.raises(InputError, match="sub cannot be written"), atomic_files(tmp_path / "out", "results") as draft:
        (draft / "a").write_text("newer")
        (draft / "sub").write_text("a folder is in the way")
    with pytest.raises(RuntimeError), atomic_files(tmp_path / "out", "results") as draft:
        (draft / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_set_that_was_complete_when_its_writer_was_killed_is_moved_by_the_next(tmp_path: Path) -> None:
    def write(text: str) -> None:
        with atomic_files(tmp_path / "out", "results") as draft:
            for name in ("a", "b", "c"):
                (draft / name).write_text(text)

    for after in range(1, 40):
        write("old")
        end = with_fault(lambda: write("new"), str(tmp_path), after, "KILL")
        restore(tmp_path / "out" / "results")
        assert texts(tmp_path / "out") in ({"old"}, {"new"}), (after, end)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
        if end == "done":
            return
    pytest.fail("the writer never came to its end")


def test_what_is_written_inside_a_draft_needs_no_draft_of_its_own(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "result") as draft:
        draft.mkdir()
        with atomic_path(draft / "inside" / "a") as inner:
            assert inner == draft / "inside" / "a"
            inner.write_text("text")
    assert texts(tmp_path / "result" / "inside") == {"text"}


def test_drafts_stay_where_it_is_not_known_whether_their_writer_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / ".result.eenet-01234567").mkdir()
    write(tmp_path / "result", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".result.eenet-01234567", "result"]


@pytest.mark.parametrize("path", ["x" * 300, "a\0b", "/proc/none/x", "/dev/null/x"])
def test_places_where_nothing_can_be_are_refused_in_a_sentence(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError), atomic_path(path):
        pytest.fail("work began")
    with pytest.raises(InputError):
        ExitTable.load(path)
