"""Trains trials on a Ray cluster: one plain task per pack, on a cluster of its own on this machine or on one that is already running.

Plain tasks rather than actors or Ray Tune: a pack is idempotent and keeps its own checkpoints, so Ray only has to run it again when its
worker is lost. A Python exception is never retried by Ray; the pack itself turns it into a typed failure. The trade-off: driver and workers
must share the store.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError, RunError
from mixopt.runner import Capacity, Evaluation
from workers.convert import CHECKPOINT_SECONDS
from workers.pack_runner import Job, PackRunner
from workers.packing import Device
from workers.train_pack import TrialResult, run_pack

MAX_RETRIES = 3
"""How often a pack whose worker died is run again; each time it goes on from its checkpoints."""

WORKER_ENVIRONMENT = {
    # One process per core beats threads (packed-training.md, section 5).
    "OMP_NUM_THREADS": "1",
    # glibc reads these when a process starts. Without them it returns every large tensor to the kernel and faults it in again at the next
    # step: 1.30 to 1.35 times slower for packs of small steps (section 1).
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

LOCAL_SETTINGS = {
    # Ray's switch for operating systems with nosy firewalls: every port listens on loopback only. Read when Ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Ray's future default; setting it keeps the warning about it away.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of a local cluster, where the user has not set it."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Jobs and results are a few kilobytes; Ray would otherwise claim 30% of the memory."""

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray's job manager for the process of a job."""

CONNECT_SECONDS = 5.0
PROBE_SECONDS = 45.0
"""Ray itself tries for two minutes or more before it gives up on an address, and may end the process."""


PROBE_MARK = "resources: "
PROBE_SCRIPT = f"""
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print({PROBE_MARK!r} + json.dumps({{**ray.cluster_resources(), "nodes": sum(node["Alive"] for node in ray.nodes())}}))
"""


class RayRunner(PackRunner[Any]):
    """The Runner on Ray.

    Args:
        address: None: a cluster of its own on this machine, ended by `close`; "auto", "host:port" or "ray://host:port": one that runs, which
            `close` leaves alone. A connection that the process already has is used whatever the address.
        cpus: cores of a cluster of its own; None: all.
        Others as `PackRunner`.

    A pack takes one core, or one GPU where the cluster has any.

    Raises:
        RunError: the address does not answer within a minute, or the cluster has no core to offer.
    """

    def __init__(
        self,
        store: Path,
        catalog: Mapping[str, Path],
        evaluations: Mapping[str, Sequence[Evaluation]],
        pack_size: int | None = None,
        address: str | None = None,
        cpus: int | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self._temporary: Path | None = None
        self._owned = False
        try:
            self._ray = self._connect(address, cpus)
            device, slots = self._resources()
            super().__init__(store, catalog, evaluations, pack_size, slots, device, checkpoint_seconds)
        except BaseException:
            self._shut_down()
            raise
        self._task = self._ray.remote(
            num_cpus=1,
            num_gpus=1 if device == "cuda" else 0,
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
            runtime_env={"env_vars": WORKER_ENVIRONMENT},
        )(run_pack)

    def capacity(self) -> Capacity:
        """Follows nodes that joined or left the cluster."""
        self._slots = self._resources()[1]
        return super().capacity()

    def _connect(self, address: str | None, cpus: int | None) -> Any:
        """The ray module, connected."""
        if address is None:
            # The token stays in memory; Ray would write one that everybody may read.
            for name, value in {**LOCAL_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
                os.environ.setdefault(name, value)
        import ray

        if ray.is_initialized():
            return ray
        if address is None:
            _read_settings_again()
        self._owned = True
        with _own_sigterm():
            self._init(ray, address, cpus)
        return ray

    def _init(self, ray: Any, address: str | None, cpus: int | None) -> None:
        if address is None:
            # Ray's sockets live below; their paths may have 107 characters.
            self._temporary = Path(tempfile.mkdtemp(prefix="mixopt-"))
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level="ERROR",
                log_to_driver=False,
                _temp_dir=str(self._temporary),
                # Without it Ray runs a pack that needs too much memory again for ever; `PackRunner` makes packs smaller instead.
                _system_config={"task_oom_retries": 1},
            )
        else:
            if JOB_VARIABLE not in os.environ:  # the cluster that a job runs in is there
                probe(address)
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        _silence_notices()

    def _resources(self) -> tuple[Device, int]:
        """Device and number of packs that can run at once.

        Raises:
            RunError: there is no core, so that tasks would wait for ever.
        """
        resources = self._ray.cluster_resources()
        cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if cores < 1:
            raise RunError(
                "The Ray cluster offers no core for a trial.", "Start a worker node, or the head with `--num-cpus` of 1 or more."
            )
        return ("cuda", min(gpus, cores)) if gpus >= 1 else ("cpu", cores)

    def _launch(self, job: Job) -> Any:
        return self._task.remote(job)

    def _wait(self, handles: Sequence[Any], seconds: float) -> Collection[Any]:
        if not self._ray.wait(handles, num_returns=1, timeout=seconds)[0]:
            return []
        ended: list[Any] = self._ray.wait(handles, num_returns=len(handles), timeout=0)[0]
        return ended

    def _collect(self, handle: Any) -> list[TrialResult]:
        results: list[TrialResult] = self._ray.get(handle)
        return results

    def _withdraw(self, handle: Any) -> None:
        self._ray.cancel(handle)

    def _shut_down(self) -> None:
        """Leaves or ends what `_connect` joined or started; never `ray stop`, which ends every Ray of the machine."""
        if self._owned:
            import ray  # not `self._ray`, which an interrupted start never set

            ray.shutdown()
            self._owned = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM: `ray.init` puts its own in place, which aborts before the record is consistent."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Without a handler of our own, Ray's at least ends its cluster; and only the main thread may set one.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _read_settings_again() -> None:
    """Makes Ray follow `LOCAL_SETTINGS` where it was imported before they were set: it read some of them then, and would listen beyond this
    machine and refuse its own token. Ray does the same for the token where it turns authentication on by itself.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined] # compiled, without types

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, not ray_constants.IS_WINDOWS_OR_OSX
    )


def _silence_notices() -> None:
    """Keeps Ray's notices about lost workers off standard output, which is for the answer of a command; no setting of Ray's does.

    They are printed by a name of this private module, and by nothing else once `log_to_driver` is off. What they tell is in Ray's logs,
    and reaches the user as the typed failure of a trial once retries did not help.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *_, **__: None


def probe(address: str) -> dict[str, float]:
    """Makes sure within bounded time that a Ray cluster answers at `address`, by joining it from a process that can be ended.

    Returns:
        The cluster's resources as Ray names them (CPU, GPU, memory in bytes, ...), and `nodes`, how many machines are alive.

    Raises:
        ConfigError: the address is not one.
        RunError: nothing answers, or not a Ray that this one can join.
    """
    remedy = "Check `ray.address` and that the cluster runs (`ray status`), or leave it out for a cluster on this machine."
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"Ray address '{address}' is not 'auto', 'host:port' or 'ray://host:port'.", "Mend `ray.address`.")
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"No Ray cluster answers at {address}: {error}.", remedy) from error
    command = [sys.executable, "-c", PROBE_SCRIPT, address]
    try:
        joined = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise RunError(f"Nothing at {address} answered as a Ray cluster within {PROBE_SECONDS:.0f} seconds.", remedy) from error
    if "uthentication" in joined.stderr and joined.returncode:
        raise RunError(
            f"The Ray cluster at {address} refuses this process: it has no token, or another.",
            "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN to the token that the head was started with.",
        )
    if joined.returncode:
        reason = (joined.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"The Ray cluster at {address} could not be joined: {reason}", remedy)
    lines = [line for line in joined.stdout.splitlines() if line.startswith(PROBE_MARK)]
    resources: dict[str, float] = json.loads(lines[-1].removeprefix(PROBE_MARK))
    return resources
