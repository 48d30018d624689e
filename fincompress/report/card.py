"""The model card of a checkpoint that is published: what it came from, what it scores, its licence, how to load it."""

import re
from pathlib import Path

from fincompress import lineage, runs
from fincompress.report import table

# Hub id and licence of the base models that this project is written for; others say theirs on their own page.
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCES = {EMBEDDED: "apache-2.0", "meta-llama/Llama-2-7b-hf": "llama2"}

WHAT = (
    "Reads lines of a financial report and a question, and writes a FinQA program that computes the answer, such as "
    "`subtract(84.2, 79.5), divide(#0, 79.5)`."
)
LOAD = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
page = "in millions|2023|2022\\npumps|84.2|79.5\\nservice|12.6|9.8"
question = "what was the growth of pumps revenue from 2022 to 2023?"
inputs = tokenizer(f"{{page}}\\nQuestion: {{question}}\\nProgram:\\n", return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```"""


def model_card(folder: Path, results_dir: Path, repository: str) -> str:
    """The card, in Markdown with the Hub's metadata, of the checkpoint in a run's folder; no path of this machine."""
    record = runs.read_json(folder / "settings.json")
    steps = lineage.steps(str(results_dir), folder.relative_to(results_dir).as_posix())
    names = [entry["step"] or "unknown" for entry in steps]
    base, licence = base_model(record["base_model"])
    rows = {"base model": base, "method": table.method(names, "auto")}
    if tokens := data_record(results_dir, record).get("settings", {}).get("EVIDENCE_TOKENS"):
        rows["evidence in a prompt"] = f"the {tokens} tokens that are ranked best"
    rows["trained on"] = ", ".join(sources(steps, record, results_dir))
    rows["weights"] = f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 1e9:.2f} GB"
    rows["licence"] = licence or "that of the base model"
    hub_id = [f"base_model: {base}"] if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else []
    quantized = (folder / "quantize_metrics.json").exists()
    kind = table.series(names).lower().replace("+", "").replace("  ", " ").strip().replace(" ", "-")
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", *hub_id,
             f"license: {licence or 'other'}", f"tags: [finqa, finance, {kind}]", "---", "",
             f"# {repository.rpartition('/')[2]}", "",
             WHAT, "",
             "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), "",
             "## Accuracy", "", *accuracy(folder), "",
             "## How to load it", "", *(["`pip install gptqmodel optimum` first.", ""] if quantized else []),
             LOAD.format(repository=repository)]  # fmt: skip
    return "\n".join(lines) + "\n"


def base_model(name: str) -> tuple[str, str | None]:
    """How a card names a base model, and its licence where it is known; of a folder the last part of its path."""
    name = EMBEDDED if name == "smollm2-135m" else name
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name, LICENCES.get(name)


def data_record(results_dir: Path, record: dict) -> dict:
    """``settings.json`` of the data run that a run was trained on; empty where it is not here."""
    path = results_dir / record["settings"].get("DATA_RUN", "") / "settings.json"
    return runs.read_json(path) if path.exists() and path.parent != results_dir else {}


def sources(steps: list[dict], own: dict, results_dir: Path) -> list[str]:
    """The data sets that a run and those it came from were trained on, as far as their folders are here."""
    paths = [results_dir / entry["run"] / "settings.json" for entry in steps[:-1]]
    records = [runs.read_json(path) for path in paths if path.exists()] + [own]
    parts = [own["data"]]
    for record in records:
        data = data_record(results_dir, record)
        parts += [data.get("data"), data.get("extra")]
    return list(dict.fromkeys(part["source"] for part in parts if part))


def accuracy(folder: Path) -> list[str]:
    """The lines of a table of every evaluation beside a checkpoint."""
    lines = ["| data | split | questions | execution accuracy % | program accuracy % |", "|---|---|---:|---:|---:|"]
    for path in sorted(folder.glob("eval_*.json")):
        evaluation = runs.read_json(path)
        scores = [percent(evaluation[name]["accuracy"], evaluation[name]["interval"])
                  for name in ("execution_accuracy", "program_accuracy")]  # fmt: skip
        cells = (evaluation["data"]["source"], evaluation["split"], evaluation["questions"], *scores)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return [*lines, "", "Brackets: 95 % Wilson intervals."] if lines[2:] else ["Not evaluated."]


def percent(value: float, interval: list[float]) -> str:
    """``"28.3 [25.4, 31.4]"``, of shares."""
    return "{} [{}, {}]".format(*(f"{100 * share:.1f}" for share in (value, *interval)))
