"""The tables of whole models and of scaling, on the page about speed."""

from pages import RESULTS, bench, block, machine_of, table

PAGE = f"{RESULTS}/speed.md"


@block(PAGE)
def models_training() -> str:
    """A training step of a whole model."""
    report = bench("models")
    rows = [
        [
            f"{model}: {name}",
            f"{found['time_over_dora']:.3f}",
            f"{found['cpu_over_dora']:.3f}",
            f"{found['cpu_over_lora']:.3f}",
            f"{found['kept_over_dora']:.3f}",
            f"{found['peak_over_dora']:.3f}",
        ]
        for model, contestants in report["training"].items()
        for name, found in contestants.items()
    ]
    head = ["model: contestant", "time / PEFT DoRA", "CPU time / PEFT DoRA"]
    head += ["CPU time / PEFT LoRA", "kept / PEFT DoRA", "peak / PEFT DoRA"]
    return f"{machine_of(report)}\n\n{table(head, rows)}"


@block(PAGE)
def models_inference() -> str:
    """Inference without merging, over PEFT LoRA unmerged."""
    report = bench("models")["inference"]
    names = list(next(iter(report.values())))
    rows = [
        [what, *(f"{contestants[name]['cpu_over_lora']:.2f}" for name in names)]
        for what, contestants in report.items()
    ]
    return table(["CPU time / PEFT LoRA", *names], rows)


@block(PAGE)
def scaling() -> str:
    """Slopes of time over d, n and r."""
    report = bench("scaling")
    rows = [
        [f"{axis}: {name}", f"{found['time']:.2f}", f"{found['flops']:.2f}"]
        for axis, by_name in report["slopes"].items()
        for name, found in by_name.items()
    ]
    return table(["over: contestant", "slope of time", "slope of flops"], rows)
