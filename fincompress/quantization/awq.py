"""AWQ (Lin et al. 2024, arXiv 2306.00978): channels with large activations are scaled up before all is rounded."""

import torch
from transformers import AwqConfig

from fincompress.quantization.method import Method, Recipe


class AWQ(Method):
    """Scales and clipping ranges are searched on calibration texts. Written in AutoAWQ's GEMM format, 4 bits alone."""

    name = quant_method = "awq"
    bits = (4,)
    group_sizes = (128, 64, 32, 16)
    gpu_kernels = ("marlin", "gemm_triton", "torch_awq")
    kernel_config = AwqConfig

    def gptqmodel_config(self, recipe: Recipe, **common):
        from gptqmodel.quantization import AWQConfig

        return AWQConfig(sym=False, **common)

    def run(self, model, calibration: list[dict], batch_size: int) -> None:
        from gptqmodel import BACKEND

        model.quantize(calibration, batch_size=batch_size, backend=BACKEND.AWQ_TORCH)  # packs on every device

    def dense_weight(self, layer: torch.nn.Module) -> torch.Tensor:
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits, layer.group_size)
