"""Exits for tiers of devices: each at the end of the largest sub-model that a tier can hold."""

import time

import pytest
import torch
from foreign import FAMILIES, blocks
from torch import nn

from eenet.errors import AttachError, InputError
from eenet.models import attach, capacities, exit_sizes
from eenet.tables.capacity import read_capacities


def rows(count=4):
    """`count` blocks of 8 x 8 weights and 8 biases, then 3 classes; heads have 16 + 24 + 3 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(*blocks(count, 8), nn.Linear(8, 3)), torch.randn(3, 8)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["115 params"], ("0",)),  # 72 and a head of 43
        (["186 params"], ("0",)),  # one parameter short of two blocks
        (["187 params"], ("1",)),
        (["0.115k params", "0.3k params"], ("0", "1")),  # 144 + 2 heads = 230, 216 + 2 heads = 302
        (["115 params", "302params"], ("0", "2")),
        (["0.46kB", "1208B"], ("0", "2")),  # four bytes each
        (["0.187k params", "520FLOPs"], ("1", "2")),  # three blocks of 128 and two heads of 48 operations are 480
    ],
)
def test_each_exit_ends_the_largest_sub_model_that_fits_with_its_heads(texts, names):
    model, inputs = rows()
    attached = attach(model, inputs, exits=capacities(texts))
    assert attached.whole.names == names
    assert attached.num_exits == len(texts) + 1


def test_the_parts_of_the_attached_model_are_within_the_capacities():
    model, inputs = FAMILIES["conv"]()
    held = attach(model, inputs, exits=capacities(["8kB", "20kB"]))

    def size(k):  # what stage k holds and its head; batch norms count with their statistics
        return sum(one.nbytes for part in (held.stages[k], held.heads[k]) for one in part.state_dict().values())

    assert size(0) <= 8_000 < size(0) + size(1) <= 20_000
    assert size(0) > 4_000


@pytest.fixture(scope="module", params=["plain", "gated", "conv", pytest.param("tokens", marks=pytest.mark.slow)])
def thirds(request):
    """A model, its inputs, and the same model with three exits."""
    model, inputs = FAMILIES[request.param]()
    return model, inputs, attach(model, inputs, exits=3)


@pytest.mark.filterwarnings("ignore:free sizes stay")
@pytest.mark.parametrize("kind", ["params", "bytes"])
def test_what_is_counted_is_what_the_stages_have(thirds, kind):
    model, inputs, attached = thirds
    sizes = exit_sizes(attached)[kind]
    exact = capacities([f"{size:.0f} {kind}" for size in sizes[:2]])
    assert attach(model, inputs, exits=exact).whole.names == attached.whole.names
    less = attach(model, inputs, exits=capacities([f"{sizes[1] - 1:.0f} {kind}"]))
    assert exit_sizes(less)[kind][0] < sizes[1]


def test_weights_that_no_call_of_their_own_module_reads_count_where_they_are_read():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.start, self.blocks = nn.Parameter(torch.ones(8)), blocks(3, 8)
            self.unused = nn.Linear(50, 50)
            self.classify = nn.Linear(8, 3)

        def forward(self, x):
            return self.classify(self.blocks(x + self.start))

    torch.manual_seed(0)
    model = Tied()
    # `start` is read by the model itself: before the first block, as is `unused`, which nobody calls
    needed = 72 + 8 + 50 * 51 + 43
    assert attach(model, torch.randn(3, 8), exits=capacities([f"{needed} params"])).whole.names == ("blocks.0",)
    with pytest.raises(AttachError, match=rf"holds no block.*{needed / 1000:.4g} kparams"):
        attach(model, torch.randn(3, 8), exits=capacities([f"{needed - 1} params"]))


def test_a_measured_time_is_a_capacity():
    class Slow(nn.Sequential):
        def forward(self, x):
            time.sleep(0.015)
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(*(Slow(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)), nn.Linear(8, 3))
    assert attach(model, torch.randn(2, 8), exits=capacities(["44ms"])).whole.names == ("1",)


@pytest.mark.parametrize(
    ("texts", "facts"),
    [
        (["10 params"], ("'10 params'", "tier 0", "no block", "'0'", "115 params")),
        (["1GB"], ("'1GB'", "tier 0", "whole model", "1.26 kB")),
        (["115 params", "0.31 kFLOPs"], ("'0.31 kFLOPs'", "tier 1", "same block as tier 0, '0'", "'1'", "352 FLOPs")),
        (["302 params", "150FLOPs"], ("'150FLOPs'", "tier 1", "'3'")),
    ],
)
def test_capacities_that_hold_nothing_or_all_are_refused(texts, facts):
    model, inputs = rows()
    with pytest.raises(AttachError) as caught:
        attach(model, inputs, exits=capacities(texts))
    assert all(fact in str(caught.value) for fact in facts), caught.value


@pytest.mark.parametrize("texts", [["1MB", "1MB"], ["2MB", "3MFLOPs", "1MB"], ["1 MiB", "1.04 MB"]])
def test_capacities_of_one_kind_rise(texts):
    with pytest.raises(InputError, match="do not rise"):
        capacities(texts)


@pytest.mark.parametrize("text", ["1", "MB", "-1MB", "0MB", "1 apple", "nan MB", "1 kiparams!", ""])
def test_what_is_no_capacity_is_refused(text):
    with pytest.raises(InputError, match="capacity"):
        capacities([text])


def test_units():
    found = read_capacities(["0.5k params", "1KiB", "2kB", "1MMACs", "3us", "1ms"])
    assert [(one.value, one.kind) for one in found] == [
        (500, "params"),
        (1024, "bytes"),
        (2000, "bytes"),
        (2e6, "FLOPs"),
        (pytest.approx(0.003), "ms"),
        (1, "ms"),
    ]
    assert [one.written(1.5e6) for one in found[:2]] == ["1.5 Mparams", "1.5 MB"]
