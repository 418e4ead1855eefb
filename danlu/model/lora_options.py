"""The options of an adapter. Which layers of a model they reach is lora_targets.py's to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, field_validator, model_validator

from danlu.config import Options

ALL_LINEAR = "all-linear"
# An alpha above so many times r is taken for a slip.
LARGEST_SCALE = 64

Rank = Annotated[int, Field(ge=1, le=4096)]
Alpha = Annotated[float, Field(gt=0)]


class LoraOptions(Options):
    """Low-rank adapters: W x + (alpha / r) B A x, with A and B trained (Hu et al. 2021, arXiv:2106.09685)."""

    # What TRL and PEFT call some of these options.
    SPELLINGS: ClassVar[Mapping[str, str]] = {
        "lora_r": "r",
        "lora_target_modules": "target_modules",
        "lora_modules_to_save": "modules_to_save",
        "init_lora_weights": "init",
    }

    r: Rank = Field(8, description="rank; 4-8 for one kind of task, more for varied data")
    lora_alpha: Alpha = Field(16, description="scale times r; one to two times r is usual")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of the adapter's inputs dropped in training")
    target_modules: Literal["all-linear"] | str | tuple[str, ...] = Field(
        ALL_LINEAR,
        description="layers that get an adapter: all-linear, every linear layer but the head, learns best; or a list "
        "of names or their ends; or text, a regular expression for whole names, as in PEFT",
    )
    head: bool = Field(
        False, description="the output head gets an adapter as well; one tied to the embedding is untied by a merge"
    )
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="numbers of the blocks whose layers get an adapter, from 0; null is all of them"
    )
    rank_pattern: dict[str, Rank] = Field(
        {}, description="other ranks than r: the end of a layer's name, or a regular expression for it, and the rank"
    )
    alpha_pattern: dict[str, Alpha] = Field(
        {}, description="other alphas than lora_alpha: the end of a layer's name, or a regular expression, and alpha"
    )
    use_rslora: bool = Field(
        False, description="scale by alpha / sqrt(r) instead of alpha / r, which keeps high ranks as strong"
    )
    use_dora: bool = Field(
        False,
        description="length and direction of each weight learn apart (DoRA); through PEFT's own code, which is "
        "slower; few servers load it, so merge it",
    )
    modules_to_save: tuple[str, ...] | None = Field(
        None, description="modules that are trained whole and saved with the adapter, by name or its end, such as norm"
    )
    init: Literal["gaussian", "kaiming"] = Field(
        "gaussian", description="how A starts (standard deviation 1/r, or PEFT's default); B starts at zero"
    )

    trainable_token_indices: Literal["auto"] | tuple[int, ...] | None = Field(
        "auto",
        description="tokens whose rows of embedding and head are learnt as well; auto is the control tokens that the "
        "chat template writes and a base model does not know; null is none",
    )

    _respelt: tuple[str, ...] = PrivateAttr(())

    @property
    def respelt(self) -> tuple[str, ...]:
        """Names of others under which options were given."""
        return self._respelt

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, given: Any, handler: ModelWrapValidatorHandler[LoraOptions]) -> LoraOptions:
        if not isinstance(given, dict) or not (foreign := [name for name in cls.SPELLINGS if name in given]):
            return handler(given)
        for name in foreign:
            if (own := cls.SPELLINGS[name]) in given:
                raise ValueError(f"{name} and {own} are one option; leave one of them out")
        made = handler({cls.SPELLINGS.get(name, name): value for name, value in given.items()})
        made._respelt = tuple(foreign)
        return made

    @field_validator("init", mode="before")
    @classmethod
    def _true_is_pefts_default(cls, init: Any) -> Any:
        return "kaiming" if init is True else init

    @field_validator("target_modules", mode="after")
    @classmethod
    def _one_word_may_be_a_pattern(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """The command line makes a list of one word: no layer has such a name, so it is no list."""
        if isinstance(targets, tuple) and len(targets) == 1 and not re.fullmatch(r"[\w.]+", targets[0]):
            targets = targets[0]
        if isinstance(targets, str):
            _compiled(targets)
        return targets

    @field_validator("layers_to_transform", mode="before")
    @classmethod
    def _one_block_is_a_list(cls, blocks: Any) -> Any:
        return (blocks,) if isinstance(blocks, int) and not isinstance(blocks, bool) else blocks

    @field_validator("layers_to_transform", "modules_to_save")
    @classmethod
    def _some_are_named(cls, chosen: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
            raise ValueError("name each once; null for the default")
        return chosen

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_patterns(cls, patterns: dict[str, Any]) -> dict[str, Any]:
        for pattern in patterns:
            _compiled(pattern)
        return patterns

    @field_validator("trainable_token_indices")
    @classmethod
    def _tokens_are_some(cls, tokens: Any) -> Any:
        if isinstance(tokens, tuple) and (not tokens or min(tokens) < 0 or len(set(tokens)) < len(tokens)):
            raise ValueError("name each token id once, from 0 on; null for none")
        return tokens

    @model_validator(mode="after")
    def _alpha_is_sane(self) -> LoraOptions:
        if self.lora_alpha > LARGEST_SCALE * self.r:
            raise ValueError(
                f"lora_alpha {self.lora_alpha} is over {LARGEST_SCALE} times r {self.r}; one to two times r is usual"
            )
        return self


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
