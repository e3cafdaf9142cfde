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
    kept, y = kept_storages(function, inputs)
    return sum(storage.nbytes() / size for storage, size in kept), y


def kept_bytes(function, inputs):
    """The same in bytes."""
    kept, y = kept_storages(function, inputs)
    return sum(storage.nbytes() for storage, _ in kept), y


def kept_storages(function, inputs):
    """The storages that stay, each with the bytes of an element; and y."""
    alive = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        y = function()
    given = {t.untyped_storage().data_ptr() for t in inputs}
    found = {}
    for kept in alive:
        storage = kept.tensor.untyped_storage()
        if storage.data_ptr() not in given:
            found[storage.data_ptr()] = storage, kept.tensor.element_size()
    return list(found.values()), y
