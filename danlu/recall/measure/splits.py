"""Events -> what is known and what is to be found: by each user's last event, and by one moment for all.

By the last event alone, what others did later is known when a user is asked, which no system has (Ji et al. 2023, ACM
TOIS 41, on leakage); by one moment it is not, but users who came later have no history. So both are told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from danlu.errors import ConfigError, DataError
from danlu.recall.behaviour.matrix import Matrix


@dataclass(frozen=True, eq=False)
class Split:
    """Attributes:
    known: users with the items that channels may know. wanted: with those that are to be found; empty for users who are
        not asked.
    """

    name: str
    known: Matrix
    wanted: Matrix


def leave_one_out(users: Matrix) -> Split:
    """The last item of each user with two or more is to be found. users: as `Events.matrix` gives them, in order."""
    last = np.zeros(len(users.columns), np.bool_)
    last[users.starts[1:][users.sizes > 1] - 1] = True
    return Split("leave one out", users.only(~last), users.only(last))


def by_time(users: Matrix, share: float = 0.1) -> Split:
    """The latest events, so large a share of all, are to be found; all before them is known.

    Raises ConfigError for a share that is none, DataError where all events are of one moment.
    """
    if not 0 < share < 1:
        raise ConfigError(f"share {share}", allowed="above 0 and below 1")
    moment = np.quantile(users.times, 1 - share, method="higher") if len(users.times) else 0.0
    later = users.times >= moment
    if later.all():
        raise DataError("all events are of one time", fix="store events with their times, or leave the last one out")
    return Split("by time", users.only(~later), users.only(later))
