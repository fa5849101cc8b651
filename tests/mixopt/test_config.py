"""The experiment file: everything wrong with it is said in one sentence that names field, value and remedy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from mixopt.config import json_schema
from mixopt.errors import ConfigError
from mixopt.experiment_file import load_experiment, parse_experiment
from mixopt.groups.rules import GroupRule
from mixopt.quantities import parse_bytes, parse_count

VALID: dict[str, Any] = {
    "name": "example",
    "output": "out",
    "budget_tokens": "30B",
    "domains": [
        {"name": "web", "path": "web/*.jsonl", "tokens": "20B"},
        {"name": "code", "path": ["a.parquet", "/data/b.parquet"], "tokens": 2e9, "bounds": [0.1, 0.6]},
    ],
    "targets": [{"name": "functions", "path": "t.parquet", "prompt_column": "prompt", "completion_column": "completion"}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(VALID)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = raw
    for part in parents:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    place[last] = value
    return raw


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(VALID))
    experiment = load_experiment(file)
    assert experiment.output == str(tmp_path / "out")
    assert experiment.domains[0].path == (str(tmp_path / "web/*.jsonl"),)
    assert experiment.domains[1].path == (str(tmp_path / "a.parquet"), "/data/b.parquet")


def test_the_resolved_file_reads_back_as_itself(tmp_path: Path) -> None:
    experiment = parse_experiment(VALID, tmp_path)
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/elsewhere")) == experiment


def test_a_domain_of_pairs_reads_back_as_itself_and_is_of_one_kind(tmp_path: Path) -> None:
    pairs = VALID["domains"][0] | {"prompt_column": "q", "completion_column": "a"}
    experiment = parse_experiment(changed("domains.0", pairs), tmp_path)
    assert [(domain.kind, domain.columns) for domain in experiment.domains] == [("completion", ("q", "a")), ("text", ("text",))]
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/elsewhere")) == experiment
    with pytest.raises(ConfigError, match="domain 'web' names both text_column and prompt_column"):
        parse_experiment(changed("domains.0", pairs | {"text_column": "body"}), tmp_path)


@pytest.mark.parametrize(("given", "read"), [(None, None), (0.003, 0.003), ("3e-3", 0.003), (1, 1.0), ("calibrated", "calibrated")])
def test_a_learning_rate_is_a_number_or_the_calibrated_one(given: Any, read: Any) -> None:
    """`3e-3` is text to YAML, which wants a dot in it."""
    experiment = parse_experiment(changed("proxy.learning_rate", given), Path("/"))
    assert experiment.proxy.learning_rate == read
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/")) == experiment


def test_environment_variables_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpus")
    assert parse_experiment(changed("domains.0.path", "${CORPUS}/web.jsonl"), tmp_path).domains[0].path == ("/corpus/web.jsonl",)
    monkeypatch.delenv("CORPUS")
    with pytest.raises(ConfigError, match=r"'domains\.0\.path' uses \$\{CORPUS\}, which is not set"):
        parse_experiment(changed("domains.0.path", "${CORPUS}/web.jsonl"), tmp_path)


@pytest.mark.parametrize(
    ("path", "key", "nearest"),
    [("nme", "nme", "name"), ("domains.0.token", "domains[0].token", "tokens"), ("search.startegy", "search.startegy", "strategy")],
)
def test_an_unknown_key_is_refused_with_the_nearest(path: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(changed(path, 1), Path("/"))
    assert f"'{key}'" in caught.value.message
    assert caught.value.hint == f"Did you mean '{nearest}'?"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("budget_tokens", "many", "'budget_tokens' is 'many': 'many' is not a count"),
        ("budget_tokens", -5, "'budget_tokens' is -5"),
        ("budget_tokens", ".inf", "not a count"),
        ("domains.0.tokens", 0, "'domains[0].tokens' is 0"),
        ("domains.0.bounds", [0.5, 0.2], "0 <= least <= largest <= 1"),
        ("domains.0.name", "a b", "'domains[0].name' is 'a b'"),
        ("domains.0.name", "code", "Domain names repeat: code"),
        ("proxy.tokens_per_step", 1000, "not a multiple of window 512"),
        ("proxy.tokens", 2000, "fewer than 8 steps"),
        ("proxy.learning_rate", "calibrate", "'calibrate' is no rate; write a number above 0, as 0.003, or `calibrated`"),
        ("proxy.learning_rate", 0, "'proxy.learning_rate' is 0: 0 is no rate"),
        ("proxy.learning_rate", float("inf"), "inf is no rate"),
        ("proxy.learning_rate", True, "'proxy.learning_rate' is True: a yes or no, where it does not belong"),
        ("search.stop_early", "soon", "'search.stop_early' is 'soon'"),
        ("verification.tokens", 2000, "`verification.tokens` is 2000, fewer than 8 steps of 1024"),
        ("targets.0.completion_column", None, "names only one of prompt_column and completion_column"),
        ("targets.0.text_column", "text", "names both text_column and prompt_column"),
        ("domains.0.prompt_column", "q", "domain 'web' names only one of prompt_column and completion_column"),
        ("objective.kind", "best", "'objective.kind' is 'best'"),
        ("tokenizer.vocab_size", 100, "'tokenizer.vocab_size' is 100"),
        ("domains", [VALID["domains"][0]], "'domains'"),
        ("domains.0.tokens", None, "domain 'web' has neither tokens nor bytes"),
        ("domains.0.tokens", "all", "'domains[0].tokens' is 'all'"),
        ("domains.0.tokens", float("inf"), "'domains[0].tokens' is inf: not a number of tokens above 0"),
        ("domains.0.tokens", [1], "'domains[0].tokens' is [1]: not a number of tokens above 0"),
        ("domains.0.bytes", "4TB", "domain 'web' has both tokens and bytes"),
        ("domains.0.bytes", "900B", "'domains[0].bytes' is '900B': '900B' is not a size"),
        ("domains.0.repeats", 0.5, "'domains[0].repeats' is 0.5"),
        ("domains.0.path", None, "domain 'web' has neither path nor hub"),
        ("domains.0.hub", {"dataset": "a/b"}, "domain 'web' has both path and hub"),
        ("domains.0", {"name": "web", "hub": {"dataset": "a/b"}, "tokens": 1}, "domain 'web' reads from the hub without a limit"),
        ("domains.0", {"name": "web", "path": "x", "tokens": "count", "max_bytes": "2GB"}, "tokens: count"),
        ("domains.0.path", "https://ann:secret@host/x.jsonl", "a password in an address"),
        ("output", "s3://bucket/run", "'output' is 's3://bucket/run': an address"),
        ("tokenizer.path", "s3://bucket/tokenizer.json", "name a file of this machine"),
        ("tokenizer", {"path": "x", "hub": "a/b"}, "both path and hub are given"),
        ("tokenizer.revision", "main", "revision belongs to hub"),
        ("targets.0.path", None, "target 'functions' has neither path nor hub"),
        ("domains.0.tokens", True, "'domains[0].tokens' is True: a yes or no, where it does not belong"),
        ("domains.0.max_epochs", True, "'domains[0].max_epochs' is True: a yes or no"),
        ("domains.0.max_epochs", float("nan"), "'domains[0].max_epochs' is nan"),
        ("domains.0.max_epochs", float("inf"), "'domains[0].max_epochs' is inf"),
        ("targets.0.weight", float("inf"), "'targets[0].weight' is inf"),
        ("proxy.tokens", 10**30, "'proxy.tokens' is 1000"),
        ("search.seed", 2**70, "'search.seed' is 1180591620717411303424"),
        ("domains.0.name", "ä/b", "'domains[0].name' is 'ä/b': write letters, digits"),
        ("domains.0.bounds", "0-1", "'domains[0].bounds' is '0-1': write a list"),
        ("domains.0.bounds", [0.3], "'domains[0].bounds' is [0.3]: it has too few values"),
        ("domains.0.path", "", "'domains[0].path[0]' is '': no path"),
        ("domains.0", "web", "'domains[0]' is 'web': write keys with values"),
        ("proxy", [1], "'proxy' is [1]: write keys with values"),
        ("output", " ", "'output' is ' ': no folder"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(changed(path, value), Path("/"))
    assert message in caught.value.message


def test_a_missing_key_is_named() -> None:
    raw = copy.deepcopy(VALID)
    del raw["domains"][0]["name"]
    with pytest.raises(ConfigError, match=r"Key 'domains\.?\[0\]\.name' is missing"):
        parse_experiment(raw, Path("/"))


def test_targets_are_the_objective_when_there_are_any() -> None:
    assert parse_experiment(VALID, Path("/")).objective_over == "targets"
    assert parse_experiment(changed("targets", []), Path("/")).objective_over == "domains"
    with pytest.raises(ConfigError, match="no targets are listed"):
        parse_experiment({**changed("targets", []), "objective": {"over": "targets"}}, Path("/"))


@pytest.mark.parametrize("text", ["${CORPUS", "${CORPUS-web}", "${}"])
def test_what_looks_like_a_variable_is_one(text: str) -> None:
    with pytest.raises(ConfigError, match=r"'output' is .* that begins no variable. Write \$\{NAME\}"):
        parse_experiment(changed("output", text), Path("/"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "holds a list"),
        ("", "holds a NoneType"),
        ("name: a\nsearch:\n  trials: 8\n  seed: 1\n  trials: 9\n", "key 'trials' occurs twice .* line 5"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_experiment(file)


def test_anchors_and_merged_keys_are_read(tmp_path: Path) -> None:
    """An overridden key of a merged mapping is no key that occurs twice, also where an inner mapping is merged before it is read."""
    file = tmp_path / "x.yaml"
    file.write_text(
        """
        name: merged
        output: out
        budget_tokens: 3e9
        domains:
          - &web {name: web, path: web.jsonl, tokens: 2e9, max_epochs: 2}
          - &code {<<: *web, name: code}
          - {<<: *code, name: prose, max_epochs: 3}
        """
    )
    experiment = load_experiment(file)
    assert [(domain.name, domain.tokens, domain.max_epochs) for domain in experiment.domains] == [
        ("web", 2e9, 2.0),
        ("code", 2e9, 2.0),
        ("prose", 2e9, 3.0),
    ]


def test_an_anchor_that_holds_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("name: &name [*name]\n")
    with pytest.raises(ConfigError, match="an anchor that holds itself"):
        load_experiment(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_experiment(tmp_path)


@pytest.mark.parametrize(
    ("text", "count"), [("3B", 3e9), ("250k", 250e3), ("1_000_000", 1e6), ("2.5e5", 250e3), ("1.5T", 1.5e12), (7, 7), ("12M", 12e6)]
)
def test_counts_are_written_as_people_do(text: Any, count: float) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    ("text", "size"), [("4.2TB", 4.2e12), ("300 GB", 3e11), ("1.5GiB", 1.5 * 2**30), ("2e9", 2e9), ("7k", 7000.0), (12, 12), ("1_000", 1e3)]
)
def test_sizes_are_written_as_people_do(text: Any, size: float) -> None:
    assert parse_bytes(text) == size


def test_addresses_stay_as_they_are(tmp_path: Path) -> None:
    """Relative to the file is what is a path; an address is not."""
    experiment = parse_experiment(changed("domains.0.path", ["s3://bucket/web/*.jsonl.zst", "more.jsonl"]), tmp_path)
    assert experiment.domains[0].path == ("s3://bucket/web/*.jsonl.zst", str(tmp_path / "more.jsonl"))


def test_a_domain_from_the_hub_keeps_its_pin_in_the_resolved_file(tmp_path: Path) -> None:
    hub = {"dataset": "HuggingFaceFW/fineweb", "config": "sample-10BT", "revision": "a" * 40}
    raw = changed("domains.0", {"name": "web", "hub": hub, "max_bytes": "2GB", "bytes": "44TB", "repeats": 3})
    domain = parse_experiment(raw, tmp_path).domains[0]
    assert domain.hub is not None
    assert (domain.hub.split, domain.max_bytes, domain.bytes, domain.repeats) == ("train", 2 * 10**9, 4.4e13, 3.0)
    experiment = parse_experiment(raw, tmp_path)
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/elsewhere")) == experiment


@pytest.mark.parametrize(("key", "nearest"), [("confg", "config"), ("datasets", "dataset"), ("trust_remote_code", None)])
def test_the_hub_section_knows_its_keys(key: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment(changed("domains.0", {"name": "web", "hub": {key: "x"}, "tokens": 1}), Path("/"))
    assert f"Unknown key 'domains[0].hub.{key}'" in caught.value.message
    assert caught.value.hint.startswith(f"Did you mean '{nearest}'" if nearest else "Valid keys there")


def test_the_schema_is_valid_and_describes_every_key() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert {"name", "domains", "budget_tokens", "output"} <= set(schema["required"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("uri", "resolved"), [("sqlite:///runs.db", "sqlite:////data/runs.db"), ("sqlite:////x/runs.db", "sqlite:////x/runs.db")]
)
def test_a_tracking_database_is_relative_to_the_file_as_everything_is(uri: str, resolved: str) -> None:
    assert parse_experiment(changed("tracking.uri", uri), Path("/data")).tracking.uri == resolved


def test_a_password_of_the_tracking_server_is_not_kept_with_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PASSWORD", "hunter2")
    raw = changed("tracking.uri", "https://ann:${MLFLOW_PASSWORD}@tracking.example:8443/base")
    experiment = parse_experiment(raw, Path("/data"))
    assert experiment.tracking.uri == "https://ann:hunter2@tracking.example:8443/base"
    kept = yaml.safe_load(experiment.to_yaml())
    assert kept["tracking"]["uri"] == "https://tracking.example:8443/base"
    assert "hunter2" not in experiment.to_yaml()


GROUPED: dict[str, Any] = changed("domains.1.group", "code/python") | {"levels": ["source", "topic"]}
GROUPED["domains"].append({"name": "c", "path": "c.jsonl", "tokens": "1B", "group": "code/c"})


def test_groups_are_read_with_their_rules(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    rules = {"code": {"shares": {"python": 0.7, "c": 0.3}, "bounds": [0.1, 0.4]}, "code/c": {"shares": "natural"}}
    file.write_text(yaml.safe_dump({**GROUPED, "groups": rules}, sort_keys=False))
    experiment = load_experiment(file)
    assert experiment.levels == ("source", "topic")
    assert experiment.group_rules == (
        GroupRule("code", (("python", 0.7), ("c", 0.3)), (0.1, 0.4)),
        GroupRule("code/c", "natural"),
    )
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/elsewhere")) == experiment


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"coed": {"shares": "natural"}}, "'groups' names 'coed', but no domain is in that group. Did you mean 'code'?"),
        ({"code": {"share": "natural"}}, "Unknown key 'groups.code.share' in the experiment file. Did you mean 'shares'?"),
        ({"code": {"shares": "naturally"}}, "'groups.code.shares' is 'naturally': write `natural`, or a share for every child"),
        ({"code": {"shares": {"python": "half", "c": 0.5}}}, "the share of 'python' is 'half'"),
        ({"code": {"shares": {"pyton": 0.5, "c": 0.5}}}, "name 'pyton', which is not in it. Did you mean 'python'?"),
        ({"code": {"shares": {"python": 0.5, "c": 0.4}}}, "The shares of group 'code' sum to 0.9."),
        (
            {"code": {"bounds": [0.4, 0.1]}},
            "'groups.code.bounds' is [0.4, 0.1]: [0.4, 0.1] must be two numbers with 0 <= least <= largest <= 1",
        ),
        (["code"], "'groups' is ['code']"),
    ],
)
def test_a_wrong_rule_on_a_group_is_named_with_its_place(groups: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_experiment({**GROUPED, "groups": groups}, Path("/"))
    assert message in str(caught.value)


@pytest.mark.parametrize("path", ["/code", "code/", "code//python", " / "])
def test_every_level_of_a_path_has_a_name(path: str) -> None:
    with pytest.raises(ConfigError, match="a level has no name; write levels as web/science/high"):
        parse_experiment(changed("domains.0.group", path), Path("/"))


def test_named_levels_are_as_many_as_the_deepest_path() -> None:
    with pytest.raises(ConfigError, match="Group 'code/python' of domain 'code' has 2 levels, but `levels` names 1"):
        parse_experiment({**GROUPED, "levels": ["source"]}, Path("/"))
