"""Exits for any module: what is cut equals what was there, what cannot be cut is refused with the reason."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from foreign import FAMILIES, blocks, check_attached, said
from torch import nn

from eenet.errors import AttachError, InputError, ShapeError
from eenet.models.attach import attach
from eenet.models.inputs import evaluating
from eenet.policies import ConfidenceScorer, ScorePolicy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.bundle import Bundle
from eenet.running.engines import EagerEngine
from eenet.tables.arrays import log_softmax
from eenet.training.losses import exit_losses

pytestmark = pytest.mark.filterwarnings("ignore:free sizes stay")  # the windows of `Tokens` need even lengths


@pytest.mark.parametrize("name", ["plain", "gated", "conv", "tokens"])
def test_what_is_cut_equals_what_was_there(name):
    model, inputs = FAMILIES[name]()
    attached = attach(model, inputs, exits=4)
    assert attached.num_exits == 4
    check_attached(model, inputs, attached)


def test_exits_are_spread_evenly_over_the_cost():
    model, inputs = FAMILIES["plain"]()
    attached = attach(model, inputs, exits=3)
    assert attached.whole.names == ("1", "3")  # of six equal blocks, the last one before the classifier


def test_exits_by_name_in_the_order_given():
    model, inputs = FAMILIES["plain"]()
    attached = attach(model, inputs, exits=["0", "4"])
    assert attached.num_exits == 3
    check_attached(model, inputs, attached)


def test_a_tap_inside_a_block_takes_along_what_later_stages_need():
    model, inputs = FAMILIES["conv"]()
    attached = attach(model, inputs, exits=["blocks.1.first"])  # the shortcut must travel too
    state = attached.stages[0](inputs)
    assert isinstance(state, tuple)
    assert len(state) == 2
    check_attached(model, inputs, attached)


def test_heads_see_what_a_module_returned_and_not_what_became_of_it_in_place():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)]
    model, inputs = nn.Sequential(*layers), torch.randn(3, 6)
    attached = attach(model, inputs, exits=["0", "2"])
    with torch.no_grad():
        returned = model[0](inputs)
        assert (returned < 0).any()
        assert torch.equal(attached(inputs)[0], attached.heads[0](returned))
    check_attached(model, inputs, attached)


def test_flags_and_hooks_are_as_before_and_so_on_failure():
    model, inputs = FAMILIES["conv"]()
    model.train()
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    attach(model, inputs, exits=3)
    with pytest.raises(AttachError):
        attach(nn.Sequential(model, Mixing()), inputs, exits=["0"])
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_original_model_trains_in_place_and_the_stages_follow():
    model, inputs = FAMILIES["conv"]()
    attached = attach(model, inputs, exits=3)
    attached.train()
    optimiser = torch.optim.SGD(attached.parameters(), lr=0.1)
    loss = sum(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])) for logits in attached(inputs))
    loss.backward()
    optimiser.step()  # weights and the running means of batch norms have moved
    attached.eval()
    check_attached(model, inputs, attached)


@pytest.mark.parametrize("optimise", [True, False])
@pytest.mark.parametrize("name", ["conv", "gated"])
def test_running_decides_as_the_recorded_outputs_say(name, optimise):
    model, inputs = FAMILIES[name]()
    attached = attach(model, inputs, exits=3).eval()
    engine = EagerEngine(attached, optimise=optimise)
    middle = log_softmax(said(engine, inputs)).max(axis=2)
    thresholds = [float(np.median(middle[:, k])) - 1e-3 for k in range(2)] + [-np.inf]
    policy = ScorePolicy(ConfidenceScorer(lambda log_probs: log_probs.max(axis=1)), np.array(thresholds))
    wanted = [next(k for k in range(3) if middle[i, k] >= thresholds[k]) for i in range(3)]
    prediction = AdaptiveModel(engine, policy)(inputs)
    assert prediction.exit_index.tolist() == wanted
    with torch.no_grad():
        every = torch.stack(attached(inputs), dim=1)
    expected = torch.log_softmax(every[torch.arange(3), torch.tensor(wanted)], dim=1)
    assert np.allclose(prediction.log_probs, expected, atol=1e-4)


def test_batch_norms_of_a_cut_model_are_folded():
    model, inputs = FAMILIES["conv"]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    attached = attach(model, inputs, exits=3)
    engine = EagerEngine(attached)
    code = [stage.code for stage in engine._stages]
    assert not any("batch_norm" in text for text in code)
    with torch.no_grad(), evaluating(model):
        assert np.allclose(engine.full(inputs), model(inputs), atol=1e-4)


def test_pictures_that_are_made_flat_run_in_any_memory_order():
    blocks = [nn.Sequential(nn.Conv2d(width, 4, 3, padding=1), nn.ReLU()) for width in (3, 4, 4)]
    model, inputs = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 25, 3)), torch.randn(3, 3, 5, 5)
    engine = EagerEngine(attach(model, inputs, exits=["0", "1"]))
    assert engine.channels_last
    with torch.inference_mode():
        assert np.allclose(engine.full(inputs), model(inputs), atol=1e-5)


def test_without_some_exits():
    model, inputs = FAMILIES["gated"]()
    attached = attach(model, inputs, exits=4)
    fewer = attached.without([1])
    assert fewer.num_exits == 3
    with torch.no_grad():
        every = attached(inputs)
        for logits, wanted in zip(fewer(inputs), [every[0], every[2], every[3]], strict=True):
            assert torch.equal(logits, wanted)
    check_attached(model, inputs, fewer)
    with pytest.raises(InputError, match=r"exits 3 cannot be used: a whole number from 0 to 2"):
        attached.without([3])


def test_a_bundle_brings_the_weights_into_a_model_attached_anew(tmp_path):
    model, inputs = FAMILIES["conv"]()
    attached = attach(model, inputs, exits=3).eval()
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.0, 0.0, -np.inf]))
    Bundle(model=attached, policy=policy).save(tmp_path / "bundle")

    def build(info):
        other, _ = FAMILIES["conv"]()
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        return attach(other, inputs, exits=3)

    loaded = Bundle.load(tmp_path / "bundle", build).model
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(inputs), attached(inputs), strict=True))
        assert np.array_equal(said(EagerEngine(loaded), inputs), said(EagerEngine(attached), inputs))


# --- what cannot be cut -----------------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """Takes the mean over samples off."""

    def forward(self, x):
        return x - x.mean(0)


class Deciding(nn.Module):
    """Does one thing or the other, as the values say."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    """Knows how many samples there are."""

    def forward(self, x):
        return x.reshape(3, -1)


class Unstable(nn.BatchNorm1d):
    """Norms by the batch, always."""

    def __init__(self):
        super().__init__(8, track_running_stats=False)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Mixing, "in module '2.0' samples of a batch influence each other"),
        (Unstable, "in module '2.0' samples of a batch influence each other"),
        (Deciding, "in module '2.0', a decision depends on the values"),
        (Fixed, "the number of samples is fixed"),
    ],
)
def test_models_that_cannot_be_cut_are_refused_with_the_reason(module, said):
    model = nn.Sequential(*blocks(2, 8), nn.Sequential(module(), nn.Linear(8, 8)), *blocks(2, 8), nn.Linear(8, 4))
    with pytest.raises(AttachError, match=said):
        attach(model, torch.randn(3, 8), exits=["0", "3"])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"exits": ["4.7"]}, r"'4\.7', which is not there: near it are 4\.\d"),
        ({"exits": 40}, "too many for this model"),
        ({"exits": 1}, "at least 2"),
        ({"exits": ["1", "1"]}, "one twice"),
        ({"exits": ["3", "1"]}, "module '1' returns before module '3' does"),
        ({"example_inputs": torch.randn(1, 8)}, "at least 2"),
        ({"example_inputs": {"y": torch.randn(2, 8)}}, "fails on example_inputs .*TypeError.*'y'"),
        ({"heads": lambda shape, classes: nn.Linear(99, classes)}, "fails on features of shape"),
        ({"heads": lambda shape, classes: nn.Linear(shape[1], classes + 1)}, "samples and classes must be the same"),
    ],
)
def test_bad_requests_are_refused(asked, said):
    model, inputs = FAMILIES["plain"]()
    with pytest.raises((AttachError, ShapeError), match=said):
        attach(model, **({"example_inputs": inputs, "exits": 3} | asked))


def test_a_module_that_never_runs_and_scripted_models_are_refused():
    idle = nn.Sequential(*blocks(3, 8), nn.Linear(8, 4))
    with pytest.raises(AttachError):
        attach(nn.ModuleDict({"a": idle}), torch.randn(3, 8), exits=["a"])
    with pytest.warns(match="deprecated"):
        scripted = torch.jit.script(idle)
    with pytest.raises(AttachError, match="TorchScript"):
        attach(scripted, torch.randn(3, 8), exits=2)


class Shared(nn.Module):
    """Runs one block, which costs nearly all, several times; or several, of which only the last costs something."""

    def __init__(self, times, widths):
        super().__init__()
        self.times = times
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 8)) for w in widths)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            for _ in range(self.times):
                x = block(x)
        return self.last(x)


def test_exits_that_make_no_sense_are_refused_or_warned_of_with_the_reason():
    inputs = torch.randn(3, 8)
    with pytest.raises(AttachError, match=r"'blocks\.0', which runs 4 times"):
        attach(Shared(4, [64]), inputs, exits=["blocks.0"])
    with pytest.raises(AttachError, match=r"of the cost: no blocks split .*'blocks\.0' runs 4 times"):
        attach(Shared(4, [64]), inputs, exits=2)
    with pytest.warns(UserWarning, match=r"exits after blocks\.0, blocks\.1 come at 7%, 14% of the cost"):
        attach(Shared(1, [8, 8, 96]), inputs, exits=3)
    attach(Shared(1, [8, 8, 96]), inputs, exits=["blocks.0", "blocks.1"])  # asked for by name


class Several(nn.Module):
    """Returns its logits beside something else, in some form."""

    def __init__(self, form):
        super().__init__()
        self.form, self.last = form, nn.Linear(8, 4)
        self.blocks = nn.Sequential(*blocks(3, 8))

    def forward(self, x):
        features = self.blocks(x)
        return self.form(features, self.last(features))


@pytest.mark.parametrize(
    ("form", "answer", "clear"),
    [
        (lambda features, logits: {"embedding": features, "logits": logits}, None, True),
        (lambda features, logits: (logits, 2 * logits), None, True),
        (lambda features, logits: {"embedding": features, "pred": logits}, "pred", False),
        (lambda features, logits: (features, logits), 1, False),
        (lambda features, logits: (logits, features), 0, False),
    ],
)
def test_logits_are_found_where_that_is_clear_or_said(form, answer, clear):
    inputs = torch.randn(3, 8)
    if not clear:
        with pytest.raises(AttachError, match=r"shapes .*\(3, [48]\).*Pass answer="):
            attach(Several(form), inputs, exits=["blocks.0"])
        with pytest.raises(AttachError, match="answer 'odd' is no tensor"):
            attach(Several(form), inputs, exits=["blocks.0"], answer="odd")
    attached = attach(Several(form), inputs, exits=["blocks.0"], answer=answer).eval()
    assert [logits.shape[1] for logits in attached(inputs)] == [4, 4]
    assert torch.allclose(
        torch.from_numpy(said(EagerEngine(attached), inputs)), torch.stack(attached(inputs), 1), atol=1e-5
    )


def test_heads_of_ones_own():
    model, inputs = FAMILIES["plain"]()
    attached = attach(model, inputs, exits=3, heads=lambda shape, classes: nn.Linear(shape[1], classes, bias=False))
    assert all(head.head.bias is None for head in attached.heads[:-1])
    first, second = (attach(model, inputs, exits=3, seed=seed).heads[0].head.classify.weight for seed in (0, 1))
    assert not torch.equal(first, second)


class LooksBack(nn.Module):
    """Every word sees the mean of those before it and of itself; the last one answers."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4))
        self.classify = nn.Linear(8, 3)

    def forward(self, ids):
        x, count = self.words(ids), torch.arange(1, ids.shape[1] + 1)[:, None]
        for layer in self.layers:
            x = x + layer(x.cumsum(1) / count)
        return self.classify(x[:, -1])


def test_where_words_only_look_back_the_last_is_read():
    torch.manual_seed(0)
    model, ids = LooksBack(), torch.randint(1, 20, (3, 7))
    attached = attach(model, ids, exits=3)
    assert [head.head.place for head in attached.heads[:-1]] == [-1, -1]
    check_attached(model, ids, attached)
    tokens, inputs = FAMILIES["tokens"]()  # here they look both ways
    assert [head.head.place for head in attach(tokens, inputs, exits=3).heads[:-1]] == [0, 0]
    nothing_to_tell_it_by = attach(model, torch.zeros(3, 7, dtype=torch.long), exits=3)
    assert [head.head.place for head in nothing_to_tell_it_by.heads[:-1]] == [0, 0]


def classifier(*layers, features, places):
    """A net of convolutions of some kind that averages over all places."""
    mean = nn.Flatten(2) if places > 1 else nn.Identity()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.classify = nn.ModuleList(layers), nn.Linear(features, 4)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.classify(mean(x).mean(2))

    return Net()


def block(convolution, norm, inside, outside):
    return nn.Sequential(convolution(inside, outside, 3, padding=1), norm(outside), nn.ReLU())


@pytest.mark.parametrize(
    ("convolution", "norm", "features", "size"),
    [
        (nn.Conv1d, nn.BatchNorm1d, 16, (20,)),
        (nn.Conv1d, nn.BatchNorm1d, 20, (20,)),
        (nn.Conv2d, nn.BatchNorm2d, 8, (8, 12)),  # a picture as high as there are channels
        (nn.Conv2d, nn.BatchNorm2d, 8, (8, 8)),
        (nn.Conv3d, nn.BatchNorm3d, 6, (4, 6, 7)),
    ],
)
def test_heads_of_convolutions_read_channels_whatever_the_size(convolution, norm, features, size):
    layers = [block(convolution, norm, 3, features), *(block(convolution, norm, features, features) for _ in range(3))]
    model = classifier(*layers, features=features, places=len(size))
    attached = attach(model, torch.randn(2, 3, *size), exits=3)
    for head in attached.heads[:-1]:
        assert (head.head.axis, head.head.norm.normalized_shape) == (1, (features,))


class ChannelsLast(nn.Module):
    """Patches with their features in the last axis, as in Swin."""

    def __init__(self, features=12):
        super().__init__()
        self.embed = nn.Linear(3, features)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(features), nn.Linear(features, features)) for _ in "abc")
        self.classify = nn.Linear(features, 4)

    def forward(self, x):
        x = self.embed(x.permute(0, 2, 3, 1))
        for one in self.blocks:
            x = x + one(x)
        return self.classify(x.mean((1, 2)))


@pytest.mark.parametrize("size", [(4, 6), (6, 6), (12, 12), (5, 12)])
def test_heads_find_features_in_the_last_axis_whatever_the_size(size):
    model, inputs = ChannelsLast(), torch.randn(3, 3, *size)
    attached = attach(model, inputs, exits=["blocks.0", "blocks.1"])
    assert [head.head.axis % 4 for head in attached.heads[:-1]] == [3, 3]
    check_attached(model, inputs, attached)


class Turned(nn.Module):
    def __init__(self, turn):
        super().__init__()
        self.conv, self.turn = nn.Conv2d(3, 8, 1), turn

    def forward(self, x):
        return self.turn(self.conv(x))


@pytest.mark.parametrize(
    ("turn", "axis"),
    [
        (lambda x: x, 1),
        (lambda x: x.permute(0, 2, 3, 1), 3),
        (lambda x: x.transpose(1, 2), 2),
        (lambda x: x.softmax(1), None),
    ],
)
def test_features_are_found_by_trying_and_refused_where_they_mix(turn, axis):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.idle, self.last = Turned(turn), nn.ReLU(), nn.Linear(512, 4)

        def forward(self, x):
            return self.last(self.idle(self.first(x)).flatten(1))

    for exits in (["first"], ["idle"]):  # 8 channels of 8 x 8 pixels; a module without weights
        if axis is None:
            with pytest.raises(ShapeError, match="which axis has the features is not clear"):
                attach(Net(), torch.randn(2, 3, 8, 8), exits=exits)
        else:
            model, inputs = Net(), torch.randn(2, 3, 8, 8)
            before = [weight.clone() for weight in model.parameters()]
            assert attach(model, inputs, exits=exits).heads[0].head.axis == axis
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_stages_refuse_inputs_of_another_size():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(block(nn.Conv2d, nn.BatchNorm2d, 3, 3) for _ in range(3)))

        def forward(self, x):
            return self.blocks(x).sum((2, 3)) / (x.shape[2] * x.shape[3])  # the size is recorded as a number

    attached = attach(Mean(), torch.randn(2, 3, 8, 8), exits=["blocks.0", "blocks.1"]).eval()
    engine = AdaptiveModel(attached, ScorePolicy(ConfidenceScorer("max_prob"), np.array([2.0, 2.0, -np.inf])))
    assert len(attached(torch.randn(2, 3, 16, 16))) == 3  # the original model takes what it takes
    with pytest.raises(ShapeError, match=r"inputs of size \[\(3, 16, 16\)\] per sample do not fit"):
        engine(torch.randn(2, 3, 16, 16))


def test_threads_do_not_see_each_others_samples():
    model, inputs = FAMILIES["conv"]()
    attached = attach(model, inputs, exits=3).eval()
    batches = [torch.randn_like(inputs) for _ in range(40)]
    with torch.no_grad():
        wanted = [torch.stack(attached(batch)) for batch in batches]

        def run(batch):
            with torch.no_grad():
                return torch.stack(attached(batch))

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(run, batches))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True))


def test_heads_for_tokens_get_the_number_of_classes_and_not_of_tokens():
    class Tags(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 6)
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)))
            self.classify = nn.Linear(6, 3)

        def forward(self, words):
            return self.classify(self.blocks(self.embed(words)))

    asked = []

    def head(shape, num_classes):
        asked.append((tuple(shape), num_classes))
        return nn.Linear(shape[2], num_classes)

    words = torch.randint(9, (2, 12))
    attached = attach(Tags(), words, exits=["blocks.0", "blocks.1"], heads=head)
    assert asked == [((2, 12, 6), 3)] * 2
    with pytest.raises(ShapeError, match=r"logits of shape \(2, 12, 3\) cannot be learnt from"):
        exit_losses(attached(words), torch.zeros(2, 12, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_heads_are_of_the_models_own_type(dtype):
    model, inputs = FAMILIES["plain"]()
    attached = attach(model.to(dtype), inputs.to(dtype), exits=3)
    assert {logits.dtype for logits in attached(inputs.to(dtype))} == {dtype}


def test_modules_may_be_called_what_they_like():
    parts = {"graph": nn.Linear(6, 6), "code": nn.ReLU(), "forward_": nn.Linear(6, 6), "last": nn.Linear(6, 3)}
    model, inputs = nn.Sequential(OrderedDict(parts)), torch.randn(3, 6)
    check_attached(model, inputs, attach(model, inputs, exits=["graph", "forward_"]))


def test_inputs_that_the_model_changes_stay_the_callers():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)))

        def forward(self, x):
            x -= 0.5
            return self.blocks(x)

    inputs = torch.ones(2, 6)
    attach(Shifts(), inputs, exits=["blocks.0"])
    assert torch.equal(inputs, torch.ones(2, 6))


class Keeps(nn.Module):
    """Works its bias out from a table and keeps it in evaluation, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.table, self.kept = nn.Parameter(torch.randn(3, 6)), {}

    def train(self, mode=True):
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x + self.table.sum(0)
        if "bias" not in self.kept:
            self.kept["bias"] = self.table.sum(0)
        return x + self.kept["bias"]


def test_what_is_kept_for_evaluation_follows_the_weights():
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(Keeps(), nn.ReLU()), nn.Linear(6, 6), nn.Linear(6, 3))
    inputs = torch.randn(3, 6)
    model.eval()(inputs)
    attached = attach(model, inputs, exits=["1", "2"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    attached.train().eval()
    check_attached(model, inputs, attached)


def test_exported_programs_get_exits_too():
    model, inputs = FAMILIES["plain"]()
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model.eval(), (inputs,), dynamic_shapes=({0: batch},)).module()
    with pytest.raises(NotImplementedError):
        exported.train()

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.program, self.more, self.last = exported, nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.more(self.program(x)))

    net = Behind()
    check_attached(net, inputs, attach(net, inputs, exits=["more"]))
