"""GPTQ (Frantar et al. 2023, arXiv 2210.17323): columns are rounded one by one, later ones make up for the error."""

from fincompress.quantization.method import Method, Recipe


class GPTQ(Method):
    """Needs calibration texts: the error that counts is that of a layer's outputs, by the Hessian of its inputs."""

    name = "gptq"
    orders_columns = True

    def gptqmodel_config(self, recipe: Recipe, **common):
        from gptqmodel import QuantizeConfig

        grouped = recipe.group_size > 0 and not recipe.desc_act  # whole groups in the order of their activations
        return QuantizeConfig(
            desc_act=recipe.desc_act, damp_percent=recipe.damping, mse=recipe.error_power, act_group_aware=grouped,
            **common,
        )  # fmt: skip
