"""The adapters in tests/adapters, each trained and saved by the library whose name it bears.

    pip install peft transformers lycoris-lora mlx-lm "mlx[cpu]"
    python tests/adapter_fixtures.py

A folder each: the adapter as it was saved, in `base` the weights of its model, in `merged` what the
library itself makes of those that it adapts. The versions are in tests/adapters/versions.json.
"""

import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
import peft
import torch
import transformers
from lycoris.kohya import create_network
from lycoris.wrapper import create_lycoris
from mlx_lm import lora
from mlx_lm.models import llama as mlx_llama
from mlx_lm.utils import save_model
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "adapters"
STEPS = 4


class Small(torch.nn.Module):
    """A convolution, an embedding, a square and an oblong matrix."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)
        self.emb = torch.nn.Embedding(7, 6)
        self.square = torch.nn.Linear(6, 6)
        self.wide = torch.nn.Linear(6, 4)

    def forward(self):
        rng = np.random.default_rng(0)
        image = torch.tensor(rng.normal(size=(2, 3, 4, 4)), dtype=torch.float32)
        hidden = self.square(self.emb(torch.arange(7)).tanh())
        return (self.conv(image) ** 2).mean() + ((self.wide(hidden) - 1) ** 2).mean()


class Data(list):
    """Tokens for mlx-lm's trainer."""

    def process(self, tokens):
        return tokens


class Transformer2DModel(torch.nn.Module):
    """Of the name by which kohya's networks find what to adapt."""

    def __init__(self):
        super().__init__()
        self.to_q = torch.nn.Linear(6, 6)
        self.to_out = torch.nn.Linear(6, 4)

    def forward(self):
        return ((self.to_out(self.to_q(torch.eye(6)).tanh()) - 1) ** 2).mean()


def train(parameters, loss):
    """A few steps of Adam, so that B is not zero and m not the norm."""
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], 0.003)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def by_peft(name, model, loss, **config):
    """PEFT's folder; transformers' own shards as the base, or a file."""
    base = FOLDER / name / "base"
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(base, max_shard_size="12KB")
        for file in base.glob("*config.json"):
            file.unlink()
    else:
        save(name, "base", model.state_dict())
    adapted = peft.get_peft_model(model, peft.LoraConfig(use_dora=True, r=2, **config))
    train(adapted.parameters(), lambda: loss(adapted))
    adapted.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink(missing_ok=True)
    before = {key: w.clone() for key, w in adapted.base_model.model.state_dict().items()}
    before = {key.replace(".base_layer", ""): w for key, w in before.items()}
    merged = adapted.merge_and_unload().state_dict()
    moved = {key for key in merged if not torch.equal(merged[key], before[key])} - {
        "lm_head.weight"
    }
    save(name, "merged", {key: merged[key] for key in moved})


def by_transformers(model):
    """A loss of the transformers."""
    tokens = torch.arange(8)[None]
    return model(input_ids=tokens, labels=tokens).loss


def by_lycoris(name, **options):
    """A file of LyCORIS's wrapper."""
    model = Small()
    save(name, "base", model.state_dict())
    network = create_lycoris(model, 1.0, 2, 1, dora_wd=True, **options)
    network.apply_to()
    train(network.parameters(), model)
    network.save_weights(FOLDER / name / "adapter.safetensors", None, {})
    if options["algo"] == "lora":
        save(name, "merged", merged_by_lycoris(model, network))


def by_kohya(name):
    """A file of LyCORIS's module for kohya's trainer."""
    model = torch.nn.Sequential()
    model.add_module("mid_block", Transformer2DModel())
    save(name, "base", model.state_dict())
    network = create_network(1.0, 2, 1, None, [], model, algo="lora", dora_wd=True)
    network.apply_to([], model, False, True)
    train(network.parameters(), model.mid_block)
    network.save_weights(str(FOLDER / name / "adapter.safetensors"), torch.float16, {})
    save(name, "merged", merged_by_lycoris(model, network))


def merged_by_lycoris(model, network):
    """{name of a weight: what LyCORIS merges it into}."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        f"{names[id(part.org_module[0])]}.weight": part.get_merged_weight()[0].detach()
        for part in network.loras
    }


def save(name, folder, weights):
    """Weights in a file of their own."""
    (FOLDER / name / folder).mkdir(parents=True)
    weights = {key: weight.contiguous() for key, weight in weights.items()}
    save_file(weights, FOLDER / name / folder / "model.safetensors")


def by_mlx(name, dtype):
    """mlx-lm's folder, by its own training."""
    sizes = dict(hidden_size=16, num_hidden_layers=2, intermediate_size=24, vocab_size=32)
    arguments = mlx_llama.ModelArgs("llama", num_attention_heads=2, rms_norm_eps=1e-5, **sizes)
    mx.random.seed(0)
    model = mlx_llama.Model(arguments)
    model.set_dtype(dtype)
    save_model(FOLDER / name / "base", model)
    keys = ["self_attn.q_proj", "mlp.down_proj", "model.embed_tokens"]
    settings = lora.CONFIG_DEFAULTS | {
        "fine_tune_type": "dora",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 3.0, "dropout": 0.0, "keys": keys},
        "adapter_path": str(FOLDER / name),
        "batch_size": 2,
        "iters": STEPS,
        "learning_rate": 0.003,
        "val_batches": 1,
    }
    data = Data([(list(range(12)), 0), (list(range(8, 24)), 0)])
    lora.train_model(argparse.Namespace(**settings), model, data, data)
    modules = {key: m for key, m in model.named_modules() if hasattr(m, "fuse")}
    (FOLDER / name / "merged").mkdir()
    merged = {f"{key}.weight": m.fuse().weight for key, m in modules.items()}
    mx.save_safetensors(str(FOLDER / name / "merged" / "model.safetensors"), merged)
    for file in (FOLDER / name).glob("0*_adapters.safetensors"):
        file.unlink()
    path = FOLDER / name / "adapter_config.json"  # the folder's own path is of no use elsewhere
    path.write_text(path.read_text().replace(str(FOLDER / name), name))


def main():
    """Make all of them anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, intermediate_size=24, vocab_size=32)
    sizes |= dict(num_key_value_heads=1)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes)
    )
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    patterns = dict(rank_pattern={"v_proj": 3}, alpha_pattern={"0.mlp.down_proj": 5})
    by_peft("peft_llama", model, by_transformers, target_modules=targets, **patterns)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8)
    )
    targets = dict(target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)
    by_peft("peft_gpt2", model, by_transformers, use_rslora=True, **targets)
    targets = ["conv", "emb", "square", "wide"]
    by_peft("peft_small", Small(), lambda m: m(), target_modules=targets, lora_alpha=3)
    by_lycoris("lycoris_output", algo="lora")
    by_lycoris("lycoris_input", algo="lora", wd_on_output=False)
    by_lycoris("lycoris_loha", algo="loha")
    by_lycoris("lycoris_lokr", algo="lokr")
    by_kohya("kohya")
    by_mlx("mlx", mx.float32)
    by_mlx("mlx_bfloat16", mx.bfloat16)
    names = ("torch", "transformers", "peft", "lycoris-lora", "mlx", "mlx-lm", "safetensors")
    versions = {name: version(name) for name in names}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
