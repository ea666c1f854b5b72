"""The second step: proof that the folder loads elsewhere and gives this package's vectors."""

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer_ext.files import file_hash, read_json, write_json
from trainer_ext.hub.card import card_snippets, snippets
from trainer_ext.hub.folder import MANIFEST, STAMP, alone_in, manifest_differences, read_manifest
from trainer_ext.hub.graphs import graph_problems
from trainer_ext.hub.installed import load_checkpoint, remote_code
from trainer_ext.hub.onnx_export import TEXT
from trainer_ext.hub.probe import embed_probe
from trainer_ext.hub.safety import foreign_code

PROBE = Path(__file__).resolve().with_name("probe.py")  # run as a program where our packages are absent
TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4  # float32, absolute, on unit vectors
COMMIT = "0" * 40  # of the copy in the cache


def verify(out: str | Path, *, python: str | Path | Sequence[str | Path] = sys.executable) -> list[str]:
    """Prove that the folder loads elsewhere and gives this package's vectors; print a report.

    Args:
        out: a folder written by ``build``, or a copy downloaded from the Hub.
        python: the interpreter to load it with, for instance one with older libraries; or several, which must all
            agree.

    Returns:
        What is wrong. If the list is empty, the folder is stamped for ``push``.
    """
    out = Path(out).resolve()
    with alone_in(out, "verify"):
        return _verify(out, [python] if isinstance(python, str | Path) else python)


def _verify(out: Path, pythons: Sequence[str | Path]) -> list[str]:
    read_manifest(out)  # any other folder ends here, untouched
    (out / STAMP).unlink(missing_ok=True)
    checks = {"files are those of the manifest, none is a pickle, none holds a secret": manifest_differences(out)}
    checks["remote code is this package's"] = _foreign_files(out)
    checks["no file names code from elsewhere"] = foreign_code(out)
    checks["graphs name no other files"] = graph_problems(out)
    # Only then is the folder loaded: code and snippets that run below are the ones of this package.
    if not any(checks.values()):
        checks |= _check_embeddings(out, pythons)
    for name, problems in checks.items():
        print(f"  {'FAILED' if problems else 'ok':6}  {name}")
        print(*(textwrap.indent(problem, " " * 10) + "\n" for problem in problems), sep="", end="")
    failures = [problem for problems in checks.values() for problem in problems]
    if not failures:
        write_json(out / STAMP, {"manifest": file_hash(out / MANIFEST)})
    return failures


def _foreign_files(out: Path) -> list[str]:
    """Programs in the folder that differ from the installed package's, or are missing or foreign."""
    listed, own = read_manifest(out)["files"], {path.name: path for path in remote_code()}
    differ = [f"{name} differs from the installed package" for name in own if file_hash(own[name]) != listed.get(name)]
    return differ + [
        f"{name} is not a file of the installed package" for name in listed.keys() - own.keys() if ".py" in name.lower()
    ]


def _check_embeddings(out: Path, pythons: Sequence[str | Path]) -> dict[str, list[str]]:
    """Embed the probe with this package, then with the folder alone in fresh interpreters: problems by check."""
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
    checks: dict[str, list[str]] = {"embeddings tell the inputs apart": []}
    for python in pythons:
        found = _compare_elsewhere(out, expected, str(python))
        several = len(pythons) > 1
        checks |= {f"{python}: {name}" if several else name: problems for name, problems in found.items()}
    return checks


def _compare_elsewhere(out: Path, expected: dict[str, Any], python: str) -> dict[str, list[str]]:
    """Run ``probe.py`` in a fresh interpreter and compare its vectors with ``expected``: problems by check."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        state, work = Path(folder) / "state", Path(folder) / "work"  # apart: a repository may be called cache/hub
        # The card's snippets name the repository; in the working directory that name is the folder itself.
        repo_id = read_manifest(out)["repo_id"]
        link = work / repo_id
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(out, target_is_directory=True)
        # For those that download, the cache holds the folder as the one commit of that repository.
        cached = state / "cache" / "hub" / f"models--{repo_id.replace('/', '--')}"
        for part in ("refs", "snapshots"):
            (cached / part).mkdir(parents=True)
        (cached / "refs" / "main").write_text(COMMIT)
        (cached / "snapshots" / COMMIT).symlink_to(out, target_is_directory=True)
        own = card_snippets(repo_id, (out / TEXT).is_file())
        write_json(state / "snippets.json", own)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_", "HUGGING"))}
        settings = {"HF_HOME": f"{state}/cache", "HF_MODULES_CACHE": f"{state}/modules", "HF_HUB_OFFLINE": "1"}
        # The interpreter starts in another directory, so its path is made absolute; links (of a venv) stay as they are.
        program = os.path.abspath(python) if os.sep in python else python
        command = [program, "-I", str(PROBE), str(out), str(state / "snippets.json"), str(state)]
        environment = kept | settings | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
        run = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            tail = "\n".join(run.stderr.strip().splitlines()[-12:])
            return {"loads in a fresh interpreter": [f"{python} exited with {run.returncode}:\n{tail}"]}
        facts = read_json(state / "facts.json")
        with np.load(state / "arrays.npz", allow_pickle=False) as stored:
            found = dict(stored)
    checks = {}
    for name, rows in found.items():
        wanted = expected[name.partition("/")[2]]
        gap = np.abs(rows - wanted).max() if rows.shape == wanted.shape else float("nan")
        allowed = ONNX_TOLERANCE if name.startswith("onnxruntime") else TOLERANCE
        wrong = [] if gap <= allowed else [f"{name} differ by {gap:.1e}, allowed are {allowed:.0e}"]
        checks[f"{name} {rows.shape}: largest difference {gap:.1e}"] = wrong
    foreign = [name for name in facts["classes"] if not name.startswith("transformers_modules.")]
    shown = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    checks[f"without our packages and without network: {shown}"] = [f"{name} was used" for name in foreign]
    listed = snippets((out / "README.md").read_text(encoding="utf-8"))
    more = f"; {len(listed) - len(own)} of its author's were not run" if len(listed) > len(own) else ""
    wrong = [] if listed[: len(own)] == own else ["README.md shows other snippets"]
    checks[f"the card's {len(own)} snippets run{more}"] = wrong
    return checks
