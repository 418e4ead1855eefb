"""A model by its matrices: what kinds of linear layers it has, how wide they are and how many.

Arithmetic alone; from which configuration they follow is configs.py's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD = "lm_head"
# What a layer reads: the states of the block, what attention made, what a feed-forward part made inside.
STATES, HEADS, INSIDE = "states", "heads", "inside"


@dataclass(frozen=True)
class Layer:
    """A kind of linear layer.

    Attributes:
        name: the end of its name.
        inside, outside: what it reads and what it makes.
        count: how many there are.
        has_bias: whether it adds a vector to what it makes.
        is_inner: whether it is of the feed-forward part, and not of attention.
        reads: what; layers that read the same have one input.
    """

    name: str
    inside: int
    outside: int
    count: int
    has_bias: bool = False
    is_inner: bool = False
    reads: str = STATES

    @property
    def parameters(self) -> int:
        """Of all of them."""
        return self.count * self.outside * (self.inside + self.has_bias)


@dataclass(frozen=True)
class Attention:
    """How tokens look at each other.

    Attributes:
        heads: of queries.
        key_width, value_width: numbers of a token's keys and values, all their heads together.
        query_width: likewise of its queries.
        output_width: likewise of what attention makes.
        windows: of each block with keys and values, how far it looks back; None is all the way.
        latent: numbers of a token that keys and values can be made from (MLA); 0 where they cannot.
        linear_blocks: how many blocks carry a state instead of keys and values.
        state: numbers of such a state, whatever the length.
        has_norms: whether queries and keys are normed.
    """

    heads: int
    query_width: int
    key_width: int
    value_width: int
    output_width: int
    windows: tuple[int | None, ...]
    latent: int = 0
    linear_blocks: int = 0
    state: int = 0
    has_norms: bool = False


@dataclass(frozen=True)
class Experts:
    """Feed-forward parts of which each token takes a few.

    Attributes:
        blocks: that have them.
        count, chosen: how many there are, and how many a token takes.
        inner: width of one.
        each: weights of one.
        router: weights of the choice, of one block.
    """

    blocks: int
    count: int
    chosen: int
    inner: int
    each: int
    router: int

    @property
    def parameters(self) -> int:
        """Of all of them, with their routers."""
        return self.blocks * (self.count * self.each + self.router)


@dataclass(frozen=True)
class Shape:
    """A model by its matrices.

    Attributes:
        name: as it was asked for, or the directory's.
        blocks: how many blocks lie on each other.
        layers: the linear layers of the blocks.
        head: the layer that makes scores of tokens.
        is_tied: whether the head's matrix is the embedding's.
        embedding: weights of the embeddings, of positions as well.
        others: weights that are in no linear layer, no expert and no embedding: norms.
        norms: of a block, each as wide as the model.
        has_layer_norms: whether its norms are LayerNorm, and not RMSNorm.
        is_gated: whether its feed-forward parts multiply what two layers make.
        attention: how tokens look at each other.
        takes_kernels: whether its norms and activations are those that fast kernels have.
        quantized: how its configuration says that its files are quantized; nothing where they are not.
        held: bytes of a weight of its linear layers, where they stay in few bits when the files are read; else 0.
        held_ends: the same of embedding and head.
        experts: where a token takes some of many feed-forward parts; no adapter reaches them.
    """

    name: str
    blocks: int
    layers: tuple[Layer, ...]
    head: Layer
    is_tied: bool
    embedding: int
    others: int
    attention: Attention
    norms: int = 2
    has_layer_norms: bool = False
    is_gated: bool = True
    experts: Experts | None = None
    takes_kernels: bool = True
    quantized: str = ""
    held: float = 0
    held_ends: float = 0

    @property
    def width(self) -> int:
        """Numbers of a token between blocks."""
        return self.head.inside

    @property
    def vocabulary(self) -> int:
        return self.head.outside

    @property
    def linear(self) -> int:
        """Weights of the blocks' linear layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def expert_parameters(self) -> int:
        return 0 if self.experts is None else self.experts.parameters

    @property
    def own_head(self) -> int:
        """Weights of the head that are not the embedding's."""
        return 0 if self.is_tied else self.head.parameters

    @property
    def parameters(self) -> int:
        """All weights of the model."""
        return self.linear + self.expert_parameters + self.embedding + self.own_head + self.others

    @property
    def active(self) -> int:
        """Weights that a token passes through."""
        if self.experts is None:
            return self.parameters
        idle = self.experts.blocks * (self.experts.count - self.experts.chosen) * self.experts.each
        return self.parameters - idle

    def parts(self) -> dict[str, int]:
        """Where its weights are; the sum is all of them."""
        inner = sum(layer.parameters for layer in self.layers if layer.is_inner)
        found = {
            "embedding": self.embedding,
            "attention": self.linear - inner,
            "feed-forward": inner,
            "experts": self.expert_parameters,
            "norms": self.others,
            "head": self.own_head,
        }
        return {name: count for name, count in found.items() if count}
