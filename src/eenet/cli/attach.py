"""`eenet attach`: exits for a model of timm, torchvision, Hugging Face, or of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from eenet.cli import paths
from eenet.cli.options import DataRootOption, DebugFlag, JsonFlag, QuietFlag, SeedOption
from eenet.cli.output import Output, error_line, percent, text_table
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.models.inputs import Inputs
    from eenet.models.model import MultiExitModel
    from eenet.recipes import Recipe, Source


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
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="State dict to begin with: .safetensors or .pt.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="digits, cifar10, an .npz, or a folder per class.")
    ] = None,
    data_root: DataRootOption = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the training images.")] = 5.0,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate of the model.")] = 0.02,
    head_lr: Annotated[float, typer.Option("--head-lr", help="Peak learning rate of the early exits' heads.")] = 0.05,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per training step.")] = 32,
    freeze: Annotated[bool, typer.Option("--freeze", help="Only the heads learn; the model stays as it is.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="Folder for the trained run.")] = None,
    seed: SeedOption = 0,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Give exits to a model, check that samples can really leave there, and train them.

    Without --data the exits are attached, checked and shown. With --data they are trained into a run that record,
    profile, fit, bench and run open; a run that was stopped goes on when the command is given again. Nothing is ever
    downloaded: a library's model begins with random weights unless --weights has better ones.

    Examples:

        eenet attach torchvision:resnet18 --exits layer1,layer2,layer3

        eenet attach timm:resnet18 --input 1,32,32 --data digits --out run

        eenet attach timm:efficientnet_lite0 --weights trained.pth --data photos/ --out run

        eenet attach my_models:make --weights trained.pt --freeze --data images.npz --out run
    """
    output = Output(as_json=as_json, quiet=quiet)
    _check_places(data, data_root, weights, out)
    wanted = _exits(exits)
    shape = None if input_shape is None else _shape(input_shape)

    from eenet.recipes import attached, load_source

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
    value, shown = _described(spec, source, model)
    if attachment is not None and out is not None:
        _train(attached.attached_recipe(attachment.at(model), model), out, data_root, output)
        shown.append(f"Trained {spec} with {model.num_exits} exits: {out}")
    else:
        shown.append("The heads have learnt nothing yet: pass --data and --out to train them.")
    facts = {"run": None if out is None else str(out), "data": data, "seed": seed}
    output.result({**value, **facts}, *shown)


def _check_places(data: str | None, data_root: Path | None, weights: Path | None, out: Path | None) -> None:
    """Refuse files and folders that cannot be used, before anything is made."""
    if data is None and out is not None:
        raise InputError(
            f"--out {str(out)!r} would hold heads that have learnt nothing: there is no --data. Pass --data, or leave "
            "--out out to see where the exits sit."
        )
    if data is not None and out is None:
        raise InputError(f"--data {data!r} has nowhere to go: a trained run needs a folder. Pass --out RUN.")
    if out is not None:
        paths.output_folder(out)
    if data_root is not None:
        paths.existing_folder(data_root, "--data-root")
    if weights is not None:
        paths.existing(weights, "--weights")


def _exits(text: str) -> int | list[str]:
    """Read a number of exits, or names of modules."""
    if text.strip().isdecimal():
        return int(text)
    return [name.strip() for name in text.split(",") if name.strip()]


def _shape(text: str) -> tuple[int, ...]:
    """Read the shape of one sample."""
    sizes = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in sizes):
        raise InputError(
            f"--input {text!r} is no shape: whole numbers above 0, separated by commas, are needed. Pass for example "
            "3,224,224, or 64 tokens."
        )
    return tuple(int(word) for word in sizes)


def _train(recipe: Recipe, out: Path, data_root: Path | None, output: Output) -> None:
    from eenet import recipes

    output.note(f"Training {recipe.summary}.")
    try:
        recipes.train(recipe, out, data_root=data_root, progress=not output.quiet)
    except KeyboardInterrupt:
        error_line(f"The state is kept in {out}. The same command goes on from there.", start="")
        raise


def _described(spec: str, source: Source, model: MultiExitModel) -> tuple[dict[str, Any], list[RenderableType | str]]:
    """Return what is known about a model with exits, as JSON values and as a table."""
    from eenet.inference.flops import measure_flops

    flops = measure_flops(model, source.example_inputs)
    rows: list[dict[str, Any]] = []
    for k, (module, shape) in enumerate(shown_at(model, source.example_inputs)):
        rows.append(
            {
                "exit": k,
                "module": module,
                "shape": shape,
                "flops": flops.cumulative[k],
                "share": flops.cumulative[k] / flops.reference,
                "head_flops": flops.heads[k],
                "head_parameters": sum(parameter.numel() for parameter in model.heads[k].parameters()),
            }
        )
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
    cells = [
        (
            f"{row['exit']}",
            row["module"],
            " x ".join(map(str, row["shape"])),
            percent(row["share"]),
            percent(row["head_flops"] / flops.reference),
            row["head_parameters"] or None,
        )
        for row in rows
    ]
    columns = ("exit", "module tapped", "shape", "of the FLOPs", "its head", "parameters of the head")
    title = f"{spec}: {flops.reference:.4g} FLOPs per sample without exits, {source.num_classes} classes"
    notes = [f"Note: operations not counted: {', '.join(flops.uncounted)}."] if flops.uncounted else []
    return value, [text_table(title, columns, cells), *notes]


def shown_at(model: MultiExitModel, inputs: Inputs) -> list[tuple[str, list[int]]]:
    """Return the module every exit reads and the shape of one sample of what it sees there."""
    import torch

    from eenet.models.inputs import evaluating

    whole = model.whole
    if whole is None:
        raise InputError("model has no modules to tap: its exits were not attached. Pass what attach returned.")
    with evaluating(whole), torch.no_grad():
        shown = whole(inputs)
    names = [*whole.names, "(original output)"]  # type: ignore[misc]
    return [(name, list(tensor.shape[1:])) for name, tensor in zip(names, shown, strict=True)]
