"""Which redirects of web servers are followed: within a site, and to sites that the user allows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from clip_jax.errors import UserError, redacted

_ALLOWED = "CLIP_JAX_REDIRECTS"  # an environment variable, so that worker processes inherit it


def allow_redirects(sites: Iterable[str]) -> None:
    """Lets web servers redirect this process, and those that it starts, to other sites.

    Args:
      sites: the allowed sites. `hf.co` allows it and everything below it; `any` allows all.
    """
    os.environ[_ALLOWED] = ",".join(sites)


def trace_config() -> Any:
    """Returns an aiohttp trace config that turns a redirect to another site into a UserError."""
    import aiohttp
    from yarl import URL

    async def check(_: Any, __: Any, params: Any) -> None:
        headers = params.response.headers
        target = params.url.join(URL(headers.get("Location") or headers.get("URI") or ""))
        allowed = os.environ.get(_ALLOWED, "").replace(",", " ").split()
        is_allowed = any(_is_below(target.host, site) for site in allowed)
        if not (is_allowed or is_same_site(params.url, target)):
            raise UserError(
                f"{redacted(str(params.url))} redirects to another site, {target.scheme}://"
                f"{target.host}:{target.port}: name the files there, or allow it by "
                f"config.data.redirects=({str(target.host)!r},)"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return trace


def is_same_site(old: Any, new: Any) -> bool:
    """Returns whether a redirect stays on a site and is as secure.

    The hosts must be equal, or one a subdomain of the other. Scheme and port must be the same, or
    change from HTTP on port 80 to HTTPS on port 443.

    Args:
      old: the URL that was requested.
      new: the URL of the redirect.
    """
    is_related = _is_below(new.host, old.host) or _is_below(old.host, new.host)
    is_same_port = old.port == new.port and old.scheme == new.scheme
    is_upgraded = (old.scheme, old.port, new.scheme, new.port) == ("http", 80, "https", 443)
    return is_related and (is_same_port or is_upgraded)


def _is_below(host: str | None, site: str | None) -> bool:
    if not host or not site:
        return False
    host, site = host.lower(), site.lower()
    is_subdomain = host.endswith(f".{site}") and "." in site and not site.replace(".", "").isdigit()
    return site == "any" or host == site or is_subdomain
