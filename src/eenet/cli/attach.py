"""`eenet attach`: exits for a model of timm, torchvision, Hugging Face, or of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from eenet.cli.interrupt import require
from eenet.cli.options import DataRootOption, SeedOption, file_in, folder_out, whole_numbers
from eenet.cli.output import Output, Result, percent, text_table
from eenet.cli.train import train_run
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.experiments.recipes import Source
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel


def attach(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="SPEC",
            help="timm:NAME, torchvision:NAME, hf:FOLDER, or package.module:function (returns the module).",
        ),
    ],
    *,
    exits: Annotated[
        str,
        typer.Option("--exits", metavar="N|NAME,NAME", help="How many, the original output included; or modules."),
    ] = "4",
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="C,H,W", help="Shape of one sample, or how many tokens.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option("--num-classes", min=2, help="Classes of the timm or torchvision model.")
    ] = None,
    weights: Annotated[Path | None, file_in("--weights", "State dict to begin with: .safetensors or .pt.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="digits, cifar10, an .npz, or a folder per class.")
    ] = None,
    data_root: DataRootOption = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training images.")] = 5.0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of the model.")] = 0.02,
    head_lr: Annotated[float, typer.Option("--head-lr", help="Peak learning rate of the early exits' heads.")] = 0.05,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per training step.")] = 32,
    freeze: Annotated[bool, typer.Option("--freeze", help="Only the heads learn; the model stays as it is.")] = False,
    out: Annotated[Path | None, folder_out("Folder for the trained run.", "RUN")] = None,
    seed: SeedOption = 0,
    output: Output,
) -> Result:
    """Give exits to a model, check that samples can really leave there, and train them.

    Without --data the exits are attached, checked and listed. With --data they are trained into a run that record,
    profile, bench and run open; a run that was stopped continues when the command is repeated. Nothing is ever
    downloaded: a library's model begins with random weights unless --weights has better ones.

    Examples:

        eenet attach torchvision:resnet18 --exits layer1,layer2,layer3

        eenet attach timm:resnet18 --input 1,32,32 --data digits --out run

        eenet attach timm:efficientnet_lite0 --weights trained.pth --data photos/ --out run

        eenet attach my_models:make --weights trained.pt --freeze --data images.npz --out run
    """
    if data is None and out is not None:
        raise InputError(
            f"--out {str(out)!r} would hold heads that have learnt nothing: there is no --data. Pass --data, or leave "
            "--out out to see where the exits sit."
        )
    if data is not None and out is None:
        raise InputError(f"--data {data!r} has nowhere to go: a trained run needs a folder. Pass --out RUN.")
    shape = None if input_shape is None else whole_numbers(input_shape, "--input", "3,224,224, or 64 tokens")
    wanted = int(exits) if exits.strip().isdecimal() else [name.strip() for name in exits.split(",") if name.strip()]

    require("torch")
    from eenet.experiments.recipes import attached, load_source

    settings = attached.training(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        head_lr=head_lr,
        heads_share=1.0 if freeze else 0.0,
        seed=seed,
    )
    if num_classes is None and data is not None:
        num_classes = attached.wanted_classes(spec, data, data_root)
    source = load_source(spec, shape=shape, num_classes=num_classes, seed=seed)
    attachment = None
    if data is not None:
        attachment = attached.describe(
            spec, source, data=data, settings=settings, num_classes=num_classes, weights=weights
        )
        attached.load_attached_data(attachment, data_root, seed)
    output.note(f"Attaching exits to {spec}, for inputs of {','.join(map(str, source.shape))}.")
    model = attached.attach_source(source, wanted, weights=weights, seed=seed)
    value, parts = _described(spec, source, model)
    if attachment is not None and out is not None:
        recipe = attached.attached_recipe(attachment.at(model), model)
        output.note(f"Training {recipe.summary}.")
        train_run(recipe, out, data_root, output, "The same command goes on from there.")
        parts.append(f"Trained {spec} with {model.num_exits} exits: {out}")
    else:
        parts.append("The heads have learnt nothing yet: pass --data and --out to train them.")
    return {**value, "run": None if out is None else str(out), "data": data, "seed": seed}, parts


def _described(spec: str, source: Source, model: MultiExitModel) -> tuple[dict[str, Any], list[RenderableType]]:
    """Return what is known about a model with exits, as JSON values and as a table."""
    from eenet.running.measuring import measure_flops

    flops = measure_flops(model, source.example_inputs)
    rows = [
        {
            "exit": k,
            "module": module,
            "shape": shape,
            "flops": flops.cumulative[k],
            "share": flops.cumulative[k] / flops.reference,
            "head_flops": flops.heads[k],
            "head_parameters": sum(parameter.numel() for parameter in model.heads[k].parameters()),
        }
        for k, (module, shape) in enumerate(_tapped(model, source.example_inputs))
    ]
    value = {
        "model": spec,
        "input": list(source.shape),
        "num_classes": source.num_classes,
        "num_exits": model.num_exits,
        "reference": flops.reference,
        "unit": "FLOPs",
        "uncounted": list(flops.uncounted),
        "exits": rows,
    }
    table = text_table(
        f"{spec}: {flops.reference:.4g} FLOPs per sample without exits, {source.num_classes} classes",
        rows,
        {
            "exit": "exit",
            "module tapped": "module",
            "shape": lambda row: " x ".join(map(str, row["shape"])),
            "of the FLOPs": lambda row: percent(row["share"]),
            "its head": lambda row: percent(row["head_flops"] / flops.reference),
            "parameters of the head": lambda row: row["head_parameters"] or None,
        },
    )
    notes = [f"Note: operations not counted: {', '.join(flops.uncounted)}."] if flops.uncounted else []
    return value, [table, *notes]


def _tapped(model: MultiExitModel, inputs: Inputs) -> list[tuple[str, list[int]]]:
    """Return the module every exit reads and the shape of one sample of what it sees there."""
    import torch

    from eenet.models.inputs import evaluating

    whole: Any = model.whole
    with evaluating(whole), torch.no_grad():
        outputs = whole(inputs)
    modules = [*whole.names, "(original output)"]
    return [(name, list(tensor.shape[1:])) for name, tensor in zip(modules, outputs, strict=True)]
