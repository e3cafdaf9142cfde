"""Summaries as Markdown tables, for the terminal and for lessons/results/README.md."""


def table(results: dict) -> str:
    """The summary of any experiment."""
    makers = {"figure2": figure2, "figure3": figure3, "gradients": gradients}
    return makers.get(results["experiment"], by_rate)(results["summary"])


def markdown(head: list[str], rows: list[list[str]], *, numbers: bool = True) -> str:
    """A Markdown table; with numbers, all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def shown(interval: dict, digits: int = 2) -> str:
    """A mean with its interval, such as "0.83 [0.79, 0.86]"."""
    if interval["mean"] is None:
        return "-"
    mean, low, high = (f"{interval[key]:.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def signed(interval: dict, digits: int = 3) -> str:
    """A difference with its interval, such as "+0.032 [+0.026, +0.036]"; no minus before a zero."""
    mean, low, high = (f"{interval[key]:+.{digits}f}" for key in ("mean", "low", "high"))
    zeros = {f"-{0:.{digits}f}": f"+{0:.{digits}f}"}
    mean, low, high = (zeros.get(text, text) for text in (mean, low, high))
    return f"{mean} [{low}, {high}]"


def figure2(summary: dict) -> str:
    """Correlations by run and layers, in five ways."""
    ways = ("pooled", "late", "within step", "within layer", "within matrix")
    rows = []
    for name, found in summary["runs"].items():
        for label, layers in found["layers"].items():
            cells = [shown(layers[way]["r"]) for way in ways]
            ratio = shown(layers["right_angle_ratio"])
            rows.append([f"{name}: {label}", *cells, ratio, shown(found["loss"], 3)])
        for control, interval in found.get("controls", {}).items():
            rows.append([f"{name}: {control}", *["-"] * 4, shown(interval), "-", "-"])
    head = ["run: layers", *ways, "growth / Pythagoras", "test loss"]
    counts = "\n".join(
        f"{order}: {count['seeds']} of {count['of']} seeds"
        for order, count in summary["within matrix, every seed"].items()
    )
    return f"{markdown(head, rows)}\n\n{counts}"


def figure3(summary: dict) -> str:
    """Means over layers for each module, at equal validation loss."""
    runs = summary["runs"]
    modules = sorted({path.rsplit(".", 1)[-1] for path in runs["LoRA"]["dM"]})
    rows = []
    for key in ("dM", "dD"):
        for module in modules:
            cells = []
            for found in runs.values():
                means = [v["mean"] for path, v in found[key].items() if path.endswith("." + module)]
                cells.append(f"{sum(means) / len(means):.4f}")
            rows.append([f"{'ΔM' if key == 'dM' else 'ΔD'} of {module}", *cells])
    for key, label, digits in (("step", "step", 0), ("loss", "validation loss", 3)):
        rows.append([f"{label} reached", *[shown(found[key], digits) for found in runs.values()]])
    ratios = ", ".join(f"{key} {shown(v)}" for key, v in summary["DoRA over LoRA"].items())
    return f"{markdown(['mean over layers', *runs], rows)}\n\nDoRA over LoRA: {ratios}"


def by_rate(summary: dict) -> str:
    """Loss at the rate chosen, for each group."""
    rows = []
    compared = any("difference" in found for found in summary.values())
    moved = [key for key in ("dM", "dD") if any(key in found for found in summary.values())]
    for group, found in summary.items():
        edge = " (edge)" if found["at the edge"] else ""
        row = [group, f"{found['trained']:,}", f"{found['rate']:g}{edge}"]
        row += [shown(found["test"], 3), f"{100 * found['accuracy']['mean']:.1f} %"]
        if compared:
            less = found.get("difference")
            row += [f"{signed(less)}", found["against"]] if less else ["-", "-"]
        rows.append(row + [shown(found[key], 4) if key in found else "-" for key in moved])
    head = ["group", "numbers trained", "rate chosen", "test loss", "accuracy"]
    head += ["loss less another's, within seeds", "that other"] if compared else []
    return markdown(head + [{"dM": "ΔM", "dD": "ΔD"}[key] for key in moved], rows)


def gradients(summary: dict) -> str:
    """Spearman of |dm| with the turn, and covariances of V's gradient over W's."""
    rows = []
    for name, whens in summary.items():
        for when, found in whens.items():
            cells = {f"Spearman, {key}": value for key, value in found["spearman"].items()}
            cells |= {key: value for key, value in found.items() if key != "spearman"}
            rows.append([f"{name}, {when}", *map(shown, cells.values())])
    return markdown(["network", *cells], rows)
