"""Names, errors, and that asking for the Gaussian process loads neither torch nor LightGBM."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mixopt.errors import ConfigError
from mixopt.surrogates import get_surrogate, surrogate_names


def test_names() -> None:
    assert surrogate_names() == tuple(sorted(surrogate_names()))
    assert {"auto", "gaussian_process", "lightgbm", "log_linear", "power_law", "ridge", "scheffe"} <= set(surrogate_names())


def test_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no surrogate 'gausian'.*Did you mean 'gaussian_process'"):
        get_surrogate("gausian")


def test_unknown_option_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'depth'"):
        get_surrogate("lightgbm", depth=3)


def test_heavy_packages_stay_out_until_they_are_used() -> None:
    code = (
        "import sys; from mixopt.surrogates import get_surrogate; get_surrogate('gaussian_process'); get_surrogate('lightgbm');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightgbm', 'botorch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
