"""`minidora adapter`: silent on what libraries saved, every way of being broken found, measured."""

import json
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="needs safetensors: pip install safetensors")
from minidora import nn, peft
from minidora.__main__ import main
from minidora.adapter.findings import ADVICE, check
from minidora.adapter.formats import Layer, weights_of
from minidora.adapter.report import points, report
from minidora.adapter.tensors import Tensor, read_tensors
from minidora.analysis import adapter_changes, changes, correlate
from minidora.training import checkpoint

FIXTURES = Path(__file__).parent / "adapters"
GOOD = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and p.name != "mlx_bfloat16")
TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2", "I8": "|i1", "U8": "|u1"}


class Arrays(dict):
    """{key: array} of a safetensors file; `kinds` has the types, of which NumPy lacks some."""

    def __init__(self, file):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        self.file, self.kinds, self.metadata = file, {}, header.pop("__metadata__", {})
        for name, tensor in header.items():
            first, last = (8 + length + offset for offset in tensor["data_offsets"])
            array = np.frombuffer(data[first:last], TYPES[tensor["dtype"]])
            if tensor["dtype"] == "BF16":
                array = (array.astype("<u4") << 16).view("<f4")
            self[name], self.kinds[name] = array.reshape(tensor["shape"]).copy(), tensor["dtype"]

    def save(self):
        header, data = {"__metadata__": self.metadata}, b""
        for name, array in self.items():
            kind, first = self.kinds.get(name, "F32"), len(data)
            if kind == "BF16":
                array = array.astype("<f4").view("<u4") >> 16
            data += array.astype(TYPES[kind]).tobytes()
            offsets = [first, len(data)]
            header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
        text = json.dumps(header).encode()
        self.file.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Copy:
    """A fixture in a folder of its own, to be broken."""

    def __init__(self, name, folder):
        self.folder = folder / name
        shutil.copytree(FIXTURES / name, self.folder)
        self.arrays = Arrays(next(self.folder.glob("*.safetensors")))
        self.weights = {f.name: Arrays(f) for f in (self.folder / "base").glob("*.safetensors")}
        self.settings = self.folder / "adapter_config.json"
        self.config = json.loads(self.settings.read_text()) if self.settings.exists() else None

    def base(self, key):
        """The base's arrays that have this one."""
        return next(arrays for arrays in self.weights.values() if key in arrays)

    def key(self, ending):
        """The one key that ends so."""
        (key,) = (key for key in self.arrays if key.endswith(ending))
        return key

    def change(self, ending, function):
        """One array made another."""
        key = self.key(ending)
        self.arrays[key] = function(self.arrays[key])

    def findings(self, base=True):
        self.arrays.save()
        for arrays in self.weights.values():
            arrays.save()
        if self.config is not None:
            self.settings.write_text(json.dumps(self.config))
        return check(self.folder, self.folder / "base" if base else None)


def put(index, value):
    """An array with one entry, or several, made another."""

    def function(array):
        array.flat[index] = value
        return array

    return function


# good adapters


@pytest.mark.parametrize("base", [True, False], ids=["base", "alone"])
@pytest.mark.parametrize("name", GOOD)
def test_it_is_silent_on_what_a_library_saved(name, base, capsys):
    arguments = ["--base", str(FIXTURES / name / "base")] if base else []
    assert main(["adapter", "check", str(FIXTURES / name), *arguments]) == 0
    assert capsys.readouterr() == ("", "")


def minidoras(method, norm_axis="per_output", groups=None):
    """A network with adapters that have moved, and its base."""
    rng = np.random.default_rng(3)
    base = nn.MLP.init((6, 6, 4), rng)
    more = {} if method == "lora" else {"norm_axis": norm_axis, "groups": groups}
    model = nn.adapt(base, method, rank=2, alpha=3, rng=rng, **more)
    for name, array in nn.trained(model).items():
        if name.endswith(".B"):
            array += 0.05 * rng.normal(size=array.shape).astype(array.dtype)
        if name.endswith(".m"):
            array *= 1 + 0.05 * rng.normal(size=array.shape).astype(array.dtype)
    return base, model


@pytest.mark.parametrize("groups", [None, ("rows", 2), "per_input"])
def test_it_is_silent_on_minidoras_own(groups, tmp_path):
    axis = "per_input" if groups == "per_input" else "per_output"
    base, model = minidoras("dora", axis, None if groups == axis else groups)
    checkpoint.save(tmp_path / "base", base)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    assert check(tmp_path / "adapter") == check(tmp_path / "adapter", tmp_path / "base") == []
    if groups is None:
        peft.save_adapter(tmp_path / "folder", model)
        assert check(tmp_path / "folder", tmp_path / "base") == []


def test_minidoras_layers_of_other_arrays_are_left_alone(tmp_path):
    base = nn.MLP.init((6, 6, 4), np.random.default_rng(3))
    rng, methods = np.random.default_rng(0), {"layers.0": "dora", "layers.1": "dvora"}
    model = nn.adapt(base, targets=methods, rank=2, alpha=3, rng=rng)
    checkpoint.save(tmp_path / "base", base)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    assert check(tmp_path / "adapter", tmp_path / "base") == []
    measured = report(tmp_path / "adapter", tmp_path / "base")
    assert [row.layer for row in measured.layers] == ["layers.0"]


def test_a_layer_of_zero_rows_alone_is_named(tmp_path):
    base = nn.MLP.init((6, 6, 4), np.random.default_rng(3))
    base.layers[0].weight[2] = 0
    model = nn.adapt(base, "dora", rank=2, alpha=3, rng=np.random.default_rng(0))
    checkpoint.save(tmp_path / "base", base)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    (finding,) = check(tmp_path / "adapter", tmp_path / "base")
    assert finding[:2] == ("zero vector", "layers.0") and "1 of 6, the first 2" in finding.evidence


def test_mlx_lm_trains_an_embeddings_magnitudes_in_the_types_of_its_base():
    """As that version does; its other layers have float32."""
    folder = FIXTURES / "mlx_bfloat16"
    (finding,) = check(folder, folder / "base")
    assert finding[:2] == ("dtype", "model.embed_tokens") and "BF16" in finding.evidence


def test_a_rank_above_a_layers_size_is_believed_where_the_settings_say_it(tmp_path):
    copy = Copy("peft_llama", tmp_path)
    copy.change(Q + A, lambda a: np.tile(a, (10, 1)))
    copy.change(Q + B, lambda b: np.tile(b / 10, (1, 10)))
    copy.config["rank_pattern"]["1.self_attn.q_proj"] = 20
    assert copy.findings() == []


def test_fan_in_fan_out_is_not_of_convolutions(tmp_path):
    copy = Copy("peft_small", tmp_path)
    for key in [key for key in copy.arrays if "conv" not in key]:
        del copy.arrays[key]
    copy.config["fan_in_fan_out"] = True
    assert copy.findings() == []


def test_names_are_told_from_each_other_or_not_at_all():
    """{layer: weight}: as it is, with _ for dots, with more or less before it."""
    model = {f"{n}.weight": n for n in ("a.q", "b.q", "b.attn.v", "x.b.attn.v", "c.up")}
    layers = dict.fromkeys(
        ["a.q", "q", "lora_unet_b_q", "b_attn_v", "attn.v", "base.c.up", "up", "p"]
    )
    expected = {"a.q": "a.q", "lora_unet_b_q": "b.q", "b_attn_v": "b.attn.v"}
    assert weights_of(model, layers) == expected | {"base.c.up": "c.up", "up": "c.up"}


def test_groups_have_to_divide_the_vectors():
    def shapes(count):
        m = Tensor(Path("file"), "x.m", "F32", (count,), 0)
        return Layer("x", {"m": m}, is_grouped=True).magnitude_shapes(6, (4,))

    assert shapes(3) == {(3,): "per_output"} and shapes(5) == shapes(6) == {(6,): "per_output"}


# broken ones

Q, V, DOWN = (
    f"model.layers.1.{n}" for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
)
M, A, B = ".lora_magnitude_vector", ".lora_A.weight", ".lora_B.weight"
BROKEN = []


def broken(name, kind, layer, evidence):
    """Register what breaks a fixture, and the one finding that it must give."""

    def register(function):
        BROKEN.append(pytest.param(name, function, kind, layer, evidence, id=function.__name__))
        return function

    return register


@broken("peft_llama", "plain LoRA", "", "this is plain LoRA: none of 8 layers .* say DoRA")
def no_magnitudes(c):
    for key in [key for key in c.arrays if key.endswith(M)]:
        del c.arrays[key]


@broken("peft_llama", "magnitudes lost", V, "no m, which other layers have")
def one_lost(c):
    del c.arrays[c.key(V + M)]


@broken("lycoris_output", "magnitudes lost", "lycoris_wide", "no m")
def one_lost_of_lycoris(c):
    del c.arrays["lycoris_wide.dora_scale"]


@broken("peft_llama", "plain LoRA", "", "the settings say LoRA, though")
def settings_say_lora(c):
    c.config["use_dora"] = False


@broken("mlx", "plain LoRA", "", "the settings say LoRA, though")
def settings_of_mlx_say_lora(c):
    c.config["fine_tune_type"] = "lora"


@broken("peft_llama", "unknown keys", "", "1, the first .*default.weight")
def m_under_another_name(c):
    c.arrays[c.key(V + M) + ".default.weight"] = c.arrays[c.key(V + M)]


@broken("peft_llama", "wrong axis", V, r"m is \(16,\), expected \(8,\)")
def m_of_the_inputs(c):
    c.change(V + M, lambda m: np.ones(16))


@broken("peft_llama", "wrong axis", Q, r"m is [\d.]+% from the norms of rows, 0.0% from .* columns")
def m_of_a_squares_columns(c):
    c.change(Q + M, lambda m: np.linalg.norm(c.base(f"{Q}.weight")[f"{Q}.weight"], axis=0))


@broken("lycoris_output", "wrong axis", "lycoris_square", "of rows, 0.0% from those of columns")
def dora_scale_of_a_squares_columns(c):
    c.change(
        "square.dora_scale",
        lambda m: np.linalg.norm(c.base("square.weight")["square.weight"], axis=0)[:, None],
    )


@broken("lycoris_input", "wrong axis", "lycoris_square", "of columns, 0.0% from those of rows")
def dora_scale_of_a_squares_rows(c):
    c.change(
        "square.dora_scale",
        lambda m: np.linalg.norm(c.base("square.weight")["square.weight"], axis=1)[None],
    )


@broken(
    "lycoris_output", "shape of m", "lycoris_square", r"m is \(6,\), expected \(6, 1\) or \(1, 6\)"
)
def one_dimension_for_a_square(c):
    c.change("square.dora_scale", np.ravel)


@broken("lycoris_loha", "shape of m", "lycoris_square", r"m is \(6,\)")
def one_dimension_beside_other_arrays(c):
    c.change("square.dora_scale", np.ravel)


@broken("peft_llama", "shape of m", V, r"m is \(1, 8\), expected \(8,\)")
def m_as_a_row(c):
    c.change(V + M, lambda m: m[None])


@broken("peft_small", "shape of m", "conv", r"m is \(5,\), expected \(1, 5, 1, 1\)")
def m_of_a_convolution_in_one_dimension(c):
    c.change("conv" + M, np.ravel)


@broken("peft_llama", "transposed", V, "A and B of a layer from 16 to 8 and of rank 3")
def both_transposed(c):
    c.change(V + A, np.transpose)
    c.change(V + B, np.transpose)


@broken("peft_llama", "transposed", Q, "A and B of a layer from 16 to 16 and of rank 2")
def both_of_a_square_transposed(c):
    c.change(Q + A, np.transpose)
    c.change(Q + B, np.transpose)


@broken("lycoris_output", "transposed", "lycoris_square", "A and B of .* rank 2")
def both_of_a_square_of_lycoris_transposed(c):
    c.change("square.lora_down.weight", np.transpose)
    c.change("square.lora_up.weight", np.transpose)


@broken("peft_llama", "transposed", DOWN, "A of a layer from 24 to 16 and of rank 2")
def one_transposed(c):
    c.change(DOWN + A, np.transpose)


@broken("mlx", "transposed", DOWN, "B of a layer from 24 to 16")
def one_of_mlx_transposed(c):
    c.change(f"{DOWN}.lora_b", np.transpose)


@broken("peft_gpt2", "turned base", "transformer.h.0.attn.c_attn", r"\(8, 24\), .* of \(24, 8\)")
def base_turned(c):
    c.config["fan_in_fan_out"] = False
    c.config["target_modules"] = ["c_attn"]
    for key in [key for key in c.arrays if "c_attn" not in key]:
        del c.arrays[key]


@broken("peft_llama", "zero vector", V, "m is 0: 3 of 8, the first 3")
def m_zero(c):
    c.change(V + M, put([3, 4, 5], 0))


@broken("peft_llama", "zero vector", DOWN, "rows of the base or V: 5 of 16, the first 3")
def rows_of_the_base_zero(c):
    c.base(f"{DOWN}.weight")[f"{DOWN}.weight"][[3, 5, 6, 7, 8]] = 0


@broken("peft_llama", "not finite", V, "A: 1 of 48, the first 5")
def A_not_finite(c):
    c.change(V + A, put(5, np.nan))


@broken("mlx", "not finite", Q, "m: 1 of 16, the first 0")
def m_not_finite(c):
    c.change(f"{Q}.m", put(0, np.inf))


@broken("lycoris_lokr", "not finite", "lycoris_square", "lokr_w1: 1 of 4, the first 1")
def another_array_not_finite(c):
    c.change("square.lokr_w1", put(1, -np.inf))


@broken("peft_llama", "not finite", V, "norms of V's rows: 1 of 8, the first 1")
def base_not_finite(c):
    c.base(f"{V}.weight")[f"{V}.weight"][1, 4] = np.nan


@broken("peft_llama", "negative m", V, "4 of 8, the first 1")
def m_negative(c):
    c.change(V + M, lambda m: m * np.tile([1, -1], 4))


@broken("peft_llama", "m far from V", V, r"\|m\| is 0\.\d+ to .* the norms of V's rows are 0\.")
def m_far(c):
    c.change(V + M, lambda m: 3 * m)


@broken("mlx", "m far from V", DOWN, "the norms of V's rows are 4")
def m_of_another_base(c):
    c.base(f"{DOWN}.weight")[f"{DOWN}.weight"] *= 9


@broken(
    "peft_llama", "stale norm", Q, r"weight_norm is up to 0.0\d+ off the norms of V's rows, 0\.0"
)
def norm_from_before_the_training(c):
    norms = np.linalg.norm(c.base(f"{Q}.weight")[f"{Q}.weight"], axis=1)
    c.arrays[c.key(Q + A).replace("lora_A.weight", "weight_norm")] = norms


@broken("peft_llama", "dtype", V, "m is BF16")
def m_in_bfloat16(c):
    c.arrays.kinds[c.key(V + M)] = "BF16"


@broken("kohya", "dtype", "lora_unet_mid_block_to_q", "m is F16, .*: 1 of 6, the first 2")
def m_too_small_for_float16(c):
    c.change("to_q.dora_scale", put(2, 1e-5))


@broken("kohya", "dtype", "lora_unet_mid_block_to_q", "m is F16, .*: 1 of 6, the first 2")
def m_too_large_for_float16(c):
    c.change("to_q.dora_scale", put(2, 60000))


@broken("peft_llama", "dtype", V, "A is I8")
def A_in_bytes(c):
    c.arrays.kinds[c.key(V + A)] = "I8"


@broken("peft_llama", "dtype", V, "A is F32, B is F16, m is F32")
def B_of_another_type(c):
    c.arrays.kinds[c.key(V + B)] = "F16"


@broken("peft_llama", "dtype", V, "A is F32, B is F32, m is F16")
def m_narrower_than_A(c):
    c.arrays.kinds[c.key(V + M)] = "F16"


@broken("peft_llama", "rank", DOWN, "the settings say 4, the arrays have 2")
def rank_in_the_settings(c):
    c.config["rank_pattern"]["1.mlp.down_proj"] = 4


@broken("peft_llama", "rank", "", "rank_pattern 'v.proj_' means no layer")
def rank_of_no_layer(c):
    c.config["rank_pattern"]["v.proj_"] = 4


@broken("mlx", "rank", Q, "the settings say 3, the arrays have 2")
def rank_in_the_settings_of_mlx(c):
    c.config["lora_parameters"]["rank"] = 3
    for key in [key for key in c.arrays if Q not in key]:
        del c.arrays[key]


@broken("kohya", "rank", "lora_unet_mid_block_to_q", "the settings say 4, the arrays have 2")
def rank_in_the_metadata_of_kohya(c):
    c.arrays.metadata["ss_network_dim"] = "4"
    for key in [key for key in c.arrays if "to_out" in key]:
        del c.arrays[key]


@broken("peft_llama", "alpha", DOWN, "the settings make the scale 0")
def alpha_zero(c):
    c.config["alpha_pattern"]["1.mlp.down_proj"] = 0


@broken("peft_llama", "alpha", "", "alpha_pattern 'up' means no layer")
def alpha_of_no_layer(c):
    c.config["alpha_pattern"]["up"] = 4


@broken("lycoris_output", "alpha", "lycoris_wide", "no alpha, which other layers have")
def alpha_missing(c):
    del c.arrays["lycoris_wide.alpha"]


@broken("lycoris_output", "alpha", "lycoris_wide", "expected a number above 0, got 1 to 1")
def alpha_of_many_numbers(c):
    c.change("wide.alpha", lambda alpha: np.ones(3))


@broken("lycoris_output", "alpha", "lycoris_wide", "expected a number above 0, got -1")
def alpha_negative(c):
    c.change("wide.alpha", np.negative)


@broken("peft_llama", "incomplete", V, "B missing, A, m there")
def B_missing(c):
    del c.arrays[c.key(V + B)]


@broken("mlx", "incomplete", Q, "A and B missing, m there")
def m_alone(c):
    del c.arrays[f"{Q}.lora_a"], c.arrays[f"{Q}.lora_b"]


@broken("peft_small", "not in the base", "wide", "no weight of its name there")
def base_without_a_layer(c):
    del c.base("wide.weight")["wide.weight"]


@broken("peft_llama", "shape", V, r"A \(2, 16\) and B \(8, 3\) have no rank in common")
def no_rank_in_common(c):
    c.change(V + A, lambda a: a[:2])


@broken("peft_llama", "shape", V, r"A \(0, 16\) and B \(8, 3\) are no pair")
def A_empty(c):
    c.change(V + A, lambda a: a[:0])


@broken("peft_llama", "shape", V, r"base's weight is \(8, 15\), A and B are of \(8, 16\)")
def base_of_another_shape(c):
    c.base(f"{V}.weight")[f"{V}.weight"] = np.ones((8, 15))


NEEDS_BASE = {
    *("m_of_a_squares_columns", "dora_scale_of_a_squares_columns", "dora_scale_of_a_squares_rows"),
    *("base_turned", "rows_of_the_base_zero", "base_not_finite", "m_far", "m_of_another_base"),
    *("norm_from_before_the_training", "base_without_a_layer", "base_of_another_shape"),
}


@pytest.mark.parametrize("name, break_it, kind, layer, evidence", BROKEN)
def test_what_is_broken_is_found_and_nothing_else(name, break_it, kind, layer, evidence, tmp_path):
    copy = Copy(name, tmp_path)
    assert copy.findings() == []
    break_it(copy)
    (finding,) = copy.findings()
    assert finding[:2] == (kind, layer) and re.search(evidence, finding.evidence)
    alone = copy.findings(base=False)
    assert alone == ([] if break_it.__name__ in NEEDS_BASE else [finding])


def test_every_kind_of_finding_is_among_them():
    assert {parameters.values[2] for parameters in BROKEN} == set(ADVICE)


def test_the_base_says_which_axis_one_dimension_of_a_square_was_made_along(tmp_path):
    copy = Copy("lycoris_output", tmp_path)
    dora_scale_of_a_squares_columns(copy)
    one_dimension_for_a_square(copy)
    assert [f.kind for f in copy.findings()] == ["shape of m", "wrong axis"]


def test_a_norm_that_is_not_stale_is_no_finding(tmp_path):
    """What is saved of V after the training, in bfloat16."""
    copy = Copy("peft_llama", tmp_path)
    W0, a, b = (
        copy.base(f"{Q}.weight")[f"{Q}.weight"],
        *(copy.arrays[copy.key(Q + n)] for n in (A, B)),
    )
    key = copy.key(Q + A).replace("lora_A.weight", "weight_norm")
    copy.arrays[key], copy.arrays.kinds[key] = np.linalg.norm(W0 + 4 * b @ a, axis=1), "BF16"
    assert copy.findings() == []


def test_a_base_of_zeros_is_told_without_a_warning(tmp_path):
    copy = Copy("peft_llama", tmp_path)
    norm_from_before_the_training(copy)
    copy.base(f"{Q}.weight")[f"{Q}.weight"][:] = 0
    copy.change(Q + B, np.zeros_like)
    assert [f[:2] for f in copy.findings()] == [("zero vector", Q), ("stale norm", Q)]


def test_layers_of_other_arrays_need_no_magnitudes(tmp_path):
    copy = Copy("lycoris_output", tmp_path)
    copy.arrays["lycoris_norm.w_norm"] = copy.base("wide.weight")["norm.weight"] = np.ones(3)
    assert copy.findings() == []


def test_arrays_of_16_bits_are_no_finding_nor_is_an_m_that_is_wider(tmp_path):
    copy = Copy("kohya", tmp_path)
    assert set(copy.arrays.kinds.values()) == {"F16"} and copy.findings() == []
    copy.arrays.kinds = {k: "F32" if "dora_scale" in k else "BF16" for k in copy.arrays}
    assert copy.findings() == []


def test_findings_are_a_line_each_and_json(tmp_path, capsys):
    copy = Copy("peft_llama", tmp_path)
    no_magnitudes(copy)
    copy.arrays["evil\x1b[2J.lora_A.weight"] = copy.arrays.pop(copy.key(V + A))
    copy.findings()
    arguments = ["--base", str(copy.folder / "base"), "--json", str(tmp_path / "c.json")]
    assert main(["adapter", "check", str(copy.folder), *arguments]) == 1
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["adapter"] == str(copy.folder) and written["base"] == arguments[1]
    assert [f["kind"] for f in written["findings"]][0] == "plain LoRA"
    lines = out.splitlines()
    assert err == "" and len(lines) == len(written["findings"]) == 4
    assert lines[0].startswith(f"{copy.folder}: plain LoRA: this is plain LoRA: none of ")
    assert lines[0].endswith(f"; {ADVICE['plain LoRA']}")
    assert r"evil\x1b[2J: incomplete: B missing, A there; save" in out and "\x1b" not in out


# the report


@pytest.mark.parametrize("name", [p.parent.name for p in sorted(FIXTURES.glob("*/merged"))])
def test_the_report_is_of_what_the_library_itself_merges(name):
    """ΔM and ΔD of each layer, from the base's weights to the library's own."""
    folder = FIXTURES / name
    measured = report(folder, folder / "base")
    before, after = {}, Arrays(folder / "merged" / "model.safetensors")
    for file in (folder / "base").glob("*.safetensors"):
        before |= Arrays(file)
    assert len(measured.layers) + len(measured.left_out) == len(after)
    bound = {"kohya": 0.01, "mlx_bfloat16": 0.03}.get(name, 2e-5)  # what float16 and bfloat16 round
    for row in measured.layers:
        flat = row.layer.replace(".", "_")
        (key,) = [k for k in after if flat.endswith(k.removesuffix(".weight").replace(".", "_"))]
        W0, W = (w[key].reshape(len(w[key]), -1) for w in (before, after))
        turned = name == "peft_gpt2" or row.kind == "emb"
        axis = "per_input" if turned or name == "lycoris_input" else "per_output"
        expected = changes(W0, W, axis)
        assert row.vectors == len(expected.turn) and key.endswith(f"{row.kind}.weight")
        np.testing.assert_allclose(row.dM, expected.dM, rtol=bound)
        np.testing.assert_allclose(row.dD, expected.dD, rtol=bound * 5)


def test_the_reports_slopes_and_flipped_vectors(tmp_path):
    copy = Copy("peft_llama", tmp_path)
    m_negative(copy)
    copy.findings()
    measured = report(copy.folder, copy.folder / "base")
    (row,) = [row for row in measured.layers if row.layer == V]
    W0 = copy.base(f"{V}.weight")[f"{V}.weight"]
    a, b, m = (copy.arrays[copy.key(V + n)] for n in (A, B, M))
    moved = adapter_changes(W0, a, b, 8 / 3, m=m)
    assert (row.slope, row.r) == (moved.correlation.slope, moved.correlation.r)
    assert row.flipped == 4 and row[3:5] == (moved.dM, moved.dD)
    kinds = {row.kind: row for row in measured.kinds}
    assert list(kinds) == ["down_proj", "k_proj", "q_proj", "v_proj"]
    alike = [row for row in measured.layers if row.kind == "v_proj"]
    assert kinds["v_proj"].vectors == 16 and kinds["v_proj"].flipped == 4
    assert kinds["v_proj"].dM == pytest.approx((alike[0].dM + alike[1].dM) / 2)
    assert kinds["v_proj"].slope is kinds["v_proj"].r is None  # two points make any line
    third = alike[0]._replace(dM=0.5, dD=0.25)
    line = correlate(*(np.array([getattr(r, n) for r in (*alike, third)]) for n in ("dD", "dM")))
    assert points([*measured.layers, third], "v_proj")[2] == line


def test_what_the_report_cannot_say(tmp_path):
    folder = FIXTURES / "lycoris_lokr"
    with pytest.raises(ValueError, match="lycoris_lokr: expected a layer with A and B, got none"):
        report(folder, folder / "base")
    folder = FIXTURES / "lycoris_input"
    assert report(folder, folder / "base").left_out == ["lycoris_conv"]  # an m for nine columns
    for break_it in (base_without_a_layer, m_of_a_convolution_in_one_dimension):
        copy = Copy("peft_small", tmp_path / break_it.__name__)
        break_it(copy)
        copy.findings()
        with pytest.raises(ValueError, match="'wide', got none|'conv': shape of m: "):
            report(copy.folder, copy.folder / "base")
    copy = Copy("peft_llama", tmp_path / "nan")
    base_not_finite(copy)
    copy.findings()
    with pytest.raises(
        ValueError, match=r"00002\.safetensors: '.*v_proj.weight': its vectors' chang"
    ):
        report(copy.folder, copy.folder / "base")


def test_the_report_as_table_json_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    folder, json_file, picture = FIXTURES / "peft_llama", tmp_path / "r.json", tmp_path / "r.png"
    files = ["--json", str(json_file), "--picture", str(picture)]
    assert main(["adapter", "report", str(folder), "--base", str(folder / "base"), *files]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 1 + 8 + 1 + 4 + 1 and lines[9] == ""
    assert lines[0].split() == "layer kind vectors dM dD slope r flipped".split()
    assert re.fullmatch(r"8 layers in \d+\.\d s", lines[-1])
    written = json.loads(json_file.read_text())
    assert [row["layer"] for row in written["layers"]] == [line.split()[0] for line in lines[1:9]]
    assert written["seconds"] > 0 and written["kinds"][0]["slope"] is None
    assert main(["adapter", "check", str(folder), "--json", str(json_file)]) == 0
    assert json.loads(json_file.read_text())["findings"] == []
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rows_are_read_where_they_lie_and_no_others(tmp_path, monkeypatch):
    from minidora.adapter import tensors

    file = Arrays(FIXTURES / "mlx_bfloat16" / "base" / "model.safetensors")
    read, _ = read_tensors(file.file)
    for name, array in file.items():
        array = array.reshape(1, -1) if array.ndim == 1 else array
        tensor, some = read[name], np.array([0, len(array) - 1])
        assert tensor.shape == array.shape and tensor.dtype == array.dtype
        np.testing.assert_array_equal(tensor[some, :3], array[some, :3])
        monkeypatch.setattr(tensors, "NUMBERS", 40)  # two rows at a time
        np.testing.assert_array_equal(tensor[1:], array[1:])
        columns = np.array([0, array.shape[1] - 1])
        np.testing.assert_array_equal(tensor[:, columns], array[:, columns])
        np.testing.assert_array_equal(tensor.whole(), file[name])


@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize("function", [check, report])
def test_memory_stays_below_the_largest_tensors(function, is_turned, tmp_path):
    """tests/benchmarks/bench_adapter.py counts what is resident, at the sizes of a 7B model."""
    rng, size = np.random.default_rng(0), 2048
    arrays = {
        f"base_model.model.x{A}": rng.normal(size=(4, size)),
        f"base_model.model.x{B}": 0.01 * rng.normal(size=(size, 4)),
        f"base_model.model.x{M}": np.full(size, size**0.5),
    }
    for name, made in (
        ("adapter_model", arrays),
        ("base", {"x.weight": rng.normal(size=(size, size))}),
    ):
        (tmp_path / f"{name}.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        file = Arrays(tmp_path / f"{name}.safetensors")
        file.update(made)
        file.kinds = dict.fromkeys(made, "BF16" if name == "base" else "F32")
        file.save()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": True}
    config["fan_in_fan_out"] = is_turned
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    function(tmp_path, tmp_path / "base.safetensors")  # everything is imported
    tracemalloc.start()
    result = function(tmp_path, tmp_path / "base.safetensors")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result == [] or result.layers[0].vectors == size
    assert most < 1.3 * 2 * size * size
