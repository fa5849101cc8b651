"""Addresses, as s3://bucket/file or of a server, and that no secret of theirs is kept or shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def is_url(location: str) -> bool:
    """Whether a location is an address, as s3://bucket/file, and no path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def without_secret(location: str) -> str:
    """Resolved files are kept and shown, so no password may be in one."""
    if is_url(location) and urlsplit(location).password is not None:
        raise ValueError(
            "a password in an address; leave it out and give credentials in the environment, as the file system's driver reads them"
        )
    return location


def without_login(address: str) -> str:
    """An address without user and password; MLflow takes them from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as well."""
    parts = urlsplit(address)
    return address if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
