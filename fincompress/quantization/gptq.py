"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): columns are rounded one by one, later ones make up for the error."""

from fincompress.quantization.method import Method, Recipe

DAMPING = 0.05  # share of the Hessian's mean diagonal that is added to it, which keeps its inverse finite
# Where ranges are searched for, a group's is that of the least |error| to this power, not that of its largest weight:
# worth 4.3 points of accuracy on FinQA (results/published/gptq_settings.txt).
ERROR_POWER = 2.4


class GPTQ(Method):
    """Needs calibration texts: the error that counts is that of a layer's outputs, by the Hessian of its inputs."""

    name = "gptq"

    def gptqmodel_config(self, recipe: Recipe, **common):
        from gptqmodel import QuantizeConfig

        grouped = recipe.group_size > 0  # whole groups in the order of their activations: as fast to run as none
        mse = ERROR_POWER if recipe.search_ranges else 0.0
        return QuantizeConfig(desc_act=False, damp_percent=DAMPING, mse=mse, act_group_aware=grouped, **common)
