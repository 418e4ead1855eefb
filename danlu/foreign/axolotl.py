"""axolotl's keys (src/axolotl/utils/schemas) -> a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.data.shapes.speakers import SPEAKERS
from danlu.errors import ConfigError
from danlu.foreign.hugging_face import (
    OF_HUB,
    OF_KERNELS,
    OF_MACHINES,
    OF_MEMORY,
    OF_OUR_LOOP,
    OTHER_BITS,
    PLAIN,
    aggregation,
    optimizer,
    put_adapter_as_peft,
    put_batch,
    put_four_bit,
    put_rewards,
    put_rollout,
    put_too_long,
    put_warmup,
    put_whole,
    scaled,
    schedule,
    tell_packed,
)
from danlu.foreign.making import Making
from danlu.foreign.sources import Source, place_of, put_held_out, put_sources
from danlu.foreign.table import Given, Tool, lacking, needless, same
from danlu.foreign.values import above_zero, is_off, layers, listed, mapping, number, one_of, truth, whole

RL = {"dpo": "dpo", "ipo": "dpo", "grpo": "ppo"}
_DOCUMENTS = ("completion", "pretrain")
_TOO_LONG = {"drop": "skip", "truncate": "truncate", "raise": "raise"}
TRACKERS = ("wandb", "mlflow", "trackio", "swanlab", "comet", "tensorboard")


def _dtype(word: str) -> Any:
    return lambda value: word if str(value) in ("auto", "full") or truth(value) else None


ROWS = (
    same("base_model", "model.name"),
    same("sequence_len", "data.max_length", whole, 512),
    same("learning_rate", "train.learning_rate", number),
    same("num_epochs", "train.num_train_epochs", number, 1.0),
    same("max_steps", "train.max_steps", above_zero),
    same("weight_decay", "train.weight_decay", number, 0.0),
    same("max_grad_norm", "train.max_grad_norm", number, 1.0),
    same("adam_beta1", "train.adam_beta1", number, 0.9),
    same("adam_beta2", "train.adam_beta2", number, 0.999),
    same("adam_epsilon", "train.adam_epsilon", number, 1e-8),
    same("optimizer", "train.optim", optimizer, "adamw_torch_fused"),
    same("lr_scheduler", "train.lr_scheduler_type", schedule, "cosine"),
    same("lr_scheduler_kwargs", "train.lr_scheduler_kwargs"),
    same("seed", "seed", whole, 42),
    same("save_steps", "train.save_steps", above_zero),
    same("eval_steps", "train.eval_steps", above_zero),
    same("save_total_limit", "train.save_total_limit", whole),
    same("gradient_checkpointing", "train.gradient_checkpointing", lambda value: truth(value) if value != "offload"
         else True),
    same("neftune_noise_alpha", "train.neftune_noise_alpha", number),
    same("noisy_embedding_alpha", "train.neftune_noise_alpha", number),
    same("loraplus_lr_ratio", "train.loraplus_lr_ratio", number),
    same("bf16", "model.dtype", _dtype("auto"), differs="auto takes bfloat16 where the hardware multiplies it"),
    same("bfloat16", "model.dtype", _dtype("bfloat16")),
    same("fp16", "model.dtype", _dtype("float16")),
    same("float16", "model.dtype", _dtype("float16")),
    same("float32", "model.dtype", _dtype("float32")),
    same("lora_r", "lora.r", whole),
    same("lora_alpha", "lora.lora_alpha", number),
    same("lora_dropout", "lora.lora_dropout", number, 0.0),
    same("lora_modules_to_save", "lora.modules_to_save", listed),
    same("lora_rank_pattern", "lora.rank_pattern"),
    same("lora_alpha_pattern", "lora.alpha_pattern"),
    same("peft_use_dora", "lora.use_dora", lambda value: truth(value) or None),
    same("peft_use_rslora", "lora.use_rslora", lambda value: truth(value) or None),
    same("peft_layers_to_transform", "lora.layers_to_transform", listed),
    same("peft_trainable_token_indices", "lora.trainable_token_indices", listed),
    same("chat_template_jinja", "data.chat_template"),
    same("chat_template_kwargs", "data.chat_template_kwargs"),
    same("dpo_label_smoothing", "dpo.label_smoothing", number),
    same("precompute_ref_log_probs", "dpo.reference", lambda value: "precomputed" if truth(value) else None),
    same("trl.max_completion_length", "rollout.max_new_tokens", whole),
    same("trl.temperature", "rollout.temperature", number),
    same("trl.num_generations", "ppo.num_generations", whole),
    same("trl.num_iterations", "ppo.num_ppo_epochs", whole, 1),
    same("trl.epsilon", "ppo.cliprange", number),
    same("trl.epsilon_high", "ppo.cliprange_high", number),
    same("trl.scale_rewards", "ppo.scale_rewards", scaled),
    same("trl.mask_truncated_completions", "ppo.mask_unfinished", truth),
    *needless("dataset_* shuffle_merged_datasets shuffle_before_merging_datasets is_preprocess preprocess_iterable "
              "skip_prepare_dataset num_dataset_shards_to_save dataset_processes streaming streaming_* "
              "total_num_tokens total_supervised_tokens sample_packing_* eval_sample_packing evals_per_epoch "
              "saves_per_epoch save_first_step gc_steps gc_collect_steps eval_batch_size eval_table_size "
              "eval_max_new_tokens do_bench_eval bench_* do_causal_lm_eval eval_causal_lm_metrics generate_samples "
              "num_generation_samples generation_* strict tokenizer_use_fast tokenizer_legacy tokenizer_type "
              "tokenizer_config tokenizer_save_jinja_files model_type processor_type axolotl_config_path "
              "is_*_derived_model hf_use_auth_token include_tkps profiler_* gradio_* use_otel_metrics otel_* "
              "auto_resume_from_checkpoints secrets volumes gpu gpu_count node_count memory* timeout* provider "
              "project_name branch dockerfile_commands test_value base_model_ignore_patterns base_model_config "
              "experimental_skip_move_to_device multipack_real_batches min_sample_len eval_strategy "
              "evaluation_strategy trl.log_completions trl.num_completions_to_print trl.replay_* "
              "low_cpu_mem_usage fix_untrained_tokens push_dataset_to_hub max_packed_sequence_len", OF_OUR_LOOP),
    *needless("pad_to_sequence_len batch_flattening pretrain_multipack_* pretraining_sample_concatenation",
              "many texts lie in one row here anyway, each as if alone"),
    *needless("device world_size ddp fsdp* dp_* tensor_parallel_size context_parallel_size sequence_parallel_degree "
              "heads_k_stride ring_attn_func expert_parallel* use_ray ray_* resources_per_worker deepcompile "
              "gpu_memory_limit", OF_MACHINES),
    *needless("xformers_attention sdp_attention flex_attention flex_attn* flash_* sage_attention eager_attention "
              "gemma4_hybrid* large_head_attention sdpa_varlen fused_attn_kernel experts_implementation lora_*_kernel "
              "chunked_cross_entropy* cut_cross_entropy tiled_mlp* use_kernels use_scattermoe use_sonicmoe use_dsv4* "
              "use_glm* dsv4_* liger_* trl.use_vllm trl.vllm_* vllm unsloth_* plugins s2_attention torchdistx_path "
              "llama4_linearized_experts", OF_KERNELS),
    *needless("selective_checkpointing layer_offloading lora_on_cpu trl.sync_ref_model embeddings_skip_upcast "
              "qlora_sharded_model_loading", OF_MEMORY),
    *needless("wandb_* mlflow_* hf_mlflow_log_artifacts comet_* trackio_* swanlab_*", "how a tracker is spoken to: its "
              "own variables, and track"),
    *needless("peft_init_lora_weights peft_autocast_adapter_dtype lora_fan_in_fan_out merge_method", "adapters begin "
              "as PEFT's, in float32"),
    *needless("freeze_mm_modules image_* processor_kwargs", "pictures are not read; the language part "
              "alone is trained"),
    *needless("hub_strategy hub_revision", OF_HUB),
    *needless("train_on_inputs", "answers alone are learnt"),
    *PLAIN,
    *lacking("load_in_8bit gptq* model_quantization_config* quantization qat quantize_* use_onebitllms nvfp4* "
             "llmcompressor", OTHER_BITS),
    *lacking("lora_model_dir", "going on from an adapter: merge it first (danlu merge) and name the merged model"),
    *lacking("lora_target_parameters peft_layers_pattern peft_layer_replication "
             "peft.* peft_ensure_weight_tying relora* lisa_* unfrozen_parameters", "a way of training beside LoRA on "
             "named layers and all weights"),
    *lacking("loraplus_lr_embedding embedding_lr* lr_groups", "a rate of its own for some layers"),
    *lacking("lr_quadratic_warmup cosine_min_lr_ratio cosine_constant_lr_ratio lr_div_factor jagged_* eta_min",
             "schedules here have no settings beside warmup"),
    *lacking("adam_epsilon2 adam_beta3 dion_* qgalore_* optim_args", "that optimizer; train.optim lists those there "
             "are"),
    *lacking("loss_watchdog_*", "a bound of the loss that stops a run: train.doctor: act goes back instead"),
    *lacking("special_tokens tokens added_tokens_overrides eot_tokens resize_token_embeddings_to_32x "
             "mean_resizing_embeddings shrink_embeddings tokenizer_use_mistral_common", "tokens are the tokenizer's; "
             "turns end as the chat template ends them. New ones: save the model with them first"),
    *lacking("default_system_message", "a system message for every row: write it into the rows, key system"),
    *lacking("revision_of_model", "write it behind the name: org/name@revision"),
    *lacking("overrides_of_model_* cls_model_config model_config type_of_model reinit_weights rope_scaling "
             "scaling_softmax* use_pose pose_* diffusion", "another architecture than the model's own; random weights: "
             "kind pretrain with pretrain.weights: random"),
    *lacking("dpo_use_weighting dpo_loss_* rpo_alpha dpo_norm_loss", "further terms of the loss on pairs"),
    *lacking("orpo_alpha simpo_gamma cpo_alpha kto_* ebft* process_reward_model", "that way of learning"),
    *lacking("use_eaft eaft_* fp8* fp32_norms fp32_norm_classes", "another form of the loss, or of numbers"),
    *lacking("center_rewards_coefficient num_labels", "scores are centred after training: reward.samples"),
    *lacking("curriculum_sampling sample_packing_sequentially", "data in the order of the file; it is shuffled"),
    *lacking("trl.top_p trl.top_k trl.min_p trl.repetition_penalty trl.generation_kwargs", "rollouts are drawn as the "
             "policy is, without filters"),
    *lacking("trl.*", "further forms of the policy's loss"),
    *lacking("max_prompt_len eval_sequence_len", "a limit of its own; data.max_length is of the whole"),
)  # fmt: skip


def _datasets(given: Given, key: str = "datasets") -> list[dict[str, Any]]:
    entries = given.get(key) or []
    entries = entries if isinstance(entries, list) else [entries]
    return [dict(entry) if isinstance(entry, Mapping) else {"path": str(entry)} for entry in entries]


def _type(entry: Mapping[str, Any]) -> str:
    return entry["type"] if isinstance(entry.get("type"), str) else ""


def stage(given: Given) -> str:
    """Raises ConfigError for what Danlu has no training for."""
    rl = str(given.get("rl", ""))
    if rl and rl not in RL:
        raise ConfigError(f"{given.where}: rl {rl} has no counterpart", allowed=", ".join(RL))
    if given.get("process_reward_model"):
        raise ConfigError(f"{given.where}: process_reward_model has no counterpart", allowed="reward_model")
    if given.get("diffusion"):
        raise ConfigError(f"{given.where}: diffusion has no counterpart", allowed="models that go on with a text")
    method = given.get("adapter")
    if method not in (None, "lora", "qlora"):
        raise ConfigError(f"{given.where}: adapter {method} has no counterpart", allowed="lora, qlora, or none")
    if rl:
        return RL[rl]
    if given.get("reward_model"):
        return "reward"
    types = [_type(entry) for entry in _datasets(given)]
    documents = bool(types) and all(name.split(":")[0] in _DOCUMENTS for name in types)
    return "pretrain" if documents or (given.get("pretraining_dataset") and not types) else "sft"


def read(given: Given, making: Making) -> None:
    """Adapter, data, how long and how much at once."""
    if given.get("learning_rate") is None:
        raise ConfigError(f"{given.where}: learning_rate is not given, and axolotl has no default", fix="add it")
    making.name(given.get("output_dir"))
    _put_batch(given, making)
    put_warmup(given, making, default=0.03)
    making.put(
        "merge",
        {} if not is_off(given.get("merge_lora")) and making.kind in ("sft", "dpo") else None,
        making.said("merge_lora"),
    )
    _put_adapter(given, making)
    put_too_long(
        making,
        given.read("excess_length_strategy", lambda value: one_of(value, _TOO_LONG), "drop"),
        making.said("excess_length_strategy"),
    )
    if making.kind == "dpo":
        beta = given.get("trl.beta", given.get("rl_beta", given.get("dpo_beta", 0.1)))
        making.put("dpo.beta", number(beta), "rl_beta" if beta != 0.1 else making.default)
        making.put("dpo.loss_type", "ipo" if given.get("rl") == "ipo" else "sigmoid", "rl")
    if making.kind == "ppo":
        making.put("ppo.advantage_estimator", "grpo", "rl grpo")
        making.put(
            "ppo.loss_aggregation", aggregation(given, given.get("trl.loss_type", "dapo")), making.said("trl.loss_type")
        )
        making.put("ppo.kl_coef", number(given.get("trl.beta", given.get("rl_beta", 0.0))), "trl.beta")
        given.values.setdefault("reward_funcs", given.get("trl.reward_funcs"))
        put_rewards(given, making)
        put_rollout(given, making)
    if not is_off(given.get("sample_packing")):
        tell_packed(making, "sample_packing")
    _put_template(given, making)
    _put_trackers(given, making)
    _put_data(given, making)


def _put_batch(given: Given, making: Making) -> None:
    names = ("micro_batch_size", "gradient_accumulation_steps")
    if given.get("batch_size") and not given.get("gradient_accumulation_steps"):
        making.put("train.batch_size", given.whole("batch_size"), "batch_size")
    else:
        put_batch(given, making, names, rows=1, accumulated=1)


def _put_adapter(given: Given, making: Making) -> None:
    if given.get("adapter") is None:
        put_whole(making, "adapter")
        _put_bits(given, making)
        return
    _put_bits(given, making)
    put_adapter_as_peft(making)
    named, linear = given.get("lora_target_modules"), not is_off(given.get("lora_target_linear"))
    if named and not linear:  # text is a pattern there, or all-linear
        making.put("lora.target_modules", named if isinstance(named, str) else layers(named), "lora_target_modules")
    if linear:
        making.put("lora.target_modules", "all-linear", "lora_target_linear")
    if not given.get("peft_trainable_token_indices") and making.kind != "pretrain":
        making.put("lora.trainable_token_indices", None, "as PEFT: no rows of tokens; Danlu's auto helps base models")


def _put_bits(given: Given, making: Making) -> None:
    if given.get("adapter") == "qlora" or not is_off(given.get("load_in_4bit")):
        origin = "load_in_4bit" if given.get("load_in_4bit") else "adapter"
        put_four_bit(making, origin, given.read("bnb_config_kwargs", mapping, {}))


def _put_template(given: Given, making: Making) -> None:
    name = given.get("chat_template")
    if name == "chatml":
        making.put("data.chat_template", "chatml", "chat_template")
    elif name not in (None, "tokenizer_default", "jinja"):
        making.differs("chat_template", f"{name}: conversations are written by the model's own template; another one: "
                                        "data.chat_template")  # fmt: skip


def _put_trackers(given: Given, making: Making) -> None:
    asked = [name for name in TRACKERS if not is_off(given.get(f"use_{name}"))]
    for name in ("wandb", "trackio", "mlflow"):
        project = given.get(f"{name}_project", given.get(f"{name}_project_name", given.get(f"{name}_experiment_name")))
        if project and name not in asked:
            asked.append(name)
    making.put("track.report_to", asked, "use_…" if asked else making.default)


def _put_data(given: Given, making: Making) -> None:
    key = "datasets" if given.get("datasets") else "pretraining_dataset"
    entries = _datasets(given, key)
    if not entries:
        raise ConfigError(f"{given.where}: names no data", fix="add datasets: [{path: FILE, type: alpaca}]")
    sources = [source for entry in entries for source in _sources(entry, making, key)]
    put_sources(making, sources, key)
    if aside := _datasets(given, "test_datasets"):
        held_out = [source for entry in aside for source in _sources(entry, making, "test_datasets")]
        making.put("data.held_out_path", held_out[0].path, "test_datasets")
        if len(held_out) > 1:
            making.lacks("test_datasets", f"one file is held out; {', '.join(one.path for one in held_out[1:])} is not")
    else:
        put_held_out(making, sources, given.number("val_set_size") or 0.0, "val_set_size")


_READ = {"path", "type", "ds_type", "data_files", "split", "field", "field_messages", "message_property_mappings",
         "message_field_role", "message_field_content", "roles", "text_column", "trust_remote_code",
         "field_instruction", "field_output", "field_input", "field_system", "field_chosen", "field_rejected",
         "roles_to_train", "field_tools"}  # fmt: skip


def _sources(entry: Mapping[str, Any], making: Making, key: str) -> list[Source]:
    """The files of one data set."""
    name, files = str(entry.get("path") or ""), listed(entry.get("data_files"))
    paths = [place_of(str(file), making, key) for file in files] if files else [place_of(name, making, key)]
    for extra in sorted(entry.keys() - _READ):
        if not is_off(entry[extra]):
            making.lacks(f"{key}.{extra}", f"{entry[extra]!r:.60}: how rows are read; Danlu has data.format, columns "
                                           "and roles")  # fmt: skip
    if entry.get("split") not in (None, "train"):
        making.lacks(f"{key}.split", f"{entry['split']}: name that part's files in data.path")
    format, columns = _shape(entry, making, key)
    return [Source(path, format, columns, _roles(entry, making, key)) for path in paths]


def _shape(entry: Mapping[str, Any], making: Making, key: str) -> tuple[str | None, dict[str, str | None]]:
    """(the format of its rows, our columns -> its)."""
    kind = _type(entry)
    head = kind.split(":")[0].split(".")[0]
    custom = entry["type"] if isinstance(entry.get("type"), Mapping) else {}
    fields = {**custom, **entry}
    if custom.get("format") or custom.get("no_input_format"):
        making.lacks(f"{key}.type", "format: a prompt as text; conversations are written by the chat template")
    if making.kind in ("dpo", "reward"):
        ours = {"field_messages": "prompt", "field_prompt": "prompt", "field_chosen": "chosen",
                "field_rejected": "rejected"}  # fmt: skip
        return "preference", _mapped(fields, ours)
    if head in _DOCUMENTS:
        return "text", _mapped(fields, {"field": "text", "text_column": "text"})
    if head == "alpaca":
        making.differs(f"{key}.type", f"{kind}: a row is a conversation in the model's own template, without Alpaca's "
                                      "sentences around it")  # fmt: skip
        return "alpaca", {}
    if head in ("chat_template", "sharegpt", "chatml", "llama3"):
        named = entry.get("field_messages")
        if named in (None, "messages", "conversations"):
            return ("sharegpt" if named == "conversations" or head == "sharegpt" else "messages"), {}
        return "messages", {"messages": str(named)}
    if custom:
        ours = {"field_instruction": "instruction", "field_output": "output", "field_input": "input",
                "field_system": "system"}  # fmt: skip
        return "alpaca", _mapped(fields, ours)
    if kind:
        making.lacks(f"{key}.type", f"{kind}: rows are recognised by their columns; data.columns names others")
    return None, {}


def _mapped(fields: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, str | None]:
    return {our: str(fields[name]) for name, our in ours.items() if fields.get(name) not in (None, our)}


def _roles(entry: Mapping[str, Any], making: Making, key: str) -> dict[str, str]:
    """Speakers of its own names; keys of a message that Danlu does not know are told."""
    mapped = entry.get("message_property_mappings") or {}
    for name, usual in (("role", ("role", "from")), ("content", ("content", "value"))):
        theirs = entry.get(f"message_field_{name}") or mapped.get(name)
        if theirs not in (None, *usual):
            making.lacks(key, f"a message's {name} is its {theirs}; rename it in the file to {usual[0]}")
    trained = [str(role) for role in listed(entry.get("roles_to_train"))]
    if trained and set(trained) - {"assistant", "gpt"}:
        making.lacks(f"{key}.roles_to_train", f"{', '.join(trained)}: the assistant's turns are learnt")
    roles = entry.get("roles") or {}
    return {
        str(name): role
        for role, names in roles.items()
        for name in listed(names)
        if SPEAKERS.get(str(name).casefold()) != role and role in ("system", "user", "assistant", "tool")
    }


AXOLOTL = Tool(
    name="axolotl",
    title="axolotl",
    rows=ROWS,
    own=frozenset({
        "output_dir", "micro_batch_size", "gradient_accumulation_steps", "batch_size", "warmup_steps", "warmup_ratio",
        "adapter", "datasets", "test_datasets", "pretraining_dataset", "val_set_size", "rl", "rl_beta", "dpo_beta",
        "reward_model", "sample_packing", "chat_template", "excess_length_strategy", "merge_lora", "trl.beta",
        "trl.reward_funcs", "trl.loss_type", "reward_funcs", "lora_target_modules", "lora_target_linear",
        "load_in_4bit", "bnb_config_kwargs",
        "use_wandb", "use_mlflow", "use_trackio", "use_swanlab", "use_comet", "use_tensorboard",
    }),
    stage=stage,
    read=read,
)  # fmt: skip
