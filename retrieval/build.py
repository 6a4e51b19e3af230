"""`python -m retrieval.build`: an index from Parquet shards of vectors, however many there are."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from retrieval.manifest import IndexManifest
from retrieval.shards import Shards
from retrieval.streaming import build_from_shards

_DESCRIPTION = """\
Build an index of item vectors from Parquet files, a batch at a time: memory holds the training
sample and a block of lists, never the catalogue (a million or a hundred million items alike).

Each file has a column of ids (text) and a column of vectors (lists of float16, float32 or float64,
all of one length, from one model). Items are searched by inner product: for the cosine, normalise
the vectors first. The order of files and rows is the order of the index's rows.
"""

_EPILOG = """\
kinds
  flat     compares with every vector: exact; a search reads all of them
  ivf      compares with the vectors of the nearest lists; vectors lie in the lists on disk
  ivf-pq   compares short codes in the nearest lists, then the best of them by their vectors
  hnsw     walks a graph: fast and exact enough, but slow to build, and held in memory while it is
  auto     flat below 50,000 items, else ivf, or ivf-pq where --max-bytes leaves no room for that
  ...      anything else is read as a FAISS factory string, such as OPQ16_64,IVF4096,PQ16

Whatever the kind, searches are tuned to find --target-recall of the true nearest 100 on one half of
a sample, and the recall ceiling that is printed was measured on the other half. Items stand in for
what will be searched for, unless --sample gives real queries, which is better.

examples
  python -m retrieval.build vectors/ --out index/ --model-hash 3f9c
  python -m retrieval.build part-*.parquet --out index/ --model-hash 3f9c \\
      --storage float16 --max-bytes 8G --target-recall 0.98 --sample people.parquet
"""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 after an error that was printed in one line."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        manifest = build_from_shards(
            Shards.open(
                options.vectors, id_column=options.id_column, vector_column=options.vector_column
            ),
            options.out,
            model_hash=options.model_hash,
            kind=options.kind,
            storage=options.storage,
            target_recall=options.target_recall,
            max_bytes=options.max_bytes,
            sample=options.sample
            and Shards.open([options.sample], id_column=None, vector_column=options.vector_column),
            progress=not options.quiet,
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_said(manifest, options.out))
    return 0


def _said(manifest: IndexManifest, out: Path) -> str:
    """What was built, in a few lines."""
    effort = {
        "lists": manifest.num_lists,
        "lists read per search": manifest.num_probes,
        "graph nodes kept in view": manifest.ef_search,
        "candidates refined per item": manifest.refine_factor,
    }
    on_disk = sum((out / name).stat().st_size for name in manifest.files)
    lines = {
        "items": f"{manifest.count:,} of {manifest.dimension} numbers as {manifest.storage}",
        "kind": manifest.kind + (f" ({manifest.factory})" if manifest.factory else ""),
        **{name: f"{value:,}" for name, value in effort.items() if value > 1},
        "a search wants in memory": f"{manifest.num_bytes:,} bytes" if manifest.num_bytes else "?",
        "on disk": f"{on_disk:,} bytes in {out}",
        "recall ceiling": f"{manifest.recall_ceiling:.4f} of the nearest 100"
        + ("" if manifest.kind == "flat" else f" (asked for {manifest.target_recall})"),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m retrieval.build",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "vectors",
        nargs="+",
        type=Path,
        metavar="VECTORS",
        help="Parquet files, or folders of them (*.parquet, by name)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FOLDER", help="where the index goes"
    )
    parser.add_argument(
        "--model-hash",
        required=True,
        help="of the model that made the vectors; loading with another is refused",
    )
    parser.add_argument("--kind", default="auto", help="see below (default: auto)")
    parser.add_argument(
        "--storage",
        default="float32",
        help="of a vector's numbers: float32, float16, or int8 (each dimension's range in 256 "
        "steps; default: float32)",
    )
    parser.add_argument(
        "--target-recall",
        type=float,
        default=0.95,
        help="share of the true nearest 100 to be found (default: 0.95)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_bytes,
        metavar="SIZE",
        help="what a search without filters may want in memory, such as 8G (default: no limit)",
    )
    parser.add_argument(
        "--sample",
        type=Path,
        metavar="FILE",
        help="Parquet file of vectors like those that will be searched for, such as people's",
    )
    parser.add_argument("--id-column", default="item_id", help="default: item_id")
    parser.add_argument("--vector-column", default="vector", help="default: vector")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _bytes(text: str) -> int:
    """Read a size such as 500M; units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give bytes, or such as 500M or 8G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


if __name__ == "__main__":
    sys.exit(main())
