"""Upload a run's checkpoint with its model card to the Hugging Face Hub; recipes/push.sh calls it.

Writes README.md, the card, into the run's folder. Weights, configs and tokenizer go along, no record and no prediction.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fincompress.settings import configure

# -----------------------------------------------------------------------------
RUN = "qlora_4bit/merged"  # a finished run with a checkpoint: a merged one, a depth of SAPLING, a quantized one
REPOSITORY = "user/name"  # on the Hub; made, and private, where it is not there
RESULTS_DIR = "results"  # where the run lies
# -----------------------------------------------------------------------------
configure(globals())

import huggingface_hub
from huggingface_hub.errors import HTTPError  # of httpx or httpx2, by version

from fincompress import runs
from fincompress.errors import UserError, run_script
from fincompress.report import card

FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "quantize_config.json",
         "tokenizer*", "special_tokens_map.json", "chat_template.jinja", "README.md"]  # fmt: skip


def main() -> None:
    directory = runs.finished_run(RESULTS_DIR, RUN)
    if not (directory / "config.json").exists() or not any(directory.glob("*.safetensors")):
        below = sorted(str(path.parent.relative_to(RESULTS_DIR)) for path in directory.glob("[!.]*/config.json"))
        raise UserError(f"run {RUN!r} has no checkpoint of its own; below it: {', '.join(below) or 'none'}")
    runs.write_text(directory / "README.md", card.model_card(directory, Path(RESULTS_DIR), REPOSITORY))
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(REPOSITORY, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=REPOSITORY, folder_path=directory, allow_patterns=FILES, commit_message=f"Checkpoint of run {RUN}"
        )
    except (OSError, ValueError, HTTPError) as error:  # the client's own errors are one of these
        said = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{REPOSITORY} was not uploaded: {said}; the token (HF_TOKEN in .env) must allow writing"
        ) from None
    print(f"uploaded {directory}/ to {url}; a new repository is private until you publish it there")


if __name__ == "__main__":
    run_script(main)
