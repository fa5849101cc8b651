"""Plans of reuse, what each costs and risks, and which to take.

Full reuse measures what is new or changed and keeps all else in its old shares; partial reuse also frees the old domains that the bound blames most; a warm
start keeps no shares but the earlier runs, and adds what they lack; and everything can be measured anew.

A plan searches units (what is measured, and one for all that is kept), and needs 3 (units + 1) proxies (Olmix, arXiv 2602.12237: 3 (|D_comp| + 2)); a warm
start counts earlier trials that are still valid, and trains as many as full reuse at least. The risk of a plan is simulated: for many laws that the new domains
may have, the best mixture of the plan against the best of all.

The main trade-off: the risk is that of keeping shares, which the old runs may have got wrong too, and not of measuring the rest with few proxies, which every
plan has. Shares that are kept are the law's own old optimum, so that a quarrel between the law and the old answer does not look like a risk of reuse.

Legend: S laws imagined, D domains, F kept domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.reuse.bound import blame, kappa, published_bound, tangent_bound
from mixopt.reuse.changes import Changes
from mixopt.reuse.law import ObjectiveLaw, imagined
from mixopt.reuse.virtual import closed, with_kept
from mixopt.space import MixtureSpace

PlanName = Literal["full", "partial", "warm", "none"]
LAWS = 32
"""Laws imagined; the risk told is near the largest of ten."""
RISK_PERCENTILE = 90.0
PROXIES_PER_PARAMETER = 3
MOST_FREED = 8
"""Old domains that partial reuse may free one after the other before it is looked at no further."""


@dataclass(frozen=True)
class Plan:
    """One way to go on.

    Attributes:
        kept: domain -> share of the unit that is kept; empty: all is measured anew.
        measured: the other domains.
        freed: old domains among `measured`.
        units: what the search moves.
        proxies: it needs; `trained`: of them in the record already.
        risk, typical: the 90th percentile and the median of the simulated gap, in objective units.
        bound: the tangent's bound on the gap, 90th percentile; `kappa` and `published`: Olmix's, medians; None where it is not defined.
        problem: why the plan cannot be run; empty where it can.
    """

    name: PlanName
    kept: Mapping[str, float]
    measured: tuple[str, ...]
    freed: tuple[str, ...]
    units: int
    proxies: int
    trained: int = 0
    risk: float = 0.0
    typical: float = 0.0
    bound: float = 0.0
    kappa: float | None = None
    published: float | None = None
    problem: str = ""

    @property
    def to_train(self) -> int:
        return max(self.proxies - self.trained, 0)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": dict(self.kept), "to_train": self.to_train}


@dataclass(frozen=True)
class Risks:
    """Simulated outcomes of keeping domains.

    Attributes:
        laws: imagined, over the new domains.
        optima_SD: the best mixture of each.
        shares: domain -> weight in the old optimum under the law, of the domains that are still there.
    """

    domains: DomainSet
    laws: tuple[ObjectiveLaw, ...]
    optima_SD: FloatArray
    shares: Mapping[str, float]

    @classmethod
    def of(
        cls,
        law: ObjectiveLaw,
        old: DomainSet,
        changes: Changes,
        domains: DomainSet,
        resampled: Sequence[ObjectiveLaw] = (),
        seed: int = 0,
    ) -> Risks:
        """Imagines laws and finds their optima.

        Args:
            law: of the old domains, whose optimum is what is kept.
            resampled: what it might be instead, as far as the old runs know; taken in turn. None: nothing else.

        Raises:
            InfeasibleError: no mixture of the new domains is feasible.
        """
        space, natural = MixtureSpace.from_domains(domains), domains.natural()
        old_space = MixtureSpace.from_domains(old)
        old_natural = old.natural().array(law.domains)
        in_order = [old_space.domains.index(name) for name in law.domains]
        before = _in_order(law, old_space.domains).optimum(old_space, old.natural().array(old_space.domains))[in_order]
        assert np.allclose(old_natural, law.natural_D), "the law was made over the old domains"
        weight = dict(zip(law.domains, before.tolist(), strict=True))
        might_be = tuple(resampled) or (law,)
        laws = tuple(
            imagined(
                might_be[number % len(might_be)], changes, domains.names, natural.array(), np.random.default_rng([seed, 0x0E05E, number])
            )
            for number in range(LAWS if changes.fresh else len(might_be))
        )
        optima = np.stack([one.optimum(space, natural.array()) for one in laws])
        return cls(domains, laws, optima, {new: weight[was] for new, was in changes.kept.items()})

    def gaps(self, kept: Mapping[str, float]) -> tuple[FloatArray, FloatArray]:
        """Gap and tangent's bound for every law, each of shape (S,), where the domains of `kept` keep these shares.

        Raises:
            ConfigError, InfeasibleError: rules or caps do not allow that.
        """
        space = MixtureSpace.from_domains(with_kept(self.domains, kept))
        found = []
        for law, optimum_D in zip(self.laws, self.optima_SD, strict=True):
            allowed_D = space.project(optimum_D[None])[0]
            best_D = law.optimum(space, allowed_D)
            values = law.value(np.stack([best_D, optimum_D]))
            found.append((max(float(values[0] - values[1]), 0.0), tangent_bound(law, optimum_D, allowed_D)))
        gaps_S, bounds_S = np.array(found).T
        return gaps_S, np.maximum(bounds_S, gaps_S * (1 - 1e-9))

    def most_blamed(self, names: Sequence[str]) -> str:
        """The one of these kept domains that adds most to the bound, over all laws."""
        fix, shares_F = self._fix(names), _normalized([self.shares[name] for name in names])
        total_F = sum(blame(law, optimum_D, shares_F, fix) for law, optimum_D in zip(self.laws, self.optima_SD, strict=True))
        return names[int(np.argmax(total_F))]

    def olmix(self, names: Sequence[str]) -> tuple[float, float | None]:
        """Medians of kappa and of the published bound."""
        fix, shares_F = self._fix(names), _normalized([self.shares[name] for name in names])
        kappas = [kappa(law.slopes_KD, fix) for law in self.laws]
        if self.laws[0].worst:
            return float(np.median(kappas)), None
        plain = [replace(law, strength=0.0) for law in self.laws]
        bounds = [published_bound(law, optimum_D, shares_F, fix) for law, optimum_D in zip(plain, self.optima_SD, strict=True)]
        return float(np.median(kappas)), float(np.median(bounds))

    def _fix(self, names: Sequence[str]) -> list[int]:
        return [self.domains.names.index(name) for name in names]


def make_plans(
    changes: Changes, domains: DomainSet, answer: Mapping[str, float], risks: Risks, noise: float, usable: int = 0
) -> tuple[tuple[Plan, ...], PlanName, str]:
    """The plans that there are, the one to take, and why.

    Args:
        answer: old domain -> weight in the mixture that is kept.
        noise: a difference of the objective that cannot be told from nothing.
        usable: earlier trials that are trials of the new search too, for a warm start.
    """
    shares = {new: answer[old] for new, old in changes.kept.items()}
    none = Plan("none", {}, domains.names, (), len(domains.units.names), _proxies(len(domains.units.names)))
    measured = closed(changes.fresh, domains.group_paths, domains.rules)
    kept = [name for name in domains.names if name not in measured]
    if not changes.fresh and _nothing_left(changes, kept):
        full, warm = _settled(shares, changes, risks, none), _warm(changes, 0, none, usable)
        plans = tuple(plan for plan in (full, warm, none) if plan is not None)
        return (plans, "full", _why_settled(changes)) if full.risk <= noise else (plans, *_recommended(plans, noise))
    if not _worth_keeping(kept, shares):
        why = "everything changed" if not changes.kept else "too little stayed to save proxies"
        return (none,), "none", f"Full recompute: {why}."
    full = _evaluated("full", kept, shares, changes, domains, risks)
    if not full.problem and full.proxies >= none.proxies:
        return (none,), "none", "Full recompute: what stayed is one unit of the new file anyway, so keeping it saves no proxies."
    partial = None if full.problem else _partial(kept, shares, changes, domains, risks, noise, none)
    warm = _warm(changes, len(measured), none, usable)
    plans = tuple(plan for plan in (full, partial, warm, none) if plan is not None)
    return plans, *_recommended(plans, noise)


def _warm(changes: Changes, measured: int, none: Plan, usable: int) -> Plan | None:
    """All weights free, over the earlier runs and so many more that both are as many as a full recompute has; None where it saves nothing."""
    proxies = max(_proxies(measured + 1 if measured else 1), none.proxies - usable)
    if not usable or proxies >= none.proxies:
        return None
    return replace(none, name="warm", measured=changes.fresh, proxies=proxies)


def _partial(
    kept: list[str],
    shares: Mapping[str, float],
    changes: Changes,
    domains: DomainSet,
    risks: Risks,
    noise: float,
    none: Plan,
) -> Plan | None:
    """Frees the domains that the bound blames most, as few as bring the risk inside the noise; all that it looks at where that does not suffice.

    None where it saves nothing.
    """
    steps: list[list[str]] = []
    left = list(kept)
    while len(steps) < MOST_FREED:
        gone = closed([risks.most_blamed(left)], domains.group_paths, domains.rules)
        left = [name for name in left if name not in gone]
        if not _worth_keeping(left, shares):
            break
        steps.append(left)

    def evaluated(step: int) -> Plan:
        return _evaluated("partial", steps[step], shares, changes, domains, risks)

    # The less is kept the less is risked, law by law, so the fewest that suffice are found by halving.
    low, high = 0, len(steps) - 1
    if high < 0:
        return None
    best = evaluated(high)
    while low < high and not best.problem and best.risk <= noise:
        middle = (low + high) // 2
        tried = evaluated(middle)
        if tried.risk <= noise and not tried.problem:
            best, high = tried, middle
        else:
            low = middle + 1
    return None if best.problem or best.proxies >= none.proxies else best


def _evaluated(
    name: PlanName, kept: Sequence[str], shares: Mapping[str, float], changes: Changes, domains: DomainSet, risks: Risks
) -> Plan:
    answer, own = _normalized([shares[one] for one in kept]), _normalized([risks.shares[one] for one in kept])
    measured = tuple(one for one in domains.names if one not in kept)
    freed = tuple(one for one in measured if one in changes.kept)
    plan = Plan(name, dict(zip(kept, answer.tolist(), strict=True)), measured, freed, 0, 0)
    try:
        units = len(with_kept(domains, plan.kept).units.names)
        gaps_S, bounds_S = risks.gaps(dict(zip(kept, own.tolist(), strict=True)))
        MixtureSpace.from_domains(with_kept(domains, plan.kept))
    except (ConfigError, InfeasibleError) as error:
        return replace(plan, problem=f"{error.message} {error.hint}".strip())
    kappa_, published = risks.olmix(kept)
    risk, typical = np.percentile(gaps_S, [RISK_PERCENTILE, 50.0]).tolist()
    bound = float(np.percentile(bounds_S, RISK_PERCENTILE))
    return replace(plan, units=units, proxies=_proxies(units), risk=risk, typical=typical, bound=bound, kappa=kappa_, published=published)


def _settled(shares: Mapping[str, float], changes: Changes, risks: Risks, none: Plan) -> Plan:
    """Nothing is new: the old answer over what is left, as near as caps allow; no runs. Renaming risks nothing: a recompute would be the same search."""
    names = risks.domains.names
    own_D = _normalized([risks.shares[name] for name in names])
    space = MixtureSpace.from_domains(risks.domains)
    allowed_D, answer_D = space.project(np.stack([own_D, _normalized([shares[name] for name in names])]))
    plan = replace(none, name="full", kept=dict(zip(names, answer_D.tolist(), strict=True)), measured=(), units=0, proxies=0)
    if not changes.removed:
        return plan
    pairs = list(zip(risks.laws, risks.optima_SD, strict=True))
    gaps = [max(float(np.subtract(*law.value(np.stack([allowed_D, optimum_D])))), 0.0) for law, optimum_D in pairs]
    bounds = [tangent_bound(law, optimum_D, allowed_D) for law, optimum_D in pairs]
    risk, typical = np.percentile(gaps, [RISK_PERCENTILE, 50.0]).tolist()
    return replace(plan, risk=risk, typical=typical, bound=float(np.percentile(bounds, RISK_PERCENTILE)))


def _recommended(plans: Sequence[Plan], noise: float) -> tuple[PlanName, str]:
    """The plan with the fewest proxies among those whose risk is inside the noise; of two the one that risks less."""
    said = f"what so many seeds cannot tell apart ({noise:.3g})"
    able = [plan for plan in plans if not plan.problem]
    taken = min((plan for plan in able if plan.risk <= noise), key=lambda plan: (plan.proxies, plan.risk))
    if taken.name == "warm":
        return "warm", "Warm start: it keeps no shares, so it risks none, and no plan inside the noise needs fewer proxies."
    if taken.name != "none":
        return taken.name, f"{taken.name.capitalize()} reuse: its risk of {taken.risk:.3g} is inside {said}."
    reuses = [plan for plan in able if plan.name in ("full", "partial")]
    if not reuses:
        return "none", f"Full recompute: {plans[0].problem}"
    least = min(plan.risk for plan in reuses)
    return "none", f"Full recompute: the least risk of reuse, {least:.3g}, is more than {said}."


def _why_settled(changes: Changes) -> str:
    if changes.count("removed"):
        return "Nothing is new: what was removed gives its weight to the others in proportion, and nothing has to be trained."
    return "Nothing but names changed, and nothing has to be trained."


def _nothing_left(changes: Changes, kept: Sequence[str]) -> bool:
    return set(kept) == set(changes.kept)


def _worth_keeping(kept: Sequence[str], shares: Mapping[str, float]) -> bool:
    """Whether a unit of these saves anything: two or more, of some weight, that are not one unit anyway."""
    return len(kept) >= 2 and sum(shares[name] for name in kept) > 0


def _proxies(units: int) -> int:
    return PROXIES_PER_PARAMETER * (units + 1)


def _normalized(values: Sequence[float]) -> FloatArray:
    """Summing to 1; even where all are zero."""
    array = np.array(values, dtype=np.float64)
    return array / array.sum() if array.sum() > 0 else np.full(len(array), 1 / len(array))


def _in_order(law: ObjectiveLaw, domains: Sequence[str]) -> ObjectiveLaw:
    """The law with its domains in another order."""
    columns = [law.domains.index(name) for name in domains]
    return replace(law, domains=tuple(domains), slopes_KD=law.slopes_KD[:, columns], natural_D=law.natural_D[columns])
