"""Keys of Hugging Face's trainer, which LLaMA-Factory, ms-swift and TRL pass on; each has defaults of its own.

Facts: transformers 5 (`TrainingArguments`), where `warmup_steps` below 1 is a share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from danlu.errors import ConfigError
from danlu.foreign.making import Making
from danlu.foreign.table import Given, Row, lacking, needless, same
from danlu.foreign.values import above_zero, listed, number, truth, whole

OPTIMIZERS = {
    "adamw_torch_fused": "adamw_torch",
    "adamw_hf": "adamw_torch",
    "adamw_apex_fused": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "adamw_torch_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
}
SCHEDULES = {"constant_with_warmup": "constant"}


def optimizer(value: Any) -> str:
    return OPTIMIZERS.get(str(value), str(value))


def schedule(value: Any) -> str:
    return SCHEDULES.get(str(value), str(value))


def trackers(value: Any) -> list[str] | None:
    """`report_to` as a list; `all` is left to Danlu's own default."""
    names = [str(name) for name in listed(value)]
    return None if "all" in names else [name for name in names if name != "none"]


def _sixteen(word: str) -> Any:
    """The weights' type for `bf16: true`, `fp16: true`."""
    return lambda value: word if value == "auto" or truth(value) else None


# What only this tool's way of working needs.
OF_OUR_LOOP = "Danlu logs each step, saves so that a run goes on exactly, and reads its data in memory"
OF_MACHINES = "how the work is spread over cards and processes; one process here"
OF_KERNELS = "which kernels compute it; Danlu takes the fastest that agrees with the plain one on this machine"
OF_MEMORY = "how memory is saved; results are the same"
OF_HUB = "whom the model is published to; publish runs/NAME/adapter or merged with your hub's own command"

PLAIN = (
    *needless(
        "logging_* log_* disable_tqdm include_num_input_tokens_seen include_tokens_per_second plot_loss "
        "overwrite_output_dir save_only_model save_safetensors safe_serialization save_strategy save_on_each_node "
        "max_shard_size do_train do_eval skip_memory_metrics remove_unused_columns label_names dataloader_* "
        "dataset_num_proc use_cpu no_cuda prediction_loss_only per_device_eval_batch_size eval_accumulation_steps "
        "eval_delay eval_on_start eval_do_concat_batches eval_use_gather_object include_for_metrics "
        "ignore_data_skip full_determinism data_seed length_column_name group_by_length average_tokens_across_devices "
        "restore_callback_states_from_checkpoint enable_jit_checkpoint "
        "load_from_cache_file train_sampling_strategy debug",
        OF_OUR_LOOP,
    ),
    *needless(
        "ddp_* deepspeed fsdp fsdp_* local_rank accelerator_config parallelism_config ds3_gather_for_generation "
        "device_map max_memory zero_hpz_partition_size deepspeed_autotp_size sequence_parallel_size",
        OF_MACHINES,
    ),
    *needless(
        "attn_implementation attn_impl flash_attn use_liger_kernel enable_liger_kernel liger_* tf32 torch_compile* "
        "use_unsloth use_unsloth_gc jit_mode_eval use_flash_attn use_cache experts_impl use_logits_to_keep",
        OF_KERNELS,
    ),
    *needless(
        "gradient_checkpointing_kwargs torch_empty_cache_steps activation_offloading low_cpu_mem_usage "
        "use_reentrant_gc auto_find_batch_size padding_free pad_to_multiple_of activation_checkpointing*",
        OF_MEMORY,
    ),
    *needless("push_to_hub hub_*", OF_HUB),
    *needless("fp16_full_eval bf16_full_eval fp16_opt_level", "held-out loss is measured in the type of training"),
    *lacking("label_smoothing_factor", "a loss that is smoothed; sft and pretrain have the plain one"),
    *lacking("optim_args optim_target_modules", "optimizers here have the keys of train alone"),
    *lacking(
        "load_best_model_at_end metric_for_best_model greater_is_better early_stopping_patience early_stopping_steps "
        "early_stop_interval",
        "stopping at the best held-out loss: train.doctor: act, with train.eval_steps",
    ),
    *lacking("resume_from_checkpoint", "checkpoints of another tool are not read; a run of Danlu: resume=true"),
    *lacking("trust_remote_code", "models whose code lies beside the weights are not run; those of transformers are"),
    *lacking("router_aux_loss_coef moe_aux_loss_coef", "a loss that spreads tokens over experts"),
    *lacking("do_predict predict_with_generate", "answering after training: danlu generate"),
)


def trainer_rows(**own: Any) -> tuple[Row, ...]:
    """The keys that a trainer passes on; `own` are the tool's defaults where they are not transformers'."""
    default = {
        "learning_rate": 5e-5, "num_train_epochs": 3.0, "weight_decay": 0.0, "lr_scheduler_type": "linear",
        "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "seed": 42, "report_to": None, **own,
    }  # fmt: skip
    return (
        same("learning_rate", "train.learning_rate", number, default["learning_rate"]),
        same("num_train_epochs", "train.num_train_epochs", number, default["num_train_epochs"]),
        same("max_steps", "train.max_steps", above_zero),
        same("weight_decay", "train.weight_decay", number, default["weight_decay"]),
        same("adam_beta1", "train.adam_beta1", number, 0.9),
        same("adam_beta2", "train.adam_beta2", number, default["adam_beta2"]),
        same("adam_epsilon", "train.adam_epsilon", number, default["adam_epsilon"]),
        same("max_grad_norm", "train.max_grad_norm", number, default["max_grad_norm"]),
        same("lr_scheduler_type", "train.lr_scheduler_type", schedule, default["lr_scheduler_type"]),
        same("lr_scheduler_kwargs", "train.lr_scheduler_kwargs"),
        same("optim", "train.optim", optimizer),
        same("seed", "seed", whole, default["seed"]),
        same("save_steps", "train.save_steps", _steps),
        same("save_total_limit", "train.save_total_limit", whole),
        same("gradient_checkpointing", "train.gradient_checkpointing", truth),
        same("neftune_noise_alpha", "train.neftune_noise_alpha", number),
        same("bf16", "model.dtype", _sixteen("auto"), differs="auto takes bfloat16 where the hardware multiplies it"),
        same("fp16", "model.dtype", _sixteen("float16")),
        same("report_to", "track.report_to", trackers, default["report_to"]),
        same("project", "track.project"),
        same("run_name", "track.run_name"),
        *PLAIN,
    )


def _steps(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None and found >= 1 else None


# Keys that `read_trainer` looks at.
OWN = frozenset({
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "warmup_steps", "warmup_ratio",
    "eval_steps", "eval_strategy", "evaluation_strategy",
})  # fmt: skip


def read_trainer(given: Given, making: Making, rows: int = 8, accumulated: int = 1) -> None:
    """Name, batch, warmup and how often to look. `rows` and `accumulated` are the tool's own batch."""
    making.name(given.get("output_dir"))
    put_batch(
        given,
        making,
        ("per_device_train_batch_size", "gradient_accumulation_steps"),
        rows=rows,
        accumulated=accumulated,
    )
    put_warmup(given, making)
    strategy = str(given.get("eval_strategy", given.get("evaluation_strategy", "no")))
    steps = given.number("eval_steps")
    if making.kind == "ppo" and steps:
        making.idle("eval_steps", "held-out prompts are answered before and after training")
    elif strategy == "epoch":
        making.lacks("eval_strategy", "a look at the held-out loss each epoch: set train.eval_steps")
    elif steps and steps < 1:
        making.lacks("eval_steps", "a share of the steps: set train.eval_steps to a number of them")
    elif steps and (strategy == "steps" or making.tool.name == "ms-swift"):
        making.put("train.eval_steps", int(steps), "eval_steps")
    elif steps:
        making.idle("eval_steps", "nothing is looked at while eval_strategy is no")


def put_batch(given: Given, making: Making, names: tuple[str, str], *, rows: int, accumulated: int) -> None:
    """The examples of one optimizer step: rows a pass, times passes, times processes."""
    pass_rows = given.whole(names[0], rows) or rows
    passes = given.whole(names[1], accumulated) or accumulated
    said = [name for name in names if given.get(name) is not None]
    factors = [str(pass_rows), str(passes), *([f"{given.processes} processes"] if given.processes > 1 else [])]
    origin = f"{' x '.join(names)}: {' x '.join(factors)}"
    making.put("train.batch_size", pass_rows * passes * given.processes, origin if said else making.default)
    if given.processes > 1:
        making.differs(names[0], f"{given.processes} processes made one step together; here one process makes it alone")


def put_warmup(given: Given, making: Making, default: float = 0.0) -> None:
    """`warmup_steps` counts before `warmup_ratio` where both are given, and below 1 it is a share."""
    steps, ratio = given.number("warmup_steps"), given.number("warmup_ratio")
    if steps is not None and 0 < steps < 1:
        steps, ratio = None, steps
    if str(given.get("lr_scheduler_type", "")) == "constant" and (steps or ratio):
        making.differs("lr_scheduler_type", "constant had no warmup there; constant_with_warmup has")
        steps = ratio = None
    if steps:
        if making.knows("train.warmup_steps"):
            making.put("train.warmup_steps", int(steps), "warmup_steps")
        elif longest := given.above_zero("max_steps"):
            making.put("train.warmup_ratio", min(0.99, steps / longest), f"warmup_steps of max_steps {longest}")
        else:
            making.lacks("warmup_steps", "a warmup counted in steps: set train.warmup_ratio, a share of them")
    elif ratio is not None:
        making.put("train.warmup_ratio", ratio, "warmup_ratio" if given.get("warmup_ratio") else "warmup_steps")
    else:
        making.put("train.warmup_ratio", default, making.default)


def put_whole(making: Making, origin: str) -> bool:
    """All weights, where the kind can: whether it is so."""
    if making.kind == "ppo":
        making.differs(origin, "a policy has an adapter here: without one there is no reference to compare it with")
        return False
    making.put("lora", None, origin)
    return True


def put_adapter_as_peft(making: Making) -> None:
    """How an adapter of PEFT begins, and that nothing but its layers is learnt."""
    making.put("lora.init", "kaiming", "as PEFT begins")
    if making.kind != "pretrain":
        making.put("lora.trainable_token_indices", None, "as PEFT: no rows of tokens; Danlu's auto helps base models")


BITSANDBYTES = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")


def put_four_bit(
    making: Making, origin: str, said: Mapping[str, Any], names: tuple[str, str] = BITSANDBYTES, is_double: bool = True
) -> None:
    """The base in 4 bits, as bitsandbytes has them.

    Args:
        origin: the key that asks for it.
        said, names: the keys that say which 16 values a weight has, and whether the scales are packed too.
        is_double: the tool's own, where nothing says so.
    """
    if "lora" in making.lines:
        making.lacks(origin, "4-bit weights without an adapter cannot be trained; they stand in 16")
        return
    kind, double = names
    making.put("model.load_in_4bit", True, origin)
    making.put("model.bnb_4bit_quant_type", said.get(kind) or "nf4", kind if said.get(kind) else making.default)
    packed = truth(said.get(double))
    given = packed is not None
    making.put("model.bnb_4bit_use_double_quant", packed if given else is_double, double if given else making.default)


OTHER_BITS = "weights of other than 4 bits under an adapter, or by another library; they stand in 16"
OF_FOUR_BITS = "4-bit weights are multiplied in model.dtype"


def put_too_long(making: Making, there: str, origin: str) -> None:
    """What becomes of an example that is too long; pairs and prompts are not cut here, documents are by themselves."""
    if making.kind in ("dpo", "reward", "ppo") and there != "raise":
        making.put("data.too_long", "skip", origin)
        if there == "truncate":
            making.differs("data.too_long", "a pair or prompt that is too long is left out, where the tool cuts it")
    elif making.kind != "pretrain":
        making.put("data.too_long", there, origin)


def tell_packed(making: Making, key: str) -> None:
    """A step of packed rows holds more examples than it has rows."""
    if making.kind == "sft":
        making.differs(key, "train.batch_size counts examples, where the tool counts packed rows: multiply it by the "
                            "examples that fit into one; texts are packed here anyway, each as if alone")  # fmt: skip
    else:
        making.idle(key, "texts are packed here anyway, each as if alone")


def check_loss(given: Given, value: Any, allowed: Iterable[str]) -> str:
    """The one loss that is asked for. Raises ConfigError for one that is not here: another one is another training."""
    names = [str(name) for name in listed(value)]
    if not names or set(names) - set(allowed):
        raise ConfigError(f"{given.where}: loss_type {', '.join(names)} has no counterpart", allowed=", ".join(allowed))
    return names[0]


PAIR_LOSSES = ("sigmoid", "ipo", "hinge")

# -- learning from rewards ------------------------------------------------------------------------------

_AGGREGATIONS = {"grpo": "sequence", "dapo": "token", "bnpo": "token", "dr_grpo": "constant"}


def aggregation(given: Given, value: Any) -> str:
    """GRPO's `loss_type` as what a step's mean is over."""
    return _AGGREGATIONS[check_loss(given, value, _AGGREGATIONS)]


def scaled(value: Any) -> Any:
    """GRPO's `scale_rewards`: by the group, or not at all."""
    return {"group": True, "none": False}.get(str(value), value)


def put_rewards(given: Given, making: Making) -> None:
    """Who judges: functions of Python by their place; names that only the tool knows are told."""
    named = [str(name) for name in listed(given.get("reward_funcs"))]
    known = [name for name in named if "." in name or ":" in name]
    for name in named:
        if name not in known[:1]:
            why = "one judge a run" if name in known else "known to that tool alone"
            making.lacks("reward_funcs", f"{name}: {why}; a function of your own, reward.function, can do as it does")
    if known:
        place, _, function = known[0].replace(":", ".").rpartition(".")
        making.put("reward.function", f"{place}:{function}", "reward_funcs")
        making.differs("reward_funcs", "a function is handed each answer as text, also where prompts are conversations")
    elif "reward.model" not in making.lines:
        making.put("reward.function", "rewards.py:judge", "to be written: it was reward_funcs")
        making.lacks("reward_funcs", "write rewards.py with judge(prompts, completions, references, **options) that "
                                     "gives a number for each answer")  # fmt: skip


def put_rollout(given: Given, making: Making) -> None:
    """As many answers at once as a step learns from, and no reward put in the place of another."""
    batch = making.lines["train.batch_size"].value if "train.batch_size" in making.lines else 32
    origin = "generation_batch_size" if given.get("generation_batch_size") else "a step's batch"
    wanted, group = given.whole("generation_batch_size") or batch, making.lines.get("ppo.num_generations")
    size = math.ceil(wanted / group.value) * group.value if group and group.value else wanted
    making.put("ppo.rollout_batch_size", size, origin)
    if size != wanted:
        making.differs(origin, f"{wanted} answers, rounded up to whole groups")
    making.put("ppo.unfinished_reward", None, making.default)
    making.put("lora.lora_dropout", 0.0, "dropout would move the ratio before anything is learnt")
