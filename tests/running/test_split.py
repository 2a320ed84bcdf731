"""Exports in parts: each opens alone, and together they answer as the whole does, in processes of their own."""

import json
import subprocess
import sys
from dataclasses import replace

import exporting
import numpy as np
import pytest
from exporting import ENGINES, SUFFIXES

from eenet.errors import BundleError, InputError
from eenet.running.adaptive import AdaptiveModel
from eenet.running.exports import open_export
from eenet.running.split import split_export
from eenet.running.tiers import Tier, together
from eenet.tables.files import write_json

# in one process with OpenVINO's larger batches, an interrupt that a later test sends may end the process
HERE = [pytest.param(name, marks=pytest.mark.slow if name == "openvino" else ()) for name in ENGINES]


@pytest.fixture(scope="module", params=HERE)
def parts(request, tmp_path_factory):
    """The export, its first stage, and the others."""
    whole, folder = exporting.exported(request.param).path, tmp_path_factory.mktemp("parts")
    split_export(whole, folder / "device", last=0)
    split_export(whole, folder / "server", first=1)
    return request.param, whole, folder


def images(count):
    values = exporting.digits().inputs(slice(None)).contiguous().numpy()
    noise = np.random.default_rng(0).standard_normal((count, *values.shape[1:])).astype(np.float32)
    return values[np.arange(count) % len(values)] + 0.3 * noise


def test_a_part_has_the_files_of_its_stages_only(parts):
    engine, whole, folder = parts
    suffixes = {"onnxruntime": ["onnx"], "openvino": ["bin", "xml"]}[engine]
    assert SUFFIXES[engine] in suffixes
    for name, stages in (("device", [0]), ("server", [1, 2])):
        files = sorted(path.name for path in (folder / name).iterdir())
        graphs = [f"stage_{k}.{suffix}" for k in stages for suffix in suffixes]
        assert files == sorted(["manifest.json", "policy", *graphs])
        for graph in graphs:
            assert (folder / name / graph).read_bytes() == (whole / graph).read_bytes()
    manifests = [json.loads((folder / name / "manifest.json").read_text()) for name in ("device", "server")]
    assert [(one["first"], one["num_exits"]) for one in manifests] == [(0, 3), (1, 3)]
    assert "first" not in json.loads((whole / "manifest.json").read_text())


def test_parts_answer_as_the_whole_does(parts):
    _, whole, folder = parts
    device, server = Tier(folder / "device"), Tier(folder / "server")
    assert ((device.first, device.last), (server.first, server.last)) == ((0, 0), (1, 2))
    wanted, result = AdaptiveModel(whole)(images(300)), device(images(300))
    found = together([result, server.resume(result.state)])
    assert len(set(wanted.exit_index.tolist())) == 3
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    assert found.log_probs.tobytes() == wanted.log_probs.tobytes()


def test_parts_can_be_split_again(parts, tmp_path):
    _, whole, folder = parts
    split_export(folder / "server", tmp_path / "middle", last=1)
    split_export(folder / "server", tmp_path / "cloud", first=2)
    results = [Tier(folder / "device")(images(90))]
    for name in ("middle", "cloud"):
        results.append(Tier(tmp_path / name).resume(results[-1].state))
    np.testing.assert_array_equal(together(results).log_probs, AdaptiveModel(whole)(images(90)).log_probs)


def test_what_a_part_cannot_do_is_refused(parts, tmp_path):
    _, whole, folder = parts
    with pytest.raises(InputError, match=r"stages 0 to 0 of 3 only.*Tier"):
        AdaptiveModel(folder / "device")
    with pytest.raises(InputError, match="begins with stage 1"):
        Tier(folder / "server")(images(4))
    with pytest.raises(InputError, match="elsewhere"):
        open_export(folder / "server").engine.start(images(4))
    for words, fact in (({}, "all that"), ({"first": 3}, "0 to 2"), ({"first": 1, "last": 0}, "1 to 2")):
        with pytest.raises(InputError, match=fact):
            split_export(whole, tmp_path / "none", **words)
    with pytest.raises(InputError, match="0 to 0"):
        Tier(folder / "device", last=1)
    assert not (tmp_path / "none").exists()


def test_states_of_other_graphs_are_refused(parts):
    _, _, folder = parts
    state, server = Tier(folder / "device")(images(60)).state, Tier(folder / "server")
    from eenet.running.sent import Sent

    sent = Sent.from_bytes(state)
    for arrays in ([], [one[:, :1] for one in sent.arrays], [one.astype(np.float64) for one in sent.arrays]):
        with pytest.raises(InputError, match=r"state of .* does not fit: stage 1 takes"):
            server.resume(replace(sent, arrays=arrays).to_bytes())
    with pytest.raises(InputError, match="does not fit"):
        server.resume(replace(sent, form={"tensor": 0}).to_bytes())


@pytest.mark.parametrize(
    ("key", "value"), [("first", 2), ("first", -1), ("first", "0"), ("sends", []), ("sends", [7]), ("sends", ["0"])]
)
def test_a_damaged_manifest_is_refused(key, value, tmp_path):
    split_export(exporting.exported("onnxruntime").path, tmp_path / "device", last=0)
    manifest = json.loads((tmp_path / "device" / "manifest.json").read_text())
    manifest.pop("checksum")
    write_json(tmp_path / "device" / "manifest.json", manifest | {key: value}, sealed=True)
    with pytest.raises(BundleError):
        Tier(tmp_path / "device")


_TIER = """
import sys, numpy as np
from pathlib import Path
from eenet.running.tiers import Tier
tier, side, first = Tier("part"), sys.argv[1], sys.argv[1] == "device"
x = np.load("x.npy") if first else None
for i in range(0, 1000, 100):
    result = tier(x[i : i + 100]) if first else tier.resume(Path(f"state{i}").read_bytes())
    if first:
        Path(f"state{i}").write_bytes(result.state)
    found = result.prediction
    np.savez(f"{side}{i}.npz", ids=result.sample_ids, exits=found.exit_index, log_probs=found.log_probs)
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("engine", HERE)
def test_two_processes_with_a_part_each_answer_a_thousand_samples_to_the_bit(engine, tmp_path):
    whole, starts = exporting.exported(engine).path, range(0, 1000, 100)
    x, one = images(1000), AdaptiveModel(whole)
    wanted = [one(x[i : i + 100]) for i in starts]
    here = tmp_path / "here"
    found = {}
    for side, stages in (("device", {"last": 0}), ("server", {"first": 1})):
        split_export(whole, here / "part", **stages)  # replaces that of the other side
        np.save(here / "x.npy", x)
        subprocess.run([sys.executable, "-c", _TIER, side], cwd=here, check=True)
        for i in starts:
            with np.load(here / f"{side}{i}.npz") as part:
                rows = zip(part["ids"].tolist(), part["exits"].tolist(), part["log_probs"], strict=True)
                found |= {sample: (k, row.tobytes()) for sample, k, row in rows}
    exits = np.concatenate([one.exit_index for one in wanted])
    rows = np.concatenate([one.log_probs for one in wanted])
    assert set(exits.tolist()) == {0, 1, 2}
    assert found == {i: (k, row.tobytes()) for i, (k, row) in enumerate(zip(exits.tolist(), rows, strict=True))}
