"""Names that look like markup, options that contradict each other, and machines that refuse: one line, plain text."""

import csv
import errno
import io
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eenet.cli.options import output_folder
from eenet.cli.run import _write_rows
from eenet.errors import InputError

FIT = ("fit", "{val}", "-b", "60%", "-p", "max_prob", "-q", "--out")


@pytest.fixture
def val(write_table):
    return write_table()


@contextmanager
def limited(kind, limit) -> Iterator[None]:
    """Set the soft limit of a resource, such as the largest size of a file."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.mark.parametrize(
    ("name", "seen"), [("ms[/x]", "ms[/x]"), ("$\\frac$", "$\\frac$"), ("m\x1b[31ms", "m\\x1b[31ms")]
)
def test_units_and_groups_are_text_and_never_markup(name, seen, eenet, write_table, tmp_path):
    tables = [write_table(f"{split}.npz", seed=seed, cost_unit=np.array(name)) for seed, split in enumerate("ab")]
    (tmp_path / "groups.txt").write_text(f"{name}\nother\n" * 100)
    words = ("-b", "60%", "-p", "max_prob", "--groups", tmp_path / "groups.txt", "--out", tmp_path / "out")
    shown = eenet("compare", *tables, *words, "--all")
    assert shown.code == 0, shown.stderr
    assert f"cost [{seen}]" in shown.stdout and "\x1b" not in shown.stdout + shown.stderr
    assert f"group {seen}" in shown.stdout or "group other" in shown.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"cost [{seen}]" in page and "\x1b" not in page
    for ran in (
        eenet("fit", tables[0], *words[:4], "--out", tmp_path / "policy"),
        eenet("advise", tables[0], "-q"),
        eenet("advise", tables[0], "--static", f"1{name}:good"),  # the message names it
    ):
        said = ran.stdout + ran.stderr.replace("\\\\", "\\")
        assert seen in said and "\x1b" not in said
    assert eenet("report", tmp_path / "out", "--out", tmp_path / "page.html").code == 0


def test_a_title_is_text(eenet, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps({"rows": [], "device": "<b>\x1b", "threads": 1}))
    assert eenet("report", tmp_path / "bench.json", "--title", "a\x07<i>", "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "<title>a\\x07&lt;i&gt;</title>" in page and "&lt;b&gt;\\x1b" in page


def test_names_that_look_like_formulas_are_quoted_in_csv(tmp_path):
    names = ["=1+1", "@x", "+1", "-1", "plain", "\udcff"]
    _write_rows([{"input": name, "class": name, "cost": -1.5} for name in names], tmp_path / "rows.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [row["class"] for row in rows] == ["'=1+1", "'@x", "'+1", "'-1", "plain", "\\udcff"]
    assert {row["cost"] for row in rows} == {"-1.5"}


REFUSED = {
    "an option twice": (("fit", "{val}", "-b", "60%", "--budget", "70%", "-o", "new"), "--budget is given 2 times"),
    "a switch both ways": (("run", "{val}", "x", "--regroup", "--no-regroup"), "--regroup is given 2 times"),
    "a seed of 23 digits": (("fit", "{val}", "-b", "60%", "-o", "new", "--seed", "9" * 23), "4294967295"),
    "a huge batch": (("compare", "{val}", "{val}", "--batch-size", "99999999999"), "2147483647"),
    "a huge size in a list": (("profile", ".", "--batch-size", "99999999999"), "2147483647"),
    "5000 digits": (("fit", "{val}", "-b", "60%", "-o", "new", "--exits", "9" * 5000), "no early exits"),
    "a folder called .txt": (("fit", "{val}", "-b", "60%", "-o", "x.txt"), "has the name of a file"),
    "a page called .txt": (("report", ".", "-o", "x.txt"), ".html"),
    "JSON called .txt": (("advise", "{val}", "-o", "x.txt"), ".json"),
    "nowhere to write": (("fit", "{val}", "-b", "60%", "-o", "/proc/new/policy"), "/proc"),
    "an unreadable file": (("compare", "{val}", "{val}", "--costs", "/proc/self/mem"), "/proc/self/mem"),
    "unreadable results": (("report", "/proc/self/mem", "-o", "x.html"), "/proc/self/mem"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, eenet, val, tmp_path, monkeypatch):
    words, fact = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    ran = eenet(*(word.format(val=val) for word in words))
    assert (ran.code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1) and fact in ran.stderr
    assert os.listdir(tmp_path) == [val.name]


def test_what_may_be_given_twice(eenet, val, tmp_path):
    words = ("-b", "60%", "-b", "70%", "-p", "max_prob", "-p", "margin", "-q", "-q", "--json")
    assert len(eenet("compare", val, val, *words).value["rows"]) == 8


def test_a_link_is_written_through(eenet, val, tmp_path):
    (tmp_path / "real").mkdir()
    for name, target in (("folder", "real"), ("new", "made"), ("file.json", "other.json"), ("circle", "circle")):
        (tmp_path / name).symlink_to(target)
    for link, target in (("folder", "real"), ("new", "made")):
        assert eenet(*(word.format(val=val) for word in FIT), tmp_path / link).code == 0
        assert (tmp_path / link).is_symlink() and (tmp_path / target / "policy.json").is_file()
    assert eenet("advise", val, "-q", "--out", tmp_path / "file.json").code == 0
    assert (tmp_path / "file.json").is_symlink() and (tmp_path / "other.json").is_file()
    with pytest.raises(InputError, match="circle"):
        output_folder(tmp_path / "circle")


@pytest.mark.parametrize("words", [FIT, ("compare", "{val}", *FIT[1:]), ("advise", "{val}", "-q", "--out")])
def test_a_full_disk_is_one_sentence_with_the_path(words, eenet, val, tmp_path):
    out = tmp_path / ("new.json" if words[0] == "advise" else "new")
    with limited(resource.RLIMIT_FSIZE, 500):
        ran = eenet(*(word.format(val=val) for word in words), out)
    assert (ran.code, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
    assert os.strerror(errno.EFBIG) in ran.stderr and str(out) in ran.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [val]


def test_an_older_comparison_stays_whole_on_a_full_disk(eenet, val, tmp_path):
    words = ("compare", val, val, "-p", "max_prob", "-q", "--out", tmp_path / "out")
    assert eenet(*words, "-b", "60%").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with limited(resource.RLIMIT_FSIZE, len(before["comparison.json"]) + 2000):
        assert eenet(*words, "-b", "70%").code == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_pipe_is_one_sentence(val):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "eenet", "advise", str(val), "-q"]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (1, f"Error: {os.strerror(errno.ENOSPC)}: stdout\n")


WRITING = """import sys, time
from eenet.policies import store
def slow(path, arrays):
    path.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
store.save_arrays = slow
from eenet.cli.entry import main
sys.exit(main())"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_the_process_and_leave_nothing_behind(name, val, tmp_path):
    import signal

    words = (*(word.format(val=val) for word in FIT), str(tmp_path / "new"))
    command = [sys.executable, "-c", WRITING, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        said = process.communicate(timeout=60)[1]
    assert (process.returncode, said) == (130, "Interrupted.\n")
    assert os.listdir(tmp_path) == [val.name]


def test_a_process_under_nohup_goes_on(val, tmp_path):
    code = re.sub("time.sleep.60.", "os.kill(os.getpid(), signal.SIGHUP); path.unlink()", WRITING)
    code = f"import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}"
    words = (*(word.format(val=val) for word in FIT), str(tmp_path / "new"))
    ran = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "policy.safetensors" in ran.stderr  # it went on until the file was missed
