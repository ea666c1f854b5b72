"""The second step: proof that the folder loads elsewhere and gives this package's vectors."""

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from .card import CARD, snippets
from .folder import MANIFEST, STAMP, file_hash, manifest_differences, read_json, read_manifest, write_json
from .installed import load_checkpoint, remote_code
from .probe import embed_probe

PROBE = Path(__file__).resolve().with_name("probe.py")  # the program, not the module: it runs where we are absent
TOLERANCE = 1e-5  # float32, absolute, on unit vectors


def verify(out: str | Path, *, python: str | Path = sys.executable) -> list[str]:
    """Prove that the folder loads elsewhere and gives this package's vectors; print a report.

    Args:
        out: a folder written by ``build``, or a copy downloaded from the Hub.
        python: the interpreter to load it with, for instance one with older libraries.

    Returns:
        What is wrong; an empty list when all is well. Only then the folder is stamped for ``push``.
    """
    out = Path(out).resolve()
    (out / STAMP).unlink(missing_ok=True)
    checks = {"files are those of the manifest, none is a pickle, none holds a secret": manifest_differences(out)}
    differ = [path.name for path in remote_code() if file_hash(path) != read_manifest(out)["files"].get(path.name)]
    checks["remote code is this package's"] = [f"{name} differs from the installed package" for name in differ]
    # Only then is the folder loaded: code and snippets that run below are the ones of this package.
    if not any(checks.values()):
        checks |= _check_embeddings(out, str(python))
    for name, problems in checks.items():
        print(f"  {'FAILED' if problems else 'ok':6}  {name}")
        print(*(textwrap.indent(problem, " " * 10) + "\n" for problem in problems), sep="", end="")
    failures = [problem for problems in checks.values() for problem in problems]
    if not failures:
        write_json(out / STAMP, {"manifest": file_hash(out / MANIFEST)})
    return failures


def _check_embeddings(out: Path, python: str) -> dict[str, list[str]]:
    """Embed the probe with this package, then with the folder alone in a fresh interpreter: problems by check."""
    import numpy as np

    model, processor = load_checkpoint(out)
    expected = embed_probe(model.float(), processor)
    # Constant or non-finite vectors would agree with anything.
    dull = [name for name, rows in expected.items() if not np.ptp(rows, axis=0).max() > 1e-4]
    if dull:
        return {"embeddings tell the inputs apart": [f"{name} are not finite, or all alike" for name in dull]}
    expected["mixed"] = np.concatenate([expected["encode_text"], expected["encode_image"]])
    logits = model.logit_scale.exp().item() * expected["texts"] @ expected["images"][0]
    expected["probabilities"] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    return {"embeddings tell the inputs apart": [], **_compare_elsewhere(out, expected, python)}


def _compare_elsewhere(out: Path, expected: dict[str, Any], python: str) -> dict[str, list[str]]:
    """Run ``probe.py`` in a fresh interpreter and hold what it found against ``expected``: problems by check."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # The card's snippets name the repository; in the working directory that name is the folder itself.
        repo_id = read_manifest(out)["repo_id"]
        link = work / repo_id
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(out, target_is_directory=True)
        own = snippets(CARD.replace("{repo_id}", repo_id))
        write_json(work / "snippets.json", own)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "HUGGING"))}
        settings = {"HF_HOME": f"{work}/cache", "HF_MODULES_CACHE": f"{work}/modules", "HF_HUB_OFFLINE": "1"}
        command = [python, "-I", str(PROBE), str(out), str(work / "snippets.json"), folder]
        environment = kept | settings | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            tail = "\n".join(run.stderr.strip().splitlines()[-12:])
            return {"loads in a fresh interpreter": [f"{python} exited with {run.returncode}:\n{tail}"]}
        facts = read_json(work / "facts.json")
        with np.load(work / "arrays.npz", allow_pickle=False) as stored:
            found = dict(stored)
    checks = {}
    for name, rows in found.items():
        wanted = expected[name.rpartition("/")[2]]
        gap = np.abs(rows - wanted).max() if rows.shape == wanted.shape else float("nan")
        wrong = [] if gap <= TOLERANCE else [f"{name} differ by {gap:.1e}, allowed are {TOLERANCE:.0e}"]
        checks[f"{name} {rows.shape}: largest difference {gap:.1e}"] = wrong
    foreign = [name for name in facts["classes"] if not name.startswith("transformers_modules.")]
    shown = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    checks[f"without our packages and without network: {shown}"] = [f"{name} was used" for name in foreign]
    shown = snippets((out / "README.md").read_text(encoding="utf-8"))
    checks[f"the card's {len(own)} snippets run"] = [] if shown == own else ["README.md shows other snippets"]
    return checks
