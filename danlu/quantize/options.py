"""What may be said about quantizing a model, and what follows from it: scheme and format. Reads nothing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from danlu.config import Options, PathText
from danlu.model.formats.format import Format
from danlu.model.formats.table import chosen
from danlu.model.grouped import Scheme

Method = Literal["awq", "gptq", "rtn", "nf4"]
FormatName = Literal["auto", "awq", "gptq", "compressed-tensors"]

GROUP = 64
# Methods that look at texts, and what each is written as where no format is named.
LOOKING = ("awq", "gptq")
OWN_FORMAT: dict[str, FormatName] = {"awq": "awq", "gptq": "gptq", "rtn": "compressed-tensors"}

# By width: mean divergence from the original that is refused, in nats a token, where none is named. What sound methods
# lose on small models stays below; files in which codes, zeros or scales are not where they belong lie above.
MAX_KL = {8: 0.1, 4: 1.0, 3: 4.0, 2: 8.0}


class QuantizeOptions(Options):
    """Weights in few bits: how they are found, how they are kept, and what they may lose."""

    method: Method = Field(
        "awq",
        description="awq scales columns by what the text makes large; gptq lets later columns answer for the errors of "
        "earlier ones; rtn rounds; nf4 is what bitsandbytes reads",
    )
    bits: int = Field(4, description="of a weight: 8, 4, 3 or 2")
    group_size: int | None = Field(
        GROUP, ge=8, description="neighbouring inputs that share a scale; null is all of a row"
    )
    symmetric: bool | None = Field(
        None, description="the zero is the middle code everywhere; by default so for gptq, and for 8 bits"
    )
    format: FormatName = Field(
        "auto", description="of the files: awq, gptq or compressed-tensors; by default the method's own that holds it"
    )
    calibration: PathText | None = Field(
        None, description="data file of texts like those that the model will see; by default Python's documentation"
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
    def _known_bits(cls, bits: int) -> int:
        if bits not in MAX_KL:
            raise ValueError(f"allowed: {', '.join(map(str, MAX_KL))}")
        return bits

    @model_validator(mode="after")
    def _has_effect(self) -> QuantizeOptions:
        told = {name for name in ("calibration", "calibration_tokens", "calibration_length") if self._is_set(name)}
        if told and self.method not in LOOKING:
            raise ValueError(f"{self.method} looks at no text: {', '.join(sorted(told))} has no effect")
        if self.method == "nf4":
            if self.bits != 4 or self.group_size != GROUP or self.symmetric is not None or self.format != "auto":
                raise ValueError("nf4 is 4 bits in blocks of 64, in bitsandbytes' form: say nothing else beside it")
        elif self.calibration_length > self.calibration_tokens:
            raise ValueError("calibration_length is more than calibration_tokens")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    @property
    def scheme(self) -> Scheme:
        """Of every layer."""
        by_default = self.method == "gptq" or self.bits == 8
        return Scheme(self.bits, self.group_size, by_default if self.symmetric is None else self.symmetric)

    @property
    def form(self) -> FormatName:
        """The format by its name; awq's own holds 4 bits alone."""
        if self.format != "auto":
            return self.format
        own = OWN_FORMAT[self.method]
        return "compressed-tensors" if own == "awq" and self.bits != 4 else own

    @property
    def allowed_kl(self) -> float:
        return MAX_KL[self.bits] if self.max_kl is None else self.max_kl


def format_of(options: QuantizeOptions) -> Format:
    """The format that the files will have."""
    return chosen(options.form, options.scheme)
