"""Tiny random models for tests: a real directory with config, safetensors, tokenizer and chat template.

Everything is made here from a seed; nothing is fetched. Knows nothing of danlu.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# ChatML, with the assistant's words marked, as SmolLM2 and Qwen write it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "a model is trained on data and then used",
    "what is the capital of France? The capital is Paris.",
    "one two three four five six seven eight nine ten",
    "丹炉把数据炼成模型",
)

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gemma3_text", "mistral")

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {**_SHAPE, "tie_word_embeddings": True},
    "qwen2": {**_SHAPE, "tie_word_embeddings": True},
    "qwen3": {**_SHAPE, "head_dim": 8, "tie_word_embeddings": False},
    "mistral": {**_SHAPE, "head_dim": 8, "sliding_window": 16},
    "qwen3_moe": {
        **_SHAPE,
        "head_dim": 8,
        "tie_word_embeddings": False,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
    },
    "mixtral": {
        **_SHAPE,
        "head_dim": 8,
        "tie_word_embeddings": False,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma3_text": {
        **_SHAPE,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3_5_text": {
        **_SHAPE,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}


def make_tokenizer(texts: Iterable[str] | None = None) -> Any:
    """A byte-level BPE tokenizer (any text round-trips), ChatML template, pad and eos both <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(list(texts or SENTENCES), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_tiny_model(
    directory: Path | str,
    *,
    architecture: str = "llama",
    seed: int = 0,
    vocab_texts: Iterable[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    kind: str | None = "instruct",
) -> Path:
    """Write a random model of two layers and about 30,000 weights, float32, to `directory`; returns it.

    The same seed gives the same weights; torch's generator is left as it was found. `architecture` is one
    of ARCHITECTURES, or qwen3_moe, mixtral or qwen3_5_text; `vocab_texts` are the sentences that the tokenizer's
    merges are learnt from; `changes` replace entries of the config. `kind` is what the directory says of itself:
    random weights end no turn.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(vocab_texts)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    entries = {"vocab_size": len(tokenizer), **ends, **_EXTRA[architecture], **(changes or {})}
    config = AutoConfig.for_model(architecture, **entries)
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    tokenizer.save_pretrained(directory)
    if kind is not None:
        (directory / "origin.json").write_text(json.dumps({"kind": kind}), "utf-8")
    return directory


def make_golden_model(directory: Path | str, architecture: str) -> Path:
    """The tiny model that the answers in tests/golden/ were made with; returns its directory.

    At the usual deviation of 0.02 a tied model repeats its last token with nearly flat logits. At 0.4 the layers
    outweigh the embedding and the logits spread by 2 to 3: choices are clear and the text wanders. Gemma scales
    its embedding up and would still repeat, so its head is set free.
    """
    changes: dict[str, Any] = {"initializer_range": 0.4}
    if architecture == "gemma3_text":
        changes["tie_word_embeddings"] = False
    return make_tiny_model(directory, architecture=architecture, seed=17, changes=changes)


def make_tiny_gguf(model_directory: Path, path: Path, *, pre: str = "gpt-2") -> Path:
    """Write the tiny llama in `model_directory` as a float32 GGUF file, as llama.cpp lays it out; returns it.

    `pre` is the name of the word splitting, llama.cpp's tokenizer.ggml.pre.
    """
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model_directory / "config.json").read_text("utf-8"))
    bpe = json.loads((model_directory / "tokenizer.json").read_text("utf-8"))["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].__getitem__))
    writer.add_token_types([3 if row < len(SPECIAL_TOKENS) else 1 for row in range(len(bpe["vocab"]))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(model_directory / "model.safetensors").items():
        count = next((heads[key] for key in heads if key in name), 0)
        if count:  # llama.cpp rotates neighbours, transformers rotates halves
            rows, columns = weight.shape
            weight = weight.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
