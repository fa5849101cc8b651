"""The runbook's commands: what they name exists, and its ports are those of the files."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from mixopt.cli import app

ROOT = Path(__file__).resolve().parents[2]
# Continued lines joined.
RUNBOOK = (ROOT / "infra" / "runbook.md").read_text(encoding="utf-8").replace("\\\n", "")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text(encoding="utf-8"))
MANIFESTS = [
    thing for path in sorted((ROOT / "infra" / "kuberay").iterdir()) for thing in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def commands(program: str) -> list[list[str]]:
    """Words of every command that starts with `program`, in code blocks and in the text, without the shell's redirections."""
    blocks = [line for block in re.findall(r"^```sh\n(.*?)^```$", RUNBOOK, flags=re.MULTILINE | re.DOTALL) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", RUNBOOK, flags=re.MULTILINE | re.DOTALL))
    found = [shlex.split(text, comments=True) for text in (*blocks, *inline) if text.startswith(f"{program} ")]
    assert found, program
    return [list(itertools.takewhile(lambda word: word not in ("|", ">"), words)) for words in found]


def test_every_command_of_mixopt_exists_with_its_options() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    inside = [words[words.index("mixopt") :] for words in commands("docker") if "mixopt" in words]
    for _, name, *words in (*commands("mixopt"), *inside):
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, name


@pytest.mark.parametrize("name", ["start", "up", "down", "dashboard", "stop"])
def test_every_command_of_ray_exists_with_its_options(name: str) -> None:
    from ray.scripts.scripts import cli

    assert {words[1] for words in commands("ray")} == {"start", "up", "down", "dashboard", "stop"}
    options = {option for parameter in cli.commands[name].params for option in parameter.opts}
    for words in commands("ray"):
        if words[1] == name:
            assert {word.split("=")[0] for word in words if word.startswith("--")} <= options
            assert all((ROOT / word).exists() for word in words if word.endswith(".yaml"))


def test_compose_commands_name_services_profiles_and_variables_that_exist() -> None:
    profiles = {profile for service in COMPOSE["services"].values() for profile in service.get("profiles", [])}
    for words in (words for words in commands("docker") if words[1] == "compose"):
        if "exec" in words:
            assert words[words.index("exec") + 1] in COMPOSE["services"]
        if "--scale" in words:
            assert words[words.index("--scale") + 1].split("=")[0] in COMPOSE["services"]
        if "--profile" in words:
            assert words[words.index("--profile") + 1] in profiles


def test_images_are_built_under_the_names_that_the_files_use() -> None:
    built = {words[words.index("--tag") + 1] for words in commands("docker") if words[1] == "build"}
    used = {service["image"] for service in COMPOSE["services"].values()} - {COMPOSE["services"]["postgres"]["image"]}
    pods = set(re.findall(r"image: (\S+)", "".join(path.read_text(encoding="utf-8") for path in (ROOT / "infra" / "kuberay").iterdir())))
    assert built == used
    assert pods <= built
    assert all((ROOT / words[words.index("--file") + 1]).exists() for words in commands("docker") if words[1] == "build")


def test_kubernetes_commands_name_things_that_exist() -> None:
    names = {(thing["kind"], thing["metadata"]["name"]) for thing in MANIFESTS}
    for words in commands("kubectl"):
        if "--filename" in words:
            assert (ROOT / words[words.index("--filename") + 1]).exists()
        if "--namespace" in words:
            assert ("Namespace", words[words.index("--namespace") + 1]) in names
        if "rayjob" in words:
            assert ("RayJob", words[words.index("rayjob") + 1]) in names
        # KubeRay names the token's secret and the head's service after the cluster.
        for word in words:
            if word.startswith("service/"):
                assert ("RayCluster", word.removeprefix("service/").removesuffix("-head-svc")) in names
        if "get" in words:
            assert ("RayCluster", words[words.index("secret") + 1]) in names
    (create,) = (words for words in commands("kubectl") if "create" in words)
    wanted = {thing["name"] for thing in _secrets_of_pods()}
    assert create[create.index("generic") + 1 : create.index("generic") + 2] == list(wanted)


def _secrets_of_pods() -> list[dict[str, str]]:
    head = next(thing for thing in MANIFESTS if thing["kind"] == "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    return [source["secretRef"] for source in head["containers"][0]["envFrom"]]


def test_the_firewall_closes_every_port_that_ray_is_told_to_use() -> None:
    rules = re.findall(r"tcp dport \{ ([^}]+) \}", RUNBOOK)
    assert len(set(rules)) == 1
    closed = [tuple(int(end) for end in part.split("-")) for part in rules[0].split(", ")]
    for words in (words for words in commands("ray") if words[1] == "start" and len(words) > 3):
        ports = [int(value) for value in re.findall(r"-port=(\d+)", " ".join(words))] + [8265, 10001, 52365]
        assert [port for port in ports if not any(span[0] <= port <= span[-1] for span in closed)] == []
    # The rule that admits comes before the rule that drops.
    assert RUNBOOK.index("} accept") < RUNBOOK.index("} drop")


def test_published_ports_are_in_the_table() -> None:
    table = re.findall(r"^\| (\d+)", RUNBOOK, flags=re.MULTILINE)
    published = {port.split(":")[-1] for service in COMPOSE["services"].values() for port in service.get("ports", [])}
    assert published <= set(table)


def test_its_links_and_files_exist() -> None:
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", RUNBOOK, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", RUNBOOK)) <= anchors
    assert all((ROOT / path).exists() for path in re.findall(r"\binfra/[\w./-]+\.(?:yaml|sh|ini|md)\b", RUNBOOK))


def test_it_says_what_was_not_run() -> None:
    section = RUNBOOK[RUNBOOK.index("## What was checked, and what was not run") :]
    for part in ("image", "compose", "KubeRay", "launcher", "bare machines"):
        (row,) = re.findall(rf"^\| {part} \|.*$", section, flags=re.MULTILINE)
        assert all(cell.strip() for cell in row.strip("|").split("|"))
