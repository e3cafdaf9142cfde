"""`minidora adapter check | report`."""

import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from .. import _command
from .._files import write_in_order, write_whole


def add_arguments(adapter: _command.Parser) -> None:
    """The subcommands and their options, on the adapter's parser."""
    subcommands = adapter.subcommands()

    def add(name: str, purpose: str, example: str, run: _command.Command) -> _command.Parser:
        example = f"minidora adapter {name} {example}"
        parser = _command.add(subcommands, name, purpose, example, run)
        whose = "of PEFT, mlx-lm or minidora, or a file of LyCORIS, kohya or minidora"
        parser.add_argument("folder", type=Path, metavar="FOLDER", help=whose)
        model, needed = "a safetensors file, or a folder with one or with shards", name == "report"
        parser.add_argument("--base", type=Path, metavar="MODEL", help=model, required=needed)
        parser.add_argument(
            "--json", type=_command.new_file, metavar="FILE", help="also write it all as JSON"
        )
        return parser

    purpose = "say what is wrong with an adapter's files; silent where nothing is"
    add("check", purpose, "my_adapter --base my_model", check_adapter)
    purpose = "measure how an adapter moves the weights of its base"
    reporting = add("report", purpose, "my_adapter --base my_model", report_adapter)
    reporting.add_argument(
        "--picture", type=_command.new_file, metavar="FILE", help="ΔM against ΔD, as PNG"
    )


def check_adapter(arguments: Namespace) -> int:
    """Print a line for each finding; 1 where there is any."""
    _command.require("safetensors")
    from .findings import ADVICE, check

    findings = check(arguments.folder, arguments.base)
    content = {"findings": [f._asdict() | {"advice": ADVICE[f.kind]} for f in findings]}
    if arguments.json:
        write_whole(arguments.json, _as_json(arguments, content))
    for f in findings:
        line = f"{f.layer or arguments.folder}: {f.kind}: {f.evidence}; {ADVICE[f.kind]}"
        print(_command.printable(line))
    return 1 if findings else 0


def report_adapter(arguments: Namespace) -> int:
    """Print the table, and write the files asked for, all or none of them."""
    _command.require("safetensors", *["matplotlib"] * bool(arguments.picture))
    from . import report

    measured = report.report(arguments.folder, arguments.base)
    rows = {name: [r._asdict() for r in getattr(measured, name)] for name in ("layers", "kinds")}
    text = _as_json(arguments, measured._asdict() | rows)
    files = {arguments.json: text} if arguments.json else {}
    if arguments.picture:
        from .. import plotting

        panels = {row.kind: report.points(measured.layers, row.kind) for row in measured.kinds}
        drawn = io.BytesIO()
        figure = plotting.within_matrix(panels, xlabel="ΔD", ylabel="ΔM")
        figure.savefig(drawn, format="png", dpi=100, metadata={"Software": None})
        files[arguments.picture] = drawn.getvalue()
    if len(files) == 1:
        write_whole(*files.popitem())  # which may be a stream
    write_in_order(files)
    print(report.text(measured))
    return 0


def _as_json(arguments: Namespace, content: dict[str, Any]) -> bytes:
    about = {"adapter": str(arguments.folder), "base": arguments.base and str(arguments.base)}
    return f"{json.dumps(about | content, indent=1, allow_nan=False)}\n".encode()
