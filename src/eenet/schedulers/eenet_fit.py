"""EENet's scoring and assignment functions with the gradients of their losses, many members at a time.

A member is one start for one budget. Members share no parameters, so their losses just add, and all are trained in the
same matrix products. Samples stand last in every intermediate array.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32

Own: TypeAlias = Float32[np.ndarray, "sample exit own"]
PerExit: TypeAlias = Float32[np.ndarray, "sample exit"]
PerMember: TypeAlias = Float32[np.ndarray, "member exit sample"]
Weights: TypeAlias = Float32[np.ndarray, "exit member input"]

_LOG_EPSILON = 1e-6  # keeps the cross-entropy finite where a score is exactly 0 or 1
_SCORE_EPSILON = 1e-6  # keeps the assignment's target positive where all scores are clipped to 0
_LEAST_RAW = -60.0  # below the largest output: keeps shares positive in float32
_BETAS = (0.9, 0.999)  # of Adam


def score_members(weight: Weights, x: Own) -> PerMember:
    """Return clipped linear scores; each exit's inputs are its own features, then the scores of earlier exits."""
    samples, exits, own = x.shape
    scores = np.empty((weight.shape[1], exits, samples), dtype=np.float32)
    for k in range(exits):
        score = weight[k, :, :own] @ x[:, k].T
        if k:
            score += (weight[k, :, None, own : own + k] @ scores[:, :k])[:, 0]
        np.clip(score, 0.0, 1.0, out=scores[:, k])
    return scores


def score_gradient(x: Own, scores: PerMember, utility: PerExit, shares: PerMember | None) -> Weights:
    """Return the gradient by the weights of ``L_g``: cross-entropy of score against utility, averaged over exits.

    Earlier scores enter later ones as constants. ``shares`` says how likely each sample is to leave at each exit, by
    which samples are weighted; None: all alike.
    """
    samples, exits, own = x.shape
    # outside these limits the clipping leaves no gradient
    inside = (scores >= _LOG_EPSILON) & (scores <= 1 - _LOG_EPSILON)
    slope = np.divide(scores - utility.T, scores * (1 - scores), out=np.zeros_like(scores), where=inside)
    slope *= np.float32(1 / samples) if shares is None else shares / shares.sum(axis=2, keepdims=True)
    slope /= exits
    gradient = np.zeros((exits, len(scores), own + exits - 1), dtype=np.float32)
    for k in range(exits):
        gradient[k, :, :own] = slope[:, k] @ x[:, k]
        if k:
            gradient[k, :, own : own + k] = (scores[:, :k] @ slope[:, k, :, None])[:, :, 0]
    return gradient


class Assigned(NamedTuple):
    """Each sample's shares over the exits, with what their gradient needs."""

    shares: PerMember
    hidden: list[Float32[np.ndarray, "member hidden sample"]]


class AssignmentNetworks:
    """Networks of one hidden layer, one per member and exit; the softmax of their outputs are shares over the exits.

    Args:
        goals: Budget of each member.
        shape: Of the samples: exits, and own features of each.
        hidden_ratio: Width of the hidden layer relative to the inputs.
        pulls: ``alpha_kl``, ``alpha_cost`` and ``beta`` of the loss.
        generator: Of the start.

    ``parameters`` are all of them, flat; the other arrays are views of parts.
    """

    def __init__(
        self,
        goals: Float32[np.ndarray, " member"],
        shape: tuple[int, int],
        *,
        hidden_ratio: float,
        pulls: tuple[float, float, float],
        generator: np.random.Generator,
    ) -> None:
        exits, own = shape
        width = own + exits - 1
        hidden = max(1, math.ceil(hidden_ratio * width))
        each = (exits, len(goals))
        self._shapes = ((*each, hidden, own), (*each, hidden, exits - 1), (*each, hidden), (*each, hidden), each)
        self.goals, self.pulls = goals, pulls
        self.parameters = np.zeros(sum(map(math.prod, self._shapes)), dtype=np.float32)
        self.own, self.earlier, self.bias, self.second, self.second_bias = self._views(self.parameters)
        for weights, inputs in ((self.own, width), (self.earlier, width), (self.second, hidden)):
            weights[...] = generator.uniform(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), weights.shape)

    def _views(self, flat: Float32[np.ndarray, " value"]) -> list[np.ndarray]:
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), self._shapes, strict=True)]

    def assign(self, x: Own, scores: PerMember) -> Assigned:
        """Return each sample's shares over the exits."""
        raw, layers = np.empty_like(scores), []
        exits, members, width, own = self.own.shape
        for k in range(exits):
            hidden = (self.own[k].reshape(-1, own) @ x[:, k].T).reshape(members, width, -1)
            if k:
                hidden += self.earlier[k, :, :, :k] @ scores[:, :k]
            hidden += self.bias[k, :, :, None]
            np.maximum(hidden, 0.0, out=hidden)
            raw[:, k] = (self.second[k, :, None] @ hidden)[:, 0] + self.second_bias[k, :, None]
            layers.append(hidden)
        raw -= raw.max(axis=1, keepdims=True)
        positive = np.exp(np.maximum(raw, np.float32(_LEAST_RAW), out=raw))
        return Assigned(positive / positive.sum(axis=1, keepdims=True), layers)

    def gradient(self, x: Own, scores: PerMember, costs: PerExit) -> Float32[np.ndarray, " value"]:
        """Return the gradient of ``L_h``: pulls towards the exits with the larger scores, and towards the budget.

        The divergence is averaged over samples and exits. Scores are constants here; costs are those of leaving at
        each exit.
        """
        alpha_kl, alpha_cost, beta = self.pulls
        assigned, samples, exits = self.assign(x, scores), len(x), x.shape[1]
        target = scores + np.float32(_SCORE_EPSILON)
        if beta != 1:  # beside the largest score, as large powers of all of them may be 0
            target = (target / target.max(axis=1, keepdims=True)) ** np.float32(1 / beta)
        target /= target.sum(axis=1, keepdims=True)
        spent = assigned.shares * costs.T
        pull = np.float32(alpha_cost) * np.sign(spent.sum(axis=1).mean(axis=1) - self.goals) / self.goals
        # by the logarithm of each share, then by the output
        slope = (spent * pull[:, None, None] - np.float32(alpha_kl / exits) * target) / np.float32(samples)
        slope -= assigned.shares * slope.sum(axis=1, keepdims=True)
        gradient = np.zeros_like(self.parameters)
        own, earlier, bias, second, second_bias = self._views(gradient)
        second_bias[:] = slope.sum(axis=2).T
        for k, hidden in enumerate(assigned.hidden):
            second[k] = (hidden @ slope[:, k, :, None])[:, :, 0]
            inner = (hidden > 0) * self.second[k, :, :, None]
            inner *= slope[:, k, None]
            bias[k] = inner.sum(axis=2)
            own[k] = (inner.reshape(-1, samples) @ x[:, k]).reshape(own[k].shape)
            if k:
                earlier[k, :, :, :k] = inner @ scores[:, :k].swapaxes(1, 2)
        return gradient


class Adam:
    """Adam in place; ``weight_decay`` times the parameters is added to the gradient.

    Source:
        Kingma and Ba, ICLR 2015.
    """

    def __init__(self, parameters: Float32[np.ndarray, "*any"], weight_decay: float) -> None:
        self._parameters, self._decay, self._steps = parameters, np.float32(weight_decay), 0
        self._mean, self._square = np.zeros_like(parameters), np.zeros_like(parameters)

    def step(self, gradient: Float32[np.ndarray, "*any"], rate: float) -> None:
        """Move the parameters against a gradient, which is overwritten."""
        self._steps += 1
        first, second = _BETAS
        gradient += self._decay * self._parameters
        self._mean *= np.float32(first)
        self._mean += np.float32(1 - first) * gradient
        self._square *= np.float32(second)
        self._square += np.float32(1 - second) * np.square(gradient, out=gradient)
        scale = np.sqrt(self._square, out=gradient)
        scale *= np.float32(1 / math.sqrt(1 - second**self._steps))
        scale += np.float32(1e-8)
        self._parameters -= np.float32(rate / (1 - first**self._steps)) * (self._mean / scale)
