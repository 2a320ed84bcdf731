"""Policies made of policies: mixed by a coin per sample, or applied to transformed outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import numpy as np
from jaxtyping import Float64

from eenet.errors import InputError, ShapeError
from eenet.policies.policy import Answers, Flags, Ids, Policy, Stops
from eenet.policies.scorers import Seen
from eenet.policies.transforms import Transform
from eenet.tables.checks import instance, number

_DEEPEST = 20  # mixtures inside each other
_STEP, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_S11, _S27, _S30, _S31, _ONE = (np.uint64(x) for x in (11, 27, 30, 31, 1))


def coin(sample_ids: Ids, seed: int) -> Float64[np.ndarray, " sample"]:
    """Return a number in [0, 1) for each sample, a hash of seed and sample id: the same wherever it comes by.

    Source:
        The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), in wrapping 64-bit arithmetic.
    """
    ids = np.ascontiguousarray(sample_ids, dtype=np.int64).view(np.uint64)
    x = (ids + _ONE) * _STEP + np.uint64(int(seed) * 2862933555777941757 % (1 << 63))
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return ((x ^ (x >> _S31)) >> _S11) * 2.0**-53


@final
class MixedPolicy(Policy):
    """Two policies and one coin per sample: meets a budget between their costs exactly, in expectation.

    The coin is a hash of seed and sample id, so the order of samples and their batches do not matter, and each sample
    follows one policy from the first exit to the last.

    Args:
        a: Followed with probability ``weight``.
        b: Followed otherwise.
        weight: In [0, 1].
        seed: Of the coin; counted on while a mixture inside tosses the same one.

    Raises:
        InputError: ``weight`` is no number in [0, 1], or ``seed`` no whole one; or too many mixtures are inside each
            other.
        ShapeError: The policies differ in their number of exits or columns.
    """

    def __init__(self, a: Policy, b: Policy, weight: float, seed: int = 0) -> None:
        for policy in (a, b):
            instance(policy, Policy, "policy")
        if a.num_exits != b.num_exits:
            raise ShapeError(
                f"policies of {a.num_exits} and {b.num_exits} exits cannot be mixed. Fit both on the same table."
            )
        self.depth = 1 + max(a.depth, b.depth)
        if self.depth > _DEEPEST:
            raise InputError(
                f"policies inside {_DEEPEST} mixtures already cannot be mixed again: more can be neither saved nor "
                "followed. Mix them at once."
            )
        self.a, self.b, self.weight = a, b, number(weight, "weight", 0, 1)
        self.seed, taken = int(number(seed, "seed", whole=True)), a.seeds | b.seeds
        while self.seed in taken:
            self.seed += 1
        self.seeds = taken | {self.seed}
        self.source = a.source or b.source
        self.num_exits, self.num_columns = a.num_exits, _one_number(a.num_columns, b.num_columns)
        self.num_open = None if a.num_open is None or b.num_open is None else max(a.num_open, b.num_open)
        self.newest_only = a.newest_only and b.newest_only
        self.answers_newest = a.answers_newest and b.answers_newest
        self.compares_classes = a.compares_classes or b.compares_classes

    def __repr__(self) -> str:
        """Say which policies are mixed, and how many samples follow each."""
        return "by a coin per sample, " + ", or ".join(f"{share:.1%}: {one!r}" for share, one in self.components())

    def follows_a(self, sample_ids: Ids) -> Flags:
        """Return which samples follow policy ``a``."""
        return coin(sample_ids, self.seed) < self.weight

    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        return self._divided(seen, sample_ids, lambda part, *of: part.leaves(*of), np.empty(len(seen), dtype=np.bool_))

    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        if self.answers_newest:
            return seen[:, -1]
        return self._divided(seen, sample_ids, lambda part, *of: part.answers(*of), np.empty_like(seen[:, -1]))

    def _divided(
        self, seen: Seen, ids: Ids, ask: Callable[[Policy, Seen, Ids], np.ndarray], result: np.ndarray
    ) -> np.ndarray:
        """Ask each policy about the samples that follow it."""
        first = self.follows_a(ids)
        of_a = np.flatnonzero(first)
        if len(of_a) in (0, len(first)):
            return ask(self.a if len(of_a) else self.b, seen, ids)
        for policy, rows in ((self.a, of_a), (self.b, np.flatnonzero(~first))):
            result[rows] = ask(policy, seen[rows], ids[rows])
        return result

    def components(self) -> tuple[tuple[float, Policy], ...]:
        mixed = ((self.weight, self.a), (1 - self.weight, self.b))
        return tuple((weight * share, part) for weight, policy in mixed for share, part in policy.components())

    def chosen(self, sample_ids: Ids) -> Stops:
        of_b = len(self.a.components()) + self.b.chosen(sample_ids)
        return np.where(self.follows_a(sample_ids), self.a.chosen(sample_ids), of_b)

    def following(self, sample_ids: Ids) -> Policy:
        first = self.follows_a(sample_ids)
        if first.all():
            return self.a.following(sample_ids)
        return self if first.any() else self.b.following(sample_ids)

    def extended(self, num_exits: int) -> Policy:
        return MixedPolicy(self.a.extended(num_exits), self.b.extended(num_exits), self.weight, self.seed)


@final
class TransformedPolicy(Policy):
    """A policy that sees, and answers with, what a transform makes of the exits' outputs.

    Args:
        transform: Shared, not copied.
        policy: Decides on transformed outputs; must not be transformed itself.

    Raises:
        InputError: ``policy`` is transformed already.
        ShapeError: The transform knows fewer exits, or other classes.
    """

    def __init__(self, transform: Transform, policy: Policy) -> None:
        if any(isinstance(part, TransformedPolicy) for _, part in policy.components()):
            raise InputError(
                "policy is transformed already: a second transform would see what the first one made. Use one "
                "transform that does both."
            )
        num_open = policy.num_open or policy.num_exits
        if transform.num_exits is not None and transform.num_exits < num_open:
            raise ShapeError(
                f"transform of {transform.num_exits} exits does not fit: the policy has {num_open}. Fit both on one "
                "table."
            )
        self.transform, self.policy = transform, policy
        self._parts: dict[Policy, TransformedPolicy] = {}  # made once: a sample is decided in microseconds
        self.num_exits, self.num_open, self.source = policy.num_exits, policy.num_open, policy.source
        self.num_columns = _one_number(transform.num_columns, policy.num_columns)
        self.compares_classes, self.seeds, self.depth = policy.compares_classes, policy.seeds, policy.depth

    def __repr__(self) -> str:
        """Say what stands before the policy, and the policy."""
        return f"on outputs changed by {type(self.transform).__name__}, {self.policy!r}"

    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        return self.decide(seen, sample_ids)[0]

    def decide(self, seen: Seen, sample_ids: Ids) -> tuple[Flags, Answers | None]:
        if self.policy.newest_only:
            transformed = np.zeros_like(seen)
            transformed[:, -1] = self.transform(seen)
        else:
            transformed = self.transform.history(seen)
        return self.policy.leaves(transformed, sample_ids), transformed[:, -1] if self.policy.answers_newest else None

    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        if self.policy.answers_newest:
            return self.transform(seen)
        return self.policy.answers(self.transform.history(seen), sample_ids)

    def components(self) -> tuple[tuple[float, Policy], ...]:
        if len(parts := self.policy.components()) == 1:
            return ((1.0, self),)
        return tuple((share, self._behind(part)) for share, part in parts)

    def chosen(self, sample_ids: Ids) -> Stops:
        return self.policy.chosen(sample_ids)

    def following(self, sample_ids: Ids) -> Policy:
        inner = self.policy.following(sample_ids)
        return self if inner is self.policy else self._behind(inner)

    def _behind(self, inner: Policy) -> TransformedPolicy:
        """Return a part of the policy behind the transform: the same object whenever it is asked for."""
        if inner not in self._parts:
            self._parts[inner] = TransformedPolicy(self.transform, inner)
        return self._parts[inner]

    def extended(self, num_exits: int) -> Policy:
        return TransformedPolicy(self.transform, self.policy.extended(num_exits))


def mixed(a: Policy, b: Policy, weight: float, seed: int = 0) -> Policy:
    """Return the mixture of two policies; a transform that both stand behind is applied once, to all samples."""
    if isinstance(a, TransformedPolicy) and isinstance(b, TransformedPolicy) and a.transform is b.transform:
        behind = TransformedPolicy(a.transform, MixedPolicy(a.policy, b.policy, weight, seed))
        return behind.from_source(a.source or b.source)
    return MixedPolicy(a, b, weight, seed)


@final
class UpTo(Policy):
    """A policy whose samples leave at some exit at the latest.

    Args:
        policy: Decides before that.
        max_exit: The exit, 0-based.

    Raises:
        InputError: There is no such exit.
    """

    def __init__(self, policy: Policy, max_exit: int) -> None:
        self.policy = instance(policy, Policy, "policy")
        self.max_exit = int(number(max_exit, "max_exit", 0, policy.num_exits - 1, whole=True))
        self.num_exits, self.num_columns = policy.num_exits, policy.num_columns
        self.num_open = min(policy.num_open or policy.num_exits, self.max_exit + 1)
        self.newest_only, self.answers_newest = policy.newest_only, policy.answers_newest
        self.compares_classes, self.seeds, self.depth = policy.compares_classes, policy.seeds, policy.depth
        self.source = policy.source

    def __repr__(self) -> str:
        """Say where all leave, and how samples leave before."""
        return f"all leave at exit {self.max_exit}, before that {self.policy!r}"

    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        return self.decide(seen, sample_ids)[0]

    def decide(self, seen: Seen, sample_ids: Ids) -> tuple[Flags, Answers | None]:
        if seen.shape[1] > self.max_exit:
            return np.ones(len(seen), dtype=np.bool_), None
        return self.policy.decide(seen, sample_ids)

    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        return self.policy.answers(seen, sample_ids)


def _one_number(first: int | None, second: int | None) -> int | None:
    """Return the number of columns of parts that must agree on it."""
    if first is not None and second is not None and first != second:
        raise ShapeError(
            f"parts for {first} and {second} classes or features cannot decide together: both read the same exits. "
            "Combine policies fitted on one table."
        )
    return second if first is None else first
