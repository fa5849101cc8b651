"""Moving weights in someone else's training loop: tell what was measured, get weights; no Ray, MLflow, torch or database.

    session = Session(["web", "code"], controller="aioli", targets=["web", "code"], tokens=10**9, trace="trace.jsonl")
    while session.tokens < session.total:
        domain = session.next_domain()              # the domain that is farthest behind its share of tokens
        ids = next(streams[domain])
        session.drew(domain, len(ids), loss=train(ids))
        if session.due:
            session.observe(validation_loss={"web": ..., "code": ...})
            session.save("session.json")

`session.needs` names the signals to measure; others are recorded, and may be left out. A domain or target that was not measured is left
out too, or NaN: never 0. A loop that counts and mixes by itself uses `weights()` and `observe(tokens=...)` alone. The main trade-off:
everything is by name and checked, which costs microseconds per document; a loader in many processes asks for `weights()` once per
decision and mixes where it is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.controllers import get_controller
from mixopt.controllers.base import Decision, Setup
from mixopt.controllers.signals import AXES, Signal, Signals
from mixopt.controllers.trace import head_line, replay, setup_json, whole_lines, write_atomically
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.space import MixtureSpace

__all__ = ["Session", "replay"]

SESSION_VERSION = 1


class Session:
    """One training run and the controller of its mixture.

    Args:
        domains: names.
        controller: one of `mixopt.controllers.controller_names()`.
        targets: names of held-out sets; one that bears a domain's name is that domain's.
        tokens: of the whole run.
        step_tokens: of one optimizer step; decisions last whole steps.
        options: of the controller.
        prior, target_weights, floor, cap, available, largest_step, space, seed: as in `mixopt.controllers.base.Setup`; a prior is by name.
        trace: file that every call is appended to, for `replay`; it begins anew with the session, unless that is restored.

    Raises:
        ConfigError: no such controller or option, or a setting that makes no sense.
        InfeasibleError: no mixture is allowed.
    """

    def __init__(
        self,
        domains: Sequence[str],
        controller: str = "aioli",
        targets: Sequence[str] = (),
        *,
        tokens: int,
        step_tokens: int = 1,
        options: Mapping[str, Any] | None = None,
        prior: Mapping[str, float] | None = None,
        target_weights: Mapping[str, float] | None = None,
        floor: float | Mapping[str, float] | None = None,
        cap: float | Mapping[str, float] = 1.0,
        available: Mapping[str, float] | None = None,
        largest_step: float = 1.0,
        space: MixtureSpace | None = None,
        seed: int = 0,
        trace: str | Path | None = None,
    ) -> None:
        if isinstance(domains, str) or isinstance(targets, str):
            raise ConfigError("`domains` and `targets` are lists of names, and one of them is text.", 'Write ["web", "code"].')
        if prior is not None and set(prior) != set(domains):
            raise ConfigError(f"`prior` is over {', '.join(sorted(prior))}.", f"Give every domain a weight: {', '.join(domains)}.")
        self.setup = Setup(
            tuple(domains),
            tuple(targets),
            int(tokens),
            int(step_tokens),
            None if prior is None else Mixture.of(prior),
            target_weights,
            floor,
            cap,
            available or {},
            largest_step,
            space,
            seed,
        )
        self.controller = get_controller(controller, self.setup, options)
        self._drawn = np.zeros(len(self.setup.domains))
        self._behind = np.zeros(len(self.setup.domains))
        self._losses = np.zeros((2, len(self.setup.domains)))
        self._since = np.zeros(len(self.setup.domains))
        self._index = {name: index for index, name in enumerate(self.setup.domains)}
        self._sharing = self._shares()
        self._trace = None if trace is None else Path(trace)
        self._lines = [head_line(self.setup, self.controller) + "\n"]
        self._is_written = False

    @property
    def total(self) -> int:
        """Tokens of the whole run."""
        return self.setup.tokens

    @property
    def tokens(self) -> int:
        """Tokens so far: those told by `drew`, or by the last `observe`."""
        return max(int(self._drawn.sum()), self.controller.seen)

    @property
    def needs(self) -> frozenset[Signal]:
        """Names of the signals that `observe` must be given; training losses and tokens are known where `drew` is used."""
        return self.controller.needs

    @property
    def decision(self) -> Decision:
        """The controller's decision: mixture, tokens until the next call, mode, probes."""
        return self.controller.decision

    @property
    def due(self) -> bool:
        """Whether signals are wanted now."""
        return self.tokens >= min(self.controller.seen + self.decision.tokens, self.total)

    def weights(self) -> dict[str, float]:
        """Share of tokens of each domain until the next call; in the mode `loss_weight`, what losses are weighted by."""
        return self.decision.mixture.as_dict()

    def loss_factor(self, domain: str) -> float:
        """What a domain's loss is multiplied by: 1 where windows are drawn by the weights; else its weight over its share of the draws."""
        self._position(domain)
        return 1.0 if self.decision.mode == "sample" else self.decision.loss_factors()[domain]

    def next_domain(self) -> str:
        """The domain to draw from: the one whose tokens are farthest behind its share of those drawn; of several the first by name."""
        behind = np.where(self._sharing > 0, self._behind, -np.inf)
        return min(self.setup.domains[index] for index in np.flatnonzero(behind == behind.max()))

    def drew(self, domain: str, tokens: int, loss: float | None = None) -> None:
        """Tells that so many tokens of a domain were trained on, and their mean loss in nats, where it is known.

        Raises:
            ConfigError: no such domain.
            DataError: tokens are below 1, or the loss is not finite.
        """
        index = self._position(domain)
        if tokens < 1:
            raise DataError(f"`drew` was told {tokens} tokens of '{domain}'.", "Tell what was trained on.")
        if loss is not None and not np.isfinite(loss):
            raise DataError(f"The loss of '{domain}' is {loss}.", "Stop the run: no weights mend a loss that is not finite.")
        self._drawn[index] += tokens
        self._since[index] += tokens
        self._behind += tokens * self._sharing
        self._behind[index] -= tokens
        if loss is not None:
            self._losses[:, index] += (tokens * loss, tokens)

    def observe(self, *, tokens: int | None = None, step: int = 0, learning_rate: float = 0.0, **signals: Any) -> dict[str, float]:
        """Tells what was measured, by the names of `mixopt.controllers.signals.Signal`; returns the weights until the next call.

        Args:
            tokens: trained on so far; None: those told by `drew`.
            signals: mappings by name (target -> domain -> value where a signal has both), or arrays in the order of targets and domains.
                What was not measured is left out, None or NaN.

        Raises:
            ConfigError: no such signal, domain or target.
            DataError: a needed signal is missing, or values make no sense.
        """
        values = {}
        for name, given in signals.items():
            if name not in {signal.value for signal in Signal}:
                nearest = difflib.get_close_matches(name, list(Signal), n=1, cutoff=0.0)
                raise ConfigError(f"There is no signal '{name}'.", f"Did you mean '{nearest[0]}'? This controller needs: {self._needed()}.")
            values[Signal(name)] = self._array(Signal(name), given)
        if self._since.any():
            values.setdefault(Signal.TRAIN_TOKENS, self._since.copy())
        if self._losses[1].any() or (Signal.TRAIN_LOSS in self.needs and self._since.any()):
            with np.errstate(invalid="ignore"):
                values.setdefault(Signal.TRAIN_LOSS, np.where(self._losses[1] > 0, self._losses[0] / self._losses[1], np.nan))
        made = Signals(self.setup.domains, self.setup.targets, self.tokens if tokens is None else int(tokens), values, step, learning_rate)
        self.controller.observe(made)
        self._losses[:], self._since[:] = 0.0, 0.0
        self._sharing = self._shares()
        self._record(json.dumps(made.to_json(), allow_nan=False) + "\n")
        return self.weights()

    def final(self) -> Schedule:
        """What the run was trained on as a schedule of at most 64 phases, or the average where the method's answer is that."""
        return self.controller.final()

    def save(self, path: str | Path) -> None:
        """Writes everything that later decisions depend on, whole or not at all."""
        body = {
            "session": SESSION_VERSION,
            "setup": setup_json(self.setup),
            "controller": self.controller.state_dict(),
            "drawn": dict(zip(self.setup.domains, self._drawn.tolist(), strict=True)),
            "behind": dict(zip(self.setup.domains, self._behind.tolist(), strict=True)),
            "since": dict(zip(self.setup.domains, self._since.tolist(), strict=True)),
            "losses": dict(zip(self.setup.domains, self._losses.T.tolist(), strict=True)),
        }
        write_atomically(Path(path), json.dumps(body, allow_nan=False, indent=1) + "\n")

    def restore(self, path: str | Path) -> None:
        """Continues where `save` was called; what a trace holds beyond that is dropped.

        Raises:
            DataError: there is no such file, it is damaged, or of another setting.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no saved session {path}.", "Begin without `restore`.")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is not JSON: {error}.", "Restore an earlier one.") from error
        if not isinstance(body, dict) or body.get("session") != SESSION_VERSION:
            raise DataError(f"{path} holds no session of version {SESSION_VERSION}.", "Restore what `save` wrote.")
        now = json.loads(json.dumps(setup_json(self.setup)))
        for key, value in now.items():
            stored = body["setup"].get(key)
            if sorted(stored) != sorted(value) if key in ("domains", "targets") else stored != value:
                raise DataError(
                    f"{path} was saved with `{key}` {stored!r}, and this session has {value!r}.", "Restore into the same setting."
                )
        try:
            self.controller.load_state_dict(body["controller"])
            columns = [[body[key][name] for name in self.setup.domains] for key in ("drawn", "behind", "since", "losses")]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {error!r}.", "Restore an earlier one.") from error
        self._drawn, self._behind, self._since = (np.array(column, dtype=np.float64) for column in columns[:3])
        self._losses = np.array(columns[3], dtype=np.float64).T.copy()
        self._sharing = self._shares()
        if self._trace is not None:
            kept = whole_lines(self._trace)[: self.controller.calls + 1]
            if len(kept) != self.controller.calls + 1:
                raise DataError(f"Trace {self._trace} holds fewer calls than {path}.", "Give the trace of this run, or none.")
            self._lines, self._is_written = kept, False

    def _record(self, line: str) -> None:
        if self._trace is None:
            return
        if self._is_written:
            with self._trace.open("a", encoding="utf-8") as file:
                file.write(line)
        else:
            write_atomically(self._trace, "".join([*self._lines, line]))
            self._lines, self._is_written = [], True

    def _shares(self) -> FloatArray:
        """Shares of tokens that `next_domain` draws by, in the order of `domains`."""
        return self.decision.sampling.array(self.setup.domains)

    def _position(self, domain: str) -> int:
        if domain not in self._index:
            nearest = difflib.get_close_matches(domain, self.setup.domains, n=1, cutoff=0.0)
            raise ConfigError(f"There is no domain '{domain}'.", f"Did you mean '{nearest[0]}'?")
        return self._index[domain]

    def _needed(self) -> str:
        return ", ".join(sorted(self.needs)) or "none"

    def _array(self, signal: Signal, given: Any) -> FloatArray:
        """A signal as an array; mappings by name, of which the first axis, or the first two, are made."""
        axes = {"D": ("domain", self.setup.domains), "T": ("target", self.setup.targets)}
        try:
            return _placed(given, [axes.get(axis) for axis in AXES[signal]])
        except _UnknownNameError as error:
            kind, name, known = error.args
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"Did you mean '{nearest[0]}'?" if nearest else f"There is no {kind}."
            raise ConfigError(f"Signal '{signal}' names the {kind} '{name}'.", hint) from None
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Signal '{signal}' is no array of numbers with the axes {', '.join(AXES[signal])}: {error}.",
                "NaN where nothing was measured.",
            ) from error


class _UnknownNameError(Exception):
    """kind, name and the known names."""


def _placed(given: Any, axes: Sequence[tuple[str, Sequence[str]] | None]) -> FloatArray:
    """Nested mappings or arrays as one array; NaN for names that are left out."""
    if given is None and not axes:
        return np.array(np.nan)
    if not isinstance(given, Mapping):
        if isinstance(given, np.ndarray) or not axes or not isinstance(given, (list, tuple)):
            return np.array(given, dtype=np.float64)
        return np.array([_placed(entry, axes[1:]) for entry in given], dtype=np.float64)
    if not axes or axes[0] is None:
        raise TypeError("a mapping stands where numbers belong")
    kind, names = axes[0]
    for name in given:
        if name not in names:
            raise _UnknownNameError(kind, str(name), tuple(names))
    parts = {name: _placed(entry, axes[1:]) for name, entry in given.items() if entry is not None}
    shape = next((part.shape for part in parts.values()), tuple(len(axis[1]) if axis else 0 for axis in axes[1:]))
    return np.array([parts.get(name, np.full(shape, np.nan)) for name in names], dtype=np.float64).reshape(len(names), *shape)
