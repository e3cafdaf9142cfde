"""What every process of tests/test_distributed.py runs, under torchrun; rank 0 prints JSON lines.

The same model and the same eight rows in one process and in two of four rows each, whose losses
are means: DistributedDataParallel and FSDP2 average the gradients, so that they have to be equal.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from minidora.pytorch import (
    DoRALinear,
    adapt_,
    functional,
    load_adapter_,
    save_adapter,
    squared_norms,
)
from minidora.pytorch.norms import padded

SIZES = (6, 10, 8, 3)


class Net(nn.Module):
    """Three linear layers, perhaps with activation checkpointing."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(SIZES, SIZES[1:], strict=False))
        self.checkpointed = checkpointed

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
            x = x.relu()
        return x


class LocalNorm(DoRALinear):
    """The classic mistake: a norm of the shard that this process holds."""

    def norms(self):
        return self.of_the_shard, padded(self.of_the_shard)


def build(axis, mode, checkpointed=False):
    torch.manual_seed(0)
    model = Net(checkpointed).double()
    adapt_(model, "*", 2, 4, norm_axis=axis, norm_grad=mode, verbose=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def sharded(model):
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def gradients(model, x, target):
    model.zero_grad()
    loss = (model(x) - target).pow(2).mean()
    loss.backward()
    grads = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            whole = parameter.grad
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            grads[name.removeprefix("module.")] = whole
    return grads


def worst(grads, expected):
    assert grads.keys() == expected.keys() and len(expected) == 9
    return max(float((grads[n] - e).abs().max() / e.abs().max()) for n, e in expected.items())


def say(**values):
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(values), flush=True)


def has_fsdp(x):
    """Whether this PyTorch's FSDP2 runs here: that of 2.6 does not on the CPU."""
    try:
        fully_shard(nn.Linear(SIZES[0], 2).double())(x)
    except AttributeError as error:
        say(what="no FSDP2", why=str(error))
        return False
    return True


def gradient_checks(x, target, mine):
    for axis in ("per_output", "per_input"):
        for mode in ("exact", "detached"):
            expected = gradients(build(axis, mode), x, target)
            wrapped = {
                "ddp": DistributedDataParallel(build(axis, mode)),
                "fsdp": sharded(build(axis, mode)),
                "fsdp, checkpointed": sharded(build(axis, mode, checkpointed=True)),
            }
            for name, model in wrapped.items():
                error = worst(gradients(model, x[mine], target[mine]), expected)
                say(what="gradients", axis=axis, mode=mode, how=name, error=error)
            plain = build(axis, mode, checkpointed=True)
            error = worst(gradients(plain, x, target), expected)
            say(what="gradients", axis=axis, mode=mode, how="checkpointed", error=error)


def local_norm(x, target, mine):
    """FSDP2 splits rows: a norm over columns taken of one's own rows alone is too small."""
    expected = gradients(build("per_input", "exact"), x, target)
    model = build("per_input", "exact")
    for layer in model.layers:
        rows = len(layer.base_layer.weight) // dist.get_world_size()
        first = dist.get_rank() * rows
        shard = layer.base_layer.weight[first : first + rows]
        layer.__class__, layer.of_the_shard = LocalNorm, squared_norms(shard, "per_input")
    grads = gradients(sharded(model), x[mine], target[mine])
    say(what="local norm", error=worst(grads, expected))


def gathered_at_once(x, target, mine):
    """How many layers' W0 are whole at any time a layer computes, forward and backward."""
    model = sharded(build("per_output", "exact"))
    seen = []

    def count():
        weights = [layer.base_layer.weight for layer in model.layers]
        seen.append(sum(not isinstance(weight, DTensor) for weight in weights))

    def counting(method):
        def counted(*arguments):
            count()
            return method(*arguments)

        return staticmethod(counted)

    function = functional._PerOutput
    methods = function.forward, function.backward
    function.forward, function.backward = map(counting, methods)
    gradients(model, x[mine], target[mine])
    function.forward, function.backward = map(staticmethod, methods)
    whole = sum(layer.base_layer.weight.numel() for layer in model.layers)
    local = sum(layer.base_layer.weight.to_local().numel() for layer in model.layers)
    say(what="gathered", most=max(seen), times=len(seen), local=local, whole=whole)


def saved(x, target, mine, folder):
    """Train some steps sharded, save from rank 0, load in one process: the same function."""
    for name, wrap in (("ddp", DistributedDataParallel), ("fsdp", sharded)):
        model = wrap(build("per_output", "exact"))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        for _ in range(3):
            gradients(model, x[mine], target[mine])
            optimizer.step()
        save_adapter(folder / name, model)
        with torch.no_grad():
            y = model(x)
        torch.manual_seed(0)
        again = Net().double()
        load_adapter_(folder / name, again)
        with torch.no_grad():
            error = float((again(x) - y).abs().max() / y.abs().max())
        say(what="saved", how=name, error=error)
    model = sharded(build("per_output", "exact"))
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "mine.txt").write_text("mine")
    dist.barrier()
    try:
        save_adapter(folder / "taken", model)
    except FileExistsError as error:
        failed = torch.tensor(float("mine.txt" in str(error)))
    else:
        failed = torch.tensor(0.0)
    dist.all_reduce(failed)
    say(what="refused", processes=int(failed))


def refused():
    """What has to be done before sharding."""
    model = fully_shard(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    messages = []
    try:
        adapt_(model, "*", 2, 4, verbose=False)
    except (TypeError, ValueError) as error:
        messages.append(str(error))
    adapted = sharded(build("per_output", "exact"))
    try:
        adapted.layers[0].merged_weight()
    except (TypeError, ValueError) as error:
        messages.append(str(error))
    say(what="sharded already", messages=messages)


def main(folder):
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    x, target = torch.randn(8, SIZES[0]).double(), torch.randn(8, SIZES[-1]).double()
    rank = dist.get_rank()
    mine = slice(4 * rank, 4 * rank + 4)
    if not has_fsdp(x):
        dist.destroy_process_group()
        return
    gradient_checks(x, target, mine)
    local_norm(x, target, mine)
    gathered_at_once(x, target, mine)
    saved(x, target, mine, folder)
    refused()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
