"""One rule everywhere: recorded logits give the same decisions and answers, to the bit, by every route and batch size.

The routes: `replay` on the table, `AdaptiveModel` with an engine that repeats the logits, the policy after saving and
loading, and an exported folder whose graphs hand the logits through, run by ONNX Runtime.
"""

import numpy as np
import pytest
from replaying import ReplayEngine, batches

from eenet import AdaptiveModel, CostTable, ExitTable, certify, load_policy, replay, save_policy
from eenet.errors import EenetError
from eenet.schedulers import DeadlineScheduler, GeometricScheduler, TransformedScheduler, fit_calibration, fit_ensemble
from eenet.schedulers.names import POLICIES, scheduler

pytestmark = pytest.mark.filterwarnings("ignore:temperatures end at a limit")  # such tables occur, too

SIZES = (1, 7, 64, 600)
SHAPES = ((2, 2), (4, 10))
SLOW_TO_FIT = {"auto": 60, "eenet_published": 10_000}  # one in so many tables, the first one among them
KINDS = (*POLICIES, "deadline", "certified", "calibrated", "ensemble", "deadline+ensemble")


def random_table(rng: np.random.Generator) -> ExitTable:
    """Return what tables may hold: duplicates, ties, impossible classes, large and small numbers, half precision."""
    exits, classes = SHAPES[rng.integers(len(SHAPES))]
    count = int(rng.choice([100, 130, 200]))
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, exits, classes)) * 10 ** rng.uniform(-1, 1)
    logits += np.eye(classes)[labels][:, None] * np.linspace(0.5, 3, exits)[:, None]
    logits = logits.astype(rng.choice(["f2", "f4", "f8"]))
    copied = rng.random(count) < rng.choice([0.0, 0.3])
    logits[copied] = logits[0]
    if rng.random() < 0.3:
        logits = np.round(logits)  # ties between classes, exits and samples
    if classes > 2 and rng.random() < 0.3:
        logits[rng.random(logits.shape) < 0.1] = -np.inf
        logits[..., 0] = np.where(np.isinf(logits).all(axis=2), 0, logits[..., 0])
    costs = CostTable(tuple(np.cumsum(rng.uniform(0.5, 2, exits)).tolist()), "ms")
    return ExitTable(logits=logits, labels=labels, costs=costs)


def fitted(kind: str, table: ExitTable, seed: int):
    """A policy of a kind, for a budget in the middle."""
    costs = table.require_costs()
    budget = costs.low + 0.4 * (costs.high - costs.low)
    if kind == "certified":
        return certify(GeometricScheduler(seed=seed), table, budget=budget, delta=0.3).policy
    if kind.startswith("deadline"):
        inner = GeometricScheduler(seed=seed)
        if kind.endswith("ensemble"):
            inner = TransformedScheduler(scheduler=inner, fit_transform=fit_ensemble)
        return DeadlineScheduler(scheduler=inner, deadline=costs.cumulative[-2]).fit(table, budget=budget)
    transforms = {"calibrated": fit_calibration, "ensemble": fit_ensemble}
    if kind in transforms:
        inner = scheduler("vote" if seed % 2 else "max_prob", seed)
        return TransformedScheduler(scheduler=inner, fit_transform=transforms[kind]).fit(table, budget=budget)
    return scheduler(kind, seed).fit(table, budget=budget)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Engines of exports whose stages hand their inputs on and whose heads say them, by the shape of the logits."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from eenet import MultiExitModel, ScorePolicy, export
    from eenet.policies import ConfidenceScorer

    class Says(torch.nn.Module):
        def __init__(self, k: int) -> None:
            super().__init__()
            self.k = k

        def forward(self, state):
            return state[:, self.k]

    engines = {}
    for exits, classes in SHAPES:
        model = MultiExitModel([torch.nn.Identity() for _ in range(exits)], [Says(k) for k in range(exits)])
        policy = ScorePolicy(ConfidenceScorer("max_prob"), [0.0] * (exits - 1) + [-np.inf])
        folder = tmp_path_factory.mktemp("export") / f"{exits}-{classes}"
        export(model, policy, torch.randn(3, exits, classes), folder)
        engines[exits, classes] = AdaptiveModel(folder).engine
    return engines


def check(seed: int, exported, folder) -> bool:
    """Check one table and one kind of policy; return whether it could be fitted."""
    rng = np.random.default_rng(seed)
    table, kind = random_table(rng), KINDS[seed % len(KINDS)]
    if (seed // len(KINDS)) % SLOW_TO_FIT.get(kind, 1):
        kind = "max_prob"
    try:
        policy = fitted(kind, table, seed)
    except EenetError:
        return False  # such a table cannot have such a policy; it says so
    wanted = replay(policy, table)
    save_policy(policy, folder / "policy")
    logits = np.asarray(table.logits, dtype=np.float32)
    routes = {
        "running": (AdaptiveModel(ReplayEngine(table.logits), policy), None),
        "loaded": (AdaptiveModel(ReplayEngine(table.logits), load_policy(folder / "policy").policy), None),
        "exported": (AdaptiveModel(exported[logits.shape[1:]], load_policy(folder / "policy").policy), logits),
    }
    for name, (adaptive, inputs) in routes.items():
        for size in SIZES:
            count = table.num_samples if size > 1 else 16  # one by one takes long
            parts = [rows if inputs is None else inputs[rows[:, 0]] for rows in batches(count, size)]
            for regroup in (False, True) if size > 1 else (False,):
                found = adaptive.predict_all(parts, regroup=regroup)
                where = f"seed {seed}, {kind}, {name}, batches of {size}, regrouped {regroup}"
                assert np.array_equal(found.exit_index, wanted.exit_index[:count]), where
                assert found.log_probs.tobytes() == wanted.log_probs[:count].tobytes(), where
    return True


@pytest.mark.usefixtures("unchecked")
def test_every_kind_of_policy_on_a_random_table(exported, tmp_path):
    done = [check(seed, exported, tmp_path) for seed in range(len(KINDS), 2 * len(KINDS))]
    assert sum(done) > len(KINDS) / 2


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", SLOW_TO_FIT)
def test_what_takes_long_to_fit(kind, exported, tmp_path):
    assert check(KINDS.index(kind), exported, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("part", range(8))
def test_many_random_tables(part, exported, tmp_path):
    done = [check(1000 + 8 * i + part, exported, tmp_path) for i in range(256)]
    assert sum(done) > 200
