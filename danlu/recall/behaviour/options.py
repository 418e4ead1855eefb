"""How likeness is drawn from what users did: one set of options for each way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from danlu.config import Options


class AskOptions(Options):
    """What counts of a user's own history."""

    recency_days: float | None = Field(
        None, gt=0, description="how long before a user's last event one counts half; none counts all alike"
    )


class ItemToItemOptions(AskOptions):
    """Of each item the most similar ones are kept."""

    neighbours: int = Field(200, ge=1, le=10_000, description="similar items kept of each item")
    user_items: int = Field(
        500,
        ge=2,
        description="latest items of a user that count; the work grows with their square, bots have thousands",
    )


class ItemCFOptions(ItemToItemOptions):
    """Items of the same users (Sarwar et al. 2001, WWW), users with many items counting less (Breese et al. 1998)."""

    half_days: float | None = Field(
        None,
        gt=0,
        description="time between two events of a user at which they count half for each other; none ignores it",
    )
    popularity: float = Field(
        0.5, ge=0, le=1, description="how much the other item's popularity is held against it; 0.5 is the cosine"
    )


class SwingOptions(ItemToItemOptions):
    """Items that pairs of users share who have little else in common (Yang et al. 2020, arXiv:2010.05525)."""

    alpha: float = Field(
        1.0, gt=0, description="added to what two users have in common; more lets large overlaps count"
    )
    item_users: int = Field(
        300, ge=2, description="latest users of an item that count; the work grows with their square"
    )


class EaseOptions(AskOptions):
    """A linear model of items from items in closed form (Steck 2019, arXiv:1905.03375), for up to 20,000 items."""

    neighbours: int = Field(1000, ge=1, le=20_000, description="weights kept of each item, the largest, of either sign")
    l2: float = Field(100.0, gt=0, description="how strongly weights are held small; fewer events want less")
    user_items: int = Field(500, ge=2, description="latest items of a user that count")


class UserCFOptions(AskOptions):
    """Items of similar users, common items counting less (Breese et al. 1998, UAI)."""

    neighbours: int = Field(100, ge=1, le=10_000, description="similar users who are asked")
    user_items: int = Field(500, ge=2, description="latest items of a user that count")
    item_users: int = Field(2000, ge=2, description="latest users of an item that are compared")


class HotOptions(Options):
    """What most users took up, of late."""

    half_days: float | None = Field(
        30.0, gt=0, description="age at which an event counts half; none counts all alike. Without times all do"
    )


Channel = Literal["item_cf", "swing", "user_cf", "ease", "hot"]


class BehaviourOptions(Options):
    """What is learnt of events when they are stored, and how."""

    channels: tuple[Channel, ...] = Field(
        ("item_cf", "swing", "user_cf", "hot"),
        description="ways of recommending that are made ready; ease is for few items",
    )
    counts: dict[str, float] = Field(
        default_factory=dict, description="what an event of a kind counts, as in buy=3; 0 leaves it out, others count 1"
    )
    tolerance: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="how far the popularity of an item may have moved before item_cf finds its neighbours anew after "
        "further events; 0 makes it what a new fit would be",
    )
    item_cf: ItemCFOptions = Field(default_factory=ItemCFOptions)
    swing: SwingOptions = Field(default_factory=SwingOptions)
    user_cf: UserCFOptions = Field(default_factory=UserCFOptions)
    ease: EaseOptions = Field(default_factory=EaseOptions)
    hot: HotOptions = Field(default_factory=HotOptions)
