"""A run with a policy: data → labels → prompter → two teachers → student → index → evaluation.

Every stage is one of `decant.stages`, so another policy runs again what depends on its rules:
labels, the policy teacher, the student, its index and the evaluation. Data, prompter and click
teacher stay as they are.

The click teacher is the recipe's model, trained on what people did. The policy teacher goes on from
it and learns grades alone. The student is the policy teacher as the recipe's rung keeps it, taught
by both, and serves; or, with a ladder, a rung below it, taught alike.
"""

from dataclasses import asdict, replace
from pathlib import Path

from decant.concluding import Finished, conclude
from decant.evaluation import evaluate
from decant.layout import (
    CLICK_TEACHER,
    DATA,
    EVALUATION,
    INDEX,
    LABELS,
    POLICY_TEACHER,
    PROMPTER,
    RUNG,
    STUDENT,
    RunLayout,
)
from decant.making import finish_model, pruned, untrained
from decant.on_validation import watch
from decant.pipeline import (
    CHOOSING,
    MEASURING,
    Job,
    data_inputs,
    fit_prompter,
    index_catalogue,
    read_data,
    top_inputs,
)
from decant.policy_measure import PolicyMeasure
from decant.pretrained import check_model, model_contents
from decant.processes import leads, training_device
from decant.recipes import Recipe, RungConfig, said_now
from decant.run_data import (
    drop_rungs,
    is_rounded_from,
    load_book,
    load_model,
    load_split,
    load_tasks,
    reading,
)
from decant.run_labels import graded, read_graded, write_labels
from decant.run_record import RunRecord
from decant.stages import ROOMS, Stages
from decant.teaching import Teaching
from distill.anatomy import shape_of
from distill.policy import Grader, PolicyTables
from distill.policy.document import GRADES
from distill.student import SLATES, StudentConfig, fit_student
from distill.teaching import Role, TeacherConfig
from foundation import FitConfig, Foundation
from foundation.asking import Asking
from foundation.checkpoint import weights_hash
from promptify.interactions import Interactions
from promptify.validation import BadInput

TEACHERS: dict[str, Role] = {POLICY_TEACHER: "policy", CLICK_TEACHER: "click"}
# How each is taught is said in this module.
_OF_MODELS = ("promptify", "foundation", "distill", "decant.taught", *CHOOSING)
# Which labels are learned is decided where they are read.
_FROM_LABELS = (*_OF_MODELS, "decant.run_labels")

_KEPT_RETRIEVAL = 0.2
"""Share of the retrieval loss that a policy teacher keeps, for its student to go on from."""


def run_taught(job: Job, teaching: Teaching, *, dry_run: bool = False) -> Finished:
    """Run a job with a policy, or what is left of it.

    Args:
        job: what is run; its folder may hold a run of the same job with another teaching.
        teaching: how policy is taught.
        dry_run: say which stages would run; run none.

    Raises:
        ValueError: the folder holds another run, or the data or the policy cannot be used.
    """
    recipe, layout = job.recipe, RunLayout(job.out)
    told = {"recipe": recipe.to_dict(), "source": dict(job.source), "teaching": teaching.told()}
    record = RunRecord.start({**told, "recipe": recipe.published().to_dict()}, seed=recipe.seed)
    asked = {"questions": teaching.questions_per_row}
    compared = {"slates": teaching.slates_per_row}
    taught = {
        "student": asdict(teaching.student),
        "rung": asdict(recipe.rung),
        "epochs": recipe.fit.epochs,
        "seed": recipe.seed,
        **asked,
        **compared,
    }
    check_model(recipe, layout.folder / CLICK_TEACHER)
    with Stages(
        job.out,
        recipe={**told, "continued": {}},
        swappable=("teaching",),
        as_now=lambda found: said_now(found, job.out / "recipe.json"),
        dry_run=dry_run,
    ) as stages:
        stages.run(
            DATA,
            lambda out, _: read_data(job, out),
            inputs=data_inputs(job),
            code=("promptify",),
        )
        stages.run(
            LABELS,
            lambda out, scratch: _labels(layout, recipe, teaching, out, scratch),
            inputs={**teaching.label_inputs(), "seed": recipe.seed},
            uses=(DATA,),
            code=("promptify", "distill.policy", "decant.run_labels"),
        )
        stages.run(
            PROMPTER,
            lambda out, _: _prompter(layout, recipe, out),
            inputs={"prompter": asdict(recipe.prompter), "grades": list(GRADES)},
            uses=(DATA,),
            code=("promptify",),
            contents=model_contents(recipe, weights=False),
        )
        stages.run(
            CLICK_TEACHER,
            lambda out, scratch: _click_teacher(layout, recipe, teaching, out, scratch),
            inputs={**top_inputs(recipe), **compared},
            uses=(DATA, PROMPTER),
            code=_OF_MODELS,
            contents=model_contents(recipe),
            output="model",
            together=True,
        )
        stages.run(
            POLICY_TEACHER,
            lambda out, scratch: _policy_teacher(layout, recipe, teaching, out, scratch),
            inputs={"fit": asdict(recipe.fit), **asked},
            uses=(DATA, LABELS, PROMPTER, CLICK_TEACHER),
            code=_FROM_LABELS,
            output="model",
            together=True,
        )
        stages.run(
            STUDENT,
            lambda out, scratch: _student(layout, recipe, teaching, out, scratch),
            inputs=taught,
            uses=(DATA, LABELS, PROMPTER, CLICK_TEACHER, POLICY_TEACHER),
            code=_FROM_LABELS,
            output="model",
            together=True,
        )
        served = STUDENT
        if teaching.ladder:
            served = RUNG
            if not dry_run:
                _refuse_rounded(layout)
            stages.run(
                RUNG,
                lambda out, scratch: _rung(layout, recipe, teaching, out, scratch),
                inputs=taught,
                uses=(DATA, LABELS, PROMPTER, CLICK_TEACHER, POLICY_TEACHER, STUDENT),
                code=_FROM_LABELS,
                output="model",
                together=True,
            )
        if leads() and not dry_run:
            # Such as the last student's in int8, which would serve.
            drop_rungs(layout, but=(STUDENT, served))
        stages.run(INDEX, lambda out, _: index_catalogue(layout, out), inputs={}, uses=(served,))
        stages.run(
            EVALUATION,
            lambda out, _: _evaluation(layout, recipe, teaching, record, out),
            inputs={"users": recipe.measured_users, "timed": recipe.timed_requests},
            uses=(DATA, LABELS, CLICK_TEACHER, POLICY_TEACHER, STUDENT, INDEX),
            code=(*ROOMS, *MEASURING, "decant.policy_measure", "decant.run_labels"),
        )
        if dry_run or not leads():
            return Finished(stages=stages.plan(), table="")
        return conclude(layout, recipe, record, stages.plan())


def _refuse_rounded(layout: RunLayout) -> None:
    """Keep a rung of few bits of this student from what would take its place."""
    if not (layout.folder / RUNG).is_dir() or not layout.is_of_ladder(RUNG):
        return
    if is_rounded_from(layout, RUNG, {weights_hash(layout.model(STUDENT))}):
        raise BadInput(
            f"{layout.folder / RUNG} was made by `decant quantise`, and the run's own rung would "
            "take its place; remove it to go on, or leave --ladder out."
        )


def _tables(layout: RunLayout) -> PolicyTables:
    """What a policy may look at; history is of training events alone."""
    with reading(layout.interactions):
        log = Interactions.load(layout.interactions)
    return PolicyTables(log, load_tasks(layout)[0], events=load_split(layout, log).train)


def _labels(
    layout: RunLayout, recipe: Recipe, teaching: Teaching, out: Path, scratch: Path
) -> None:
    tables = _tables(layout)
    targets = load_split(layout, tables.interactions).test
    write_labels(teaching, tables, targets, seed=recipe.seed, out=out, scratch=scratch)


def _prompter(layout: RunLayout, recipe: Recipe, out: Path) -> None:
    first, *others = load_tasks(layout)
    fit_prompter(layout, recipe, (graded(first), *others), out)


def _click_teacher(
    layout: RunLayout, recipe: Recipe, teaching: Teaching, out: Path, scratch: Path
) -> None:
    book, split = load_book(layout)
    teacher = untrained(recipe, book, split).to(training_device())
    result = fit_student(
        teacher,
        (),
        book,
        split,
        config=_padded(recipe.fit),
        asking=Asking(slates_per_row=teaching.slates_per_row),
        student_config=StudentConfig(alpha=0, gamma=0),
        out=scratch,
        validate=lambda: watch(teacher, book, split.valid),
    )
    finish_model(teacher, result, book, split, out, scratch, recipe=recipe)


def _policy_teacher(
    layout: RunLayout, recipe: Recipe, teaching: Teaching, out: Path, scratch: Path
) -> None:
    book, split = load_book(layout)
    pairs, _ = read_graded(layout, book.interactions, teaching)
    teacher = load_model(layout.model(CLICK_TEACHER)).to(training_device())
    # Not validated: the best NDCG@10 is not where grades are known best.
    result = fit_student(
        teacher,
        (),
        book,
        split,
        # The log's own losses would be most of the gradient: grades are what this one learns.
        config=replace(
            _padded(recipe.fit),
            next_item_weight=_KEPT_RETRIEVAL * recipe.fit.next_item_weight,
            text_weight=0.0,
        ),
        asking=Asking(pairs=pairs, questions_per_row=teaching.questions_per_row),
        student_config=StudentConfig(beta=0, gamma=0),
        out=scratch,
    )
    finish_model(teacher, result, book, split, out, scratch, recipe=recipe, calibrated=False)


def _student(
    layout: RunLayout, recipe: Recipe, teaching: Teaching, out: Path, scratch: Path
) -> None:
    above = load_model(layout.model(POLICY_TEACHER)).to(training_device())
    # It learns two things at once, and from a teacher that retrieves less well: as long as a top.
    rung = replace(recipe.rung, fit=replace(recipe.rung.fit, epochs=recipe.fit.epochs))
    _teach_below(above, rung, layout, recipe, teaching, out, scratch)


def _rung(layout: RunLayout, recipe: Recipe, teaching: Teaching, out: Path, scratch: Path) -> None:
    above = load_model(layout.model(STUDENT)).to(training_device())
    there = shape_of(above.decoder)
    half = (
        replace(recipe.rung, num_layers=there.layers // 2, intermediate_size=None)
        if there.layers > 1
        else replace(recipe.rung, num_layers=None, intermediate_size=max(1, there.neurons // 2))
    )
    _teach_below(above, half, layout, recipe, teaching, out, scratch)


def _teach_below(
    above: Foundation,
    rung: RungConfig,
    layout: RunLayout,
    recipe: Recipe,
    teaching: Teaching,
    out: Path,
    scratch: Path,
) -> None:
    """Prune a model and let both teachers teach what is left."""
    book, split = load_book(layout)
    pairs, _ = read_graded(layout, book.interactions, teaching)
    below = pruned(above, rung, book, split, seed=recipe.seed)
    teachers = [
        (
            load_model(layout.model(name)).to(training_device()),
            TeacherConfig(role=role, lessons=SLATES),
        )
        for name, role in TEACHERS.items()
    ]
    result = fit_student(
        below,
        teachers,
        book,
        split,
        config=_padded(rung.fit),
        asking=Asking(
            pairs=pairs,
            questions_per_row=teaching.questions_per_row,
            slates_per_row=teaching.slates_per_row,
        ),
        student_config=teaching.student,
        out=scratch,
    )
    finish_model(below, result, book, split, out, scratch, recipe=recipe)


def _padded(fit: FitConfig) -> FitConfig:
    """The same schedule with padded rows, beside which questions can stand."""
    return replace(fit, packing=False)


def _evaluation(
    layout: RunLayout, recipe: Recipe, teaching: Teaching, record: RunRecord, out: Path
) -> None:
    tables = _tables(layout)
    _, held_out = read_graded(layout, tables.interactions, teaching)
    evaluate(
        layout,
        recipe,
        record,
        out,
        policy=PolicyMeasure(Grader(teaching.policy, tables), held_out),
    )
