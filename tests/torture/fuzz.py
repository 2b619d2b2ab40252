"""Damaged files for every reader: each loads or is refused in one line, at once, and nothing in it is run.

``python tests/torture/fuzz.py --n 10000`` writes damaged copies of small good files, reads them, and watches:
no other exception than ``UserError``, no warning on the terminal, no process, connection or file of the
file's making, no case over 20 s of computing, no more than 1.5 GB of memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import harness
import mutations
import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import ldm
from ldm.backbone.loading import find
from ldm.backbone.model import ModelConfig
from ldm.cli.main import main as ldm_main
from ldm.config import ASSETS, dump_yaml, load_yaml, resolve
from ldm.errors import UserError
from ldm.inversion.captions import read_captions
from ldm.inversion.config import InversionConfig, check
from ldm.inversion.latents import _read_cache
from ldm.inversion.many.concept_list import read_jobs
from ldm.inversion.resume import kept_config, whole_checkpoint
from ldm.io import diffusers_layout
from ldm.io.checkpoints import read_metadata, read_state_dict
from ldm.io.decode import heif
from ldm.io.embedding_formats import FORMATS
from ldm.io.embeddings import Embedding, read_file, save_embeddings
from ldm.io.pictures import load_picture
from ldm.io.recipes import Recipe, load_recipe, to_text
from ldm.io.runs import RunFolder
from ldm.official import config as legacy
from ldm.text.bpe import ClipTokenizer
from ldm.text.clip import read_sizes
from ldm.text.tokenizer import Tokenizer

SECONDS, WAITING, MEGABYTES = 20, 120, 1500
#: what a file may never make happen while it is read, but for the program's own in the temporary folder
FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
    "os.mkdir", "os.remove", "os.rmdir", "os.rename", "shutil.rmtree", "webbrowser.open",
)  # fmt: skip
#: one case in so many reads a whole run folder by the command line, which takes seconds
OF_RUNS = 250


@dataclass(frozen=True)
class Target:
    """A good file, and what reads it; ``read`` gets the path of a damaged copy in its place."""

    reader: str
    path: Path
    read: Callable[[Path], Any]


# ------------------------------------------------------------------------------ good files
def embeddings(folder: Path) -> Iterator[Target]:
    def again(path: Path) -> None:
        save_embeddings(read_file(path).words[0], folder / "again.safetensors")

    one = Embedding("<cat>", torch.randn(2, 4), {"step": "5"})
    two = Embedding("<cat>", torch.randn(2, 3), {}, torch.randn(2, 4))
    for known in FORMATS:
        if known.name != "sdxl-diffusers":
            word = two if known.encoders == 2 else one
            path = save_embeddings(word, folder / f"{known.name}{known.suffix}", format=known.name)
            yield Target("embedding", path, again)
    torch.save({"<a>": one.vectors}, folder / "old.bin", _use_new_zipfile_serialization=False)
    yield Target("embedding", folder / "old.bin", again)
    for zipped in (True, False):  # pickles that would run code, so that damage may set it free
        path = folder / f"hostile{zipped}.pt"
        torch.save({"<a>": one.vectors, "x": _Hostile()}, path, _use_new_zipfile_serialization=zipped)
        yield Target("embedding", path, read_file)
        yield Target("checkpoint", path, read_state_dict)


class _Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("fuzzed",)


def checkpoints(folder: Path, world: harness.World) -> Iterator[Target]:
    weights = {"model.a.weight": torch.randn(3, 4), "model.b.weight": torch.randn(2).half()}
    torch.save({"state_dict": weights, "epoch": 3}, folder / "m.ckpt")
    torch.save({"state_dict": weights}, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(weights, folder / "m.safetensors", {"a": "b"})
    (folder / "plain.ckpt").write_bytes(pickle.dumps({"a": [1, 2]}, protocol=2))
    for name in ("m.ckpt", "old.ckpt", "m.safetensors", "plain.ckpt"):
        yield Target("checkpoint", folder / name, read_state_dict)
        yield Target("checkpoint", folder / name, find)
        yield Target("checkpoint", folder / name, read_metadata)
    model = folder / "model.safetensors"
    model.write_bytes((world.model / "model.safetensors").read_bytes())
    yield Target("checkpoint", model, lambda path: ldm.load(world.model, path))
    yield Target("checkpoint", model, find)


def pictures(folder: Path) -> Iterator[Target]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgba, exif = Image.fromarray(noise), Image.Exif()
    exif[0x0112] = 6
    notes = {"exif": exif.tobytes(), "icc_profile": _profile()}
    kinds = {
        "jpg": (rgba.convert("RGB"), notes), "png": (rgba, notes),
        "p.png": (rgba.convert("P"), {"transparency": 3}),
        "webp": (rgba, notes), "gif": (rgba.convert("P"), {}), "bmp": (rgba.convert("RGB"), {}),
        "tif": (rgba, notes), "avif": (rgba.convert("RGB"), {}), "jp2": (rgba.convert("RGB"), {}),
        "ppm": (rgba.convert("RGB"), {}), "tga": (rgba, {}), "cmyk.jpg": (rgba.convert("CMYK"), {}),
        "i16.png": (Image.fromarray(noise[..., 0].astype(np.uint16) * 257), {"transparency": 514}),
        "heic": (rgba.convert("RGB"), {}),
    }  # fmt: skip
    for name, (image, more) in kinds.items():
        if name == "heic" and not heif():
            continue
        path = folder / f"x.{name}"
        image.save(path, **more)
        yield Target("picture", path, lambda path: load_picture(path, 8))


def _profile() -> bytes:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def recipes(folder: Path) -> Iterator[Target]:
    word = Embedding("<cat>", torch.randn(2, 4), {"file": "a", "sha256": "b"})
    drawn = ("ddim", 5, 5.0, 0.0, 16, "emoji", "0" * 64, "ldm")
    recipe = Recipe("a <cat>", "", 1, 2, *drawn, embeddings=(word,))
    info = PngImagePlugin.PngInfo()
    for key, value in to_text(recipe).items():
        info.add_itxt(key, value, zip=key == "prompt")
    Image.new("RGB", (8, 8)).save(folder / "recipe.png", pnginfo=info)
    yield Target("recipe", folder / "recipe.png", lambda path: to_text(load_recipe(path)))


def configs(folder: Path, world: harness.World) -> Iterator[Target]:
    official = Path(__file__).parents[2] / "configs"
    values = {"images": "x", "placeholder": "<a>", "optim": {"lr": 1e-3}, "trainer": {"max_steps": 3},
              "show": {"prompts": ["a {}"]}, "more_words": {"<b>": None}, "timesteps": {}}  # fmt: skip
    (folder / "inversion.yaml").write_text(dump_yaml(values))
    yield Target("YAML", folder / "inversion.yaml",
                 lambda path: check(resolve(InversionConfig, load_yaml([path]))))  # fmt: skip
    for i, path in enumerate([world.model / "config.yaml", *sorted(official.rglob("*.yaml"))[:6]]):
        copy = folder / f"model{i}.yaml"
        copy.write_bytes(path.read_bytes())
        yield Target("YAML", copy, _model_config)
    (folder / "concepts.yaml").write_bytes(world.concepts.read_bytes())
    yield Target("concept list", folder / "concepts.yaml", lambda path: read_jobs(path, {}))


def _model_config(path: Path) -> None:
    values = load_yaml([path])
    if legacy.is_official(values):
        legacy.settings(values)
    if "model" in values:
        resolve(ModelConfig, find(path)[0]["model"], "model.")


def texts(folder: Path) -> Iterator[Target]:
    (folder / "c.png").touch()
    (folder / "c.txt").write_text("a photo of {}\nthe {} on Gänse 🙂\n", encoding="utf-8")

    def caption(path: Path) -> None:
        target = folder / "c.txt"
        if path != target:
            target.write_bytes(path.read_bytes())
        read_captions([folder / "c.png"], "<cat>")

    yield Target("caption", folder / "c.txt", caption)
    vocabulary = (ASSETS / "bert" / "vocab.txt").read_bytes()[:3000]
    (folder / "vocab.txt").write_bytes(vocabulary + b"\n[CLS]\n[SEP]\n[PAD]\n[UNK]\n")
    yield Target("vocabulary", folder / "vocab.txt", lambda path: Tokenizer(path, 12).words("a photo of 🙂"))
    empty: dict[str, Any] = {"params": {}}
    model = {"image_size": 64, "autoencoder": {"params": {"ch_mult": [1, 1]}}, "unet": empty, "text": {}}
    files = {
        "unet/config.json": {"sample_size": 8, "attention_head_dim": [2, 4], "block_out_channels": [32, 64]},
        "vae/config.json": {"scaling_factor": 0.18, "block_out_channels": [32, 64]},
        "scheduler/scheduler_config.json": {"beta_schedule": "linear", "prediction_type": "epsilon",
                                            "num_train_timesteps": 1000, "trained_betas": [0.1, 0.2]},
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    }  # fmt: skip
    pipeline = folder / "pipeline"
    for name, content in files.items():
        path = pipeline / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1))
    for name in files:
        yield Target("pipeline", pipeline / name, lambda _: diffusers_layout.configured(model, pipeline))
    clip = folder / "clip"
    clip.mkdir()
    byte_names = {chr(33 + i): i for i in range(89)}
    byte_names |= {"ab": 89, "<|startoftext|>": 90, "<|endoftext|>": 91}
    contents = {
        "vocab.json": byte_names,
        "added_tokens.json": {"<cat>": 92},
        "tokenizer_config.json": {"pad_token": "!", "added_tokens_decoder": {"93": {"content": "<b>"}}},
    }
    for name, content in contents.items():
        (clip / name).write_text(json.dumps(content, indent=1))
    (clip / "merges.txt").write_text("#version: 0.2\na b\n")
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "hidden_act": "gelu", "num_attention_heads": 1}
    (clip / "config.json").write_text(json.dumps(sizes, indent=1))
    yield Target("pipeline", clip / "config.json", lambda _: read_sizes(clip))
    for name in (*contents, "merges.txt"):
        yield Target("pipeline", clip / name, lambda _: ClipTokenizer(12, folder=clip).words("a <cat>"))


def runs(folder: Path, world: harness.World) -> Iterator[Target]:
    """The files of a run folder, read as ``--resume`` does; and a whole ``ldm invert --resume``."""
    run = folder / "run"
    words = ["invert", "--model", world.model, "--images", world.pictures, "--name", "<toy>", "--out", run]
    with contextlib.redirect_stdout(io.StringIO()):
        assert ldm_main([str(word) for word in words]) == 0
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        if path.suffix in (".json", ".yaml", ".ckpt", ".safetensors"):
            yield Target("run folder", path, lambda _: _resume_reads(run))
            yield Target("whole run", path, lambda _: _resume(run))


def _resume_reads(run: Path) -> None:
    kept_config(run, InversionConfig)
    RunFolder(run).read_manifest()
    whole_checkpoint(run)
    for path in (run / "latents").glob("*.safetensors"):
        _read_cache(path, read_metadata(path).get("key", ""), 1.0)


def _resume(run: Path) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = ldm_main(["invert", "--resume", "--out", str(run)])
    if status not in (0, 2) or "Traceback" in err.getvalue():
        raise AssertionError(f"status {status}: {err.getvalue()[-300:]}")


def targets(folder: Path) -> list[Target]:
    """All good files, in a folder of each kind."""
    world = harness.build_world(folder / "world")
    makers: dict[str, Callable[[Path], Iterator[Target]]] = {
        "embeddings": embeddings,
        "checkpoints": lambda path: checkpoints(path, world),
        "pictures": pictures,
        "recipes": recipes,
        "configs": lambda path: configs(path, world),
        "texts": texts,
        "runs": lambda path: runs(path, world),
    }
    found = []
    for name, make in makers.items():
        (folder / name).mkdir()
        found += make(folder / name)
    return found


# ------------------------------------------------------------------------------ the watch
_caught: list[str] = []
_watching = False


def _audit(event: str, details: tuple) -> None:
    ours = any(str(one).startswith(tempfile.gettempdir()) for one in details)
    ours |= event in ("os.remove", "os.rmdir") and details[-1] != -1  # a temporary folder's end
    if _watching and event.startswith(FORBIDDEN) and not ours:
        _caught.append(f"{event} {details!r}"[:200])


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _too_long(*_: object) -> None:
    raise TimeoutError(f"over {SECONDS} s of computing, or {WAITING} s of waiting")


def watched(read: Callable[[Path], Any], path: Path) -> tuple[str | None, bool]:
    """What is wrong with how a file was read, if anything, and whether it was read at all."""
    global _watching
    before, loaded, wrong = _peak(), False, None
    _caught.clear()
    logging.getLogger("ldm").setLevel(logging.CRITICAL)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        try:
            _watching = True
            read(path)
            loaded = True
        except UserError as error:
            if "\n" in str(error):
                wrong = f"several lines: {error!r}"
        except BaseException as error:
            wrong = f"{type(error).__name__}: {error}"[:400]
        finally:
            _watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
    if _caught:
        wrong = f"it made happen: {_caught[0]}"
    elif _peak() - before > MEGABYTES:
        wrong = f"it took {_peak() - before:.0f} MB"
    elif said and wrong is None:
        wrong = f"a warning on the terminal: {said[0].message}"[:300]
    return wrong, loaded


def torture(n: int, seed: int = 0, keep: Path | None = None) -> harness.Row:
    """Read n damaged files; those that went wrong are written to ``keep``."""
    row = harness.Row("damaged files, over all readers: loaded, or refused in one line")
    sys.addaudithook(_audit)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_long)
    with harness.timed(row), harness.scratch() as folder:
        found = targets(folder)
        quick = [t for t in found if t.reader != "whole run"]
        whole = [t for t in found if t.reader == "whole run"]
        goods = {target.path: target.path.read_bytes() for target in found}
        slowest = 0.0
        for case in range(n):
            draw = random.Random(f"{seed} {case}")
            target = draw.choice(whole) if case % OF_RUNS == OF_RUNS - 1 else quick[case % len(quick)]
            data = goods[target.path]
            for _ in range(draw.choice((1, 1, 1, 2, 4))):
                with contextlib.suppress(Exception):  # a damaged zip or PNG cannot be damaged by its parts
                    data = mutations.mutate(data, draw)
            target.path.write_bytes(data)
            started = time.process_time()
            wrong, loaded = watched(target.read, target.path)
            if target.reader != "whole run":
                slowest = max(slowest, time.process_time() - started)
            row.times += 1
            row.note("loaded") if loaded else row.note("refused")
            if wrong:
                row.lost.append(f"case {case} of seed {seed}, {target.reader} {target.path.name}: {wrong}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{seed}-{case}-{target.path.name}").write_bytes(data)
            target.path.write_bytes(goods[target.path])
        row.notes |= {"MB at most": round(_peak()), "ms at most": round(slowest * 1000)}
    return row


if __name__ == "__main__":
    parser = harness.arguments("Read damaged files of every kind.", 10_000)
    parser.add_argument("--keep", type=Path, help="folder for the files that went wrong")
    given = parser.parse_args()
    sys.exit(harness.finish([torture(given.n, given.seed, given.keep)]))
