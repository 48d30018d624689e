"""One loaded model in a process of its own, and what is measured of it."""

import contextlib
import os
import time
import timeit
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from fincompress import generation, memory, models, provenance, quantization
from fincompress.benchmark.subjects import Subject
from fincompress.errors import UserError


class Worker:
    """Loads one model, and times prefill and decoding when it is told to."""

    def __init__(self):
        models.quiet_libraries()
        self.device = models.pick_device()
        self.dtype, self.reason = models.pick_dtype(self.device)

    def ask(self, do: str, *arguments):
        """Do one of the things below; raises UserError with the reason where this model cannot be measured."""
        try:
            return getattr(self, do)(*arguments)
        except (torch.cuda.OutOfMemoryError, MemoryError):
            torch.cuda.empty_cache()
            raise UserError("out of memory") from None
        except (ImportError, RuntimeError, ValueError) as error:  # no kernel, no package for it
            raise UserError(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from None

    def probe(self) -> dict:
        """The device, its memory (GB that are free, GB/s at the fastest read of more than any cache holds), and TFLOP/s
        at the fastest matrix product in its compute type.

        The fastest, for a ceiling is what the device can do.
        """
        cuda = self.device.type == "cuda"
        free = models.free_memory(self.device)
        buffer = torch.ones(min(2**29, free // 8) // 4, device=self.device)
        side = 8192 if cuda else 1024
        square = torch.ones(side, side, dtype=self.dtype, device=self.device)
        return {
            "device": self.device.type,
            "dtype": str(self.dtype).partition(".")[2],
            "reason": self.reason,
            "hardware": provenance.hardware(),
            "free_gb": round(free / 1e9, 2),
            "bandwidth_gb_per_s": round(buffer.nbytes / self.fastest(buffer.sum) / 1e9, 2),
            "tflops": round(2 * side**3 / self.fastest(lambda: square @ square) / 1e12, 4),
        }

    def fastest(self, work: Callable[[], object]) -> float:
        """Seconds of the fastest of 20 times."""
        generation.now(self.device)  # what a GPU has still to do is waited for
        return min(timeit.repeat(lambda: (work(), generation.now(self.device)), number=1, repeat=20))

    def load(self, subject: Subject, results_dir: str, room_gb: float, prompt: int, new_tokens: int) -> dict:
        """Load the model, read ``prompt`` tokens and decode ``new_tokens``; then the same again, and that is measured.

        What libraries take when they are first used is not the model's memory, nor is compiling a kernel or reading a
        disk its time. Returns seconds until one token was read; GB of inference as resident memory that grew and on a
        GPU as allocated and reserved, without the peak of loading; the kernel; and bytes that are read per decoded
        token, which leave out an embedding table that is not also the head.
        """
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory / 1e9
            allowed = torch.cuda.get_per_process_memory_fraction()  # by VRAM_CAP_GB
            torch.cuda.set_per_process_memory_fraction(min(allowed, room_gb / total))
        quantized = quantization.method_of(subject.path) is not None  # then its kernel runs it, faster or not
        for _ in range(2):
            self.model = None
            memory.release_unused()
            before = memory.reset_peak()
            began = time.perf_counter()
            self.model = models.load_run(
                Path(subject.path), results_dir, self.device, self.dtype, packed=quantized or None
            )[0]
            generation.time_prefill(self.model, 1)  # until then weights may be mapped, not read, or not yet repacked
            seconds = generation.now(self.device) - began
            if quantized and self.device.type == "cpu":
                memory.release_files(self.model)  # the kernel has repacked the weights that were read: both would count
            memory.release_unused()
            memory.reset_peak()
            cache, token, _ = generation.time_prefill(self.model, prompt)
            generation.time_decoding(self.model, cache, token, new_tokens)
            del cache
        peak = memory.peak_memory_gb() | {"rss": max(0.0, memory.peak_rss_gb() - before)}
        return {
            "load_seconds": seconds,
            "memory_gb": peak,
            "kernel": kernel(self.model),
            "bytes_per_token": bytes_per_token(self.model),
        }

    def prefill(self, tokens: int) -> list[float]:
        """Seconds of one prefill. A token comes first, unmeasured: it wakes threads and weights."""
        generation.time_prefill(self.model, 1)
        return [generation.time_prefill(self.model, tokens)[2]]

    def decode(self, context: int, batch: int, new_tokens: int) -> list[float]:
        """Seconds of each decoding step of ``batch`` sequences after a prompt of ``context`` tokens."""
        cache, token, _ = generation.time_prefill(self.model, context)
        return generation.time_decoding(self.model, cache, token, new_tokens, batch)


def bytes_per_token(model: torch.nn.Module) -> int:
    """Bytes of weights that are read for a token: all but an embedding table that is not also the head."""
    if hasattr(model, "bytes_per_token"):
        return model.bytes_per_token()
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    return model.get_memory_footprint() - (0 if head is table else table.nbytes)


def kernel(model: torch.nn.Module) -> str:
    """What computes the products and the attention: classes of the blocks' linear layers, LoRA's own left out."""
    if hasattr(model, "kernel"):
        return model.kernel
    layers = [(name, type(module).__name__) for name, module in model.get_decoder().layers.named_modules()]
    kinds = dict.fromkeys(kind for name, kind in layers if "Linear" in kind and "lora_" not in name)
    lora = "LoRA on " if any("lora_" in name for name, _ in layers) else ""
    return f"{lora}{', '.join(kinds)}; attention {model.config._attn_implementation}"


def serve(pipe: Connection) -> None:
    """Answer commands until the other end of the pipe closes; what libraries print goes to stderr."""
    os.dup2(2, 1)
    try:
        worker = Worker()
    except UserError as error:  # as of VRAM_CAP_GB
        pipe.send(error)
        return
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            command = pipe.recv()
            try:
                pipe.send(worker.ask(*command))
            except UserError as error:
                pipe.send(error)
