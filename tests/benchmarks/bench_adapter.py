"""Memory and time of `minidora adapter` on the layout of a Llama of 7B, in shards of bfloat16.

    python tests/benchmarks/bench_adapter.py [--layers 32] [--folder DIRECTORY] [--json FILE]

The weights are random and are written for this, 13.5 GB with all 32 layers, and deleted at the end;
the adapter is DoRA of rank 16 on all seven matrices of a layer. Each command runs in a process of
its own, on one thread. Its memory is the most that is resident (VmHWM, set back before it begins),
less what was resident when everything had been imported; Linux alone counts it so. The disk's cache
is not the process's memory. The clock's seconds are those of a machine that others use too.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INTERMEDIATE, VOCABULARY, RANK = 4096, 11008, 32000, 16
MATRICES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INTERMEDIATE, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
CHILD = """
import sys, time
from pathlib import Path
from minidora.adapter import findings, report
import safetensors

def status(field):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) * 1024

what, adapter, base = sys.argv[1:]
Path("/proc/self/clear_refs").write_text("5")
before, begun, used = status("VmRSS"), time.perf_counter(), time.process_time()
result = (report.report if what == "report" else findings.check)(adapter, base)
seconds = time.perf_counter() - begun, time.process_time() - used
print(status("VmHWM") - before, before, *seconds)
if what == "check":
    assert result == [], result
else:
    assert all(0 < row.dD < 1 for row in result.layers) and len(result.kinds) == 7
"""


def write_base(folder: Path, layers: int) -> tuple[int, dict[str, int]]:
    """Shards with an index; the bytes of all weights, and of those that are largest."""
    pool = np.random.default_rng(0).normal(0, 0.02, 2**25).astype("<f4")
    pool = (pool.view("<u4") >> 16).astype("<u2")  # bfloat16
    shards = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    for i in range(layers):
        shards.append({f"model.layers.{i}.{n}.weight": s for n, s in MATRICES.items()})
    shards.append({"lm_head.weight": (VOCABULARY, HIDDEN)})
    rng, places, total = np.random.default_rng(1), {}, 0
    for i, shard in enumerate(shards):
        name = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for tensor, shape in shard.items():
            end = offset + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset, places[tensor] = end, name
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in shard.values():
                left = math.prod(shape)
                while left:
                    first = int(rng.integers(len(pool)))
                    file.write(pool[first : first + left].data)
                    left -= min(left, len(pool) - first)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, {
        "largest tensor": 2 * VOCABULARY * HIDDEN,
        "largest adapted tensor": 2 * INTERMEDIATE * HIDDEN,
    }


def write_adapter(folder: Path, layers: int) -> None:
    """A PEFT folder."""
    rng, arrays = np.random.default_rng(2), {}
    for i in range(layers):
        for name, (d_out, d_in) in MATRICES.items():
            at = f"base_model.model.model.layers.{i}.{name}"
            A = rng.normal(0, d_in**-0.5, (RANK, d_in))
            m = 0.02 * d_in**0.5 * rng.normal(1, 0.02, d_out)
            B = rng.normal(0, 0.005, (d_out, RANK))
            made = {"lora_A.weight": A, "lora_B.weight": B, "lora_magnitude_vector": m}
            arrays |= {f"{at}.{key}": array.astype(np.float32) for key, array in made.items()}
    save_file(arrays, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "use_dora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def measure(what: str, adapter: Path, base: Path) -> tuple[int, int, float, float]:
    """Bytes it takes beyond what was imported, those, and seconds, of the clock and of a core."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, what, str(adapter), str(base)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    most, imported, seconds, of_core = ran.stdout.split()
    return int(most), int(imported), round(float(seconds), 1), round(float(of_core), 1)


def main() -> None:
    """Write, measure, delete, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="where there is room; default: a temporary one")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        base, adapter = Path(temporary) / "base", Path(temporary) / "adapter"
        base.mkdir()
        adapter.mkdir()
        begun = time.perf_counter()
        total, largest = write_base(base, arguments.layers)
        write_adapter(adapter, arguments.layers)
        print(f"{total / 1e9:.1f} GB written in {time.perf_counter() - begun:.0f} s", flush=True)
        report = {
            "machine": platform.processor() or platform.machine(),
            "versions": {name: version(name) for name in ("numpy", "safetensors")},
            "layers": arguments.layers,
            "bytes": total,
            "bytes_of": largest,
            "adapter_bytes": (adapter / "adapter_model.safetensors").stat().st_size,
        }
        for what in ("report", "check"):
            most, imported, seconds, of_core = measure(what, adapter, base)
            over = {name: round(most / size, 3) for name, size in largest.items()}
            took = {"seconds": seconds, "core_seconds": of_core}
            report[what] = {"memory": most, "memory_over": over} | took
            print(f"{what}: {most / 1e6:.0f} MB beyond {imported / 1e6:.0f}, {over}, {took}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
