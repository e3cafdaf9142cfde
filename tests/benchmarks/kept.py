"""What autograd keeps for backward."""

import weakref

import torch


class Kept:
    """A tensor that the graph holds, for as long as it holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_elements(function, inputs):
    """Elements kept for the backward of function() beside the inputs' own, by storage; and y.

    Counted after the forward: what is saved for a branch that is then detached goes with it.
    """
    alive = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        y = function()
    given = {t.untyped_storage().data_ptr() for t in inputs}
    sizes = {}
    for kept in alive:
        storage = kept.tensor.untyped_storage()
        if storage.data_ptr() not in given:
            sizes[storage.data_ptr()] = storage.nbytes() / kept.tensor.element_size()
    return sum(sizes.values()), y
