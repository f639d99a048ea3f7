# SPDX-License-Identifier: 0BSD
"""The `bdcc` command: the only file that prints, exits, or draws progress.

Everything heavy is imported inside the command that needs it, so that `bdcc --version` and `--help`
answer at once. Bad values end with exit code 1 like bad files; 2 is for unknown options and missing
arguments alone.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bdcc.errors import BdccError, OptionError, one_line
from bdcc.files import LOST
from bdcc.streams import open_streams

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

INTERRUPTED = 130
MISSED = 3


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 an error in one line, 2 usage, 3 missed, 4
    differs, 5 build, 130.
    """
    open_streams()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    before = _end_like_ctrl_c()
    try:
        status = cli.main(args=list(arguments), prog_name="bdcc", standalone_mode=False)
    except BdccError as error:
        _tell(f"bdcc: {error}")
        status = error.exit_code
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _tell("bdcc: interrupted; what was finished is kept.")
        if arguments[:1] in (["compile"], ["sweep"]):
            again = [a for a in arguments if a != "--resume"]
            _tell(f"Go on with: bdcc {shlex.join([*again, '--resume'])}")
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left
        _drop_output()
        status = 1
    except MemoryError:
        _tell("bdcc: memory ran out. Use fewer --workers, or a smaller model or --limit.")
        status = 1
    except OSError as error:
        if error.errno not in LOST:
            raise
        _drop_output()
        where = error.filename or "standard output"  # files are written where it is told of them
        _tell(f"bdcc: {where}: cannot be written ({error.strerror}).")
        status = 1
    finally:
        for number, handler in before.items():
            if handler is not None:  # of a program that embeds Python
                signal.signal(number, handler)
    sys.exit(status or 0)


def _end_like_ctrl_c() -> dict[signal.Signals, Any]:
    """SIGTERM and, unless we run under nohup, a terminal that is closed (SIGHUP) end as Ctrl-C
    does; returns how it was.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    return before


def _drop_output() -> None:
    """What is still to be printed on stdout, Python's last words at its end too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- values ---------------------------------------------------------------------------------------


class _Value(click.ParamType[Any]):
    """A value whose text `parse` turns into what the option means; a ValueError says what was wrong
    with it.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
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


def _range(text: str) -> tuple[float, ...]:
    """1,2,..,10 goes on in the step that its first two have."""
    head, dots, tail = text.partition(",..,")
    found = _numbers(head)
    if not dots:
        return found
    (last,), step = _numbers(tail), found[-1] - found[-2] if len(found) > 1 else 0.0
    if step <= 0 or not 0 < last - found[-1] < 1000 * step:
        raise ValueError
    steps = int((last - found[-1]) / step + 1e-9)
    return (*found, *(round(found[-1] + step * n, 9) for n in range(1, steps + 1)))


NUMBER = _Value("a number", float)
INTEGER = _Value("a whole number", int)
NUMBERS = _Value("a list of numbers like 1,2,3", _numbers)
RANGE = _Value("a list of numbers like 1,2,4 or 1,2,..,10", _range)
WHOLES = _Value("a list of whole numbers like 2,3", lambda text: tuple(map(int, text.split(","))))
COUNTS = _Value("a whole number, a list like 4,3,2, or auto", _counts)
WORKERS = _Value("a whole number or dask:ADDRESS", _workers)
NAMES = _Value("a list of names", _names)
TEXT = _Value("text", str)
PATH = _Value("a path", Path)
CACHE = _Value("a folder or off", lambda text: text if text == "off" else Path(text))


# --- progress -------------------------------------------------------------------------------------


class _Watch:
    """Draws progress(stage, done, total) on stderr: bars with the time left, or a line now and then
    without a terminal.

    A stage shows up once it has taken two seconds.
    """

    PATIENCE_S = 2.0
    LINE_EVERY_S = 15.0

    def __init__(self) -> None:
        self._stage, self._done = "", 0
        self._began = self._spoke = 0.0
        self._bars: Bars | None = None
        self._task: Any = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        stage = one_line(stage)
        now = time.monotonic()
        if stage != self._stage or done < self._done:  # the next of its kind begins anew
            self.close()
            self._stage, self._began, self._spoke = stage, now, now
        self._done = done
        if now - self._began < self.PATIENCE_S or total <= 0:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
        elif done < total and now - self._spoke >= self.LINE_EVERY_S:
            self._spoke = now
            left = (now - self._began) * (total - done) / max(done, 1)
            _tell(f"{stage}: {100 * done // total} %, about {left:.0f} s left")

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
                TextColumn("{task.description}", markup=False),
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


def _tell(line: str, *, err: bool = True) -> None:
    """One line, whatever a model or a file calls itself in it."""
    click.echo(one_line(line), err=err)


def _print_json(value: Any) -> None:
    from bdcc.report.report import dump_json

    click.echo(dump_json(value), nl=False)


JSON = click.option(
    "--json", "as_json", is_flag=True, help="The report on stdout, all else on stderr."
)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=CONTEXT)
@click.version_option(package_name="bdcc", prog_name="bdcc")
def cli() -> None:
    """Compile a float ONNX CNN, without retraining, to a portable C project that computes with a
    few binary weights and
    low-bit activations."""


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


# --- compile --------------------------------------------------------------------------------------

# Flags, type (None: a switch), metavar, help. What is not given is not passed on: the defaults are
# those of CompileOptions.
COMPILE_OPTIONS: tuple[tuple[str, _Value | None, str | None, str], ...] = (
    ("--data", PATH, "DIR|FILE.npz", "Pictures to search on; without it they are generated."),
    ("--calib", PATH, "DIR|FILE.npz", "To calibrate on  [default: 10 % of --data, at most 600]"),
    ("--holdout", PATH, "DIR|FILE.npz", "Never seen by the search  [default: 25 % of --data]"),
    ("--D --max-drop", NUMBER, "PP", "Tolerance: points below the float model  [default: 1]"),
    (
        "--strict",
        None,
        None,
        "Keep D by the 95 % interval's upper end, and the holdout's drop below D.",
    ),
    ("--force", None, None, "Replace a project in OUT, and nothing but a project."),
    ("--name", TEXT, "NAME", "Prefix of the C names  [default: the file's name]"),
    (
        "--bases",
        COUNTS,
        "N|auto|N1,..",
        "B: one value, one per conv, or per decomposed layer  [default: auto]",
    ),
    (
        "--q",
        COUNTS,
        "N|auto|N1,..",
        "Activation bits, in the same forms  [default: auto, a search]",
    ),
    (
        "--decompose",
        TEXT,
        "plain|aware",
        "How weights are decomposed  [default: aware; plain in the paper's]",
    ),
    ("--range", TEXT, "clip|minmax|dynamic", "How activation ranges are chosen  [default: clip]"),
    ("--search", TEXT, "measured|paper", "How bits are chosen  [default: measured]"),
    (
        "--objective",
        TEXT,
        "latency|size|ops",
        "What is made small  [default: latency]",
    ),
    (
        "--kernel",
        TEXT,
        "auto|popcount|lut|bytedot",
        "Family of all layers' kernels  [default: auto, each its fastest]",
    ),
    (
        "--target",
        TEXT,
        "NAME|FILE.toml|ssh:HOST",
        "What to build for, see bdcc targets, or a board to measure on  [default: host]",
    ),
    (
        "--flash",
        INTEGER,
        "BYTES",
        "The most that weights may take; on bare metal, with the code  [default there: its own]",
    ),
    (
        "--ram",
        INTEGER,
        "BYTES",
        "The most that the arena may take; on bare metal, with the stack  [default there: its own]",
    ),
    ("--metric", TEXT, "top1|top5", "[default: top5, top1 below 20 outputs]"),
    ("--keep-float", NAMES, "LAYER,..", "Layers that are not decomposed."),
    ("--float", None, None, "Decompose nothing: exact C of the float model."),
    ("--classes", PATH, "FILE", "A line per class: folder, optionally tab and label."),
    ("--preset", TEXT, "torchvision|caffe|unit|raw", "Preprocessing  [default: torchvision]"),
    ("--mean", NUMBERS, "R,G,B", "(pixel - mean) / std * scale, for a pixel in 0..255."),
    ("--std", NUMBERS, "R,G,B", "Always in R,G,B order; one value serves all channels."),
    ("--scale", NUMBER, "S", "A last factor."),
    ("--channels", TEXT, "rgb|bgr", "The order that the model wants."),
    ("--resize", TEXT, "stretch|crop:SIZE", "How pictures get its size  [default: stretch]"),
    ("--limit", INTEGER, "N", "Search pictures, evenly over classes; 0: all  [default: 5000]"),
    ("--seed", INTEGER, "N", "Of every random draw  [default: 0]"),
    (
        "--workers",
        WORKERS,
        "N|dask:ADDRESS",
        "Processes and threads; a cluster only evaluates  [default: one per CPU]",
    ),
    ("--cache", CACHE, "DIR|off", "[default: $BDCC_CACHE or the user's cache folder]"),
    (
        "--cost-table",
        TEXT,
        "FILE|default",
        "From bdcc tune  [default: what it measured here, for --target host; else as shipped]",
    ),
    (
        "--max-memory",
        INTEGER,
        "BYTES",
        "Bounds the model's weights and activations; see docs/operators.md  [default: 4 GiB]",
    ),
    ("--resume", None, None, "Go on after an interruption, and say what was found finished."),
)
FIELDS = {"D": "max_drop_pp", "float": "float_only", "flash": "flash_bytes", "ram": "ram_bytes"}


def _with_compile_options(
    command: Callable[..., Any], *, but: Sequence[str] = ()
) -> Callable[..., Any]:
    for flags, kind, metavar, text in reversed(COMPILE_OPTIONS):
        names = flags.split()
        if names[0] in but:
            continue
        plain = names[0].removeprefix("--")
        field = FIELDS.get(plain, plain.replace("-", "_"))
        if kind is None:
            command = click.option(*names, field, is_flag=True, help=text)(command)
        else:
            command = click.option(*names, field, type=kind, metavar=metavar, help=text)(command)
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
@click.option(
    "-o", "--output", type=PATH, required=True, metavar="OUT", help="The project's folder."
)
@JSON
def compile_command(model: Path, as_json: bool, **options: Any) -> int:
    """Compile MODEL.onnx to a C project in OUT that keeps its accuracy within the tolerance D."""
    from bdcc.pipeline import CompileOptions, compile_model
    from bdcc.report.text import layer_table, summary

    chosen = CompileOptions(**{key: v for key, v in options.items() if v is not None})
    with _Watch() as watch:
        result = compile_model(model, chosen, progress=watch, say=_tell)
    report = result.report.as_json()
    for warning in report["warnings"]:
        _tell(f"warning: {warning}")
    if as_json:
        _print_json(report)
    else:
        click.echo(layer_table(report) + "\n")
        click.echo(summary(report, result.timings, project=str(options["output"])))
        for note in report["notes"]:
            _tell(note, err=False)
    if result.missed:
        _tell(f"bdcc: {result.missed}")
        return MISSED
    return 0


# --- sweep ----------------------------------------------------------------------------------------


def _with_sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    return _with_compile_options(command, but=("--D",))


@cli.command(
    epilog=_examples(
        "bdcc sweep model.onnx --data pictures --D 10,20,..,40 --without-paper -o figure",
        "bdcc sweep model.onnx --data pictures --D 20 --fixed-q 3,6 --json -o figure2 > all.json",
    )
)
@click.argument("model", type=PATH, metavar="MODEL.onnx")
@click.option(
    *("--D", "--max-drop"),
    "drops",
    type=RANGE,
    required=True,
    metavar="PP,PP,..",
    help="The tolerances, like 1,2,4 or 1,2,..,10.",
)
@click.option(
    "--fixed-q",
    "fixed_bits",
    type=WHOLES,
    metavar="N,N,..",
    help="Bits of the points without a search  [default: 2,3,4,5,6,7,8]",
)
@click.option("--without-paper", is_flag=True, help="Neither fixed bits nor the paper's search.")
@click.option("--keep", is_flag=True, help="Leave the project of every point in OUT/projects.")
@_with_sweep_options
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT", help="The sweep's folder.")
@JSON
def sweep(
    model: Path,
    drops: tuple[float, ...],
    fixed_bits: tuple[int, ...] | None,
    without_paper: bool,
    keep: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Time against accuracy of MODEL.onnx over tolerances D, beside the paper's setting: a table, a
    picture and a page in OUT. All other options are those of bdcc compile, for bdcc's own points;
    the paper's have 6 bases, plain decomposition and dynamic ranges. Goes on after an interruption.
    """
    from bdcc.pipeline import CompileOptions
    from bdcc.pipeline.sweep import SweepOptions
    from bdcc.pipeline.sweep import sweep as run_sweep
    from bdcc.report.sweep import sweep_text

    given = {} if fixed_bits is None else {"fixed_bits": fixed_bits}
    chosen = SweepOptions(
        compile=CompileOptions(**{key: v for key, v in options.items() if v is not None}),
        drops=drops,
        without_paper=without_paper,
        keep=keep,
        **given,
    )
    with _Watch() as watch:

        def say(line: str) -> None:
            watch.close()
            _tell(line)

        result = run_sweep(model, chosen, progress=watch, say=say)
    for warning in result["warnings"]:
        _tell(f"warning: {warning}")
    if as_json:
        _print_json(result)
    else:
        click.echo(sweep_text(result))
        for note in result["notes"]:
            _tell(note, err=False)
        _tell(f"pictures: {options['output'] / 'sweep.html'} and sweep.svg", err=False)


# --- inspect --------------------------------------------------------------------------------------


@cli.command(
    epilog=_examples("bdcc inspect model.onnx", "bdcc inspect model.onnx --json > layers.json")
)
@click.argument("model", type=PATH, metavar="MODEL.onnx")
@click.option("--max-memory", type=INTEGER, metavar="BYTES", help="As for bdcc compile.")
@JSON
def inspect(model: Path, max_memory: int | None, as_json: bool) -> None:
    """List the layers of MODEL.onnx: shapes, MACs, parameters, what would stay float and why."""
    from bdcc.ir.onnx_import import load_onnx
    from bdcc.ir.onnx_limits import MAX_MEMORY
    from bdcc.report.inspection import inspect_graph, inspection_text

    most = MAX_MEMORY if max_memory is None else max_memory
    found = inspect_graph(load_onnx(model, max_memory=most))
    _print_json(found) if as_json else click.echo(inspection_text(found))


# --- a project ------------------------------------------------------------------------------------


@cli.command(epilog=_examples("bdcc verify out", "bdcc verify out --images 3 --dump layers.npz"))
@click.argument("project", type=PATH, metavar="OUT")
@click.option(
    "--images",
    type=INTEGER,
    default=2,
    show_default=True,
    metavar="N",
    help="Pictures beside the adversarial inputs.",
)
@click.option(
    "--data", type=PATH, metavar="DIR", help="Take the pictures from here  [default: generated]"
)
@click.option(
    "--dump",
    type=PATH,
    metavar="FILE",
    help="Write the layers' outputs for the first picture as .npz.",
)
@JSON
def verify(project: Path, images: int, data: Path | None, dump: Path | None, as_json: bool) -> None:
    """Build the project in OUT and compare every layer of its library, bit for bit, with the
    oracle.
    """
    from bdcc.files import check_file
    from bdcc.host.verify import verify as verify_project
    from bdcc.pipeline.project import dump_layers, open_project, sample_pictures

    opened = open_project(project)
    if images < 1:
        raise OptionError(f"{images} is below 1", layer="--images")
    if dump is not None:
        check_file(dump)
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
@click.option(
    "--model",
    type=PATH,
    metavar="MODEL.onnx",
    help="Show the float model's answer and each layer's SQNR.",
)
@JSON
def run(project: Path, picture: Path, model: Path | None, as_json: bool) -> None:
    """Classify PICTURE with the library built from OUT: its first five classes."""
    from bdcc.pipeline.project import answer_text, classify, open_project

    answer = classify(open_project(project), picture, model=model)
    _print_json(answer) if as_json else click.echo(answer_text(answer))


@cli.command(
    epilog=_examples(
        "bdcc eval out --data pictures", "bdcc eval out --data pictures --limit 3 --json"
    )
)
@click.argument("project", type=PATH, metavar="OUT")
@click.option(
    "--data",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Labelled pictures, as compile takes them.",
)
@click.option(
    "--classes",
    type=PATH,
    metavar="FILE",
    help="A line per class: folder, optionally tab and label.",
)
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
            open_project(project),
            data,
            classes=classes,
            limit=limit,
            threads=threads,
            progress=watch,
        )
    _print_json(result) if as_json else click.echo(evaluation_text(result))


@cli.command(
    epilog=_examples(
        "bdcc bench out --layers --isa generic",
        "bdcc bench out --peers --model model.onnx -o figures",
    )
)
@click.argument("project", type=PATH, metavar="OUT")
@click.option(
    "--threads",
    type=INTEGER,
    default=1,
    show_default=True,
    metavar="N",
    help="Threads that share the work of each picture.",
)
@click.option("--layers", is_flag=True, help="Each layer, and its share of what the core can do.")
@click.option(
    "--isa", metavar="NAME", help="An instruction set by name  [default: the widest there is]"
)
@click.option(
    "--peers", is_flag=True, help="onnxruntime, OpenVINO and ncnn in turns (pip: bdcc[bench])."
)
@click.option("--model", type=PATH, metavar="MODEL.onnx", help="What the peers run.")
@click.option(
    "--data",
    type=PATH,
    metavar="DIR",
    help="Pictures to calibrate the peers' int8 on  [default: generated]",
)
@click.option(
    "-o", "--output", type=PATH, metavar="DIR", help="Write bench.json and bench.svg there."
)
@JSON
def bench(project: Path, as_json: bool, **options: Any) -> None:
    """Time one inference of the library built from OUT."""
    from bdcc.pipeline.project import open_project
    from bdcc.pipeline.timing import bench_project
    from bdcc.report.bench import bench_text

    with _Watch() as watch:
        result = bench_project(open_project(project), progress=watch, **options)
    _print_json(result) if as_json else click.echo(bench_text(result))


@cli.command(
    epilog=_examples(
        "bdcc deploy pi@raspberrypi out",
        "bdcc deploy pi@raspberrypi out --threads 2 --json -o board.json",
    )
)
@click.argument("host", metavar="HOST")
@click.argument("project", type=PATH, metavar="OUT")
@click.option("--keep", is_flag=True, help="Leave the project's folder there, and say where.")
@click.option(
    "--threads",
    type=INTEGER,
    default=1,
    show_default=True,
    metavar="N",
    help="Threads that share the work of each picture.",
)
@click.option("-o", "--output", type=PATH, metavar="FILE", help="Write the report there as JSON.")
@JSON
def deploy(host: str, project: Path, as_json: bool, **options: Any) -> None:
    """Build the project in OUT on HOST by ssh, run its selftest, and time each layer there.

    HOST is what ssh takes, like pi@raspberrypi, with a key: no password is asked for. It needs make
    and a C compiler, and keeps nothing.
    """
    from bdcc.pipeline.deploy import deploy_project
    from bdcc.pipeline.project import open_project
    from bdcc.report.deploy import deploy_text

    with _Watch() as watch:
        result = deploy_project(host, open_project(project), progress=watch, **options)
    _print_json(result) if as_json else click.echo(deploy_text(result))


@cli.command(epilog=_examples("bdcc tune out", "bdcc tune out --isa avx2 -o avx2.json"))
@click.argument("project", type=PATH, metavar="OUT")
@click.option(
    "--ssh", "host", metavar="HOST", help="Measure there instead, as bdcc deploy reaches it."
)
@click.option(
    "--isa",
    metavar="NAME",
    help="An instruction set by name  [default: what OUT is planned for, if this CPU has it]",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="For --cost-table  [default: in the cache, where compile --target host finds it]",
)
@click.option("--cache", type=CACHE, metavar="DIR|off", help="As of bdcc compile.")
@JSON
def tune(
    project: Path,
    host: str | None,
    isa: str | None,
    output: Path | None,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Measure the kernels on this machine or a board, and keep the table for compilations to come.

    Says what OUT's layers would take with it, and how to compile them by it. A minute or two.
    """
    from bdcc.pipeline.tables import tuning_of, tuning_text

    with _Watch() as watch:
        result = tuning_of(project, isa, output=output, cache=cache, progress=watch, host=host)
    _print_json(result) if as_json else click.echo(tuning_text(result))


@cli.command(epilog=_examples("bdcc targets", "bdcc targets --json"))
@JSON
def targets(as_json: bool) -> None:
    """List what projects can be built for: for `bdcc compile --target`.

    A board that is not among them is described in a file (docs/targets.md).
    """
    from bdcc.codegen.targets import TARGETS
    from bdcc.report.text import targets_text

    found = [asdict(target) for target in TARGETS]
    _print_json({"targets": found}) if as_json else click.echo(targets_text(found))
