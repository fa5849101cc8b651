"""The compose file: every service is checked, restarted, unprivileged and closed, and what it names exists."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
TEXT = (INFRA / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONTAINERFILE = (INFRA / "image" / "Containerfile").read_text(encoding="utf-8")


def test_it_has_the_services_of_a_cluster_and_no_version_key() -> None:
    assert set(SERVICES) == {"postgres", "mlflow", "head", "worker", "gpu-worker"}
    assert "version" not in COMPOSE


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_checked_restarted_limited_and_unprivileged(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["user"] not in ("root", "0", "0:0")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert "privileged" not in service
    assert "network_mode" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_and_a_port_is_published_on_loopback_only(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":\d+(\.\d+)+(-\w+)?$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert ("pull_policy" in service) == service["image"].startswith("mixopt:")


def test_the_image_carries_the_version_of_mixopt() -> None:
    from mixopt import __version__

    assert {service["image"] for service in SERVICES.values() if "mixopt" in service["image"]} == {
        f"mixopt:{__version__}-cpu",
        f"mixopt:{__version__}-gpu",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_declared(name: str) -> None:
    service = SERVICES[name]
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert {config["source"] for config in service.get("configs", [])} <= set(COMPOSE["configs"])
    named = {volume.split(":")[0] for volume in service.get("volumes", []) if not volume.startswith("$")}
    assert named <= set(COMPOSE["volumes"])
    assert all(
        SERVICES[other]["healthcheck"] and how == {"condition": "service_healthy"} for other, how in service.get("depends_on", {}).items()
    )


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_uses_the_secrets_it_is_given_and_no_others(name: str) -> None:
    service = SERVICES[name]
    used = set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump([service.get("command"), service["environment"]])))
    assert used == set(service["secrets"])


def test_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        for variable, value in service["environment"].items():
            if re.search("PASSWORD|TOKEN|SECRET|KEY", variable):
                assert value.startswith("/run/secrets/"), variable
    assert not re.search(r"://\w+:[^@/\s]+@", TEXT), "a password in an address"
    assert all(secret["file"].startswith("secrets/") for secret in COMPOSE["secrets"].values())
    ignored = subprocess.run(
        ["git", "check-ignore", "infra/secrets/ray_token", "infra/.env"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if (ROOT / ".git").exists():
        assert len(ignored.stdout.split()) == 2


def test_authentication_is_on() -> None:
    for name in ("head", "worker", "gpu-worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert SERVICES[name]["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "--app-name basic-auth" in SERVICES["mlflow"]["command"][-1]


def test_jobs_cannot_reach_the_database() -> None:
    assert COMPOSE["networks"]["database"]["internal"] is True
    assert {name for name, service in SERVICES.items() if "database" in service["networks"]} == {"postgres", "mlflow"}
    assert SERVICES["postgres"]["networks"] == ["database"]


def test_fresh_volumes_belong_to_the_user_of_the_image() -> None:
    mounts = {
        volume.split(":")[1] for name in ("mlflow", "head", "worker") for volume in SERVICES[name]["volumes"] if not volume.startswith("$")
    }
    (made,) = re.findall(r"install --directory --owner=mixopt --group=mixopt (.+)$", CONTAINERFILE, flags=re.MULTILINE)
    assert mounts == set(made.split())


def test_variables_are_explained_in_the_example() -> None:
    example = (INFRA / ".env.example").read_text(encoding="utf-8")
    explained = dict(re.findall(r"^(\w+)=(.*)$", example, flags=re.MULTILINE))
    used = re.findall(r"(?<!\$)\$\{(\w+)(:[-?])([^}]*)\}", TEXT)
    assert {name for name, _, _ in used} == set(explained)
    for name, kind, default in used:
        # What must be set is empty there; what has a default shows it.
        assert explained[name] == ("" if kind == ":?" else default)


def test_secrets_are_made_once_and_for_the_owner(tmp_path: Path) -> None:
    shutil.copy(INFRA / "secrets.sh", tmp_path)

    def made() -> dict[str, str]:
        subprocess.run(["sh", "secrets.sh"], cwd=tmp_path, check=True)
        return {path.name: path.read_text(encoding="ascii") for path in (tmp_path / "secrets").iterdir()}

    first = made()
    assert set(first) == set(COMPOSE["secrets"])
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in first.values())
    assert len(set(first.values())) == len(first)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o444}
    (tmp_path / "secrets" / "ray_token").unlink()
    second = made()
    assert second.pop("ray_token") != first.pop("ray_token")
    assert second == first
