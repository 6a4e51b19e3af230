"""`decant search`: read a query, print who was found and why."""

import json
from dataclasses import asdict

from jsonargparse import Namespace

from decant.predicting import brief, printable
from decant.recommender import Recommender
from decant.search import Found
from promptify.words import one_line


def search(options: Namespace) -> list[str]:
    """Carry out the `search` command.

    Returns:
        Lines to print.

    Raises:
        ValueError: the query holds no word, or the run, the user or the task is unknown.
    """
    recommender = Recommender.load(options.run, model=options.model)
    found = recommender.search(
        options.query, user=options.user, task=options.task, k=options.k, facets=options.facets
    )
    if options.json:
        hits = [{**asdict(hit), "reason": hit.reason} for hit in found.hits]
        return [json.dumps({**asdict(found), "hits": hits}, ensure_ascii=False)]
    return [format_found(found)]


def format_found(found: Found) -> str:
    """Results as lines of text: how the query was read, then title, reason and id of each."""
    lines = [f"{one.field}: {' or '.join(map(one_line, one.values))}" for one in found.facets]
    for place, hit in enumerate(found.hits, start=1):
        reason = f"{brief(hit.reason)}  " if hit.reason else ""
        lines.append(f"{place:3}. {brief(hit.title)}\n     {reason}[{printable(hit.item_id)}]")
    return "\n".join(lines) if found.hits else "nobody: every item is filtered out"
