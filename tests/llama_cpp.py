"""A stand-in for llama.cpp's tools: they write a file that was prepared, whatever type they are asked for."""

import stat
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CONVERTER = """import pathlib, shutil, sys
if not pathlib.Path(sys.argv[1], "config.json").exists():
    raise SystemExit("no config.json")
shutil.copy(pathlib.Path(__file__).with_name("prepared.gguf"), sys.argv[5])
"""
QUANTIZER = f'#!{sys.executable}\nimport shutil, sys\nshutil.copy(sys.argv[1], sys.argv[2])\nprint("as", sys.argv[3])\n'


def stand_in(folder: Path, checkpoint: str, tool: bool = True) -> str:
    """A folder with a converter, and where ``tool`` says so a quantizer, that write the checkpoint in 32 bits."""
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    write_gguf(checkpoint, folder / "prepared.gguf")
    if tool:
        path = folder / "build" / "bin" / "llama-quantize"
        path.write_text(QUANTIZER)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(folder)


def write_gguf(checkpoint: str, path: Path) -> None:
    """A Llama checkpoint with a byte-level BPE tokenizer as a GGUF file of 32 bits."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([f"{tokens[0][0]} {tokens[0][1]}"])  # prompts are token ids: none is ever merged
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        gguf_name, values = names.get_name(name, try_suffixes=(".weight",)), tensor.to(torch.float32).numpy()
        count = next((count for part, count in heads.items() if part in gguf_name), None)
        if count:  # llama.cpp turns neighbouring values, transformers the two halves of a head
            halves = values.reshape(count, 2, -1, values.shape[-1])
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
