"""What an engine that answers keeps of its texts: keys and values, and the states of linear attention."""

from __future__ import annotations

from danlu.plan.shapes import Shape


def cache_bytes(
    shape: Shape, batch: int, length: int, number: float, is_latent: bool = False, forgets: bool = True
) -> float:
    """Of keys and values of `batch` texts of `length` tokens, and of what linear attention carries.

    Args:
        number: bytes of each; 8-bit ones have a float32 scale for each head and token besides.
        is_latent: only what they can be made from is kept (MLA).
        forgets: what no window reaches any more is given up; Danlu's engine keeps it.
    """
    of = shape.attention
    each = of.latent if is_latent and of.latent else of.key_width + of.value_width
    seen = sum(min(length, (window if forgets else None) or length) for window in of.windows)
    scales = 4 * 2 * of.heads if number == 1 else 0
    return batch * (seen * (each * number + scales) + of.linear_blocks * of.state * 4)
