"""What every side of the training benchmark is given: the same people, prompts and weights."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from decant.run_data import split_of
from foundation import FitConfig, Foundation, FoundationConfig
from promptify.assembly import PromptBook
from promptify.interactions import Interactions
from promptify.prompter import Prompter, PrompterConfig
from promptify.sources import SourceData
from promptify.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A log, its prompts and a decoder with random weights, in a folder.

    Attributes:
        folder: ``interactions/``; ``model/``, which stock transformers loads too; and
            ``prompts.parquet``, the rows of one epoch as ``input_ids``, in text form.
        fit: how ours is trained; the others take their step size and schedule from it.
    """

    folder: Path
    fit: FitConfig

    @classmethod
    def make(
        cls, folder: Path, data: SourceData, *, config: PrompterConfig, size: str, fit: FitConfig
    ) -> "Workload":
        """Write a workload.

        Args:
            folder: does not exist yet.
            data: its log; the training events of the leave-one-out split are trained on.
            config: what a prompt may hold.
            size: of the decoder, a name in `foundation.sizes.SHAPES`.
            fit: how ours is trained.
        """
        log = data.interactions
        split = split_of(log, data.tasks)
        prompter = Prompter.fit(log, split.train, data.tasks, config=config)
        book = prompter.book(log)
        model = Foundation.create(
            prompter, book, split.train, size=size, config=FoundationConfig(), seed=fit.seed
        )
        folder.mkdir(parents=True)
        log.save(folder / "interactions")
        model.save_pretrained(folder / "model")
        (folder / "fit.json").write_text(json.dumps(asdict(fit)))
        if config.form == "text":
            windows = book.windows(
                split.train, seed=fit.seed, epoch=0, short_share=fit.short_window_share
            )
            rows = book.assemble(windows, seed=fit.seed, epoch=0)
            ids = pa.ListArray.from_arrays(rows.row_offsets.astype("int32"), pa.array(rows.ids))
            pq.write_table(pa.table({"input_ids": ids}), folder / "prompts.parquet")
        return cls(folder=folder, fit=fit)

    @classmethod
    def load(cls, folder: Path) -> "Workload":
        """A workload that `make` wrote."""
        return cls(folder=folder, fit=FitConfig(**json.loads((folder / "fit.json").read_text())))

    def foundation(self) -> Foundation:
        """The model as it was made."""
        return Foundation.from_pretrained(self.folder / "model")

    def book(self, prompter: Prompter) -> tuple[PromptBook, Split]:
        """The log as prompts, and its split."""
        log = Interactions.load(self.folder / "interactions")
        return prompter.book(log), split_of(log, prompter.tasks)
