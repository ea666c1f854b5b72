"""Fine-tune a model on a folder of pictures with captions, on one small GPU or a CPU, and show what it did.

    python examples/finetune_folder.py MODEL pictures/ captions.csv --texts pairs.csv --output_dir outputs/tuned

MODEL is the folder of a trained model. captions.csv has the columns ``file`` (a path inside the folder) and
``caption``; pairs.csv has ``query`` and ``positive``, texts that belong together. It trains LoRA on both towers, with a
large batch by gradient cache, and again without the text pairs: the table shows what the pairs preserve. Every tenth
row of both files is held out and measured.
"""

import argparse
import sys
from pathlib import Path

import pandas
import torch

from modeling_jina_clip import JinaCLIPModel, JinaCLIPProcessor
from trainer_ext import train
from trainer_ext.evaluation import Task, evaluate, image_text_tasks, text_task
from trainer_ext.evaluation.report import Report


def read_table(path: Path, columns: list[str], least: int) -> pandas.DataFrame:
    """The named columns of a CSV file, all of them texts."""
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    if missing := [name for name in columns if name not in table.columns]:
        sys.exit(f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}.")
    if len(table) < least:
        sys.exit(f"{path} has {len(table)} rows; at least {least} are needed: every tenth one is held out.")
    return table[columns]


def split(table: pandas.DataFrame, key: str) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Rows to train on, and every tenth different ``key`` with all its rows to measure on."""
    held_out = table[key].isin(table[key].drop_duplicates()[::10])
    return table[~held_out], table[held_out]


def write_data(arguments: argparse.Namespace) -> list[Task]:
    """Put the training rows where the recipe looks for them; return the tasks over the rows that are held out."""
    captions = read_table(arguments.captions, ["file", "caption"], 20)
    if lost := [name for name in captions["file"] if not (arguments.pictures / name).is_file()]:
        sys.exit(f"{arguments.captions} names {lost[0]!r}, which is not in {arguments.pictures}.")
    train, test = split(captions, "file")
    train = train.groupby("file", sort=False)["caption"].agg(list).reset_index()  # one of them is drawn in each epoch
    train["file"] = [str((arguments.pictures / name).resolve()) for name in train["file"]]
    train.to_json(arguments.output_dir / "captions.jsonl", orient="records", lines=True)
    grouped = test.groupby("file", sort=False)["caption"].agg(list)
    pictures = [arguments.pictures / name for name in grouped.index]  # opened when they are encoded
    train, test = split(read_table(arguments.texts, ["query", "positive"], 20), "query")
    train.to_csv(arguments.output_dir / "pairs.csv", index=False)
    return [*image_text_tasks("pictures", pictures, list(grouped)), text_task("texts", test.to_numpy().tolist())]


def measure(folder: Path, tasks: list[Task]) -> dict[str, float]:
    """Figures of the model in ``folder`` on the rows held out."""
    model = JinaCLIPModel.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    model.processor = JinaCLIPProcessor.from_pretrained(folder)
    return evaluate(model.encode_text, model.encode_image, tasks)


def tune(arguments: argparse.Namespace, tasks: list[Task], report: Report, name: str, more: list[str]) -> None:
    """One run in a folder of its own, with its record and its figures; its row joins the report."""
    out = arguments.output_dir.resolve()
    overrides = [f"model={arguments.model.resolve()}", f"seed={arguments.seed}", f"stages.0.steps={arguments.steps}"]
    overrides += [f"sources.pictures.location={out / 'captions.jsonl'}", f"sources.texts.location={out / 'pairs.csv'}"]
    overrides += [f"stages.0.{side}.batch_size={arguments.batch_size}" for side in ("image_text", "text")]
    run = train("finetune", arguments.output_dir / name.replace(" ", "-"), overrides=[*overrides, *more])
    report.add(name, measure(run.folder, tasks))
    own = Report(run.folder, tasks)  # where hub_upload.py looks for the figures of its card
    own.rows = [report.rows[0], report.rows[-1]]
    own.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a trained model")
    parser.add_argument("pictures", type=Path, help="folder of pictures")
    parser.add_argument("captions", type=Path, help="CSV with the columns file,caption")
    parser.add_argument("--texts", type=Path, required=True, help="CSV with the columns query,positive")
    parser.add_argument("--output_dir", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=128, help="pairs of a step, of each kind (default 128)")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    try:
        arguments.output_dir.mkdir(parents=True)
    except FileExistsError:
        parser.error(f"--output_dir {arguments.output_dir}: is there already; name a new folder")
    tasks = write_data(arguments)
    report = Report(arguments.output_dir, tasks)
    report.add("before", measure(arguments.model, tasks))
    tune(arguments, tasks, report, "with texts", [])
    tune(arguments, tasks, report, "pictures only", ["stages.0.text=null", "lora.towers=[text, vision]"])
    report.save()
    print(report.table())
    print(f"\nthe tuned model: {arguments.output_dir / 'with-texts'}; its adapter alone: .../adapter")


if __name__ == "__main__":
    main()
