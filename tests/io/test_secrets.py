"""Keys, tokens and passwords leave no trace in what is meant to be shared; all else stays as it is."""

import json
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.io.runs import create_run
from ldm.io.secrets import redacted, redacted_values, redacted_words, refuse_hidden

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWx"
OTHER = "qwertz123456"
TEXTS = [
    f"/data/{SECRET}/photos",
    f"model-{SECRET}.safetensors",
    "sk-abcdefghijklmnopqrstuvwx", "ghp_" + "a1" * 18, "github_pat_" + "a1" * 20, "glpat-" + "x9" * 10,
    "xoxb-123456789012-abc", "AKIAABCDEFGHIJKLMNOP", "AIza" + "b" * 35, "wandb_v1_" + "k" * 40,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3.SflKxwRJSMeKKF2QT4",
    f"https://anna:{OTHER}@host/model.ckpt", f"https://{OTHER}@host/model.ckpt",
    f"model.safetensors?token={OTHER}", f"https://host/x?a=1&X-Amz-Signature={OTHER}&b=2", f"x?key={OTHER}",
    f"api_key: {OTHER}", f"wandb_api_key={OTHER}", f"WANDB_API_KEY={OTHER}", f"password = {OTHER}",
    f'{{"access_token": "{OTHER}"}}', f"client_secret: '{OTHER}'", f"HF_TOKEN={OTHER}",
    f"logging.options.api_key={OTHER}",
]  # fmt: skip
HARMLESS = [
    'placeholder_token: "*"', "per_image_tokens: true", "token_id: 265", "string_to_token",
    "tokenizer: x", "num_vectors_per_token: 2", "api_key: null", "password: ''",
    "a photo of a secret garden", "keys: 3",
    "https://host/model.ckpt?revision=main", "runs/2026-01-01_cat/config.yaml", "a" * 64, "keyboard=3",
    "image_hashes", "seed: 23", "monkey=banana", "init: token of love", "sha256: " + "0123456789abcdef" * 4,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_secrets_go_and_their_surroundings_stay(text: str) -> None:
    told = redacted(f"before {text} after")
    assert told.startswith("before ") and told.endswith(" after") and "REDACTED" in told
    for secret in (SECRET, OTHER, text):
        assert secret not in told
    assert redacted(told) == told


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text and redacted_words([text]) == [text]


@pytest.mark.parametrize("words", [
    ["--token", OTHER], [f"--token={OTHER}"], ["--api-key", f"{OTHER} {OTHER}"],
    ["--set", f"x.password=a {OTHER}"], ["--hf-token", OTHER], ["--images", f"/data/{SECRET}"],
])  # fmt: skip
def test_options_and_settings_of_a_command(words: list[str]) -> None:
    told = redacted_words(["ldm", "invert", *words, "--name", "<cat>"])
    assert told[:2] == ["ldm", "invert"] and told[-2:] == ["--name", "<cat>"] and len(told) == len(words) + 4
    assert OTHER not in " ".join(told) and SECRET not in " ".join(told)


def test_values_of_the_environment_that_are_called_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain-looking-value")
    monkeypatch.setenv("SSH_KEY", "/home/anna/.ssh/id")  # a path is none
    monkeypatch.setenv("SHORT_KEY", "cat")
    assert redacted("x/plain-looking-value/cat /home/anna/.ssh/id") == "x/REDACTED/cat /home/anna/.ssh/id"


def test_configs_go_by_their_keys() -> None:
    rest = {"placeholder_token": "*", "seed": 23, "password": None}
    config = {"model": {"checkpoint": f"m?token={OTHER}"}, "prompts": ["a {}", SECRET],
              "options": {"api_key": OTHER, "n": 3}, **rest}  # fmt: skip
    told = redacted_values(config)
    assert told == {"model": {"checkpoint": "m?token=REDACTED"}, "prompts": ["a {}", "REDACTED"],
                    "options": {"api_key": "REDACTED", "n": 3}, **rest}  # fmt: skip
    refuse_hidden(config)
    with pytest.raises(UserError, match="config model.checkpoint was kept without the secret"):
        refuse_hidden(told)


def test_a_manifest_holds_none(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run")
    command = ["/usr/bin/ldm", "invert", "--set", f"options.api_key={OTHER}", "--images", f"/x/{SECRET}"]
    run.write_manifest(
        seed=1,
        image_hashes={f"{SECRET}.png": "ab" * 32, f"{SECRET[:-1]}.png": "ef" * 32},
        base_model="cd" * 32,
        command=command,
        extra={"note": SECRET},
    )
    run.update_manifest(more=f"https://a:{OTHER}@host")
    text = run.manifest_path.read_text()
    assert SECRET not in text and OTHER not in text
    assert json.loads(text)["image_hashes"] == {"REDACTED.png": "ab" * 32, "REDACTED.png-1": "ef" * 32}
