"""What a trainer reports: whatever it is, an outcome that fits its trial or a sentence; never an exception of another kind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixopt.mixture import Mixture, Schedule
from mixopt.own_trainer.config import TrainerConfig
from mixopt.own_trainer.outcome import BadResultError, checked, evaluations_of, outcome_of, read_result, request_of
from mixopt.record.contents import check_outcome
from mixopt.trial import FailureKind, Source, Trial, TrialDomain

METRICS = ["loss", "accuracy"]
TRAINER = TrainerConfig.model_validate(
    {"kind": "elsewhere", "name": "toy", "tokens": 1000, "metrics": ["loss", {"name": "accuracy", "maximize": True}]}
)


def trial(*phases: dict[str, float]) -> Trial:
    mixtures = tuple(Mixture.of(weights) for weights in (phases or ({"a": 0.25, "b": 0.75, "c": 0.0},)))
    schedule = Schedule(mixtures, tuple(1 / len(mixtures) for _ in mixtures))
    domains = tuple(TrialDomain(name, f"content-{name}", 1) for name in schedule.domains)
    return Trial("t" * 20, schedule, Source("command", "toy", 1000), 7, {"window": 1}, domains, "", "own")


GOOD: dict[str, Any] = {"metrics": {"loss": 1.5, "accuracy": 0.25}}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"metrics": {"loss": 1.5}}, FailureKind.ERROR, "lacks the metric accuracy"),
        ({"metrics": {"loss": 1.5, "accuracy": None}}, FailureKind.DIVERGED, "'accuracy' is None, which is not finite"),
        ({"metrics": {"loss": math.inf, "accuracy": 1}}, FailureKind.DIVERGED, "'loss' is inf"),
        ({"metrics": {"loss": 10**400, "accuracy": 1}}, FailureKind.DIVERGED, "which is not finite"),
        ({"metrics": {"loss": True, "accuracy": 1}}, FailureKind.ERROR, "'loss' is 'True', which is no number"),
        ({"metrics": {"loss": 1, "accuracy": 1, "los": 2}}, FailureKind.ERROR, "unknown metric 'los'. Did you mean 'loss'?"),
        ({"weigths": {}}, FailureKind.ERROR, "unknown key 'weigths'. Did you mean 'weights'?"),
        ({"weights": {"a": 0.5, "d": 0.5}}, FailureKind.ERROR, "unknown domain 'd'"),
        ({"weights": {"a": 0.5, "b": 0.4}}, FailureKind.ERROR, "sum to 0.9"),
        ({"weights": {"a": 0.5, "b": 0.4, "c": 0.1}}, FailureKind.ERROR, "gives 'c' 0.1, which the trial gives no weight"),
        ({"weights": {"a": -1, "b": 2}}, FailureKind.ERROR, "gives 'a' the share -1"),
        ({"weights": [{"a": 1}, {"b": 1}]}, FailureKind.ERROR, "no list of 1 objects"),
        ({"seconds": -1}, FailureKind.ERROR, "`seconds` of the result is -1"),
        ({"flops": "many"}, FailureKind.ERROR, "`flops` of the result is 'many'"),
        ({"curve": [{"tokens": 2000, "metrics": {}}]}, FailureKind.ERROR, "a point at 2000 tokens; they differ, from 1 to 1,000"),
        ({"curve": [{"tokens": 10}]}, FailureKind.ERROR, "no list of {tokens, metrics}"),
        ({"curve": [{"tokens": 10, "metrics": {"loss": math.nan}}]}, FailureKind.DIVERGED, "'loss' at 10 tokens is nan"),
        ({"trial_id": "other"}, FailureKind.ERROR, "of trial 'other'"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], kind: FailureKind, message: str) -> None:
    with pytest.raises(BadResultError) as found:
        checked(GOOD | change, trial(), METRICS)
    assert found.value.failure.kind is kind
    assert message in found.value.failure.message


def test_shares_that_were_counted_are_made_exact_and_follow_phases() -> None:
    two = trial({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5})
    body = GOOD | {"weights": [{"a": 1.0}, {"a": 0.4995, "b": 0.5}]}
    outcome = outcome_of(two, checked(body, two, METRICS), evaluations_of(TRAINER), None, 3.0)
    check_outcome(outcome, two)
    assert outcome.realized["content-a"] == (1.0, pytest.approx(0.4995 / 0.9995))
    assert (outcome.flops, outcome.seconds) == (0.0, 3.0)
    with pytest.raises(BadResultError, match="no list of 2 objects"):
        checked(GOOD | {"weights": {"a": 1.0}}, two, METRICS)


def test_directions_and_names_make_the_keys() -> None:
    keys = {evaluation.metric: evaluation.key for evaluation in evaluations_of(TRAINER)}
    other = TRAINER.model_copy(update={"metrics": tuple(m.model_copy(update={"maximize": True, "weight": 3.0}) for m in TRAINER.metrics)})
    turned = {evaluation.metric: evaluation.key for evaluation in evaluations_of(other)}
    assert turned["accuracy"] == keys["accuracy"]
    assert turned["loss"] != keys["loss"]


def test_a_request_can_be_read_back_as_the_schedule() -> None:
    two = trial({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.5})
    request = json.loads(json.dumps(request_of(two, Path("/files"))))
    assert Schedule(tuple(Mixture.of(row) for row in request["weights"]), tuple(request["fractions"])) == two.schedule
    assert request["seed"] == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "loss", "1.5", "\N{SNOWMAN}"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["loss", "accuracy", "a", "b", "tokens", "metrics"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.dictionaries(st.sampled_from(["metrics", "weights", "flops", "seconds", "curve", "trial_id"]), JSON), good=st.booleans())
def test_any_json_is_an_outcome_or_a_sentence(body: dict[str, Any], good: bool) -> None:
    one = trial()
    try:
        measured = checked(body | GOOD if good else body, one, METRICS)
    except BadResultError as error:
        said = error.failure.message
    else:
        said = ""
    if said:
        return
    outcome = outcome_of(one, measured, evaluations_of(TRAINER), 1e9, 1.0)
    check_outcome(outcome, one)
    json.dumps(outcome.to_json(), allow_nan=False)


@settings(deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_a_result_or_a_sentence(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("result") / "result.json"
    path.write_bytes(content)
    with pytest.raises(BadResultError):
        read_result(path, trial(), METRICS)
