"""EENet's functions and losses, by hand and against slow twins; each known fault of the public code has its test."""

import dataclasses
import itertools
import math

import pytest
import torch

from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError
from eenet.schedulers import EENetScheduler
from eenet.schedulers.eenet import EENetScorer, exit_features
from eenet.schedulers.eenet_fit import _assignment_loss, _Networks, _score_loss, fit_networks
from eenet.testing import synthetic_table

SHORT = dataclasses.replace(EENetScheduler.published(), epochs=4, alternate_every=1, learning_rate=1e-2)


def networks(table, members=2, settings=SHORT):
    x = exit_features(table.log_probs(slice(None)))
    return x, _Networks(x.shape, table.num_classes, members, settings)


def test_published_settings_are_the_papers():
    published = EENetScheduler.published()
    assert (published.learning_rate, published.weight_decay, published.epochs) == (3e-5, 1e-2, 1000)
    assert (published.batch_size, published.alternate_every) == (512, 10)
    assert (published.alpha_kl, published.alpha_cost, published.beta) == (1e-3, 1e-2, 1.0)
    assert (published.hidden_ratio, published.assignment, published.thresholds) == (0.5, "sum", "assigned")


def test_training_and_inference_compute_the_same_scores():
    table = synthetic_table(50)
    x, network = networks(table)
    torch.nn.init.normal_(network.weight.data, std=0.5)  # many scores clip, at both ends
    trained = network.scores(x)
    assert ((trained == 0) | (trained == 1)).float().mean() > 0.1
    for member in range(2):
        scorer = EENetScorer(table.num_exits, table.num_classes, network.weight[member])
        for k in range(table.num_exits):
            score = scorer(table.log_probs(slice(None))[:, : k + 1])
            inside = (trained[member, :, k] > 0) & (trained[member, :, k] < 1)
            assert torch.allclose(score[inside], trained[member, inside, k], atol=1e-5)
            assert (score[trained[member, :, k] == 1] >= 1).all()
            assert (score[trained[member, :, k] == 0] <= 0).all()


def test_scores_start_at_the_largest_probability():
    table = synthetic_table(50)
    x, network = networks(table, members=1, settings=EENetScheduler())
    assert torch.allclose(network.scores(x)[0], table.log_probs(slice(None)).exp().amax(dim=2), atol=1e-6)


def test_score_loss_by_hand():
    scores = torch.tensor([[[0.5, 0.8], [0.25, 1.0]]])
    utility = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    shares = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]])
    # omega: columns normalised over samples: exit 0 (.75, .25), exit 1 (.125, .875)
    exit_0 = 0.75 * -math.log(0.5) + 0.25 * -math.log(0.75)
    exit_1 = 0.125 * -math.log(0.8) + 0.875 * -math.log(1 - 1e-6)
    assert float(_score_loss(scores, utility, shares)) == pytest.approx((exit_0 + exit_1) / 2, rel=1e-5)


def test_assignment_loss_equals_the_slow_twin():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3, 7, 4, generator=generator)
    shares = torch.softmax(torch.randn(3, 7, 4, generator=generator), dim=2)
    costs, goal = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.5, 2.0, 4.0])
    total = 0.0
    for m in range(3):
        divergence, cost = 0.0, 0.0
        for n in range(7):
            target = [float(q) + 1e-6 for q in scores[m, n]]
            target = [t / sum(target) for t in target]
            divergence += sum(t * math.log(t / float(p)) for t, p in zip(target, shares[m, n], strict=True)) / 7
            cost += sum(float(p) * float(c) for p, c in zip(shares[m, n], costs, strict=True)) / 7
        total += 1e-3 * divergence + 1e-2 * abs(cost - float(goal[m])) / float(goal[m])
    assert float(_assignment_loss(shares, scores, costs, goal, SHORT)) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("assignment", ["sum", "softmax"])
def test_assignment_equals_the_slow_twin(assignment):
    table = synthetic_table(6, num_exits=3)
    x, network = networks(table, settings=dataclasses.replace(SHORT, assignment=assignment))
    scores = network.scores(x)
    shares = network.assign(x, scores)
    assert shares.shape == (2, 6, 3)  # no silent broadcast over samples
    for m in range(2):
        for n in range(6):
            raw = []
            for k in range(3):
                inputs = torch.cat([x[n, k], scores[m, n, :k], torch.zeros(2 - k)])
                hidden = torch.relu(inputs @ network.first[m, k] + network.first_bias[m, 0, k])
                raw.append(hidden @ network.second[m, k] + network.second_bias[m, 0, k])
            stacked = torch.stack(raw)
            positive = torch.nn.functional.softplus(stacked)
            twin = positive / positive.sum() if assignment == "sum" else torch.softmax(torch.sigmoid(stacked), dim=0)
            assert torch.allclose(shares[m, n], twin, atol=1e-5)


def test_softmax_assignment_cannot_reach_tight_budgets():
    table = synthetic_table(200)
    reach = {}
    for assignment in ("sum", "softmax"):
        x, network = networks(table, members=1, settings=dataclasses.replace(SHORT, assignment=assignment))
        network.second_bias.data[..., 0], network.second_bias.data[..., 1:] = 50.0, -50.0  # all its weight on exit 0
        reach[assignment] = float(network.assign(x, network.scores(x)).detach()[0, :, 0].mean())
    assert reach["sum"] > 0.99
    assert reach["softmax"] == pytest.approx(math.e / (math.e + 3), abs=0.01)


def test_gradients_of_the_two_losses_do_not_mix():
    table = synthetic_table(100)
    x, network = networks(table)
    scores = network.scores(x)
    loss = _assignment_loss(network.assign(x, scores), scores, torch.arange(1.0, 5.0), torch.full((2,), 2.0), SHORT)
    loss.backward()
    assert network.weight.grad is None  # scores enter the assignment as constants
    network = networks(table)[1]
    scores = network.scores(x)
    _score_loss(scores, table.utility, network.assign(x, scores).detach()).backward()
    assert all(parameter.grad is None for parameter in network.assignment_parameters())


def test_training_brings_the_mean_cost_to_the_budget():
    table = synthetic_table(500)
    costs = table.costs
    settings = dataclasses.replace(
        EENetScheduler.published(), epochs=200, learning_rate=1e-2, restarts=1, weight_decay=0.0
    )
    fitted = fit_networks(table, costs, [1.4, 3.0], exit_features, settings)
    spent = fitted.shares.double() @ torch.tensor(costs.cumulative, dtype=torch.float64)
    untrained = fit_networks(table, costs, [1.4, 3.0], exit_features, dataclasses.replace(settings, epochs=1))
    before = untrained.shares.double() @ torch.tensor(costs.cumulative, dtype=torch.float64)
    for goal, now, then in zip((1.4, 3.0), spent, before, strict=True):
        assert abs(float(now) - goal) < 0.5 * abs(float(then) - goal) + 0.05


def test_what_is_returned_is_a_copy():
    fitted = fit_networks(synthetic_table(60), synthetic_table(60).costs, None, exit_features, EENetScheduler(epochs=1))
    assert not fitted.weight.requires_grad
    again = fit_networks(synthetic_table(60), synthetic_table(60).costs, None, exit_features, EENetScheduler(epochs=1))
    assert torch.equal(fitted.weight, again.weight)
    assert fitted.weight.data_ptr() != again.weight.data_ptr()


@pytest.mark.parametrize("scheduler", [EENetScheduler(epochs=3), SHORT])
def test_saturated_and_hopeless_outputs_train_without_nan(scheduler):
    # certain and right, certain and wrong, and every probability but one exactly 0
    label = torch.arange(40) % 3
    logits = 200.0 * torch.nn.functional.one_hot(label, 3)[:, None].repeat(1, 3, 1)
    logits[::2] = logits[::2].roll(1, dims=2)
    table = ExitTable(logits=logits, labels=label, costs=dataclasses.replace(synthetic_table(2, num_exits=3).costs))
    policy = scheduler.fit(table, budget=2.0)
    cost, utility = Replayer(table).expected(policy, table.costs)
    assert cost <= 2.0
    assert math.isfinite(utility)


def test_fitting_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    EENetScheduler(epochs=1).fit(synthetic_table(60), budget=2.0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("scheduler", [EENetScheduler(epochs=5), EENetScheduler(epochs=5, thresholds="assigned")])
def test_slow_fits_tell_how_far_they_are(scheduler, monkeypatch):
    clock = itertools.count(step=1.5)  # an epoch seems to take this long: every other one is told of
    monkeypatch.setattr("eenet.schedulers.eenet_fit.monotonic", lambda: next(clock))
    told = []
    dataclasses.replace(scheduler, progress=lambda *news: told.append(news[1:])).fit(synthetic_table(60), budget=2.0)
    assert told and all(total == 5 for _, total in told) and [done for done, _ in told] == sorted({d for d, _ in told})


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"restarts": 0},
        {"beta": -1.0},
        {"alpha_kl": math.inf},
        {"alpha_cost": -0.1},
        {"weight_decay": -1e-4},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EENetScheduler(**wrong)
