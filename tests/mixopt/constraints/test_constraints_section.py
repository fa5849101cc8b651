"""The section `constraints`: what it may say, what its slips are answered with, whose identities it enters, and where an empty set is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixopt.config import Experiment
from mixopt.constraints.placed import constraints_json
from mixopt.constraints.rules import Constraints, Near
from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.experiment_file import parse_experiment
from mixopt.factory import TrialFactory
from mixopt.fitting.file import parse_fit_file
from mixopt.fitting.fit import fit
from mixopt.search_identity import search_identity
from mixopt.swarm import Swarm
from mixopt.trial import Source
from tests.mixopt.constraints.conftest import plain
from workers.checks import check_settings
from workers.jobs.submit import job_key

RAW: dict[str, Any] = {
    "name": "one",
    "output": "run",
    "budget_tokens": "10B",
    "domains": [
        {"name": "code", "path": "code.jsonl", "tokens": "20B"},
        {"name": "prose", "path": "prose.jsonl", "tokens": "60B"},
        {"name": "math", "path": "math.jsonl", "tokens": "20B"},
    ],
    "verification": {"enabled": False},
    "tracking": {"enabled": False},
}
NATURAL = Near("natural", 0.2)


def experiment(constraints: Any = None, **changes: Any) -> Experiment:
    return parse_experiment(RAW | changes | ({} if constraints is None else {"constraints": constraints}), Path("/data"))


def test_what_a_file_says_is_what_holds() -> None:
    assert experiment().constraints.constraints == Constraints()
    assert experiment({"most_domains": 2, "near": {"distance": 0.2}}).constraints.constraints == Constraints(2, NATURAL)
    near = {"mixture": {"code": 0.5, "prose": 0.5}, "distance": 0.1}
    said = experiment({"near": near})
    assert said.constraints.constraints == Constraints(None, Near((("code", 0.5), ("prose", 0.5)), 0.1))
    assert parse_experiment(yaml.safe_load(said.to_yaml()), Path("/")) == said


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"most_domain": 2}, "most_domains"),
        ({"most_domains": 0}, "greater than or equal to 1"),
        ({"most_domains": True}, "yes or no"),
        ({"near": {"mixture": "natural"}}, "distance"),
        ({"near": {"mixture": "natural", "distance": 0}}, "greater than 0"),
        ({"near": {"mixture": "natural", "distance": 1.2}}, "less than or equal to 1"),
        ({"near": {"mixture": "naturel", "distance": 0.1}}, "write natural, uniform or unimax, or weights by domain"),
        ({"near": {"mixture": {"code": 0.5, "prose": 0.4}, "distance": 0.1}}, "the weights sum to 0.9"),
        ({"near": {"mixture": {"code": 0.5, "pros": 0.5}, "distance": 0.1}}, "pros, which is no domain. Did you mean 'prose'?"),
    ],
)
def test_slips_are_answered(constraints: Any, words: str) -> None:
    with pytest.raises(ConfigError) as failed:
        experiment(constraints)
    assert words in str(failed.value)


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"most_domains": 1}, "at least 2 are needed"),
        ({"near": {"distance": 0.01}}, "at least 0.2 of the tokens away from the natural mixture"),
        ({"near": {"mixture": {"code": 0.5, "prose": 0.5}, "distance": 0.01}}, "away from the given mixture"),
    ],
)
def test_an_empty_set_is_found_before_anything_runs(constraints: Any, words: str) -> None:
    domains = [{**domain, "bounds": [0, 0.6 if domain["name"] == "code" else 0.4]} for domain in RAW["domains"]]
    with pytest.raises(InfeasibleError, match=words):
        check_settings(experiment(constraints, domains=domains))


def test_what_follows_from_tokens_waits_for_them() -> None:
    """The natural mixture is not known yet: nothing is said of it, and of the rest everything."""
    domains = [{**domain, "bounds": [0, 0.4]} for domain in RAW["domains"]]
    del domains[1]["tokens"]
    domains[1]["bytes"] = "100GB"
    check_settings(experiment({"near": {"distance": 0.01}}, domains=domains))
    with pytest.raises(InfeasibleError, match="at least 3 are needed"):
        check_settings(experiment({"most_domains": 2, "near": {"distance": 0.01}}, domains=domains))
    with pytest.raises(InfeasibleError, match="away from the given mixture"):
        check_settings(experiment({"near": {"mixture": {"prose": 1.0}, "distance": 0.01}}, domains=domains))


def identity(domains: DomainSet) -> str:
    factory = TrialFactory(domains, Source("trained", "nano", 1_000_000), {"window": 512}, "tokenizer", "1")
    return search_identity(factory, {"kind": "mean"}, "regression", {"surrogate": "gaussian_process"}, 0)


def test_limits_enter_identities_only_where_there_are_any() -> None:
    base = plain([1.0, 2.0, 3.0], Constraints())
    given = Near((("d0", 0.5), ("d1", 0.5)), 0.2)
    kinds = [
        Constraints(),
        Constraints(2),
        Constraints(None, NATURAL),
        Constraints(None, Near("uniform", 0.2)),
        Constraints(2, NATURAL),
        Constraints(None, Near("natural", 0.3)),
        Constraints(None, given),
    ]
    assert len({identity(replace(base, constraints=kind)) for kind in kinds}) == len(kinds)
    turned = Near((("d1", 0.5), ("d0", 0.5), ("d2", 0.0)), 0.2)
    assert identity(replace(base, constraints=Constraints(None, given))) == identity(replace(base, constraints=Constraints(None, turned)))


def test_limits_make_another_job_only_where_there_are_any() -> None:
    keys = [job_key(experiment(said)) for said in (None, {"most_domains": 2}, {"near": {"distance": 0.2}})]
    assert len(set(keys)) == 3
    assert job_key(experiment({})) == keys[0]
    assert job_key(experiment({"most_domains": None})) == keys[0]


def test_a_record_holds_the_weights_that_were_meant() -> None:
    assert constraints_json(plain([6.0, 4.0], Constraints())) == {}
    assert constraints_json(plain([6.0, 3.0, 1.0], Constraints(2, NATURAL))) == {
        "most_domains": 2,
        "near": {"title": "the natural mixture", "distance": 0.2, "weights": {"d0": 0.6, "d1": 0.3, "d2": 0.1}},
    }


def runs() -> Swarm:
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 14)
    losses = ((weights - np.array([0.5, 0.3, 0.2])) ** 2).sum(axis=1, keepdims=True)
    return Swarm.from_arrays(("web", "code", "math"), weights[:, None], ("loss",), losses, Source("trained", "nano", 1000))


def test_a_fit_keeps_them() -> None:
    config = parse_fit_file({"constraints": {"most_domains": 2, "near": {"mixture": {"web": 0.2, "code": 0.8}, "distance": 0.25}}})
    proposal = fit(runs(), config=config, surrogate="gaussian_process").proposal
    weights = proposal.mixture.array()
    assert (weights > 0).sum() == 2
    assert 0.5 * np.abs(weights - np.array([0.2, 0.8, 0.0])).sum() <= 0.25 + 1e-9
    assert "distance: at most 0.25 of the tokens may be moved from the given mixture" in proposal.binding


@pytest.mark.parametrize(
    ("raw", "kind", "words"),
    [
        ({"constraints": {"near": {"distance": 0.1}}}, ConfigError, "is natural, which needs the tokens of the domains"),
        ({"constraints": {"near": {"mixture": "unimax", "distance": 0.1}}}, ConfigError, "needs tokens of the domains and budget_tokens"),
        ({"constraints": {"near": {"mixture": {"wbe": 1.0}, "distance": 0.1}}}, ConfigError, "Did you mean 'web'?"),
        (
            {"constraints": {"most_domains": 1}, "domains": {name: {"bounds": [0, 0.7]} for name in ("web", "code", "math")}},
            InfeasibleError,
            "Raise `constraints.most_domains` to 2",
        ),
    ],
)
def test_what_a_fit_cannot_keep_is_found_first(raw: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as failed:
        fit(runs(), config=parse_fit_file(raw), surrogate="no such surrogate")
    assert words in str(failed.value)
