"""What trials begin with: what an experiment file may say of it, and how it is said to people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.beginnings import base_json, base_sentence, beginning_sentence, trial_beginning
from mixopt.config import Experiment
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import BeginningConfig
from mixopt.trial import Source, Trial, TrialDomain, trial_from_spec, trial_identity


def experiment(beginning: Any = None, **proxy: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "begun",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("web", "code")],
        "proxy": proxy | ({} if beginning is None else {"beginning": beginning}),
    }
    return parse_experiment(raw, Path("/corpus"))


def test_trials_begin_from_scratch_unless_it_is_said_otherwise() -> None:
    assert experiment().proxy.beginning == BeginningConfig(kind="scratch")


@pytest.mark.parametrize(
    "beginning",
    [
        {"kind": "continued"},
        {"kind": "continued", "base": {"mixture": {"web": 0.25, "code": 0.75}, "tokens": "2M", "seed": 3, "budget_tokens": "10B"}},
        {"kind": "continued", "base": {"trial": "1a2b3c4d"}},
        {"kind": "upcycled", "base": {"mixture": "unimax", "learning_rate": 1e-3}, "reinitialized": 0.25},
    ],
)
def test_the_resolved_file_says_the_same(beginning: dict[str, Any]) -> None:
    read = experiment(beginning)
    assert parse_experiment(yaml.safe_load(read.to_yaml()), Path("/")) == read


@pytest.mark.parametrize(
    ("beginning", "says"),
    [
        ({"kind": "continue"}, "'continued' or 'upcycled'"),
        ({"base": {"tokens": "2M"}}, "trials from scratch have no base"),
        ({"kind": "continued", "reinitialized": 0.25}, "reinitialized belongs to kind: upcycled"),
        ({"kind": "upcycled", "reinitialized": 1.5}, "less than or equal to 1"),
        ({"kind": "continued", "base": {"trial": "1a2b3c4d", "tokens": "2M"}}, "keep one of the two"),
        ({"kind": "continued", "base": {"trial": "natural"}}, "no id of a trial"),
        ({"kind": "continued", "base": {"trial": 12345678}}, "in quotes where YAML"),
        ({"kind": "continued", "base": {"mixture": "naturally"}}, "write natural, uniform or unimax"),
        ({"kind": "continued", "base": {"mixture": {"web": 0.5, "code": 0.4}}}, "sum to 0.9"),
        ({"kind": "continued", "base": {"mixture": {"web": 1.5, "code": -0.5}}}, "a number from 0 to 1"),
        ({"kind": "continued", "base": {"mixture": {"web": True}}}, "a number from 0 to 1"),
        ({"kind": "continued", "base": {"mixture": {"wbe": 0.5, "code": 0.5}}}, "wbe, which is no domain"),
        ({"kind": "continued", "base": {"tokens": 1024}}, "fewer than 8 steps"),
        ({"kind": "continued", "base": {"size": "nano"}}, r"Unknown key 'proxy\.beginning\.base\.size'"),
        ({"kind": "continued", "bass": {}}, "Did you mean 'base'"),
        ("continued", "write keys with values"),
    ],
)
def test_a_slip_is_named_with_its_remedy(beginning: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(beginning)
    assert says.replace("\\", "") in str(caught.value)


def trial(recipe: dict[str, Any], inputs: tuple[str, ...] = (), label: str = "base") -> Trial:
    schedule, source = Schedule.constant(Mixture(("web", "code"), (0.75, 0.25))), Source("trained", "nano", 400_000)
    domains = tuple(TrialDomain(name, f"content-{name}", 4096) for name in ("web", "code"))
    identity = trial_identity(schedule, source, 3, recipe, domains, "tok", "1", inputs)
    return Trial(identity, schedule, source, 3, recipe, domains, "tok", "1", label, inputs)


def test_what_a_trial_begins_with_is_its_identity_and_survives_the_record() -> None:
    begun = [
        trial({}),
        trial({"beginning": {"kind": "continued"}}, ("parent",)),
        trial({"beginning": {"kind": "continued"}}, ("other",)),
        trial({"beginning": {"kind": "upcycled", "reinitialized": 0.5}}, ("parent",)),
        trial({"beginning": {"kind": "upcycled", "reinitialized": 0.25}}, ("parent",)),
    ]
    assert len({one.trial_id for one in begun}) == len(begun)
    assert all(trial_from_spec(one.spec()) == one for one in begun)


def test_sentences() -> None:
    base = trial({})
    named, weighed = base_json(base, "natural"), base_json(base, None)
    digits = base.trial_id[:8]
    assert base_sentence(named) == f"{digits} (nano, 400,000 tokens of the natural mixture, seed 3)"
    assert base_sentence(weighed) == f"{digits} (nano, 400,000 tokens of 75.0% web, 25.0% code, seed 3)"
    assert beginning_sentence({}) == ""
    continued = beginning_sentence({"beginning": {"kind": "continued", "bases": {"search": named, "verification": named}}})
    assert continued.startswith(f"Every trial begins with the weights of trial {digits} (nano")
    assert "Verification" not in continued
    upcycled = beginning_sentence(
        {"beginning": {"kind": "upcycled", "reinitialized": 0.5, "bases": {"search": named, "verification": {**named, "trial": "9" * 20}}}}
    )
    assert "50% of the hidden units" in upcycled
    assert "Verification runs begin with trial 99999999" in upcycled
    assert trial_beginning(base) == "scratch"
    assert trial_beginning(trial({"beginning": {"kind": "continued"}}, ("1a2b3c4d5e",))) == "continued from 1a2b3c4d"
