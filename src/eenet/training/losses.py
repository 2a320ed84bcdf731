"""What multi-exit training minimises: losses, weights of exits and samples, and the gradients they pass back.

Logits are ``[sample, class]``, or dense ``[sample, class, height, width]`` against targets ``[sample, height, width]``.

Sources: F. Ilhan et al., *Adaptive deep neural network inference optimization with EENet*, WACV 2024, section on
multi-exit training; H. Li, H. Zhang, X. Qi, R. Yang, G. Huang, *Improved techniques for training adaptive deep
networks*, ICCV 2019 (arXiv 1908.06294), section on gradient equilibrium; F. Regol, J. Chataoui, M. Coates,
*Jointly-learned exit and inference for a dynamic neural network*, ICLR 2024 (arXiv 2310.09163); Y. Han et al.,
*Learning to weight samples for dynamic early-exiting networks*, ECCV 2022 (arXiv 2209.08310).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from eenet.errors import InputError, ShapeError
from eenet.models.inputs import IGNORED, Inputs, State
from eenet.models.model import MultiExitModel

Weighting: TypeAlias = Callable[[int], tuple[float, ...]]
"""From the number of exits K to one weight per exit."""


def increasing_weights(num_exits: int) -> tuple[float, ...]:
    """Return weights proportional to 1, 2, ..., K that sum to 1: later exits weigh more.

    Example:
        >>> [round(weight, 3) for weight in increasing_weights(3)]
        [0.167, 0.333, 0.5]
    """
    total = num_exits * (num_exits + 1) / 2
    return tuple((k + 1) / total for k in range(num_exits))


def paper_weights(num_exits: int) -> tuple[float, ...]:
    """Return the paper's weights ``k / (K (K + 1))``, k from 1: half of `increasing_weights`, so they sum to 1/2.

    Source:
        EENet (WACV 2024), section 3.1.
    """
    return tuple(weight / 2 for weight in increasing_weights(num_exits))


def uniform_weights(num_exits: int) -> tuple[float, ...]:
    """Return the same weight 1/K for every exit, better for early exits than `increasing_weights`."""
    return (1.0 / num_exits,) * num_exits


def exit_weights(weighting: Weighting, num_exits: int) -> Float[Tensor, " exit"]:
    """Return the weight of every exit's loss.

    Raises:
        ShapeError: other than one weight per exit.
    """
    weights = torch.tensor(weighting(num_exits), dtype=torch.float32)
    if weights.shape != (num_exits,):
        raise ShapeError(
            f"weighting with {weights.numel()} weights does not fit: the model has {num_exits} exits. Return one "
            "weight per exit."
        )
    return weights


def exit_losses(
    logits: Sequence[Float[Tensor, "sample class ..."]],
    targets: Int[Tensor, "sample ..."],
    sample_weights: Float[Tensor, "sample exit"] | None = None,
) -> Float[Tensor, " exit"]:
    """Return the mean cross-entropy of every exit, over samples or, for dense logits, over the pixels with a target.

    Args:
        logits: one tensor per exit; dense ones are brought to the size of the targets, bilinearly.
        targets: the true classes, -100 where nothing is to be learnt.
        sample_weights: factors on each sample's loss at each exit; 1 when not given.

    Raises:
        ShapeError: logits of another kind, see `require_classes`.
    """
    require_classes(logits)
    learnt = learnable(targets).clamp_min(1)
    losses: list[Tensor] = []
    for k, exit_logits in enumerate(logits):
        sized = _at_size(exit_logits, targets.shape[1:])
        if sample_weights is None:
            total = F.cross_entropy(sized, targets, reduction="sum")
        else:
            each = F.cross_entropy(sized, targets, reduction="none").reshape(len(targets), -1).sum(dim=1)
            total = (each * sample_weights[:, k]).sum()
        losses.append(total / learnt)
    return torch.stack(losses)


def require_classes(logits: Sequence[Tensor]) -> None:
    """Refuse logits of another kind, such as one answer per word."""
    if logits[-1].dim() not in (2, 4):
        raise ShapeError(
            f"logits of shape {tuple(logits[-1].shape)} cannot be learnt from: [sample, class], or [sample, class, "
            "height, width], is needed. Train such a model with a loop of your own."
        )


def check_targets(targets: Int[Tensor, "sample ..."], num_classes: int, rows: Sequence[int]) -> None:
    """Refuse a target that is no class of the model; ``rows`` are the numbers of the samples, for the message."""
    wrong = ((targets < 0) & (targets != IGNORED)) | (targets >= num_classes)
    if bool(wrong.any()):
        place = wrong.nonzero()[0]
        raise InputError(
            f"label {int(targets[tuple(place)])} of sample {rows[int(place[0])]} does not fit: the exits tell "
            f"{num_classes} classes apart, 0 to {num_classes - 1}. Make the model for more classes, or correct the "
            f"labels ({IGNORED}: none)."
        )


def check_finite(inputs: Inputs, rows: Sequence[int]) -> None:
    """Refuse inputs that are NaN or infinite; ``rows`` are the numbers of the samples, for the message."""
    for leaf in tree_leaves(inputs):
        if leaf.is_floating_point() and not bool(leaf.isfinite().all()):
            place = (~leaf.isfinite()).nonzero()[0].tolist()
            raise InputError(
                f"inputs of sample {rows[place[0]]} contain {leaf[tuple(place)].item():g}: nothing can be learnt from "
                "it. Correct this sample, or leave it out."
            )


def learnable(targets: Int[Tensor, "sample ..."]) -> Int[Tensor, ""]:
    """Return how many targets there are to learn."""
    return (targets != IGNORED).sum()


def log_shares(labels: Int[Tensor, " sample"], num_classes: int) -> Float[Tensor, " class"]:
    """Return the logarithm of every class's share of the labels; a class that does not occur counts as one sample."""
    counts = torch.bincount(labels[labels != IGNORED], minlength=num_classes).clamp_min(1)
    return (counts / counts.sum()).log()


def distillation_loss(
    logits: Sequence[Float[Tensor, "sample class ..."]], temperature: float = 3.0, *, summed: bool = False
) -> Float[Tensor, ""]:
    """Return how far the early exits are from the last: ``T^2 mean_k KL(softmax(z_last / T) || softmax(z_k / T))``.

    The last exit is the teacher and gets no gradient; the mean is over samples (or all pixels of the teacher, whose
    size the pupils are brought to) and early exits.

    Args:
        logits: one tensor per exit, at least two.
        temperature: the T that softens both distributions.
        summed: over the early exits, as in the paper, and not their mean.

    Raises:
        ShapeError: fewer than two exits.
    """
    if len(logits) < 2:
        raise ShapeError(
            f"logits of {len(logits)} exits are too few: distillation needs a teacher and a pupil. Pass at least 2 "
            "exits."
        )
    teacher = F.log_softmax(logits[-1].detach() / temperature, dim=1)
    answers = teacher.numel() / teacher.shape[1]
    gaps: list[Tensor] = []
    for exit_logits in logits[:-1]:
        pupil = F.log_softmax(_at_size(exit_logits, teacher.shape[2:]) / temperature, dim=1)
        gaps.append(F.kl_div(pupil, teacher, reduction="sum", log_target=True) / answers)
    together = torch.stack(gaps)
    return temperature**2 * (together.sum() if summed else together.mean())


def total_loss(
    losses: Float[Tensor, " exit"],
    weights: Float[Tensor, " exit"],
    logits: Sequence[Float[Tensor, "sample class ..."]],
    *,
    distillation: float,
    temperature: float,
    summed: bool,
) -> Float[Tensor, ""]:
    """Return the weighted sum of the exits' losses, with ``distillation`` times the `distillation_loss`."""
    loss = (losses * weights).sum()
    return loss + distillation * distillation_loss(logits, temperature, summed=summed) if distillation else loss


def _at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return dense logits at a height and width; any others as they are."""
    if logits.dim() != 4 or logits.shape[2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


# --- weights of samples -----------------------------------------------------------------------------------------------

SampleWeighting: TypeAlias = Callable[[Sequence[Tensor], Tensor], Tensor]
"""From the detached logits of every exit and the targets to a weight ``[sample, exit]`` on each sample's loss."""


def expected_exit_weights(
    logits: Sequence[Float[Tensor, "sample class ..."]],
    targets: Int[Tensor, "sample ..."],
    share: float = 0.5,
    softness: float = 0.1,
) -> Float[Tensor, "sample exit"]:
    """Return weights that grow with a sample's chance to leave at an exit, mean 1 over the samples of every exit.

    A soft rule stands for the policy, which is not known yet: of K exits, exit k lets go the most confident
    ``1 / (K - k)`` of the batch, with a gate that is a sigmoid of the sample's rank by confidence. The chance to leave
    at an exit is that of passing every gate before and not this one; the last exit takes the rest.

    As in the papers, easy samples weigh more at early exits and hard ones at late exits. Unlike them, nothing is learnt
    for it: JEI-DNN learns the gates beside the classifiers and at a cost in computing, L2W-DEN a network that
    predicts the weights, tuned on further batches. Ranks need a batch of some dozens to mean something.

    Args:
        logits: one tensor per exit; of dense ones the mean confidence over pixels counts.
        targets: the true classes; not needed here.
        share: of the expected exits in the weights, from 0 (all weights 1) to 1; the rest is uniform.
        softness: width of the gates, as a share of the batch.
    """
    num_exits, samples = len(logits), len(logits[0])
    inside = logits[0].new_ones(samples)
    weights: list[Tensor] = []
    for k, exit_logits in enumerate(logits):
        if k == num_exits - 1:
            chance = inside
        else:
            rank = (_confidence(exit_logits).argsort().argsort() + 0.5) / samples  # near 0 for the least confident
            gate = torch.sigmoid((rank - (1 - 1 / (num_exits - k))) / softness)
            chance, inside = inside * gate, inside * (1 - gate)
        weights.append(1 - share + share * chance / chance.mean())
    return torch.stack(weights, dim=1)


def _confidence(logits: Tensor) -> Float[Tensor, " sample"]:
    """Return each sample's largest class probability, the mean over pixels."""
    return logits.softmax(dim=1).amax(dim=1).reshape(len(logits), -1).mean(dim=1)


# --- gradients --------------------------------------------------------------------------------------------------------

Forward: TypeAlias = Callable[[MultiExitModel, State], list[Tensor]]
"""From a model and its inputs to the logits of every exit, of which the gradients are taken."""


def plain_gradients(model: MultiExitModel, inputs: State) -> list[Tensor]:
    """Return the logits of every exit; what a stage learns is the sum of what all later exits say."""
    logits: list[Tensor] = model(inputs)
    return logits


def rescaled_gradients(model: MultiExitModel, inputs: State) -> list[Tensor]:
    """Return the logits of every exit; what a stage learns is the mean of what all later exits say.

    With K exits, the features after stage k (from 0) pass back ``1 / (K - k)`` of the gradient that head k sends and
    ``(K - k - 1) / (K - k)`` of the one that stage k + 1 sends. So the first stages, which every exit pulls at, move no
    more than the last one, and exits conflict less. The heads' own gradients stay whole, but for those of
    `eenet.models.cascaded` models, whose heads sit inside the stages: they get ``1 / (K - k)`` of theirs.

    The paper's code scales the one tensor of a state that the head reads; here it is every tensor of the state.

    Raises:
        InputError: the model runs in one go (attached exits): there is nothing between its stages to scale.
    """
    if model.whole is not None:
        raise InputError(
            "gradients rescaled_gradients cannot be used on attached exits: such a model trains in one go, as its "
            "authors wrote it, and nothing lies between its stages. Use plain_gradients."
        )
    logits: list[Tensor] = []
    state = model.start(inputs)
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        readers = model.num_exits - k
        state = scale_gradient(stage(state), 1 / readers)
        logits.append(head(state))
        state = scale_gradient(state, readers - 1)
    return logits


def scale_gradient(state: State, factor: float) -> State:
    """Return a state as it is, whose tensors pass back ``factor`` times the gradient they get."""
    return tree_map(lambda leaf: _scaled(leaf, factor), state)


def _scaled(leaf: Any, factor: float) -> Any:  # noqa: ANN401
    if not isinstance(leaf, Tensor) or not leaf.requires_grad:
        return leaf
    same = leaf.view_as(leaf)
    same.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return same
