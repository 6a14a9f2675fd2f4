"""Train one example teacher on the train scenes: python examples/train.py TASK.

Writes examples/teachers/TASK.safetensors and the evaluation on unseen scenes to results.json beside it.
At most ten minutes on two cores with bfloat16 units (AMX), longer elsewhere. Seeded; the last digits depend
on the machine.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from degrade import degrade, pictures, read
from evaluate import PHOTOGRAPHS, RESULTS, TEACHERS, evaluate
from nets import TASKS
from rich.progress import track
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from asvp_export.distillation.data import jitter

STEPS = {"sr_x2": 2200, "lowlight": 2000, "underwater": 2000, "dehaze": 3000, "derain": 3000}
VARIANTS = 32  # degraded twins of each photograph
RATE = 1e-3


def make_pairs(task: str, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """VARIANTS degraded twins of every train photograph: inputs and targets, uint8, N,3,H,W."""
    inputs, targets = [], []
    for path in track(pictures(PHOTOGRAPHS / "train"), f"{task}: degrading"):
        photograph = read(path)
        for variant in range(VARIANTS):
            clean = jitter(photograph, rng) if variant else photograph
            targets.append(clean)
            inputs.append(degrade(task, clean, rng))
    as_bytes = [torch.from_numpy(np.round(np.stack(x) * 255.0).astype(np.uint8)) for x in (inputs, targets)]
    return as_bytes[0].permute(0, 3, 1, 2), as_bytes[1].permute(0, 3, 1, 2)


def sample(
    inputs: torch.Tensor, targets: torch.Tensor, patch: int, batch: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of aligned random patches, mirrored at random, float32 in 0..1."""
    scale = targets.shape[-1] // inputs.shape[-1]
    xs, ys = [], []
    for index in rng.integers(len(inputs), size=batch):
        top, left = rng.integers(0, inputs.shape[-1] - patch + 1, 2) // 2 * 2
        x = inputs[index, :, top : top + patch, left : left + patch]
        top, left, side = top * scale, left * scale, patch * scale
        y = targets[index, :, top : top + side, left : left + side]
        mirrored = [-1] if rng.random() < 0.5 else []
        xs.append(x.flip(mirrored))
        ys.append(y.flip(mirrored))
    return torch.stack(xs).float() / 255.0, torch.stack(ys).float() / 255.0


def train(task: str, seed: int = 0) -> None:
    """Train the teacher of a task: Charbonnier loss, AdamW, one-cycle rate, averaged weights."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    start = time.process_time()
    inputs, targets = make_pairs(task, rng)
    net = TASKS[task]().to(memory_format=torch.channels_last)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-4)
    steps = STEPS[task]
    patch, batch = (48, 16) if task == "sr_x2" else (128, 8)  # side of the input's patches, and how many
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.05)
    for _ in track(range(steps), f"{task}: training"):
        x, y = sample(inputs, targets, patch, batch, rng)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(x.to(memory_format=torch.channels_last))
        loss = ((output.float() - y).square() + 1e-6).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(net)
    TEACHERS.mkdir(exist_ok=True)
    weights = {name: value.contiguous() for name, value in averaged.module.state_dict().items()}
    save_file(weights, TEACHERS / f"{task}.safetensors")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[task] = {"steps": steps, "core_minutes": round((time.process_time() - start) / 60, 1)}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(task, evaluate(task)["mean"])


def main() -> None:
    """Train and evaluate one teacher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.task)


if __name__ == "__main__":
    main()
