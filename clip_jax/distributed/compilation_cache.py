"""The persistent cache of compiled programs."""

from __future__ import annotations

from clip_jax.io import files


def use_compilation_cache() -> None:
    """Turns on JAX's persistent cache, unless JAX_COMPILATION_CACHE_DIR or the user set one."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(files.cache_folder("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
