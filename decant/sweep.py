"""A grid of settings: each combination a run of its own, all ranked by what validation says.

runs/NAME/          the run folder of a combination, as `decant run` makes it
validation/NAME.*   what its model said of the validation targets, target by target
ledger.csv          result rows: each combination and seed, and seeds of the same settings together
ledger.json         what became of each combination: its settings, where it lies, done or why not

A run resumes itself and keeps what it has, so a sweep only ever asks each of its runs to finish.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from decant.grid import Combination, read_grid
from decant.layout import FOUNDATION, RunLayout
from decant.measure import Asked
from decant.pipeline import Job, run
from decant.processes import are_many, leads
from decant.results import ResultRow, write_csv
from decant.run_data import load_book, load_model, sample_targets
from decant.run_record import git_commit, hardware, json_hash, utc_now, without_paths
from decant.sourcing import Source
from foundation.checkpoint import weights_hash
from foundation.evaluation import Interval, auc, bootstrap_interval, ndcg, paired_bootstrap
from foundation.predictions import predict_targets
from promptify.whole import whole_file, write_whole

logger = logging.getLogger(__name__)

NUM_VALIDATION_REQUESTS = 2000
"""Validation requests that combinations are ranked on, at most; the same for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Validated:
    """What a model is worth on the validation targets.

    Attributes:
        event: int64 [m], each target's event: what tells that two models were asked the same.
        user: int64 [m], whose it is.
        ndcg: float64 [m], NDCG@10 of it.
        auc: of the action readout; None where all actions were alike.
        params: of the model's body.
        seconds: that its training took.
    """

    event: NDArray[np.int64]
    user: NDArray[np.int64]
    ndcg: NDArray[np.float64]
    auc: float | None
    params: int
    seconds: float


@dataclass(kw_only=True, slots=True)
class Sweep:
    """Combinations, and what became of them. Made by `of`.

    Attributes:
        source: the data.
        combinations: in the order of the grid.
        out: the folder.
        model: what is ranked, `foundation` or `rung-1`.
        failed: why a combination has no result, by its name.
    """

    source: Source
    combinations: Sequence[Combination]
    out: Path
    model: str
    failed: dict[str, str] = field(default_factory=dict)
    _done: dict[str, Validated] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, grid: Sequence[str], *, out: Path, model: str = FOUNDATION) -> "Sweep":
        """Read a sweep; every combination is checked before anything is trained.

        Args:
            path: the YAML file.
            grid: `key=v1,v2`, a dotted field of the recipe each.
            out: the folder.
            model: what is ranked.

        Raises:
            BadInput: the file or the grid names a field that is not there or a value that it
                cannot have, or asks for the same training twice.
        """
        source, combinations = read_grid(path, grid)
        return cls(source=source, combinations=combinations, out=out, model=model)

    def run(self) -> None:
        """Finish every combination, validate it, and write the ledger after each."""
        (self.out / "validation").mkdir(parents=True, exist_ok=True)
        described = self.source.described()
        for place, one in enumerate(self.combinations, start=1):
            logger.info("%d of %d: %s", place, len(self.combinations), one.name)
            folder = self.out / "runs" / one.name
            folder.parent.mkdir(exist_ok=True)
            job = Job(recipe=one.recipe, load=self.source.load, source=described, out=folder)
            try:
                run(job, until=self.model)
            except Exception as error:
                # What cannot be trained is a result too: the others do not wait for it.
                is_told = isinstance(error, ValueError)
                if are_many() and not is_told:
                    raise  # Of one process perhaps: the others would wait for it, or it for them.
                logger.error("%s: %s", one.name, error, exc_info=not is_told)
                self.failed[one.name] = str(error) or type(error).__name__
            else:
                if leads():
                    self._done[one.name] = self._validated(one, folder)
            if leads():
                self._write()

    def table(self) -> str:
        """Combinations from the best down, seeds of the same settings in one line."""
        header = ("NDCG@10", "95 % interval", "behind the best", "AUC", "minutes", "seeds")
        lines = [f"{header[0]:>8}{header[1]:>18}{header[2]:>26}{header[3]:>7}{header[4]:>9}"
                 f"{header[5]:>7}  settings"]  # fmt: skip
        for words, found, mean, gap in self._ranked():
            aucs = [one.auc for one in found if one.auc is not None]
            behind = "–" if gap is None else f"{gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}]"
            minutes = sum(one.seconds for one in found) / 60
            lines.append(
                f"{mean.value:8.4f}{f'{mean.low:.4f} to {mean.high:.4f}':>18}{behind:>26}"
                f"{f'{np.mean(aucs):.4f}' if aucs else '–':>7}{minutes:9.1f}{len(found):7}  {words}"
            )
        lines += [f"failed: {name}: {why}" for name, why in self.failed.items()]
        return "\n".join(lines)

    def _ranked(self) -> list[tuple[str, list[Validated], Interval, Interval | None]]:
        """Settings in words, their seeds, NDCG@10, and how far behind the best, the best first.

        The last is None for the best itself, and where other targets were asked.
        """
        groups: dict[str, list[Validated]] = {}
        for one in self.combinations:
            if one.name in self._done:
                groups.setdefault(one.words, []).append(self._done[one.name])
        means = {words: np.mean([one.ndcg for one in of], axis=0) for words, of in groups.items()}
        order = sorted(groups, key=lambda words: -float(means[words].mean()))
        ranked: list[tuple[str, list[Validated], Interval, Interval | None]] = []
        for words in order:
            found, best = groups[words], groups[order[0]]
            gap = None
            if words != order[0] and np.array_equal(found[0].event, best[0].event):
                gap = paired_bootstrap(
                    means[words], means[order[0]], found[0].user, statistic="difference"
                )
            ranked.append((words, found, bootstrap_interval(means[words], found[0].user), gap))
        return ranked

    def _validated(self, one: Combination, folder: Path) -> Validated:
        """What the finished model is worth; kept, and asked again only of other weights."""
        layout = RunLayout(folder)
        weights = weights_hash(layout.model(self.model))
        kept = self.out / "validation" / f"{one.name}-{self.model}.safetensors"
        note = kept.with_suffix(".json")
        if not note.exists() or json.loads(note.read_text("utf-8"))["weights"] != weights:
            book, split = load_book(layout)
            some = sample_targets(split.valid, NUM_VALIDATION_REQUESTS)
            asked, foundation = Asked(book, some), load_model(layout.model(self.model))
            answers = asked.of(predict_targets(foundation, book, some))
            assert answers.rank is not None
            assert answers.action_probability is not None
            both = len(np.unique(answers.action_positive)) == 2
            arrays: dict[str, NDArray[Any]] = {
                "event": asked.wanted.event,
                "user": answers.user,
                "ndcg": ndcg(answers.rank, 10),
            }
            with whole_file(kept) as partial:
                save_file(arrays, partial)
            history = json.loads((folder / self.model / "history.json").read_text("utf-8"))
            content = {
                "weights": weights,
                "auc": auc(answers.action_positive, answers.action_probability) if both else None,
                "params": foundation.num_parameters(),
                "seconds": history["seconds"],
            }
            write_whole(note, json.dumps(content) + "\n")
        content = json.loads(note.read_text("utf-8"))
        said = load_file(kept)
        return Validated(
            event=said["event"],
            user=said["user"],
            ndcg=said["ndcg"],
            auc=content["auc"],
            params=content["params"],
            seconds=content["seconds"],
        )

    def _write(self) -> None:
        state = [
            {
                "name": one.name,
                "settings": one.told,
                "seed": one.recipe.seed,
                "status": "done" if one.name in self._done else "failed"
                if one.name in self.failed else "not yet",
                "why": without_paths(self.failed[one.name]) if one.name in self.failed else None,
            }
            for one in self.combinations
        ]  # fmt: skip
        write_whole(self.out / "ledger.json", json.dumps(state, indent=2) + "\n")
        rows = []
        for one in self.combinations:
            if one.name in self._done:
                found = self._done[one.name]
                value = bootstrap_interval(found.ndcg, found.user)
                rows.append(self._row(one, "ndcg@10", value, found, one.recipe.seed))
                if found.auc is not None:
                    alone = Interval(value=found.auc, low=-np.inf, high=np.inf)
                    rows.append(self._row(one, "auc", alone, found, one.recipe.seed))
        first = {one.words: one for one in reversed(self.combinations) if one.name in self._done}
        for words, of_seeds, mean, gap in self._ranked():
            one = first[words]
            seed = "mean" if len(of_seeds) > 1 else one.recipe.seed
            if len(of_seeds) > 1:
                rows.append(self._row(one, "ndcg@10", mean, of_seeds[0], seed))
            if gap is not None:
                rows.append(self._row(one, "ndcg@10_behind_best", gap, of_seeds[0], seed))
        write_csv(self.out / "ledger.csv", rows)

    def _row(
        self, one: Combination, metric: str, value: Interval, found: Validated, seed: int | str
    ) -> ResultRow:
        has_ends = bool(np.isfinite([value.low, value.high]).all())
        return ResultRow(
            benchmark="sweep",
            task=one.recipe.name,
            split="validation",
            model=f"{self.model}, {one.words}",
            params=found.params,
            context_tokens=one.recipe.prompter.max_prompt_tokens,
            metric=metric,
            value=value.value,
            ci_low=value.low if has_ends else None,
            ci_high=value.high if has_ends else None,
            n=len(found.ndcg),
            seconds=round(found.seconds, 1),
            hardware=hardware(),
            commit=git_commit(),
            config_hash=json_hash(one.recipe.to_dict()),
            seed=seed,  # type: ignore[arg-type]
            timestamp=utc_now(),
        )
