"""Which operations PyTorch's DoRA runs: into which memory, how many, on which device."""

import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")

import torch
from test_pytorch import by_axis, by_mode, case, gradients
from torch.utils._python_dispatch import TorchDispatchMode

from minidora.pytorch import dora


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
