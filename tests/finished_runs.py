"""A results directory with runs of every kind, each of them the tiny base model under another name."""

import shutil

from fincompress import runs


def make_finished_runs(root, tiny_base):
    def make(run, weights=True, base_model="shape:tiny", data_run="speed_data"):
        folder = root / run
        shutil.copytree(tiny_base, folder) if weights else folder.mkdir(parents=True, exist_ok=True)
        record = {"base_model": base_model, "base_precision": "auto", "settings": {"DATA_RUN": data_run}}
        runs.write_json(folder / "settings.json", record)
        runs.write_json(folder / "train_metrics.json", {})

    (root / "base_models").mkdir()
    shutil.copytree(tiny_base, root / "base_models" / "shape-tiny")
    for depth in ("4", "12"):
        make(f"sapling/{depth}")
    make("sapling", weights=False)
    make("other", base_model="shape:llama-2-7b")
    make("sapling/.2.99.partial")
    (root / "unfinished").mkdir()
    return root
