"""Train `flora-tiny`, the small CLIP that ships in the package.

    python tools/train_flora_tiny.py --data DIR --out DIR [--steps 7000]

`--data` holds HDF5 image files (`tiny_imagenet.h5`, `caltech101.h5`, ...; the format that dataset `hdf5` reads). Digits and
letters are drawn here, from every font of this machine that has them. scikit-learn's digits, the data of the demo, and CIFAR-10
are not read: they stay unseen, so that what a federated run gains on them is real.

Half of every batch is drawn glyphs, half is photographs. The loss is the cross entropy of each image against the batch's
distinct captions, one caption per class and batch, so that no class is its own negative.
"""

import argparse
import io
import json
import math
import random
import string
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file

CONFIG = Path(__file__).parent.parent / "flora_hpc/clip/flora_tiny/open_clip_config.json"
PHOTO_SHARE = {"tiny_imagenet": 0.5, "caltech101": 0.2, "fashion_mnist": 0.15, "flowers5": 0.1, "dtd10": 0.05}
STORED = 40  # pixels a side, before a random crop to the model's 32
DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
DIGIT_CAPTIONS = ["the number {}.", "the digit {}.", "a photo of the number {}.", "a drawing of the digit {}.", "{}"]
LETTER_CAPTIONS = ["the {}.", "a photo of the {}.", "a drawing of the {}."]
PHOTO_CAPTIONS = ["a photo of a {}.", "a picture of a {}.", "a blurry photo of a {}.", "an image of the {}.", "a {}.", "{}"]


@dataclass(frozen=True)
class Source:
    """Images of one kind: pixels uint8 (n, channels, 40, 40), labels into `captions`, one list of wordings per class."""

    pixels: torch.Tensor
    labels: torch.Tensor
    captions: list[list[str]]


def photos(path: Path) -> Source:
    """The training half of one HDF5 image file."""
    with h5py.File(path) as file:
        names = json.loads(file.attrs["prompt_names"])
        rows, labels = file["train/images"][:], file["train/labels"][:]
        encoded = file.attrs["encoding"] != "raw"
    images = np.empty((len(rows), STORED, STORED, 3), np.uint8)
    for i, row in enumerate(rows):
        image = Image.open(io.BytesIO(row.tobytes())) if encoded else Image.fromarray(row.squeeze())
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.convert("RGB").crop((left, top, left + side, top + side))
        images[i] = np.asarray(square.resize((STORED, STORED), Image.Resampling.BICUBIC))
    captions = [[template.format(name) for template in PHOTO_CAPTIONS] for name in names]
    return Source(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels), captions)


def fonts() -> list[str]:
    """Every font file of this machine that has Latin letters and digits."""
    listing = subprocess.run(["fc-list", ":charset=30-39 41-5a 61-7a", "file"], capture_output=True, text=True, check=True)
    return sorted(line.split(":")[0] for line in listing.stdout.splitlines() if line.split(":")[0].endswith(("ttf", "otf")))


def glyphs(count: int, seed: int) -> Source:
    """Drawn digits and letters, white on black, `count` of them, each filling most of its square."""
    draw_from, rng = fonts(), random.Random(seed)
    symbols = string.digits + string.ascii_uppercase + string.ascii_lowercase
    words = [[t.format(name) for t in DIGIT_CAPTIONS for name in (str(i), DIGIT_WORDS[i])] for i in range(10)]
    words += [[t.format(f"capital letter {c}") for t in LETTER_CAPTIONS] for c in string.ascii_uppercase]
    words += [[t.format(f"small letter {c}") for t in LETTER_CAPTIONS] for c in string.ascii_lowercase]
    images, labels = np.zeros((count, 1, STORED, STORED), np.uint8), np.zeros(count, np.int64)
    for i in range(count):
        label = rng.randrange(10) if rng.random() < 0.6 else rng.randrange(10, 62)
        font = ImageFont.truetype(rng.choice(draw_from), 64)
        canvas = Image.new("L", (160, 160))
        ImageDraw.Draw(canvas).text((48, 32), symbols[label], font=font, fill=255, stroke_width=rng.choice([0, 0, 1, 2, 4]))
        box = canvas.getbbox()
        if box is None:
            continue  # a font with an empty glyph: a black image of this label is one in thousands
        glyph = canvas.crop(box)
        scale = 34 / max(glyph.size)
        glyph = glyph.resize((max(3, round(glyph.width * scale)), max(3, round(glyph.height * scale))))
        square = Image.new("L", (STORED, STORED))
        square.paste(glyph, ((STORED - glyph.width) // 2, (STORED - glyph.height) // 2))
        images[i, 0], labels[i] = np.asarray(square), label
    return Source(torch.from_numpy(images), torch.from_numpy(labels), words)


def uniform(shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    return torch.rand(shape) * (high - low) + low


def warp(images: torch.Tensor, rotate: float, shear: float, zoom: tuple[float, float], bend: float) -> torch.Tensor:
    """Random affine map and smooth displacement of float images (n, c, 40, 40) -> (n, c, 32, 32)."""
    n = len(images)
    angle, slant = uniform((n,), -rotate, rotate), uniform((n,), -shear, shear)
    width, height = uniform((n,), *zoom), uniform((n,), *zoom)
    cos, sin = angle.cos(), angle.sin()
    shift = uniform((2, n), -0.12, 0.12)
    theta = torch.stack([width * cos, width * (slant - sin), shift[0], height * sin, height * cos, shift[1]], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, images.shape[1], 32, 32], align_corners=False)
    field = F.interpolate(torch.randn(n, 2, 4, 4) * bend, size=(32, 32), mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + field.permute(0, 2, 3, 1), align_corners=False, padding_mode="reflection")


def glyph_batch(source: Source, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bent, blurred and coloured glyphs (n, 3, 32, 32) in 0..1: some as coarse as 8 x 8 pixels, as scanned digits are."""
    pick = torch.randint(len(source.labels), (n,))
    images = warp(source.pixels[pick].float() / 255, 0.3, 0.4, (0.85, 1.4), 0.09)
    for part in images.chunk(8):  # views: each eighth is coarsened in place to a size of its own
        coarse = random.choice([8, 8, 8, 10, 14, 20, 32])
        mode = random.choice(["bilinear", "bicubic"])
        part.copy_(F.interpolate(F.adaptive_avg_pool2d(part, coarse), size=(32, 32), mode=mode, align_corners=False))
    images = images.clamp(0, 1) ** uniform((n, 1, 1, 1), 0.5, 1.6)
    images = images / images.amax((1, 2, 3), keepdim=True).clamp(min=0.1)
    ink, paper = torch.ones(n, 3, 1, 1), torch.zeros(n, 3, 1, 1)
    coloured = torch.rand(n) < 0.3
    ink[coloured], paper[coloured] = torch.rand(int(coloured.sum()), 3, 1, 1), torch.rand(int(coloured.sum()), 3, 1, 1)
    inverted = torch.rand(n) < 0.2
    ink[inverted], paper[inverted] = paper[inverted], ink[inverted]
    return paper + images * (ink - paper) + 0.03 * torch.randn(n, 3, 32, 32), source.labels[pick]


def photo_batch(source: Source, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cropped, mirrored and re-lit photographs (n, 3, 32, 32) in 0..1."""
    pick = torch.randint(len(source.labels), (n,))
    images = warp(source.pixels[pick].float() / 255, 0.1, 0.1, (0.6, 1.0), 0.0)
    mirrored = torch.rand(n) < 0.5
    images[mirrored] = images[mirrored].flip(3)
    images = (images - 0.5) * uniform((n, 1, 1, 1), 0.7, 1.3) + 0.5 + uniform((n, 3, 1, 1), -0.12, 0.12)
    return images, source.labels[pick]


def batch(photo: dict[str, Source], glyph: Source, size: int) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """One batch: images (size, 3, 32, 32), targets (size,) into its distinct captions."""
    parts = [("glyphs", glyph, *glyph_batch(glyph, size // 2))]
    for name, share in PHOTO_SHARE.items():
        parts.append((name, photo[name], *photo_batch(photo[name], round(size / 2 * share))))
    images, targets, captions = [], [], []
    for _, source, pixels, labels in parts:
        distinct, inverse = labels.unique(return_inverse=True)
        targets.append(inverse + len(captions))
        captions += [random.choice(source.captions[i]) for i in distinct.tolist()]
        images.append(pixels)
    return torch.cat(images), torch.cat(targets), captions


def encode_text(model: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """`model.encode_text` without the padding behind the longest caption, which a causal tower cannot see: (n, 128)."""
    end = tokens.argmax(1)
    length = int(end.max()) + 1
    x = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), end] @ model.text_projection, dim=-1)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    config = json.loads(CONFIG.read_text())
    model = open_clip.CLIP(**config["model_cfg"])
    if args.init:
        model.load_state_dict(load_file(args.init), strict=True)
    mean = torch.tensor(config["preprocess_cfg"]["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(config["preprocess_cfg"]["std"]).view(1, 3, 1, 1)
    photo = {name: photos(args.data / f"{name}.h5") for name in PHOTO_SHARE}
    glyph = glyphs(args.glyphs, args.seed)
    print(
        f"{sum(len(s.labels) for s in photo.values())} photographs, {len(glyph.labels)} glyphs of {len(fonts())} fonts",
        flush=True,
    )

    tokenizer = open_clip.SimpleTokenizer()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.98), eps=1e-6)  # fmt: skip
    started, seen, right = time.monotonic(), 0, 0
    for step in range(args.steps):
        lr = args.lr * min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        pixels, targets, captions = batch(photo, glyph, args.batch_size)
        tokens = tokenizer(captions)
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image((pixels - mean) / std, normalize=True).float()
            text = encode_text(model, tokens).float()
        logits = model.logit_scale.exp() * image @ text.T
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        seen, right = seen + len(targets), right + int((logits.argmax(1) == targets).sum())
        if (step + 1) % 100 == 0:
            rate = (step + 1) * args.batch_size / (time.monotonic() - started)
            scale = model.logit_scale.exp().item()
            print(
                f"step {step + 1} loss {loss.item():.3f} accuracy {right / seen:.3f} scale {scale:.1f} {rate:.0f} images/s",
                flush=True,
            )
            seen, right = 0, 0
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save(model, args.out)


def save(model: torch.nn.Module, folder: Path) -> None:
    """The weights as an open_clip directory: fp16 safetensors beside the config that is already there."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, folder / "open_clip_model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=CONFIG.parent)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--init", type=Path, help="go on from these weights")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--glyphs", type=int, default=60000)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
