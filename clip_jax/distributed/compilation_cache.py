"""The persistent cache of compiled programs."""

from __future__ import annotations

from clip_jax.io import buckets, files


def use_compilation_cache() -> None:
    """Turns on JAX's persistent cache, unless JAX_COMPILATION_CACHE_DIR or the user set one."""
    import jax

    if folder := jax.config.values["jax_compilation_cache_dir"]:
        if folder.startswith(buckets.BUCKETS):
            buckets.as_path(folder)  # prepares the packages by which JAX reaches a bucket
    else:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
