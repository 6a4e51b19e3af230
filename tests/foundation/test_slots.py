from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from foundation import FitConfig, FoundationConfig
from foundation.input_vectors import with_own_words
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.plan import TrainingPlan
from foundation.slots import FreshReadings, ItemTable
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.pieces import Pieces
from promptify.splits import Split

CONFIG = FoundationConfig(half_exposure=2.0)


@pytest.fixture
def table() -> ItemTable:
    torch.manual_seed(0)
    table = ItemTable(5, 4, config=CONFIG, slots=True, embedding_std=0.5)
    table.reading_ID.normal_()
    assert table.residual_ID is not None
    torch.nn.init.normal_(table.residual_ID)
    torch.nn.init.normal_(table.project_reading.weight)
    table.exposure_I.copy_(torch.tensor([0.0, 1.0, 2.0, 6.0, 0.0]))
    return table


def residual_share(table: ItemTable) -> torch.Tensor:
    """How much of each item's residual its slot holds."""
    items, bags = torch.arange(5), torch.ones(5, 4)
    text = table.slots_of_text(table.reading_ID, bags)
    assert table.residual_ID is not None
    return (table.slots(items, bags) - text) / table.residual_ID


def test_a_residual_counts_by_exposure(table: ItemTable) -> None:
    share = residual_share(table)
    assert (share[[0, 4]] == 0).all()
    torch.testing.assert_close(share[:, 0], torch.tensor([0, 1 / 3, 1 / 2, 3 / 4, 0]))


def test_a_residual_starts_at_nothing_unless_it_is_all_there_is() -> None:
    def started(*parts: Any) -> torch.Tensor:
        config = FoundationConfig(slot_parts=parts)
        made = ItemTable(5, 4, config=config, slots=True, embedding_std=0.5)
        assert made.residual_ID is not None
        return made.residual_ID

    assert (started("reading", "bag", "residual") == 0).all()
    assert len(started("residual").unique(dim=0)) == 5


def test_an_item_never_trained_on_is_exactly_its_text(table: ItemTable) -> None:
    bags = torch.ones(1, 4)
    text = table.slots_of_text(table.reading_ID[:1], bags)
    assert torch.equal(table.slots(torch.tensor([0]), bags), text)


def test_a_text_table_has_no_residuals() -> None:
    table = ItemTable(5, 4, config=CONFIG, slots=False, embedding_std=0.5)
    table.exposure_I.fill_(100)
    bags = torch.ones(5, 4)
    text = table.slots_of_text(table.reading_ID, bags)
    assert torch.equal(table.slots(torch.arange(5), bags), text)


def test_only_fresh_readings_carry_gradient(table: ItemTable) -> None:
    reading = torch.ones(2, 4, requires_grad=True)
    fresh = FreshReadings(torch.tensor([3, 1]), reading, 5)
    got = table.readings(torch.arange(5), fresh)
    assert torch.equal(got[[0, 2, 4]], table.reading_ID[[0, 2, 4]])
    assert torch.equal(got[[1, 3]], torch.ones(2, 4))
    (got * torch.arange(5.0)[:, None]).sum().backward()
    # Row 0 of the fresh readings is item 3, row 1 is item 1.
    assert reading.grad is not None
    assert reading.grad[:, 0].tolist() == [3.0, 1.0]
    assert not table.reading_ID.requires_grad


def test_take_over_follows_the_pairs(table: ItemTable) -> None:
    new = ItemTable(3, 4, config=CONFIG, slots=True, embedding_std=0.5)
    new.exposure_I.copy_(torch.tensor([10.0, 20.0, 30.0]))
    assert new.residual_ID is not None
    assert table.residual_ID is not None
    untouched = new.residual_ID[1].clone()
    new.take_over(table, new=torch.tensor([2, 0]), old=torch.tensor([1, 3]))
    assert new.exposure_I.tolist() == [16.0, 20.0, 31.0]
    assert torch.equal(new.residual_ID[2], table.residual_ID[1])
    assert torch.equal(new.residual_ID[0], table.residual_ID[3])
    assert torch.equal(new.residual_ID[1], untouched)
    assert torch.equal(new.project_reading.weight, table.project_reading.weight)
    assert torch.equal(new.project_bag.weight, table.project_bag.weight)


def over(market: Interactions, item_ids: list[str]) -> Interactions:
    """The market's users and schema over other items; one event for each of the first two."""
    kinds = np.array(market.items["kind"][:])
    text = market.items.with_format(None).to_dict()
    rows = np.resize(np.flatnonzero(kinds == "job"), len(item_ids))
    items: dict[str, Any] = {name: [values[r] for r in rows] for name, values in text.items()}
    users = market.users.to_dict()
    return Interactions.from_tables(
        users=pa.table(users),
        items=pa.table({**items, "item_id": item_ids}),
        events=pa.table(
            {
                "user_id": [users["user_id"][0]] * 2,
                "item_id": item_ids[:2],
                "action": ["apply", "view"],
                "timestamp": [1, 2],
                "surface": ["jobs"] * 2,
            }
        ),
        schema=market.schema,
        actions=market.actions,
        surfaces=market.surfaces,
    )


def test_with_catalogue_residuals_and_exposure_follow_ids(
    make: Any, books: dict[str, PromptBook], market: Interactions
) -> None:
    old = make("slot")
    exposed = int(old.items.exposure_I[:50].argmax())
    ids = ["new-0", market.item_ids[exposed], "new-1"]
    log = over(market, ids)
    new = old.with_catalogue(PromptBook(old.prompter, log), np.ones(log.num_events, bool))
    assert new.item_ids == tuple(log.item_ids)
    row = new.item_ids.index(market.item_ids[exposed])
    was = float(old.items.exposure_I[exposed])
    assert was > 0
    counted = np.bincount(log.event_item, minlength=3)
    for item in range(3):
        wanted = counted[item] + (was if item == row else 0)
        assert float(new.items.exposure_I[item]) == wanted
    assert torch.equal(new.items.residual_ID[row], old.items.residual_ID[exposed])
    assert torch.equal(new.person_head.weight, old.person_head.weight)
    assert torch.equal(new.item_head.weight, old.item_head.weight)
    assert np.isfinite(new.embed_items()).all()


def test_with_catalogue_shares_no_item(make: Any, market: Interactions) -> None:
    old = make("slot")
    log = over(market, ["new-0", "new-1", "new-2"])
    book, train = PromptBook(old.prompter, log), np.ones(log.num_events, bool)
    new = old.with_catalogue(book, train)
    assert sorted(new.items.exposure_I.tolist()) == [0, 1, 1]
    again = old.with_catalogue(book, train)
    assert torch.equal(new.items.residual_ID, again.items.residual_ID)


@pytest.mark.parametrize("sampled", [False, True])
def test_slots_shared_in_a_step_are_those_made_apart(
    make: Any, books: dict[str, PromptBook], split: Split, sampled: bool
) -> None:
    foundation = make("slot")
    plan = TrainingPlan(
        books["slot"],
        split.train,
        FitConfig(positions_per_batch=800, full_softmax_items=10 if sampled else 1000),
    )
    inputs = {name: plan[0][name] for name in READ_INPUTS}
    assert (len(inputs["negatives"]) > 0) == sampled
    # Dropout is off: the fresh readings are then the table's.
    reading = read_step(foundation, **inputs)
    hidden_PD = foundation.hidden(inputs["ids_RT"]).flatten(0, 1)
    torch.testing.assert_close(
        reading.person_KV, foundation.person_head(hidden_PD[inputs["next_position_K"]])
    )
    items = torch.arange(foundation.num_items)
    if sampled:
        items = torch.cat([inputs["next_item_K"], inputs["negatives"]]).unique()
    apart = foundation.item_vectors(foundation.slots(items))
    torch.testing.assert_close(reading.item_CV, apart)
    # Its gradient reaches a residual from the rows and from the softmax.
    residual = foundation.items.residual_ID
    [together] = torch.autograd.grad(
        reading.person_KV.sum() + reading.item_CV.square().sum(), residual
    )
    [of_rows] = torch.autograd.grad(
        foundation.person_head(hidden_PD[inputs["next_position_K"]]).sum(), residual
    )
    [of_items] = torch.autograd.grad(apart.square().sum(), residual)
    torch.testing.assert_close(together, of_rows + of_items, rtol=1e-4, atol=1e-5)


def test_a_dropped_residual_is_dropped_whole_and_in_training_alone(table: ItemTable) -> None:
    table.config = FoundationConfig(half_exposure=2.0, residual_dropout=0.5)
    full = torch.tensor([0, 1 / 3, 1 / 2, 3 / 4, 0])
    torch.testing.assert_close(residual_share(table.eval())[:, 0], full)
    table.train()
    torch.manual_seed(0)
    drawn = torch.stack([residual_share(table) for _ in range(400)])
    # All of an item's coordinates or none, and what stays is not scaled up: at use, all stays.
    torch.testing.assert_close(drawn, drawn[..., :1].expand_as(drawn), rtol=1e-3, atol=1e-4)
    kept = drawn[..., 0] > 1e-3
    torch.testing.assert_close(drawn[..., 0][kept], full.expand(400, 5)[kept])
    assert kept[:, [0, 4]].sum() == 0
    assert 0.4 < kept[:, 1:4].float().mean() < 0.6
    assert not torch.equal(kept[:, 1], kept[:, 2])


@pytest.mark.parametrize("part", ["reading", "bag", "residual"])
def test_a_slot_is_the_sum_of_its_parts(table: ItemTable, part: Any) -> None:
    items, bags = torch.arange(5), torch.rand(5, 4)
    one = ItemTable(
        5,
        4,
        config=FoundationConfig(half_exposure=2.0, slot_parts=(part,)),
        slots=True,
        embedding_std=0.5,
    )
    assert (one.residual_ID is not None) == (part == "residual")
    one.load_state_dict(table.state_dict(), strict=False)
    others = ItemTable(
        5,
        4,
        config=FoundationConfig(
            half_exposure=2.0,
            slot_parts=tuple(p for p in CONFIG.slot_parts if p != part),
        ),
        slots=True,
        embedding_std=0.5,
    )
    others.load_state_dict(table.state_dict(), strict=False)
    whole = table.slots(items, bags)
    torch.testing.assert_close(one.slots(items, bags) + others.slots(items, bags), whole)
    assert one.slots(items, bags).abs().sum() > 0


@pytest.mark.parametrize("sampled", [False, True])
def test_items_never_trained_on_are_no_negatives(
    make: Any, books: dict[str, PromptBook], split: Split, sampled: bool
) -> None:
    foundation = make("slot", dropout=0.0)
    config = FitConfig(positions_per_batch=800, full_softmax_items=10 if sampled else 1000)
    batch = TrainingPlan(books["slot"], split.train, config)[0]
    reading = read_step(foundation, **{name: batch[name] for name in READ_INPUTS})
    wanted = batch["next_item_K"]
    exposure = foundation.items.exposure_I
    row = next(i for i in range(foundation.num_items) if i not in set(wanted.tolist()))

    def gradient_of_items() -> torch.Tensor:
        losses = loss_sums(foundation, reading, **{name: batch[name] for name in LOSS_INPUTS})
        [of_items] = torch.autograd.grad(losses["next_item"], reading.item_CV, retain_graph=True)
        assert torch.isfinite(losses["next_item"])
        return of_items

    items = torch.arange(foundation.num_items)
    if sampled:
        items = torch.cat([wanted, batch["negatives"]]).unique()
        row = next(i for i in items.tolist() if i not in set(wanted.tolist()))
    at = int((items == row).nonzero())
    exposure[row] = 3
    assert gradient_of_items()[at].abs().sum() > 0
    exposure[row] = 0
    assert gradient_of_items()[at].abs().sum() == 0
    # A target is in the softmax whatever the table says of it.
    exposure[wanted[0]] = 0
    assert gradient_of_items()[items == wanted[0]].abs().sum() > 0


def noisy(foundation: Any, probability: float) -> Any:
    foundation.settings = replace(foundation.settings, instruction_noise=probability)
    return foundation


def test_words_of_our_prompts_are_mixed_into_some_texts_in_training_alone(make: Any) -> None:
    foundation = noisy(make("slot", dropout=0.0), 0.5)
    items = torch.arange(foundation.num_items)
    with torch.no_grad():
        told = foundation.slots(items)
        torch.manual_seed(0)
        with torch.enable_grad():
            trained = foundation.train().slots(items).detach()
        assert torch.equal(foundation.slots(items), told)  # Who only asks is told no such words.
        is_mixed = (trained - told).abs().sum(1) > 1e-6
        assert 0.25 < float(is_mixed.float().mean()) < 0.75
        # What is mixed in moves a bag toward an instruction's or a label's, and not past it.
        prompter = foundation.prompter
        said = Pieces.joined(
            [prompter.instruction_pieces, Pieces.of([[label] for label in prompter.label_ids])]
        )
        own, ours = foundation.bags(foundation.item_pieces), foundation.bags(said)
        moved = torch.cat(
            [with_own_words(foundation, own, foundation.item_pieces) - own for _ in range(20)]
        )
        own = own.repeat(20, 1)
        is_moved = moved.norm(dim=1) > 1e-6
        # Toward which: the direction of a move is that of what was mixed in.
        toward = torch.stack(
            [torch.cosine_similarity(moved, one - own, dim=1) for one in ours], dim=1
        )
        best, which = toward[is_moved].max(1)
        assert (best > 0.999).all()
        assert set(which.tolist()) == set(range(len(ours)))
        away = (moved + own - ours[toward.argmax(1)]).norm(dim=1)
        assert (away < (own - ours[toward.argmax(1)]).norm(dim=1))[is_moved].all()
        torch.testing.assert_close(foundation.eval().slots(items), told)


def test_without_noise_training_reads_texts_as_they_are(make: Any) -> None:
    foundation = noisy(make("slot", dropout=0.0), 0.0)
    items = torch.arange(foundation.num_items)
    torch.testing.assert_close(foundation.train().slots(items), foundation.eval().slots(items))


@pytest.mark.parametrize(
    "parts", [(), ("reading", "reading"), ("words",)], ids=["none", "twice", "unknown"]
)
def test_parts_that_make_no_slot_are_refused(parts: Any) -> None:
    with pytest.raises(ValueError, match="slot_parts"):
        FoundationConfig(slot_parts=parts)
