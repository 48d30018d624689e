"""SAPLING: a run that shrinks a model (``run``), and how what a drop costs is learned back (``recovery``)."""

from fincompress.sapling.checkpoints import finish, save_on_the_way
from fincompress.sapling.healing import heal
from fincompress.sapling.run import Run
from fincompress.sapling.start import apply_recovery, open_run
from fincompress.sapling.stop import return_above_floor, stop_reason
from fincompress.sapling.teacher import needs_teacher
