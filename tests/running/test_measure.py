"""Costs: operations counted by hand, times with their spread, and the file both are read from."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from replaying import quantile_policy
from torch import nn

from eenet.errors import InputError, ShapeError, TableError
from eenet.models.model import MultiExitModel
from eenet.policies import MixedPolicy, Policy, ScorePolicy
from eenet.report import costs_section
from eenet.running.engines import EagerEngine
from eenet.running.latency import Latency, Spread, summarise, time_stages
from eenet.running.measuring import (
    FlopReport,
    ParameterReport,
    Profile,
    count_parameters,
    load_costs,
    measure,
    measure_flops,
    measure_latency,
    tokens_in,
)
from eenet.tables.costs import CostTable

NONE = ParameterReport(up_to=(0, 0), full=0)


def linear_model() -> MultiExitModel:
    return MultiExitModel([nn.Linear(4, 6), nn.Linear(6, 8)], [nn.Linear(6, 2), nn.Linear(8, 2)], start=nn.Linear(3, 4))


def test_parameters_by_hand():
    counted = count_parameters(linear_model())
    start, stages, heads = 3 * 4 + 4, (4 * 6 + 6, 6 * 8 + 8), (6 * 2 + 2, 8 * 2 + 2)
    assert counted.up_to == (start + stages[0] + heads[0], start + sum(stages) + sum(heads))
    assert counted.full == start + sum(stages) + heads[1]
    assert counted.policy is None
    policy = ScorePolicy("max_prob", [0.5, -np.inf])
    assert count_parameters(linear_model(), policy).policy == 2  # its thresholds


def test_what_two_exits_share_counts_once():
    stages, head = [nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)], nn.Linear(2, 3, bias=False)
    counted = count_parameters(MultiExitModel(stages, [head, head]))
    assert counted.up_to == (4 + 6, 4 + 6 + 4) and counted.full == counted.up_to[1]


@pytest.mark.parametrize("rows", [1, 5])
def test_operations_by_hand(rows):
    report = measure_flops(linear_model(), torch.randn(rows, 3))
    assert report.start == 2 * 3 * 4  # a multiply-accumulate is two operations
    assert report.stages == (2 * 4 * 6, 2 * 6 * 8)
    assert report.heads == (2 * 6 * 2, 2 * 8 * 2)
    assert report.cumulative == (24 + 48 + 24, 24 + 48 + 24 + 96 + 32)
    assert report.reference == 24 + 48 + 96 + 32  # without the early head
    assert report.uncounted == ()
    assert report.costs().unit == "FLOPs"


def test_convolutions_by_hand(tiny, images):
    report = measure_flops(tiny.train(), images[:3])
    assert tiny.training
    assert report.stages[0] == 2 * 64 * 9 * (1 * 8 + 8 * 8)
    assert report.stages[1] == 2 * 16 * 9 * (8 * 16 + 16 * 16)
    assert report.heads[0] == 2 * sum(weight.numel() for weight in tiny.heads[0].parameters() if weight.dim() == 2)
    assert report.uncounted == ()


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


class First(nn.Module):
    def forward(self, x):
        return x[:, 0, 0]


def test_attention_counts_on_a_cpu():
    model = MultiExitModel([Attention(), Attention()], [First(), First()])
    report = measure_flops(model, torch.randn(2, 3, 5, 4))  # 3 heads, 5 tokens, 4 features
    assert report.stages[0] == 3 * 2 * (2 * 5 * 5 * 4)
    assert report.uncounted == ()


def test_transformer_layers_are_looked_into():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = MultiExitModel([layer, nn.Identity()], [nn.Flatten(), nn.Flatten()])
    report = measure_flops(model, torch.randn(2, 5, 8))
    linear, attention = 5 * 2 * (8 * 24 + 8 * 8 + 2 * 8 * 16), 2 * 2 * (2 * 5 * 5 * 4)
    assert report.stages[0] == linear + attention
    assert report.uncounted == ()
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_has_no_formula_is_named():
    report = measure_flops(MultiExitModel([Spectrum(), nn.Linear(4, 4)], [nn.Linear(4, 2)] * 2), torch.randn(2, 4))
    assert any("fft" in name for name in report.uncounted) and "fft" in report.not_counted()


def test_every_part_is_timed_at_every_batch_size(tiny, images):
    rows = measure_latency(tiny, images, batch_sizes=(4, 1), passes=3, progress=False)
    assert [row.batch_size for row in rows] == [4, 1]
    for row in rows:
        assert (row.engine, row.dtype, row.device, row.passes) == ("eager", "float32", "cpu", 3)
        assert (len(row.stages), len(row.heads), len(row.decisions)) == (3, 3, 2)
        for part in (row.full, *row.stages, *row.heads, *row.decisions):
            assert 0 < part.low <= part.median <= part.high
        costs = row.costs()
        assert costs.unit == "ms"
        assert costs.reference == row.full.median
        assert row.computing[-1] < costs.cumulative[-1]


def test_times_add_up_by_hand():
    def of(value):
        return Spread(median=float(value), low=float(value), high=float(value))

    row = Latency(
        engine="e",
        dtype="d",
        device="cpu",
        threads=1,
        batch_size=1,
        passes=1,
        full=of(9),
        start=of(1),
        stages=(of(2), of(3), of(4)),
        heads=(of(0.5), of(0.25), of(0.125)),
        decisions=(of(0.1), of(0.2)),
    )
    assert row.computing == (3.5, 6.75, 10.875)
    assert row.cumulative == pytest.approx((3.6, 7.05, 11.175))
    assert row.costs().reference == 9


def test_median_and_quartiles():
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_small_and_large_batches_take_the_samples_there_are(tiny, images):
    (row,) = measure_latency(EagerEngine(tiny), images[:3], batch_sizes=(8,), passes=1, progress=False)
    assert row.batch_size == 8
    with pytest.raises(InputError, match="batch_sizes"):
        measure_latency(tiny, images, batch_sizes=(0,))
    with pytest.raises(InputError, match="passes 0"):
        measure_latency(tiny, images, passes=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", ["a", 1.5, True, 0, None, [1]])
def test_sizes_lengths_and_passes_are_whole_numbers(tiny, images, value):
    for name in ("batch_sizes", "lengths"):
        for given in ([value], [8, value], *([] if value is None else [value] * (value != [1]))):
            with pytest.raises(InputError, match=f"{name} .* cannot be used"):
                measure(tiny, images, **{"passes": 1, "progress": False, name: given})
    with pytest.raises(InputError, match=r"passes .* cannot be used"):
        measure(tiny, images, batch_sizes=(1,), passes=value, progress=False)
    with pytest.raises(InputError, match="policy of type"):
        measure_latency(tiny, images, batch_sizes=(1,), passes=1, policy=value or "a", progress=False)


@pytest.mark.parametrize("exits", [2, 5])
def test_decisions_of_a_policy_for_another_model_are_not_timed(tiny, images, exits):
    policy = quantile_policy(np.random.randn(9, exits, 10), "max_prob")
    for model in (tiny, EagerEngine(tiny)):
        with pytest.raises(ShapeError, match=f"policy with {exits} exits does not fit: there are 3"):
            measure_latency(model, images, batch_sizes=(1,), passes=1, policy=policy, progress=False)


def test_parts_without_decisions(tiny, images):
    engine = EagerEngine(tiny)
    policy = quantile_policy(np.random.randn(9, 3, 10), "margin")
    seconds = time_stages(engine, images, policy, decisions=False)
    assert set(seconds) == {"start", *(f"{part} {k}" for part in ("stage", "head") for k in range(3))}
    assert summarise(engine, 96, [seconds]).decisions == (Spread(median=0.0, low=0.0, high=0.0),) * 2
    assert set(time_stages(engine, images[:1], policy)) == {*seconds, "decision 0", "decision 1", "answer"}


class Asked(Policy):
    """Lets everybody stay, and notes what it is asked."""

    num_exits = 3

    def __init__(self, seconds=0.0):
        self.asked, self.seconds = [], seconds

    def leaves(self, seen, sample_ids):
        self.asked.append(seen.shape)
        assert np.allclose(np.exp(seen).sum(axis=2), 1, atol=1e-5)
        time.sleep(self.seconds)
        return np.zeros(len(seen), dtype=bool)

    def answers(self, seen, sample_ids):
        return seen[:, -1]


@pytest.mark.parametrize("size", [1, 4])
def test_the_policy_itself_is_asked_exit_by_exit(tiny, images, size):
    policy = Asked()
    time_stages(EagerEngine(tiny), images[:size], policy)
    assert policy.asked == [(size, 1, 10), (size, 2, 10)]


def test_a_single_sample_of_a_mixture_follows_its_larger_part(tiny, images):
    small, large = Asked(), Asked()
    time_stages(EagerEngine(tiny), images[:1], MixedPolicy(small, large, 0.4))
    assert (small.asked, large.asked) == ([], [(1, 1, 10), (1, 2, 10)])


def test_the_decisions_of_a_given_policy_are_timed(tiny, images):
    (row,) = measure_latency(tiny, images, batch_sizes=(2,), passes=1, policy=Asked(0.02), progress=False)
    assert all(part.median >= 10 for part in row.decisions)  # 20 ms for two samples
    profile = measure(tiny, images, batch_sizes=(2,), passes=1, policy=Asked(0.02), progress=False)
    assert all(part.median >= 10 for part in profile.latency[0].decisions)


class Regressor(nn.Module):
    """A head that says features, and answers with something else."""

    def forward(self, state):
        return state.mean(dim=(2, 3))[:, :8], state.sum(dim=(1, 2, 3))


def test_heads_that_answer_with_other_things_are_timed_too(tiny, images):
    model = MultiExitModel(list(tiny.stages[:2]), [Regressor(), Regressor()], start=tiny.entry)
    (row,) = measure_latency(model, images, batch_sizes=(2,), passes=1, progress=False)
    assert row.answer.median > 0
    assert len(row.decisions) == 1


def made_up(engine: str, dtype: str, batch_size: int, steps: tuple[float, ...]) -> Latency:
    """A latency record whose stages take these times, the full model their sum."""

    def of(value):
        return Spread(median=value, low=value, high=value)

    none = (of(0.0),) * len(steps)
    return Latency(
        engine=engine,
        dtype=dtype,
        device="cpu",
        threads=1,
        batch_size=batch_size,
        passes=1,
        full=of(sum(steps)),
        start=of(0.0),
        stages=tuple(map(of, steps)),
        heads=none,
        decisions=none[1:],
    )


def test_shares_that_disagree_by_more_than_a_fifth_are_reported_by_hand():
    flops = FlopReport(start=0.0, stages=(50.0, 50.0), heads=(0.0, 0.0), uncounted=())
    rows = (
        made_up("eager", "float32", 1, (6.5, 3.5)),  # exit 0: 65 % against 50 %, 1.3 times as much
        made_up("eager", "float32", 32, (5.9, 4.1)),  # 59 %: 1.18 times
        made_up("openvino", "bfloat16", 32, (3.9, 6.1)),  # 39 %: 0.78 times
        made_up("openvino", "float32", 32, (4.1, 5.9)),  # 41 %: 0.82 times
    )
    profile = Profile(parameters=NONE, flops=flops, latency=rows, threads=1)
    assert profile.disagreements() == [
        "Exit 0 takes 65% of the full time on eager float32 at batch size 1, but 50% of the full operations: "
        "state budgets there in ms.",
        "Exit 0 takes 39% of the full time on openvino bfloat16 at batch size 32, but 50% of the full operations: "
        "state budgets there in ms.",
    ]
    assert profile.to_dict()["notes"] == profile.disagreements()


def test_shares_that_the_quartiles_cannot_tell_are_not_stated_as_facts():
    flops = FlopReport(start=0.0, stages=(50.0, 50.0), heads=(0.0, 0.0), uncounted=())
    steady = made_up("eager", "float32", 1, (6.5, 3.5))
    # exit 0 at 6.5 of 10 ms, but between 5 and 8: from 40 % (5 / 12.5) to 100 % (8 / 8) of the full time
    first = Spread(median=6.5, low=5.0, high=8.0)
    busy = replace(steady, stages=(first, steady.stages[1]), full=Spread(median=10.0, low=8.0, high=12.5))
    assert busy.quartiles == ((5.0, 8.0), (8.5, 11.5))
    (note,) = Profile(parameters=NONE, flops=flops, latency=(busy,), threads=1).disagreements()
    assert "measure again" in note.lower() and "--passes" in note and "state budgets" not in note
    # exit 0 between 6.4 and 6.6 of 9.9 to 10.1 ms: surely more than 60 %
    sure = replace(busy, stages=(Spread(median=6.5, low=6.4, high=6.6), steady.stages[1]))
    sure = replace(sure, full=Spread(median=10.0, low=9.9, high=10.1))
    (note,) = Profile(parameters=NONE, flops=flops, latency=(sure,), threads=1).disagreements()
    assert "state budgets there in ms" in note


def test_quartiles_by_hand_contain_the_medians(tiny, images):
    row = measure_latency(tiny, images, batch_sizes=(2,), passes=3, progress=False)[0]
    assert all(low <= cost <= high for (low, high), cost in zip(row.quartiles, row.cumulative, strict=True))
    shown = costs_section(row.to_dict()).blocks[0]
    assert len(shown.columns) == 4 and f"{row.full.low:.4g} to {row.full.high:.4g}" == shown.rows[-1][-1]


def test_texts_are_told_by_their_tokens():
    ids = np.ones((2, 7), dtype=np.int64)
    assert tokens_in({"input_ids": ids, "labels": ids[:, 0]}) == tokens_in(ids) == 7
    assert tokens_in(np.ones((2, 7))) is None


def test_costs_are_chosen_by_engine_number_format_and_batch_size(tmp_path):
    flops = FlopReport(start=0.0, stages=(50.0, 50.0), heads=(0.0, 0.0), uncounted=())
    rows = [
        made_up(engine, dtype, size, (float(i + 1), 1.0))
        for i, (engine, dtype, size) in enumerate(
            [("eager", "float32", 1), ("eager", "bfloat16", 1), ("openvino", "float32", 1), ("openvino", "float32", 8)]
        )
    ]
    profile, path = Profile(parameters=NONE, flops=flops, latency=tuple(rows), threads=1), tmp_path / "c.json"
    profile.save(path)
    for choice, first in (
        ({"dtype": "bfloat16"}, 2.0),
        ({"engine": "eager", "dtype": "float32"}, 1.0),
        ({"batch_size": 1, "engine": "openvino"}, 3.0),
        ({"batch_size": 8}, 4.0),
    ):
        assert load_costs(path, **choice).cumulative[0] == profile.costs(**choice).cumulative[0] == first
    with pytest.raises(InputError, match=r"engine eager and dtype float16 was not measured: .*eager bfloat16 at batch"):
        load_costs(path, engine="eager", dtype="float16")
    with pytest.raises(InputError, match="batch_size 1 and engine eager is not unique"):
        load_costs(path, batch_size=1, engine="eager")


def test_a_profile_of_before_is_still_read(profile, tmp_path):
    value = profile.to_dict()
    del value["notes"]
    for row in value["latency"]:
        del row["threads"]
    (tmp_path / "c.json").write_text(json.dumps(value))
    assert load_costs(tmp_path / "c.json", batch_size=4) == profile.costs(4)


@pytest.fixture
def profile(tiny, images) -> Profile:
    return measure(tiny, images, batch_sizes=(1, 4), passes=2, progress=False)


def test_a_profile_is_read_back(profile, tmp_path):
    path = tmp_path / "costs.json"
    profile.save(path)
    assert load_costs(path) == profile.flops.costs()
    assert load_costs(path, batch_size=4) == profile.latency[1].costs() == profile.costs(4)
    assert load_costs(path, batch_size=1, engine="eager").unit == "ms"
    value = json.loads(path.read_text())
    assert value["num_exits"] == 3
    assert [row["batch_size"] for row in value["latency"]] == [1, 4]
    assert len(value["latency"][0]["stages"]) == 3


def test_a_choice_that_was_not_measured_names_what_was(profile, tmp_path):
    path = tmp_path / "costs.json"
    profile.save(path)
    with pytest.raises(
        InputError,
        match=r"batch_size 8 was not measured: .*eager float32 at batch size 1, eager float32 at batch size 4",
    ):
        load_costs(path, batch_size=8)
    with pytest.raises(InputError, match="batch_size 1 and engine onnx was not measured"):
        load_costs(path, batch_size=1, engine="onnx")
    with pytest.raises(InputError, match="engine eager is not unique"):
        load_costs(path, engine="eager")


def test_a_bare_cost_table_is_read_too(tmp_path):
    costs, path = CostTable(cumulative=(1.0, 2.0), unit="ms", reference=1.5), tmp_path / "c.json"
    path.write_text(json.dumps(costs.to_dict()))
    assert load_costs(path) == costs
    with pytest.raises(InputError, match="no batch sizes or engines"):
        load_costs(path, batch_size=1)


@pytest.mark.parametrize("text", ["[1, 2]", "{}", '{"format": "eenet profile", "version": 99}', "not json", '"x"'])
def test_what_is_no_profile_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_costs(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="missing"):
        load_costs(tmp_path / "none.json")


def test_damaged_numbers_in_a_profile_are_refused(profile, tmp_path):
    value = profile.to_dict()
    value["flops"]["cumulative"][0] = "much"
    (tmp_path / "c.json").write_text(json.dumps(value))
    with pytest.raises(TableError):
        load_costs(tmp_path / "c.json")
    del value["flops"]
    (tmp_path / "c.json").write_text(json.dumps(value))
    with pytest.raises(TableError):
        load_costs(tmp_path / "c.json")


def test_costs_are_read_where_there_is_no_torch(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(CostTable(cumulative=(1.0, 2.0), unit="ms").to_dict()))
    code = "import sys; sys.modules['torch'] = None; import eenet.running.benchmark, eenet.running.latency\n"
    code += f"from eenet.running.measuring import load_costs; print(load_costs({str(path)!r}).cumulative)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(1.0, 2.0)"
