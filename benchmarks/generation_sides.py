"""What benchmarks/generate.py measures: the works (rows of its table) and the sides with the settings that are tried.

Data only; how a side is run is generate.py's, and what it does with a setting its own file's in benchmarks/peers/.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PHRASES = (" standard library", " return value")


@dataclass(frozen=True)
class Work:
    """One row of the table: so many prompts of so many tokens, so many answers each, by Hugging Face's knobs.

    Attributes:
        adapters: of which each prompt asks for one, in turn; 0 is the model alone.
    """

    name: str
    prompts: int
    prompt_tokens: int
    rows: int = 1
    knobs: dict[str, Any] = field(default_factory=dict)
    adapters: int = 0


BEAMS = {"num_beams": 8, "num_return_sequences": 8}
WORKS = (
    Work("greedy-1", 1, 160),
    Work("greedy-32", 32, 160),
    Work("sample-8", 1, 512, 8, {"do_sample": True, "num_return_sequences": 8}),
    Work("beam", 1, 512, 8, BEAMS),
    Work("groups", 1, 512, 8, {**BEAMS, "num_beam_groups": 4, "diversity_penalty": 1.0}),
    Work("forced", 1, 512, 8, {**BEAMS, "force_words_ids": PHRASES}),
)
ALL = tuple(work.name for work in WORKS)


@dataclass(frozen=True)
class Side:
    """A column of the table.

    Attributes:
        script: its file in benchmarks/peers/.
        settings: what is tried, by name; each says its number format.
        environment: name of its own environment (peers.sh), or None for ours.
        works: the works it is asked for; the others stay empty.
        model: which of the directories of prepare_files it reads.
    """

    name: str
    script: str
    settings: dict[str, dict[str, Any]]
    environment: str | None = None
    works: tuple[str, ...] = ALL
    model: str = "model"

    @property
    def python(self) -> str:
        return sys.executable if self.environment is None else str(ROOT / ".peers" / self.environment / "bin/python")


def hf(weights: str, attention: str, *, static_cache: bool = False) -> dict[str, Any]:
    return {"format": weights, "weights": weights, "attention": attention, "static_cache": static_cache}


def openvino(precision: str, *, paged: bool) -> dict[str, Any]:
    return {"format": "Q4_1", "precision": precision, "paged": paged}


def vllm(weights: str, *, eager: bool, all_cores: bool) -> dict[str, Any]:
    return {"format": weights, "weights": weights, "eager": eager, "all_cores": all_cores}


def llama_cpp(
    format: str, *, amx_layout: bool = False, flash_attention: bool = True, one_buffer: bool = True
) -> dict[str, Any]:
    kind = {"format": format, "amx_layout": amx_layout}
    return {**kind, "flash_attention": flash_attention, "one_buffer": one_buffer}


@dataclass(frozen=True)
class Limit:
    """A set of instructions that all sides are kept to.

    Attributes:
        environment: what torch, oneDNN, OpenVINO's oneDNN and MKL heed, and our kernels for tiles and for pairs.
        march: what our C sources are compiled for; "" is this processor.
        builds: environments of peers that are compiled for it, by the usual one's name.
        lacks: number formats that nothing multiplies there. Peers are not asked for them: of bfloat16 torch then makes
            one dot product after another (a prompt of 160 takes two seconds), and has float32 as well.
    """

    environment: dict[str, str]
    march: str = ""
    builds: dict[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()

    def kept(self, side: Side) -> Side:
        """A peer as it is asked."""
        settings = {name: given for name, given in side.settings.items() if given["format"] not in self.lacks}
        environment = self.builds.get(side.environment or "", side.environment)
        return replace(side, settings=settings, environment=environment)


def limit(onednn: str, march: str = "", **more: str) -> Limit:
    builds = {"llama-cpp": f"llama-cpp-{onednn.lower()}"} if march else {}
    lacks = ("bfloat16",) if march else ()
    return Limit({"ONEDNN_MAX_CPU_ISA": onednn, "DNNL_MAX_CPU_ISA": onednn, **more}, march, builds, lacks)


LIMITS = {
    "avx512": limit("AVX512_CORE_BF16", DANLU_TILES="0"),
    "avx2": limit("AVX2", "x86-64-v3", ATEN_CPU_CAPABILITY="avx2", MKL_ENABLE_INSTRUCTIONS="AVX2"),
}

HF_SETTINGS = {
    "bf16, sdpa": hf("bfloat16", "sdpa"),
    "bf16, eager": hf("bfloat16", "eager"),
    "float32, sdpa": hf("float32", "sdpa"),
    "bf16, sdpa, static cache": hf("bfloat16", "sdpa", static_cache=True),
}
PEERS = (
    Side("transformers", "transformers_generate.py", HF_SETTINGS),
    Side(
        "transformers-4.56",
        "transformers_generate.py",
        {name: HF_SETTINGS[name] for name in ("bf16, sdpa", "bf16, eager", "float32, sdpa")},
        "transformers-4.56",
        ("beam", "groups", "forced"),
        "older_model",
    ),
    Side(
        "vLLM-CPU",
        "vllm_generate.py",
        {
            "bf16, eager": vllm("bfloat16", eager=True, all_cores=True),
            "bf16, compiled": vllm("bfloat16", eager=False, all_cores=True),
            "bf16, compiled, one core kept free": vllm("bfloat16", eager=False, all_cores=False),
            "float32, eager": vllm("float32", eager=True, all_cores=True),
        },
        "vllm",
    ),
    Side(
        "OpenVINO",
        "openvino_generate.py",
        {
            "paged attention, bf16": openvino("bf16", paged=True),
            "paged attention, float32": openvino("f32", paged=True),
            "SDPA, bf16": openvino("bf16", paged=False),
        },
        "openvino",
    ),
    Side(
        "llama.cpp",
        "llama_cpp_generate.py",
        {
            "Q4_1, AMX layout": llama_cpp("Q4_1", amx_layout=True),
            "Q4_1": llama_cpp("Q4_1"),
            "Q4_1, a buffer a row": llama_cpp("Q4_1", one_buffer=False),
            "Q4_1, plain attention": llama_cpp("Q4_1", flash_attention=False),
            "Q8_0 made of Q4_1, AMX layout": llama_cpp("Q8_0", amx_layout=True),
            "Q8_0 made of Q4_1": llama_cpp("Q8_0"),
        },
        "llama-cpp",
    ),
)


def danlu_side(dtype: str) -> Side:
    return Side(f"Danlu {dtype}", "danlu_generate.py", {dtype: {"format": dtype, "dtype": dtype}})
