"""A sweep in four small files, to commit or hand on, from which all figures can be drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from experiments.results.folder import (
    PACKED_RANKS,
    PACKED_ROUNDS,
    ROUND_COLUMNS,
    load,
    read_ranks,
    run_folder,
)


def pack(folder: Path | str, out: Path | str) -> list[Path]:
    """Write results.csv, sweep.toml, rounds.parquet and mean_ranks.npz of a sweep to ``out``.

    The rows of all runs' rounds lie in one compressed table; of their ranks, the mean of each
    projection over rounds and devices is kept [runs, projections]. Raises ValueError where the
    runs' own folders are not there, or have not the same projections.
    """
    folder, out = Path(folder), Path(out)
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out {out} is the sweep's own folder; give another one")
    if not (folder / "results.csv").is_file():
        raise ValueError(f"{folder} holds no results.csv; name the folder of a sweep")
    trials, rounds = load(folder)
    found = [read_ranks(run_folder(folder, trial)) for trial in trials["trial"]]
    names = found[0][1]
    if any(own != names for _, own in found):
        raise ValueError(f"{folder} holds runs of different models; sweep them apart to pack them")
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("results.csv", "sweep.toml", PACKED_ROUNDS, PACKED_RANKS)]
    for path in paths[:2]:
        shutil.copyfile(folder / path.name, path)
    # What tells runs apart is in results.csv; here their names are enough.
    rounds[["trial", *ROUND_COLUMNS]].to_parquet(paths[2], index=False, compression="zstd")
    np.savez_compressed(
        paths[3],
        trials=np.array(trials["trial"], dtype=str),
        ranks=np.stack([ranks.mean(axis=(0, 1)) for ranks, _ in found]),
        projections=np.array(names),
    )
    return paths
