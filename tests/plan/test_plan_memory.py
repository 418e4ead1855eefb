"""Memory by part, worked out by hand, and what fits."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from danlu.cli import call
from danlu.errors import ConfigError
from danlu.plan.cache import cache_bytes
from danlu.plan.cards import memory_of
from danlu.plan.configs import shape_from
from danlu.plan.fit import most_tokens, smallest_change, ways
from danlu.plan.memory import AT_END, AT_LOSS, OPTIMIZERS, STORED, Job, estimate
from danlu.plan.models import shape_of
from danlu.plan.presets import PRESETS
from danlu.plan.programs import DANLU, DANLU_CPU, Program
from danlu.words import CHINESE

LLAMA = shape_of("Llama-2-7B")
# A program that keeps what it must, and nothing lies in holes: sums can be worked out.
BARE = Program(rms_norm=0, trained_norm=0, gated=2, adapter_input=2, adapter_dropout=0, shares_input=True, logit=4)
TINY = {
    "model_type": "llama", "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 10,
}  # fmt: skip


def tiny(**more):
    return shape_from({**TINY, **more}, "tiny")


@pytest.mark.parametrize(
    ("dtype", "stored", "total"),
    [
        ("bfloat16", None, 2 * 6_738_415_616),
        ("float32", None, 4 * 6_738_415_616),
        # the blocks' 6,476,005,376 weights in 4.5 bits, embedding, head and norms in 16
        ("bfloat16", "nf4", 6_476_005_376 * 4.5 / 8 + 2 * 262_410_240),
        # and in 4 + 8/64 + 32/(64 x 256) bits
        ("bfloat16", "nf4-dq", 6_476_005_376 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * 262_410_240),
    ],
)
def test_weights_as_they_are_stored(dtype, stored, total):
    found = estimate(Job(LLAMA, "inference", dtype=dtype, stored=stored))
    assert found.of("weights") + found.of("linear layers") + found.of("other weights") == pytest.approx(total)


def test_the_notes_rule_is_the_first_line(capsys):
    assert call(["plan", "memory", "Llama-2-7B", "--method", "inference"]) == 0
    shown = capsys.readouterr().out
    assert "2 bytes a weight: 13.48 GB" in shown.splitlines()[1]


def test_a_tied_head_counts_once():
    tied, own = (estimate(Job(tiny(tie_word_embeddings=tie), "inference")).of("weights") for tie in (True, False))
    assert own - tied == 2 * 4 * 10


def test_all_experts_are_held():
    mixtral = shape_of("mixtral-8x7b")
    assert estimate(Job(mixtral, "inference")).of("weights") == 2 * 46_702_792_704


def test_an_adapter_takes_sixteen_bytes_a_weight():
    found = estimate(Job(LLAMA, "lora", r=8))
    assert found.of("adapter") + found.of("optimizer") == 16 * 19_988_480


@pytest.mark.parametrize(("optim", "each"), [("adamw_torch", 8), ("sgd", 4), ("paged_adamw_32bit", 8), ("none", 0)])
def test_the_optimizer_of_all_weights(optim, each):
    found = estimate(Job(LLAMA, "full", optim=optim, program=DANLU))
    assert found.of("optimizer") == each * 6_738_415_616
    assert found.of("float32 copies") == 4 * 6_738_415_616


def test_8_bit_means_are_a_quarter_but_of_the_embedding():
    """A byte for each of two means, and 4 bytes for 256 of them; those of 131,072,000 weights stay in 4 bytes."""
    found = estimate(Job(LLAMA, "full", optim="adamw_8bit"))
    assert found.of("optimizer") == pytest.approx((6_738_415_616 - 131_072_000) * 2 * (1 + 4 / 256) + 131_072_000 * 8)


def test_bfloat16_alone_is_eight_bytes_a_weight():
    weights = 6_738_415_616
    found = estimate(Job(LLAMA, "full", optim="adamw_bf16", length=16, program=DANLU))
    parts = {name: found.of(name) / weights for name in ("weights", "optimizer", "float32 copies", "gradients")}
    assert parts == {"weights": 2, "optimizer": 4, "float32 copies": 0, "gradients": 2}


def test_what_blocks_keep_of_a_token():
    """4 wide, 8 inside, heads of 4 on keys of 2, in 2 bytes; 2 blocks.

    A block: 2 norms x 4, queries 4, keys and values 2 + 2, what attention makes 4, gate and up 2 x 8; for adapters what
    queries, output, gate and up, and down read: 4 + 4 + 4 + 8. That is 56 numbers; and 4 bytes for each of 2 heads.
    """
    job = Job(tiny(), "lora", length=100, dropout=0, program=BARE)
    assert estimate(job).of("activations") == 100 * 2 * (2 * 56 + 4 * 2)


def test_of_all_weights_what_linear_layers_read_is_kept():
    """The same without what the output reads, which attention keeps."""
    job = Job(tiny(), "full", length=10_000, dropout=0, program=BARE)
    found = estimate(job)
    assert found.moment == AT_LOSS
    assert found.of("activations") == 10_000 * 2 * (2 * 52 + 4 * 2)


def test_checkpointing_keeps_the_borders_and_one_block():
    job = Job(tiny(), "lora", length=100, dropout=0, checkpointing=True, program=BARE)
    assert estimate(job).of("activations") == 100 * (2 * 4 * 2 + 2 * 56 + 4 * 2)


def test_logits_of_a_whole_pass_and_in_chunks():
    """Of 100,000 words, more than what a block's way back takes."""
    shape = tiny(vocab_size=100_000)
    assert estimate(Job(shape, length=1000, program=BARE)).of("logits") == 4 * 100_000 * 1000
    chunked = replace(BARE, logit=0, chunk_tokens=256, chunk_logit=12)
    assert estimate(Job(shape, length=1000, program=chunked)).of("logits") == 12 * 100_000 * 256
    assert estimate(Job(shape, length=100, program=chunked)).of("logits") == 12 * 100_000 * 100


def test_where_logits_are_fewer_it_is_the_way_back_of_a_block():
    """2 bytes x 100 tokens x (2 x 4 between blocks and 3 x 8 inside); and a model that scores answers has no others."""
    chunked = replace(BARE, logit=0, chunk_tokens=1, chunk_logit=1)
    assert estimate(Job(tiny(), length=100, program=chunked)).of("way back") == 2 * 100 * (2 * 4 + 3 * 8)
    large = Job(tiny(vocab_size=100_000), length=100, program=BARE, has_logits=False)
    assert estimate(large).of("logits") == 0


def test_attention_that_keeps_its_scores_grows_with_the_square():
    one, two = (estimate(Job(LLAMA, length=n, flash=False, program=BARE)).of("activations") for n in (1000, 2000))
    flat = [estimate(Job(LLAMA, length=n, program=BARE)).of("activations") for n in (1000, 2000)]
    assert flat[1] == pytest.approx(2 * flat[0])
    assert one - flat[0] == 32 * 32 * 1000**2 * 6
    assert two - flat[1] == 4 * (one - flat[0])


def test_short_texts_of_a_large_model_peak_where_gradients_are_made():
    found = estimate(Job(LLAMA, "full", length=16))
    assert found.moment == AT_END
    assert found.of("gradients") == 4 * 6_738_415_616
    several = estimate(Job(LLAMA, "full", length=4096, adds_up=True))
    assert (several.moment, several.of("gradients")) == (AT_LOSS, 4 * 6_738_415_616)


@pytest.mark.parametrize(
    ("name", "length", "numbers"),
    [
        ("llama-2-7b", 1000, 2 * 32 * 32 * 128 * 1000),
        ("llama-3.1-8b", 1000, 2 * 32 * 8 * 128 * 1000),  # 8 heads of keys
        ("qwen3-0.6b", 1000, 2 * 28 * 8 * 128 * 1000),  # heads of 128, not of 1024 / 16
        ("gemma-3-1b", 1000, 2 * 256 * (4 * 1000 + 22 * 512)),  # every sixth block sees all, the others 512
        ("gemma-3-1b", 100, 2 * 256 * 26 * 100),
        ("deepseek-v2-lite", 1000, 27 * 1000 * 16 * (128 + 64 + 128)),
    ],
)
def test_the_cache_of_keys_and_values(name, length, numbers):
    assert cache_bytes(shape_of(name), 3, length, 2) == 3 * 2 * numbers


def test_a_latent_cache_and_one_in_8_bits():
    deepseek = shape_of("deepseek-v2-lite")
    assert cache_bytes(deepseek, 1, 1000, 2, is_latent=True) == 27 * 1000 * (512 + 64) * 2
    scales = 32 * 1000 * 4 * 2 * 32
    assert cache_bytes(LLAMA, 1, 1000, 1) == cache_bytes(LLAMA, 1, 1000, 2) / 2 + scales


def test_states_do_not_grow_with_the_text():
    shape = shape_of("qwen3-next-80b-a3b")
    longer, long = (cache_bytes(shape, 1, n, 2) for n in (2000, 1000))
    assert longer - long == 12 * 2 * 2 * 256 * 2 * 1000


def test_experts_that_no_adapter_reaches_stay_in_16_bits():
    """bitsandbytes and PEFT reach linear layers alone."""
    found = estimate(Job(shape_of("qwen3-30b-a3b"), "qlora"))
    assert found.of("other weights") > 2 * shape_of("qwen3-30b-a3b").expert_parameters


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_planned(name):
    shape = shape_of(name)
    sizes = [estimate(Job(shape, method)).total for method in ("full", "lora", "qlora")]
    assert sizes == sorted(sizes, reverse=True)
    assert estimate(Job(shape, "lora", checkpointing=True)).total < sizes[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "batch=0"),
        ({"length": -1}, "length=-1"),
        ({"dtype": "int8"}, "dtype=int8"),
        ({"stored": "q4_k"}, "stored=q4_k"),
        ({"optim": "lion"}, "optim=lion"),
    ],
)
def test_what_is_none_is_said(given, said):
    with pytest.raises(ConfigError, match=said):
        Job(LLAMA, **given)


# -- what fits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "qlora", "inference"])
def test_as_many_tokens_as_are_said_fit_and_not_a_hundredth_more(method):
    job = Job(shape_of("qwen2.5-7b"), method)
    most = most_tokens(job, 24e9)
    assert estimate(replace(job, length=most)).total <= 24e9
    assert estimate(replace(job, length=most + most // 100 + 2)).total > 24e9


def test_the_largest_comes_first_and_what_does_not_fit_is_there_as_well():
    found = ways(shape_of("qwen2.5-0.5b"), 24e9, 2048)
    assert found[0].name == "all weights"
    assert found[0].fits()
    none = ways(shape_of("llama-2-70b"), 8e9, 2048)
    assert not any(way.fits() for way in none)
    assert {way.most for way in none} == {0}


def test_the_smallest_change_changes_no_result_if_that_is_enough():
    job = Job(shape_of("smollm2-135m"), "lora", 1, 4096, program=DANLU_CPU)
    need = estimate(job).total
    change = smallest_change(job, need * 0.75, longest=512)
    assert change.text == "train.micro_batch_tokens=2048"
    assert change.memory.total <= need * 0.75
    assert "gradient_checkpointing" in smallest_change(job, need * 0.75, longest=4096).text
    assert smallest_change(job, 1e6, longest=512) is None


def test_all_weights_that_do_not_fit_may_be_an_adapter():
    job = Job(shape_of("llama-3.2-3b"), "full", 1, 512)
    assert smallest_change(job, 24e9, longest=512).text.startswith("lora={}")


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("24", 24e9), ("80 GiB", 80 * 2**30), ("RTX 4090", 24e9), ("4090", 24e9),
                       ("NVIDIA H100", 80e9), ("512MiB", 512 * 2**20)]
)  # fmt: skip
def test_memory_of_a_card(text, size):
    assert memory_of(text) == size


@pytest.mark.parametrize("text", ["", "many", "0GB", "-4GB", "24XB", "H1000"])
def test_what_is_no_card_is_said(text):
    with pytest.raises(ConfigError, match="neither a size nor a known card"):
        memory_of(text)


# -- the commands ----------------------------------------------------------------------------------------


def test_every_part_has_its_name_and_reason_in_both_languages():
    jobs = [Job(LLAMA, method, checkpointing=twice, stored=stored, adds_up=True, length=n)
            for method in ("full", "lora", "qlora", "inference") for twice in (False, True) for n in (8, 8192)
            for stored in (None, *(["int8", "nf4"] if method != "full" else []))]  # fmt: skip
    jobs.append(Job(shape_of("mixtral-8x7b"), "lora"))
    said = {text for job in jobs for part in estimate(job).parts for text in (part.name, part.why)}
    said |= {estimate(job).moment for job in jobs}
    assert said - CHINESE.keys() == set()


def test_the_command_in_chinese(capsys):
    assert call(["plan", "memory", "qwen3-30b-a3b", "--method", "qlora", "--batch", "4", "--lang", "zh"]) == 0
    shown = capsys.readouterr().out
    assert "合计" in shown
    assert "每个 token 只经过其中 3,353,032,704 个参数" in shown


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--method", "full", "--r", "8"], "--r has no effect with --method full"),
        (["--method", "full", "--stored", "nf4"], "--stored has no effect"),
        (["--method", "inference", "--optim", "sgd"], "--optim has no effect"),
        (["--method", "lora", "--kv_dtype", "int8"], "--kv_dtype has no effect"),
    ],
)
def test_an_option_without_effect_is_an_error(given, said, capsys):
    assert call(["plan", "memory", "llama-2-7b", *given]) != 0
    assert said in " ".join(capsys.readouterr().err.split())


# What users of other calculators reported, as they would ask: the cache of keys and values, in GiB.
REPORTED = [
    ("Qwen3-0.6B", 40_960, 4.38),  # heads of 128, not of 1024 / 16
    ("gemma-3-27b", 131_072, 10.41),  # every sixth block sees all, the others 1,024 tokens
]


@pytest.mark.parametrize(("model", "length", "gib"), REPORTED)
def test_caches_that_other_calculators_had_wrong(model, length, gib):
    assert cache_bytes(shape_of(model), 1, length, 2) / 2**30 == pytest.approx(gib, abs=0.005)


def test_a_latent_cache_is_told_beside_the_whole_one(capsys):
    assert call(["plan", "memory", "deepseek-v3", "--method", "inference", "--length", "163840"]) == 0
    assert "as their latent alone 11.51 GB" in " ".join(capsys.readouterr().out.split())


def test_files_that_are_quantized_are_not_taken_for_16_bits_in_silence(tmp_path, capsys):
    config = {**PRESETS["llama-2-7b"], "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(["plan", "memory", str(tmp_path), "--method", "inference"]) == 0
    assert "its files are quantized (fp8); counted here in bfloat16" in capsys.readouterr().out
    assert call(["plan", "memory", str(tmp_path), "--method", "inference", "--stored", "int8"]) == 0
    assert "its files are quantized" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("said", "each"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.5 + 8 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 3, "group_size": 32, "type": "int"}}},
            },
            0.5 + 8 / 32,
        ),
    ],
)
def test_weights_in_few_bits_are_counted_as_they_are_held(said, each):
    config = {**PRESETS["llama-2-7b"], "quantization_config": said}
    job = Job(shape_from(config, "x"), "inference", dtype="bfloat16")
    parts = {part.name: part.bytes for part in estimate(job).parts}
    # 32 blocks of 4 * 4096^2 + 3 * 4096 * 11008 weights; embedding, head and norms in 2 bytes each.
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert parts["linear layers"] == pytest.approx(linear * each)
    assert parts["other weights"] == 2 * (2 * 32000 * 4096 + 65 * 4096)
    assert parts["dequantized"] == 2 * 4096 * 11008  # the largest layer, while a prompt is read
    assert {part.name for part in estimate(replace(job, stored="int8")).parts} >= {"linear layers"}


def test_embedding_and_head_in_few_bits_are_counted_as_they_are_held():
    groups = {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 128, "type": "int"}},
        "group_1": {
            "targets": ["model.embed_tokens", "lm_head"],
            "weights": {"num_bits": 8, "group_size": 128, "type": "int"},
        },
    }
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    shape = shape_from({**PRESETS["llama-2-7b"], "quantization_config": said}, "x")
    parts = {part.name: part.bytes for part in estimate(Job(shape, "inference", dtype="bfloat16")).parts}
    assert parts["linear layers"] == pytest.approx(shape.linear * (0.5 + 8 / 128))
    assert parts["embedding and head"] == pytest.approx(2 * 32000 * 4096 * (1 + 8 / 128))
    assert parts["other weights"] == 2 * 65 * 4096


def test_experts_in_few_bits_are_counted_as_they_are_held():
    config = {**PRESETS["qwen3-30b-a3b"], "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    shape = shape_from(config, "x")
    parts = {part.name: part.bytes for part in estimate(Job(shape, "inference", dtype="bfloat16")).parts}
    experts, routers = 48 * 128 * 3 * 2048 * 768, 48 * 128 * 2048
    assert parts["linear layers"] == pytest.approx((shape.linear + experts) * (0.5 + 8 / 128))
    assert parts["other weights"] == 2 * (2 * 151936 * 2048 + routers + shape.others)


def test_what_older_programs_say_in_a_file_of_its_own_is_told(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["llama-2-7b"]))
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))
    assert call(["plan", "memory", str(tmp_path), "--method", "inference"]) == 0
    assert "its files are quantized (gptq, 4 bit); counted as they are held" in capsys.readouterr().out


def test_files_in_few_bits_are_told(tmp_path, capsys):
    config = {**PRESETS["llama-2-7b"], "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(["plan", "memory", str(tmp_path), "--method", "inference"]) == 0
    assert "its files are quantized (awq, 4 bit); counted as they are held" in capsys.readouterr().out
    assert call(["plan", "memory", str(tmp_path), "--method", "lora"]) == 0
    assert "counted here in bfloat16" in capsys.readouterr().out


def test_what_fits_is_told(capsys):
    assert call(["plan", "fit", "--gpu", "24GB", "--model", "Qwen2.5-7B"]) == 0
    assert "the largest that fits: LoRA, checkpointing" in capsys.readouterr().out
    assert call(["plan", "fit", "--gpu", "1GB", "--model", "Qwen2.5-7B"]) == 0
    assert "nothing of it fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["memory", "Llama-2-7B", "--method", "qlora"],
        ["fit", "--gpu", "24GB", "--model", "Qwen2.5-7B"],
        ["fit", "--model", "Qwen2.5-7B"],
        ["bits", "--model", "8B"],
        ["lora", "Llama-2-7B"],
        ["rate", "Llama-2-7B"],
    ],
    ids=" ".join,
)
def test_it_answers_at_once_for_nothing_heavy_is_imported(command):
    code = "import sys; from danlu.cli import call; assert call(sys.argv[1:]) == 0; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, "plan", *command], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1]
    assert "'danlu.cli'" in modules
    assert [name for name in ("torch", "transformers", "peft", "accelerate") if f"'{name}'" in modules] == []


def test_formats_and_optimizers_that_are_known():
    from danlu.model.named import ModelOptions
    from danlu.train.optim import OptimizerName, OptimOptions

    dtypes = {"float32", "bfloat16", "float16", "int8", "int4"}
    assert dtypes < STORED.keys()
    assert ModelOptions.model_fields["dtype"].default == "auto"
    taken = {OptimOptions(optim=name).optim for name in OptimizerName.__args__ if name != "sgd"} | {"sgd"}
    assert taken == OPTIMIZERS.keys() - {"none"}
