"""Bad input is found before any work starts: code 2, one line on stderr, nothing on stdout, nothing written."""

import errno
import os
from collections.abc import Callable

import numpy as np
import pytest
from tests.cli.conftest import refused, table_arrays


def changed(key, edit: Callable[[np.ndarray], None]) -> dict[str, np.ndarray]:
    array = table_arrays()[key].copy()
    edit(array)
    return {key: array}


def spoil(row, value: float) -> Callable[[np.ndarray], None]:
    def edit(array: np.ndarray) -> None:
        array[row] = value

    return edit


BAD_TABLES = {
    "nan": (changed("logits", spoil(7, np.nan)), ("logits", "7")),
    "label too large": (changed("labels", spoil(5, 4)), ("labels", "5")),
    "two axes": ({"logits": np.zeros((200, 4), np.float32)}, ("logits",)),
    "neither": ({"logits": None}, ("logits",)),
    "costs zero": ({"costs": np.array([0.0, 1.0, 2.0])}, ("cost",)),
    "costs nan": ({"costs": np.array([1.0, np.nan, 2.0])}, ("cost",)),
    "cost unit a list": ({"cost_unit": np.array(["ms", "s", "us"])}, ("cost_unit",)),
    "cost unit a number": ({"cost_unit": np.array(3)}, ("cost_unit",)),
    "reference a list": ({"cost_reference": np.array([3.0, 4.0])}, ("cost_reference",)),
    "reference a word": ({"cost_reference": np.array("much")}, ("cost_reference",)),
    "no costs": ({"costs": None, "cost_unit": None, "cost_reference": None}, ("--costs",)),
    "no labels": ({"labels": None}, ("labels", "utility")),
    "objects": ({"labels": np.array([{}] * 200, dtype=object)}, ("labels",)),
}
"""What a command says; tests/tables has further cases."""


@pytest.mark.parametrize("command", ["fit", "compare"])
@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused(command, case, eenet, write_table, tmp_path):
    changes, words = BAD_TABLES[case]
    tables = [write_table("bad.npz", **changes)] + ([write_table("good.npz")] if command == "compare" else [])
    before = sorted(os.listdir(tmp_path))
    ran = eenet(command, *tables, "--budget", "60%", "--out", tmp_path / "new", "--quiet")
    refused(ran, *words)
    assert ran.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("budget", ["ten", "", "nan", "inf", "-1", "0", "1%", "0.5", "5 apples", "3 MFLOPs", "60 %%"])
@pytest.mark.parametrize("command", ["fit", "compare"])
def test_a_bad_budget_is_refused(command, budget, eenet, write_table, tmp_path):
    table = write_table()
    tables = [table] * (2 if command == "compare" else 1)
    refused(eenet(command, *tables, "--budget", budget, "--out", tmp_path / "new"), "budget")
    assert not (tmp_path / "new").exists()


def test_a_budget_out_of_reach_names_the_range(eenet, write_table):
    table = write_table()
    refused(eenet("compare", table, table, "--budget", "0.5ms"), "[1, 4]")


@pytest.mark.parametrize(
    ("name", "near"), [("eenett", "eenet"), ("maxprob", "max_prob"), ("Joint", "joint"), ("zzz", "certainty")]
)
@pytest.mark.parametrize("command", ["fit", "compare"])
def test_an_unknown_policy_names_the_near_ones(command, name, near, eenet, write_table, tmp_path):
    tables = [write_table()] * (2 if command == "compare" else 1)
    refused(eenet(command, *tables, "-b", "60%", "--policy", name, "--out", tmp_path / "new"), name, near)


@pytest.mark.parametrize("bound", ["random", "oracle"])
def test_a_bound_cannot_be_fitted(bound, eenet, write_table, tmp_path):
    refused(eenet("fit", write_table(), "-b", "60%", "--policy", bound, "--out", tmp_path / "new"), "bound")


def test_a_truncated_table_is_refused(eenet, write_table, tmp_path):
    table = write_table()
    data = table.read_bytes()
    for name, part in (("half.npz", data[: len(data) // 2]), ("none.npz", b""), ("text.npz", b"not a table")):
        (tmp_path / name).write_bytes(part)
        refused(eenet("compare", tmp_path / name, table, "-b", "60%"), name)


def test_a_flipped_byte_is_refused(eenet, write_table):
    table = write_table()
    data = bytearray(table.read_bytes())
    data[len(data) // 3] ^= 0xFF
    table.write_bytes(data)
    refused(eenet("fit", table, "-b", "60%", "--out", table.parent / "new"), "val.npz")


@pytest.mark.parametrize("name", ["missing.npz", "missing", "nowhere/val.npz"])
def test_a_missing_table_is_refused(name, eenet, tmp_path):
    refused(eenet("fit", tmp_path / name, "-b", "60%", "--out", tmp_path / "new"), "VAL", name)


def test_tables_must_agree(eenet, write_table):
    val = write_table()
    refused(eenet("compare", val, write_table("t.npz", costs=np.array([1.0, 2.0, 5.0]), cost_reference=None)), "cost")
    two = {"logits": np.zeros((9, 2, 4), np.float32), "labels": np.zeros(9, int), "costs": np.array([1.0, 2.0])}
    refused(eenet("compare", val, write_table("t.npz", **two)), "exit")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fit",),
        ("compare", "a.npz"),
        ("fitt",),
        ("compare", "a.npz", "b.npz", "--splits", "0"),
        ("compare", "a.npz", "b.npz", "--splits", "many"),
        ("compare", "a.npz", "b.npz", "--seed", "-1"),
        ("demo", "--nonsense"),
    ],
)
def test_wrong_usage_is_one_line(words, eenet):
    ran = eenet(*words)
    if words:
        refused(ran)


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_an_output_that_cannot_be_written_is_refused(command, eenet, write_table, tmp_path):
    tables = [write_table()] * (2 if command == "compare" else 1)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", "/", "/tmp/.."):
        refused(eenet(command, *tables, "-b", "60%", "--out", out), "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_fit_never_replaces_a_folder_of_something_else(eenet, write_table, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"meow")
    refused(eenet("fit", write_table(), "-b", "60%", "--out", tmp_path / "photos"), "--out")
    assert (tmp_path / "photos" / "cat.png").exists()
    assert eenet("fit", write_table(), "-b", "60%", "--out", tmp_path / "policy").code == 0
    (tmp_path / "policy" / "notes.txt").write_text("mine")
    refused(eenet("fit", write_table(), "-b", "60%", "--out", tmp_path / "policy"), "notes.txt")
    assert (tmp_path / "policy" / "notes.txt").exists()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"flops": 3}', '{"cumulative": [2, 1], "unit": "ms"}'])
def test_a_bad_costs_file_is_refused(content, eenet, write_table, tmp_path):
    (tmp_path / "costs.json").write_text(content)
    table = write_table()
    refused(eenet("compare", table, table, "-b", "60%", "--costs", tmp_path / "costs.json"))
    refused(eenet("compare", table, table, "-b", "60%", "--costs", tmp_path / "none.json"), "none.json")


def test_debug_shows_the_traceback_as_well(eenet, tmp_path):
    ran = eenet("fit", tmp_path / "none.npz", "-b", "60%", "--out", tmp_path / "new", "--debug")
    assert ran.code == 2
    assert "Traceback" in ran.stderr and ran.stderr.rstrip().split("\n")[-1].startswith("Error: ")


def test_a_full_disk_is_a_failure_in_one_line(eenet, write_table, tmp_path, monkeypatch):
    def full(*words: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "policy.safetensors")

    monkeypatch.setattr("eenet.policies.store.save_arrays", full)
    table = write_table()
    ran = eenet("fit", table, "-b", "60%", "-p", "max_prob", "--out", tmp_path / "new", "--quiet")
    assert (ran.code, ran.stdout, ran.stderr) == (1, "", "Error: No space left on device: policy.safetensors\n")
    assert os.listdir(tmp_path) == [table.name]


def test_an_unforeseen_error_is_one_line_too(eenet, write_table, tmp_path, monkeypatch):
    def broken(*words: object, **more: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("eenet.cli.fit._fitted", broken)
    ran = eenet("fit", write_table(), "-b", "60%", "--out", tmp_path / "new", "--quiet")
    assert ran.code == 1
    assert ran.stderr.count("\n") == 1 and ran.stderr.startswith("Error: unexpected KeyError")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--seed", "1.5"), "--seed '1.5' cannot be taken: "),
        (("--seed=x",), "--seed 'x' cannot be taken: "),
        (("--seed", "-1"), "--seed '-1' cannot be taken: "),
        (("--budgt", "60%"), "--budgt is unknown: the command has no such option. Did you mean --budget"),
        (("--budget",), "--budget cannot be read: "),
    ],
    ids=" ".join,
)
def test_words_that_cannot_be_read_are_refused_in_sentences(words, said, eenet, write_table, tmp_path):
    ran = eenet("fit", write_table(), "--out", tmp_path / "policy", "-q", *words)
    refused(ran, said, " Add --help for how to call it.")
    assert "argument 'val': the command needs it. add --help" in eenet("fit").stderr.lower()
