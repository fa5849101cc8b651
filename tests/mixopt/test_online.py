"""Sessions in someone else's training loop: mixing by tokens, signals by name, saving, recording, replaying."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.controllers import controller_names
from mixopt.controllers.signals import Signal
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import Mixture
from mixopt.online import Session, replay

DOMAINS, TARGETS = ["web", "code", "math"], ["web", "puzzles"]
TOKENS = 100_000


def session_of(controller: str = "odm", **changes: Any) -> Session:
    return Session(**{"domains": DOMAINS, "controller": controller, "targets": TARGETS, "tokens": TOKENS, "step_tokens": 100} | changes)


def measured(session: Session) -> dict[str, Any]:
    """Signals of every kind that is not counted, some of them missing, the same at the same token count."""
    rng = np.random.default_rng(session.tokens)
    products = {target: {domain: rng.normal() for domain in DOMAINS if rng.random() < 0.8} for target in TARGETS}
    norms = {domain: float(rng.random() + 1) for domain in DOMAINS}
    return {
        "validation_loss": {"web": 3 - session.tokens / 1e5, "puzzles": 4 * np.exp(-session.tokens / 1e5)},
        "excess_loss": {"web": rng.random(), "code": None, "math": float("nan")},
        "gradient_products": products,
        "head_products": products,
        "influence": products,
        "mixture_influence": {target: rng.normal(size=len(session.decision.probes)).tolist() for target in TARGETS},
        "gradient_norms": norms,
        "target_norms": {"web": 1.0, "puzzles": 2.0},
        "gate_load": {domain: rng.dirichlet(np.ones(4), 2).tolist() for domain in ("web", "math")},
        "reward": rng.random(3),
    }


def go_on(session: Session, until: int = TOKENS, stop_inside: bool = False) -> list[str]:
    """Trains on documents whose lengths follow from the tokens so far; the domains drawn."""
    drawn = []
    while session.tokens < until:
        if session.due:
            session.observe(**measured(session))
            continue
        domain = session.next_domain()
        rng = np.random.default_rng(session.tokens)
        session.drew(domain, int(rng.integers(20, 400)), 2 + len(domain) / 10 - session.tokens / 1e5 if domain != "math" else None)
        drawn.append(domain)
    return drawn


@pytest.mark.parametrize("weights", [{"web": 0.6, "code": 0.3, "math": 0.1}, {"web": 0.98, "code": 0.02, "math": 0.0}])
def test_documents_of_any_length_are_mixed_by_tokens(weights: dict[str, float]) -> None:
    """Whoever draws documents by the weights gives long ones too much; here shares are kept within a document at any time."""
    session = session_of("static", prior=weights, floor=0.0)
    rng, lengths = np.random.default_rng(0), {"web": 900, "code": 60, "math": 300}
    counts = dict.fromkeys(DOMAINS, 0)
    while session.tokens < 50_000:
        domain = session.next_domain()
        length = int(rng.integers(1, 2 * lengths[domain]))
        session.drew(domain, length)
        counts[domain] += length
        assert all(abs(counts[name] - weights[name] * session.tokens) <= 2 * 1800 for name in DOMAINS)
    assert session.tokens == sum(counts.values())
    assert counts["math"] == 0 if weights["math"] == 0 else counts["math"] > 0


@pytest.mark.parametrize("name", controller_names())
def test_every_controller_runs_in_a_loop_and_its_trace_replays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    session = session_of(name, trace=path, prior={"math": 0.2, "web": 0.5, "code": 0.3}, target_weights={"web": 2.0, "puzzles": 1.0})
    made = [session.decision.to_json()]
    observe = session.observe

    def observed(**signals: Any) -> dict[str, float]:
        weights = observe(**signals)
        made.append(session.decision.to_json())
        return weights

    session.observe = observed  # type: ignore[method-assign]
    go_on(session)
    assert len(made) > 2
    assert [decision.to_json() for decision in replay(path)] == made
    assert sum(session.final().average().weights) == pytest.approx(1)
    other = replay(str(path), "static")
    assert len(other) == len(made)
    assert other[-1].mixture.as_dict() == pytest.approx({"math": 0.2, "web": 0.5, "code": 0.3})


@pytest.mark.parametrize("name", ["aioli", "odm", "doremi", "tikmix_m"])
@pytest.mark.parametrize("at", [1, 21_000, 60_100])
def test_a_restored_session_goes_on_as_if_it_had_not_stopped(name: str, at: int, tmp_path: Path) -> None:
    """Stopped between two decisions, with counts and losses that no controller has seen, and run beyond what was saved."""
    whole = session_of(name, trace=tmp_path / "whole.jsonl")
    drawn = go_on(whole)
    first = session_of(name, trace=tmp_path / "cut.jsonl")
    begun = go_on(first, at)
    first.save(tmp_path / "session.json")
    go_on(first, min(at + 30_000, TOKENS))
    with (tmp_path / "cut.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"domains": ["we')  # killed while it wrote
    second = session_of(name, domains=DOMAINS[::-1], targets=TARGETS[::-1], trace=tmp_path / "cut.jsonl")
    second.restore(tmp_path / "session.json")
    assert begun + go_on(second) == drawn
    assert second.weights() == whole.weights()
    assert [d.to_json() for d in replay(tmp_path / "cut.jsonl")] == [d.to_json() for d in replay(tmp_path / "whole.jsonl")]
    assert second.final().average().as_dict() == pytest.approx(whole.final().average().as_dict(), abs=1e-12)


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, session = tmp_path / "folder" / "session.json", session_of()
    go_on(session, 5000)
    session.save(path)
    before = path.read_text()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    go_on(session, 9000)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        session.save(path)
    monkeypatch.undo()
    assert path.read_text() == before
    json.loads(before)


def test_a_loop_may_count_for_itself() -> None:
    session = session_of("odm", step_tokens=500)
    assert session.weights() == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3))
    for tokens in range(500, 5001, 500):
        session.observe(tokens=tokens, step=tokens // 500, train_loss={"web": 6.0 - tokens / 1000, "code": 2.0})
    weights = session.weights()
    assert session.tokens == 5000
    assert weights["math"] == pytest.approx(1 / 3), "never measured"
    assert weights["web"] > weights["code"], "it falls, the other does not"


def test_counts_and_training_losses_are_told_by_what_was_drawn(tmp_path: Path) -> None:
    session = session_of("odm", trace=tmp_path / "trace.jsonl")
    session.drew("web", 100, 3.0)
    session.drew("web", 300, 2.0)
    session.drew("code", 100)
    session.observe(validation_loss={"puzzles": 1.5})
    session.drew("math", 50, 1.0)
    session.observe()
    _, first, second = (json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines())
    assert first["values"]["train_loss"]["data"] == [2.25, None, None]
    assert first["values"]["train_tokens"]["data"] == [400.0, 100.0, 0.0]
    assert first["values"]["validation_loss"]["data"] == [None, 1.5]
    assert second["values"]["train_loss"]["data"] == [None, None, 1.0]
    assert second["tokens"] == 550


def test_loss_weights_are_even_draws_times_factors() -> None:
    session = session_of("doremi")
    session.observe(tokens=500, excess_loss={"web": 1.0, "code": 0.0, "math": 0.2})
    factors = {name: session.loss_factor(name) for name in DOMAINS}
    assert sum(factors.values()) / 3 == pytest.approx(1)
    assert {name: factor / 3 for name, factor in factors.items()} == pytest.approx(session.weights())
    for _ in range(300):
        session.drew(session.next_domain(), 10)
    assert session._drawn.tolist() == pytest.approx([1000, 1000, 1000], abs=10)
    assert session_of("odm").loss_factor("web") == 1.0


def test_even_draws_keep_what_there_is_of_a_domain() -> None:
    session = session_of("doremi", available={"math": 0.1 * TOKENS})
    go_on(session)
    drawn = dict(zip(session.setup.domains, session._drawn, strict=True))
    assert drawn["math"] <= 0.1 * TOKENS + 400
    assert drawn["web"] == pytest.approx(drawn["code"], rel=0.02)


def test_what_was_drawn_counts_against_what_there_is() -> None:
    """The loop drew more of a domain than it was told to; the rest of the run gets less of it."""
    session = session_of("static", prior={"web": 0.5, "code": 0.3, "math": 0.2}, available={"math": 20_000}, floor=0.0)
    session.drew("math", 19_000)
    session.observe()
    assert session.weights()["math"] == pytest.approx(1000 / 81_000)


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({"train_los": {"web": 1.0}}, "no signal 'train_los'.*Did you mean 'train_loss'"),
        ({"train_loss": {"wbe": 1.0}}, "'train_loss' names the domain 'wbe'.*Did you mean 'web'"),
        ({"train_loss": {"web": 1.0}, "influence": {"web": {"cod": 1.0}}}, "names the domain 'cod'"),
        ({"train_loss": {"web": 1.0}, "validation_loss": {"code": 1.0}}, "names the target 'code'"),
        ({"train_loss": [1.0, 2.0]}, r"'train_loss' has shape \(2,\)"),
        ({"train_loss": {"web": "high"}}, "no array of numbers"),
        ({"train_loss": {"web": {"code": 1.0}}}, "no array of numbers"),
        ({"train_loss": {"web": float("inf")}}, "infinite"),
        ({"validation_loss": {"web": 1.0}}, "needs the signal 'train_loss'"),
    ],
)
def test_signals_that_make_no_sense_are_named(signals: dict[str, Any], message: str) -> None:
    session = session_of()
    with pytest.raises((ConfigError, DataError), match=message):
        session.observe(tokens=500, **signals)
    assert session.controller.calls == 0, "nothing was taken in"
    session.observe(tokens=500, train_loss={"web": 1.0})


def test_settings_that_make_no_sense_are_named(tmp_path: Path) -> None:
    for changes, message in (
        ({"controller": "odn"}, "Did you mean 'odm'"),
        ({"domains": "web"}, "lists of names"),
        ({"prior": {"web": 1.0}}, "`prior` is over web"),
        ({"options": {"windo": 3}}, "Did you mean 'window'"),
    ):
        with pytest.raises(ConfigError, match=message):
            session_of(**changes)  # type: ignore[arg-type]
    session = session_of()
    with pytest.raises(ConfigError, match="Did you mean 'code'"):
        session.drew("cod", 5)
    with pytest.raises(DataError, match="told 0 tokens"):
        session.drew("code", 0)
    with pytest.raises(DataError, match="loss of 'code' is nan"):
        session.drew("code", 5, float("nan"))
    with pytest.raises(DataError, match="no saved session"):
        session.restore(tmp_path / "none.json")
    session.save(tmp_path / "saved.json")
    for changes, message in (
        ({"tokens": 7 * TOKENS}, "`tokens`"),
        ({"domains": ["web", "code", "law"]}, "`domains`"),
        ({"prior": dict.fromkeys(DOMAINS, 1 / 3)}, "`prior`"),
        ({"controller": "static"}, "controller"),
        ({"options": {"window": 3}}, "options"),
        ({"trace": tmp_path / "another.jsonl"}, "holds fewer calls"),
    ):
        with pytest.raises(DataError, match=message):
            session_of(**changes).restore(tmp_path / "saved.json")  # type: ignore[arg-type]
    (tmp_path / "broken.json").write_text('{"session": 1')
    with pytest.raises(DataError, match="not JSON"):
        session.restore(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match="no session of version 1"):
        session.restore(tmp_path / "other.json")


def test_a_replay_without_the_signals_it_needs_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with pytest.raises(DataError, match="holds no trace"):
        replay(path)
    session = session_of(trace=path)
    session.observe(tokens=500, train_loss={"web": 1.0})
    with pytest.raises(DataError, match="needs the signal 'gate_load'"):
        replay(path, "gate_load")
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match="damaged"):
        replay(path)


def test_needs_are_plain_names() -> None:
    assert session_of("odm").needs == {"train_loss"}
    assert session_of("static").needs == frozenset()
    assert {signal.value for signal in Signal} >= {str(name) for name in session_of("dga").needs}
    assert isinstance(session_of().decision.mixture, Mixture)


def test_a_session_loads_no_heavy_library() -> None:
    code = "import mixopt.online, sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    code = (
        "from mixopt.online import Session; s = Session(['a', 'b'], 'odm', tokens=9); s.observe(tokens=1, train_loss={'a': 1.0}); " + code
    )
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "ray", "mlflow", "scipy", "sqlalchemy", "datasets", "polars", "lightgbm"}
