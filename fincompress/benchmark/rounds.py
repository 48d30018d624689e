"""Interleaved rounds: every model in a process of its own, all of them in turn at every measure."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tqdm import tqdm

from fincompress.benchmark import worker
from fincompress.benchmark.subjects import BASE, Subject
from fincompress.errors import UserError

LATE = "it took longer than MAX_MINUTES"


class WorkerProcess:
    """A ``worker.Worker`` in a fresh process; it sleeps between commands."""

    def __init__(self):
        # One model runs at a time: threads wait as OpenMP's default does, whatever suits jobs that share the cores.
        # GPTQ's kernel, of many small steps, loses most where they sleep in between.
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            os.environ.pop(name, None)
        context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA, and shares memory
        self.pipe, worker_end = context.Pipe()
        self.process = context.Process(target=worker.serve, args=(worker_end,), daemon=True)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the worker inherits it: Ctrl-C ends this process
        self.process.start()
        signal.signal(signal.SIGINT, interrupt)
        worker_end.close()  # else the pipe would stay open when the worker dies

    def ask(self, do: str, *arguments, until: float | None = None):
        """The reply to a command; raises UserError where the worker could not do it, or died.

        It is ended where it has not replied ``until`` a time of ``time.monotonic``.
        """
        try:
            self.pipe.send((do, *arguments))
            if until is not None and not self.pipe.poll(max(0.0, until - time.monotonic())):
                self.process.kill()
                raise UserError(LATE)
            reply = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            status = self.process.exitcode
            why = "killed, as when memory runs out" if status == -9 else f"status {status}"
            raise UserError(f"its process ended ({why})") from None
        if isinstance(reply, UserError):
            raise reply
        return reply

    def close(self) -> None:
        """End the process, which has nothing to keep, and wait for it, so that its memory is free."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def probe() -> dict:
    """Device, hardware and ceilings, from a process of its own: this one never touches the GPU."""
    with contextlib.closing(WorkerProcess()) as process:
        return process.ask("probe")


@dataclass
class Plan:
    """What is measured of every subject, and how often."""

    lengths: dict[str, int]  # prompt tokens by name
    batch_sizes: list[int]
    rounds: int
    new_tokens: int
    results_dir: str
    room_gb: float  # that a model may use on a GPU
    max_seconds: float  # of loading and all rounds

    def measures(self) -> dict[str, tuple]:
        """Command by name: ``prefill <tokens>`` and ``decode <batch>``, the latter after a median prompt."""
        context = self.lengths.get("median", self.lengths["fixed"])
        prefill = {f"prefill {tokens}": ("prefill", tokens) for tokens in sorted(set(self.lengths.values()))}
        batches = dict.fromkeys([1, *self.batch_sizes])
        return prefill | {f"decode {batch}": ("decode", context, batch, self.new_tokens) for batch in batches}


@dataclass
class Entrant:
    """A subject's worker, and what was measured of it so far."""

    subject: Subject
    plan: Plan
    worker: WorkerProcess
    loaded: dict  # the reply to "load"
    turns: dict[str, list[list[float]]] = field(default_factory=dict)  # seconds of a prefill, or of each token, by turn
    ratios: dict[str, list[float]] = field(default_factory=dict)  # of a turn's speed to the base model's close by
    not_measured: dict[str, str] = field(default_factory=dict)  # why

    def take_turn(self, name: str, until: float) -> list[float] | None:
        """Seconds of one turn; None for a measure that failed, now or before."""
        if name in self.not_measured:
            return None
        if LATE in self.not_measured.values():  # its worker was ended
            self.not_measured[name] = LATE
            return None
        try:
            return self.worker.ask(*self.plan.measures()[name], until=until)
        except UserError as error:
            self.not_measured[name] = str(error)


def watch_load() -> Callable[[], float]:
    """A function that says what share of the cores other jobs have taken since this call.

    Of the cores that this process may use: beside a job on others it measures as if alone.
    """
    process = psutil.Process()
    cores = process.cpu_affinity()
    names = {f"cpu{core}" for core in cores}

    def other_jobs() -> float:  # seconds of the cores; this process and its children, ended ones too, are left out
        own = sum(sum(proc.cpu_times()[:4]) for proc in (process, *process.children(recursive=True)))
        lines = Path("/proc/stat").read_text().splitlines()  # psutil numbers those that are online anew
        busy = [line.split()[1:4] for line in lines if line.split()[0] in names]  # user, nice and system
        return sum(int(ticks) for core in busy for ticks in core) / os.sysconf("SC_CLK_TCK") - own

    began, before = time.monotonic(), other_jobs()
    return lambda: max(0.0, other_jobs() - before) / ((time.monotonic() - began) * len(cores))


def measure_all(subjects: list[Subject], plan: Plan) -> tuple[dict[str, Entrant], dict[str, str], float]:
    """``(entrants by run, reasons by run, load)``: one round unrecorded, then rounds in which models take turns.

    It ends after ``plan.max_seconds`` whatever happens; ``load`` is the share of the cores that other jobs took.

    The base model has a turn before and after every two others: a shared machine changes its speed within seconds, and
    a ratio is to the geometric mean of these two, in which what slows the machine for longer cancels. A model that
    cannot be loaded, or fails to decode, is left out with its reason.
    """
    entrants: dict[str, Entrant] = {}
    failed: dict[str, str] = {}
    load, until = watch_load(), time.monotonic() + plan.max_seconds
    told = (plan.results_dir, plan.room_gb, max(plan.lengths.values()), plan.new_tokens)
    with contextlib.ExitStack() as stack:
        for subject in tqdm(subjects, desc="loading", unit="model"):
            process = stack.enter_context(contextlib.closing(WorkerProcess()))
            try:
                entrants[subject.run] = Entrant(
                    subject, plan, process, process.ask("load", subject, *told, until=until)
                )
            except UserError as error:
                failed[subject.run] = str(error)
                process.close()
        base, others = [run for run in entrants if run == BASE], [run for run in entrants if run != BASE]
        order = base + [run for i in range(0, len(others), 2) for run in (*others[i : i + 2], *base)]
        steps = list(itertools.product(range(plan.rounds + 1), plan.measures()))
        for number, name in tqdm(steps, desc="measuring", unit="measure of all"):
            if number > 1 and time.monotonic() > until:
                break
            taken = [(run, entrants[run].take_turn(name, until)) for run in order]
            if number:
                note(entrants, name, taken)
        share = load()
    for run, entrant in entrants.items():  # the rounds that it has count
        reasons = entrant.not_measured.items()
        entrant.not_measured = {n: why for n, why in reasons if why != LATE or n not in entrant.turns}
        if "decode 1" in entrant.not_measured:
            failed[run] = entrant.not_measured["decode 1"]
    return {run: entrant for run, entrant in entrants.items() if run not in failed}, failed, share


def note(entrants: dict[str, Entrant], name: str, taken: list[tuple[str, list[float] | None]]) -> None:
    """Keep the turns of one round at a measure, with their ratios where the base model has turns beside them."""
    for place, (run, seconds) in enumerate(taken):
        if seconds is None:
            continue
        entrants[run].turns.setdefault(name, []).append(seconds)
        before = next((turn for model, turn in taken[place::-1] if model == BASE), None)
        after = next((turn for model, turn in taken[place:] if model == BASE), None)
        if before and after:
            ratio = (sum(before) * sum(after)) ** 0.5 / sum(seconds)
            entrants[run].ratios.setdefault(name, []).append(ratio)
