"""A program that uses a run's exports where flora_hpc is not installed. Prints JSON.

python -I other_program.py IMAGES.npz BASE_FOLDER EXPORTS: images (uint8), labels and captions; open_clip weights before training.
"""

import importlib
import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Absent(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "flora_hpc":
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
try:
    importlib.import_module("flora_hpc")
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("flora_hpc can be imported")

import numpy as np  # noqa: E402
import open_clip  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import CLIPModel, CLIPProcessor  # noqa: E402

BATCH = 256


def with_open_clip(folder: Path, images: list[Image.Image], captions: list[str]) -> torch.Tensor:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    text = model.eval().encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(captions), normalize=True)
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    pixels = (torch.stack([preprocess(image) for image in part]) for part in parts)
    return torch.cat([model.encode_image(part, normalize=True) @ text.T for part in pixels])


def with_transformers(folder: Path, images: list[Image.Image], captions: list[str], backend: str) -> torch.Tensor:
    model = CLIPModel.from_pretrained(folder)
    processor = CLIPProcessor.from_pretrained(folder, backend=backend)
    words = processor.tokenizer(captions, return_tensors="pt", padding=True, truncation=True)
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    pixels = (processor.image_processor(part, return_tensors="pt") for part in parts)
    return torch.cat([model(**words, **part).logits_per_image for part in pixels])


def main(data: str, base: str, exports: str) -> None:
    loaded = np.load(data)
    labels, captions = torch.from_numpy(loaded["labels"]), loaded["captions"].tolist()
    images = [Image.fromarray(image) for image in loaded["images"]]
    scores = {"open_clip": with_open_clip(Path(exports) / "export-open_clip", images, captions)}
    folder = Path(exports) / "export-transformers-merged"
    for backend in ("pil", "torchvision"):
        scores[backend] = with_transformers(folder, images, captions, backend)
    found: dict[str, Any] = {name: int((score.argmax(1) == labels).sum()) for name, score in scores.items()}
    found["scores_apart"] = float((F.normalize(scores["pil"], dim=1) - F.normalize(scores["open_clip"], dim=1)).abs().max())
    for adapter in ("peft", "mixed"):
        try:
            peft.PeftModel.from_pretrained(open_clip.create_model(f"local-dir:{base}"), str(Path(exports) / f"export-{adapter}"))
            found[adapter] = "loaded"
        except ValueError as error:
            found[adapter] = str(error)
    json.dump(found, sys.stdout)


with torch.inference_mode():
    main(*sys.argv[1:])
