"""What other tools call 4-bit weights under an adapter, as model.load_in_4bit."""

import pytest

FACTORY = "model_name_or_path: m\nstage: sft\ndataset: rows.jsonl\nlearning_rate: 1e-4\n"
AXOLOTL = "base_model: m\nlearning_rate: 1e-5\nmicro_batch_size: 1\ndatasets: [{path: r.jsonl, type: alpaca}]\n"
SWIFT = "swift sft --model m --dataset r.jsonl "
TRL = "python trl/scripts/sft.py --model_name_or_path m --dataset_name r.jsonl --use_peft "
PYTHON = """
from trl import SFTTrainer
quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
trainer = SFTTrainer(model="m", args=SFTConfig(output_dir="out"), peft_config=LoraConfig(r=8))
"""
# (file, its name) -> (kind of 16 values, whether scales are packed too)
PACKED = {
    "factory": (FACTORY + "quantization_bit: 4", "f.yaml", ("nf4", True)),
    "factory, old name": (FACTORY + "quantization_bit: 4\nquantization_method: bitsandbytes", "f.yaml", ("nf4", True)),
    "factory, said": (
        FACTORY + "quantization_bit: 4\nquantization_type: fp4\ndouble_quantization: false", "f.yaml", ("fp4", False),
    ),
    "axolotl": (AXOLOTL + "adapter: qlora\nload_in_4bit: true", "a.yml", ("nf4", True)),
    "axolotl, said": (
        AXOLOTL + "adapter: qlora\nload_in_4bit: true\nbnb_config_kwargs: {bnb_4bit_use_double_quant: false}", "a.yml",
        ("nf4", False),
    ),
    "swift": (SWIFT + "--quant_method bnb --quant_bits 4 --bnb_4bit_compute_dtype bfloat16", "s.sh", ("nf4", True)),
    "swift 2": (SWIFT + "--quantization_bit 4", "s.sh", ("nf4", True)),
    "swift, said": (
        SWIFT + "--quant_method bnb --quant_bits 4 --bnb_4bit_quant_type fp4 --bnb_4bit_use_double_quant false", "s.sh",
        ("fp4", False),
    ),
    "trl": (TRL + "--load_in_4bit", "t.sh", ("nf4", False)),  # its own default
    "trl, said": (TRL + "--load_in_4bit --use_bnb_nested_quant", "t.sh", ("nf4", True)),
    "trl, python": (PYTHON, "t.py", ("nf4", False)),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_weights_in_4_bits(become, name):
    text, file, expected = PACKED[name]
    recipe, told = become(text, file)
    model = recipe.model
    assert model.load_in_4bit
    assert (model.bnb_4bit_quant_type, model.bnb_4bit_use_double_quant) == expected
    assert not [key for key in told.get("lacks", {}) if "bit" in key or "quant" in key]
    assert "unknown" not in told


@pytest.mark.parametrize(
    ("text", "file", "key"),
    [
        (FACTORY + "quantization_bit: 8", "f.yaml", "quantization_bit"),
        (FACTORY + "quantization_bit: 4\nquantization_method: hqq", "f.yaml", "quantization_bit"),
        (FACTORY + "quantization_bit: 4\nfinetuning_type: full", "f.yaml", "quantization_bit"),
        (AXOLOTL + "adapter: lora\nload_in_8bit: true", "a.yml", "load_in_8bit"),
        (AXOLOTL + "load_in_4bit: true", "a.yml", "load_in_4bit"),
        (SWIFT + "--quant_method hqq --quant_bits 4", "s.sh", "quant_bits"),
        (TRL + "--load_in_8bit", "t.sh", "load_in_8bit"),
    ],
)
def test_other_packings_are_told(become, text, file, key):
    recipe, told = become(text, file)
    assert not recipe.model.load_in_4bit
    assert key in told["lacks"]


def test_half_a_wish_is_none(become):
    recipe, told = become(SWIFT + "--quant_bits 4", "s.sh")
    assert not recipe.model.load_in_4bit
    assert "quant_method and quant_bits" in told["idle"]["quant_bits"][0]


def test_where_float16_is_asked_for_too_the_bits_stay(become):
    recipe, told = become(FACTORY + "quantization_bit: 4\nfp16: true", "f.yaml")
    assert recipe.model.load_in_4bit
    assert recipe.model.dtype == "auto"
    assert "fp16" in told["lacks"]
