"""Orbax on buckets: Amazon S3 beside Google Cloud Storage, without questions about the bucket.

Orbax 0.12 writes to `gs://` by tensorstore's driver, and refuses `s3://`, whose driver tensorstore
has, too. It also asks for metadata of the bucket itself, which accounts that may only read and
write objects do not get. Both is decided by a few functions, which `support_buckets` replaces.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from clip_jax.io.buckets import BUCKETS, as_path

COMMITTED = "commit_success.txt"  # orbax's mark of a complete checkpoint


@functools.cache
def support_buckets() -> None:
    """Makes orbax read and write checkpoints in buckets; paths on disk are as before.

    Raises:
      AttributeError: orbax has changed, and no longer has a function that is replaced.
    """
    replaced: dict[Any, dict[str, Any]] = {
        gcs_utils: {
            "_GCS_PATH_PREFIX": BUCKETS,
            "get_kvstore_for_gcs": store_spec,
            "is_hierarchical_namespace_enabled": lambda path: False,
            "rmtree": _remove_tree,
        },
        tensorstore_utils: {
            "_use_gcs_driver": lambda directory: directory.startswith(BUCKETS),
            "_normalize_path": _normalized,
        },
    }
    for module, functions in replaced.items():
        for name, function in functions.items():
            getattr(module, name)
            setattr(module, name, function)


def store_spec(address: str) -> dict[str, Any]:
    """Returns tensorstore's spec of a folder in a bucket, with the settings of the environment."""
    store, _, inner = address.partition("://")
    bucket, _, path = inner.partition("/")
    if store == "gs":
        driver = os.environ.get("TENSORSTORE_GCS_BACKEND", "gcs")
        return {"driver": driver, "bucket": bucket, "path": path}
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": path}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec["aws_region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # else a file is looked for first, with noise if none
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def _normalized(path: str) -> str:
    store, separator, inner = path.partition("://")
    return f"{store}://{os.path.normpath(inner)}" if separator else os.path.normpath(path)


def _remove_tree(path: Any, *, missing_ok: bool = False) -> None:
    """Removes a checkpoint, beginning with its mark: what is left after a kill is unfinished."""
    as_path(str(path)).remove_tree(first=COMMITTED)  # type: ignore[attr-defined]
