"""The law of supervised fine-tuning: a domain's own loss falls with its own tokens and with what is transferred from all others.

    L_i = C_i (w_i D + T_i)^-beta_i + E_i,  T_i = min(k_i (D - w_i D)^alpha_i, D - w_i D)

Li et al. 2025, "Data Mixing Optimization for Supervised Fine-Tuning" (arXiv 2508.11953): D training tokens, T the effective tokens transferred. Their constraint
k D^alpha <= D, nothing is worth more than itself, holds here by the minimum. Tokens are counted in units of the geometric mean of the runs' token
counts, so C and k depend on that unit and the exponents do not. Every domain is fitted on all runs (five points of its own would leave no
degree of freedom). Each metric belongs to one domain: `valid/<domain>`, the domain's name itself, or what `domain_of` says. The law knows one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import bounded_exp
from mixopt.surrogates.power_law import LEAST_WORTH
from mixopt.surrogates.scaling_law import E_PRIOR, ScalingSurrogate
from mixopt.surrogates.sourced_observations import ScaledObservations

OWN_PREFIX = "valid/"
# log C, log k, logit alpha, log beta, E.
PRIOR = ((0.0, 1.5), (float(np.log(0.3)), 1.5), (0.5, 1.5), (float(np.log(0.3)), 0.7), E_PRIOR)


@dataclass(frozen=True)
class SftLaw:
    """Parameters: log C, log k, logit alpha, log beta, E; of standardised losses.

    Attributes:
        own: share of an input that is the domain's: fraction of its phase where the input is that domain, else 0; shape (weights,).
    """

    own: tuple[float, ...]

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`; the last two inputs are log parameters, which it ignores, and log tokens."""
        assert inputs == len(self.own) + 2
        means, stds = zip(*PRIOR, strict=True)
        return np.array(means), np.array(stds)

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        tokens_N = bounded_exp(x_NI[:, -1])
        share_N = np.minimum(x_NI[:, :-2] @ np.array(self.own), 1.0)
        own_N, others_N = share_N * tokens_N, np.maximum((1 - share_N) * tokens_N, LEAST_WORTH)
        alpha_S1 = 1 / (1 + bounded_exp(-theta_SP[:, 2:3]))
        wanted_SN = bounded_exp(theta_SP[:, 1:2] + alpha_S1 * np.log(others_N))
        free_SN = wanted_SN < others_N
        transferred_SN = np.where(free_SN, wanted_SN, others_N)
        effective_SN = np.maximum(own_N + transferred_SN, LEAST_WORTH)
        beta_S1 = bounded_exp(theta_SP[:, 3:4])
        term_SN = bounded_exp(theta_SP[:, 0:1] - beta_S1 * np.log(effective_SN))
        by_transfer_SN = -beta_S1 * term_SN / effective_SN * np.where(free_SN, wanted_SN, 0.0)  # by log T
        slopes = (
            term_SN,
            by_transfer_SN,
            by_transfer_SN * alpha_S1 * (1 - alpha_S1) * np.log(others_N),
            -beta_S1 * np.log(effective_SN) * term_SN,
            np.ones_like(term_SN),
        )
        return term_SN + theta_SP[:, 4:5], np.stack(slopes, axis=2)


def domain_of_metric(metric: str, domains: tuple[str, ...], domain_of: Mapping[str, str] | None = None) -> str:
    """The domain whose own held-out text a metric is scored on.

    Raises:
        DataError: none by that name, or a mapping to a domain there is not.
    """
    named = (domain_of or {}).get(metric, metric.removeprefix(OWN_PREFIX))
    if named not in domains:
        raise DataError(
            f"The law of fine-tuning predicts domains' own losses, and metric '{metric}' belongs to no domain of {', '.join(domains)}.",
            f"Say which with the surrogate's option domain_of: {{{metric}: <domain>}}, or leave the metric out.",
        )
    return named


class SftLawSurrogate(ScalingSurrogate):
    """`SftLaw`, fitted per metric; `domain_of` maps metrics to domains where names do not say it."""

    domain_of: Mapping[str, str] | None

    def __init__(self, domain_of: Mapping[str, str] | None = None) -> None:
        def law_of(observations: ScaledObservations, metric: str) -> SftLaw:
            own = observations.domains.index(domain_of_metric(metric, observations.domains, domain_of))
            hit = np.arange(len(observations.domains)) == own
            return SftLaw(tuple((np.array(observations.fractions)[:, None] * hit).reshape(-1).tolist()))

        super().__init__(law_of, one_size=True)
        object.__setattr__(self, "domain_of", domain_of)

    def refuse_metrics(self, metrics: Sequence[str], domains: Sequence[str]) -> None:
        """Raises DataError where one of them belongs to no domain."""
        for metric in metrics:
            domain_of_metric(metric, tuple(domains), self.domain_of)
