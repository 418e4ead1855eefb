"""How large the towers are, and what they read."""

from __future__ import annotations

from pydantic import Field, model_validator

from danlu.config import Options


class TowerOptions(Options):
    """Two towers: an item's id, attributes and text; a user's attributes and text, and the history in order.

    The user's is a causal encoder over the items' own vectors (SASRec, Kang & McAuley 2018, arXiv:1808.09781).
    """

    dim: int = Field(64, ge=4, le=1024, description="numbers of a vector")
    layers: int = Field(2, ge=1, le=12, description="layers of the encoder of histories")
    heads: int = Field(2, ge=1, description="attention heads of a layer; they divide dim")
    history: int = Field(50, ge=1, le=1000, description="latest items of a user that are read")
    dropout: float = Field(
        0.5, ge=0, lt=1, description="share of the encoder's numbers left out at a time; few data want much"
    )
    temperature: float = Field(
        0.07, gt=0, description="what cosines are divided by before they are scores; less pays more heed to near misses"
    )
    full_softmax_items: int = Field(
        50_000, ge=1, description="up to so many items every one is compared; beyond, samples stand for the others"
    )
    negatives: int = Field(8192, ge=1, description="items that stand for all others, drawn by how often they are met")
    id_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="how often an item is shown without its id, so that new ones work by what else is known",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> TowerOptions:
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} do not divide dim {self.dim}")
        return self
