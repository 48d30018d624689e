"""Round-to-nearest: every weight to the nearest of its group's values, without calibration. The baseline."""

from fincompress.quantization.method import Method, Recipe


class RoundToNearest(Method):
    """Writes GPTQ's format, so GPTQ's kernels run it."""

    name = "rtn"
    mark = "weight_only"
    calibrates = False

    def gptqmodel_config(self, recipe: Recipe, **common):
        from gptqmodel.quantization import RTNConfig

        return RTNConfig(**common)
