"""Servers on this machine are reached directly, whatever HTTP_PROXY says: a proxy knows nothing of them."""

from __future__ import annotations

from collections.abc import Mapping

# For `mounts` of an httpx client: no proxy for these.
PAST_PROXIES: Mapping[str, None] = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
