"""Package metadata; exact versions are in requirements.lock, tools' settings in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
ABOUT: dict[str, str] = {}
exec((HERE / "ldm" / "_version.py").read_text(encoding="utf-8"), ABOUT)
README = HERE / "README.md"

RUNTIME = [
    "torch>=2.11",
    "torchvision>=0.26",  # open_clip imports it
    "pytorch-lightning>=2.6",
    "open_clip_torch>=3.2",
    "timm>=1.0.15",  # the networks of dino:... scorers
    "torchmetrics>=1.6",
    "huggingface_hub>=0.27",  # where published scorers are
    "tokenizers>=0.21",
    "regex>=2024.11",  # what open_clip cuts prompts with
    "psutil>=5.9",
    "safetensors>=0.5",
    "PyYAML>=6.0",
    "filelock>=3.16",
    "einops>=0.8",
    "numpy>=2.0",
    "pillow>=11.0",
    "Jinja2>=3.1",
    "rich>=13.7",
    "tqdm>=4.66",
    "tensorboard>=2.18",
    "wandb>=0.31",
]
DEV = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.110",
    "ray>=2.60",  # lists on a cluster
    "ruff>=0.9",
    "mypy>=1.14",
    # the implementations that the tests compare with
    "diffusers>=0.35",
    "omegaconf>=2.4",
    "transformers>=4.56",
    # the notebooks
    "nbformat>=5.10",
    "nbclient>=0.10",
    "ipykernel>=6.29",
    "ipywidgets>=8.1",  # progress bars
    "nbstripout>=0.8",
    # the plot of benchmarks/growth.py
    "matplotlib>=3.10",
    # the pictures of ldm train data --sets
    "resvg_py>=0.2",
    # HEIC pictures
    "pillow-heif>=0.22",
    # tables of experiments as parquet
    "pyarrow>=18.0",
]

DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"]


class BuildWithConfigs(build_py):
    """Puts configs/ into the package, as ldm/configs/, where ``ldm.paths.found`` looks for them.

    An editable installation reads the clone's own configs/, and gets no copy.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "ldm" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            # job scripts are handed to SLURM from a clone; no command reads them
            shutil.copytree(HERE / "configs", target, ignore=shutil.ignore_patterns("slurm"))


setup(
    name="ldm",
    version=ABOUT["__version__"],
    description="Textual Inversion: teach a frozen latent diffusion model a new word from pictures",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["ldm", "ldm.*"]),
    package_data={"ldm": ["py.typed", "assets/**/*"]},
    cmdclass={"build_py": BuildWithConfigs},
    install_requires=RUNTIME,
    extras_require={
        "dev": [*DEV, *DOCS],
        "docs": DOCS,
        "ray": ["ray>=2.60"],
        "heif": ["pillow-heif>=0.22"],
        # dashboards beside TensorBoard and W&B; sqlalchemy and alembic are for runs in a local file
        "mlflow": ["mlflow-skinny>=3.1", "sqlalchemy>=2.0", "alembic>=1.14"],
        "trackio": ["trackio>=0.20"],
        "parquet": ["pyarrow>=18.0"],
    },
    entry_points={"console_scripts": ["ldm = ldm.cli.main:main"]},
    zip_safe=False,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
