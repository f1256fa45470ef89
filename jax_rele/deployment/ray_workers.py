"""Batch scoring by the actors of a Ray cluster. Ray starts and restarts the processes; the shards are ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_rele import extras
from jax_rele.data.sources.files import is_remote
from jax_rele.deployment.batch import ROWS, Progress, Worker, predict_shards
from jax_rele.errors import UserError
from jax_rele.types import ReadOptions

RESTARTS = 10
"""How often a worker that died is started again; what it had judged is kept."""


def predict_on_ray(
    bundle: str | Path,
    source: str,
    output: str | os.PathLike,
    *,
    address: str = "local",
    workers: int = 0,
    reading: ReadOptions = ReadOptions(),
    rows: int = ROWS,
    cores: int = 1,
    max_unknown: float = 0.25,
) -> Progress:
    """Judges all shards of the pairs of a source.

    Args:
      bundle, source, output, reading, rows, max_unknown: as of `predict_shards`; every machine of the cluster must see
        the files.
      address: of the cluster, e.g. `auto` or `ray://HOST:10001`; `local` starts one in this process.
      workers: how many; 0 is as many as the cluster has cores for.
      cores: of a worker.

    Raises:
      UserError: the extra `ray` is not installed, the cluster is not reached, or a worker died too often.
    """
    extras.require("ray", "clusters", "ray")
    import ray

    # The scheduler's own check of working folders is of no use to processes that read absolute paths.
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: cannot reach the cluster: {str(error).splitlines()[0]}") from None
    options: dict[str, Any] = {"reading": reading, "rows": rows, "threads": cores, "max_unknown": max_unknown}
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        remote = ray.remote(num_cpus=cores, max_retries=RESTARTS, retry_exceptions=False)(_work)
        paths = [path if is_remote(path) else os.path.abspath(path) for path in (str(bundle), os.fspath(output))]
        here = os.path.abspath(source) if os.path.exists(source) else source
        tasks = [remote.remote(paths[0], here, paths[1], Worker(number, count), options) for number in range(count)]
        try:
            done = ray.get(tasks)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, UserError) else UserError(f"--ray: {str(cause).splitlines()[0]}") from None
        except ray.exceptions.RayError as error:
            raise UserError(
                f"--ray: a worker died more than {RESTARTS} times: {str(error).splitlines()[0]}; the same command "
                "resumes"
            ) from None
    finally:
        ray.shutdown()
    # The last to end saw all shards; counted once more, as two may end at the same time.
    last = predict_shards(bundle, source, output, **options)
    return Progress(sum(each[0] for each in done) + last.judged, sum(each[1] for each in done), last.finished)


def _work(bundle: str, source: str, output: str, worker: Worker, options: Mapping[str, Any]) -> tuple[int, int]:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    progress = predict_shards(bundle, source, output, worker=worker, **options)
    return progress.judged, progress.skipped
