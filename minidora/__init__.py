"""minidora: DoRA, weight-decomposed low-rank adaptation, from scratch in NumPy.

The symbols, everywhere in the code, the lessons and the tests (Liu et al. 2024, arXiv 2402.09353):

======  ==================  ================================================================
symbol  shape               meaning
======  ==================  ================================================================
W0      (d_out, d_in)       frozen pretrained weight; y = x @ W0.T
A       (r, d_in)           down projection, Kaiming-uniform init
B       (d_out, r)          up projection, zero init
scale   number              alpha / r, or alpha / sqrt(r) (rsLoRA)
V       (d_out, d_in)       W0 + scale * B @ A, the unnormalised direction (V' in the paper)
c       (d_out,) or (d_in,) norms of V, one per weight vector
m       like c              trainable magnitude
W       (d_out, d_in)       m * V / c, the adapted weight (W' in the paper, Eq. 5)
dA ...  like A ...          gradients: d + the name (Eq. 6, 7, 11)
======  ==================  ================================================================

`norm_axis` is "per_output" (one magnitude per row of W0) or "per_input" (one per column).
`norm_grad` is "exact" (the derivative of Eq. 5) or "detached" (the norm held constant, Eq. 11).
"""

from importlib import import_module

_WHERE = {
    "decomposition": ("decompose", "norms", "recompose"),
    "dora": ("DoRAGrads", "dora_backward", "dora_forward", "dora_weight", "recover_magnitude"),
    "lora": ("LoRAGrads", "lora_backward", "lora_delta", "lora_forward", "scaling"),
}
_MODULES = {
    **{name: f".{name}" for name in (*_WHERE, "factored", "granularity", "projection")},
    "gradcheck": ".evidence.gradcheck",
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted([*_HOME, *_MODULES, "__version__"])


def __getattr__(name: str):
    """Import what is asked for when it is asked for (PEP 562), so that nobody loads the rest."""
    if name in _MODULES:
        return import_module(_MODULES[name], __name__)
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
