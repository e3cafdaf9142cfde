"""What each experiment runs: its configuration, a plain dict that its results hold too.

networks: the networks, by name. runs: {name: settings of `runs.measure`, and the network}.
seeds: how many, unless asked otherwise. A run's `group` is what its learning rate is chosen within.
"""

from .networks import MLP, TRANSFORMER

QV = ("q", "v")
LINEARS = ("q", "k", "v", "up", "down")
METHODS = {
    "FT": {"method": "full"},
    "LoRA": {"method": "lora"},
    "DoRA": {"method": "dora"},
    "DoRA detached": {"method": "dora", "norm_grad": "detached"},
}
BOTH = {"LoRA": METHODS["LoRA"], "DoRA": METHODS["DoRA"]}


def figure2(short: bool = False) -> dict:
    """ΔM against ΔD, and the controls; the short one has few steps and leaves the controls out."""
    names = [f"layers.{i}" for i in range(4)]
    record = {
        "transformer": {"targets": list(QV), "times": 4 if short else 8},
        "mlp": {"targets": names, "times": 4 if short else 8},
    }
    runs = {}
    for name, adapt in METHODS.items():
        full = name == "FT"  # all arrays train, as in the paper
        rate = 1e-3 if full else 1e-2
        qv = {} if full else {"targets": list(QV), "rank": 4, "alpha": 8}
        more = {"vectors": not short, "controls": name == "LoRA" and not short}
        runs[f"transformer {name}"] = _run("transformer", {**adapt, **qv}, rate, record) | more
        every = {} if full else {"rank": 8, "alpha": 16}
        runs[f"mlp {name}"] = _run("mlp", {**adapt, **every}, rate, record)
    if not short:
        qv = {"targets": list(QV)}
        low = {**qv, "rank": 4, "alpha": 8}
        also = {
            "FT, weight decay": ({"method": "full"}, 1e-3, {"weight_decay": 0.01}),
            "FT of q and v": ({"method": "full", **qv}, 1e-2, {}),
            "FT of q and v, SGD": ({"method": "full", **qv}, 1.0, {"optimizer": "sgd"}),
            "LoRA, SGD": ({"method": "lora", **low}, 1.0, {"optimizer": "sgd"}),
            "DoRA, SGD": ({"method": "dora", **low}, 1.0, {"optimizer": "sgd"}),
            "DoRA, m at 0.1": ({"method": "dora", **low}, 1e-2, {"m_rate": 0.1}),
            "DoRA, m at 10": ({"method": "dora", **low}, 1e-2, {"m_rate": 10}),
        }
        for name, (adapt, rate, more) in also.items():
            runs[f"transformer {name}"] = _run("transformer", adapt, rate, record) | more
    networks = {"transformer": TRANSFORMER, "mlp": MLP}
    if short:
        networks = {
            "transformer": {**TRANSFORMER, "pretrain_steps": 200, "tune_steps": 60},
            "mlp": {**MLP, "pretrain_steps": 200, "tune_steps": 100},
        }
    seeds = {"transformer": 1, "mlp": 1} if short else {"transformer": 8, "mlp": 10}
    return {"networks": networks, "runs": runs, "seeds": seeds}


def _run(network: str, adapt: dict, rate: float, record: dict | None = None, **more) -> dict:
    settings = {"network": network, "adapt": adapt, "rate": rate, **more}
    return settings if record is None else settings | {"record": record[network]}


def figure3(short: bool = False) -> dict:
    """ΔM and ΔD by layer and module at equal validation loss."""
    record = {"transformer": {"targets": list(LINEARS), "times": 20}}
    low = {"targets": list(LINEARS), "rank": 4, "alpha": 8}
    runs = {
        name: _run("transformer", {**adapt, **low}, 1e-2, record) for name, adapt in BOTH.items()
    }
    return _five_seeds(runs, short)


def sweep(short: bool = False) -> dict:
    """Method × rank × learning rate."""
    rates = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 16e-2)
    runs, against = {}, {}
    for name, adapt in METHODS.items():
        for rank in (1, 2, 4, 8, 16) if name != "FT" else ():
            low = {**adapt, "targets": list(QV), "rank": rank, "alpha": 2 * rank}
            runs |= _rates(f"{name}, rank {rank}", "transformer", low, rates)
            if name != "LoRA":
                against[f"{name}, rank {rank}"] = f"LoRA, rank {rank}"
    return _five_seeds(runs, short, against)


def granularity(short: bool = False) -> dict:
    """Table 6: magnitudes everywhere, directions on q, k and v alone; other choices of layers."""
    low = {"rank": 4, "alpha": 8}
    rest = {"up": "magnitude", "down": "magnitude"}
    choices = {
        "LoRA on q, k, v, up, down": {"method": "lora", "targets": list(LINEARS), **low},
        "LoRA on q, k, v": {"method": "lora", "targets": ["q", "k", "v"], **low},
        "DoRA on q, k, v, up, down": {"method": "dora", "targets": list(LINEARS), **low},
        "DoRA on q, k, v": {"method": "dora", "targets": ["q", "k", "v"], **low},
        "DoRA, m of o, up, down too": {
            "method": "dora",
            "targets": {"q": {}, "k": {}, "v": {}, "o": "magnitude", **rest},
            **low,
        },
    }
    runs = {}
    for name, adapt in choices.items():
        runs |= _rates(name, "transformer", adapt, (5e-3, 1e-2, 2e-2, 4e-2, 8e-2))
    alone = {"method": "magnitude", "targets": ["q", "k", "v", "o", "up", "down"]}
    runs |= _rates("m alone, of all six", "transformer", alone, (2e-2, 4e-2, 8e-2, 16e-2, 32e-2))
    first = {"method": "lora", "targets": alone["targets"], "rank": 1, "alpha": 2}
    runs |= _rates(
        "LoRA of rank 1 on all six", "transformer", first, (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
    )
    baseline = "LoRA on q, k, v, up, down"
    against = {run["group"]: baseline for run in runs.values() if run["group"] != baseline}
    for target in QV:  # which of the two cannot stand a rate that is too high?
        record = {"transformer": {"targets": [target], "times": 4}}
        for name, adapt in BOTH.items():
            one = {**adapt, "targets": [target], **low}
            rates = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2, 16e-2)
            runs |= _rates(f"{name} on {target}", "transformer", one, rates, record)
    return _five_seeds(runs, short, against)


def sample_size(short: bool = False) -> dict:
    """Figure 4: tuning with parts of the data."""
    low = {"targets": list(QV), "rank": 4, "alpha": 8}
    runs = {}
    for part in (1 / 8, 1 / 4, 1 / 2, 1):
        for name, adapt in BOTH.items():
            rates = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
            group = f"{name}, {part:g} of the data"
            runs |= _rates(group, "transformer", {**adapt, **low}, rates, fraction=part)
    parts = [
        name.removeprefix("DoRA") for name in (r["group"] for r in runs.values()) if "DoRA" in name
    ]
    return _five_seeds(runs, short, {f"DoRA{part}": f"LoRA{part}" for part in parts})


def detach(short: bool = False) -> dict:
    """Section 4.3: exact against detached, on both networks, the MLP with three tasks."""
    runs = {}
    record = {
        "transformer": {"targets": list(QV), "times": 4},
        "mlp": {"targets": [f"layers.{i}" for i in range(4)], "times": 4},
    }
    for name in ("DoRA", "DoRA detached"):
        low = {**METHODS[name], "targets": list(QV), "rank": 4, "alpha": 8}
        rates = (5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
        runs |= _rates(f"names, {name}", "transformer", low, rates, record)
        for work in ("rotated", "inverted", "permuted labels"):
            every = {**METHODS[name], "rank": 8, "alpha": 16}
            rates = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
            runs |= _rates(f"digits {work}, {name}", "mlp", every, rates, record, task=work)
    exact = {run["group"] for run in runs.values() if "norm_grad" not in run["adapt"]}
    return _five_seeds(runs, short, {group: f"{group} detached" for group in sorted(exact)})


def gradients(short: bool = False) -> dict:
    """Eq. 8-10 and the remark beside Eq. 6, at the start and after tuning."""
    low = {"method": "dora", "targets": list(QV), "rank": 4, "alpha": 8}
    every = {"method": "dora", "rank": 8, "alpha": 16}
    runs = {
        "transformer": _run("transformer", low, 1e-2, watch=256),
        "mlp": _run("mlp", every, 1e-2, watch=64),
    }
    return _five_seeds(runs, short)


def _rates(group, network, adapt, rates, record=None, **more) -> dict[str, dict]:
    """The same run at each learning rate."""
    return {
        f"{group}, rate {rate:g}": _run(network, adapt, rate, record, group=group, **more)
        for rate in rates
    }


def _five_seeds(runs: dict, short: bool, against: dict | None = None) -> dict:
    """against: for groups of `summaries.by_rate`, the group to take the difference from."""
    if short:
        raise ValueError("--short: expected figure2, the only experiment with a short form")
    return {
        "networks": {"transformer": TRANSFORMER, "mlp": MLP},
        "runs": runs,
        "seeds": {"transformer": 5, "mlp": 5},
        "against": against or {},
    }


EXPERIMENTS = {
    "figure2": figure2,
    "figure3": figure3,
    "sweep": sweep,
    "granularity": granularity,
    "sample_size": sample_size,
    "detach": detach,
    "gradients": gradients,
}
