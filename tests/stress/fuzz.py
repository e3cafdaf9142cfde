"""Bytes and answers that nobody meant, drawn by hypothesis: needs `pip install hypothesis`.

`python -m tests.stress.fuzz` runs the same loaders under atheris, which looks for inputs that
reach new lines of code, where it is installed (`pip install atheris`).
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from minidora import peft
from minidora.kit import load, run
from minidora.kit.program import Failed, _parsed
from minidora.kit.results import Results
from minidora.training import checkpoint

from .corrupt import model
from .outcome import Outcome


def try_loaders(folder: Path, data: bytes, base) -> str:
    """Give the same bytes to every loader; which of them refused. Raises what is not allowed."""
    refused = []
    file = folder / "model.safetensors"
    file.write_bytes(data)
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    half = len(data) // 2
    (adapter / "adapter_config.json").write_bytes(data[:half])
    (adapter / "adapter_model.safetensors").write_bytes(data[half:])
    results = folder / "results"
    results.mkdir(exist_ok=True)
    (results / "implementation.json").write_bytes(b'{"alternatives": {}}')
    (results / "one.json").write_bytes(data)
    for name, load_it, path in (
        ("load", lambda: checkpoint.load(file), file),
        ("load_adapter", lambda: checkpoint.load_adapter(file, base), file),
        ("peft.load_adapter", lambda: peft.load_adapter(adapter, base), adapter),
        ("kit.Results", lambda: Results(results), results),
    ):
        try:
            load_it()
        except ValueError as error:
            if str(path) not in str(error):
                raise AssertionError(
                    f"{name}: the error does not name the file: {error}"
                ) from error
            refused.append(name)
    return ", ".join(refused)


def bytes_to_try():
    """A strategy: bytes, JSON, and safetensors headers with anything in them."""
    from hypothesis import strategies as st

    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    names = st.sampled_from(
        ["r", "lora_alpha", "peft_type", "target_modules", "use_dora", "dtype", "shape"]
        + ["data_offsets", "__metadata__", "minidora", "case", "y", "rank_pattern"]
    ) | st.text(max_size=8)
    values = st.recursive(
        leaves,
        lambda v: st.lists(v, max_size=4) | st.dictionaries(names, v, max_size=5),
        max_leaves=12,
    )
    as_json = values.map(lambda v: json.dumps(v).encode())
    tensors = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "I64", "F8_E4M3", "?"]),
            "shape": st.lists(st.integers(0, 2**62), max_size=3),
            "data_offsets": st.lists(st.integers(0, 2**62), min_size=2, max_size=2),
        }
    )
    header = st.dictionaries(names, tensors | values, max_size=4).map(
        lambda h: json.dumps(h).encode()
    )
    files = st.tuples(header, st.binary(max_size=64)).map(
        lambda p: len(p[0]).to_bytes(8, "little") + p[0] + p[1]
    )
    return st.binary(max_size=200) | as_json | files | st.tuples(as_json, files).map(b"".join)


def loaders(count: int, seed: int) -> Outcome:
    """Every loader on bytes that hypothesis draws."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    outcome, (base, _) = Outcome("fuzzed loaders"), model(0)
    with tempfile.TemporaryDirectory() as temporary:

        @seeded(seed)
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(bytes_to_try())
        def attempt(data):
            try:
                refused = try_loaders(Path(temporary), data, base)
            except Exception as error:
                outcome.wrong(f"{data!r}: {type(error).__name__}: {error}")
            else:
                outcome.saw("refused by all" if refused.count(",") == 3 else "read by some")

        attempt()
    return outcome


def answers_to_try():
    """A strategy: what a program might write on a line."""
    from hypothesis import strategies as st

    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    values = st.recursive(leaves, lambda v: st.lists(v, max_size=4), max_leaves=20)
    names = st.sampled_from(["id", "y", "W", "m", "dA", "dB", "dm", "dx", "unsupported", "error"])
    answers = st.dictionaries(names, values, max_size=6)
    return answers, st.text(max_size=60) | answers.map(json.dumps) | values.map(json.dumps)


class _Saying:
    """An implementation that answers whatever it is given."""

    alternatives = {"norm_axis": "per_output", "norm_grad": "exact"}

    def __init__(self, answer):
        self.answer = answer

    def forward(self, request):
        """Anything."""
        return self.answer.get("y")

    def merge(self, request):
        """Anything."""
        return self.answer.get("W")

    def backward(self, request):
        """Anything."""
        return self.answer


def protocol(count: int, seed: int) -> Outcome:
    """The kit on answers that hypothesis draws: a failed case each, and nothing raised."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    outcome = Outcome("fuzzed answers")
    cases = [case for case in load() if case.name in ("plain.per_output", "steps_sgd.per_output")]
    answers, lines = answers_to_try()

    @seeded(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(answers, lines)
    def attempt(answer, line):
        try:
            with np.errstate(all="ignore"):
                report = run(_Saying(answer), cases)
            bad = [r.status for r in report.results if r.status != "fail"]
        except Exception as error:
            outcome.wrong(f"{answer!r}: {type(error).__name__}: {error}")
            return
        try:
            _parsed(line, 1)
        except Failed:
            pass
        except Exception as error:
            outcome.wrong(f"{line!r}: {type(error).__name__}: {error}")
            return
        if bad:
            outcome.wrong(f"{answer!r}: {bad}")
        else:
            outcome.saw("failed cases")

    attempt()
    return outcome


def main() -> None:
    """The loaders under atheris, with its options (-runs=100000, -max_total_time=60, ...)."""
    import atheris

    base, _ = model(0)
    temporary = Path(tempfile.mkdtemp())

    def attempt(data: bytes) -> None:
        try_loaders(temporary, data, base)

    atheris.instrument_all()
    atheris.Setup(sys.argv, attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
