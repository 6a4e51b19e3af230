"""The one model: any Hugging Face decoder with an action, a person and an item readout.

    foundation = Foundation.create(prompter, book, train, size="small")
    foundation.fit(book, split, out=Path("run"))
    vectors = foundation.embed_users(book.prefixes(split.test))

Legend: R rows, T positions, D hidden, V vector width, I items of the catalogue, L label words,
G grade words.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from foundation import embedding, input_vectors, one_position
from foundation.attention import check_decoder
from foundation.batches import by_length, pad_pieces
from foundation.calibration import Calibration
from foundation.config import FoundationConfig
from foundation.losses import action_log_probs, log_policy_of
from foundation.norms import fuse_norms
from foundation.objective import LOSS_INPUTS, READ_INPUTS, loss_sums, read_step
from foundation.positions import reaches, scale_positions
from foundation.slots import FreshReadings, ItemTable, StepSlots
from foundation.text_encoder import TextEncoder
from foundation.told_items import ItemReadings, read_items, told_slots, with_items
from promptify.pieces import Pieces
from promptify.prompter import Prompter
from promptify.rows import Rows
from promptify.task import Task

if TYPE_CHECKING:
    from foundation.asking import Asking
    from foundation.scoring import PrefixReading, Scores
    from foundation.training import FitConfig, FitResult
    from promptify.assembly import PromptBook
    from promptify.splits import Split


class Foundation(nn.Module):
    """A decoder, its prompter, its catalogue and three readouts.

    Build one with `create` (new) or `from_pretrained` (saved).

    Args:
        decoder: any causal LM of transformers with `model` inside and an output head.
        prompter: puts people and items in words; its label words and slots are what is read here.
        config: widths and weights.
        item_ids: the catalogue's ids, I of them; slot `i` is the i-th.
        item_pieces: the catalogue's texts, each ending with the arrow.

    Raises:
        BadInput: the decoder is of a family whose attention is not known here.
    """

    allowed_AL: Tensor
    allowed_AG: Tensor
    grade_value_AG: Tensor
    is_positive_AL: Tensor
    label_ids_L: Tensor
    grade_ids_G: Tensor
    new_item_shift_V: Tensor

    def __init__(
        self,
        decoder: Any,
        *,
        prompter: Prompter,
        config: FoundationConfig,
        item_ids: Sequence[str],
        item_pieces: Pieces,
    ) -> None:
        super().__init__()
        check_decoder(decoder)
        for name in ("rank_weight", "calibration"):
            if len(getattr(config, name)) not in (0, len(prompter.tasks)):
                raise ValueError(
                    f"FoundationConfig.{name} is for {len(getattr(config, name))} tasks, but the "
                    f"prompter has {len(prompter.tasks)}; give one per task, or none."
                )
        fuse_norms(decoder)
        one_position.attend_with(decoder)
        self.decoder = decoder
        self.prompter = prompter
        self.settings = config
        if not reaches(decoder, prompter.config.max_prompt_tokens):
            scale_positions(decoder, prompt_tokens=prompter.config.max_prompt_tokens)
        self.item_ids = tuple(item_ids)
        self.item_pieces = item_pieces
        hidden = decoder.config.hidden_size
        self.person_head = nn.Linear(hidden, config.vector_dim)
        self.item_head = nn.Linear(hidden, config.vector_dim)
        # Both heads start as the same rotation: before anything is learned, a person is near the
        # items that their hidden state resembles, which is where learning should begin. The gain
        # makes the inner product of two equal hidden states √D, as in attention.
        nn.init.orthogonal_(self.person_head.weight, gain=hidden**-0.25)
        self.item_head.weight.data.copy_(self.person_head.weight.data)
        for head in (self.person_head, self.item_head):
            nn.init.zeros_(head.bias)
        self.items = ItemTable(
            len(self.item_ids),
            hidden,
            config=config,
            slots=self.uses_slots,
            embedding_std=decoder.config.initializer_range * input_vectors.embedding_scale(decoder),
            encoder_dim=config.text_encoder.dim if config.text_encoder else 0,
        )
        # In a list, so that a text encoder's weights are no part of what is trained and saved.
        self._text_encoder: list[TextEncoder] = []
        # What is added to the vector of an item that was never trained on; see `new_items`.
        self.register_buffer("new_item_shift_V", torch.zeros(config.vector_dim))
        self.input_dropout = nn.Dropout(config.dropout)
        for name, values in _read_tables(prompter).items():
            self.register_buffer(name, values, persistent=False)
        self.register_state_dict_post_hook(_drop_tied_head)  # type: ignore[no-untyped-call]

    @classmethod
    def create(
        cls,
        prompter: Prompter,
        book: "PromptBook",
        train: NDArray[np.bool_],
        *,
        size: str | None = None,
        model: str | Path | None = None,
        text_encoder: str | Path | None = None,
        config: FoundationConfig | None = None,
        seed: int = 0,
    ) -> Self:
        """A new foundation: a decoder built from a size, or a checkpoint by folder or hub name.

        Args:
            prompter: fitted on the training events.
            book: the catalogue's pieces.
            train: bool [E], the training events; an item's residual counts by how often it is in
                them.
            size: a name in `foundation.sizes.SHAPES`, for a decoder with random weights.
            model: a folder or hub name of a checkpoint, for a pretrained one.
            text_encoder: folder of a pretrained text encoder whose vectors take part in slots. It
                is read once for the catalogue, and again where an item comes from outside it.
            config: widths and weights.
            seed: of the random weights.

        Raises:
            ValueError: neither or both of `size` and `model` are given, or `model` cannot be
                loaded.
        """
        from foundation.building import create

        return create(
            cls,
            prompter,
            book,
            train,
            size=size,
            model=model,
            text_encoder=text_encoder,
            config=config,
            seed=seed,
        )

    def with_catalogue(
        self, book: "PromptBook", train: NDArray[np.bool_], *, seed: int = 0
    ) -> "Foundation":
        """The same model over another catalogue, to be trained on.

        Residuals and exposure follow their item's id; a new item has its text alone. A bias for new
        items (`foundation.new_items`) stays behind: fit one when it is trained. The decoder is
        shared, not copied: train one of the two.

        Args:
            book: the new catalogue's pieces, made with this model's prompter.
            train: bool [E], the new training events; exposure adds up over old and new.
            seed: of the residuals that new items start with.
        """
        from foundation.building import with_catalogue

        return with_catalogue(self, book, train, seed=seed)

    def read_items(self, pieces: Pieces) -> ItemReadings:
        """Read items given by their text: what `embed_items` and `with_items` need of them.

        Args:
            pieces: item texts, each ending with the arrow.

        Raises:
            BadInput: the text encoder is needed and gone, or another stands in its folder.
        """
        return read_items(self, pieces)

    def with_items(self, item_ids: Sequence[str], told: ItemReadings) -> "Foundation":
        """The same model, to be asked, with more items behind its own, or some told anew.

        Nothing is read again and nothing of this model changes, so that others may go on asking
        it: the tables of items are new, all other weights are shared. An id that is known keeps its
        row, its residual and its exposure; a new one has its text alone.

        Args:
            item_ids: N ids, no repeats; those not known yet get the next rows, in this order.
            told: their texts, read by this model.

        Raises:
            BadInput: an id stands twice, or there are not as many texts as ids.
        """
        return with_items(self, item_ids, told)

    def with_tasks(self, tasks: Sequence[Task]) -> "Foundation":
        """The same model with more tasks, which it was never trained on: it has their instruction.

        Prompts come from the new model's prompter. The decoder is shared, not copied.

        Args:
            tasks: new ones; their labels must be single tokens of the model's tokenizer.

        Raises:
            BadInput: a task has the name of another, or a label is not a single token.
        """
        from foundation.building import with_tasks

        return with_tasks(self, tasks)

    def set_prompt_budget(self, max_prompt_tokens: int) -> None:
        """Read longer prompts from now on, or shorter ones; made by the new `prompter`.

        Beyond the trained length the positions are scaled, which is said, but for a decoder that
        attends within a window in every layer; see `foundation.positions`.

        Args:
            max_prompt_tokens: longest prompt.

        Raises:
            BadInput: the longest pieces leave no room in such a prompt, or the decoder's positions
                cannot be scaled.
        """
        prompter = self.prompter.with_budget(max_prompt_tokens)
        scale_positions(self.decoder, prompt_tokens=max_prompt_tokens)
        self.prompter = prompter

    # What the model is.

    @property
    def uses_slots(self) -> bool:
        """Whether prompts hold slots rather than the text of items."""
        return self.prompter.config.form == "slot"

    @property
    def num_items(self) -> int:
        """Items of the catalogue, I."""
        return len(self.item_ids)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.person_head.weight.device

    @property
    def label_rows_LD(self) -> Tensor:
        """Rows of the output head that belong to the label words [L, D]."""
        rows: Tensor = self.decoder.get_output_embeddings().weight[self.label_ids_L]
        return rows

    @property
    def grade_rows_GD(self) -> Tensor:
        """Rows of the output head that belong to the grade words [G, D]."""
        rows: Tensor = self.decoder.get_output_embeddings().weight[self.grade_ids_G]
        return rows

    def num_parameters(self) -> int:
        """Parameters of the decoder's body: without embeddings, heads and the item table."""
        table = {id(p) for p in self.decoder.get_input_embeddings().parameters()}
        table |= {id(p) for p in self.decoder.get_output_embeddings().parameters()}
        return sum(p.numel() for p in self.decoder.parameters() if id(p) not in table)

    def rank_weight(self, task: int) -> float:
        """`w` of the ranking formula for a task, 0 until fitted: how much the actions count."""
        return self.settings.rank_weight[task] if self.settings.rank_weight else 0.0

    def calibration(self, task: int) -> Calibration:
        """What makes `score`'s log-probabilities of a task calibrated; nothing until fitted."""
        return self.settings.calibration[task] if self.settings.calibration else Calibration()

    @property
    def new_item_weight(self) -> Tensor:
        """How new each item is, k / (n + k) at `n` training events, float [I]: 1 if never met."""
        half = self.settings.half_exposure
        return half / (self.items.exposure_I + half)

    @property
    def competing(self) -> NDArray[np.bool_]:
        """The items that a training event was ever about, bool [I]: the retrieval softmax's."""
        trained: NDArray[np.bool_] = (self.items.exposure_I > 0).cpu().numpy()
        return trained

    def checked_width(self, width: int | None) -> int:
        """How many numbers of a vector are meant: `vector_dim`, or one of the trained widths.

        Raises:
            ValueError: the model was not trained at that width.
        """
        widths = self.settings.widths
        if width is not None and width not in widths:
            raise ValueError(
                f"width={width} is none that the model was trained at; take one of "
                f"{', '.join(map(str, widths))}, or train with FoundationConfig.vector_widths."
            )
        return widths[-1] if width is None else width

    def count_exposure(self, event_item: NDArray[np.int32]) -> None:
        """Set how often each item was trained on, from the items of the training events."""
        counts = np.bincount(event_item, minlength=self.num_items)
        self.items.exposure_I.copy_(torch.from_numpy(counts.astype(np.float32)))

    # Reading.

    def hidden(
        self,
        ids_RT: Tensor,
        *,
        slots: StepSlots | None = None,
        inline_slots_JD: Tensor | None = None,
        **decoder_inputs: Any,
    ) -> Tensor:
        """Last hidden states of a batch of rows [R, T, D].

        Args:
            ids_RT: int64; an id ≥ the vocabulary size is a slot.
            slots: made in this step, of every item in the rows.
            inline_slots_JD: slots of items that are not in the catalogue, from `inline_slots`.
            decoder_inputs: passed on (positions, attention mask, cache).
        """
        embeds_RTD = self.embed_ids(ids_RT, slots=slots, inline_slots_JD=inline_slots_JD)
        with one_position.quick_kernels(embeds_RTD.device):
            out = self.decoder.model(inputs_embeds=self.input_dropout(embeds_RTD), **decoder_inputs)
        hidden_RTD: Tensor = out.last_hidden_state
        return hidden_RTD

    def embed_ids(
        self,
        ids_RT: Tensor,
        *,
        slots: StepSlots | None = None,
        inline_slots_JD: Tensor | None = None,
    ) -> Tensor:
        """Input vectors of tokens and slots [R, T, D]."""
        return input_vectors.embed_ids(self, ids_RT, slots, inline_slots_JD)

    def slots(self, items_N: Tensor, fresh: FreshReadings | None = None) -> Tensor:
        """Slots of items of the catalogue, float [N, D]."""
        return input_vectors.slots(self, items_N, fresh)

    def inline_slots(self, rows: Rows) -> Tensor | None:
        """Slots of the items that rows bring with them, float [J, D]; None where there are none."""
        if not self.uses_slots or not len(rows.inline_items):
            return None
        return told_slots(self, self.read_items(rows.inline_items))

    def bags(self, pieces: Pieces) -> Tensor:
        """Mean token embedding of each piece, float [N, D]."""
        return input_vectors.bags(self, pieces)

    def read_pieces(
        self, pieces: Pieces, chosen_N: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One pass over each item's text alone.

        Args:
            pieces: item texts, each ending with the arrow.
            chosen_N: int64 [N], which of them.

        Returns:
            ids int64 [N, S], hidden states [N, S, D], and the arrow's position in each, int64 [N].
        """
        ids_NS, last_N = pad_pieces(pieces, chosen_N, pad_id=self.prompter.newline_id)
        ids_NS, last_N = ids_NS.to(self.device), last_N.to(self.device)
        return ids_NS, self.hidden(ids_NS), last_N

    @torch.no_grad()
    def readings_of(self, pieces: Pieces, *, max_positions: int = 16384) -> Tensor:
        """Readings of item texts, one pass over each alone, float32 [N, D], without gradient."""
        was_training = self.training
        self.eval()
        reading_ND = torch.zeros(len(pieces), self.decoder.config.hidden_size, device=self.device)
        for chosen_B in by_length(pieces.lengths, max_positions=max_positions):
            _, hidden_BSD, last_B = self.read_pieces(pieces, chosen_B)
            rows_B = torch.arange(len(chosen_B), device=self.device)
            arrow_BD = hidden_BSD[rows_B, last_B].float()
            reading_ND[torch.from_numpy(chosen_B).to(self.device)] = arrow_BD
        self.train(was_training)
        return reading_ND

    def encodings_of(self, pieces: Pieces, *, progress: bool = False) -> Tensor | None:
        """Vectors of item texts by the text encoder, float32 [N, W]; None without one."""
        record = self.settings.text_encoder
        if record is None:
            return None
        if not len(pieces):
            return torch.zeros(0, record.dim, device=self.device)
        if not self._text_encoder:
            # Of two threads that are the first the last keeps its own.
            self._text_encoder[:] = [TextEncoder.load_as(record)]
        # Without the arrow that ends each.
        texts = [
            str(self.prompter.tokenizer.decode(pieces[piece][:-1].tolist())).strip()
            for piece in range(len(pieces))
        ]
        return self._text_encoder[0].encode(texts, progress=progress).to(self.device)

    def encode_catalogue(self) -> None:
        """Let the text encoder, if there is one, read the catalogue; its vectors are saved."""
        encoding_IW = self.encodings_of(self.item_pieces, progress=True)
        if encoding_IW is not None and self.items.encoding_IW is not None:
            self.items.encoding_IW.copy_(encoding_IW)

    def questions(self, items_C: NDArray[np.int64]) -> Pieces:
        """What is asked of each item of the catalogue: its text and the arrow, or its slot."""
        if not self.uses_slots:
            return self.item_pieces.take(items_C)
        slots = (items_C + self.prompter.vocab_size).astype(np.int32)
        return Pieces(ids=slots, offsets=np.arange(len(slots) + 1, dtype=np.int64))

    def refresh_readings(self) -> None:
        """Read the whole catalogue again and put the readings into the table."""
        if "reading" not in self.settings.slot_parts:
            return
        self.items.reading_ID.copy_(self.readings_of(self.item_pieces))

    def item_vectors(self, slots_ND: Tensor) -> Tensor:
        """Vectors of items [N, V]: the item readout of a pass over each slot alone."""
        if not self.uses_slots:
            slots_ND = F.rms_norm(slots_ND, slots_ND.shape[-1:])
        else:
            embeds_N1D = self.input_dropout(slots_ND)[:, None]
            slots_ND = self.decoder.model(inputs_embeds=embeds_N1D).last_hidden_state[:, 0]
        vectors: Tensor = self.item_head(slots_ND)
        return vectors

    def action_log_probs(self, hidden_ND: Tensor, task_N: Tensor) -> Tensor:
        """Float32 log-probabilities over all label words [N, L]; −inf outside the task's."""
        return action_log_probs(hidden_ND, self.label_rows_LD, self.allowed_AL[task_N])

    def grade_log_probs(self, hidden_ND: Tensor, task_N: Tensor) -> Tensor:
        """Float32 log-probabilities over all grade words [N, G]; −inf outside the task's."""
        return action_log_probs(hidden_ND, self.grade_rows_GD, self.allowed_AG[task_N])

    def log_positive(self, hidden_ND: Tensor, task_N: Tensor) -> Tensor:
        """Log of the probability of a good action, float32 [N], in nats."""
        log_probs_NL = self.action_log_probs(hidden_ND, task_N)
        unwanted_NL = ~self.is_positive_AL[task_N]
        return log_probs_NL.masked_fill(unwanted_NL, float("-inf")).logsumexp(-1)

    def log_policy(self, hidden_ND: Tensor, task_N: Tensor) -> Tensor:
        """Log of the expected grade as a share of the best, float32 [N]; see `log_policy_of`.

        0 where the task has no grades: policy says nothing there.
        """
        is_graded_N = self.allowed_AG.any(1)[task_N]
        graded_ND, task_G = hidden_ND[is_graded_N], task_N[is_graded_N]
        said_G = log_policy_of(self.grade_log_probs(graded_ND, task_G), self.grade_value_AG[task_G])
        nothing_N = torch.zeros(len(task_N), device=hidden_ND.device)
        return nothing_N.masked_scatter(is_graded_N, said_G)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Summed losses of one training batch; see `foundation.objective` for the arguments."""
        reading = read_step(self, **{name: inputs[name] for name in READ_INPUTS})
        return loss_sums(self, reading, **{name: inputs[name] for name in LOSS_INPUTS})

    # Verbs.

    def fit(
        self,
        book: "PromptBook",
        split: "Split",
        *,
        config: "FitConfig",
        out: Path,
        validate: Callable[[], dict[str, float]] | None = None,
        hard_negatives: NDArray[np.int32] | None = None,
        asking: "Asking | None" = None,
    ) -> "FitResult":
        """Train on the split's training events, or go on where a call that was cut short stopped.

        Args:
            book: pieces of the interactions to train on.
            split: which events train, and which targets validate.
            config: schedule and losses.
            out: folder for checkpoints and TensorBoard events.
            validate: called every `config.evaluate_steps`; what it returns is logged.
            hard_negatives: int32 [E, n], for each event of the log items that were mined for the
                person at that moment, filled up with -1; see `foundation.hard_negatives`. A call
                that goes on must be given the same.
            asking: graded pairs and slates to ask about beside the rows; see `foundation.asking`.
                A call that goes on must be given the same.

        Raises:
            ValueError: hard negatives are given though the softmax runs over the whole catalogue,
                or do not fit it or the log; or what is asked does not fit.
        """
        from foundation.training import fit

        return fit(
            self,
            book,
            split,
            config=config,
            out=out,
            validate=validate,
            hard_negatives=hard_negatives,
            asking=asking,
        )

    def embed_users(
        self,
        rows: Rows,
        *,
        width: int | None = None,
        max_positions: int | None = None,
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Person vectors at the last position of each row.

        Args:
            rows: prefixes, as made by `PromptBook.prefixes` or `PromptBook.inline`.
            width: the first numbers of each vector alone, one of `settings.widths`; all when left
                out.
            max_positions: padded positions read at once; what suits the device when left out.
            progress: show a bar.

        Returns:
            float32 [R, V]. Their inner products with `embed_items` are the retrieval logits.

        Raises:
            ValueError: the model was not trained at that width.
        """
        return embedding.embed_users(
            self, rows, width=width, max_positions=max_positions, progress=progress
        )

    def embed_items(
        self,
        items: NDArray[np.int64] | Pieces | ItemReadings | None = None,
        *,
        known_N: NDArray[np.int64] | None = None,
        width: int | None = None,
    ) -> NDArray[np.float32]:
        """Item vectors of the catalogue, or of items given by their text.

        Args:
            items: int64 [N] rows of the catalogue, or N item texts, each ending with the arrow, or
                what was read of them; the whole catalogue when left out.
            known_N: int64, beside texts: the row of each in the catalogue, whose residual it keeps,
                or −1; none of them is known when left out.
            width: as in `embed_users`.

        Returns:
            float32 [N, V].

        Raises:
            ValueError: the model was not trained at that width, or a row is none of the catalogue.
        """
        return embedding.embed_items(self, items, known_N=known_N, width=width)

    def read_prefix(self, prefix: Rows) -> "PrefixReading":
        """Read one prefix: what `score` needs of it, and the person vector that retrieval needs.

        Args:
            prefix: one row, as made by `PromptBook.prefixes` or `PromptBook.inline`.

        Raises:
            BadInput: `prefix` is not one row, or longer than the decoder has positions for.
        """
        from foundation.scoring import read_prefix

        return read_prefix(self, prefix)

    def score(
        self,
        prefix: "Rows | PrefixReading",
        candidates: NDArray[np.int64] | Pieces,
        *,
        task: int = 0,
        max_bytes: int | None = None,
    ) -> NDArray[np.float32]:
        """Action log-probabilities of many candidates after one prefix, which is read once.

        Equal to a prompt for each candidate to float tolerance. Equal candidates are read once.

        Args:
            prefix: one row, as made by `PromptBook.prefixes` or `PromptBook.inline`; or its
                reading, by `read_prefix` or from a `PrefixCache`.
            candidates: int64 [C] rows of the catalogue, or their token pieces [C].
            task: index of the task whose labels are asked for.
            max_bytes: memory for the activations of candidates read at once, about; 512 MiB when
                left out. More candidates are read in parts.

        Returns:
            float32 [C, A], in nats, columns in the order of the task's actions; as the model says
            them: `calibration(task)` makes them what is served.

        Raises:
            BadInput: a candidate or the task is unknown, a prompt is longer than the decoder has
                positions for, or the reading was made by other weights.
        """
        return self.score_both(prefix, candidates, task=task, max_bytes=max_bytes).action_CA

    def score_both(
        self,
        prefix: "Rows | PrefixReading",
        candidates: NDArray[np.int64] | Pieces,
        *,
        task: int = 0,
        max_bytes: int | None = None,
    ) -> "Scores":
        """As `score`, from the same reading of the candidates, with their grades beside.

        Args:
            prefix: as `score`.
            candidates: as `score`.
            task: as `score`; without grades there is none to read.
            max_bytes: as `score`.

        Returns:
            Log-probabilities of the actions [C, A] and of the grades [C, G], float32, in nats, as
            the model says them.

        Raises:
            BadInput: as `score`.
        """
        from foundation.scoring import MAX_CANDIDATE_BYTES, score

        most = MAX_CANDIDATE_BYTES if max_bytes is None else max_bytes
        return score(self, prefix, candidates, task=task, max_bytes=most)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a stock checkpoint, the heads and the prompter to `folder`, whole or not at all."""
        from foundation.checkpoint import save

        save(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, text_encoder: str | Path | None = None
    ) -> "Foundation":
        """Load what `save_pretrained` wrote.

        Args:
            folder: of the saved model.
            text_encoder: where the text encoder of its slots lies here, which is read for items
                outside the catalogue alone; a folder of its name when left out.

        Raises:
            ValueError: the folder lacks a file, a file is cut short, or holds code or pickles; or
                a text encoder is given to a model that was made without one.
        """
        from foundation.checkpoint import load

        where = None if text_encoder is None else Path(text_encoder)
        return load(Path(folder), text_encoder=where)


def _read_tables(prompter: Prompter) -> dict[str, Tensor]:
    """Which words each task reads at an arrow, what they are worth, and their tokens."""
    shape_AL = len(prompter.tasks), len(prompter.label_words)
    shape_AG = len(prompter.tasks), len(prompter.grade_words)
    allowed_AL = torch.zeros(shape_AL, dtype=torch.bool)
    is_positive_AL, allowed_AG = allowed_AL.clone(), torch.zeros(shape_AG, dtype=torch.bool)
    grade_value_AG = torch.zeros(shape_AG)
    for number, task in enumerate(prompter.tasks):
        labels = torch.from_numpy(prompter.task_label_index(number))
        allowed_AL[number, labels] = True
        is_positive_AL[number, labels] = torch.tensor(task.is_positive)
        grades = torch.from_numpy(prompter.task_grade_index(number))
        allowed_AG[number, grades] = True
        grade_value_AG[number, grades] = torch.linspace(0, 1, len(grades))
    return {
        "allowed_AL": allowed_AL,
        "is_positive_AL": is_positive_AL,
        "allowed_AG": allowed_AG,
        "grade_value_AG": grade_value_AG,
        "label_ids_L": torch.as_tensor(np.asarray(prompter.label_ids), dtype=torch.long),
        "grade_ids_G": torch.as_tensor(np.asarray(prompter.grade_ids), dtype=torch.long),
    }


def _drop_tied_head(module: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    # safetensors refuses two names for one tensor; building the decoder ties the head again.
    decoder = module.decoder
    if getattr(decoder.config, "tie_word_embeddings", False):
        state.pop(f"{prefix}decoder.lm_head.weight", None)
