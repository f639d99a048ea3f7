# SPDX-License-Identifier: 0BSD
"""The `bdcc` command: the only file that prints, exits, or draws progress.

Everything heavy is imported inside the command that needs it, so that `bdcc --version` and `--help` answer at once.
Bad values end with exit code 1 like bad files; 2 is for unknown options and missing arguments alone.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bdcc.errors import BdccError, DataError, OptionError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

INTERRUPTED = 130
MISSED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 an error in one line, 2 usage, 3 missed, 4 differs, 5 build, 130."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = cli.main(args=list(arguments), prog_name="bdcc", standalone_mode=False)
    except BdccError as error:
        click.echo(f"bdcc: {error}", err=True)
        status = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("bdcc: interrupted; what was finished is kept.", err=True)
        if arguments[:1] == ["compile"]:
            again = [a for a in arguments if a != "--resume"]
            click.echo(f"Go on with: bdcc {shlex.join([*again, '--resume'])}", err=True)
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status or 0)


# --- values ---------------------------------------------------------------------------------------


class _Value(click.ParamType[Any]):
    """A value whose text `parse` turns into what the option means; a ValueError says what was wrong with it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError:
            option = param.opts[0] if param is not None else self.name
            raise OptionError(f"'{value}' is not {self.name}", layer=option) from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _counts(text: str) -> tuple[int, ...] | str:
    return text if text == "auto" else tuple(int(part) for part in text.split(","))


def _workers(text: str) -> int | str:
    return text if text.startswith("dask:") else int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


NUMBER = _Value("a number", float)
INTEGER = _Value("a whole number", int)
NUMBERS = _Value("a list of numbers like 1,2,3", _numbers)
COUNTS = _Value("a whole number, a list like 4,3,2, or auto", _counts)
WORKERS = _Value("a whole number or dask:ADDRESS", _workers)
NAMES = _Value("a list of names", _names)
PATH = _Value("a path", Path)
CACHE = _Value("a folder or off", lambda text: text if text == "off" else Path(text))


# --- progress -------------------------------------------------------------------------------------


class _Watch:
    """Draws progress(stage, done, total) on stderr: bars with the time left, or a line now and then without a terminal.

    A stage shows up once it has taken two seconds.
    """

    PATIENCE_S = 2.0
    LINE_EVERY_S = 15.0

    def __init__(self) -> None:
        self._stage = ""
        self._began = self._spoke = 0.0
        self._bars: Bars | None = None
        self._task: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.close()
            self._stage, self._began, self._spoke = stage, now, now
        if now - self._began < self.PATIENCE_S or total <= 0:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
        elif done < total and now - self._spoke >= self.LINE_EVERY_S:
            self._spoke = now
            left = (now - self._began) * (total - done) / max(done, 1)
            click.echo(f"{stage}: {100 * done // total} %, about {left:.0f} s left", err=True)

    def _draw(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("after"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bars.start()
            self._task = self._bars.add_task(self._stage, total=total)
        self._bars.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self._stage = ""

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _print_json(value: Any) -> None:
    from bdcc.report.report import dump_json

    click.echo(dump_json(value), nl=False)


JSON = click.option("--json", "as_json", is_flag=True, help="The report on stdout, all else on stderr.")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="bdcc", prog_name="bdcc")
def cli() -> None:
    """Compile a float ONNX CNN, without retraining, to a portable C project that computes with a few binary weights and
    low-bit activations."""


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


# --- compile --------------------------------------------------------------------------------------

COMPILE_OPTIONS = (
    click.option("--data", type=PATH, help="Pictures to search on: a folder per class, a folder with labels.csv "
                 "(file,index), an .npz (images, labels), or a folder of pictures. Without it pictures are generated."),
    click.option("--calib", type=PATH, help="Pictures to calibrate on  [default: 10 % of --data, at most 600]"),
    click.option("--holdout", type=PATH, help="Pictures that the search never sees  [default: 25 % of --data]"),
    click.option("--D", "--max-drop", "max_drop_pp", type=NUMBER, metavar="PP",
                 help="Tolerance: percentage points of the metric below the float model  [default: 1]"),
    click.option("--strict", is_flag=True, help="The holdout pictures have to keep the tolerance too."),
    click.option("-o", "--output", type=PATH, required=True, metavar="OUT", help="Folder of the project."),
    click.option("--force", is_flag=True, help="Replace a project in OUT, and nothing but a project."),
    click.option("--name", metavar="NAME", help="Prefix of the C names  [default: the file's name]"),
    click.option("--bases", type=COUNTS, default="auto", show_default=True, metavar="N|auto|N1,N2,..",
                 help="Binary bases B: one value, one per conv layer, or one per decomposed layer."),
    click.option("--q", type=COUNTS, default="auto", show_default=True, metavar="N|auto|N1,N2,..",
                 help="Activation bits Q, in the same forms; auto searches."),
    click.option("--decompose", default="plain", show_default=True, metavar="plain|aware"),
    click.option("--range", default="clip", show_default=True, metavar="clip|minmax|dynamic",
                 help="How activation ranges are chosen; dynamic takes them from each picture."),
    click.option("--search", default="measured", show_default=True, metavar="measured|paper"),
    click.option("--objective", default="latency", show_default=True, metavar="latency|size|ops"),
    click.option("--kernel", default="auto", show_default=True, metavar="auto|popcount|lut|bytedot"),
    click.option("--target", default="host", show_default=True, metavar="NAME", help="See bdcc targets."),
    click.option("--flash", "flash_bytes", type=INTEGER, metavar="BYTES", help="The most that the weights may take."),
    click.option("--ram", "ram_bytes", type=INTEGER, metavar="BYTES", help="The most that the arena may take."),
    click.option("--metric", metavar="top1|top5", help="[default: top5, top1 below 20 outputs]"),
    click.option("--keep-float", type=NAMES, default="", metavar="LAYER,..", help="Layers that are not decomposed."),
    click.option("--float", "float_only", is_flag=True, help="Decompose nothing: exact C of the float model."),
    click.option("--classes", type=PATH, metavar="FILE", help="A line per class: folder, optionally tab and label."),
    click.option("--preset", default="torchvision", show_default=True, metavar="torchvision|caffe|unit|raw",
                 help="(pixel - mean) / std * scale, for a pixel in 0..255."),
    click.option("--mean", type=NUMBERS, metavar="R,G,B"),
    click.option("--std", type=NUMBERS, metavar="R,G,B"),
    click.option("--scale", type=NUMBER, metavar="S"),
    click.option("--channels", metavar="rgb|bgr"),
    click.option("--resize", default="stretch", show_default=True, metavar="stretch|crop:SIZE"),
    click.option("--limit", type=INTEGER, default=5000, show_default=True, metavar="N",
                 help="Search pictures, drawn evenly over the classes; 0: all."),
    click.option("--seed", type=INTEGER, default=0, show_default=True, metavar="N"),
    click.option("--workers", type=WORKERS, metavar="N|dask:ADDRESS", help="[default: the number of CPUs]"),
    click.option("--cache", type=CACHE, metavar="DIR|off", help="[default: $BDCC_CACHE or the user's cache folder]"),
    click.option("--cost-table", default="default", show_default=True, metavar="FILE|default"),
    click.option("--resume", is_flag=True, help="Go on after an interruption, and say what was found."),
)  # fmt: skip


def _with_compile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(COMPILE_OPTIONS):
        command = option(command)
    return command


@cli.command(
    "compile",
    epilog=_examples(
        "bdcc compile model.onnx -o out",
        "bdcc compile model.onnx --data pictures --D 2 --bases 4 -o out --force",
    ),
)
@click.argument("model", type=PATH, metavar="MODEL.onnx")
@_with_compile_options
@JSON
def compile_command(model: Path, as_json: bool, **options: Any) -> int:
    """Compile MODEL.onnx to a C project in OUT that keeps its accuracy within the tolerance D."""
    from bdcc.pipeline import CompileOptions, compile_model
    from bdcc.report.text import layer_table, summary

    with _Watch() as watch:
        result = compile_model(
            model, CompileOptions(**options), progress=watch, say=lambda line: click.echo(line, err=True)
        )
    report = result.report.as_json()
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        _print_json(report)
    else:
        click.echo(layer_table(report) + "\n")
        click.echo(summary(report, result.timings, project=str(options["output"])))
        for note in report["notes"]:
            click.echo(note)
    if result.missed:
        click.echo(f"bdcc: {result.missed}", err=True)
        return MISSED
    return 0


# --- inspect --------------------------------------------------------------------------------------


@cli.command(
    epilog=_examples("bdcc inspect model.onnx", "bdcc inspect model.onnx --json > layers.json")
)
@click.argument("model", type=PATH, metavar="MODEL.onnx")
@JSON
def inspect(model: Path, as_json: bool) -> None:
    """List the layers of MODEL.onnx: shapes, MACs, parameters, and what would stay float and why."""
    from bdcc.ir.onnx_import import load_onnx
    from bdcc.report.inspection import inspect_graph, inspection_text

    found = inspect_graph(load_onnx(model))
    _print_json(found) if as_json else click.echo(inspection_text(found))


# --- a project ------------------------------------------------------------------------------------


@cli.command(
    epilog=_examples("bdcc verify out", "bdcc verify out --images 3 --dump layers.npz")
)
@click.argument("project", type=PATH, metavar="OUT")
@click.option("--images", type=INTEGER, default=2, show_default=True, metavar="N",
              help="Pictures beside the adversarial inputs.")  # fmt: skip
@click.option("--data", type=PATH, metavar="DIR", help="Take the pictures from here  [default: generated]")
@click.option("--dump", type=PATH, metavar="FILE", help="Write the layers' outputs for the first picture as .npz.")
@JSON
def verify(project: Path, images: int, data: Path | None, dump: Path | None, as_json: bool) -> None:
    """Build the project in OUT and compare every layer of its library, bit for bit, with the oracle."""
    from bdcc.pipeline.project import dump_layers, open_project, sample_pictures
    from bdcc.host.verify import verify as verify_project

    opened = open_project(project)
    if images < 1:
        raise OptionError(f"{images} is below 1", layer="--images")
    with _Watch() as watch:
        pictures = sample_pictures(opened, data, count=images)
        result = verify_project(project, images=pictures, progress=watch)
    if dump is not None:
        dump_layers(project, pictures[0], dump)
    _print_json(result.as_json()) if as_json else click.echo(result.text())


@cli.command(
    epilog=_examples("bdcc run out picture.jpg", "bdcc run out picture.jpg --model model.onnx")
)
@click.argument("project", type=PATH, metavar="OUT")
@click.argument("picture", type=PATH, metavar="PICTURE")
@click.option("--model", type=PATH, metavar="MODEL.onnx", help="Show the float model's answer and each layer's SQNR.")
@JSON
def run(project: Path, picture: Path, model: Path | None, as_json: bool) -> None:
    """Classify PICTURE with the library built from OUT: its first five classes."""
    from bdcc.pipeline.project import answer_text, classify, open_project

    answer = classify(open_project(project), picture, model=model)
    _print_json(answer) if as_json else click.echo(answer_text(answer))


@cli.command(
    epilog=_examples("bdcc eval out --data pictures", "bdcc eval out --data pictures --limit 3 --json")
)
@click.argument("project", type=PATH, metavar="OUT")
@click.option("--data", type=PATH, required=True, metavar="DIR", help="Labelled pictures, as compile takes them.")
@click.option("--classes", type=PATH, metavar="FILE", help="A line per class: folder, optionally tab and label.")
@click.option("--limit", type=INTEGER, default=0, show_default=True, metavar="N", help="0: all.")
@click.option("--threads", type=INTEGER, metavar="N", help="[default: the number of CPUs]")
@JSON
def eval(  # the command's name
    project: Path, data: Path, classes: Path | None, limit: int, threads: int | None, as_json: bool
) -> None:
    """Accuracy of the library built from OUT on labelled pictures."""
    from bdcc.pipeline.project import evaluate_project, evaluation_text, open_project

    for option, value, least in (("--limit", limit, 0), ("--threads", threads, 1)):
        if value is not None and value < least:
            raise OptionError(f"{value} is below {least}", layer=option)
    with _Watch() as watch:
        result = evaluate_project(
            open_project(project), data, classes=classes, limit=limit, threads=threads, progress=watch
        )
    _print_json(result) if as_json else click.echo(evaluation_text(result))


@cli.command(epilog=_examples("bdcc bench out", "bdcc bench out --layers --isa portable"))
@click.argument("project", type=PATH, metavar="OUT")
@click.option("--threads", type=INTEGER, default=1, show_default=True, metavar="N")
@click.option("--layers", is_flag=True, help="The time of each layer too.")
@click.option("--isa", metavar="NAME", help="An instruction set by name  [default: the widest there is]")
@JSON
def bench(project: Path, threads: int, layers: bool, isa: str | None, as_json: bool) -> None:
    """Time one inference of the library built from OUT."""
    from bdcc.host.bench import bench as bench_project
    from bdcc.pipeline.project import open_project

    open_project(project)
    if threads < 1:
        raise OptionError(f"{threads} is below 1", layer="--threads")
    with _Watch() as watch:
        result = bench_project(project, threads=threads, layers=layers, isa=isa, progress=watch)
    _print_json(result.as_json()) if as_json else click.echo(result.text())


@cli.command(epilog=_examples("bdcc targets", "bdcc targets --json"))
@JSON
def targets(as_json: bool) -> None:
    """List what projects can be built for."""
    from bdcc.codegen.targets import TARGETS
    from bdcc.report.text import table

    if as_json:
        _print_json(
            {"targets": [{"name": t.name, "description": t.description, "cflags": t.cflags} for t in TARGETS]}
        )
    else:
        click.echo(table(["target", "what"], [[t.name, f"{t.description} ({t.cflags})"] for t in TARGETS]))
