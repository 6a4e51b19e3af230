"""`waivers.json` of a run: signed exceptions to what the gate left undecided.

    [{"rung": "rung-2", "against": "above", "metric": "auc", "loss": 0.02,
      "reason": "few people; looked at by hand", "bought": "a third fewer parameters"}]

People write it. When a waiver first lets a rung through, the hash of that rung's weights is written
beside it as `weights`: another ladder's rung of the same name has to be signed for again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decant.layout import RUNG_RECORD, RunLayout
from decant.run_data import rung_record
from distill.gate import GateVerdict, Waiver
from foundation.checkpoint import weights_hash
from promptify.validation import BadInput
from promptify.whole import write_whole

WAIVERS = "waivers.json"
_AGAINST = ("above", "top")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedWaiver:
    """A waiver as it stands in the file.

    Attributes:
        where: it stands, for errors.
        written: all of it.
        rung: that it lets through.
        against: `above` or `top`.
        waiver: of that verdict.
    """

    where: str
    written: dict[str, Any]
    rung: str
    against: str
    waiver: Waiver


def read_waivers(folder: Path) -> list[SignedWaiver]:
    """The waivers of a run folder; whether its rungs take them is for `sign_waivers` to say.

    Raises:
        BadInput: the file is no list of waivers, or one of them cannot be.
    """
    path = folder / WAIVERS
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(one, Mapping) for one in content):
        raise BadInput(
            f"{path} must be a list of objects with rung, against, metric, loss, reason, bought."
        )
    return [
        _read_waiver(written, f"{path}, waiver {place}")
        for place, written in enumerate(content, start=1)
    ]


def _read_waiver(written: dict[str, Any], where: str) -> SignedWaiver:
    given = dict(written)
    given.pop("weights", None)
    rung, against = given.pop("rung", None), given.pop("against", None)
    if not isinstance(rung, str) or against not in _AGAINST:
        raise BadInput(
            f"{where}: rung is {rung!r} and against {against!r}; name a rung, and 'above' or 'top'."
        )
    try:
        waiver = Waiver(**given)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{where}: {error}") from error
    return SignedWaiver(where=where, written=written, rung=rung, against=against, waiver=waiver)


def sign_waivers(layout: RunLayout) -> None:
    """Let through what the waivers of the run folder say, and nothing that they say no more.

    Args:
        layout: the run; its rungs that a gate judged, those of few bits among them.

    Raises:
        BadInput: a waiver is about no rung, or about another of that name, or cannot be given;
            then all stays as it was.
    """
    made = [name for name in layout.models() if layout.is_of_ladder(name)]
    places = {
        (name, against): layout.folder / name / f"verdict-{against}.json"
        for name in made
        for against in _AGAINST
    }
    verdicts = {which: replace(GateVerdict.load(at), waivers=()) for which, at in places.items()}
    signed = read_waivers(layout.folder)
    noted: list[dict[str, Any]] = []
    for one in signed:
        if one.rung not in made:
            raise BadInput(
                f"{one.where}: rung is {one.rung!r}; name one of {', '.join(made) or 'no rung'}."
            )
        weights = weights_hash(layout.model(one.rung))
        if one.written.get("weights") not in (None, weights):
            raise BadInput(
                f"{one.where}: signed for {one.rung} when it had other weights. Look at the one "
                "that is there now, and take `weights` out of the waiver to sign it again."
            )
        try:
            verdicts[one.rung, one.against] = verdicts[one.rung, one.against].waive(one.waiver)
        except ValueError as error:
            raise BadInput(f"{one.where}: {error}") from error
        noted.append({**one.written, "weights": weights})
    if noted != [one.written for one in signed]:
        text = json.dumps(noted, indent=2, ensure_ascii=False)
        write_whole(layout.folder / WAIVERS, text + "\n")
    for which, verdict in verdicts.items():
        verdict.save(places[which])
    for name in made:
        record = rung_record(layout, name)
        record["accepted"] = all(verdicts[name, against].accepted for against in _AGAINST)
        write_whole(layout.folder / name / RUNG_RECORD, json.dumps(record, indent=2) + "\n")
