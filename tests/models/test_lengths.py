"""Sizes that are left free, the length of texts above all: what is cut equals what was there, at every size."""

import copy
import functools

import pytest
import torch
from foreign import FAMILIES, TEXTS, Reader, blocks, check_attached, of_length, run_dropping
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from eenet.errors import AttachError, InputError, ShapeError
from eenet.models.attach import attach
from eenet.models.form import SameForm, moving_axes
from eenet.running.engines import EagerEngine
from eenet.training import TrainSettings, fit_exits

FAST = ("RoBERTa",)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in TEXTS])
def test_texts_of_any_length(name):
    model, inputs = TEXTS[name]()
    attached = attach(model.eval(), inputs, exits=4).eval()
    assert set(attached.entry.limits) == {"token"}
    for length in (2, 17, 128):
        check_attached(model, of_length(inputs, length), attached)
    padding = model.config.pad_token_id or 0
    short = {name: leaf[:, :9] for name, leaf in inputs.items()}
    padded = {
        "input_ids": nn.functional.pad(short["input_ids"], (0, 31), value=padding),
        "attention_mask": nn.functional.pad(short["attention_mask"], (0, 31)),
    }
    with torch.no_grad():
        for (rows, found), (_, wanted) in zip(
            run_dropping(attached, short), run_dropping(attached, padded), strict=True
        ):
            assert len(rows) == len(found)
            assert torch.allclose(found, wanted, atol=1e-4)


def reader(**settings):
    torch.manual_seed(0)
    model, ids = Reader().eval(), torch.randint(50, (3, 12))
    return model, ids, attach(model, ids, exits=["layers.0", "layers.1"], **settings)


once = functools.cache(reader)


def test_whole_numbers_are_texts_up_to_the_end_of_the_table_of_positions():
    model, ids, attached = copy.deepcopy(once())
    assert attached.entry.limits == {"token": (2, 40)}
    for length in (2, 11, 40):
        check_attached(model, of_length(ids, length), attached)
        check_attached(model, of_length(ids, length), attached.without([0]))
    for length in (1, 41):
        with pytest.raises(ShapeError, match=f"inputs of token {length} do not fit: the stages take 2 to 40") as caught:
            attached.start(of_length(ids, length))
        assert "\n" not in str(caught.value)
    assert moving_axes(attached, ids) == [[(1,)], [(1,)], [(1,)]]
    assert moving_axes(attached, ids[:, :2]) == [[(1,)], [(1,)], [(1,)]]


def test_engines_and_training_take_every_length():
    model, ids, attached = copy.deepcopy(once())
    for optimise in (True, False):
        engine = EagerEngine(attached, optimise=optimise)
        assert engine.full(of_length(ids, 31)).shape == (3, 4)
        with pytest.raises(ShapeError, match="token 50 do not fit"):
            engine.full(of_length(ids, 50))
    texts = [(torch.randint(1, 50, (length,)), length % 4) for length in (12, 5, 7, 30, 3, 9)]
    loader = DataLoader(
        texts,
        3,
        collate_fn=lambda batch: (pad_sequence([a for a, _ in batch], True), torch.tensor([b for _, b in batch])),
    )
    fit_exits(attached, loader, TrainSettings(epochs=1, batch_size=3), progress=False)
    check_attached(model.eval(), of_length(ids, 17), attached.eval())


def test_what_is_not_asked_for_stays_as_it_is():
    _, ids, attached = reader(free={})
    assert attached.entry.limits == {} and moving_axes(attached, ids) == []
    with pytest.raises(ShapeError, match=r"inputs of size \[\(13,\)\] per sample .*size \[\(12,\)\]"):
        attached.start(of_length(ids, 13))


class Series(nn.Module):
    """Reads a series of numbers; halves it on the way."""

    def __init__(self):
        super().__init__()
        self.enter, self.blocks, self.classify = nn.Linear(5, 8), blocks(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](self.enter(x)))
        x = nn.functional.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)
        return self.classify(self.blocks[3](self.blocks[2](x)).mean(1))


def test_any_axis_that_is_named():
    torch.manual_seed(0)
    model, x = Series().eval(), torch.randn(3, 12, 5)
    attached = attach(model, x, exits=["blocks.0", "blocks.2"], free={1: "time"})
    assert attached.entry.sizes == {"": ("time", 5)}
    for length in (4, 13, 50):
        check_attached(model, torch.randn(3, length, 5), attached)
    with pytest.raises(ShapeError, match=r"inputs of size \[\(12, 6\)\] .*\[\(12, 5\)\].* with time 4 and more"):
        attached.start(torch.randn(3, 12, 6))
    images, pictures = FAMILIES["conv"]()
    attached = attach(images, pictures, exits=3, free={2: "height", 3: "width"})
    for height, width in ((8, 8), (5, 9), (16, 4)):
        check_attached(images, torch.randn(3, 3, height, width), attached)


@pytest.mark.slow
def test_pictures_of_any_size():
    model, images = FAMILIES["torchvision resnet18"]()
    attached = attach(model.eval(), images, exits=3, free={2: "height", 3: "width"})
    assert attached.entry.limits == {"height": (33, None), "width": (33, None)}  # below, the last maps are of one place
    check_attached(model, torch.randn(3, 3, 96, 72), attached)


class Pair(nn.Module):
    """Two texts of their own lengths, and numbers beside them."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.classify = nn.Embedding(20, 8), blocks(3, 8), nn.Linear(8, 3)

    def forward(self, question, answer, numbers):
        x = self.embed(question).mean(1, keepdim=True) + self.embed(answer)
        return self.classify(self.blocks(x).mean(1) + numbers)


@pytest.mark.slow
def test_axes_of_one_name_have_one_size_and_others_their_own():
    model = Pair().eval()
    inputs = {"question": torch.randint(20, (3, 6)), "answer": torch.randint(20, (3, 9)), "numbers": torch.randn(3, 8)}
    free = {"question": {1: "question"}, "answer": {1: "answer"}}
    attached = attach(model, inputs, exits=["blocks.0"], free=free)
    check_attached(model, inputs | {"question": inputs["question"][:, :3]}, attached)
    check_attached(model, inputs | {"answer": inputs["answer"][:, :4]}, attached)
    model, inputs = TEXTS["DistilBERT"]()
    attached = attach(model.eval(), inputs, exits=2)
    with pytest.raises(ShapeError, match=r"size \[\(16,\), \(9,\)\] .* token 2 to 512 alike in all inputs"):
        attached.start(inputs | {"attention_mask": inputs["attention_mask"][:, :9]})


@pytest.mark.parametrize(
    ("free", "said"),
    [
        ({"y": {1: "a"}}, r"free \{'y': .* the inputs are 'question', 'answer', 'numbers'"),
        ({1: "a"}, r"free \{1: 'a'\} does not fit"),
        ({"question": {0: "a"}}, r"free axis 0 named 'a' .*'question' of shape \(3, 6\): axes are numbered from 1"),
        ({"question": {2: "a"}}, "free axis 2"),
        ({"question": {1: "a"}, "answer": {1: "a"}}, "'a' has the sizes 6 and 9"),
    ],
)
def test_axes_that_are_not_there_are_refused(free, said):
    inputs = {"question": torch.randint(20, (3, 6)), "answer": torch.randint(20, (3, 9)), "numbers": torch.randn(3, 8)}
    with pytest.raises(ShapeError, match=said):
        attach(Pair(), inputs, exits=["blocks.0"], free=free)


class Added(nn.Module):
    """Adds two texts of one length."""

    def __init__(self):
        super().__init__()
        self.embed, self.blocks, self.classify = nn.Embedding(20, 8), blocks(3, 8), nn.Linear(8, 3)

    def forward(self, one, two):
        return self.classify(self.blocks(self.embed(one) + self.embed(two)).mean(1))


def test_axes_that_are_one_size_need_one_name():
    inputs = {"one": torch.randint(20, (3, 6)), "two": torch.randint(20, (3, 6))}
    with pytest.warns(UserWarning, match="take first and second of one size: give these axes one name"):
        attach(Added().eval(), inputs, exits=["blocks.0"], free={"one": {1: "first"}, "two": {1: "second"}})
    attached = attach(Added().eval(), inputs, exits=["blocks.0"], free={"one": {1: "text"}, "two": {1: "text"}})
    assert set(attached.entry.limits) == {"text"}


class Placed(nn.Module):
    """Adds a table of as many positions as the example has tokens, or reads one after the other."""

    def __init__(self, kind):
        super().__init__()
        self.embed, self.table, self.blocks = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8)), blocks(3, 8)
        self.recurrent, self.classify = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)
        self.kind = kind

    def forward(self, ids):
        x = self.embed(ids)
        if self.kind == "table":
            x = x + self.table
        if self.kind == "recurrent":
            x = self.recurrent(x)[0]
        if self.kind == "number":
            x = x * torch.ones(int(ids.shape[1]))[:, None]
        if self.kind == "odd":
            x = x.reshape(2 * x.shape[0], x.shape[1] // 2, 8).tanh().reshape(x.shape)
        return self.classify(self.blocks(x).mean(1))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("table", "token 6, and no size next to it"),
        ("number", "token 6 only"),
        pytest.param("recurrent", "token 6 only", marks=pytest.mark.slow),
        pytest.param("odd", "token 6, and no size next to it", marks=pytest.mark.slow),
    ],
)
def test_where_one_length_is_recorded_it_stays_and_that_is_said(kind, reason):
    model, ids = Placed(kind).eval(), torch.randint(20, (3, 6))
    with pytest.warns(UserWarning, match=f"free sizes stay those of the example, token at 6: .*{reason}"):
        attached = attach(model, ids, exits=["blocks.0"])
    check_attached(model, ids, attached)
    with pytest.raises(ShapeError, match=r"inputs of size \[\(5,\)\] per sample do not fit: .*\[\(6,\)\]") as caught:
        attached.start(ids[:, :5])
    assert "\n" not in str(caught.value)


class FlatHead(nn.Module):
    """Reads all tokens of a text of 12 and its first one."""

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(13 * 16, classes)

    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.slow
def test_heads_of_one_length_keep_it():
    with pytest.warns(UserWarning, match="token at 12: at token 15, head of exit 0 fails"):
        _, ids, attached = reader(heads=lambda shape, classes: FlatHead(classes))
    assert isinstance(attached.entry, SameForm) and attached.entry.limits == {}
    assert attached(ids)[0].shape == (3, 4)


# --- what is wrapped around a model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_wrapped_models_are_taken(wrapped):
    model, inputs = FAMILIES["plain"]()
    outer = wrapped(model)
    inner = outer.module if hasattr(outer, "module") else model
    attached = attach(outer, inputs, exits=3).eval()
    assert attached.whole.model is inner
    check_attached(inner, inputs, attached)
    around = wrapped(attached)
    assert EagerEngine(around).full(inputs).shape == (3, 4)


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::torch.jit.TracerWarning")
def test_what_cannot_be_seen_into_is_refused():
    model, inputs = FAMILIES["plain"]()
    with pytest.raises(AttachError, match="has exits already"):
        attach(attach(model, inputs, exits=2), inputs)
    inside, inputs = FAMILIES["plain"]()
    inside[1] = torch.compile(inside[1])
    with pytest.raises(AttachError, match="compiled in module '1'"):
        attach(inside, inputs, exits=2)
    inplace, inputs = FAMILIES["plain"]()
    inplace.compile()
    with pytest.raises(AttachError, match="compiled in place"):
        attach(inplace, inputs, exits=2)
    traced = torch.jit.trace(attach(model, inputs, exits=2).eval(), inputs, strict=False)
    with pytest.raises(InputError, match="has no exits"):
        EagerEngine(traced)
