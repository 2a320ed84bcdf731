"""EENet's functions, losses and training against a slow twin from the paper (section 3.2), with gradients of torch.

Each known fault of the public code has its test.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from eenet.policies import EENetScorer, Replayer
from eenet.policies.learned import exit_features
from eenet.schedulers import EENetScheduler, StoppingScheduler
from eenet.schedulers.eenet import KINDS, _fit, _start, _train
from eenet.schedulers.eenet_fit import AssignmentNetworks, score_gradient, score_members
from eenet.tables import CostTable, ExitTable
from eenet.testing import check_policy, synthetic_table

SHORT = dataclasses.replace(EENetScheduler.published(), epochs=4, alternate_every=1, learning_rate=1e-2)


def inputs(table):
    return exit_features(table.seen()).astype(np.float32)


def networks(x, goals, *, pulls=(1e-3, 1e-2, 1.0), hidden_ratio=0.5, seed=0):
    return AssignmentNetworks(
        np.array(goals, dtype=np.float32),
        x.shape[1:],
        hidden_ratio=hidden_ratio,
        pulls=pulls,
        generator=np.random.default_rng(seed),
    )


def random_case(seed=0, *, pulls=(0.3, 0.7, 1.3), members=3):
    """Everything training looks at, at random: many scores clip, at both ends."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(7, 4, 5)).astype(np.float32)
    weight = 0.4 * generator.normal(size=(4, members, 8)).astype(np.float32)
    utility = (generator.random((7, 4)) < 0.5).astype(np.float32)
    costs = generator.random((7, 4)).cumsum(axis=1).astype(np.float32)
    goals = np.linspace(0.8, 1.7, members)
    return x, weight, utility, costs, networks(x, goals, pulls=pulls, hidden_ratio=1.5, seed=seed)


# --- the slow twin: the same in torch, samples first ------------------------------------------------------------------


def twin_scores(weight, x):
    """Clipped scores ``[member, sample, exit]``; earlier scores enter later ones as constants."""
    scores = []
    for k in range(x.shape[1]):
        earlier = [score.detach()[:, :, None] for score in scores]
        seen = torch.cat([x[None, :, k].expand(weight.shape[1], -1, -1), *earlier], dim=2)
        scores.append((seen @ weight[k, :, : seen.shape[2], None]).squeeze(2).clamp(0.0, 1.0))
    return torch.stack(scores, dim=2)


def twin_shares(parameters, x, scores):
    """Shares ``[member, sample, exit]`` of the assignment networks."""
    own, earlier, bias, second, second_bias = parameters
    raw = []
    for k in range(x.shape[1]):
        seen = torch.cat([x[None, :, k].expand(own.shape[1], -1, -1), scores.detach()[:, :, :k]], dim=2)
        first = torch.cat([own[k], earlier[k, :, :, :k]], dim=2)
        hidden = torch.relu(seen @ first.transpose(1, 2) + bias[k, :, None])
        raw.append((hidden @ second[k, :, :, None]).squeeze(2) + second_bias[k, :, None])
    return torch.softmax(torch.stack(raw, dim=2), dim=2)


def twin_score_loss(scores, utility, shares):
    """``L_g``: cross-entropy of score against utility, samples weighted by how likely they are to leave there."""
    clipped = scores.clamp(1e-6, 1 - 1e-6)
    loss = torch.nn.functional.binary_cross_entropy(clipped, utility.expand_as(clipped), reduction="none")
    omega = 1 / scores.shape[1] if shares is None else (shares / shares.sum(dim=1, keepdim=True)).detach()
    return (omega * loss).sum(dim=1).mean(dim=1).sum()


def twin_assignment_loss(shares, scores, costs, goals, pulls):
    """``L_h``: pull towards the exits with the larger scores, and towards the budget."""
    alpha_kl, alpha_cost, beta = pulls
    target = (scores.detach() + 1e-6) ** (1 / beta)
    target = target / target.sum(dim=2, keepdim=True)
    divergence = (target * (target / shares).log()).mean(dim=(1, 2))
    distance = ((shares * costs).sum(dim=2).mean(dim=1) - goals).abs() / goals
    return (alpha_kl * divergence + alpha_cost * distance).sum()


def tensors(*arrays):
    return [torch.from_numpy(array.copy()) for array in arrays]


def twin_parameters(net):
    return [p.requires_grad_() for p in tensors(net.own, net.earlier, net.bias, net.second, net.second_bias)]


def flat(parameters):
    return torch.cat([p.grad.flatten() for p in parameters]).numpy()


def test_scores_and_shares_equal_the_slow_twin():
    x, weight, _, _, net = random_case()
    scores = score_members(weight, x)
    slow = twin_scores(*tensors(weight, x))
    assert ((scores == 0) | (scores == 1)).mean() > 0.2
    assert np.allclose(scores.swapaxes(1, 2), slow.numpy(), atol=1e-6)
    shares = net.assign(x, scores).shares
    assert shares.shape == (3, 4, 7)  # no silent broadcast over samples
    twin = twin_shares(twin_parameters(net), torch.from_numpy(x), slow).detach().numpy()
    assert np.allclose(shares.swapaxes(1, 2), twin, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_the_score_loss_equals_torchs(weighted, seed):
    x, weight, utility, _, net = random_case(seed=seed)
    scores = score_members(weight, x)
    shares = net.assign(x, scores).shares if weighted else None
    twin_weight, twin_x, twin_utility = tensors(weight, x, utility)
    given = torch.from_numpy(shares.swapaxes(1, 2).copy()) if weighted else None
    twin_score_loss(twin_scores(twin_weight.requires_grad_(), twin_x), twin_utility, given).backward()
    found = score_gradient(x, scores, utility, shares)
    assert np.abs(found).max() > 0.01
    assert np.allclose(found, twin_weight.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pulls", [(0.3, 0.7, 1.3), (1.0, 0.0, 1.0), (0.0, 1.0, 2.0)])
def test_the_gradient_of_the_assignment_loss_equals_torchs(seed, pulls):
    x, weight, _, costs, net = random_case(seed, pulls=pulls)
    scores = score_members(weight, x)
    parameters, (twin_x, twin_costs, goals) = twin_parameters(net), tensors(x, costs, net.goals)
    slow = torch.from_numpy(scores.swapaxes(1, 2).copy())
    twin_assignment_loss(twin_shares(parameters, twin_x, slow), slow, twin_costs, goals, pulls).backward()
    found = net.gradient(x, scores, costs)
    assert np.abs(found).max() > 1e-3
    assert np.allclose(found, flat(parameters), rtol=1e-4, atol=1e-6)


def twin_train(weight, net, data, settings, generator):
    """Train as `_train` does, by torch's gradients and optimisers; return the weights and the parameters."""
    x, utility, costs = tensors(*data)
    weight = torch.from_numpy(weight.copy()).requires_grad_()
    rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    scoring = torch.optim.Adam([weight], **rates)
    optimizers = [scoring]
    if net is not None:
        parameters, goals = twin_parameters(net), torch.from_numpy(net.goals)
        assigning = torch.optim.Adam(parameters, **rates)
        optimizers.append(assigning)
    for epoch in range(settings.epochs):
        for optimizer in optimizers if settings.anneal else ():
            optimizer.param_groups[0]["lr"] = (
                settings.learning_rate * (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
            )
        for rows in torch.split(torch.from_numpy(generator.permutation(len(x))), settings.batch_size):
            both = not settings.alternate_every
            turn = 0 if both else epoch // settings.alternate_every % 2
            if net is None or turn == 0:
                scores = twin_scores(weight, x[rows])
                shares = None if net is None else twin_shares(parameters, x[rows], scores)
                scoring.zero_grad()
                twin_score_loss(scores, utility[rows], shares).backward()
                scoring.step()
            if net is not None and (both or turn == 1):
                scores = twin_scores(weight, x[rows])
                assigning.zero_grad()
                shares = twin_shares(parameters, x[rows], scores)
                twin_assignment_loss(shares, scores, costs[rows], goals, net.pulls).backward()
                assigning.step()
    return weight.detach().numpy(), None if net is None else [p.detach().numpy() for p in parameters]


@pytest.mark.parametrize("anneal", [False, True])
@pytest.mark.parametrize(("assigned", "alternate_every"), [(False, 0), (True, 0), (True, 1), (True, 2)])
def test_training_equals_torchs(assigned, alternate_every, anneal):
    table = synthetic_table(150, num_exits=3)
    settings = dataclasses.replace(
        SHORT, batch_size=64, weight_decay=0.01, alternate_every=alternate_every, anneal=anneal
    )
    x, members = inputs(table), 4 if assigned else 1
    data = (x, table.utility.astype(np.float32), table.leaving_costs.astype(np.float32))
    weight = np.repeat(_start(table, *data[:2])[:, None], members, axis=1)
    net = networks(x, [1.2, 1.8, 2.2, 2.9]) if assigned else None
    slow_weight, parameters = twin_train(weight, net, data, settings, np.random.default_rng(1))
    start = weight.copy()
    _train(weight, net, data, settings, np.random.default_rng(1))
    assert np.abs(weight - start).max() > 0.03
    assert np.allclose(weight, slow_weight, atol=1e-4)
    if net is not None:
        for one, other in zip((net.own, net.earlier, net.bias, net.second, net.second_bias), parameters, strict=True):
            assert np.allclose(one, other, atol=1e-4)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_published_settings_are_those_of_the_public_code():
    published = EENetScheduler.published()
    assert (published.learning_rate, published.weight_decay, published.epochs) == (3e-5, 1e-2, 1000)
    assert (published.batch_size, published.alternate_every, published.anneal) == (512, 10, False)
    assert (published.alpha_kl, published.alpha_cost, published.beta) == (1e-3, 1e-2, 1.0)
    assert (published.hidden_ratio, published.thresholds) == (0.5, "assigned")
    paper = EENetScheduler.paper()  # the same rule
    assert (paper.alpha_kl, paper.alpha_cost, paper.beta) == (1e-3, 1e-2, 1.0)
    assert (paper.hidden_ratio, paper.thresholds, paper.alternate_every) == (0.5, "assigned", 0)


def test_the_score_loss_by_hand():
    scores = torch.tensor([[[0.5, 0.8], [0.25, 1.0]]])
    utility = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    shares = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]])
    # omega: columns normalised over samples: exit 0 (.75, .25), exit 1 (.125, .875)
    exit_0 = 0.75 * -math.log(0.5) + 0.25 * -math.log(0.75)
    exit_1 = 0.125 * -math.log(0.8) + 0.875 * -math.log(1 - 1e-6)
    assert float(twin_score_loss(scores, utility, shares)) == pytest.approx((exit_0 + exit_1) / 2, rel=1e-5)


def test_training_and_inference_compute_the_same_scores():
    table = synthetic_table(50)
    x = inputs(table)
    weight = 0.5 * np.random.default_rng(0).normal(size=(4, 2, x.shape[2] + 3)).astype(np.float32)
    trained = score_members(weight, x)
    assert ((trained == 0) | (trained == 1)).mean() > 0.1
    for member in range(2):
        scorer = EENetScorer(weight=weight[:, member], num_columns=table.num_columns)
        for k in range(table.num_exits):
            score = scorer(table.seen()[:, : k + 1])
            inside = (trained[member, k] > 0) & (trained[member, k] < 1)
            assert np.allclose(score[inside], trained[member, k, inside], atol=1e-5)
            assert (score[trained[member, k] == 1] >= 1).all()
            assert (score[trained[member, k] == 0] <= 0).all()


def test_any_share_can_be_reached():
    x = inputs(synthetic_table(200))
    net = networks(x, [1.0])
    net.second_bias[0], net.second_bias[1:] = 50.0, -50.0  # all its weight on exit 0
    assert net.assign(x, np.zeros((1, 4, 200), dtype=np.float32)).shares[0, 0].min() > 0.999


def test_extreme_outputs_leave_shares_and_gradients_finite():
    x, weight, _, costs, net = random_case()
    scores = score_members(weight, x)
    for biases in ((1e4, -1e4, -1e4, -1e4), (-1e4, -1e4, -1e4, -1e4)):
        net.second_bias[:] = np.array(biases)[:, None]
        assert np.isfinite(net.assign(x, scores).shares).all()
        assert np.isfinite(net.gradient(x, scores, costs)).all()


@pytest.mark.parametrize("beta", [0.01, 1e-6])
def test_a_small_beta_leaves_the_pull_to_the_larger_scores_finite(beta):
    x, weight, _, costs, net = random_case(pulls=(1.0, 0.0, beta))
    found = net.gradient(x, score_members(weight, x), costs)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 1e-3


# --- fits -------------------------------------------------------------------------------------------------------------


def test_training_brings_the_mean_cost_to_the_budget():
    table = synthetic_table(500)
    settings = dataclasses.replace(
        EENetScheduler.published(), epochs=200, learning_rate=1e-2, restarts=1, weight_decay=0.0
    )
    now, then = (
        _fit(table, (1.4, 3.0), one)[1] @ table.costs.cumulative
        for one in (settings, dataclasses.replace(settings, epochs=1))
    )
    assert (np.abs(now - (1.4, 3.0)) < 0.5 * np.abs(then - (1.4, 3.0)) + 0.05).all()


def test_restarts_of_a_budget_stand_side_by_side_and_the_first_is_the_plain_start():
    still = dataclasses.replace(SHORT, restarts=2, epochs=1, learning_rate=1e-9)
    weight, shares = _fit(synthetic_table(100), (1.4, 3.0), still)
    assert weight.shape == (4, 4, 11) and shares.shape == (4, 4)
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    plain = np.arange(11) == 5  # the largest probability
    assert np.allclose(weight[::2], plain, atol=1e-6)
    assert (np.abs(weight[1::2] - plain).max(axis=(1, 2)) > 0.01).all()


@pytest.mark.parametrize("scheduler", [EENetScheduler(epochs=3), SHORT])
def test_saturated_and_hopeless_outputs_train_without_nan(scheduler):
    # certain and right, certain and wrong, and every probability but one exactly 0
    label = np.arange(40) % 3
    logits = 200.0 * np.eye(3)[label][:, None].repeat(3, axis=1)
    logits[::2] = np.roll(logits[::2], 1, axis=2)
    table = ExitTable(logits=logits, labels=label, costs=synthetic_table(2, num_exits=3).costs)
    cost, utility = Replayer(table).expected(scheduler.fit(table, budget=2.0))
    assert cost <= 2.0
    assert math.isfinite(utility)


@pytest.mark.parametrize(("thresholds", "fits"), [("chosen", 7), ("joint", 1), ("assigned", 1)])
def test_slow_fits_report_how_far_they_are(thresholds, fits, monkeypatch):
    clock = itertools.count(step=1.5)  # an epoch seems to take this long: every other one is reported
    monkeypatch.setattr("eenet.schedulers.eenet.monotonic", lambda: next(clock))
    news = []
    scheduler = EENetScheduler(epochs=5, thresholds=thresholds, progress=lambda *one: news.append(one[1:]))
    scheduler.fit(synthetic_table(60), budget=2.0)
    assert {total for _, total in news} == {5 * fits}
    assert [done for done, _ in news] == sorted({done for done, _ in news})


# --- features and costs of the user's own -----------------------------------------------------------------------------


def telling_table(num_samples, seed):
    """Two features of each exit say, added up, how likely it is right; their scales differ, a third is constant."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(num_samples, 3, 3))
    chance = np.clip(0.5 + 0.15 * features[:, :, 0] + 0.15 * features[:, :, 1] + [0.0, 0.1, 0.3], 0, 1)
    features *= [100.0, 0.01, 0.0]
    features += [5000.0, 3.0, 7.0]
    return ExitTable(features=features, utility=chance, costs=CostTable((1.0, 2.0, 3.0), "ms"))


@pytest.mark.parametrize("assigned", [False, True])
def test_features_are_learnt_from_whatever_their_scale(assigned):
    val, test = telling_table(1500, 0), telling_table(3000, 1)
    scheduler = EENetScheduler(thresholds="assigned" if assigned else "joint", epochs=30)
    policy = scheduler.fit(val, budget=1.8)
    cost, utility = Replayer(test).expected(policy)
    assert cost == pytest.approx(1.8, abs=0.06)
    best = Replayer(test).expected(StoppingScheduler().fit(val, budget=cost))[1]
    assert utility >= best - 0.01
    assert best > Replayer(test).utility(policy, np.zeros(3000, dtype=int)).mean() + 0.1
    check_policy(policy, test)


def test_costs_of_each_sample_decide_what_the_assignment_plans():
    # the first class costs 1 more at the last exit, the second 5: the shares are those of the realised cost
    table = synthetic_table(400, num_exits=2, num_classes=2)
    cost = np.stack([np.ones(400), 2.0 + 4.0 * table.labels], axis=1)
    by_sample = ExitTable(logits=table.logits, labels=table.labels, cost=cost)
    scheduler = EENetScheduler(thresholds="assigned", epochs=20)
    policy = scheduler.fit(by_sample, budget=2.0)
    spent, _ = Replayer(by_sample).expected(policy)
    assert spent == pytest.approx(2.0, abs=1e-6)
    x, weight, _, costs, net = random_case(pulls=(0.0, 1.0, 1.0))
    scores = score_members(weight, x)
    even = np.broadcast_to(costs.mean(axis=0), costs.shape).astype(np.float32)
    assert not np.allclose(net.gradient(x, scores, costs), net.gradient(x, scores, even), atol=1e-4)


# --- which restart, which thresholds ----------------------------------------------------------------------------------


def test_of_the_starts_near_the_budget_the_most_useful_is_kept_and_else_the_nearest(monkeypatch):
    table = synthetic_table(600, num_exits=2, num_classes=3)  # costs 1 and 2
    plain = _fit(table, None, EENetScheduler(epochs=1))[0][0]
    noise = plain.copy()
    noise[0, :3] = [1.0, 0.0, 0.0]
    noise[0, 3:] = 0.0  # a score that says nothing
    shares = np.array([[0.55, 0.45], [0.5, 0.5], [1.0, 0.0]])  # plan 1.45, 1.5, 1.0

    def found(*weights):
        monkeypatch.setattr("eenet.schedulers.eenet._fit", lambda *_: (np.stack(weights), shares))
        return dataclasses.replace(EENetScheduler.paper(), restarts=3).sweep(table, budgets=[1.5])

    for weights, kept in (
        ((plain, noise, noise), plain),
        ((noise, plain, noise), plain),
        ((noise, noise, plain), noise),
    ):
        dial = found(*weights)
        assert dial.reason == ""
        assert any(np.array_equal(part.scorer.weight, kept) for _, part in dial.at(1.5).components())
    shares = np.array([[1.0, 0.0], [0.0, 1.0], [0.7, 0.3]])  # none is near 1.5; the last is nearest
    dial = found(plain, plain, noise)
    assert "within 10% of the budget at 1 of 1 budgets: the nearest" in dial.reason
    assert any(np.array_equal(part.scorer.weight, noise) for _, part in dial.at(1.5).components())
    assert Replayer(table).expected(dial.at(1.5))[0] == pytest.approx(1.5, rel=1e-6)


def test_the_best_thresholds_on_held_out_samples_are_chosen():
    table = synthetic_table(400)
    dial = EENetScheduler(epochs=5).sweep(table)
    areas = EENetScheduler(epochs=5)._held_out(table)
    best = max(areas, key=lambda name: areas[name])
    assert dial.reason.startswith(f"thresholds: {best}, ") and all(name in dial.reason for name in KINDS)
    alone = EENetScheduler(epochs=5, thresholds=best).sweep(table)
    assert dial.fit_costs == alone.fit_costs and dial.fit_utilities == alone.fit_utilities
