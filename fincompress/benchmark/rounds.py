"""Interleaved rounds: every model in a process of its own, all of them in turn at every measure."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from fincompress.benchmark.subjects import BASE, Subject
from fincompress.errors import UserError, why_it_ended

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # how OpenMP's threads wait at a barrier


class WorkerProcess:
    """``fincompress.benchmark.worker`` in a fresh process; it sleeps between commands."""

    def __init__(self):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
        # One model runs at a time, so threads wait as OpenMP's default does, not as settings.set_threads has it for
        # jobs that share the cores: GPTQ's kernel, of many small steps, loses most where they sleep in between.
        environment = {name: value for name, value in os.environ.items() if name not in WAITING}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fincompress.benchmark.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, env={"GPTQMODEL_CPU_WORKERS": "2"} | environment | {"PYTHONPATH": path},
        )  # fmt: skip

    def ask(self, do: str, **arguments) -> dict:
        """The reply to a command; raises UserError where the worker could not do it, or died."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            raise UserError(f"its process ended ({why_it_ended(status, self.log.read())})")
        reply = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


def probe(seconds: float = 3.0) -> dict:
    """Device, hardware and ceilings, from a process of its own: this one never touches the GPU."""
    worker = WorkerProcess()
    try:
        return worker.ask("probe", seconds=seconds)
    finally:
        worker.close()


@dataclass
class Plan:
    """What is measured of every subject, and how often."""

    lengths: dict[str, int]  # prompt tokens by name
    batch_sizes: list[int]
    rounds: int
    new_tokens: int
    max_seconds: float  # of one measure over all rounds, each model's turns; a slower one is taken in fewer rounds
    results_dir: str
    limit_gb: float | None

    @property
    def context(self) -> int:
        """Tokens before the first decoded one."""
        return self.lengths.get("median", self.lengths["fixed"])

    def measures(self) -> dict[str, dict]:
        """Command by name: ``prefill <tokens>`` and ``decode <batch>``."""
        commands = {f"prefill {n}": {"do": "prefill", "tokens": n} for n in sorted(set(self.lengths.values()))}
        decoding = {"do": "decode", "context": self.context, "new_tokens": self.new_tokens}
        for batch in [1, *(size for size in self.batch_sizes if size != 1)]:
            commands[f"decode {batch}"] = decoding | {"batch": batch}
        return commands


class Entrant:
    """A subject's worker, and what was measured of it so far."""

    def __init__(self, subject: Subject, plan: Plan):
        self.subject, self.plan = subject, plan
        self.worker: WorkerProcess | None = None
        self.loaded: dict = {}
        self.memory: dict[str, dict] = {}
        self.rounds: dict[str, int] = {}  # in how many rounds a measure is taken
        # One entry a turn: seconds (of a prefill, or of each token), and the base model's before and after it.
        self.turns: dict[str, list[tuple[list[float], list[float] | None, list[float] | None]]] = {}
        self.bandwidth: list[float] = []  # GB/s of the device's memory before each round, of the base model alone
        self.not_measured: dict[str, str] = {}

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def warm_up(self) -> None:
        """Load, then everything once, not recorded: batch 1 for its peak memory, the rest timed to plan the rounds."""
        plan, longest = self.plan, max(self.plan.lengths.values())
        self.worker = WorkerProcess()
        self.loaded = self.worker.ask(
            "load", subject=asdict(self.subject), results_dir=plan.results_dir, limit_gb=plan.limit_gb
        )
        # The first prefill of a length pays for memory that is touched, and code that is looked up, for the first time.
        for tokens in sorted(set(plan.lengths.values())):
            self.worker.ask("prefill", tokens=tokens)
        self.worker.ask("decode", context=longest, batch=1, new_tokens=min(plan.new_tokens, 8), keep=False)
        self.memory["batch 1"] = self.worker.ask("peak")
        # A prompt is read once and its cache kept: no round pays for it, nor should the estimate of one.
        self.worker.ask("decode", context=plan.context, batch=1, new_tokens=1)
        for name, command in plan.measures().items():
            began = time.perf_counter()
            try:
                self.worker.ask(**command)
            except UserError as error:
                if name == "decode 1" or not self.worker.alive():
                    raise
                self.not_measured[name] = str(error)
                continue
            self.rounds[name] = max(1, min(plan.rounds, int(plan.max_seconds / (time.perf_counter() - began))))
        self.memory["largest batch"] = self.worker.ask("peak")

    def measure(self, name: str, round_number: int) -> list[float] | None:
        """Seconds of one turn; None in a round in which this measure is not taken."""
        if round_number >= self.rounds.get(name, 0):
            return None
        return self.worker.ask(**self.plan.measures()[name])["seconds"]

    def probe_bandwidth(self) -> None:
        """Note the memory's bandwidth: where it changes from round to round, so does the machine."""
        with contextlib.suppress(UserError):  # a card that is full; a worker that died is told of at its next turn
            self.bandwidth.append(self.worker.ask("bandwidth", seconds=0.1)["bandwidth_gb_per_s"])

    def note(self, name: str, seconds: list[float] | None, before: list[float] | None, after: list[float] | None):
        """Keep one turn with the base model's turns before and after it."""
        if seconds is not None:
            self.turns.setdefault(name, []).append((seconds, before, after))


def measure_all(subjects: list[Subject], plan: Plan) -> tuple[dict[str, Entrant], dict[str, str]]:
    """``(entrants by run, reasons by run)``: warm-up, then rounds in which the models take turns at every measure.

    The base model has a turn before and after every two others: a shared machine changes its speed within seconds, and
    ratios are taken to the turns close by. A model that fails is left out with its reason, the others are measured.
    """
    entrants = {subject.run: Entrant(subject, plan) for subject in subjects}
    failed: dict[str, str] = {}
    base = entrants.get(BASE)
    others = [entrant for entrant in entrants.values() if entrant is not base]
    pairs = [others[i : i + 2] for i in range(0, len(others), 2)]
    turns = len(others) + (0 if base is None else 1 + len(pairs))

    def attempt(entrant: Entrant | None, work, *arguments) -> list[float] | None:
        if entrant is None:
            return None
        run, result = entrant.subject.run, None
        bar.set_postfix_str(run)
        if run not in failed:
            try:
                result = work(entrant, *arguments)
            except UserError as error:
                failed[run] = str(error)
                bar.write(f"{run}: not measured: {error}")
                entrant.close()
        bar.update()
        return result

    def base_turn(name: str, number: int) -> list[float] | None:
        seconds = attempt(base, Entrant.measure, name, number)
        if base is not None:
            base.note(name, seconds, seconds, seconds)
        return seconds

    try:
        total = len(entrants) + plan.rounds * len(plan.measures()) * turns
        with tqdm(total=total, desc="measuring", unit="turn") as bar:
            for entrant in entrants.values():
                attempt(entrant, Entrant.warm_up)
            for number in range(plan.rounds):
                if base is not None and BASE not in failed:
                    base.probe_bandwidth()
                for name in plan.measures():
                    before = base_turn(name, number)
                    for pair in pairs:
                        measured = [attempt(entrant, Entrant.measure, name, number) for entrant in pair]
                        after = base_turn(name, number)
                        for entrant, seconds in zip(pair, measured, strict=True):
                            entrant.note(name, seconds, before, after)
                        before = after
    finally:
        for entrant in entrants.values():
            entrant.close()
    return {run: entrant for run, entrant in entrants.items() if run not in failed}, failed
