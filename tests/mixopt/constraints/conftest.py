"""Domains with limits on the whole, drawn at random, and what is in the set by an own reading of the rules: a linear program per choice of domains."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mixopt.constraints.rules import Constraints, Near
from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray

PATHS = ("", "a", "a/x", "a/y", "b")


def plain(
    tokens: Sequence[float], constraints: Constraints, budget: float | None = None, bounds: dict[int, tuple[float, float]] | None = None
) -> DomainSet:
    """Domains d0, d1, ... of so many tokens, without epoch caps unless there is a budget."""
    made = tuple(
        Domain(f"d{index}", f"h{index}", 1000, count, "", 1e9 if budget is None else 4.0, (bounds or {}).get(index, (0.0, 1.0)))
        for index, count in enumerate(tokens)
    )
    return DomainSet(made, budget or float(sum(tokens)), (), constraints)


def random_set(rng: np.random.Generator, grouped: bool) -> DomainSet:
    """Three to six domains with caps and bounds that leave a mixture or not, rules on groups if asked for, and limits that leave one or not."""
    count = int(rng.integers(3, 7))
    tokens = rng.lognormal(0, 1, count)
    made = tuple(
        Domain(
            f"d{index}",
            f"h{index}",
            1000,
            float(tokens[index]),
            PATHS[rng.integers(len(PATHS))] if grouped and index else "",
            bounds=(float(rng.choice([0.0, 0.0, 0.0, 0.05])), float(rng.choice([1.0, 0.6, 0.45]))),
        )
        for index in range(count)
    )
    used = sorted({domain.group for domain in made if domain.group})
    rules = tuple(
        GroupRule(path, "natural" if rng.random() < 0.4 else None, (float(rng.choice([0.0, 0.1])), float(rng.choice([1.0, 0.7]))))
        for path in used
        if rng.random() < 0.8
    )
    most = int(rng.integers(1, count + 1)) if rng.random() < 0.7 else None
    given = tuple((f"d{index}", float(weight)) for index, weight in enumerate(rng.dirichlet(np.ones(count))))
    near = Near(("natural", "uniform", given)[rng.integers(3)], float(rng.uniform(0.02, 0.8))) if rng.random() < 0.7 else None
    return DomainSet(made, float(tokens.sum() * rng.uniform(0.3, 2.5)), rules, Constraints(most, near))


def centre_of(domains: DomainSet) -> FloatArray:
    """Weights of the mixture to stay near (domains,)."""
    near = domains.constraints.near
    assert near is not None
    if near.mixture == "natural":
        return domains.natural().array()
    if near.mixture == "uniform":
        return domains.uniform().array()
    return np.array([dict(near.mixture).get(name, 0.0) for name in domains.names])


def rows_of(domains: DomainSet) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Bounds, rules and distance over (weights, gaps) of domains as rows @ x <= limits and equal @ x = values, straight from the rules."""
    count = len(domains.names)
    rows: list[FloatArray] = []
    limits: list[float] = []
    equal: list[FloatArray] = [np.concatenate([np.ones(count), np.zeros(count)])]
    values = [1.0]
    eye = np.eye(count)
    for rule in domains.rules:
        inside = np.array([f"{domain.group}/".startswith(f"{rule.path}/") for domain in domains.domains], dtype=float)
        rows += [np.concatenate([inside, np.zeros(count)]), np.concatenate([-inside, np.zeros(count)])]
        limits += [rule.bounds[1], -rule.bounds[0]]
        if rule.shares == "natural":
            split = inside * domains.target_tokens / (inside @ domains.target_tokens)
            equal += [np.concatenate([eye[index] - split[index] * inside, np.zeros(count)]) for index in np.flatnonzero(inside)]
            values += [0.0] * int(inside.sum())
    if domains.constraints.near is not None:
        centre = centre_of(domains)
        rows += [np.concatenate([eye[index], -eye[index]]) for index in range(count)]
        rows += [np.concatenate([-eye[index], -eye[index]]) for index in range(count)]
        rows.append(np.concatenate([np.zeros(count), np.full(count, 0.5)]))
        limits += [*centre, *-centre, domains.constraints.near.distance]
    return np.array(rows).reshape(-1, 2 * count), np.array(limits), np.array(equal), np.array(values)


def choices(domains: DomainSet) -> Iterator[FloatArray]:
    """For each choice of as many domains as there may be, who is among them, 0 or 1."""
    count = len(domains.names)
    most = min(domains.constraints.most_domains or count, count)
    for chosen in itertools.combinations(range(count), most):
        yield np.isin(np.arange(count), chosen).astype(float)


def least_linear(domains: DomainSet, slopes: FloatArray, chosen: FloatArray) -> FloatArray | None:
    """A mixture of the chosen domains with the least sum of slopes times weights, None where there is no mixture."""
    from scipy.optimize import linprog

    rows, limits, equal, values = rows_of(domains)
    upper = np.minimum([domain.bounds[1] for domain in domains.domains], domains.epoch_limits()) * chosen
    lower = np.array([domain.bounds[0] for domain in domains.domains])
    if np.any(lower > upper):
        return None
    bounds = [*zip(lower.tolist(), upper.tolist(), strict=True), *[(0.0, None)] * len(chosen)]
    answer = linprog(np.concatenate([slopes, np.zeros(len(chosen))]), rows, limits, equal, values, bounds)
    return None if answer.x is None or not answer.success else np.asarray(answer.x[: len(chosen)])


def least_of_all(domains: DomainSet, slopes: FloatArray) -> float | None:
    """The least sum of slopes times weights over the whole set; None where it is empty."""
    found = [least_linear(domains, slopes, chosen) for chosen in choices(domains)]
    values = [float(point @ slopes) for point in found if point is not None]
    return min(values) if values else None
