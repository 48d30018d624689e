"""Plain constants at the top of a script, overridden from the command line, the environment or ``.env``.

A script assigns its constants and calls ``configure(globals())`` below them. Only names in capitals that stand above
that call can be overridden. Order: ``--NAME=value``, then the environment, then ``.env``, then the script's constant.
"""

from __future__ import annotations

import ast
import difflib
import io
import logging
import math
import os
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from fincompress.errors import UserError

ROOT = Path(__file__).parents[1]
# What a machine sets once for every script; everything else changes per command.
ENVIRONMENT = ("BASE_MODEL", "DATA_DIR", "RESULTS_DIR")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
# The running script's constants as they stand in its source, before any override.
DEFAULTS: dict[str, object] = {}


@dataclass
class Constant:
    """One constant of a script: its default, the types an override may have, and the comment behind it."""

    name: str
    default: object
    types: tuple[type, ...]
    comment: str


def configure(namespace: dict, arguments: list[str] | None = None) -> dict[str, object]:
    """Apply overrides to a script's constants in place and return them all; ``--help`` prints them and leaves.

    Overrides nothing when the script is imported rather than run (``evaluate.py`` shadows a library of that name).
    Also loads ``.env``, hands the Hub token on under the name the hub library reads, and sets the thread policy:
    all three must happen before torch, transformers or huggingface_hub are imported, so call this first.
    Leaves with status 2 and one line on an unknown or ill-typed override.
    """
    quiet_imports()  # also where the processes that a script starts import it
    script = Path(namespace["__file__"])
    constants = read_constants(script, namespace)
    if namespace["__name__"] != "__main__":
        return {name: namespace[name] for name in constants}
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(help_text(namespace.get("__doc__") or script.name, constants))
        raise SystemExit(0)
    try:
        DEFAULTS.update({name: check_default(constant) for name, constant in constants.items()})
        namespace.update(DEFAULTS)
        # Scripts in benchmarks/ read the same file as those above them.
        dotenv = load_environment((ROOT if ROOT in script.resolve().parents else script.parent) / ".env")
        overrides = parse_overrides(arguments, constants, dotenv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, (value, origin) in overrides.items():
        print(f"{name} = {value!r}  ({origin})")
        namespace[name] = value
    set_threads()
    return {name: namespace[name] for name in constants}


def read_constants(script: Path, namespace: dict | None = None) -> dict[str, Constant]:
    """The constants of a script, in order, with the comment behind each, up to the call of ``configure``.

    Their defaults come from ``namespace``, the globals of the running script, so they may be any expression. Without
    it they are read from the source, where each must be a literal.
    """
    source = script.read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    constants = {}
    for node in ast.parse(source).body:
        value = getattr(node, "value", None)
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "configure":
            break
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if not isinstance(target, ast.Name) or not target.id.isupper():
            continue
        default = ast.literal_eval(node.value) if namespace is None else namespace[target.id]
        types = (type(default),)
        if isinstance(node, ast.AnnAssign):  # NAME: int | None = None
            known = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "None": type(None)}
            types = tuple(known[part.strip()] for part in ast.unparse(node.annotation).split("|"))
        behind = [comments[line] for line in range(node.lineno, node.end_lineno + 1) if line in comments]
        constants[target.id] = Constant(target.id, default, types, " ".join(behind))
    return constants


def help_text(docstring: str, constants: dict[str, Constant]) -> str:
    """The script's manual page: its docstring, then each constant as it would be overridden."""
    shown = {name: f"--{name}={_as_text(constant.default)}" for name, constant in constants.items()}
    width = min(44, max(map(len, shown.values()), default=0))
    lines = [docstring.strip(), "", "constants (edit them at the top of the script, or override one here):"]
    lines += [f"  {text:<{width}}  {constants[name].comment}" for name, text in shown.items()]
    lines += [
        "",
        f"{', '.join(ENVIRONMENT)} and HF_TOKEN are also read from the environment and from .env, in that order.",
    ]
    return "\n".join(lines)


def load_environment(dotenv_file: Path) -> dict[str, str]:
    """Read ``.env`` and make the Hub token known under both names; returns what ``.env`` says.

    The token goes into the process environment alone: it is no constant, so it is in no settings file and no log.
    """
    dotenv = {name: value for name, value in dotenv_values(dotenv_file).items() if value}
    for name in sorted(dotenv.keys() - {*ENVIRONMENT, *TOKENS}):
        print(f".env: {name} is not read; only {', '.join(ENVIRONMENT)} and HF_TOKEN are")
    for source in (os.environ, dotenv):
        token = next((source[name] for name in TOKENS if source.get(name)), None)
        if token:
            os.environ.update(dict.fromkeys(TOKENS, token))
            break
    return dotenv


def parse_overrides(
    arguments: list[str], constants: dict[str, Constant], dotenv: dict
) -> dict[str, tuple[object, str]]:
    """``{name: (value, where it came from)}``; raises UserError on an unknown name or a value of the wrong type."""
    overrides = {}
    for origin, values in ((".env", dotenv), ("environment", os.environ)):
        for name in ENVIRONMENT:
            if name in constants and values.get(name):
                overrides[name] = (parse_value(constants[name], values[name]), origin)
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            shown = argument.partition("=")[0]  # what follows may be a token
            raise UserError(f"{shown!r} is not of the form --NAME=value; see --help")
        if name not in constants:
            near = difflib.get_close_matches(name.upper(), constants, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"there is no constant {name}; {hint}")
        overrides[name] = (parse_value(constants[name], text), "command line")
    return overrides


def parse_value(constant: Constant, text: str) -> object:
    """``text`` as the constant's type: 1 is a float where one is wanted, ``None`` only where the constant allows it."""
    if type(None) in constant.types and text in ("None", "none", ""):
        return None
    if str in constant.types and not (list in constant.types and text.startswith("[")):
        return text
    if bool in constant.types and text.lower() in ("true", "false", "1", "0", "yes", "no"):
        return text.lower() in ("true", "1", "yes")
    try:
        value = ast.literal_eval(text)
        if float in constant.types and type(value) is int:
            value = float(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, OverflowError):
        value = None
    if value in (math.inf, -math.inf):  # 1e999, which no JSON can record
        value = None
    if type(value) not in constant.types or value is None:
        default = _as_text(constant.default)
        raise UserError(f"{constant.name} takes {_wanted(constant)}, not {text!r} (its default is {default})")
    return value


def check_default(constant: Constant) -> object:
    """The value that stands at the top of the script, an int as a float where one is wanted; UserError for others."""
    value = constant.default
    if type(value) is int and int not in constant.types and float in constant.types:
        value = float(value)
    if type(value) not in constant.types:
        raise UserError(f"{constant.name} = {value!r}: must be {_wanted(constant)}; edit it at the top of the script")
    return value


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``, naming the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}{hint}")


def check_positive(**values: float | None) -> None:
    """Raise UserError for a constant that must be above zero and is not; None passes."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"{name} must be above 0, not {value}")


def check_seed(seed: int) -> None:
    """Raise UserError for what numpy's generator does not take."""
    if not 0 <= seed < 2**32:
        raise UserError(f"SEED is from 0 to 2^32 - 1, not {seed}")


def quiet_imports() -> None:
    """Keep libraries from writing what no user can act on, some of it while they are imported."""
    for name in (
        "bitsandbytes.autograd._functions",  # that LLM.int8 quantizes activations from float16, at every call
        "bitsandbytes.backends.cpu.ops",  # that an optional package is not there
        "torchao",  # which of its CUDA libraries do not load
        "torch.utils._pytree",  # advice to torchao
        "torch.utils.cpp_extension",  # that there is a CUDA toolkit and no GPU
        "tokenicer",  # that a padding token is set
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def set_threads() -> None:
    """One OpenMP thread a core, threads that soon sleep at a barrier, and one GPU, unless the caller chose otherwise.

    OpenMP's default is to spin for milliseconds at every barrier: two processes on two cores then spend their time
    waiting for threads that are not running, at half the speed and less. A process that is alone loses a tenth where
    threads sleep. A few hundred spins first, some microseconds, do not disturb a second process; 6,000 do:
    ``benchmarks/openmp_wait.py`` prints the numbers. OpenMP reads this once, when torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "500")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would multiply the batch by the number of GPUs


def _wanted(constant: Constant) -> str:
    return " or ".join(kind.__name__.replace("NoneType", "None") for kind in constant.types)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
