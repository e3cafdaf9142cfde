"""Optimizers against torch's, schedules, the loop, frozen bases, the twin step by step."""

import ctypes
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from minidora import nn, training
from minidora.evidence.gradcheck import relative_error
from minidora.training import data, optim
from minidora.training.fit import _check_finite


def torch_or_skip():
    return pytest.importorskip("torch", exc_type=ImportError)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_torchs_over_50_steps(decay):
    torch = torch_or_skip()
    rng = np.random.default_rng(0)
    ours = {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=5)}
    theirs = {name: torch.tensor(p.copy(), requires_grad=True) for name, p in ours.items()}
    settings = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    optimizer = training.AdamW(**settings)
    reference = torch.optim.AdamW(theirs.values(), lr=1.0, **settings)
    for step in range(50):
        rate = 0.1 / (step + 1)
        grads = {name: rng.normal(size=p.shape) for name, p in ours.items()}
        optimizer.step(ours, grads, rate)
        for name, p in theirs.items():
            p.grad = torch.tensor(grads[name])
        reference.param_groups[0]["lr"] = rate
        reference.step()
    for name, p in ours.items():
        np.testing.assert_allclose(p, theirs[name].detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_sgd_equals_torchs(momentum, decay):
    torch = torch_or_skip()
    rng = np.random.default_rng(1)
    ours = {"a": rng.normal(size=(4, 3))}
    theirs = torch.tensor(ours["a"].copy(), requires_grad=True)
    optimizer = training.SGD(momentum=momentum, weight_decay=decay)
    reference = torch.optim.SGD([theirs], lr=0.05, momentum=momentum, weight_decay=decay)
    for _ in range(20):
        grad = rng.normal(size=(4, 3))
        optimizer.step(ours, {"a": grad.copy()}, 0.05)
        theirs.grad = torch.tensor(grad)
        reference.step()
    np.testing.assert_allclose(ours["a"], theirs.detach().numpy(), atol=1e-13)


def test_rates_by_name_and_no_decay():
    params = {"q.m": np.ones(2), "q.A": np.ones(2)}
    grads = {name: np.ones(2) for name in params}
    training.SGD(rates={"*.m": 0.1}).step(params, grads, 0.5)
    np.testing.assert_allclose(params["q.m"], 0.95)
    np.testing.assert_allclose(params["q.A"], 0.5)
    for no_decay in (("*.m",), "*.m"):
        params = {"q.m": np.ones(2), "q.A": np.ones(2)}
        optimizer = training.AdamW(weight_decay=0.5, no_decay=no_decay)
        optimizer.step(params, {name: np.zeros(2) for name in params}, 0.1)
        np.testing.assert_array_equal(params["q.m"], 1)
        np.testing.assert_allclose(params["q.A"], 0.95)


def test_gradients_whose_squares_float32_cannot_hold():
    narrow, wide = ({"a": np.ones(3, dtype)} for dtype in (np.float32, np.float64))
    steps = [(training.AdamW(), params) for params in (narrow, wide)]
    for size in (1.0, 1e20, 1e30, 1.0, 2.0):
        for optimizer, params in steps:
            grad = np.full(3, size, params["a"].dtype)
            optimizer.step(params, {"a": grad}, 0.1)
    assert narrow["a"].dtype == np.float32
    np.testing.assert_allclose(narrow["a"], wide["a"], rtol=1e-5)
    grads = {"a": np.full(4, 1e20, np.float32)}
    assert training.clip_by_norm(grads, 1.0) == pytest.approx(2e20)
    np.testing.assert_allclose(grads["a"], 0.5)
    for optimizer in (training.AdamW(), training.SGD(momentum=0.9)):
        with pytest.raises(FloatingPointError, match="^b: expected a step of finite numbers, got"):
            optimizer.step({"b": np.ones(1)}, {"b": np.full(1, 1e300)}, 1e9)


def test_moments_of_a_float16_array_are_float32():
    params = {"a": np.ones(2, np.float16)}
    optimizer = training.AdamW()
    optimizer.step(params, {"a": np.array([0, 1], np.float16)}, 0.1)
    assert {optimizer.state[slot]["a"].dtype.name for slot in optimizer.slots} == {"float32"}
    np.testing.assert_allclose(params["a"], [1, 0.9], rtol=1e-3)


def test_float32_stays_float32_and_a_frozen_array_refuses():
    params = {"a": np.ones(3, np.float32)}
    optimizer = training.AdamW(weight_decay=0.1)
    optimizer.step(params, {"a": np.ones(3, np.float32)}, np.float64(0.1))
    assert params["a"].dtype == optimizer.state["first"]["a"].dtype == np.float32
    params["a"].flags.writeable = False
    for refusing in (optimizer, training.SGD()):
        with pytest.raises(ValueError, match="read-only"):
            refusing.step(params, {"a": np.ones(3, np.float32)}, 0.1)


def test_clipping_equals_torchs():
    torch = torch_or_skip()
    rng = np.random.default_rng(2)
    grads = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=2)}
    theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads.values()]
    for p, g in zip(theirs, grads.values(), strict=True):
        p.grad = torch.tensor(g)
    norm = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
    assert training.clip_by_norm(grads, 1.5) == pytest.approx(norm.item())
    for p, g in zip(theirs, grads.values(), strict=True):
        np.testing.assert_allclose(g, p.grad.numpy(), rtol=1e-5)
    small = {"a": np.array([0.3])}
    assert training.clip_by_norm(small, 1.5) == pytest.approx(0.3) and small["a"][0] == 0.3


def test_schedules():
    assert [training.constant(2.0, warmup=2)(s) for s in range(4)] == [1, 2, 2, 2]
    line = training.linear(1.0, 6, warmup=2)
    assert [line(s) for s in range(8)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    wave = training.cosine(1.0, 4)
    np.testing.assert_allclose([wave(s) for s in (0, 2, 4, 9)], [1, 0.5, 0, 0], atol=1e-15)
    with pytest.raises(ValueError, match="^warmup: expected from 0 to below steps = 4, got 4"):
        training.linear(1.0, 4, warmup=4)
    with pytest.raises(ValueError, match="^rate: expected a finite number of at least 0, got -1"):
        training.constant(-1)
    for make in (training.constant, lambda rate, **kw: training.cosine(rate, 4, **kw)):
        with pytest.raises(
            ValueError, match="^warmup: expected a finite number of at least 0, got"
        ):
            make(1.0, warmup=-5)


def test_optimizer_errors():
    with pytest.raises(ValueError, match=r"^grads: expected names among \['a'\], got \['b'\]"):
        training.AdamW().step({"a": np.ones(1)}, {"b": np.ones(1)}, 0.1)
    for betas in ((0.9, 1.0), (-0.1, 0.9), (0.9,), (0.9, 0.99, 0.999), 0.9):
        with pytest.raises(ValueError, match="^betas: expected two numbers of 0 or more and below"):
            training.AdamW(betas=betas)
    with pytest.raises(ValueError, match=r"^rates\['\*.m'\]: expected a finite number of at least"):
        training.SGD(rates={"*.m": -1})


# --- the loop ----------------------------------------------------------------------------------


classify = nn.classification


def problem(seed=0, dtype=np.float64):
    """A small classifier and endless batches of a task it can learn."""
    rng = np.random.default_rng(seed)
    model = nn.MLP.init((6, 16, 3), rng, dtype=dtype)
    x = rng.normal(size=(200, 6)).astype(dtype)
    y = (x @ rng.normal(size=(6, 3))).argmax(1)
    return model, data.batches((x, y), 32, rng), (x, y)


def digest(arrays):
    return {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()}


def test_fit_learns_and_keeps_a_history():
    model, batches, whole = problem()
    seen = []
    history = training.fit(
        model,
        classify,
        batches,
        steps=150,
        rate=training.linear(2e-2, 150, warmup=5),
        clip=1.0,
        evaluate=lambda m: classify(m, whole, None)[0],
        every=60,
        callbacks=(lambda step, m: seen.append((step, m is model)) for _ in range(1)),
        progress=False,
    )
    assert len(history.losses) == len(history.rates) == len(history.grad_norms) == 150
    assert np.mean(history.losses[-10:]) < 0.3 * history.losses[0]
    assert list(history.evaluations) == [60, 120, 150] and not history.interrupted
    assert history.evaluations[150] < history.evaluations[60]
    assert seen == [(step, True) for step in range(151)]


def test_fit_is_deterministic_from_its_seed():
    results = []
    for _ in range(2):
        model, batches, _ = problem(3)
        rng = np.random.default_rng(0)
        model = nn.adapt(model, "dora", rank=2, rng=rng, dropout=0.2)
        training.fit(model, classify, batches, steps=20, rng=rng, progress=False)
        results.append(digest(nn.parameters(model)))
    assert results[0] == results[1]


@pytest.mark.parametrize("method", ["full", "lora", "dora", "magnitude"])
def test_the_base_has_the_same_bytes_after_training(method):
    model, batches, _ = problem(4)
    before = digest(nn.parameters(model))
    adapted = nn.adapt(model, method, rank=2, rng=np.random.default_rng(0))
    start = digest(nn.parameters(adapted))
    training.fit(adapted, classify, batches, steps=20, rate=1e-2, progress=False)
    assert digest(nn.parameters(model)) == before
    changed = {name for name, sha in digest(nn.parameters(adapted)).items() if sha != start[name]}
    assert changed == set(nn.trained(adapted))


def test_a_loss_or_gradient_that_is_not_finite_stops_with_step_and_name():
    model, batches, _ = problem(5)

    def spoiled(model, batch, rng):
        loss, grads = classify(model, batch, rng)
        spoiled.calls += 1
        if spoiled.calls == 3:
            grads["layers.1.bias"][0] = np.inf
        return loss, grads

    spoiled.calls = 0
    message = r"^gradient of layers.1.bias: expected finite numbers at step 2, got 1"
    with pytest.raises(FloatingPointError, match=message):
        training.fit(model, spoiled, batches, steps=5, progress=False)
    with pytest.raises(FloatingPointError, match="^loss: expected a finite number at step 0, got"):
        training.fit(model, lambda *_: (np.nan, {}), batches, steps=5, progress=False)
    _check_finite(0, 1.0, {"a": np.full(4, 1e200)})  # large, its square overflows, yet finite


def test_ctrl_c_returns_what_was_trained_so_far():
    model, batches, _ = problem(6)

    def stop(step, model):
        if step == 7:
            raise KeyboardInterrupt

    history = training.fit(model, classify, batches, steps=50, callbacks=[stop], progress=False)
    assert history.interrupted and len(history.losses) == 7


def test_fit_errors():
    model, batches, _ = problem(7)
    with pytest.raises(ValueError, match="^batches: expected 5 for as many steps, got 1"):
        training.fit(model, classify, [next(batches)], steps=5, progress=False)
    with pytest.raises(ValueError, match="^steps: expected at least 1, got 0"):
        training.fit(model, classify, batches, steps=0)
    with pytest.raises(ValueError, match="^rng: expected a generator, since the model has dropout"):
        dropping = nn.adapt(nn.thaw(model), "lora", rng=np.random.default_rng(0), dropout=0.1)
        training.fit(dropping, classify, batches, steps=1)
    with pytest.raises(
        ValueError, match=r"^loss: expected gradients of all .* none of \['layers.0."
    ):
        training.fit(model, lambda *_: (1.0, {}), batches, steps=1, progress=False)
    nn.adapt(model, "magnitude")
    with pytest.raises(
        ValueError, match=r"^model: 'layers.0.weight' should train but is read-only"
    ):
        training.fit(model, classify, batches, steps=1)
    with pytest.raises(ValueError, match="^model: expected arrays that train, got none"):
        training.fit(nn.merge(model), classify, batches, steps=1)
    with pytest.raises(ValueError, match="^start: expected from 0 to below steps = 5, got 5"):
        training.fit(model, classify, batches, steps=5, start=5)


@pytest.mark.parametrize("name", ["", "tuning"])
def test_progress_bar(name, capsys):
    pytest.importorskip("tqdm")
    model, batches, _ = problem(8)
    training.fit(model, classify, batches, steps=25, progress=name or True)
    assert (name or "fit") in capsys.readouterr().err


@pytest.mark.parametrize("norm_grad", ["exact", "detached"])
def test_ten_adamw_steps_follow_the_pytorch_twin(norm_grad):
    torch = torch_or_skip()
    from twin import loss_of, tensor, twin_of

    rng = np.random.default_rng(9)
    base = nn.Transformer.init(data.VOCABULARY, 16, 2, 2, 9, rng, dtype=np.float64)
    model = nn.adapt(base, "dora", ("q", "v"), rank=2, rng=rng, norm_grad=norm_grad)
    twin = twin_of(model)
    trained = [p for p in twin.parameters() if p.requires_grad]
    reference = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    optimizer, params = training.AdamW(weight_decay=0.01), nn.trained(model)
    words = data.encode([w for w in data.names("female") if len(w) < 9][:64], 9)
    for batch in (data.Words(*(a[i::10] for a in words)) for i in range(10)):
        loss, grads = nn.language_modelling(model, batch)
        optimizer.step(params, grads, 1e-2)
        twin_loss = loss_of(
            twin(tensor(batch.tokens), tensor(batch.padding)), tensor(batch.targets)
        )
        reference.zero_grad()
        twin_loss.backward()
        reference.step()
        assert loss == pytest.approx(twin_loss.item(), rel=1e-8)
    for name, p in twin.named_parameters():
        assert relative_error(nn.parameters(model)[name], p.detach().numpy()) < 1e-8, name


# --- data --------------------------------------------------------------------------------------


def test_digits_and_their_shifts():
    pytest.importorskip("sklearn")
    plain = data.digits()
    assert plain.x.shape == (1200, 64) and plain.x_test.shape == (597, 64)
    assert plain.x.dtype == np.float32
    np.testing.assert_allclose(plain.x.mean(0), 0, atol=1e-6)
    turned = data.digits("rotated", angle=90)
    upright, image = plain.x[3].reshape(8, 8), turned.x[3].reshape(8, 8)
    mean = data.digits("inverted").x[3].reshape(8, 8) + upright  # 1 - 2 * mean
    mean = (1 - mean) / 2
    np.testing.assert_allclose(image + mean, np.rot90(upright + mean), atol=1e-5)
    np.testing.assert_array_equal(turned.y, plain.y)
    renamed = data.digits("permuted labels")
    np.testing.assert_array_equal(renamed.x, plain.x)
    pairs = set(zip(plain.y.tolist(), renamed.y.tolist(), strict=True))
    assert len(pairs) == 10 and all(a != b for a, b in pairs)
    held = data.digits("held-out classes")
    assert set(held.y) == set(held.y_test) == {5, 6, 7, 8, 9}
    slight = data.digits("rotated", angle=20)
    assert 0.1 < np.abs(slight.x - plain.x).max()
    with pytest.raises(ValueError, match="^shift: expected 'none' or 'rotated' or"):
        data.digits("upside down")
    with pytest.raises(ValueError, match="^test: expected from 1 to 1796, got 1797"):
        data.digits(test=1797)


def test_names_are_there_and_encode_and_decode():
    surnames, female, male = (data.names(kind) for kind in data.KINDS)
    assert (len(surnames), len(female), len(male)) == (20000, 4275, 1219)
    assert surnames[:2] == ["smith", "johnson"] and female[0] == "mary" and male[0] == "james"
    short = [name for name in surnames if len(name) <= 12]
    words = data.encode(short, 13)
    assert data.decode(words.tokens) == short
    assert words.tokens.max() == data.VOCABULARY - 1
    counts = words.targets != -1
    np.testing.assert_array_equal(counts, ~words.padding)
    np.testing.assert_array_equal(
        words.targets[:, :-1][counts[:, 1:]], words.tokens[:, 1:][counts[:, 1:]]
    )
    for bad in ("anna maria", "Anna", "", "abcdefghijklm"):
        with pytest.raises(ValueError, match=r"^words: expected letters a to z, 12 at most, got"):
            data.encode(["anna", bad], 13)
    with pytest.raises(ValueError, match="^kind: expected 'surnames' or 'female' or 'male'"):
        data.names("pets")


def test_batches_pass_over_all_rows_in_turn():
    rows = np.arange(10)
    source = data.batches((rows, rows * 2), 4, np.random.default_rng(0))
    seen = [next(source) for _ in range(5)]
    assert all((b == 2 * a).all() and len(a) == 4 for a, b in seen)
    drawn = np.concatenate([a for a, _ in seen])
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    later = data.batches((rows, rows * 2), 4, np.random.default_rng(0), start=3)
    np.testing.assert_array_equal(next(later)[0], seen[3][0])
    with pytest.raises(ValueError, match="^start: expected 0 or more, got -1"):
        data.batches((rows,), 4, np.random.default_rng(0), start=-1)
    words = data.encode(["ab", "cd"], 4)
    assert isinstance(next(data.batches(words, 2, np.random.default_rng(0))), data.Words)
    for bad in ((rows, rows[:3]), (rows[:0],)):
        with pytest.raises(ValueError, match="^arrays: expected one number of rows, above 0"):
            data.batches(bad, 2, np.random.default_rng(0))


def test_keep_memory_is_honest_about_what_it_did():
    code = "from minidora.training import keep_memory; print(keep_memory(64))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    glibc = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
    assert ran.stdout.strip() == str(glibc), ran.stderr


def test_keep_memory_does_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert training.keep_memory() is False


def test_optimizer_base_class_moves_nothing():
    with pytest.raises(NotImplementedError):
        optim.Optimizer().step({"a": np.ones(1)}, {"a": np.ones(1)}, 0.1)
