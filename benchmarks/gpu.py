"""Danlu on a GPU beside plain transformers on the same one, in one run: tokens a second of answers and of training.

    make bench-cuda                              (about two minutes on one card)
    .venv/bin/python benchmarks/gpu.py --json figures.json
    .venv/bin/python benchmarks/gpu.py --from figures.json --write   (on any machine)

Models are Llamas of random weights in bfloat16, of the shapes of SmolLM2-135M and Llama-3.2-1B. The other side is what
one would write without Danlu: `generate`, and a loop over padded batches with PEFT and torch's fused AdamW. Tokens are
those of the texts, padding not counted. An answer takes in everything from ids to text. Of training, a figure is the
median step of a run whose steps were all made once before: a kernel is loaded when it is first wanted, which may take
longer than it runs, and each number of tokens may want another. Of answers it is the best of the runs. --write puts the
table into docs/training.md and docs/training.zh.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from generation_table import put_block
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- bench-cuda: written by the command; do not edit -->", "<!-- bench-cuda: end -->"
GUIDES = {"en": ROOT / "docs" / "training.md", "zh": ROOT / "docs" / "training.zh.md"}

COMMON: dict[str, Any] = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "1.2B": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
}  # fmt: skip

PROMPT_TOKENS, NEW_TOKENS, MANY = 128, 128, 64
STEPS, BATCH = 6, 32
SHORTEST, LONGEST = 64, 512  # tokens of an example
PADDED_BATCH = 8  # of the plain loop: examples of one forward pass
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "lora_dropout": 0.0}
RATE = 1e-4

WORK = {
    "answer": ("greedy, one request", "贪心，单个请求"),
    "answers": (f"greedy, {MANY} requests", f"贪心，{MANY} 个请求"),
    "lora": ("training, LoRA", "训练，LoRA"),
    "qlora": ("training, QLoRA", "训练，QLoRA"),
    "full": ("training, all weights", "训练，全参数"),
}
TRAININGS = ("lora", "qlora", "full")
HEADS = {
    "en": ("model", "work", "Danlu, tokens/s", "plain, tokens/s", "Danlu / plain", "Danlu, GB", "plain, GB"),
    "zh": ("模型", "任务", "Danlu，token/秒", "原样，token/秒", "Danlu / 原样", "Danlu，GB", "原样，GB"),
}
HOW = {
    "en": "One {card}, bfloat16, random weights, torch {torch}, transformers {transformers}. {said}Command: "
    "`make bench-cuda`.",
    "zh": "单张 {card}，bfloat16，随机权重，torch {torch}，transformers {transformers}。{said}"
    "命令：`make bench-cuda`。",
}
SAID = {
    ("answer", "answers"): {
        "en": f"Answers: prompts of {PROMPT_TOKENS} tokens and {NEW_TOKENS} new ones, beside `generate`. ",
        "zh": f"生成：提示词 {PROMPT_TOKENS} 个 token，新生成 {NEW_TOKENS} 个，对照 `generate`。",
    },
    TRAININGS: {
        "en": f"Training: steps of {BATCH} examples of {SHORTEST} to {LONGEST} tokens, beside a loop over padded "
        f"batches of {PADDED_BATCH}, which keeps all weights in bfloat16 where Danlu trains float32 ones; GB is the "
        "most memory in use. ",
        "zh": f"训练：每步 {BATCH} 个样本，长 {SHORTEST} 到 {LONGEST} 个 token，对照按 {PADDED_BATCH} 个一批补齐的循环"
        "（其权重全程 bfloat16，Danlu 则训练 float32 主权重）；GB 为显存峰值。",
    },
}


def model_of(shape: str) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with torch.device(_device()):
        config = LlamaConfig(**COMMON | SHAPES[shape])
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def tokenizer_of(shape: str) -> Any:
    """A word for each token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{token} ": token for token in range(SHAPES[shape]["vocab_size"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0 ")), pad_token="w0 ", eos_token="w1 "
    )


def texts(count: int, shortest: int, longest: int, vocabulary: int) -> list[list[int]]:
    dice = random.Random(0)
    return [[dice.randrange(2, vocabulary) for _ in range(dice.randint(shortest, longest))] for _ in range(count)]


def measured(work: Callable[[], float]) -> tuple[float, float]:
    """(tokens a second, the most memory in GB) of `work`, which returns the first, on a GPU that holds nothing else."""
    clear()
    rate = work()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return rate, peak / 1e9


def clear() -> None:
    """What was done before holds nothing more of a GPU, and counts for nothing."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def best_rate(answer: Callable[[], int], runs: int) -> float:
    """Tokens a second of the best of so many runs, after one that warms up."""
    answer()
    rates = []
    for _ in range(runs):
        started = time.perf_counter()
        made = answer()  # its ids are on the CPU: nothing is under way any more
        rates.append(made / (time.perf_counter() - started))
    return max(rates)


# -- answers ---------------------------------------------------------------------------------------------


def danlu_answers(shape: str, count: int, runs: int) -> float:
    from danlu import Engine, GenerationParams
    from danlu.data.chat import Chat

    prompts = texts(count, PROMPT_TOKENS, PROMPT_TOKENS, SHAPES[shape]["vocab_size"])
    engine = Engine.around(model_of(shape), Chat.of(tokenizer_of(shape), None), weights_change=False)
    engine.core.prefixes = engine.core.scheduler.prefixes = None  # the runs ask the same
    params = GenerationParams(max_new_tokens=NEW_TOKENS, eos_token_id=[])

    def answer() -> int:
        return sum(len(one.sequences[0].token_ids) for one in engine.generate(prompts, params))

    try:
        return best_rate(answer, runs)
    finally:
        engine.close()


def as_torch_begins() -> None:
    """Danlu takes another code for attention than torch would (danlu.device.read_device)."""
    torch.backends.cuda.enable_cudnn_sdp(True)


def plain_answers(shape: str, count: int, runs: int) -> float:
    as_torch_begins()
    model = model_of(shape)
    prompts = texts(count, PROMPT_TOKENS, PROMPT_TOKENS, SHAPES[shape]["vocab_size"])
    ids = torch.tensor(prompts, device=model.device)
    ends = {"eos_token_id": None, "pad_token_id": 0, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    tokenizer = tokenizer_of(shape)

    @torch.inference_mode()
    def answer() -> int:
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **ends)[:, PROMPT_TOKENS:]
        tokenizer.batch_decode(made.tolist())
        return made.numel()

    return best_rate(answer, runs)


# -- training --------------------------------------------------------------------------------------------


def examples_of(shape: str) -> list[list[int]]:
    return texts(STEPS * BATCH, SHORTEST, LONGEST, SHAPES[shape]["vocab_size"])


def packed_of(shape: str, read: Callable[[Path], Any]) -> Any:
    """What `read` makes of the files of the same model; both sides pack its layers into NF4, scales too."""
    with tempfile.TemporaryDirectory() as directory:
        model_of(shape).save_pretrained(directory)
        return read(Path(directory))


def danlu_training(shape: str, way: str) -> float:
    from danlu.data.example import Example
    from danlu.device import read_device
    from danlu.journal import Journal
    from danlu.model.adapters import attach
    from danlu.model.four_bit import FourBit
    from danlu.model.likelihood import prepare
    from danlu.model.load import load_model
    from danlu.model.lora_options import LoraOptions
    from danlu.train.batches import Shuffled
    from danlu.train.loop import Run, TrainOptions, train
    from danlu.train.sft import sft_stage

    device = read_device()
    if way == "qlora":
        packed = {"device": device, "dtype": torch.bfloat16, "four_bit": FourBit("nf4", is_double=True)}
        model = packed_of(shape, lambda directory: load_model(directory, **packed))
    else:
        model = model_of(shape)
    if way != "full":
        model = attach(model, LoraOptions(**LORA), 0)
    prepare(model)
    examples = [Example(tuple(ids), (True,) * len(ids), "made up") for ids in examples_of(shape)]
    options = TrainOptions(max_steps=STEPS, batch_size=BATCH, learning_rate=RATE, save_steps=10_000)
    with tempfile.TemporaryDirectory() as scratch:
        journal = Journal(Path(scratch))
        run = Run(Shuffled(examples, BATCH, 0), [], seed=0, identity={})
        train(sft_stage(device), model, run, options, journal, device)
        rows = journal.metrics()[1:-1]  # the first finds memory, the last one saves
    return median(row["tokens"] / row["seconds"] for row in rows)


def plain_training(shape: str, way: str) -> float:
    from peft import LoraConfig, get_peft_model

    as_torch_begins()
    model = packed_of(shape, _plainly_packed) if way == "qlora" else model_of(shape)
    if way != "full":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, fused=True)
    examples, rates = examples_of(shape), []
    for step in range(STEPS):
        started = time.perf_counter()
        chosen = sorted(examples[step * BATCH : (step + 1) * BATCH], key=len)
        _plain_step(model, chosen)
        torch.nn.utils.clip_grad_norm_(weights, 1.0).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(sum(map(len, chosen)) / (time.perf_counter() - started))
    return median(rates[1:-1])


def _plainly_packed(directory: Path) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.bfloat16}
    packing = BitsAndBytesConfig(load_in_4bit=True, **kind)
    placed = {"device_map": {"": _device()}, "dtype": torch.bfloat16}
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=packing, **placed)


def _plain_step(model: Any, chosen: Sequence[Sequence[int]]) -> None:
    model.train()
    counted = sum(len(ids) - 1 for ids in chosen)
    for start in range(0, len(chosen), PADDED_BATCH):
        part = chosen[start : start + PADDED_BATCH]
        longest = max(map(len, part))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in part], device=_device())
        is_text = torch.arange(longest, device=_device()) < torch.tensor([[len(one)] for one in part], device=_device())
        labels = ids.masked_fill(~is_text, -100)
        model(input_ids=ids, attention_mask=is_text.long(), labels=labels, num_items_in_batch=counted).loss.backward()


def second(training: Callable[[str, str], float], shape: str, way: str) -> float:
    """The rate of a training that was run once before."""
    training(shape, way)
    clear()
    return training(shape, way)


# -- all of it -------------------------------------------------------------------------------------------


def works(shape: str, runs: int) -> dict[str, tuple[Callable[[], float], Callable[[], float]]]:
    """Name -> (Danlu's side, the plain one)."""
    return {
        "answer": (lambda: danlu_answers(shape, 1, runs), lambda: plain_answers(shape, 1, runs)),
        "answers": (lambda: danlu_answers(shape, MANY, runs), lambda: plain_answers(shape, MANY, runs)),
    } | {
        way: (partial(second, danlu_training, shape, way), partial(second, plain_training, shape, way))
        for way in TRAININGS
    }


def measure(shapes: Sequence[str], names: Sequence[str], runs: int, save: Callable[[dict[str, Any]], None]) -> Any:
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}
    found["rows"] = []
    for shape in shapes:
        for name, sides in works(shape, runs).items():
            if name not in names:
                continue
            (ours, our_peak), (theirs, their_peak) = map(measured, sides)
            row = {"model": shape, "work": name, "danlu": ours, "plain": theirs}
            found["rows"].append(row | {"danlu_gb": our_peak, "plain_gb": their_peak})
            print(json.dumps(found["rows"][-1]), flush=True)
            save(found)  # what a later part's fault cannot take
    return found


def rows_of(found: dict[str, Any], language: str) -> list[tuple[str, ...]]:
    rows = []
    for row in found["rows"]:
        figures = (f"{row['danlu']:,.0f}", f"{row['plain']:,.0f}", f"{row['danlu'] / row['plain']:.1f}")
        is_training = row["work"] in TRAININGS
        peaks = (f"{row['danlu_gb']:.1f}", f"{row['plain_gb']:.1f}") if is_training else ("–", "–")
        rows.append((row["model"], WORK[row["work"]][language == "zh"], *figures, *peaks))
    return rows


def block(found: dict[str, Any], language: str) -> str:
    head = HEADS[language]
    lines = [head, tuple("---" for _ in head), *rows_of(found, language)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = {name: found[name] for name in ("card", "torch", "transformers")}
    done = {row["work"] for row in found["rows"]}
    said = "".join(words[language] for works, words in SAID.items() if done & set(works))
    return f"{HOW[language].format(**versions, said=said)}\n\n{table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--from", dest="source", type=Path, help="take the figures from such a file")
    parser.add_argument("--write", action="store_true", help="put the table into the guides to training")
    asked = parser.parse_args()

    def save(found: dict[str, Any]) -> None:
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=2))

    if asked.source:
        found = json.loads(asked.source.read_text("utf-8"))
    elif torch.cuda.is_available():
        found = measure(asked.models, asked.work, asked.runs, save)
    else:
        raise SystemExit("no CUDA device here: run it on a machine with one, or give --from FILE")
    table = Table(*HEADS["en"])
    for row in rows_of(found, "en"):
        table.add_row(*row)
    Console().print(table)
    if asked.write:
        for language, guide in GUIDES.items():
            guide.write_text(put_block(guide.read_text("utf-8"), block(found, language), START, END), "utf-8")


if __name__ == "__main__":
    main()
