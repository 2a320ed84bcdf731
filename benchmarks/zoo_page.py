"""The page of the ready-made models: parameters, and operations up to each exit, beside the published ones.

    python benchmarks/zoo_page.py

Models have random weights; nothing is trained or downloaded. The page is `docs/zoo.md`; a slow test holds its figures
to what is counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eenet.experiments.pages import write_page
from eenet.experiments.zoo import (
    bert_classifier,
    cifar_resnet,
    densenet121,
    densenet_cifar,
    hrnet_segmenter,
    msdnet_cifar,
    msdnet_imagenet,
)
from eenet.models import MultiExitModel
from eenet.report import markdown_table
from eenet.running.measuring import measure_flops

INTRO = """# Ready-made models

Functions of `eenet.experiments.zoo` that return a `MultiExitModel`, with random weights. The layers of DenseNet and
HRNet are those of torchvision and timm (`pip install "eenet[vision]"`), BERT is a model of transformers (`pip install
"eenet[text]"`) whose weights are shared; `densenet_with_exits`, `hrnet_with_exits` and `bert_classifier` take nets
with weights of your own.

```python
import torch

from eenet.experiments.zoo import densenet_cifar
from eenet.models import pooled_linear

model = densenet_cifar(num_classes=10, depth=40, exits=4, heads=pooled_linear)
print([tuple(logits.shape) for logits in model(torch.zeros(2, 3, 32, 32))])
```

`exits` says after how many blocks, layers or modules early exits sit; or how many exits there are, at even distances.
`heads` makes the early heads, any function from a feature shape and the number of classes to a module. Between stages
travel

* one tensor in ResNets and DenseNets, which may be cut inside a dense block;
* a list of scales in MSDNets, whose heads read the coarsest;
* a list of branches in HRNets, whose heads read all of them (`branch_head`) and answer at a quarter of the image's
  size;
* vectors and a mask in BERT: padding is never multiplied, and attention is as wide as the longest text that is left.
  Heads are `mean_of_words` or, for the first word, `reading("hidden", token_head)`.

Parameters are those of the model without its early heads. Operations are multiply-accumulates of convolutions and
matrix products, up to and including each exit, its head and those before it; *published* gives what the sources below
say of the model without early exits.

"""
SOURCES = """
Sources of the published figures: ResNet56: He et al. 2016, table 6 (0.85 M); Li et al. 2017, *Pruning filters for
efficient ConvNets*, table 1 (0.125 G). DenseNet121: torchvision's description of its weights. DenseNet-BC, k = 12, 100
layers: Huang et al. 2017, table 2 (0.8 M). MSDNet, 5 x 4 layers: the figures known of its [public
code](https://github.com/kalviny/MSDNet-PyTorch) at the last exit, whose rule counts early heads, ReLU and pooling too;
a recount by that rule agrees to the digit. HRNet: the [authors'
code](https://github.com/HRNet/HRNet-Semantic-Segmentation), whose giga is 2^30 and whose head mixes channels after
resizing; ours mixes them before, with the same result and fewer operations. BERT base: 110 M parameters (Devlin et
al. 2019), which count the pooler (0.6 M) that is not used here, and 22.5 billion operations, two to a
multiply-accumulate (Jiao et al. 2020, TinyBERT, table 1). MiniLM: 22.7 M with the pooler.

Made by `python benchmarks/zoo_page.py`; a slow test counts again.
"""


@dataclass(frozen=True)
class Row:
    """A model of the page.

    Attributes:
        call: what makes it, as shown.
        make: makes it.
        inputs: what it is counted on.
        size: of what the row is about, as shown.
        published: parameters and operations, as shown.
        times: what the row is about is so many times as large; convolutions then cost so many times as much.
    """

    call: str
    make: Callable[[], MultiExitModel]
    inputs: Tensor
    size: str
    published: str
    times: int = 1


def bert(**settings: int) -> nn.Module:
    """Return a BERT, its weights as initialised."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**settings), add_pooling_layer=False)


def image(height: int, width: int) -> Tensor:
    """Return one image."""
    return torch.zeros(1, 3, height, width)


def street(name: str, published: str) -> Row:
    """Return the row of a segmenter at the size of Cityscapes, counted on a patch an eighth as high and wide."""
    make = lambda: hrnet_segmenter(name, 19)  # noqa: E731
    return Row(f'hrnet_segmenter("{name}", 19)', make, image(128, 256), "1024 x 2048", published, times=64)


WORDS = torch.ones(1, 128, dtype=torch.long)
ROWS = (
    Row("cifar_resnet(56)", cifar_resnet, image(32, 32), "32 x 32", "0.85 M, 0.125 G"),
    Row("densenet121(1000)", densenet121, image(224, 224), "224 x 224", "7.98 M, 2.834 G"),
    Row(
        'densenet121(100, stem="cifar", growth=12)',
        lambda: densenet121(100, stem="cifar", growth=12),
        image(32, 32),
        "32 x 32",
        "",
    ),
    Row("densenet_cifar(10)", densenet_cifar, image(32, 32), "32 x 32", "0.8 M"),
    Row("msdnet_cifar(100)", lambda: msdnet_cifar(100), image(32, 32), "32 x 32", ""),
    Row(
        "msdnet_imagenet(1000, layers=(4, 4, 4, 4, 4))",
        lambda: msdnet_imagenet(layers=(4, 4, 4, 4, 4)),
        image(224, 224),
        "224 x 224",
        "23.96 M, 1.361 G, early heads too",
    ),
    Row("msdnet_imagenet(1000)", msdnet_imagenet, image(224, 224), "224 x 224", ""),
    Row(
        'hrnet_segmenter("hrnet_w18_small", 11, width=8)',
        lambda: hrnet_segmenter("hrnet_w18_small", 11, width=8),
        image(360, 480),
        "360 x 480",
        "",
    ),
    street("hrnet_w18_small", "1.5 M, 33.4 G"),
    street("hrnet_w18_small_v2", "3.9 M, 76.9 G"),
    street("hrnet_w18", ""),
    street("hrnet_w48", "65.8 M, 747.5 G"),
    Row("bert_classifier(BERT base, 2)", lambda: bert_classifier(bert(), 2), WORDS, "128 words", "110 M, 11.25 G"),
    Row(
        "bert_classifier(MiniLM-L6-H384, 2)",
        lambda: bert_classifier(bert(hidden_size=384, num_hidden_layers=6, intermediate_size=1536), 2),
        WORDS,
        "128 words",
        "22.7 M",
    ),
)


def main() -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "zoo.md")
    write_page(parser.parse_args().out, page(), measured=False)


def page() -> str:
    """Return the page."""
    header = ("model", "input", "parameters, M", "operations up to each exit, G", "published")
    return INTRO + markdown_table(header, [shown(row) for row in ROWS]).rstrip("\n") + "\n" + SOURCES


def shown(row: Row) -> tuple[str, ...]:
    """Return the cells of a row."""
    model = row.make()
    parts = (model.entry, model.stages, model.heads[-1])
    count = sum(one.numel() for part in parts for one in part.parameters())
    costs = measure_flops(model, row.inputs).cumulative
    operations = ", ".join(f"{row.times * cost / 2e9:.4g}" for cost in costs)
    return (f"`{row.call}`", row.size, f"{count / 1e6:.2f}", operations, row.published)


if __name__ == "__main__":
    main()
