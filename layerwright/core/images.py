"""A folder of images as the tensor that a vision model takes. Needs Pillow; torchvision is neither needed nor used."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from layerwright.core.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_DEFAULT_SIZE = 224


def find(folder: Path) -> list[Path]:
    """The image files of a folder and its subfolders, by name."""
    return [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file()]


def load(files: Sequence[Path], model: nn.Module | None) -> tuple[Tensor, str]:
    """Images `[image, channel, height, width]`, and one sentence on how they were prepared.

    The image processor saved beside the model's weights prepares them. Without one they are resized to the model's
    `config.image_size` (224 where it says none) and scaled to mean 0.5, deviation 0.5, so that values lie in [-1, 1].

    Raises:
        UserError: Pillow is not installed, or a file is not an image.
    """
    processor = _processor(model)
    config = getattr(model, "config", None)
    channels = getattr(config, "num_channels", 3)
    pictures = [_open(file, "L" if channels == 1 else "RGB") for file in files]
    if processor is not None:
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        return pixels, f"images prepared by the model's {type(processor).__name__}"
    size = getattr(config, "image_size", _DEFAULT_SIZE)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    arrays = [np.asarray(p.resize((width, height)), dtype=np.float32).reshape(height, width, -1) for p in pictures]
    pixels = torch.from_numpy(np.stack(arrays)).movedim(-1, 1).contiguous()
    return (pixels / 255 - 0.5) / 0.5, f"images resized to {height} x {width} and scaled to [-1, 1]"


def _open(file: Path, mode: str) -> Any:
    try:
        pillow = importlib.import_module("PIL.Image")
    except ImportError:
        raise UserError("reading images needs Pillow, which is not installed; `pip install pillow`") from None
    try:
        return pillow.open(file).convert(mode)
    except OSError:
        raise UserError(f"{file} is not an image that Pillow can read; convert or remove it") from None


def _processor(model: nn.Module | None) -> Any:
    folder = Path(getattr(model, "name_or_path", "") or ".")
    if not (folder / "preprocessor_config.json").is_file():
        return None
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"the image processor in {folder} cannot be used: {first}") from None
