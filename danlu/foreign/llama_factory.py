"""LLaMA-Factory's keys (src/llamafactory/hparams) -> a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from danlu.data.shapes.speakers import SPEAKERS
from danlu.errors import ConfigError, nearest
from danlu.foreign.hugging_face import (
    OF_KERNELS,
    OF_MACHINES,
    OF_OUR_LOOP,
    OTHER_BITS,
    OWN,
    put_adapter_as_peft,
    put_four_bit,
    put_too_long,
    put_whole,
    read_trainer,
    tell_packed,
    trainer_rows,
)
from danlu.foreign.making import Making
from danlu.foreign.sources import FILES, Source, place_of, put_held_out, put_most, put_sources
from danlu.foreign.table import Given, Tool, lacking, needless, same
from danlu.foreign.values import is_off, layers, listed, number, truth, whole

STAGES = {"sft": "sft", "pt": "pretrain", "rm": "reward", "dpo": "dpo", "ppo": "ppo"}
_LOSSES = ("sigmoid", "hinge", "ipo")
INFO = "dataset_info.json"

ROWS = (
    same("model_name_or_path", "model.name"),
    same("cutoff_len", "data.max_length", whole, 2048),
    same("mask_history", "data.train_on", lambda value: "last" if truth(value) else None),
    same("lora_rank", "lora.r", whole, 8),
    same("lora_dropout", "lora.lora_dropout", number, 0.0),
    same("lora_target", "lora.target_modules", layers, "all"),
    same("use_rslora", "lora.use_rslora", lambda value: truth(value) or None),
    same("use_dora", "lora.use_dora", lambda value: truth(value) or None),
    same("additional_target", "lora.modules_to_save", listed),
    same("loraplus_lr_ratio", "train.loraplus_lr_ratio", number),
    same("pref_beta", "dpo.beta", number, 0.1),
    same("pref_loss", "dpo.loss_type", default="sigmoid"),
    same("dpo_label_smoothing", "dpo.label_smoothing", number, 0.0),
    same("ppo_epochs", "ppo.num_ppo_epochs", whole, 4),
    same("ppo_target", "ppo.kl_target", number, 6.0),
    same("ppo_whiten_rewards", "ppo.whiten_rewards", truth, False),
    same("reward_model", "reward.model", differs="a reward model that Danlu has made: kind reward"),
    same("temperature", "rollout.temperature", number),
    same("max_new_tokens", "rollout.max_new_tokens", whole),
    same("pure_bf16", "model.dtype", lambda value: "bfloat16" if truth(value) else None,
         differs="weights that are trained stay in float32, and the model has a bfloat16 copy"),
    same("enable_thinking", "data.chat_template_kwargs", lambda value: {"enable_thinking": truth(value)}),
    *trainer_rows(),
    *needless("overwrite_cache preprocessing_* buffer_size streaming tokenized_path data_shared_file_system "
              "compute_accuracy include_effective_tokens_per_second print_param_status use_fast_tokenizer cache_dir "
              "predict_* generation_* eval_num_beams eval_on_each_dataset run_tests media_dir max_length do_sample "
              "num_beams use_kv_cache infer_* offload_folder hf_hub_token ms_hub_token om_hub_token enable_torch_* "
              "profiler_* profile_modules ignore_pad_token_for_loss split_special_tokens skip_special_tokens",
              OF_OUR_LOOP),
    *needless("ray_* use_ray master_addr master_port tensor_model_parallel_size pipeline_model_parallel_size "
              "expert_model_parallel_size context_parallel_size sequence_parallel use_distributed_optimizer "
              "overlap_* moe_token_dispatcher_type use_mca use_megatron_bridge use_hyper_parallel hyper_parallel_*",
              OF_MACHINES),
    *needless("use_v1_kernels bias_activation_fusion apply_rope_fusion moe_grouped_gemm recompute_granularity "
              "use_kt kt_* block_diag_attn", OF_KERNELS),
    *needless("swanlab_*", "how SwanLab is spoken to: its own variables, and track"),
    *needless("export_*", "how a model is written that is trained; `merge` and danlu merge do that"),
    *needless("image_* video_* audio_* crop_to_patches use_audio_in_video freeze_vision_tower "
              "freeze_multi_modal_projector", "pictures and sounds are not read; the language part alone is trained"),
    *needless("quantization_device_map", OF_MACHINES),
    *lacking("freeze_language_model", "training of a picture's part alone"),
    *lacking("tool_format", "calls are written as the model's own template has them"),
    *lacking("default_system", "a system message for every row: write it into the rows, key system"),
    *lacking("train_on_prompt", "a loss on the questions too; answers alone are learnt"),
    *lacking("preserve_thinking", "templates decide what becomes of earlier thoughts"),
    *lacking("mix_strategy interleave_probs", "data sets mixed by chances; they follow each other in one random order"),
    *lacking("pref_ftx pref_bco_weight ld_alpha simpo_gamma", "further terms of the loss on pairs"),
    *lacking("ref_model*", "another model as the reference; here it is the model itself, before training"),
    *lacking("reward_model_*", "a reward model of another kind; reward.model, reward.function or reward.command judge"),
    *lacking("ppo_score_norm", "scaling of scores as they come; Danlu's reward models are scaled when they are made"),
    *lacking("pissa_*", "an adapter that begins from the weights' largest parts; lora.init has gaussian and kaiming"),
    *lacking("create_new_adapter adapter_name_or_path adapter_folder", "going on from an adapter: merge it first "
             "(danlu merge) and name the merged model"),
    *lacking("loraplus_lr_embedding", "a rate of its own for embeddings"),
    *lacking("use_galore galore_* use_apollo apollo_* use_badam badam_* use_adam_mini use_muon", "that optimizer; "
             "train.optim lists those there are"),
    *lacking("use_dft_loss use_asft_loss asft_* use_eaft_loss eaft_*", "a loss that weighs tokens by their likelihood"),
    *lacking("use_llama_pro mixture_of_depths shift_attn rope_scaling train_from_scratch", "another architecture than "
             "the model's own; random weights: kind pretrain with pretrain.weights: random"),
    *lacking("freeze_trainable_* freeze_extra_modules oft_* module_dropout", "a way of training beside LoRA and all "
             "weights"),
    *lacking("fp8*", "numbers of 8 bits in training"),
    *lacking("resize_vocab add_tokens add_special_tokens new_special_tokens_config init_special_tokens",
             "new tokens: save the model with them first; lora.trainable_token_indices trains their rows"),
    *lacking("upcast_layernorm upcast_lmhead_output", "another type of number in single layers"),
    *lacking("model_revision", "write it behind the name: org/name@revision"),
    *lacking("top_p top_k repetition_penalty length_penalty", "rollouts are drawn as the policy is, without filters"),
    *lacking("kto_*", "preference by label (KTO)"),
)  # fmt: skip


def stage(given: Given) -> str:
    """Raises ConfigError for what Danlu has no training for."""
    found = str(given.get("stage", "sft"))
    method = str(given.get("finetuning_type", "lora"))
    if found not in STAGES:
        raise ConfigError(
            f"{given.where}: stage {found} has no counterpart",
            allowed=", ".join(STAGES),
            fix="kto learns from single answers with a label; with pairs of answers, use stage dpo" * (found == "kto"),
        )
    if method not in ("lora", "full"):
        raise ConfigError(f"{given.where}: finetuning_type {method} has no counterpart", allowed="lora, full")
    loss = str(given.get("pref_loss", "sigmoid"))
    if found == "dpo" and loss not in _LOSSES:
        raise ConfigError(f"{given.where}: pref_loss {loss} has no counterpart", allowed=", ".join(_LOSSES))
    return STAGES[found]


def read(given: Given, making: Making) -> None:
    """Adapter, data, and what the trainer is told."""
    if given.get("finetuning_type", "lora") != "full" or not put_whole(making, "finetuning_type"):
        making.put("lora.lora_alpha", given.number("lora_alpha") or 2 * (given.whole("lora_rank") or 8),
                   "lora_alpha" if given.get("lora_alpha") else f"{making.default}: twice the rank")  # fmt: skip
        put_adapter_as_peft(making)
    _put_bits(given, making)
    read_trainer(given, making)
    if not is_off(given.get("disable_gradient_checkpointing")):
        making.put("train.gradient_checkpointing", False, "disable_gradient_checkpointing")
    making.put("merge", None, making.default)
    for key in ("packing", "neat_packing"):
        if not is_off(given.get(key)):
            tell_packed(making, key)
    put_too_long(making, "truncate", making.default)
    sources = _sources(given, making, "dataset")
    if not sources:
        raise ConfigError(f"{given.where}: names no data", fix="add dataset: NAME")
    put_sources(making, sources, "dataset")
    put_most(making, sources, "max_samples" if given.get("max_samples") else "num_samples")
    if held_out := _sources(given, making, "eval_dataset"):
        making.put("data.held_out_path", held_out[0].path, "eval_dataset")
        if len(held_out) > 1:
            making.lacks("eval_dataset", f"one file is held out; {', '.join(one.path for one in held_out[1:])} is not")
    else:
        put_held_out(making, sources, given.number("val_size") or 0.0, "val_size")
    if making.kind == "ppo":
        buffered = making.lines["train.batch_size"].value * (given.whole("ppo_buffer_size") or 1)
        making.put("ppo.rollout_batch_size", buffered, "a step's batch x ppo_buffer_size")
        making.put("ppo.unfinished_reward", None, making.default)
    if (template := given.get("template")) is not None and making.kind != "pretrain":
        making.differs("template", f"{template}: conversations are written by the model's own template; for a model "
                                   "without one, data.chat_template: chatml")  # fmt: skip
    if making.kind == "sft" and any(source.format in (None, "alpaca") for source in sources):
        making.differs("dataset", "an alpaca row's input follows its instruction after an empty line, there after one "
                                  "line end")  # fmt: skip


def _put_bits(given: Given, making: Making) -> None:
    bits, method = given.whole("quantization_bit"), str(given.get("quantization_method", "bnb"))
    if bits == 4 and method in ("bnb", "bitsandbytes"):
        put_four_bit(making, "quantization_bit", given.values, ("quantization_type", "double_quantization"))
    elif bits:
        making.lacks("quantization_bit", f"{bits} by {method}: {OTHER_BITS}")


def _sources(given: Given, making: Making, key: str) -> list[Source]:
    names = [str(name) for name in listed(given.get(key))]
    if not names:
        return []
    folder = _folder(given)
    if folder is None:
        there = given.get("dataset_dir", "data")
        making.lacks(key, f"there is no {there}/{INFO} to say which files {', '.join(names)} are: --dataset_dir names "
                          "its folder; else set data.path")  # fmt: skip
        most = given.whole("max_samples") if key == "dataset" else None
        return [Source(name if _is_file(name) else f"{there}/{name}.json", most=most) for name in names]
    return [_source(name, _info(folder), folder, given, making, key) for name in names]


def _folder(given: Given) -> Path | None:
    """The folder of the data sets' list: as the file says, from here or from beside the file; or beside the file."""
    named = Path(str(given.get("dataset_dir", "data"))).expanduser()
    places = (named, given.folder / named, given.folder)
    return next((place for place in places if (place / INFO).is_file()), None)


def _info(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / INFO).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / INFO}: {error}", allowed="JSON: name -> what the data set is") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{folder / INFO} is no mapping", allowed="JSON: name -> what the data set is")
    return found


def _is_file(name: str) -> bool:
    return Path(name).suffix.lower() in FILES


def _source(name: str, info: Mapping[str, Any], folder: Path, given: Given, making: Making, key: str) -> Source:
    entry = info.get(name)
    if entry is None and _is_file(name):
        making.differs(key, f"{name} is taken for the path of a file, which that tool would look for in {INFO}")
        return Source(place_of(name, making, key))
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{given.where}: {key} {name} is not in {folder / INFO}", fix=nearest(name, info))
    _tell_unread(name, entry, making)
    most = given.whole("max_samples") if key == "dataset" else None
    if entry.get("num_samples") is not None:
        most = min(whole(entry["num_samples"]) or 0, most or 10**9)
    path = _path(name, entry, folder, making, key)
    for extra in ("subset", "split", "folder"):
        if entry.get(extra) not in (None, "train"):
            making.lacks(key, f"{name}: {extra} {entry[extra]}: name that part's files in data.path")
    return Source(path, _format(entry, making.kind), _columns(entry, making.kind), _roles(entry, making, key), most)


_ENTRY = {"file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting",
          "ranking", "subset", "split", "folder", "num_samples", "columns", "tags", "file_sha1"}  # fmt: skip


def _tell_unread(name: str, entry: Mapping[str, Any], making: Making) -> None:
    """Keys of the list that the tool does not read: a misspelt one changes what a row is, and nobody says so there."""
    columns = {"prompt", "messages", "images", "videos", "audios", *_OURS}
    tags = {"role_tag", "content_tag", *_TAGS}
    groups = [("", _ENTRY, entry)]
    groups += [(f"{part}.", known, entry.get(part) or {}) for part, known in (("columns", columns), ("tags", tags))]
    for part, known, given in groups:
        for key in sorted(given.keys() - known):
            said = f"{given[key]!r:.60} {nearest(key, known)}".rstrip()
            making.tell("unknown", f"{INFO}: {name}.{part}{key}", said)


def _path(name: str, entry: Mapping[str, Any], folder: Path, making: Making, key: str) -> str:
    if entry.get("file_name"):
        return place_of(str(folder / str(entry["file_name"])), making, key)
    for url, hub in (("hf_hub_url", "hugging face"), ("ms_hub_url", "modelscope")):
        if entry.get(url):
            return place_of(str(entry[url]), making, key, hub)  # type: ignore[arg-type]
    making.lacks(key, f"{name}: is loaded by a script or from a cloud; Danlu reads files: set data.path")
    return f"data/{name}"


def _format(entry: Mapping[str, Any], kind: str) -> str | None:
    if kind == "pretrain":
        return "text"
    if entry.get("ranking"):
        return "preference"
    formatting = str(entry.get("formatting", "alpaca"))
    theirs = str(entry.get("columns", {}).get("messages", "conversations"))
    if formatting == "alpaca":
        return "alpaca"
    return "messages" if formatting == "openai" or theirs == "messages" else "sharegpt"


_OURS = {"query": "input", "response": "output", "history": "history", "system": "system", "tools": "tools",
         "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"}  # fmt: skip


def _columns(entry: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """Our keys -> its columns, where the two are not the same word; read as its `columns` says, and no other."""
    theirs = {str(key): str(value) for key, value in (entry.get("columns") or {}).items() if value}
    format = _format(entry, kind)
    messages = "prompt" if format == "preference" else "messages" if format == "messages" else "conversations"
    ours = {**_OURS, "prompt": {"text": "text", "preference": "prompt"}.get(format or "", "instruction")}
    ours["messages"] = messages
    if format == "text" and not theirs:
        theirs = {"prompt": "instruction"}  # the tool's own
    found: dict[str, str | None] = {
        ours[key]: column for key, column in theirs.items() if key in ours and ours[key] != column
    }
    if format == "alpaca" and theirs and "query" not in theirs and "input" not in theirs.values():
        found["input"] = None
    return found


_TAGS = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "function_tag": "tool_call",
         "system_tag": "system"}  # fmt: skip


def _roles(entry: Mapping[str, Any], making: Making, key: str) -> dict[str, str]:
    tags = entry.get("tags") or {}
    for tag, usual in (("role_tag", ("from", "role")), ("content_tag", ("value", "content"))):
        if tags.get(tag) not in (None, *usual):
            making.lacks(key, f"{tag} {tags[tag]}: a message has {' or '.join(usual)}; rename it in the file")
    named = {str(tags[tag]): role for tag, role in _TAGS.items() if tags.get(tag)}
    return {name: role for name, role in named.items() if SPEAKERS.get(name.casefold()) != role}


LLAMA_FACTORY = Tool(
    name="llama-factory",
    title="LLaMA-Factory",
    rows=ROWS,
    own=OWN | {
        "stage", "finetuning_type", "lora_alpha", "dataset", "eval_dataset", "dataset_dir", "val_size", "max_samples",
        "template", "disable_gradient_checkpointing", "ppo_buffer_size",
        "packing", "neat_packing", "quantization_bit", "quantization_method", "quantization_type",
        "double_quantization",
    },
    stage=stage,
    read=read,
)  # fmt: skip
