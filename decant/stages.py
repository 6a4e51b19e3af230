"""A run is a folder of named stages; each runs once, until something it depends on changes.

Layout of a run folder::

    recipe.json           what the run was asked for
    .lock                 held by the process that is writing
    .scratch/train-3f…/   what an unfinished stage keeps to resume from
    train/                a finished stage: its files and `stage.json`
"""

import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from decant import processes
from decant.fingerprints import code_hashes, fingerprint
from decant.run_record import json_hash, utc_now
from promptify.validation import BadInput
from promptify.whole import delete, put, write_whole

logger = logging.getLogger(__name__)

ROOMS = ("promptify", "foundation", "retrieval", "distill")
"""The packages whose code makes a stage's output. Modules of `decant` that build, teach, measure or
choose are named beside them by the stages whose numbers they make; the others only pass things
on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageRecord:
    """`stage.json`: what a finished stage was made from.

    Attributes:
        name: the stage.
        key: hash of the name and of the four that follow; a stage with another key is another
            stage.
        inputs: the settings it was given, JSON values only.
        uses: key of each stage whose output it read, and its `output`.
        code: hash of each package and module whose code made it.
        contents: hash of what `inputs`, or the recipe, name by where it lies.
        output: hash of what came out of it.
        seconds: how long it took, the last uninterrupted part.
        finished: UTC, ISO 8601.
    """

    name: str
    key: str
    inputs: Mapping[str, Any]
    uses: Mapping[str, str]
    code: Mapping[str, str]
    contents: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    seconds: float = 0.0
    finished: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStage:
    """One line of a plan: a stage, whether it runs, and why."""

    name: str
    runs: bool
    reason: str


class Stages:
    """Runs the stages of one run folder, each only if it has to.

    A stage is finished when its folder bears its name: it is written under another name and
    renamed when whole, so a kill or a full disk leaves the last whole version, or none. Its key
    hashes its name, its inputs, the stages it uses and the code it runs; with the same key it is
    not run again. A stage that is used counts by its key and by what came out of it: one that was
    deleted and made again is another where other bytes came out. A stage of an older version,
    which noted less, is the same where all that it noted is. What it needs to resume (training
    checkpoints) it keeps in a scratch folder, which outlives a kill and is deleted once the stage
    is finished.

    In a launch of several processes the first does all this, and the others follow it from stage to
    stage: they take part in those that are run together, and write nothing.

    Args:
        folder: the run folder; made if it is missing.
        recipe: what the run was asked for, JSON values only. The folder of a run with another
            recipe is refused, so that two runs never mix.
        continuing: accept another recipe, which becomes the folder's: the same folder, trained on.
        swappable: keys of the recipe that may have another value, which becomes the folder's: what
            depends on it runs again, all else is kept.
        as_now: says what `recipe.json` holds as this version would, so that what another version
            left out or called otherwise is no difference; as it stands when left out.
        dry_run: write nothing and run nothing; `run` only adds to the plan.

    Raises:
        ValueError: the folder holds another run or no run at all, or another process is
            writing to it.
        BadInput: a scratch folder in it is a link.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> def count(out, scratch):
        ...     _ = (out / "count.txt").write_text("3")
        >>> for attempt in range(2):
        ...     with Stages(root, recipe={"seed": 1}) as stages:
        ...         made = stages.run("count", count, inputs={"seed": 1})
        ...         print(made.name, [(stage.runs, stage.reason) for stage in stages.plan()])
        count [(True, 'never run')]
        count [(False, 'up to date')]
    """

    def __init__(
        self,
        folder: Path,
        *,
        recipe: Mapping[str, Any],
        continuing: bool = False,
        swappable: Collection[str] = (),
        as_now: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        dry_run: bool = False,
    ) -> None:
        self.folder = folder
        self._dry_run = dry_run
        self._follows = not processes.leads()
        self._keys: dict[str, str] = {}  # of each stage so far, with what came out of it
        self._plan: list[PlannedStage] = []
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._was_there = folder.exists()
        self._was_run = (folder / "recipe.json").exists()
        if self._follows:
            return
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        try:
            self._check_scratch()
            self._check_recipe(recipe, continuing, swappable, as_now)
        except BaseException:
            self._withdraw()
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._withdraw()
        self.close()

    def close(self) -> None:
        """Let other processes write to the folder; the kernel does so too when this one dies."""
        self._lock.release()

    def run(
        self,
        name: str,
        function: Callable[[Path, Path], object],
        *,
        inputs: Mapping[str, Any],
        uses: Sequence[str] = (),
        code: Iterable[str] = ROOMS,
        contents: Mapping[str, str] | None = None,
        output: str = ".",
        together: bool = False,
    ) -> Path:
        """Run a stage unless it is up to date.

        Args:
            name: lower-case letters, digits, `-` and `_`; also its folder's name.
            function: called as `function(out, scratch)`, two folders that exist: `out` is empty
                and becomes the stage's folder when the function returns; `scratch` holds what an
                interrupted call with the same key left in it.
            inputs: all that the output depends on, JSON values only; give files by `fingerprint`.
            uses: names of stages run before, whose output the function reads.
            code: packages or modules whose code makes the output: another version of them is
                another stage. Comments and layout do not count.
            contents: fingerprints of what is named, in `inputs` or in the recipe, by where it lies
                alone; other contents there are another stage.
            output: what of the stage's folder others read, a file or folder in it. Curves and
                times beside it differ each time it is made.
            together: every process of a launch calls the function, with a scratch folder they
                share; what any but the first writes to `out` is lost.

        Returns:
            The stage's folder. In a dry run it may not exist.

        Raises:
            ValueError: the name is not a folder name or was used before, or a stage in `uses`
                was not run before.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or name in self._keys:
            raise ValueError(f"name {name!r}: take a-z, 0-9, - and _, and each name once per run")
        if missing := [stage for stage in uses if stage not in self._keys]:
            raise ValueError(f"uses {missing} of stage {name!r}: run them before it")
        used = {stage: self._keys[stage] for stage in uses}
        record = _make_record(name, inputs, used, code, contents or {})

        out = self.folder / name
        scratch = self.folder / ".scratch" / f"{name}-{record.key}"
        if self._follows:
            self._follow(name, function, scratch, together=together)
            self._keys[name] = _what_is_there(out, record)
            return out
        old = _old_version(out)
        if old.exists() and not out.exists() and not self._dry_run:
            old.rename(out)  # killed between the two renames of `_execute`
        reason = self._why_run(out, scratch, record)
        self._plan.append(PlannedStage(name=name, runs=bool(reason), reason=reason or "up to date"))
        if not self._dry_run:
            logger.info("%s: %s", name, f"runs ({reason})" if reason else "up to date")
            if reason:
                self._drop_scratch(name, but=scratch)
                scratch.mkdir(parents=True, exist_ok=True)
            processes.tell(f"{name} runs", bool(reason))
            if reason:
                self._execute(function, out, scratch, record, output=output)
            processes.tell(f"{name} is done", True)
            self._drop_scratch(name)
        is_planned = reason and self._dry_run
        self._keys[name] = record.key if is_planned else _what_is_there(out, record)
        return out

    def _follow(
        self, name: str, function: Callable[[Path, Path], object], scratch: Path, *, together: bool
    ) -> None:
        """Take part in a stage that another process runs, or wait until it is done."""
        if self._dry_run:
            return
        if processes.hear(f"{name} runs") and together:
            with tempfile.TemporaryDirectory() as out:
                function(Path(out), scratch)
        processes.hear(f"{name} is done")

    def plan(self) -> tuple[PlannedStage, ...]:
        """The stages asked for so far: which run, or would in a dry run, and why."""
        return tuple(self._plan)

    def _withdraw(self) -> None:
        """Take back a run that failed before it made anything: its folder is free for the next."""
        if self._follows:
            return
        has_stage = any(self.folder.glob("*/stage.json"))
        scratch = self.folder / ".scratch"
        if self._dry_run or self._was_run or has_stage or _holds_files(scratch):
            return
        shutil.rmtree(scratch, ignore_errors=True)
        (self.folder / "recipe.json").unlink(missing_ok=True)
        if not self._was_there:
            (self.folder / ".lock").unlink(missing_ok=True)
            with suppress(OSError):  # something of somebody else's is in it by now
                self.folder.rmdir()

    def _take_lock(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"folder {self.folder}: another process is writing to this run; "
                "wait until it ends, or choose another folder"
            ) from None

    def _check_recipe(
        self,
        recipe: Mapping[str, Any],
        continuing: bool,
        swappable: Collection[str],
        as_now: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> None:
        path = self.folder / "recipe.json"
        wanted = json.loads(json.dumps(recipe, allow_nan=False))
        if path.exists():
            found = _read_json(path)
            if as_now is not None:
                found = json.loads(json.dumps(as_now(found)))
            # A key that is not there is no other value of it: a run has it or has it not.
            like = {**found, **{key: wanted[key] for key in swappable if key in found}}
            if like != wanted and not continuing:
                raise ValueError(
                    f"folder {self.folder} holds another run ({_difference(like, wanted)}); "
                    "choose another folder, or delete this one first"
                )
        elif self.folder.exists() and any(
            # Hidden is our lock, and what a kill left of a first write.
            not entry.name.startswith(".")
            for entry in self.folder.iterdir()
        ):
            raise ValueError(
                f"folder {self.folder} is not empty and holds no run; choose an empty or a new one"
            )
        if not self._dry_run:
            write_whole(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")

    def _check_scratch(self) -> None:
        """Refuse scratch that lies elsewhere: what is deleted there may be somebody's own."""
        scratch = self.folder / ".scratch"
        for path in (scratch, *scratch.glob("*")):
            if path.is_symlink():
                raise BadInput(
                    f"{path} is a link to another place, where a run would delete and write; "
                    "remove it."
                )

    def _why_run(self, out: Path, scratch: Path, record: StageRecord) -> str | None:
        """Why a stage must run, or None if it is up to date."""
        interrupted = "interrupted, resumes" if scratch.exists() else None
        if not (out / "stage.json").exists():
            return interrupted or "never run"
        found = _read_json(out / "stage.json")
        if found["key"] in (record.key, _key_as_noted(record, found)):
            return None
        changes = [
            f"{what} changed: {_difference(found.get(part, {}), getattr(record, part))}"
            for what, part in (
                ("inputs", "inputs"),
                ("contents", "contents"),
                ("used stage", "uses"),
                ("code", "code"),
            )
            if found.get(part, {}) != json.loads(json.dumps(getattr(record, part)))
        ]
        return interrupted or "; ".join(changes)

    def _execute(
        self,
        function: Callable[[Path, Path], object],
        out: Path,
        scratch: Path,
        record: StageRecord,
        *,
        output: str,
    ) -> None:
        partial = out.with_name(f".{out.name}.partial")
        old = _old_version(out)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        started = time.monotonic()
        try:
            function(partial, scratch)
            done = {
                **asdict(record),
                "output": fingerprint(partial / output),
                "seconds": round(time.monotonic() - started, 3),
                "finished": utc_now(),
            }
            write_whole(partial / "stage.json", json.dumps(done, indent=2) + "\n")
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        delete(old)
        put(partial, out, aside=old)
        delete(old)

    def _drop_scratch(self, name: str, *, but: Path | None = None) -> None:
        for folder in (self.folder / ".scratch").glob(f"{name}-*"):
            if folder.name.rpartition("-")[0] == name and folder != but:
                shutil.rmtree(folder)


def _holds_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _old_version(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _make_record(
    name: str,
    inputs: Mapping[str, Any],
    uses: Mapping[str, str],
    code: Iterable[str],
    contents: Mapping[str, str],
) -> StageRecord:
    made_from: dict[str, Any] = {
        "inputs": inputs,
        "uses": uses,
        "code": code_hashes(code),
        "contents": contents,
    }
    return StageRecord(name=name, key=_key_of(name, made_from), **made_from)


def _key_of(name: str, made_from: Mapping[str, Any]) -> str:
    said = {what: value for what, value in made_from.items() if value or what != "contents"}
    return json_hash({"name": name, **said})


def _key_as_noted(record: StageRecord, found: Mapping[str, Any]) -> str:
    """The key of a stage by what it noted, where that is less than would be noted of it now.

    A version of before named fewer modules and no contents; what lies elsewhere no more, such as
    the checkpoint of a run that was copied to another machine, is as it was noted.
    """
    code = {name: record.code[name] for name in found["code"] if name in record.code}
    noted = found.get("contents", {})
    contents = record.contents if noted and record.contents else noted
    made_from = {"inputs": record.inputs, "uses": record.uses, "code": code, "contents": contents}
    return _key_of(record.name, made_from)


def _what_is_there(out: Path, record: StageRecord) -> str:
    """What a stage counts as for those that use it: the key that it has, and what came out."""
    path = out / "stage.json"
    found = _read_json(path) if path.exists() else {}
    told = [found.get("key", record.key), found.get("output", "")]
    return ".".join(part for part in told if part)


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first few keys whose values differ: `recipe.seed was 1, now 2`."""
    before, after = _flat(found), _flat(wanted)
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    told = [f"{key} was {_said(before, key)}, now {_said(after, key)}" for key in keys[:3]]
    return ", ".join(told) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their dotted path."""
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            leaves |= _flat(inner, f"{path}{key}.")
        else:
            leaves[f"{path}{key}"] = json.dumps(inner)
    return leaves


def _said(leaves: Mapping[str, str], key: str) -> str:
    return leaves.get(key, "not set")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object; the folder was changed by hand: start anew")
    return content
