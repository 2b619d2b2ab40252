"""What tests of lists on workers share: jobs, and a folder with the model and the pictures of them."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import dump_yaml, to_plain
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.io.checkpoints import save_checkpoint
from ldm.training.fit import LoggingConfig, TrainerConfig

CONFIG = InversionConfig(
    images=Path("pictures"),
    placeholder="",
    model="tiny",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}",), samples_per_prompt=0),
    batch_size=2,
    stop=StopConfig(allow_untrained=True),
    trainer=TrainerConfig(max_steps=3, accelerator="cpu", checkpoint_every=2, image_every=0),
    logging=LoggingConfig(loggers=()),
)


def make_jobs(n: int) -> list[Job]:
    return [Job(f"c{i}", replace(CONFIG, placeholder=f"<{i}>", seed=i)) for i in range(n)]


def write_world(folder: Path, model: LatentDiffusion, config: ModelConfig) -> None:
    """The model "tiny" and its pictures."""
    (folder / "tiny").mkdir()
    save_checkpoint(model.parts, folder / "tiny/model.safetensors", dtype=None)
    values = {"model": {**to_plain(config), "checkpoint": "model.safetensors"}}
    (folder / "tiny/config.yaml").write_text(dump_yaml(values))
    (folder / "pictures").mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (16, 16), colour).save(folder / "pictures" / f"{colour}.png")
