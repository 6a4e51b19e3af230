"""Labels by the million: which pairs, judged shard by shard, and read back only when whole.

    plan.arrow            the pairs, drawn once: rows of users and items, and where they come from
    labels-00000.arrow …  user_id, item_id, grade, score, rules, source, near_miss, version
    aside-00000.jsonl …   pairs that the judge gave no grade, and what it said
    labels.json           written last: who judged, by which policy, counts, each shard's SHA-256

A shard is written under another name and renamed when whole. Killed at any moment, the same call
goes on with the shards that are missing; one that was cut or damaged is judged again, which is
said. `near_miss` marks what is close by its words and far by the policy: the hard negatives.
"""

import hashlib
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from distill.policy.document import MAX_GRADE
from distill.policy.drawing import SOURCES, Drawn, draw_pairs
from distill.policy.golden import GoldenSet
from distill.policy.judges import Judge, Judged, Vetted
from distill.policy.shards import read_about, sha256, whole_shard, write_shard
from distill.policy.tables import Pairs, PolicyTables
from promptify.validation import BadInput
from promptify.whole import write_whole

MANIFEST, PLAN = "labels.json", "plan.arrow"
LABEL_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "grade": pa.int8(),
        "score": pa.float32(),
        "rules": pa.list_(pa.int8()),
        "source": pa.dictionary(pa.int8(), pa.string()),
        "near_miss": pa.bool_(),
        "version": pa.dictionary(pa.int8(), pa.string()),
    }
)
NEAR_MISS_GRADE = 1
"""What is alike in words and has at most this grade is a near miss."""

_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelConfig:
    """How many labels, and of which pairs.

    Attributes:
        count: of pairs.
        shares: of pairs that were shown, that are alike in words, and at random.
        seed: of the draws.
        pairs_per_shard: judged and written together; what a kill may cost.
    """

    count: int
    shares: tuple[float, float, float] = (0.3, 0.4, 0.3)
    seed: int = 0
    pairs_per_shard: int = 65_536

    def __post_init__(self) -> None:
        if self.count < 1 or self.pairs_per_shard < 1:
            raise BadInput(
                f"count={self.count} and pairs_per_shard={self.pairs_per_shard} must be at least 1."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """What came out.

    Attributes:
        folder: of the shards.
        about: what stands in labels.json.
        num_judged: pairs that this call judged; the others were there.
        seconds: that judging and writing those took.
    """

    folder: Path
    about: dict[str, Any]
    num_judged: int
    seconds: float


def label(
    judge: Judge,
    tables: PolicyTables,
    folder: Path,
    config: LabelConfig,
    *,
    golden: GoldenSet | None = None,
    vetted: Vetted | None = None,
) -> Labelled:
    """Judge pairs and write them down; an unfinished folder of the same call goes on.

    Args:
        judge: of the same log.
        tables: of the log.
        folder: new, empty, or of the same call.
        config: how many, and which.
        golden: its held-out part is left out.
        vetted: how the judge did on it, for the record.

    Raises:
        BadInput: the folder holds something else, another process writes there, or there are not
            so many pairs.
        EndpointStopped: the judge can be asked no more for now; whole shards are kept.
    """
    folder = Path(folder)
    about = _about(judge, tables, config, golden)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            _check_folder(folder, about)
            plan = _plan(folder, about, tables, config, golden)
            return _judged(folder, about, plan, judge, tables, config, vetted)
    except Timeout:
        raise BadInput(
            f"another process writes labels to {folder}; wait for it, or choose another folder."
        ) from None


def read_labels(folder: Path, *, golden: GoldenSet | None) -> pa.Table:
    """All labels of a folder, `LABEL_SCHEMA`, memory-mapped.

    Args:
        folder: that `label` finished.
        golden: whose held-out part must not be among them; None where there is no golden set.

    Raises:
        BadInput: it is not finished, a shard is cut or was changed, or a pair is held out.
    """
    folder = Path(folder)
    again = "give the same `decant policy label` command again: whole shards are kept"
    try:
        about = json.loads((folder / MANIFEST).read_text("utf-8"))
        shards = about["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{folder} holds no finished labels; {again}.") from None
    parts = []
    for shard in shards:
        path = folder / shard["file"]
        if not path.is_file() or sha256(path) != shard["sha256"]:
            raise BadInput(f"{path} is cut, damaged or missing; {again}.")
        parts.append(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    # Dictionaries differ by shard; their words are the same.
    labels = pa.concat_tables([part.replace_schema_metadata() for part in parts])
    labels = labels.unify_dictionaries()
    if golden is not None:
        golden.refuse_held_out(labels, file=str(folder))
    return labels


def _about(
    judge: Judge, tables: PolicyTables, config: LabelConfig, golden: GoldenSet | None
) -> dict[str, Any]:
    """What decides the labels; a folder is of one such."""
    policy = judge.policy
    return {
        "format_version": _FORMAT_VERSION,
        "policy": policy.name,
        "version": policy.version,
        "digest": policy.digest,
        "judge": judge.name,
        "task": tables.task.name,
        "data": _fingerprint(tables),
        "golden": None if golden is None else golden.about["sha256"],
        **json.loads(json.dumps(asdict(config))),
    }


def _fingerprint(tables: PolicyTables) -> str:
    """Which people, items and history were judged."""
    log = tables.interactions
    said = hashlib.sha256()
    for table in (log.users.data.table, log.items.data.table):
        for batch in table.replace_schema_metadata().to_batches():
            said.update(batch.serialize())
    for rows in tables.liked:
        said.update(rows.tobytes())
    return said.hexdigest()[:16]


def _check_folder(folder: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds something else."""
    there = {path.name for path in folder.iterdir()} - {".lock"}
    plan = folder / PLAN
    if plan.exists():
        found = read_about(plan)
        if found == about:
            return
        changed = [name for name in about if (found or {}).get(name) != about[name]]
        raise BadInput(
            f"{folder} holds labels of another call (other in {', '.join(changed)}); choose "
            "another folder or remove it."
        )
    # A plan that a kill left half-written goes by another name.
    if strange := sorted(name for name in there if not name.startswith(".")):
        raise BadInput(
            f"{folder} holds {strange[0]} and no plan of labels; choose an empty folder."
        )


def _plan(
    folder: Path,
    about: dict[str, Any],
    tables: PolicyTables,
    config: LabelConfig,
    golden: GoldenSet | None,
) -> Drawn:
    """The pairs, drawn once and written down: another library might draw others."""
    path = folder / PLAN
    if not path.exists():
        drawn = draw_pairs(
            tables,
            config.count,
            seed=config.seed,
            shares=config.shares,
            without=None if golden is None else golden.held_out_keys(tables),
        )
        table = pa.table(
            {
                "user": pa.array(drawn.pairs.users, pa.int64()),
                "item": pa.array(drawn.pairs.items, pa.int64()),
                "source": pa.array(drawn.source, pa.int8()),
            }
        )
        write_shard(path, table, about)
    found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    users, items, source = (np.asarray(found[name]) for name in ("user", "item", "source"))
    return Drawn(pairs=Pairs(users=users, items=items), source=source)


def _judged(
    folder: Path,
    about: dict[str, Any],
    plan: Drawn,
    judge: Judge,
    tables: PolicyTables,
    config: LabelConfig,
    vetted: Vetted | None,
) -> Labelled:
    num_judged, seconds = 0, 0.0
    vouched = _vouched(folder)
    shards: list[dict[str, Any]] = []
    totals: Counter[str] = Counter()
    bar = tqdm(total=len(plan.pairs), desc="label", unit=" pairs", unit_scale=True)
    with bar:
        for number, begin in enumerate(range(0, len(plan.pairs), config.pairs_per_shard)):
            end = min(begin + config.pairs_per_shard, len(plan.pairs))
            path = folder / f"labels-{number:05d}.arrow"
            key = {**about, "shard": number}
            labels = whole_shard(path, key, end - begin, vouched.get(path.name))
            if labels is None:
                began = time.perf_counter()
                pairs = plan.pairs[begin:end]
                judged = judge.judge(pairs)
                labels = _table(pairs, judged, plan.source[begin:end], tables, about)
                _write_aside(folder / f"aside-{number:05d}.jsonl", pairs, judged, tables)
                write_shard(path, labels, {**key, "num_pairs": end - begin})
                num_judged += end - begin
                seconds += time.perf_counter() - began
            shards.append({"file": path.name, "rows": len(labels), "sha256": sha256(path)})
            _count(totals, labels, end - begin)
            bar.update(end - begin)
    whole = {
        **about,
        "num_labels": sum(shard["rows"] for shard in shards),
        "num_set_aside": totals["aside"],
        "by_grade": [totals[f"grade {grade}"] for grade in range(MAX_GRADE + 1)],
        "by_source": {source: totals[source] for source in SOURCES},
        "num_near_misses": totals["near misses"],
        "vetted": None if vetted is None else asdict(vetted),
        "shards": shards,
    }
    write_whole(folder / MANIFEST, json.dumps(whole, indent=2) + "\n")
    return Labelled(folder=folder, about=whole, num_judged=num_judged, seconds=seconds)


def _table(
    pairs: Pairs,
    judged: Judged,
    source: np.ndarray,
    tables: PolicyTables,
    about: dict[str, Any],
) -> pa.Table:
    log = tables.interactions
    kept = np.flatnonzero(judged.grade >= 0)
    users = log.users.data.column("user_id").take(pa.array(pairs.users[kept]))
    items = log.items.data.column("item_id").take(pa.array(pairs.items[kept]))
    grade, came_from = judged.grade[kept], source[kept].astype(np.int8)
    score = judged.score[kept]
    version = f"{about['policy']} {about['version']} {about['digest']}"
    return pa.Table.from_arrays(
        [
            users.cast(pa.string()).combine_chunks(),
            items.cast(pa.string()).combine_chunks(),
            pa.array(grade, pa.int8()),
            pa.array(score, pa.float32(), mask=np.isnan(score)),
            judged.rules.take(pa.array(kept)),
            pa.DictionaryArray.from_arrays(pa.array(came_from), pa.array(SOURCES)),
            pa.array((came_from == SOURCES.index("similar")) & (grade <= NEAR_MISS_GRADE)),
            pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(len(kept), np.int8)), pa.array([version])
            ),
        ],
        schema=LABEL_SCHEMA,
    )


def _count(totals: Counter[str], labels: pa.Table, num_pairs: int) -> None:
    for grade, number in enumerate(np.bincount(labels["grade"], minlength=MAX_GRADE + 1)):
        totals[f"grade {grade}"] += int(number)
    sources = labels["source"].combine_chunks().indices
    for source, number in zip(SOURCES, np.bincount(sources, minlength=len(SOURCES)), strict=True):
        totals[source] += int(number)
    totals["near misses"] += int(np.asarray(labels["near_miss"]).sum())
    totals["aside"] += num_pairs - len(labels)


def _vouched(folder: Path) -> dict[str, str]:
    """SHA-256 of each shard by its file, as an earlier call that ended well wrote them down."""
    try:
        about = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {shard["file"]: shard["sha256"] for shard in about["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_aside(path: Path, pairs: Pairs, judged: Judged, tables: PolicyTables) -> None:
    log = tables.interactions
    lines = [
        json.dumps(
            {
                "user_id": log.user_ids[int(pairs.users[at])],
                "item_id": log.item_ids[int(pairs.items[at])],
                "said": said,
            }
        )
        for at, said in sorted(judged.why_not.items())
    ]
    if lines:
        write_whole(path, "\n".join(lines) + "\n")
