"""`decant predict`, `search` and `index`: what is asked of a run, and what it is asked about.

decant predict runs/films --user 42 -k 10
decant search runs/demo "who knows cancer treatment in London"
decant index runs/films
"""

from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from decant.run_cli import add_on_bad_rows

# Imports stand in the commands that need them: `decant --help` must not wait for torch.


def predict_parser() -> ArgumentParser:
    """The parser of `decant predict`."""
    parser = ArgumentParser(
        description="Titles with probabilities: for somebody of the log (--user), for somebody "
        "never seen (--profile, --history), or for many into a file (--users, --out)."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--user", type=str, help="a user id of the log")
    parser.add_argument("--profile", type=Path, help="JSON object with profile fields")
    parser.add_argument(
        "--history", type=Path, help='JSONL, oldest first: {"item": "1", "action": "liked"}'
    )
    parser.add_argument("--users", type=Path, help="text file with a user id per line")
    parser.add_argument("--out", type=Path, help="Parquet file for the predictions of --users")
    parser.add_argument("-k", "--k", type=int, default=10, help="items for each person")
    parser.add_argument("--task", type=str, help="the surface; the first of the model by default")
    parser.add_argument("--query", type=str, help="a query or a note for this request, in words")
    parser.add_argument(
        "--where",
        type=str,
        metavar="FILTER",
        help="only items like this, over their columns: 'place = Berlin, Germany | workplace = "
        'remote\'. There are = != < <= > >= in (a, b), | & ! ( ), and "quotes" for values that '
        "hold one of these; = on a list asks whether it holds the value",
    )
    parser.add_argument(
        "--blend",
        type=float,
        help="how much policy counts, from 0, clicks alone, to 1, policy alone; of a task with "
        "grades",
    )
    parser.add_argument(
        "--include-seen",
        action="store_true",
        help="answer with items of the history too: where people come back to things, as to a "
        "shop where they buy the same again, or to a song. They are left out by default",
    )
    parser.add_argument("--model", type=str, help="foundation or a rung; what serves by default")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    return parser


def search_parser() -> ArgumentParser:
    """The parser of `decant search`."""
    parser = ArgumentParser(
        description="Who is called so, or means what is asked, each with a line that says why."
    )
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("query", type=str, help="a name, or what is wanted, in words")
    parser.add_argument("--user", type=str, help="who asks: a user id of the log")
    parser.add_argument("-k", "--k", type=int, default=10, help="results")
    parser.add_argument("--task", type=str, help="the surface; the first whose items have names")
    parser.add_argument(
        "--facets",
        choices=["prefer", "require", "ignore"],
        default="prefer",
        help="what a place or another column's value in the query does",
    )
    parser.add_argument("--model", type=str, help="foundation or a rung; what serves by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def index_parser() -> ArgumentParser:
    """The parser of `decant index`."""
    parser = ArgumentParser(
        description="Embed the catalogue of a run with its served model and index it anew. With "
        "--items, embed the items of a file instead: the run recommends them from now on; or, with "
        "--out, they and their index lie in a folder of their own. Items that the model was "
        "trained on are known by id, all others by their text. Killed at any moment, the same "
        "command goes on with the shards that are missing; under `accelerate launch` every process "
        "embeds its share."
    )
    parser.add_argument("run", type=Path, help="the run folder, or the folder of a saved model")
    parser.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="CSV, TSV, Parquet or JSONL: item_id, kind where there are several, and the columns "
        "that the model's items have",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where vectors/*.parquet and index/ go; needed where there is a model and no run",
    )
    parser.add_argument(
        "--text-encoder",
        type=Path,
        metavar="FOLDER",
        help="where the text encoder of the model's slots lies, if not where its run found it",
    )
    parser.add_argument(
        "--kind",
        type=str,
        default="auto",
        help="of index: flat, ivf, ivf-pq, hnsw, a FAISS factory string, or auto",
    )
    parser.add_argument(
        "--storage",
        choices=["float32", "float16", "int8"],
        default="float32",
        help="how the index keeps a vector's numbers",
    )
    parser.add_argument(
        "--width",
        type=int,
        metavar="N",
        help="index the first N numbers of each vector, where the model was trained at that width; "
        "what is found is ranked by whole vectors. All numbers when left out; without --items, as "
        "many as the run's index has",
    )
    parser.add_argument(
        "--target-recall",
        type=float,
        default=0.95,
        help="share of the true nearest 100 that a search must find; what it finds is printed",
    )
    parser.add_argument(
        "--shard-items", type=int, default=65_536, help="rows of the file in each shard"
    )
    add_on_bad_rows(parser, "what is written")
    return parser


def predict(options: Namespace) -> Iterable[str]:
    """Carry out the `predict` command."""
    from decant import predicting

    return predicting.predict(options)


def search(options: Namespace) -> Iterable[str]:
    """Carry out the `search` command."""
    from decant import searching

    return searching.search(options)


def index(options: Namespace) -> Iterable[str]:
    """Carry out the `index` command."""
    from decant import indexing

    return indexing.index(options)
