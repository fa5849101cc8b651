"""The launcher file: Ray's own validator takes it, and what it copies and runs exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTAINERFILE = (ROOT / "infra" / "image" / "Containerfile").read_text(encoding="utf-8")


def launcher() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "ray-launcher.yaml").read_text(encoding="utf-8"))
    return config


def validated(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it touches a machine."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete: dict[str, Any] = prepare_config(config)
    validate_config(complete)
    return complete


def test_rays_validator_takes_it() -> None:
    complete = validated(launcher())
    (workers,) = (kind["max_workers"] for kind in complete["available_node_types"].values())
    assert workers == len(launcher()["provider"]["worker_ips"])


@pytest.mark.parametrize("wrong", [{"file_mount": {}}, {"auth": {"ssh_usr": "mixopt"}}, {"provider": {"type": "local"}}])
def test_rays_validator_refuses_a_wrong_file(wrong: dict[str, Any]) -> None:
    # It raises what its parts raise: jsonschema's error or ClickException.
    with pytest.raises(Exception, match=r"file_mount|ssh_usr|head_ip"):
        validated({**launcher(), **wrong})


def test_it_copies_what_the_image_is_built_from_and_the_token() -> None:
    mounts = launcher()["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "infra/secrets/ray_token"
    assert all(remote == f"~/mixopt/{local}" and (ROOT / local).exists() for remote, local in mounts.items())
    copied = {source for line in re.findall(r"^COPY (.+)$", CONTAINERFILE, flags=re.MULTILINE) for source in line.split()[:-1]}
    assert {source for source in copied if not any(Path(source).is_relative_to(local) for local in mounts.values())} == set()


def test_it_starts_ray_with_tokens_and_options_that_exist() -> None:
    from ray.scripts.scripts import start

    options = {option for parameter in start.params for option in parameter.opts}
    head, worker = launcher()["head_start_ray_commands"][-1], launcher()["worker_start_ray_commands"][-1]
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token ray start" in command
        assert set(re.findall(r"--[\w-]+", command)) <= options
    assert "--dashboard-host=127.0.0.1" in head
    # Without it the launcher's workers would not be known to the head's autoscaler.
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "chmod 600 ~/.ray/auth_token" in launcher()["setup_commands"]
