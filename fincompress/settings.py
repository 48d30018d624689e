"""Plain constants at the top of a script, overridden from the command line, the environment or ``.env``.

A script assigns its constants and calls ``configure(globals())`` below them. Only names in capitals that stand above
that call can be overridden. Order: ``--NAME=value``, then the environment, then ``.env``, then the script's constant.
"""

import ast
import contextlib
import difflib
import logging
import math
import os
import re
import sys
import typing
from pathlib import Path
from types import UnionType

from dotenv import dotenv_values

from fincompress import distributed
from fincompress.errors import UserError, watch_start

ROOT = Path(__file__).parents[1]
# What a machine sets once for every script; everything else changes per command.
ENVIRONMENT = ("BASE_MODEL", "DATA_DIR", "RESULTS_DIR", "LLAMA_CPP")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LIMIT = 2**32  # numbers are below it: numpy's seeds must be
# Numbers that a constant may be, or hold as a list: a name means the same in every script. Others are above 0.
RANGES = {
    "0 or more": (
        lambda x: x >= 0,
        "CYCLE_EPOCHS RECOVERY_EPOCHS PAGE_QUESTIONS PATCH_EXAMPLES SEED USED_BEFORE_MIB",
    ),
    "-1 or above 0": (lambda x: x == -1 or x > 0, "GROUP_SIZE"),
    "a share, above 0 and at most 1": (
        lambda x: 0 < x <= 1,
        "ACCURACY_FLOOR SHARE TRAIN_SHARE",
    ),
    "a share, above 0 and below 1": (lambda x: 0 < x < 1, "EQUAL_WITHIN"),
}


def configure(namespace: dict) -> dict[str, object]:
    """Apply overrides to a script's constants in place and return them all; ``--help`` prints them and leaves.

    Overrides nothing when the script is imported rather than run (``evaluate.py`` shadows a library of that name).
    Also loads ``.env``, hands the Hub token on under the name the hub library reads, and sets the number of threads:
    all three must happen before torch, transformers or huggingface_hub are imported, so call this first.
    Leaves with status 2 and one line on an unknown override, and on a value that its constant may not have.
    """
    quiet_imports()  # also where the processes that a script starts import it
    types = constant_types(namespace)
    if namespace["__name__"] == "__main__":
        watch_start()
        if not distributed.is_main():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  rank 0 prints, here and later
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help_text(namespace, list(types)))
            raise SystemExit(0)
        try:
            edited = {name: check_value(name, types[name], namespace[name]) for name in types}
            overrides = find_overrides(sys.argv[1:], types, load_environment())
        except UserError as error:
            if distributed.is_main():  # they all have the same command line
                print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        namespace.update(edited)
        for name, (value, origin) in overrides.items():
            print(f"{name} = {value!r}  ({origin})")
            namespace[name] = value
        set_threads()
    return {name: namespace[name] for name in types}


def constant_types(namespace: dict) -> dict[str, tuple[type, ...]]:
    """The types that each constant among the globals of a script may have: of its annotation, or of its value."""
    annotations = namespace.get("__annotations__", {})
    kinds = {name: annotations.get(name, type(value)) for name, value in namespace.items() if name.isupper()}
    return {name: typing.get_args(k) if isinstance(k, UnionType) else (k,) for name, k in kinds.items()}


def help_text(namespace: dict, names: list[str]) -> str:
    """The script's manual page: its docstring, then each constant as it would be overridden, with its comment."""
    source = Path(namespace["__file__"]).read_text(encoding="utf-8")
    shown = {name: f"--{name}={namespace[name]}" for name in names}
    width = min(44, max(map(len, shown.values())))
    lines = [namespace["__doc__"].strip(), "", "constants (edit them at the top of the script, or override one here):"]
    for name, text in shown.items():
        comment = re.search(rf"^{name}\b(?:(?!^[A-Z])[\s\S])*?  # (.*)$", source, flags=re.MULTILINE)
        lines.append(f"  {text:<{width}}  {comment[1] if comment else ''}")
    note = f"{', '.join(ENVIRONMENT)} and HF_TOKEN are also read from the environment and from .env, in that order."
    return "\n".join([*lines, "", note])


def load_environment() -> dict[str, str]:
    """Read ``.env`` and make the Hub token known under both names; returns what ``.env`` says.

    The token goes into the process environment alone: it is no constant, so it is in no settings file and no log.
    """
    try:
        entries = dotenv_values(ROOT / ".env")
    except ValueError:
        raise UserError(f"{ROOT / '.env'} is no text in UTF-8: write it as .env.example is written") from None
    if None in entries.values():
        print(".env: a line without = is not read; write NAME=value")  # it may be a token: not shown
    dotenv = {name: value for name, value in entries.items() if value}
    for name in sorted(dotenv.keys() - {*ENVIRONMENT, *TOKENS}):
        print(f".env: {name} is not read; only {', '.join(ENVIRONMENT)} and HF_TOKEN are")
    tokens = [source[name] for source in (os.environ, dotenv) for name in TOKENS if source.get(name)]
    if tokens:
        os.environ.update(dict.fromkeys(TOKENS, tokens[0]))
    return dotenv


def find_overrides(
    arguments: list[str], types: dict[str, tuple[type, ...]], dotenv: dict
) -> dict[str, tuple[object, str]]:
    """``{name: (value, where it came from)}``; raises UserError on an unknown name or a value that is refused."""
    overrides = {
        name: (values[name], origin)
        for origin, values in ((".env", dotenv), ("environment", os.environ))
        for name in ENVIRONMENT
        if name in types and values.get(name)
    }
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            shown = argument.partition("=")[0]  # what follows may be a token
            raise UserError(f"{shown!r} is not of the form --NAME=value; see --help")
        if name not in types:
            near = difflib.get_close_matches(name.upper(), types, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"there is no constant {name}; {hint}")
        if not text.strip():
            raise UserError(f"{argument} has no value" + "; None is one" * (type(None) in types[name]))
        overrides[name] = (text, "command line")
    return {name: (parse_value(name, types[name], text), origin) for name, (text, origin) in overrides.items()}


def parse_value(name: str, types: tuple[type, ...], text: str) -> object:
    """``text`` as a type of the constant's: 1 is a float where one is wanted, ``None`` only where it is allowed.

    Raises UserError as ``check_value`` does.
    """
    literal = {"true": "True", "false": "False", "none": "None"}.get(text, text)
    value: object = text
    if str not in types or (literal == "None" and type(None) in types):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = ast.literal_eval(literal)
    return check_value(name, types, value)


def check_value(name: str, types: tuple[type, ...], value: object) -> object:
    """``value``, an int as a float where one is wanted, a path under ``~`` with the home folder.

    Raises UserError where it is of no type that is wanted, or not finite, or out of the range of ``RANGES``, and where
    text cannot be printed.
    """
    if type(value) is int and int not in types and float in types:
        value = float(value) if abs(value) < LIMIT else math.inf
    if not any(_is_of(value, kind) for kind in types):
        wanted = " or ".join(k.__name__ if type(k) is type else str(k) for k in types)
        raise UserError(f"{name} takes {wanted.replace('NoneType', 'None')}, not {value!r}")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str) and not item.isprintable():  # control characters, halves of surrogate pairs
            raise UserError(f"{name} = {item!r}: holds a character that cannot be printed")
        if type(item) in (int, float):
            check_range(name, item)
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _is_of(value: object, kind: type) -> bool:
    """Whether ``value`` is of a type such as ``int`` or ``list[float]``, and finite, as JSON wants it."""
    of = typing.get_args(kind)
    if of and type(value) is typing.get_origin(kind):
        parts = value.items() if type(value) is dict else ((x,) for x in value)
        return all(_is_of(x, a) for part in parts for x, a in zip(part, of, strict=True))
    if type(value) is float and not math.isfinite(value):
        return False
    return type(value) is kind or (type(value) is int and kind is float)


def check_range(name: str, number: float) -> None:
    """Raise UserError for a number that is not in the range of its constant."""
    if abs(number) >= LIMIT:
        raise UserError(f"{name} is too large: it must be below 2^32")
    ranges = ((bounds, holds) for bounds, (holds, names) in RANGES.items() if name in names.split())
    bounds, holds = next(ranges, ("above 0", lambda x: x > 0))
    if not holds(number):
        raise UserError(f"{name} = {number}: must be {bounds}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless ``value`` is one of ``choices``, naming the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}{hint}")


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
    """One OpenMP thread for each processor that this process may use, and one GPU, unless the caller chose otherwise.

    Read when torch is imported. How threads wait stays OpenMP's choice: where they sleep between products, training
    alone takes a third longer. Importing gptqmodel sets the last two, if they are not set: then the processes that a
    script starts would number GPUs and allocate their memory in another way than the script itself.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "LOCAL_RANK" not in os.environ:  # else each process takes the GPU of that number
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would multiply the batch by the number of GPUs
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi numbers them
    chosen = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # less of the memory in pieces
    os.environ.setdefault("PYTORCH_ALLOC_CONF", chosen)
