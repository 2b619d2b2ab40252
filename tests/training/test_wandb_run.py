"""Weights & Biases: the user's variable wins, no network is no obstacle, a refusal is one line at once."""

import http.server
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import wandb

from ldm.errors import UserError
from ldm.training import wandb_run
from ldm.training.fit import LoggingConfig
from ldm.training.loggers import make_loggers

pytestmark = pytest.mark.slow

CONFIG = LoggingConfig(loggers=("wandb",))
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no variables, and a network on which nobody listens; no run is left open."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_INIT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """Answers every request with ``status`` and ``body``."""
    answer: dict[str, object] = {"status": 200, "body": b"{}"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(int(str(answer["status"])))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(bytes(answer["body"]))  # type: ignore[call-overload]

        do_GET = do_HEAD = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        wandb.teardown()
        yield answer
        listening.shutdown()


def mode(config: LoggingConfig, folder: Path) -> str:
    (logger,) = make_loggers(config, folder)
    logger.log_metrics({"loss": 1.0}, step=0)
    return "disabled" if not list(folder.rglob("*.wandb")) else wandb.run.settings.mode


@pytest.mark.parametrize("given", ["offline", "dryrun", "disabled"])
@pytest.mark.parametrize("configured", ["auto", "online", "offline", "disabled"])
def test_the_users_variable_wins_over_key_and_config(tmp_path, monkeypatch, given, configured):
    monkeypatch.setenv("WANDB_MODE", given)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode(replace(CONFIG, wandb_mode=configured), tmp_path) == {"dryrun": "offline"}.get(given, given)


def test_wandb_disabled_is_heard_too(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert mode(CONFIG, tmp_path) == "disabled"


@pytest.mark.parametrize("how", ["key", "config", "variable"])
def test_without_a_network_the_run_is_logged_offline_at_once(tmp_path, monkeypatch, how, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    if how == "variable":
        monkeypatch.setenv("WANDB_MODE", "online")
    started = time.monotonic()
    config = replace(CONFIG, wandb_mode="online" if how == "config" else "auto")
    assert mode(config, tmp_path) == "offline"
    assert "wandb: no network, logging offline under" in caplog.text and "wandb sync" in caplog.text
    assert time.monotonic() - started < 30


def test_a_name_server_that_never_answers_is_no_network(monkeypatch):
    monkeypatch.setattr(wandb_run, "REACH", 0.2)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(2) or [])
    started = time.monotonic()
    assert not wandb_run._reachable("http://nowhere.invalid") and time.monotonic() - started < 1.5


def test_a_server_that_does_not_answer_means_offline(tmp_path, monkeypatch, server, caplog):
    server["status"] = 500  # wandb tries again and again
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_run, "ANSWER", 2.0)
    assert mode(CONFIG, tmp_path) == "offline"
    assert "wandb: no answer, logging offline under" in caplog.text


REFUSED = {
    "a short key": ({"WANDB_API_KEY": "short"}, {}, {}, "API key must have 40"),
    "a key of nobody": ({}, {"status": 401}, {}, "W&B refuses the run"),
    "no permission": ({}, {"body": b'{"errors":[{"message":"permission_denied"}]}'}, {}, "permission"),
    "no such server": ({}, {"status": 404}, {}, "W&B refuses the run"),
    "a project's name": ({"WANDB_MODE": "offline"}, {}, {"project": "a/b"}, "Invalid project name 'a/b'"),
    "an option": ({"WANDB_MODE": "offline"}, {}, {"options": {"nonsense": 3}}, "nonsense"),
    "a mode": ({"WANDB_MODE": "onlne"}, {}, {}, "WANDB_MODE is 'onlne'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_wandb_refuses_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, server, case):
    variables, answer, settings, says = REFUSED[case]
    for name, value in {"WANDB_API_KEY": KEY, **variables}.items():
        monkeypatch.setenv(name, value)
    server.update(answer)
    with pytest.raises(UserError, match=says) as raised:
        make_loggers(replace(CONFIG, **settings), tmp_path)
    assert "\n" not in str(raised.value) and "WANDB_" in str(raised.value)
    assert KEY not in str(raised.value)
