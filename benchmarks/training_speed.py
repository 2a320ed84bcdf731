"""How much of a bare PyTorch loop's speed a training by `fit_exits` reaches: ResNet56 with 6 exits on random images.

The bare loop has its batches prepared beforehand and does nothing but forward, cross-entropy, backward and SGD;
`fit_exits` also shuffles, crops, flips and prepares its batches. The two take turns. Images per second need a quiet
machine; processor time, the work of the thread that prepares batches included, tells on a busy one, too, what the loop
itself wastes.

    python benchmarks/training_speed.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import command_line, given

from eenet.experiments.data import ArrayDataset, random_crop_flip
from eenet.experiments.zoo import cifar_resnet
from eenet.models import MultiExitModel, conv_head
from eenet.training import TrainSettings, fit_exits, uniform_weights


def make_model() -> MultiExitModel:
    torch.manual_seed(0)
    model = cifar_resnet(56, exits=(4, 9, 13, 18, 22), heads=conv_head((2, 2)))
    return model.to(memory_format=torch.channels_last)


def bare(data: ArrayDataset, batch_size: int) -> Callable[[], None]:
    """Return a bare loop over all samples."""
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    batches = list(data.batches(batch_size))

    def run() -> None:
        for inputs, labels in batches:
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(logits, labels) for logits in model(inputs)]).mean().backward()
            optimizer.step()

    return run


def ours(data: ArrayDataset, batch_size: int) -> Callable[[], None]:
    """Return one epoch of `fit_exits`."""
    model = make_model()
    settings = TrainSettings(
        epochs=1, batch_size=batch_size, lr=0.01, weighting=uniform_weights, distillation=0, augment=random_crop_flip
    )
    return lambda: void(fit_exits(model, data, settings, progress=False))


def void(_: object) -> None:
    """Return nothing."""


CLOCKS = {"second": time.perf_counter, "processor second": time.process_time}


def seconds(run: Callable[[], None]) -> dict[str, float]:
    """Return what a loop takes by every clock."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    run()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps of each loop in a round")
    parser.add_argument("--batch-size", type=int, default=64)
    options = given(parser)
    count = options.steps * options.batch_size
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = ArrayDataset(images, torch.randint(0, 10, (count,)), mean=(0.5,) * 3, std=(0.25,) * 3)
    loops = bare(data, options.batch_size), ours(data, options.batch_size)
    for loop in loops:
        loop()  # to warm up
    shares: dict[str, list[float]] = {name: [] for name in CLOCKS}
    for turn in range(options.rounds):
        order = loops if turn % 2 else loops[::-1]
        taken = {loop: seconds(loop) for loop in order}
        for name, share in shares.items():
            share.append(taken[loops[0]][name] / taken[loops[1]][name])
            rates = " and ".join(f"{count / taken[loop][name]:.1f}" for loop in loops)
            print(f"round {turn}: bare loop and fit_exits {rates} images per {name}: {share[-1]:.1%}")
    for name, share in shares.items():
        print(
            f"fit_exits reaches {statistics.median(share):.1%} of the bare loop's images per {name} (median of "
            f"{options.rounds} rounds, {min(share):.1%} to {max(share):.1%}; {options.threads} thread(s), batches of "
            f"{options.batch_size})"
        )


if __name__ == "__main__":
    main()
