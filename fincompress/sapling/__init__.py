"""SAPLING: a run that removes layers (``algorithm``) of a model (``student``) that learns from its ``teacher``."""

from fincompress.sapling.algorithm import open_run
