"""The contract of every exporter: what it writes, read back with the trainer's own rules, is the mixture that was asked for.

A new exporter joins by adding its reader to `READERS`; the test of the registry fails until it does.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import mixopt
from mixopt.errors import ConfigError, DataError, InfeasibleError
from mixopt.export import choose_schedule, export, export_search, exporter_names, get_exporter, write_export
from mixopt.export.base import ExportInput, decimal_weights
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.proposal import Effect, Proposal
from mixopt.trial import Source
from mixopt.verification import Verification

GOLDEN = Path(__file__).parents[1] / "golden" / "export"
Files = Mapping[str, str]


def make_context(domains: list[str], target_tokens: float = 20e9, max_epochs: float = 100.0) -> dict[str, object]:
    return {
        "name": "demo",
        "domains": [
            {
                "name": name,
                "group": "",
                "content_hash": f"{index:064x}",
                "target_tokens": target_tokens,
                "prepared_tokens": 1000 * (index + 1),
                "prepared_documents": 10,
                "max_epochs": max_epochs,
                "bounds": [0.0, 1.0],
            }
            for index, name in enumerate(domains)
        ],
        "budget_tokens": 30e9,
        "tokenizer": {"hash": "ab" * 32, "path": "tokenizer.json", "vocab_size": 8192},
        "versions": {"torch": "2.13.0"},
        "experiment_hash": "e" * 20,
        "objective": {"kind": "noise_scaled", "over": "targets", "pull": 0.05},
    }


def make_request(weights: Mapping[str, float], **changes: object) -> ExportInput:
    fields: dict[str, object] = {
        "schedule": Schedule.constant(Mixture.of(weights)),
        "arm": "proposal",
        "search_id": "5" * 20,
        "context": make_context(list(weights)),
    }
    return ExportInput(**{**fields, **changes})  # type: ignore[arg-type]


def make_proposal(schedule: Schedule) -> Proposal:
    return Proposal(
        schedule=schedule,
        objective=Effect(-3.0, -4.0, -2.0),
        effects={},
        near_optimal={},
        epochs={},
        binding=(),
        screened={},
        best_measured={"weights": {"web": 0.3, "code": 0.7}},
    )


def make_verification(recommended: str = "proposal") -> Verification:
    sentence = "The proposal won by 0.021 bits per byte."
    return Verification(
        source=Source("trained", "micro", 1_500_000),
        objective_unit="standard deviations of a seed",
        arms={},
        seeds={},
        missing={},
        losses={},
        comparisons=(),
        same=(),
        infeasible=(),
        winner="proposal",
        recommended=recommended,
        reason="it won",
        sentence=sentence,
    )


EXAMPLE = {"web": 0.55, "code": 0.2512345678912, "math": 0.1987654321088, "licences": 0.0}


def read_yaml(files: Files) -> dict[str, str]:
    (phase,) = yaml.safe_load(files["mixture.yaml"])["phases"]
    return {name: repr(weight) for name, weight in phase["weights"].items()}


def read_json(files: Files) -> dict[str, str]:
    (phase,) = json.loads(files["mixture.json"])["phases"]
    return {name: repr(weight) for name, weight in phase["weights"].items()}


def read_megatron(files: Files) -> dict[str, str]:
    """As Megatron does: the whole file split at white space; weight and prefix alternate; every weight is above 0."""
    blend = files["megatron_blend.txt"].split()
    assert len(blend) % 2 == 0
    pairs = list(zip(blend[::2], blend[1::2], strict=True))
    assert all(float(weight) > 0 for weight, _ in pairs)
    return {prefix.removesuffix("_text_document"): weight for weight, prefix in pairs}


def read_datasets(files: Files) -> dict[str, str]:
    """As `interleave_datasets` does: documents are drawn with the probabilities, each brings its domain's mean tokens."""
    tables = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(files["mixture_datasets.py"]).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    documents, means = tables["DOCUMENT_SHARES"], tables["MEAN_TOKENS"]
    assert sum(map(Decimal, map(repr, documents.values()))) == 1
    tokens = {name: share * means[name] for name, share in documents.items()}
    for name, share in tables["TOKEN_SHARES"].items():
        assert tokens[name] / sum(tokens.values()) == pytest.approx(share, abs=1e-6)
    return {name: repr(share) for name, share in tables["TOKEN_SHARES"].items()}


READERS: dict[str, Callable[[Files], dict[str, str]]] = {
    "yaml": read_yaml,
    "json": read_json,
    "megatron": read_megatron,
    "datasets": read_datasets,
}

# Some syntax or other would trip over each of these; a space is tested apart, because Megatron refuses it.
ODD_NAMES = ["naïve", "1.5", "yes", "a'b\"c", "#hash", "x:y", "null", "{domain}", "-dash", "%s", "a\\n"]


def test_provenance_holds_the_weights_per_level() -> None:
    context = make_context(list(EXAMPLE))
    for domain, path in zip(context["domains"], ["web", "stem/code", "stem/math", ""], strict=True):  # type: ignore[call-overload]
        domain["group"] = path
    groups = json.loads(export("json", make_request(EXAMPLE, context=context))["mixture.json"])["provenance"]["groups"]
    assert list(groups) == ["web", "stem", "stem/code", "stem/math"]
    assert groups["stem"] == pytest.approx({"weight": 0.45, "of_parent": 0.45, "natural": 0.5})
    assert groups["stem/code"] == pytest.approx({"weight": 0.251234568, "of_parent": 0.55829904, "natural": 0.25})
    comments = export("yaml", make_request(EXAMPLE, context=context))["mixture.yaml"]
    assert '# group "stem": {"weight": 0.45, ' in comments
    assert "groups" not in json.loads(export("json", make_request(EXAMPLE))["mixture.json"])["provenance"]


def test_every_exporter_has_a_reader_here() -> None:
    assert set(READERS) == set(exporter_names())


def test_an_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'megatron'"):
        get_exporter("megatro")
    with pytest.raises(ConfigError, match="Formats: datasets, json"):
        get_exporter("qqq")


@pytest.mark.parametrize("name", sorted(READERS))
class TestContract:
    def test_the_mixture_comes_back_without_zeros_and_sums_to_one(self, name: str) -> None:
        weights = READERS[name](export(name, make_request(EXAMPLE)))
        assert set(weights) == {"web", "code", "math"}
        assert sum(map(Decimal, weights.values())) == 1
        assert {key: float(value) for key, value in weights.items()} == pytest.approx({k: v for k, v in EXAMPLE.items() if v}, abs=1e-6)

    def test_odd_names_come_back_as_they_are(self, name: str) -> None:
        weights = {odd: 1 / len(ODD_NAMES) for odd in ODD_NAMES}
        back = READERS[name](export(name, make_request(weights)))
        assert {key: float(value) for key, value in back.items()} == pytest.approx(weights, abs=1e-6)

    def test_provenance_is_in_every_export(self, name: str) -> None:
        request = make_request(EXAMPLE, verification=make_verification())
        text = "".join(export(name, request).values())
        for part in ("5" * 20, "e" * 20, "ab" * 32, f"{1:064x}", mixopt.__version__, "The proposal won by 0.021 bits per byte."):
            assert part in text

    def test_what_was_not_verified_says_so(self, name: str) -> None:
        assert "Not verified" in "".join(export(name, make_request(EXAMPLE)).values())

    def test_a_weight_outside_its_bounds_is_refused_with_its_numbers(self, name: str) -> None:
        context = make_context(list(EXAMPLE))
        context["domains"][0]["bounds"] = [0.0, 0.5]  # type: ignore[index]
        with pytest.raises(InfeasibleError, match=r"'web' weighs 0\.55, its bounds are 0 to 0\.5"):
            export(name, make_request(EXAMPLE, context=context))
        context["domains"][0]["bounds"] = [0.6, 1.0]  # type: ignore[index]
        with pytest.raises(InfeasibleError, match=r"'web' weighs 0\.55, its bounds are 0\.6 to 1"):
            export(name, make_request(EXAMPLE, context=context))

    def test_rules_on_groups_are_kept(self, name: str) -> None:
        context = make_context(list(EXAMPLE))
        group = {"path": "stem", "level": 1, "members": ["code", "math"]}
        context["groups"] = [group | {"bounds": [0.5, 1.0]}]
        with pytest.raises(InfeasibleError, match=r"group 'stem' weighs 0\.45, its bounds are 0\.5 to 1"):
            export(name, make_request(EXAMPLE, context=context))
        context["groups"] = [group | {"shares": "natural", "split": {"code": 0.5, "math": 0.5}}]
        with pytest.raises(InfeasibleError, match=r"'code' is 0\.5583 of group 'stem', its given share is 0\.5"):
            export(name, make_request(EXAMPLE, context=context))
        context["groups"] = [group | {"split": {"code": EXAMPLE["code"] / 0.45, "math": EXAMPLE["math"] / 0.45}, "bounds": [0.4, 0.45]}]
        assert export(name, make_request(EXAMPLE, context=context))

    def test_limits_on_the_whole_are_kept(self, name: str) -> None:
        context = make_context(list(EXAMPLE))
        context["constraints"] = {"most_domains": 2}
        with pytest.raises(InfeasibleError, match=r"3 domains have weight, at most 2 may"):
            export(name, make_request(EXAMPLE, context=context))
        even = {"title": "the uniform mixture", "distance": 0.1, "weights": dict.fromkeys(EXAMPLE, 1 / len(EXAMPLE))}
        context["constraints"] = {"most_domains": 3, "near": even}
        with pytest.raises(InfeasibleError, match=r"it is 0\.3012 of the tokens away from the uniform mixture, at most 0\.1 are allowed"):
            export(name, make_request(EXAMPLE, context=context))
        context["constraints"] = {"most_domains": 3, "near": even | {"distance": 0.3013}}
        assert export(name, make_request(EXAMPLE, context=context))

    def test_a_broken_epoch_cap_is_refused_with_its_numbers(self, name: str) -> None:
        context = make_context(list(EXAMPLE), target_tokens=4e9, max_epochs=4.0)  # at most 4 * 4 / 30 = 0.5333 each
        with pytest.raises(InfeasibleError, match=r"'web' at weight 0\.55 repeats 4\.125 times, 4 allow at most 0\.5333"):
            export(name, make_request(EXAMPLE, context=context))

    def test_a_mixture_at_its_cap_is_exported(self, name: str) -> None:
        weights = {"web": 16 / 30 + 1e-9, "code": 14 / 30 - 1e-9}
        assert export(name, make_request(weights, context=make_context(list(weights), target_tokens=4e9, max_epochs=4.0)))

    def test_several_phases_are_expressed_or_refused(self, name: str) -> None:
        schedule = Schedule((Mixture.of({"web": 0.7, "code": 0.3}), Mixture.of({"web": 0.2, "code": 0.8})), (0.75, 0.25))
        request = make_request({"web": 0.7, "code": 0.3}, schedule=schedule)
        if not get_exporter(name).phases:
            with pytest.raises(ConfigError, match="2 phases"):
                export(name, request)
            return
        (text,) = export(name, request).values()
        phases = yaml.safe_load(text)["phases"]  # JSON is YAML
        assert phases == [
            {"fraction": 0.75, "weights": {"web": 0.7, "code": 0.3}},
            {"fraction": 0.25, "weights": {"web": 0.2, "code": 0.8}},
        ]

    def test_an_unknown_option_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="has no option 'colour'"):
            export(name, make_request(EXAMPLE, options={"colour": "red"}))

    def test_other_domains_than_the_search_has_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="Export a mixture of the same search"):
            export(name, make_request(EXAMPLE, context=make_context(["web", "other"])))

    def test_the_files_are_the_golden_ones(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a wanted change, write them anew: MIXOPT_UPDATE_GOLDEN=1 pytest tests/contracts/test_exporters.py."""
        monkeypatch.setattr(mixopt, "__version__", "0.1.0")
        request = make_request(EXAMPLE, verification=make_verification())
        request = ExportInput(**{**vars(request), "proposal": make_proposal(request.schedule)})
        folder = GOLDEN / name
        if os.environ.get("MIXOPT_UPDATE_GOLDEN"):
            write_export(name, request, folder)
        written = {path.name: path.read_bytes() for path in write_export(name, request, tmp_path)}
        assert written == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_megatron_refuses_what_it_cannot_read() -> None:
    with pytest.raises(ConfigError, match="splits its blend file at white space"):
        export("megatron", make_request({"two words": 0.5, "code": 0.5}))
    with pytest.raises(ConfigError, match=r"Write \{domain\}"):
        export("megatron", make_request(EXAMPLE, options={"prefix": "/data/all"}))
    with pytest.raises(ConfigError, match=r"ends in \.bin"):
        export("megatron", make_request(EXAMPLE, options={"prefix": "/data/{domain}.bin"}))


def test_megatron_writes_the_prefix_asked_for() -> None:
    text = export("megatron", make_request({"web": 0.25, "code": 0.75}, options={"prefix": "/d/{domain}/{domain}_ids"}))[
        "megatron_blend.txt"
    ]
    assert text == "0.25 /d/web/web_ids\n0.75 /d/code/code_ids\n"


def test_datasets_takes_mean_tokens_as_an_option_and_asks_for_them() -> None:
    context = make_context(["web", "code"])
    for domain in context["domains"]:  # type: ignore[attr-defined]
        del domain["prepared_documents"]
    weights = {"web": 0.5, "code": 0.5}
    with pytest.raises(ConfigError, match="mean tokens per document of 'web' are not known"):
        export("datasets", make_request(weights, context=context))
    files = export("datasets", make_request(weights, context=context, options={"mean_tokens": "web=300, code=100"}))
    assert "    'web': 0.25,\n    'code': 0.75,\n" in files["mixture_datasets.py"]
    for wrong in ("web", "web=0", "web=-1", "web=inf", "other=3"):
        with pytest.raises(ConfigError, match="Write NAME=NUMBER"):
            export("datasets", make_request(weights, context=context, options={"mean_tokens": wrong}))


@pytest.mark.slow
def test_datasets_code_draws_the_mixture_in_tokens() -> None:
    """Run as it is: 4,000 documents of 300 and of 100 tokens at 0.3 : 0.7 in tokens; the share of web lies within 5 sigma (0.05)."""
    datasets = pytest.importorskip("datasets")
    files = export("datasets", make_request({"web": 0.3, "code": 0.7}, options={"mean_tokens": "web=300,code=100"}))
    namespace: dict[str, object] = {}
    exec(compile(files["mixture_datasets.py"], "mixture_datasets.py", "exec"), namespace)
    domains = {
        "web": datasets.Dataset.from_dict({"tokens": [300] * 5}),
        "code": datasets.Dataset.from_dict({"tokens": [100] * 7}).to_iterable_dataset(),
    }
    tokens = [row["tokens"] for row in namespace["interleave"](domains).take(4000)]  # type: ignore[operator]
    assert len(tokens) == 4000  # both domains repeat for as long as the trainer asks
    assert sum(count for count in tokens if count == 300) / sum(tokens) == pytest.approx(0.3, abs=0.05)
    with pytest.raises(ValueError, match="no dataset for: code"):
        namespace["interleave"]({"web": domains["web"]})  # type: ignore[operator]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda values: sum(values) > 1e-3), st.integers(4, 12))
def test_decimal_weights_sum_exactly_and_move_less_than_one_digit(values: list[float], decimals: int) -> None:
    weights = {str(index): value / sum(values) for index, value in enumerate(values)}
    written = decimal_weights(weights, decimals)
    assert sum(map(Decimal, written.values())) == 1
    assert all(Decimal(text) > 0 for text in written.values())
    for name, weight in weights.items():
        assert abs(float(written.get(name, "0")) - weight) < 10.0**-decimals + 1e-12


def test_the_arm_exported_is_the_one_asked_for_or_recommended() -> None:
    proposal = make_proposal(Schedule.constant(Mixture.of({"web": 0.4, "code": 0.6})))
    context = {
        "natural": {"web": 0.9, "code": 0.1},
        "uniform": {"web": 0.5, "code": 0.5},
        "unimax": {"web": 0.5, "code": 0.5},
    }
    assert choose_schedule(context, proposal, None) == ("proposal", proposal.schedule)
    assert choose_schedule(context, proposal, make_verification("natural")) == (
        "natural",
        Schedule.constant(Mixture.of(context["natural"])),
    )
    assert choose_schedule(context, proposal, make_verification("natural"), "proposal") == ("proposal", proposal.schedule)
    assert choose_schedule(context, proposal, None, "best_measured")[1].average().as_dict() == {"web": 0.3, "code": 0.7}
    with pytest.raises(ConfigError, match="There are: proposal, best_measured, natural, uniform, unimax"):
        choose_schedule(context, proposal, None, "optimal")
    with pytest.raises(DataError, match="no proposal yet"):
        choose_schedule(context, None, None)


def test_a_recorded_search_is_exported_with_what_it_found(tmp_path: Path) -> None:
    weights = {"web": 0.4, "code": 0.6}
    context = make_context(list(weights)) | {"natural": {"web": 0.9, "code": 0.1}, "uniform": {"web": 0.5, "code": 0.5}, "unimax": weights}
    with History.open(tmp_path / "record.sqlite") as history:
        history.add_search("5" * 20, "demo", "name: demo")
        with pytest.raises(DataError, match="has no context"):
            export_search(history, "5" * 20, "json", tmp_path)
        history.save_document("5" * 20, "context", context)
        with pytest.raises(DataError, match="no proposal yet"):
            export_search(history, "5" * 20, "json", tmp_path)
        history.save_document("5" * 20, "proposal", make_proposal(Schedule.constant(Mixture.of(weights))).to_json())
        history.save_document("5" * 20, "verification", make_verification("natural").to_json())
        (recommended,) = export_search(history, "5" * 20, "json", tmp_path / "recommended")
        (proposed,) = export_search(history, "5" * 20, "json", tmp_path / "proposed", arm="proposal")
        with pytest.raises(ConfigError, match="There is no export format"):
            export_search(history, "5" * 20, "tom", tmp_path)
    assert json.loads(recommended.read_text())["phases"][0]["weights"] == {"web": 0.9, "code": 0.1}
    assert json.loads(recommended.read_text())["provenance"]["predicted_objective"] is None  # predicted for the proposal only
    assert json.loads(proposed.read_text())["phases"][0]["weights"] == weights
    assert json.loads(proposed.read_text())["provenance"]["predicted_objective"]["mean"] == -3.0
