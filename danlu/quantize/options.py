"""What may be said about quantizing a model, and what follows from it: scheme and format. Reads nothing."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from danlu.config import Options, PathText, validate
from danlu.errors import ConfigError
from danlu.model.formats.format import Format
from danlu.model.formats.table import chosen
from danlu.model.grouped import Scheme
from danlu.plan.quantization import loss_of

Method = Literal["awq", "gptq", "awq+gptq", "rtn", "nf4"]
AUTO: Literal["auto"] = "auto"
FormatName = Literal["auto", "awq", "gptq", "compressed-tensors"]

GROUP = 64
# Methods that look at texts, and what each is written as where no format is named.
LOOKING = ("awq", "gptq", "awq+gptq")
OWN_FORMAT: dict[str, FormatName] = {"awq": "awq", "awq+gptq": "awq", "gptq": "gptq", "rtn": "compressed-tensors"}

# By width: mean divergence from the original that is refused, in nats a token, where none is named. What sound methods
# lose on small models stays below; files in which codes, zeros or scales are not where they belong lie above.
MAX_KL = {8: 0.1, 4: 1.0, 3: 4.0, 2: 8.0}
MAX_LOSS = "2%"
_OF_TEXT = ("calibration", "calibration_tokens", "calibration_length")


# What is tried where these are to be chosen. In 8 bits looking at text changes nothing that can be measured.
WIDTHS = (8, 4, 3)
TRIED = ("rtn", "awq", "gptq", "awq+gptq")


class Few(Options):
    """Weights in few bits: how they are kept, what they are found with, and what they may lose."""

    method: Any = Field(description="how codes are found")
    bits: Any = Field(description="of a weight: 8, 4, 3 or 2")
    group_size: int | None = Field(
        GROUP, ge=8, description="neighbouring inputs that share a scale; null is all of a row"
    )
    symmetric: bool | None = Field(
        None, description="the zero is the middle code everywhere; by default so for gptq, and for 8 bits"
    )
    format: FormatName = Field(
        "auto", description="of the files: awq, gptq or compressed-tensors; by default the method's own that holds it"
    )
    embeddings: Literal[8] | None = Field(
        None, description="bits of embedding and head: 8, which compressed-tensors holds; by default as they are"
    )
    calibration: PathText | None = Field(
        None,
        description="data file of texts like those that the model will see; by default Python's documentation and some "
        "Chinese",
    )
    calibration_tokens: int = Field(32_768, ge=1, description="tokens of these texts that are looked at, at most")
    calibration_length: int = Field(512, ge=8, description="tokens of a row of them")
    max_kl: float | None = Field(
        None,
        gt=0,
        description="largest mean divergence from the original allowed, in nats a token; by default 0.1, 1, 4 and "
        "8 at 8, 4, 3 and 2 bits",
    )
    least_same: float = Field(
        0.0, ge=0, le=1, description="share of tokens at which original and result have to find the same one likeliest"
    )
    prompts: int = Field(16, ge=1, description="prompts on which original and result are compared, at most")
    max_new_tokens: int = Field(48, ge=1, description="tokens of each of those answers at most")

    @field_validator("bits")
    @classmethod
    def _known_bits(cls, bits: int | Literal["auto"]) -> int | Literal["auto"]:
        if bits != AUTO and bits not in MAX_KL:
            raise ValueError(f"allowed: {', '.join(map(str, MAX_KL))}")
        return bits

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        told = {name for name in _OF_TEXT if self._is_set(name)}
        if told and self.bits != AUTO and self.method not in (*LOOKING, AUTO):
            raise ValueError(f"{self.method} looks at no text: {', '.join(sorted(told))} has no effect")
        if self.embeddings and self.format not in ("auto", "compressed-tensors"):
            raise ValueError(f"files of {self.format} hold no embedding in few bits: take compressed-tensors")
        if self.method == "nf4":
            if (
                self.embeddings
                or self.bits != 4
                or self.group_size != GROUP
                or self.symmetric is not None
                or self.format != "auto"
            ):
                raise ValueError("nf4 is 4 bits in blocks of 64, in bitsandbytes' form: say nothing else beside it")
        elif self.calibration_length > self.calibration_tokens:
            raise ValueError("calibration_length is more than calibration_tokens")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class QuantizeOptions(Few):
    """One method and one width."""

    method: Method = Field("awq", description="how codes are found")
    bits: int = Field(4, description="of a weight: 8, 4, 3 or 2")

    @property
    def scheme(self) -> Scheme:
        """Of every layer."""
        by_default = self.method == "gptq" or self.bits == 8
        return Scheme(self.bits, self.group_size, by_default if self.symmetric is None else self.symmetric)

    @property
    def ends(self) -> Scheme | None:
        """Of embedding and head; None where they stay as they are."""
        return Scheme(self.embeddings, self.group_size, symmetric=True) if self.embeddings else None

    @property
    def form(self) -> FormatName:
        """The format by its name; awq's own holds 4 bits alone, and no embedding."""
        if self.format != "auto":
            return self.format
        own = OWN_FORMAT[self.method]
        return "compressed-tensors" if self.embeddings or (own == "awq" and self.bits != 4) else own

    @property
    def allowed_kl(self) -> float:
        return MAX_KL[self.bits] if self.max_kl is None else self.max_kl


class AskedOptions(Few):
    """Weights in few bits: how they are found, how they are kept, and what they may lose."""

    method: Method | Literal["auto"] = Field(
        "awq",
        description="awq scales columns by what the text makes large; gptq lets later columns answer for the errors of "
        "earlier ones; awq+gptq does both; rtn rounds; nf4 is what bitsandbytes reads; auto tries all but nf4 on your "
        "text",
    )
    bits: int | Literal["auto"] = Field(
        4, description="of a weight: 8, 4, 3 or 2; auto takes the fewest bytes that stay within max_loss on your text"
    )
    max_loss: str = Field(
        MAX_LOSS,
        description="with auto: by how much perplexity on your text may rise, such as 2% or 0.02; the upper end of its "
        "interval has to stay below",
    )
    judged_tokens: int = Field(
        16_384,
        ge=256,
        description="with auto: tokens of your text on which forms are compared, and as many others on which the "
        "chosen one is looked at again",
    )

    @field_validator("max_loss", mode="before")
    @classmethod
    def _is_a_share(cls, loss: Any) -> str:
        try:
            loss_of(str(loss))
        except ConfigError as error:
            raise ValueError(f"allowed: {error.allowed}") from error
        return str(loss)

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        told = {name for name in ("max_loss", "judged_tokens") if self._is_set(name)}
        if told and not self.is_open:
            raise ValueError(f"nothing is chosen: {', '.join(sorted(told))} has no effect without auto")
        return self

    @property
    def is_open(self) -> bool:
        """Whether something is left to be chosen."""
        return AUTO in (self.method, self.bits)

    @property
    def budget(self) -> float:
        """By which share perplexity may rise."""
        return loss_of(self.max_loss)

    def settled(self, method: str, bits: int | Literal["auto"]) -> QuantizeOptions:
        """With this method and width. Raises ConfigError for what cannot be."""
        given = {name: getattr(self, name) for name in Few.model_fields if name not in _OF_TEXT or method in LOOKING}
        return validate(QuantizeOptions, given | {"method": method, "bits": bits}, where="auto")

    def to_try(self) -> list[QuantizeOptions]:
        """What is asked for; where that is open, every form that may be chosen and that the format named holds.

        Raises ConfigError where it holds none.
        """
        if not self.is_open:
            return [self.settled(self.method, self.bits)]
        widths = WIDTHS if self.bits == AUTO else (self.bits,)
        found, refused = [], None
        for bits in widths:
            methods = (self.method,) if self.method != AUTO else TRIED[:1] if bits == 8 else TRIED
            for method in methods:
                try:
                    one = self.settled(method, bits)
                    format_of(one).check(one.scheme, {})
                    found.append(one)
                except ConfigError as error:
                    refused = error
        if not found:
            assert refused is not None
            raise refused
        return found


def format_of(options: QuantizeOptions) -> Format:
    """The format that the files will have."""
    return chosen(options.form, options.scheme)
