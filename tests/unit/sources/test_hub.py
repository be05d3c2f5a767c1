"""The hub, a small one on this machine: what is downloaded, what serves without it, what it refuses."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants as hub_constants

from polyprune_core.errors import ModelError
from polyprune_core.models import fetch, hub
from polyprune_core.models.sources import load_model, resolve


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
