"""Which operations PyTorch's DoRA runs: into which memory, how many, on which device."""

import subprocess
import sys

import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")

import torch
from test_pytorch import by_axis, by_mode, case, gradients
from torch.utils._python_dispatch import TorchDispatchMode

from minidora.pytorch import DoRALinear, dora


class Totals(TorchDispatchMode):
    """Notes sizes and strides of what products are added to in place."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.addmm_.default:
            self.seen.append((tuple(args[0].shape), args[0].stride()))
        return function(*args, **(kwargs or {}))


@by_axis
@by_mode
@pytest.mark.parametrize(
    "sizes", [(1, 5, 3, 2), (9, 1, 3, 2), (9, 5, 1, 2), (9, 5, 3, 1), (3, 7, 6, 1)]
)
def test_products_are_added_in_place_to_rows_alone(norm_axis, norm_grad, sizes):
    """cuBLAS refuses a matrix of one row whose step is shorter than the row."""
    n, d_out, d_in, r = sizes
    t, dy = case(norm_axis, n=n, d_out=d_out, d_in=d_in, r=r)
    with Totals() as totals:
        gradients(dora, t, dy, norm_axis=norm_axis, norm_grad=norm_grad)
    assert totals.seen
    for (_, columns), (step, along) in totals.seen:
        assert along == 1 and step >= columns


def forwards(graph):
    """The graphs of autograd functions' forwards inside a traced one."""
    return [
        m for name, m in graph.named_modules() if name.rpartition(".")[2].startswith("fwd_body")
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it traces
@by_axis
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", [True, False])
def test_compiled_nothing_returned_is_changed_in_place(norm_axis, dtype, mask):
    """Gradients of such a function are wrong in PyTorch 2.11."""
    t, _ = case(norm_axis, mask=mask, dtype=torch.float32)
    t = {k: v.detach().to(dtype).requires_grad_(v.requires_grad) for k, v in t.items()}
    graphs = []

    def keep(graph, _):
        graphs.extend(forwards(graph))
        return graph

    torch._dynamo.reset()
    try:
        torch.compile(dora, fullgraph=True, backend=keep)(**t, scale=0.7, norm_axis=norm_axis)
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 1
    (output,) = [node for node in graphs[0].graph.nodes if node.op == "output"]
    returned = output.args[0][0]
    returned = returned[0] if isinstance(returned, tuple | list) else returned
    changed = set()  # what is written to, under each of its names
    for node in graphs[0].graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        into = node.kwargs.get("out")
        if node.op.startswith("call") and (name.strip("_") + "_" == name or name == "iadd"):
            into = node.args[0]
        if into is not None:
            changed |= {node, into}
    assert returned not in changed, changed


# Views and what makes them; memory that is asked for, not written; and a question about dtypes
NO_WORK = set(
    "t transpose slice split view expand squeeze_ unbind diagonal select unsqueeze detach "
    "alias new_empty empty empty_like new_empty_strided promote_types".split()
)


class Work(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("n", [16, 512])  # joined with A on the way through W0, or not
@pytest.mark.parametrize("norm_grad, most", [("exact", 36), ("detached", 28)])
def test_a_step_has_few_operations_that_are_no_views(norm_grad, most, n):
    """Each is a launch on a GPU; PEFT LoRA has 12, PEFT DoRA 33, bias and norms included."""
    layer = DoRALinear(torch.nn.Linear(64, 64), 4, 8, norm_grad=norm_grad)
    x, dy = torch.randn(n, 64, requires_grad=True), torch.ones(n, 64)
    layer(x).backward(dy)  # the squares of W0 are kept from here on
    x.grad = None
    layer.zero_grad()
    with Work() as work:
        layer(x).backward(dy)
    done = [name for name in work.names if name not in NO_WORK]
    assert "mm" in done and len(done) <= most, " ".join(done)


ON_A_DEVICE_THAT_IS_NONE = """
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import minidora.pytorch


class Guard(torch._C._acc.DeviceGuard):
    def type_(self):
        return torch._C._autograd.DeviceType.PrivateUse1


class Module:
    is_initialized = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])


class Devices(TorchDispatchMode):
    made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.made.append(leaf.device.type)
                assert leaf.device.type == "privateuseone", (name, leaf.device)
            else:
                assert name in ("prim::device", "aten::promote_types"), name
        return out


guard = Guard()
torch._register_device_module("privateuseone", Module)
torch._C._acc.register_python_privateuseone_device_guard(guard)
axis, mode, dropout = sys.argv[1:]
with FakeTensorMode():
    linear = torch.nn.Linear(64, 48, device="privateuseone:0")
    layer = minidora.pytorch.DoRALinear(
        linear, 4, 8, norm_axis=axis, norm_grad=mode, dropout=float(dropout)
    )
    x = torch.empty(16, 64, device="privateuseone:0", requires_grad=True)
    with Devices() as devices:
        y = layer(x)
        y.grad_fn.apply(torch.empty_like(y))  # autograd itself wants a device that exists
print(len(devices.made))
"""


@by_axis
@by_mode
@pytest.mark.parametrize("dropout", ["0", "0.1"])
def test_on_another_device_nothing_is_made_on_the_cpu_and_nothing_waited_for(
    norm_axis, norm_grad, dropout
):
    if not hasattr(getattr(torch._C, "_acc", None), "DeviceGuard"):
        pytest.skip("needs a PyTorch that lets Python name a device: 2.9 or so")
    command = [sys.executable, "-c", ON_A_DEVICE_THAT_IS_NONE, norm_axis, norm_grad, dropout]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50
