"""Beds of the ladder's benchmark: which data, which top, how far down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from decant import recipes
from decant.recipes import Recipe
from foundation import FitConfig
from foundation.config import SlotPart
from promptify.prompter import PrompterConfig
from promptify.sources import SourceData

BEDS = ("job_market", "job_market_text", "ml1m")
"""Jobs in slots, jobs in text; films in slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bed:
    """A data set, the top that is trained on it, and how far down it goes.

    Args:
        name: the `task` of the rows.
        recipe: of the top.
        load: makes the data; the same for every seed.
        source: what it depends on, JSON values.
        changes: fields of `LadderConfig`.
        timed_requests: that the gate measures latency on.
    """

    name: str
    recipe: Recipe
    load: Callable[[], SourceData]
    source: Mapping[str, Any]
    changes: Mapping[str, Any]
    timed_requests: int = 60

    def changes_for(self, seed: int) -> dict[str, Any]:
        """`changes`; a schedule among them reads the data in an order of the seed's own."""
        changes = dict(self.changes)
        if "fit" in changes:
            changes["fit"] = replace(changes["fit"], seed=seed)
        return changes


def bed_of(
    name: str,
    *,
    data: Path | None,
    smoke: bool,
    minutes: float | None,
    to: float | None,
    epochs: float | None = None,
    held_out: int = 10,
) -> Bed:
    """A bed by name.

    Args:
        name: one of `BEDS`.
        data: the zip of MovieLens-1M.
        smoke: a top of seconds and a ladder of two rungs.
        minutes: of distillation a rung, in place of the bed's epochs.
        to: share of the body at which the ladder ends.
        epochs: of the top, in place of the bed's, which suit a core; as many as it takes, since
            its rungs follow it alone then.
        held_out: slates of each person of MovieLens, half of them test.

    Raises:
        ValueError: MovieLens is not where it should be.
    """
    from promptify.sources.job_market import job_market

    # No row is ranked by `w`.
    few = 200
    changes: dict[str, Any] = {"to": to or 0.1, "minutes_per_rung": minutes}
    # Slots without readings, since a reading of the catalogue takes as long as a rung.
    parts: tuple[SlotPart, ...] = ("bag", "residual")
    if name == "ml1m":
        from promptify.sources.movielens import ml_1m

        zipped = data or Path("../shared/data/ml-1m.zip")
        recipe = replace(
            recipes.ml1m(), size="medium", held_out_slates=held_out, test_slates=held_out // 2
        )
        fit = replace(
            recipe.fit,
            epochs=epochs or 1.5,
            # All films are read for every step, each at one position.
            positions_per_batch=4096,
            reread_items=0,
            text_positions=512,
            evaluate_steps=0,
            bf16=True,
        )
        recipe = replace(
            recipe,
            foundation=replace(recipe.foundation, slot_parts=parts),
            fitting_requests=few,
            fit=fit,
            rung=replace(recipe.rung, fit=replace(fit, epochs=0.07, learning_rate=5e-4)),
        )
        # A loss of NDCG@10 has a standard error of .9 % on so many, where 1 % is let through; of
        # 3,000 the first rung alone takes two cores over 25 minutes.
        changes["gate_people"] = 1000
        if epochs is None:
            # In so few the top has not learned what there is to learn (decision 61).
            taught = replace(fit, epochs=0.09, learning_rate=5e-4, table_rate=1.0)
            changes |= {"data_weight": 1.0, "fit": taught}
        return Bed(name=name, recipe=recipe, load=lambda: ml_1m(zipped), source={}, changes=changes)
    recipe = replace(recipes.demo(), name=name, size="medium", fitting_requests=few)
    is_slots = name != "job_market_text"
    fit = replace(
        recipe.fit,
        positions_per_batch=2048,
        text_positions=512,
        evaluate_steps=0,
        bf16=True,
    )
    if not is_slots:
        # Many people of few events each: after more tokens of fewer and longer histories a top of
        # this size finds nobody's jobs.
        sizes = {
            "num_members": 12_000,
            "num_jobs": 300,
            "num_impressions": 144_000,
            "num_searched": 6840,
        }
        prompter = PrompterConfig(
            form="text", max_prompt_tokens=512, max_item_tokens=24, vocab_size=2048
        )
        fit = replace(fit, epochs=epochs or 0.5)
        recipe = replace(
            recipe,
            held_out_slates=6,
            test_slates=3,
            held_out_people=2000,
            prompter=prompter,
            # Two hundred candidates of a request are five thousand positions.
            fitting_requests=60,
            fit=fit,
            rung=replace(recipe.rung, fit=replace(fit, epochs=0.025, learning_rate=5e-4)),
        )
        # At a tenth three layers and all heads were left, and 4.6 times the speed (decision 64).
        changes["to"] = to or 0.08
    else:
        # Few jobs, so that more targets are ranked among the first ten and less is left to chance.
        sizes = {
            "num_members": 1400,
            "num_jobs": 300,
            "num_impressions": 140_000,
            "num_searched": 800,
        }
        fit = replace(fit, epochs=epochs or 2.0, reread_items=0)
        recipe = replace(
            recipe,
            held_out_slates=20,
            test_slates=10,
            held_out_people=700,
            prompter=replace(recipe.prompter, max_prompt_tokens=768, vocab_size=4096),
            foundation=replace(recipe.foundation, slot_parts=parts),
            fit=fit,
            rung=replace(recipe.rung, fit=replace(fit, epochs=0.22, learning_rate=5e-4)),
        )
    # One in text is as many positions as thirty in slots.
    timed = 60 if is_slots else 20
    if smoke:
        sizes = {"num_members": 120, "num_jobs": 60, "num_impressions": 1500}
        fit = FitConfig(epochs=0.3, positions_per_batch=4096, reread_items=8, text_positions=256)
        recipe = replace(
            recipe,
            size="tiny",
            prompter=replace(recipe.prompter, vocab_size=512),
            foundation=replace(recipe.foundation, vector_dim=16),
            fit=fit,
            rung=replace(recipe.rung, fit=fit),
            fitting_requests=10,
        )
        timed = 3
        changes = {
            "to": 0.6,
            "minutes_per_rung": None,
            "max_loss": 0.95,
            "max_loss_vs_top": 0.95,
            "max_miscalibration": 1.0,
            "max_slowdown": 9.0,
            "calibration_rows": 20,
        }
    return Bed(
        name=name,
        recipe=recipe,
        load=lambda: _looked_at(job_market(**sizes)),
        source=sizes,
        changes=changes,
        timed_requests=timed,
    )


def _looked_at(data: SourceData) -> SourceData:
    """The same data; jobs that were looked at count as good ones, four for each applied to."""
    jobs, *others = data.tasks
    return replace(data, tasks=(replace(jobs, positive=("apply", "view")), *others))
