"""SAPLING: the run that removes layers (``algorithm``) of a model (``student``) that learns from another (``teacher``)."""

from fincompress.sapling.algorithm import open_run
