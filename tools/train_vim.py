"""Train the small Vim that ships with the project, on CIFAR-10.

    python tools/train_vim.py teacher  --data cifar10.npz --out run/teacher --epochs 40
    python tools/train_vim.py student  --data cifar10.npz --out run/vim --teacher run/teacher/teacher.pt --epochs 600
    python tools/train_vim.py evaluate --data cifar10.npz --checkpoint run/vim/ema.safetensors
    python tools/train_vim.py export   --data cifar10.npz --run run/vim --out vim_cifar10.safetensors
    python tools/train_vim.py student  --smoke --out run/smoke

The student is the official Vim architecture (``bitexact.vim``). It learns from the labels and, with
``--teacher``, from the class probabilities that a small ResNet, trained by the same file on the same data,
gives for the very same augmented image. Everything runs on one GPU: data and augmentation too, and a whole
training step is one CUDA graph. A run is seeded and picks up where its last checkpoint left it.

Fallbacks: ``--no-graph`` launches kernel by kernel, ``--plain`` uses the plain torch scan instead of the
Triton kernels of ``triton_scan.py`` (slow; the only choice on a CPU).
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from prepare_cifar10 import CLASSES, read_cifar10

from bitexact.checkpoint import load_checkpoint, read_metadata, save_checkpoint
from bitexact.inference import in_threads
from bitexact.vim import Vim, VimConfig

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


# Augmentation: one function of a batch, no shape depends on a random number


def augment(images, labels, args):
    """uint8 [n, 3, h, w] and labels [n] to normalised float images and soft targets [n, classes].

    In turn: one of several changes of colour, a flip and shift (and for half the images a rotation, shear and
    change of scale), a rectangle blanked out, mixing with a neighbour in the batch (cutmix or mixup).
    """
    n, _, height, width = images.shape
    device = images.device
    r = torch.rand(n, 32, device=device)
    x = images.float() / 255

    def pick(column):
        return r[:, column].view(-1, 1, 1, 1)

    def when(condition, value, neutral):
        return torch.where(condition, value, torch.full_like(value, neutral))

    kind, level = (pick(0) * 9).floor(), 2 * pick(1) - 1  # kinds 0 to 2 leave the colours alone
    strength = args.colour
    x = x * when(kind == 3, 1 + 0.6 * strength * level, 1.0)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * when(kind == 4, 1 + 0.7 * strength * level, 1.0)
    gray = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    x = gray + (x - gray) * when(kind == 5, 1 + 0.9 * strength * level, 1.0)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = x + (x - blurred) * when(kind == 6, strength * level, 0.0)
    x = x.clamp(0, 1)
    steps = torch.exp2(8 - (2 + 2 * pick(1)).floor().clamp(max=4) * strength)
    x = torch.where(kind == 7, (x * steps).floor() / steps, x)
    threshold = when(kind == 8, 1 - 0.6 * strength * pick(1), 2.0)
    x = torch.where(x > threshold, 1 - x, x)

    x = _normalise(x)

    warp = (r[:, 2] < 0.5).float() * args.warp
    flip = 1 - 2 * (r[:, 3] < 0.5).float()
    angle = warp * (2 * r[:, 4] - 1) * math.radians(20)
    shear = warp * (2 * r[:, 5] - 1) * 0.25
    scale = torch.exp(warp * (2 * r[:, 6] - 1) * 0.2)
    reach = 2 * args.shift + 1
    dx = ((r[:, 7] * reach).floor() - args.shift) * 2 / width
    dy = ((r[:, 8] * reach).floor() - args.shift) * 2 / height
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([flip * cos, flip * (shear * cos - sin), dx], 1),
            torch.stack([sin, shear * sin + cos, dy], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    rows = torch.arange(height, device=device).view(1, 1, -1, 1)
    cols = torch.arange(width, device=device).view(1, 1, 1, -1)

    def box(column, high, wide):
        top, left = pick(column) * height - high / 2, pick(column + 1) * width - wide / 2
        return (rows >= top) & (rows < top + high) & (cols >= left) & (cols < left + wide)

    high, wide = 4 + pick(9) * height * 0.4, 4 + pick(10) * width * 0.4
    x = torch.where(box(11, high, wide) & (pick(13) < args.erase), torch.zeros_like(x), x)

    other = x.roll(1, 0)
    mode, share = pick(14), pick(15)
    side = (1 - share).sqrt()
    cut = box(16, side * height, side * width) & (mode < args.cutmix)
    kept = 1 - cut.float().mean((1, 2, 3), keepdim=True)
    blend = (mode >= args.cutmix) & (mode < args.cutmix + args.mixup)
    weight = torch.where(blend, share, torch.ones_like(share))
    x = torch.where(cut, other, weight * x + (1 - weight) * other)
    weight = (weight * kept).view(-1, 1)
    hot = (labels[:, None] == torch.arange(len(CLASSES), device=device)).float()
    target = weight * hot + (1 - weight) * hot.roll(1, 0)
    return x, target * (1 - args.smoothing) + args.smoothing / len(CLASSES)


def normalise(images):
    """uint8 [n, 3, h, w] to normalised float32."""
    return _normalise(images.float() / 255)


def _normalise(x):
    # Channel by channel with plain numbers: a graph cannot capture a copy from the host.
    return torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)


def load_data(args, device):
    """The npz as tensors on the device: {split: (images uint8 [n, 3, 32, 32], labels uint8 [n])}."""
    if args.data is None:
        if not args.smoke:
            raise SystemExit("train_vim: --data is needed (only --smoke runs without)")
        rng = np.random.default_rng(0)
        raw = {}
        for split, count in (("train", 192), ("test", 64)):
            labels = rng.integers(0, 10, count).astype(np.uint8)
            noise = rng.integers(0, 100, (count, 32, 32, 3))
            raw[split] = (noise + 15 * labels[:, None, None, None]).astype(np.uint8), labels
    else:
        raw = read_cifar10(args.data)
    data = {}
    for split, (images, labels) in raw.items():
        if args.smoke:
            keep = np.random.default_rng(0).permutation(len(images))[:192]
            images, labels = images[keep], labels[keep]
        images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        data[split] = images.to(device), torch.from_numpy(labels).to(device)
    return data


# The two networks


class ResNet(nn.Module):
    """The teacher: residual blocks of 3 x 3 convolutions, (blocks, channels) per stage; 3.8 M weights by default."""

    def __init__(self, stages=((2, 64), (2, 128), (1, 256), (1, 384))):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, stages[0][1], 3, 1, 1, bias=False), nn.BatchNorm2d(stages[0][1]))
        self.main, self.short = nn.ModuleList(), nn.ModuleList()
        before = stages[0][1]
        for number, (count, width) in enumerate(stages):
            for index in range(count):
                stride = 2 if number and not index else 1
                self.main.append(
                    nn.Sequential(
                        nn.Conv2d(before, width, 3, stride, 1, bias=False),
                        nn.BatchNorm2d(width),
                        nn.ReLU(),
                        nn.Conv2d(width, width, 3, 1, 1, bias=False),
                        nn.BatchNorm2d(width),
                    )
                )
                same = stride == 1 and before == width
                self.short.append(
                    nn.Identity()
                    if same
                    else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                )
                before = width
        self.head = nn.Linear(before, len(CLASSES))

    def forward(self, x):
        x = F.relu(self.stem(x))
        for main, short in zip(self.main, self.short, strict=True):
            x = F.relu(main(x) + short(x))
        return self.head(x.mean((2, 3)))


def teacher_logits(model, x):
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
        return model(x.contiguous(memory_format=torch.channels_last)).float()


def vim_logits(model, x, drop, args):
    """Logits of the student; ``drop`` [depth, batch] scales each block's output."""
    if not args.plain:
        from triton_scan import vim_forward

        return vim_forward(model, x, drop, torch.bfloat16)
    x = model.embed(x)
    for block, scale in zip(model.layers, drop, strict=True):
        x = x + scale[:, None, None] * block.mixer(block.norm(x))
    return model.head_out(x)


# Training


class Trainer:
    """One network, its optimizer and average, and a training step that can be captured as a CUDA graph."""

    def __init__(self, args, device, data, teacher=None):
        self.args, self.device, self.data, self.teacher = args, device, data, teacher
        self.is_teacher = args.command == "teacher"
        torch.manual_seed(args.seed)
        if self.is_teacher:
            stages = ((1, 8), (1, 16)) if args.smoke else ((2, 64), (2, 128), (1, 256), (1, 384))
            self.model, self.ema = ResNet(stages), ResNet(stages)
        else:
            inner = 2 * args.width
            cfg = VimConfig(
                32, 32, 3, 4, 4, args.width, args.depth, inner, 16, math.ceil(args.width / 16), 4, len(CLASSES)
            )
            self.model, self.ema = Vim(cfg), Vim(cfg)
        self.model.to(device)
        self.ema.to(device)
        if self.is_teacher:
            self.model.to(memory_format=torch.channels_last)
            self.ema.to(memory_format=torch.channels_last)
        self.ema.load_state_dict(self.model.state_dict())
        self.ema.requires_grad_(False).eval()
        decay, still = [], []
        for name, p in self.model.named_parameters():
            plain = p.ndim < 2 or name.endswith("_log") or name in ("cls_token", "pos_embed")
            (still if plain else decay).append(p)
        self.params = decay + still
        self.lr = torch.tensor(0.0, device=device)
        cuda = device.type == "cuda"
        self.opt = torch.optim.AdamW(
            [{"params": decay, "weight_decay": args.decay}, {"params": still, "weight_decay": 0.0}],
            lr=self.lr,
            betas=(0.9, args.beta2),
            **({"fused": True, "capturable": True} if cuda else {}),
        )
        self._own_lr()
        self.count = len(data["train"][0])
        self.steps = self.count // args.batch
        self.order = torch.zeros(self.steps * args.batch, dtype=torch.long, device=device)
        self.cursor = torch.zeros(1, dtype=torch.long, device=device)
        self.lane = torch.arange(args.batch, device=device)
        self.loss_sum, self.norm_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        self.ema_share = torch.tensor(1.0, device=device)
        pairs = list(zip(self.ema.state_dict().values(), self.model.state_dict().values(), strict=True))
        self.ema_of = [a for a, b in pairs if b.is_floating_point()]
        self.live = [b for _, b in pairs if b.is_floating_point()]
        if not self.is_teacher:
            rates = torch.linspace(0, args.drop_path, args.depth, device=device)
            self.drop_rates = rates[:, None]
        self.graph = None

    def _own_lr(self):
        for group in self.opt.param_groups:
            group["lr"] = self.lr

    def step(self):
        """One step on the batch under the cursor; touches nothing but tensors that stay in place."""
        args = self.args
        index = self.order.index_select(0, self.lane + self.cursor * args.batch)
        self.cursor += 1
        images, labels = (t.index_select(0, index) for t in self.data["train"])
        x, target = augment(images, labels, args)
        if self.is_teacher:
            logits = teacher_logits(self.model, x)
        else:
            keep = 1 - self.drop_rates
            drop = (torch.rand(args.depth, args.batch, device=self.device) < keep).float() / keep
            logits = vim_logits(self.model, x, drop, args)
        if self.teacher is not None:
            with torch.no_grad():
                soft = F.softmax(teacher_logits(self.teacher, x), -1)
            target = args.distil * soft + (1 - args.distil) * target
        loss = F.cross_entropy(logits, target)
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.params, args.clip)
        self.opt.step()
        with torch.no_grad():
            change = torch._foreach_sub(self.live, self.ema_of)
            torch._foreach_mul_(change, self.ema_share)
            torch._foreach_add_(self.ema_of, change)
            self.loss_sum += loss.detach()
            self.norm_sum += norm

    def prepare(self):
        """Warm up and capture the step, then put everything back as it was."""
        if self.device.type != "cuda":
            return
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.lr.fill_(0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        if not self.args.no_graph:
            self.opt.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
        with torch.no_grad():
            for k, v in self.model.state_dict().items():
                v.copy_(kept[k])
            for k, v in self.ema.state_dict().items():
                v.copy_(kept[k])
            for state in self.opt.state.values():
                for value in state.values():
                    value.zero_()

    # Checkpoints: two files, so that none is large

    def save(self, folder, epoch, epochs, seconds):
        head = {
            "epoch": epoch,
            "epochs": epochs,
            "seconds": seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
        }
        _write(folder / "state.pt", head)
        moments = [dict(self.opt.state[p]) for p in self.params if p in self.opt.state]
        _write(folder / "moments.pt", {"epoch": epoch, "moments": moments})

    def resume(self, folder):
        """Load the last checkpoint in place; (epoch, epochs, seconds), or (0, None, 0.0) for none."""
        if not (folder / "state.pt").exists():
            return 0, None, 0.0
        head = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        with torch.no_grad():
            for module, key in ((self.model, "model"), (self.ema, "ema")):
                for k, v in module.state_dict().items():
                    v.copy_(head[key][k])
            if (folder / "moments.pt").exists():
                saved = torch.load(folder / "moments.pt", map_location=self.device, weights_only=True)
                if saved["epoch"] == head["epoch"]:
                    for p, values in zip(self.params, saved["moments"], strict=True):
                        if not self.opt.state[p]:
                            self.opt.state[p] = {k: v.clone() for k, v in values.items()}
                        else:
                            for k, v in values.items():
                                self.opt.state[p][k].copy_(v)
        return head["epoch"], head["epochs"], head["seconds"]

    @torch.no_grad()
    def accuracy(self, model):
        """Top-1 in percent on the test split, by the fast path."""
        model.eval()
        images, labels = self.data["test"]
        right = 0
        for i in range(0, len(images), 1000):
            x = normalise(images[i : i + 1000])
            if self.is_teacher:
                logits = teacher_logits(model, x)
            else:
                logits = vim_logits(model, x, torch.ones(self.args.depth, len(x), device=self.device), self.args)
            right += (logits.argmax(-1) == labels[i : i + 1000]).sum().item()
        self.model.train()
        return 100 * right / len(images)


def _write(path, value):
    torch.save(value, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def train(args):
    began = time.time()
    device = torch.device("cuda" if torch.cuda.is_available() and not args.smoke else "cpu")
    if device.type == "cpu":
        args.plain = True
        if not args.smoke:
            raise SystemExit("train_vim: training needs a CUDA device (only --smoke runs on a CPU)")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data(args, device)
    teacher = None
    if args.command == "student" and args.teacher:
        stages = ((1, 8), (1, 16)) if args.smoke else ((2, 64), (2, 128), (1, 256), (1, 384))
        teacher = ResNet(stages)
        state = torch.load(args.teacher, map_location="cpu", weights_only=True)
        teacher.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        teacher = teacher.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    trainer = Trainer(args, device, data, teacher)
    trainer.model.train()
    trainer.prepare()
    epoch, epochs, seconds = trainer.resume(folder)
    epochs = epochs or args.epochs
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{args.command} on {card}: {trainer.steps} steps an epoch, ready in {time.time() - began:.1f} s", flush=True)
    started, done = time.time(), 0
    total = trainer.steps
    while epochs is None or epoch < epochs:
        clock = time.time()
        torch.manual_seed(args.seed * 100003 + epoch)
        permutation = torch.randperm(trainer.count, generator=torch.Generator().manual_seed(args.seed + epoch))
        trainer.order.copy_(permutation[: len(trainer.order)])
        trainer.cursor.zero_()
        trainer.loss_sum.zero_()
        trainer.norm_sum.zero_()
        for i in range(total):
            now = epoch + i / total
            rise = min(1.0, (now + 1 / total) / args.warmup)
            fall = 1.0 if epochs is None else 0.5 * (1 + math.cos(math.pi * min(1.0, now / epochs)))
            trainer.lr.fill_(args.lr * rise * fall + 1e-6)
            trainer.ema_share.fill_(max(1 - args.ema, 9 / (10 + now * total)))
            if trainer.graph is not None:
                trainer.graph.replay()
            else:
                trainer.step()
        loss, norm = (trainer.loss_sum / total).item(), (trainer.norm_sum / total).item()
        if not math.isfinite(loss):
            raise SystemExit(f"train_vim: the loss is {loss} in epoch {epoch}")
        epoch, done = epoch + 1, done + 1
        seconds += time.time() - clock
        if epochs is None and done >= 4:  # the first is slow; then the budget decides
            each = (time.time() - clock) * 1.03
            epochs = epoch + max(1, int((args.minutes * 60 - (time.time() - began)) / each))
            print(f"{each:.2f} s an epoch, so {epochs} epochs", flush=True)
        line = {
            "epoch": epoch,
            "loss": round(loss, 4),
            "norm": round(norm, 3),
            "seconds": round(time.time() - clock, 2),
            "total": round(time.time() - started, 1),
        }
        last = epoch == epochs
        if last or epoch % args.eval_every == 0:
            line["ema"], line["raw"] = trainer.accuracy(trainer.ema), trainer.accuracy(trainer.model)
        print(json.dumps(line), flush=True)
        with open(folder / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if last or epoch % args.save_every == 0:
            trainer.save(folder, epoch, epochs, seconds)
    if args.command == "teacher":
        best = trainer.ema if trainer.accuracy(trainer.ema) >= trainer.accuracy(trainer.model) else trainer.model
        state = best.state_dict()
        _write(folder / "teacher.pt", {k: v.half() if v.is_floating_point() else v for k, v in state.items()})
        return
    recipe = {k: v for k, v in vars(args).items() if k not in ("command", "data", "out", "teacher", "smoke", "minutes")}
    recipe["teacher"] = args.teacher is not None
    recipe |= {"epochs": epochs, "hours": round(seconds / 3600, 3), "device": card}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    for name, module in (("raw", trainer.model), ("ema", trainer.ema)):
        metadata = {"image_size": [32, 32], "stride": module.cfg.stride, "weights": name}
        save_checkpoint(folder / f"{name}.safetensors", module.state_dict(), metadata, torch.float16)


# After training


@torch.no_grad()
def plain_accuracy(path, data, device="cpu", batch=25):
    """Top-1 in percent on the whole test split: the file's weights in float32, plain ``bitexact.vim`` forward."""
    cfg, state = load_checkpoint(path)
    model = Vim(cfg).to(device).eval()
    model.load_state_dict(state)
    images, labels = read_cifar10(data, ("test",))["test"]
    images, labels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    # small batches, one torch thread each: on a CPU far faster than the many small operations spread over the cores
    parts = list(images.split(batch))
    threads = 1 if device == "cuda" else None
    made = in_threads(lambda part: model(normalise(part.to(device))).argmax(-1).cpu(), parts, threads)
    right = (torch.cat(made) == labels).sum().item()
    return 100 * right / len(images)


def _evaluate(path, data):
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False
        return plain_accuracy(path, data, "cuda", 1000)
    return plain_accuracy(path, data)


def evaluate(args):
    print(json.dumps({"checkpoint": args.checkpoint, "top1": _evaluate(args.checkpoint, args.data)}))


def export(args):
    """Write a run's weights with what a reader needs to know, the measured top-1 included, as metadata."""
    folder = Path(args.run)
    source = folder / f"{args.weights}.safetensors"
    top1 = _evaluate(source, args.data)
    _, state = load_checkpoint(source)
    recipe = json.loads((folder / "recipe.json").read_text())
    metadata = {
        **read_metadata(source),
        "name": "vim_cifar10",
        "classes": list(CLASSES),
        "mean": list(MEAN),
        "std": list(STD),
        "top1_float": top1,
        "top1_note": "percent of the 10,000 test images; these float16 weights, plain float32 forward",
        "data": args.data_note,
        "seed": recipe.pop("seed"),
        "epochs": recipe.pop("epochs"),
        "hours": recipe.pop("hours"),
        "device": recipe.pop("device"),
        "recipe": recipe,
    }
    save_checkpoint(args.out, state, metadata, torch.float16)
    print(json.dumps({"wrote": args.out, "weights": args.weights, "top1": top1}))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("teacher", "student"):
        p = commands.add_parser(name)
        student = name == "student"
        p.add_argument("--data", help="npz of CIFAR-10, see tools/README.md")
        p.add_argument("--out", required=True, help="folder for checkpoints and the log; a run there is resumed")
        p.add_argument("--epochs", type=int, help="default: what --minutes allows")
        p.add_argument("--minutes", type=float, default=20.0, help="wall clock to fit the schedule into")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--batch", type=int, default=512)
        p.add_argument("--lr", type=float, default=2e-3)
        p.add_argument("--decay", type=float, default=0.05, help="weight decay of the matrices")
        p.add_argument("--beta2", type=float, default=0.99)
        p.add_argument("--clip", type=float, default=1.0 if student else 5.0)
        p.add_argument("--warmup", type=float, default=10.0 if student else 3.0, help="epochs")
        p.add_argument("--ema", type=float, default=0.9998 if student else 0.998)
        p.add_argument("--smoothing", type=float, default=0.1)
        p.add_argument("--colour", type=float, default=1.0, help="strength of colour changes, 0 to 1")
        p.add_argument("--warp", type=float, default=1.0, help="strength of rotation, shear and scale, 0 to 1")
        p.add_argument("--shift", type=int, default=4, help="pixels")
        p.add_argument("--erase", type=float, default=0.25, help="share of images with a rectangle blanked out")
        p.add_argument("--cutmix", type=float, default=0.4, help="share of images")
        p.add_argument("--mixup", type=float, default=0.25, help="share of images")
        p.add_argument("--eval-every", type=int, default=10)
        p.add_argument("--save-every", type=int, default=20)
        p.add_argument("--no-graph", action="store_true")
        p.add_argument("--plain", action="store_true")
        p.add_argument("--smoke", action="store_true", help="a tiny run on the CPU, to see that all parts work")
        if student:
            p.add_argument("--width", type=int, default=128)
            p.add_argument("--depth", type=int, default=12)
            p.add_argument("--drop-path", type=float, default=0.05)
            p.add_argument("--teacher", help="teacher.pt of a teacher run")
            p.add_argument("--distil", type=float, default=0.7, help="weight of the teacher's probabilities")
    p = commands.add_parser("evaluate")
    p.add_argument("--data", required=True)
    p.add_argument("--checkpoint", required=True)
    p = commands.add_parser("export")
    p.add_argument("--data", required=True)
    p.add_argument("--run", required=True, help="the folder of a finished student run")
    p.add_argument("--out", required=True)
    p.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged or last weights")
    p.add_argument("--data-note", default="CIFAR-10", help="what to say of the data in the metadata")
    args = parser.parse_args(argv)
    if args.command in ("evaluate", "export"):
        {"evaluate": evaluate, "export": export}[args.command](args)
        return 0
    if args.smoke:
        args.batch, args.epochs, args.eval_every, args.save_every = 32, args.epochs or 2, 1, 1
        if args.command == "student":
            args.width, args.depth = 32, 2
    train(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
