"""Memory and time of a retrieval task beside faiss: ``python benchmarks/search_scale.py`` (10 minutes on 2 free cores).

10,000 queries against 1,000,000 candidates of 768 dimensions, as ``RetrievalTask`` searches them: the places of the
right answers and the best 10. In turn on slices of the queries, so that other work on the machine hits both alike:

memory: how far our search pushes the peak resident size above the size just before, vectors in place; the most of all
        slices, on top of what the task itself keeps of its items (names, places, norms);
time:   wall seconds of our search and of ``faiss.IndexFlatIP.search`` with the same k; the ratio is that of the sums.

Both find the same candidates, or the benchmark fails.
"""

import argparse
import time
from pathlib import Path

import faiss
import numpy as np

from trainer_ext.evaluation.items import Embeddings
from trainer_ext.evaluation.search import QUERY_BLOCK, search

SHOWN = 10
# Candidates made at once: the generator's float64 numbers would need as much memory again.
PART = 10_000


def unit_rows(rows: int, dim: int, seed: int) -> np.ndarray:
    """Random unit vectors, float32."""
    random, made = np.random.default_rng(seed), np.empty((rows, dim), np.float32)
    for start in range(0, rows, PART):
        part = random.standard_normal((min(PART, rows - start), dim), dtype=np.float32)
        made[start : start + PART] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made


def resident_mib(kind: str) -> float:
    """``VmRSS``, the memory this process has now, or ``VmHWM``, the most it had since ``forget_peak``."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)]
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """Begin to watch the peak anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def main(queries: int, candidates: int, dim: int) -> None:
    """Measure memory and time, slice by slice."""
    rows = unit_rows(candidates + queries, dim, 0)
    documents, asked = rows[:candidates], rows[candidates:]
    answer = np.random.default_rng(2).integers(0, candidates, queries)
    for place in range(queries):  # each query lies near its answer, among those that lie there by chance
        asked[place] += 0.12 * documents[answer[place]]
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    print(f"{queries:,} queries, {candidates:,} candidates, {dim} dimensions, best {SHOWN}", flush=True)
    index = faiss.IndexFlatIP(dim)
    index.add(documents)

    forget_peak()
    before = resident_mib("VmRSS")
    texts = [f"d{place}" for place in range(candidates)], [f"q{place}" for place in range(queries)]
    embeddings = Embeddings({text: place for place, text in enumerate([*texts[0], *texts[1]])}, rows)
    ours = embeddings.rows_of(texts[0], "candidates")
    task = resident_mib("VmHWM") - before
    print(f"memory of the task: {task:.0f} MiB", flush=True)

    seconds, most = {"ours": 0.0, "faiss": 0.0}, 0.0
    for start in range(0, queries, QUERY_BLOCK):
        part = slice(start, min(start + QUERY_BLOCK, queries))
        forget_peak()
        before, clock = resident_mib("VmRSS"), time.perf_counter()
        few = embeddings.rows_of(texts[1][part], "queries")
        [found] = search(few, ours, answer[part, None].tolist(), None, SHOWN)
        seconds["ours"] += time.perf_counter() - clock
        most = max(most, resident_mib("VmHWM") - before)
        clock = time.perf_counter()
        _, places = index.search(asked[part], SHOWN)
        seconds["faiss"] += time.perf_counter() - clock
        assert (found.top == places).mean() > 0.999, "equal scores may change places, no more"
        print(f"{part.stop:>7,} queries: {seconds['ours']:.1f} s, faiss {seconds['faiss']:.1f} s", flush=True)
    print(f"memory above the vectors: {task + most:.0f} MiB")
    print(f"time: {seconds['ours'] / seconds['faiss']:.2f} x faiss.IndexFlatIP")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    options = parser.parse_args()
    main(options.queries, options.candidates, options.dim)
