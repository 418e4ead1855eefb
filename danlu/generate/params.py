"""GenerationParams: every knob of decoding, declared and checked once.

A knob that would have no effect where it is given is an error that names both knobs.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from danlu.config import Options


class GenerationParams(Options):
    """How tokens are chosen. Names and meanings are Hugging Face's."""

    max_new_tokens: int = Field(256, ge=1, description="tokens generated at most, the prompt not counted")
    do_sample: bool = Field(False, description="draw from the distribution instead of taking the likeliest token")
    temperature: float = Field(1.0, gt=0, le=100, description="divides the logits; below 1 sharper, above 1 flatter")
    top_k: int | None = Field(None, ge=1, description="draw among the k likeliest tokens")
    top_p: float = Field(1.0, gt=0, le=1, description="draw among the likeliest tokens that make up this probability")
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="above 1, tokens already seen become less likely")
    seed: int | None = Field(None, ge=0, lt=2**63, description="makes draws repeatable")

    @model_validator(mode="after")
    def _each_knob_has_an_effect(self) -> GenerationParams:
        sampling = sorted(self.model_fields_set & {"temperature", "top_k", "top_p", "seed"})
        if sampling and not self.do_sample:
            raise ValueError(f"{', '.join(sampling)} has no effect without do_sample; set do_sample to true as well")
        return self
