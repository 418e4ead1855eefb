"""How much memory there is: "24GB", "80GiB", or a card by its name."""

from __future__ import annotations

import re

from danlu.errors import ConfigError, nearest

UNITS = {"": 1e9, "g": 1e9, "gb": 1e9, "gib": 2.0**30, "m": 1e6, "mb": 1e6, "mib": 2.0**20, "t": 1e12, "tb": 1e12}
# Gigabytes, as their makers sell them.
CARDS = {
    "t4": 16, "v100": 32, "p100": 16, "a10": 24, "a10g": 24, "l4": 24, "l40s": 48, "a40": 48, "a6000": 48, "a100": 80,
    "h100": 80, "h20": 96, "h200": 141, "b200": 180, "rtx3060": 12, "rtx3090": 24, "rtx4060": 8, "rtx4070": 12,
    "rtx4080": 16, "rtx4090": 24, "rtx5090": 32,
}  # fmt: skip


def memory_of(text: str) -> float:
    """Bytes. Raises ConfigError for what is neither a size nor a card."""
    word = re.sub(r"[\s_-]", "", text.lower()).removeprefix("nvidia").removeprefix("geforce")
    if found := re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower()):
        size = float(found[1]) * UNITS.get(found[2], 0)
        if size > 0 and f"rtx{word}" not in CARDS:
            return size
    size = CARDS.get(word) or CARDS.get(f"rtx{word}") or 0
    if size:
        return size * 1e9
    fix = nearest(word, CARDS)
    raise ConfigError(
        f"gpu={text}: neither a size nor a known card", allowed=f"24GB, 80GiB, {', '.join(CARDS)}", fix=fix
    )
