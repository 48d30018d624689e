"""Models: what a base model is (``base``), how models are loaded (``load``) and written (``save``)."""

from fincompress.models.base import (
    EMBEDDED,
    SHAPES,
    base_config,
    base_fingerprint,
    base_model_path,
    checkpoint_dtype,
    checkpoint_folder,
    explain_loading,
    free_memory,
    load_tokenizer,
    pick_device,
    pick_dtype,
    quiet_libraries,
    read_config,
    room_for_prompt,
    shape_config,
)
from fincompress.models.load import (
    compute_in_model_dtype,
    dense_checkpoint,
    load_adapter,
    load_base,
    load_run,
    offload_if_needed,
    run_path,
    size_gb,
)
from fincompress.models.save import save_tokenizer, write_checkpoint, write_model_card, write_rope
