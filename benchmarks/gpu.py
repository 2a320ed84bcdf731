"""What stopping early saves on a GPU: eager, compiled, and one CUDA graph per stage, in under eight minutes.

    python benchmarks/gpu.py --work runs/gpu

ResNet56, EfficientNet-B0 and BERT base with random weights: times do not depend on what was learnt. Thresholds are
fitted so that the exits are used about as after training, to half of the operations. Every step leaves a JSON file in
the work folder and is not repeated while that file is there; a step that would begin after ``--minutes`` is left for
the next call. When all are done the page ``docs/results/gpu.md`` is written. Without a GPU the script says so, and
ends.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, command_line, given, log
from pages.gpu import gpu_page
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet import ExitTable, GeometricScheduler, Policy, attach
from eenet.errors import EenetError
from eenet.experiments.pages import kept
from eenet.experiments.zoo import bert_classifier, cifar_resnet
from eenet.models.inputs import Inputs, State
from eenet.models.model import MultiExitModel
from eenet.running.benchmark import bench
from eenet.running.engines import CompiledEngine, EagerEngine, Engine
from eenet.running.engines.base import Carried, EngineAround
from eenet.running.engines.eager import read
from eenet.running.inputs import rows_of
from eenet.running.measuring import measure_flops
from eenet.running.recording import outputs

SIZES = {1: 32, 32: 256, 256: 512}
"""Samples of a pass, by batch size."""
BUDGET = "50%"

Step = Callable[[State], Any]


def main(argv: list[str] | None = None) -> None:
    """Measure what is not measured yet, as far as time allows, then write the page."""
    parser = command_line(__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for measurements; made if it is not there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=7.0, help="no step begins after so many")
    parser.add_argument("--passes", type=int, default=5, help="timed passes, after one to warm up")
    parser.add_argument("--seed", type=int, default=0)
    options = given(parser, argv)
    if not torch.cuda.is_available():
        log("There is no GPU that PyTorch can use: nothing was measured, and no page written.")
        return
    found = measured(NETS, ENGINES, SIZES, options, device="cuda")
    if found is not None:
        print(gpu_page(found, options, torch.cuda.get_device_name()))


# --- networks --------------------------------------------------------------------------------------------------------


def resnet56() -> tuple[MultiExitModel, Inputs]:
    """Return ResNet56 with 6 exits and images of 32x32."""
    return cifar_resnet(56, exits=(5, 10, 14, 18, 23)), torch.randn(512, 3, 32, 32)


def efficientnet() -> tuple[MultiExitModel, Inputs]:
    """Return EfficientNet-B0 with 4 exits and images of 224x224."""
    import torchvision

    images = torch.randn(512, 3, 224, 224)
    return attach(torchvision.models.efficientnet_b0().eval(), images[:2], exits=4), images


def bert() -> tuple[MultiExitModel, Inputs]:
    """Return BERT base with 4 exits and texts of 128 words."""
    import transformers

    encoder = transformers.BertModel(transformers.BertConfig(), add_pooling_layer=False)
    return bert_classifier(encoder, 2, exits=4), torch.randint(1, 30_000, (512, 128))


NETS: Mapping[str, Callable[[], tuple[MultiExitModel, Inputs]]] = {
    "ResNet56, 6 exits, 32x32": resnet56,
    "EfficientNet-B0, 4 exits, 224x224": efficientnet,
    "BERT base, 4 exits, 128 words": bert,
}


# --- one graph per stage ---------------------------------------------------------------------------------------------


class Captured:
    """A function of a state, captured as a CUDA graph for states of one shape; on the CPU it is called each time.

    What it returns is overwritten by the next call, on the CPU too.
    """

    def __init__(self, run: Step, state: State) -> None:
        self.run, self.given = run, pytree.tree_map_only(Tensor, torch.clone, state)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.returned = run(self.given)
        if any(leaf.is_cuda for leaf in _tensors(self.given)):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries choose their kernels before the capture
                for _ in range(2):
                    run(self.given)
            torch.cuda.current_stream().wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.returned = run(self.given)

    def __call__(self, state: State) -> Any:  # noqa: ANN401 - what the function returns
        """Run it on a state whose rows may be fewer: the others keep what was there before."""
        for own, leaf in zip(_tensors(self.given), _tensors(state), strict=True):
            own[: len(leaf)].copy_(leaf)
        if self.graph is not None:
            self.graph.replay()
        else:
            for own, leaf in zip(_tensors(self.returned), _tensors(self.run(self.given)), strict=True):
                own.copy_(leaf)
        return self.returned


class GraphedEngine(EngineAround):
    """Runs every stage with its head as one CUDA graph per batch size: 1, 2, 4, ...; batches are filled up to these.

    All tensors of a state carry the batch.
    """

    def __init__(self, model: MultiExitModel) -> None:
        self._eager = EagerEngine(model)
        super().__init__(self._eager)
        self.name = "graphs"
        self._captured: dict[Any, Captured] = {}

    def start(self, inputs: Inputs) -> Carried:
        """Bring the inputs to the GPU; the first stage makes the state."""
        return Carried(self._eager.placed(inputs))

    def stage(self, index: int, state: Carried) -> Carried:
        """Run a stage and its head, whose output is carried beside the state."""
        return Carried(*self._run(index, self._of_stage(index), state.state))

    def head(self, index: int, state: Carried) -> tuple[Any, Any]:
        """Return what the head made of the state."""
        return read(state.extra)

    def full(self, inputs: Inputs) -> object:
        """Return the logits of the original model."""
        with self.session():
            return read(self._run("full", self._whole, self._eager.placed(inputs)))[0]

    def _of_stage(self, index: int) -> Step:
        def run(state: State) -> tuple[State, Any]:
            after = self._eager.model.stages[index](self._eager.model.start(state) if index == 0 else state)
            return after, self._eager.model.heads[index](after)

        return run

    def _whole(self, state: State) -> Any:  # noqa: ANN401 - of the last head
        state = self._eager.model.start(state)
        for stage in self._eager.model.stages:
            state = stage(state)
        return self._eager.model.heads[-1](state)

    def _run(self, part: int | str, run: Step, state: State) -> Any:  # noqa: ANN401
        leaves = _tensors(state)
        count = len(leaves[0])
        size = 1 << (count - 1).bit_length()
        key = part, size, tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        if key not in self._captured:
            rows = torch.arange(size, device=leaves[0].device) % count
            self._captured[key] = Captured(run, pytree.tree_map_only(Tensor, lambda leaf: leaf[rows], state))
        returned = self._captured[key](state)
        return pytree.tree_map_only(Tensor, lambda leaf: leaf[:count].clone(), returned)  # the next batch writes there


def _tensors(state: State) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]


ENGINES: Mapping[str, Callable[[MultiExitModel, Inputs], Engine]] = {
    "eager": lambda model, _: EagerEngine(model),
    "compiled": CompiledEngine,
    "graphs": lambda model, _: GraphedEngine(model),
}


# --- measurements ----------------------------------------------------------------------------------------------------


class Subject:
    """A network on a device, with samples, and a policy that leaves early about as after training."""

    def __init__(self, make: Callable[[], tuple[MultiExitModel, Inputs]], seed: int, device: str) -> None:
        self._make, self._seed, self._device = make, seed, device

    @cached_property
    def made(self) -> tuple[MultiExitModel, Inputs]:
        """The network and its samples, made when they are first needed."""
        with torch.random.fork_rng():
            torch.manual_seed(self._seed)
            model, inputs = self._make()
        return model.eval().to(self._device), inputs

    @cached_property
    def policy(self) -> Policy:
        """Confidence with thresholds that spend half of the operations on these samples."""
        model, inputs = self.made
        logits = np.concatenate([outputs(EagerEngine(model), rows_of(inputs, slice(i, i + 64))) for i in (0, 64, 128)])
        costs = measure_flops(model, rows_of(inputs, slice(0, 2))).costs()
        table = ExitTable(logits=logits, labels=logits[:, -1].argmax(axis=1), costs=costs)
        return GeometricScheduler(seed=self._seed).fit(table, budget=BUDGET)


def measured(
    nets: Mapping[str, Callable[[], tuple[MultiExitModel, Inputs]]],
    engines: Mapping[str, Callable[[MultiExitModel, Inputs], Engine]],
    sizes: Mapping[int, int],
    options: argparse.Namespace,
    *,
    device: str,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[dict[str, Any]]] | None:
    """Return the rows of every network; None where time was up before all were measured.

    Args:
        nets: What makes a network and samples, by title.
        engines: What makes an engine, by name.
        sizes: How many samples are timed, by batch size.
        options: Of the command line.
        device: Where to compute.
        clock: In seconds.
    """
    began, missing = clock(), 0
    found: dict[str, list[dict[str, Any]]] = {}
    for title, make in nets.items():
        subject, rows = Subject(make, options.seed, device), found.setdefault(title, [])
        for name, engine in engines.items():
            file = options.work / f"{''.join(c if c.isalnum() else '_' for c in title)}-{name}.json"
            if not file.is_file() and clock() - began > 60 * options.minutes:
                missing += 1
                continue
            rows += kept(file, partial(timed, subject, name, engine, sizes, options), log)
    if missing:
        log(f"Time is up: {missing} steps are left. Run the command again; what is done is not repeated.")
        return None
    return found


def timed(
    subject: Subject,
    name: str,
    make: Callable[[MultiExitModel, Inputs], Engine],
    sizes: Mapping[int, int],
    options: argparse.Namespace,
) -> Sequence[dict[str, Any]]:
    """Return what `bench` measures of an engine at every batch size; what refuses to run, with the reason."""
    (model, inputs), settings = subject.made, {"passes": options.passes, "seed": options.seed, "progress": False}
    try:
        engine = make(model, rows_of(inputs, slice(0, 2)))
        rows = []
        for size, samples in sizes.items():
            some = rows_of(inputs, slice(0, samples))
            (row,) = bench(
                model, subject.policy, some, batch_sizes=(size,), engines=(engine,), check_source=False, **settings
            ).to_dict()["rows"]
            rows.append(row | {"engine": name})
    except (EenetError, RuntimeError) as error:
        return [{"engine": name, "error": (str(error).splitlines() or [type(error).__name__])[0]}]
    return rows


if __name__ == "__main__":
    main()
