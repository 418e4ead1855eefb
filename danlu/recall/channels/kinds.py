"""Every kind of channel; a new one is one file and one line here."""

from __future__ import annotations

from danlu.recall.channels.acted import acted_channels
from danlu.recall.channels.base import Channel, Making, Opened
from danlu.recall.channels.keywords import keyword_channels
from danlu.recall.channels.vectors import vector_channels

KINDS: tuple[Making, ...] = (keyword_channels, vector_channels, acted_channels)


def channels_of(opened: Opened) -> dict[str, Channel]:
    """Name -> channel, of all that a collection has."""
    return {channel.name: channel for make in KINDS for channel in make(opened)}
