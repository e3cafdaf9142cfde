"""Train a DoRA-adapted transformer in several processes; stop it when you like and start it again.

    torchrun --nproc-per-node 2 lessons/distributed.py run --fsdp

needs `pip install -e ".[train,torch]"`. The base is drawn from a seed. Rank 0 writes run/adapter, a
PEFT folder. A run goes on with the adapters and the step that were saved; AdamW starts anew.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minidora.pytorch import adapt_, load_adapter_, save_adapter


def build(width=32, layers=2, seed=0):
    """A small transformer over 10 letters; every rank draws the same."""
    torch.manual_seed(seed)
    block = nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(10, width), encoder, nn.Linear(width, 10))


def batch(step, rank, size=16, length=8):
    """Letters, and each letter's successor: what the adapters have to learn."""
    drawn = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randint(10, (size, length), generator=drawn)
    return x, (x + 1) % 10


def main():
    """Adapt, wrap, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what is saved and resumed from")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="steps between two saves")
    parser.add_argument("--fsdp", action="store_true", help="shard the model, do not copy it")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")  # on the CPU
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rank, done = dist.get_rank(), arguments.folder / "steps.txt"
    first = int(done.read_text()) if done.exists() else 0
    model = build()
    if first:
        load_adapter_(arguments.folder / "adapter", model)
    else:
        adapt_(model, ("linear1", "linear2", "2"), rank=4, alpha=8, verbose=rank == 0)
    if arguments.fsdp:
        for layer in model[1].layers:
            fully_shard(layer)
        model = fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in tqdm(range(first, arguments.steps), disable=rank > 0):
        x, target = batch(step, rank)
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % arguments.every == 0 or step + 1 == arguments.steps:
            save_adapter(arguments.folder / "adapter", model)
            total = loss.detach()
            dist.all_reduce(total)
            if rank == 0:
                done.write_text(str(step + 1))
                tqdm.write(f"step {step + 1}, loss {total / dist.get_world_size():.4f}")
    del model  # DDP holds the group, whose end can wait for ever for a process that has gone
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
