"""AdamW for a pack: every member clipped, scheduled and stepped as if it were alone.

AdamW (arXiv 1711.05101, algorithm 2) runs on the slices p[k] through torch's fused kernel, which on a CPU is three times as fast as the
foreach form and divides by the clip factor on the way. That kernel is a private function, so torch is pinned, a test compares it with
`torch.optim.AdamW`, and a plain form stands in where it is missing. The trade-off: one call per member rather than one for the pack, since
rates, clip factors and step counts differ by member.

Legend: K pack members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxy_models.model import PackedProxy
from proxy_models.parametrization import rate_multiplier

UNDECAYED = ("norm", "embedding")
"""Last part of the names without weight decay: scales, and the embedding, whose rare rows would shrink between their occurrences."""


ROUTER = ".router"
"""What the names of routers end with; left as they are where the configuration freezes them."""


@dataclass(frozen=True)
class Group:
    """Tensors that share a call of the kernel.

    Attributes:
        indices: of the parameters.
        multiplier: on the rate.
        decay: decoupled decay, times the multiplied rate.
    """

    indices: tuple[int, ...]
    multiplier: float
    decay: float


class PackedAdamW:
    """AdamW over the members of a pack.

    Args:
        model: the pack; its parameters are changed in place.
        learning_rates: peak rate of each member; a step multiplies it by the schedule's scale.
        weight_decay: decoupled decay of matrices, times the rate of the step before a tensor's multiplier; norms and embedding have none.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        clip: largest gradient norm of a member over all its parameters; infinity for no clipping.
        fused: use torch's fused kernel; None: where there is one.

    Raises:
        ValueError: a rate, decay, beta, eps or clip is out of range, or there is not one rate per member.
    """

    def __init__(
        self,
        model: PackedProxy,
        learning_rates: Sequence[float],
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        clip: float = 1.0,
        fused: bool | None = None,
    ) -> None:
        _check_settings(model.members, learning_rates, weight_decay, betas, eps, clip)
        self.model = model
        self.learning_rates = tuple(float(rate) for rate in learning_rates)
        self.weight_decay, self.betas, self.eps, self.clip = weight_decay, betas, eps, clip
        self.fused = hasattr(torch, "_fused_adamw_") if fused is None else fused
        self._names, self._parameters = zip(*model.named_parameters(), strict=True)
        self._first = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._second = [torch.zeros_like(parameter) for parameter in self._parameters]
        # Counters are tensors because the fused kernel reads them; float32 counts steps exactly up to 2^24.
        self._steps_K = torch.zeros(model.members, dtype=torch.float32, device=model.embedding.device)
        self._steps = list(self._steps_K.unbind())
        self._trained = [index for index, name in enumerate(self._names) if not (model.config.frozen_router and name.endswith(ROUTER))]
        self._groups = self._grouped()

    def _grouped(self) -> tuple[Group, ...]:
        """Tensors of one call of the kernel: of one multiplier, decayed or not."""
        indices: dict[tuple[bool, float], list[int]] = {}
        for index in self._trained:
            name = self._names[index]
            plain = name.rsplit(".", 1)[-1] in UNDECAYED
            indices.setdefault((plain, rate_multiplier(self.model.config, name)), []).append(index)
        # Decay per step is the rate times the decay, without the multiplier (proxy_models/parametrization.py).
        return tuple(Group(tuple(indices[key]), key[1], 0.0 if key[0] else self.weight_decay / key[1]) for key in sorted(indices))

    def begin(self, rates: Sequence[float]) -> None:
        """Members that have not stepped yet, with these peak rates."""
        self.learning_rates = tuple(float(rate) for rate in rates)
        for tensor in self._state():
            tensor.zero_()

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate_scale_K: Sequence[float], active_K: Sequence[bool]) -> tuple[list[float], list[bool]]:
        """One step of every member that is active and has a finite gradient; the others keep weights, moments and counter.

        The gradients are used up: clipping may divide them in place.

        Args:
            rate_scale_K: what the schedule multiplies each peak rate by.
            active_K: which members take part.

        Returns:
            The gradient norm of each member before clipping, and whether it was finite (its square must be representable, too).

        Raises:
            ValueError: a list has the wrong length, or there are no gradients.
        """
        members = self.model.members
        if len(rate_scale_K) != members or len(active_K) != members:
            raise ValueError(f"step got {len(rate_scale_K)} rates and {len(active_K)} flags for {members} members.")
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if len(gradients) != len(self._parameters):
            raise ValueError("Some parameters have no gradient; call `training_loss(...).sum().backward()` before `step`.")
        norms_K = self._norms(gradients)
        finite_K = [math.isfinite(norm) for norm in norms_K]
        for k in range(members):
            if active_K[k] and finite_K[k]:
                self._step_member(k, gradients, self.learning_rates[k] * rate_scale_K[k], norms_K[k])
        return norms_K, finite_K

    def _norms(self, gradients: Sequence[Tensor]) -> list[float]:
        """Gradient norm of each member. Slice by slice, so that no reduction sees two members; one wait for the device."""
        trained = [gradients[index] for index in self._trained]
        norms = [torch.stack(torch._foreach_norm([gradient[k] for gradient in trained])).norm() for k in range(self.model.members)]
        values: list[float] = torch.stack(norms).tolist()
        return values

    def _step_member(self, k: int, gradients: Sequence[Tensor], rate: float, norm: float) -> None:
        """Clips and steps member k; gradients are divided by norm / clip where that is above one."""
        divisor = max(1.0, norm / self.clip)
        self._steps[k] += 1
        update = _fused_update if self.fused else _plain_update
        for group in self._groups:
            weights, slopes, first, second = (
                [source[index][k] for index in group.indices] for source in (self._parameters, gradients, self._first, self._second)
            )
            slices = _Slices(weights, slopes, first, second, self._steps[k])
            update(slices, rate * group.multiplier, group.decay, divisor, self.betas, self.eps)

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Moments and step counter of member k, as copies: `first.<parameter>`, `second.<parameter>` and `step`."""
        state = {"step": self._steps[k].clone()}
        for name, first, second in zip(self._names, self._first, self._second, strict=True):
            state[f"first.{name}"], state[f"second.{name}"] = first[k].clone(), second[k].clone()
        return state

    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Sets member k to a `member_state`.

        Raises:
            ValueError: names or shapes differ from those of this optimizer.
        """
        own = {"step": self._steps[k]}
        for name, first, second in zip(self._names, self._first, self._second, strict=True):
            own[f"first.{name}"], own[f"second.{name}"] = first[k], second[k]
        if own.keys() != state.keys():
            raise ValueError(
                f"The optimizer's state is of another model: {', '.join(sorted(own.keys() ^ state.keys()))} are only in one of the two."
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(f"'{name}' has shape {tuple(state[name].shape)} in the state, {tuple(tensor.shape)} in the optimizer.")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def select(self, members: Sequence[int], model: PackedProxy | None = None) -> PackedAdamW:
        """An optimizer for these members in this order, with their rates, moments and counters.

        Args:
            members: as for `PackedProxy.select`.
            model: what `PackedProxy.select(members)` gave; None: it is called here, and the new pack is `.model` of the result.
        """
        model = self.model.select(members) if model is None else model
        rates = [self.learning_rates[k] for k in members]
        optimizer = type(self)(model, rates, self.weight_decay, self.betas, self.eps, self.clip, self.fused)
        optimizer.copy_from(self, members)
        return optimizer

    @torch.no_grad()
    def copy_from(self, other: PackedAdamW, members: Sequence[int]) -> None:
        """Takes over rates, moments and counters of these members of `other`, one for each of the own members; without a wait for the device."""
        self.learning_rates = tuple(other.learning_rates[k] for k in members)
        index = torch.tensor(list(members)).to(self._steps_K.device, non_blocking=True)
        for own, theirs in zip(self._state(), other._state(), strict=True):
            torch.index_select(theirs, 0, index, out=own)

    def _state(self) -> list[Tensor]:
        return [*self._first, *self._second, self._steps_K]


@dataclass(frozen=True)
class _Slices:
    """What one member's update reads and writes: the same number of tensors in each list, and its step counter."""

    weights: list[Tensor]
    gradients: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    step: Tensor


def _fused_update(member: _Slices, rate: float, decay: float, divisor: float, betas: tuple[float, float], eps: float) -> None:
    """One AdamW update by torch's kernel, which divides the gradients by `divisor` in place on the way."""
    torch._fused_adamw_(
        member.weights,
        member.gradients,
        member.first,
        member.second,
        [],  # largest second moments, of the amsgrad variant
        [member.step] * len(member.weights),
        amsgrad=False,
        maximize=False,
        lr=rate,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay,
        eps=eps,
        grad_scale=None if divisor == 1.0 else torch.tensor(divisor, dtype=torch.float32, device=member.step.device),
    )


def _plain_update(member: _Slices, rate: float, decay: float, divisor: float, betas: tuple[float, float], eps: float) -> None:
    """The same update, as algorithm 2 of arXiv 1711.05101 reads."""
    count = float(member.step)
    for weight, gradient, first, second in zip(member.weights, member.gradients, member.first, member.second, strict=True):
        clipped = gradient / divisor
        weight.mul_(1.0 - rate * decay)
        first.lerp_(clipped, 1.0 - betas[0])
        second.mul_(betas[1]).addcmul_(clipped, clipped, value=1.0 - betas[1])
        root = second.sqrt().div_(math.sqrt(1.0 - betas[1] ** count)).add_(eps)
        weight.addcdiv_(first, root, value=-rate / (1.0 - betas[0] ** count))


def _check_settings(members: int, rates: Sequence[float], weight_decay: float, betas: tuple[float, float], eps: float, clip: float) -> None:
    if len(rates) != members:
        raise ValueError(f"{len(rates)} learning rates for {members} members; give one each.")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(f"learning rates {list(rates)} must be finite and not negative.")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ValueError(f"weight_decay is {weight_decay}; it must be finite and not negative.")
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}; both must be at least 0 and below 1.")
    if not eps > 0 or not clip > 0:
        raise ValueError(f"eps is {eps} and clip is {clip}; both must be above 0.")
