"""The paper's tables as data, and the page that sets ours beside them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eenet.errors import InputError
from eenet.experiments.reproduce import EXPERIMENTS
from eenet.experiments.reproduce.paper import METHODS, PAPER, Budgeted, PaperExperiment
from eenet.experiments.reproduce.parity import FILE, keep, results, write_paper_page
from eenet.experiments.zoo import tiny_cnn
from eenet.running import measure, record
from eenet.schedulers import GeometricScheduler
from eenet.tables.files import write_json

SPEEDUPS = {  # as the paper's tables state them
    "CIFAR-10, ResNet56, 3 exits": (1.34, 1.56, 1.88),
    "CIFAR-100, DenseNet121, 4 exits": (1.36, 1.51, 1.70),
    "ImageNet, MSDNet35, 5 exits": (1.56, 1.95, 2.60),
    "Cityscapes, HRNet-W48, 3 exits": (1.32, 2.63, 8.77),
    "SST-2, BERT-base, 4 exits": (1.27, 1.52, 1.89),
    "AG News, BERT-base, 4 exits": (1.27, 1.52, 1.89),
}


@pytest.mark.parametrize("paper", PAPER, ids=lambda paper: paper.ours)
def test_the_papers_numbers_agree_with_each_other(paper):
    assert paper.ours in EXPERIMENTS
    assert [1 / paper.share(row) for row in paper.rows] == pytest.approx(SPEEDUPS[paper.title], abs=0.011)
    exits = int(paper.title.split()[-2])
    assert len(paper.parameters) == len(paper.times) == exits + 1
    assert list(paper.times[:-1]) == sorted(paper.times[:-1])
    for row in paper.rows:
        known = [value for value in row.quality if value is not None]
        assert len(row.quality) == len(METHODS) and max(known) == row.quality[-1] < paper.base


def test_ours_stands_beside_the_paper_at_the_same_shares(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, generator = tiny_cnn(exits=2).eval(), torch.Generator().manual_seed(0)
    data = torch.rand(120, 1, 8, 8, generator=generator), torch.randint(10, (120,), generator=generator)
    profile = measure(model, data[0][:4], batch_sizes=(1,), passes=2, progress=False)
    val, test = (
        record(model, (data[0][rows], data[1][rows]), costs=profile.costs(), progress=False)
        for rows in (slice(0, 60), slice(60, 120))
    )
    low = val.costs.low / val.costs.full
    budgets = (90.0, 100.0 * (low + 0.3 * (1 - low)), 50.0 * low)
    rows = tuple(Budgeted(budget, (70.0, 71.0, 72.0, None, 73.0), 0.1) for budget in budgets)
    paper = PaperExperiment(
        title="Ours, tiny, 2 exits",
        ours="tiny",
        differs="everything",
        base=80.0,
        latency=100.0,
        rows=rows,
        parameters=(1.0, 2.0, 2.0),
        times=(1.0, 2.0, 1.9),
        scheduler="nothing",
    )
    schedulers = {"max_prob": GeometricScheduler()}
    found = results(paper, (val, test, None), schedulers, profile.to_dict(), splits=2, seed=0)
    ours = found["ours"]["operations"]
    assert ours["lost"].keys() == {"max_prob", "random", "oracle"}
    assert ours["lost"]["max_prob"][2] is None and ours["lost"]["oracle"][0]["lost"] <= 1e-9
    assert ours["exits"][-1] == 0.0
    utility = np.concatenate([val.utility, test.utility])
    assert abs(100 * (ours["full"] - utility[:, -1].mean())) < 20
    write_json(tmp_path / "tiny" / FILE, found)
    monkeypatch.setattr("eenet.experiments.reproduce.parity.PAPER", (paper, PAPER[0]))
    page = write_paper_page(tmp_path, tmp_path, "the command").read_text()
    assert "| paper: EENet | 80.00 | 7.00 ± 0.10 | 7.00 ± 0.10 | 7.00 ± 0.10 |" in page
    assert "| paper: MAML-stop | 80.00 | - | - | - |" in page
    assert "max_prob, operations" in page and "max_prob, latency" in page and "out of reach" in page
    assert "What differs in ours: everything. Means over 2 split(s). Machine: " in page
    assert "`eenet reproduce cifar10-resnet56-3` has not been run" in page
    assert "| 7.00 ± 0.10 | - | - | out of reach |" in page
    assert f"| {PAPER[0].title} | 0.53 | 5.00 ± 0.19 | not run | not run | not run |" in page
    assert "the command" in page
    keep(tmp_path / "pages", "tiny", found)  # the run is gone, its results stand beside the pages
    assert write_paper_page(tmp_path / "pages", tmp_path / "empty", "the command").read_text() == page


@pytest.mark.parametrize("content", [{}, [], None, {"ours": None}, {"ours": {"operations": {}}}])
def test_results_of_another_kind_are_refused(tmp_path, content):
    name = PAPER[-1].ours
    (tmp_path / name).mkdir()
    write_json(tmp_path / name / FILE, content)
    with pytest.raises(InputError, match=rf"{name}.*another version.*eenet reproduce {name}"):
        write_paper_page(tmp_path / "pages", tmp_path, "the command")
    assert not (tmp_path / "pages").exists()


def test_the_readme_has_the_first_table_of_the_page():
    root = Path(__file__).parents[2]
    page = (root / "docs" / "results" / "paper.md").read_text(encoding="utf-8")
    table = page[page.index("| data, model |") : page.index("\n\n", page.index("| data, model |"))]
    assert len(table.splitlines()) == 2 + len(PAPER)
    assert table in (root / "README.md").read_text(encoding="utf-8")


def test_the_readme_says_what_the_demo_said():
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    said = " ".join(line.removeprefix("> ") for line in readme.splitlines() if line.startswith("> "))
    row = next(line for line in (root / "docs" / "results" / "demo.md").read_text().splitlines() if line[:4] == "| 0 ")
    assert said and said in row
