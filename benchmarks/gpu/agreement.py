"""Whether a device computes the same by every path: attention backends, packed rows, shared prefix.

Each comparison is a row with the difference found (of scores the largest, else the norm relative to
that of what is right), and fails when that is above its bound.
The bounds of bfloat16 are loose (eight bits of mantissa, summed over layers); those of float32 are
not.
"""

import importlib.util
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.models import in_both_precisions, random_model
from benchmarks.gpu.session import Session
from benchmarks.scoring_ways import Shape
from foundation import Foundation, packed_attention
from foundation.asking import nothing_asked
from foundation.batches import Batch, take_rows
from foundation.computing import FLASH, attending
from promptify.assembly import PromptBook
from promptify.rows import Rows
from promptify.splits import Split

# Heads share keys and values, as in the published shapes; deep enough for errors to add up.
_SHAPE = Shape(layers=6, width=256, mlp=768, heads=4, kv_heads=2, vocabulary=1024)
_BOUNDS = {"fp32": 1e-3, "bf16": 0.1}


def run_gpu_tests(session: Session, *, seconds: float) -> None:
    """The tests marked `gpu`, in a process of their own; how many passed, failed and were skipped.

    Args:
        session: takes the rows.
        seconds: after which they are stopped.

    Raises:
        RuntimeError: pytest is not there, or a test failed; what it printed is in `gpu-tests.txt`.
    """
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here: the tests marked gpu were not run")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Others may need what is not installed on a bare machine.
        tests = Path(__file__).parents[2] / "tests"
        marked = [
            str(path)
            for path in sorted(tests.rglob("test_*.py"))
            if "@pytest.mark.gpu" in path.read_text("utf-8")
        ]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *marked],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        said = done.stdout + done.stderr
        (session.out / "gpu-tests.txt").write_text(said, encoding="utf-8")
        if not report.exists():
            raise RuntimeError(f"pytest made no report: {said.strip()[-300:]}")
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: int(suite.get(name, "0")) for name in names}
    bad = counts["failures"] + counts["errors"]
    for metric, value in (
        ("gpu_tests_passed", counts["tests"] - bad - counts["skipped"]),
        ("gpu_tests_failed", bad),
        ("gpu_tests_skipped", counts["skipped"]),
    ):
        session.add(value, task="pytest -m gpu", split="tests", model="foundation", metric=metric)
    if bad:
        raise RuntimeError(f"{bad} tests failed; see gpu-tests.txt")


class Agreement:
    """A small model in two precisions, and prompts of the prepared book.

    Args:
        session: takes the rows.
        book: whose prompts are read.
        split: which events train, and whose test prefixes are scored.
    """

    def __init__(self, session: Session, book: PromptBook, split: Split) -> None:
        self.session, self.book = session, book
        model = random_model(book, _SHAPE, device=session.device)
        self.models = dict(zip(("fp32", "bf16"), in_both_precisions(model), strict=True))
        windows = book.windows(split.train, seed=0, epoch=0)
        self.rows = book.assemble(windows[np.arange(min(6, len(windows)))], seed=0, epoch=0)
        self.prefixes = book.prefixes(split.test[np.arange(min(4, len(split.test)))])

    @torch.no_grad()
    def attention_backends(self) -> None:
        """Last hidden states by each attention, against the one written out in full."""
        names = ["sdpa"]
        names += [packed_attention.NAME]
        names += [FLASH] if importlib.util.find_spec("flash_attn") else []
        batch = self._batch(packed=False)
        ids_RT = batch["ids_RT"]
        for precision, model in self.models.items():
            # Padding is not compared: its positions see what nothing reads.
            length_R = torch.from_numpy(self.rows.lengths).to(ids_RT.device)
            real_RT = torch.arange(ids_RT.shape[1], device=ids_RT.device) < length_R[:, None]
            with attending(model.decoder, "eager"):
                wanted = model.hidden(ids_RT, use_cache=False)[real_RT].float()
            for name in (model.decoder.config._attn_implementation, *names):
                if name == FLASH and precision == "fp32":
                    continue  # It has no kernel for it.
                with attending(model.decoder, name):
                    got = model.hidden(ids_RT, use_cache=False)[real_RT].float()
                error = _relative(got, wanted)
                self._check(f"attention {name} against eager, relative", precision, error)

    def packed_rows(self) -> None:
        """Losses and gradients of rows end to end, against the same rows padded."""
        model, device = self.models["fp32"], self.session.device.type
        for precision in self.models:
            found = []
            for packed in (True, False):
                model.zero_grad(set_to_none=True)
                own = model.decoder.config._attn_implementation
                # As in training: weights in float32, products in bfloat16.
                with (
                    attending(model.decoder, packed_attention.NAME if packed else own),
                    torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
                ):
                    sums = model(**self._batch(packed=packed))
                torch.stack(list(sums.values())).sum().backward()
                grads = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
                found.append((torch.stack([s.float() for s in sums.values()]), torch.cat(grads)))
            model.zero_grad(set_to_none=True)
            (packed_sums, packed_grads), (padded_sums, padded_grads) = found
            for what, got, wanted in (
                ("losses packed against padded", packed_sums.detach(), padded_sums.detach()),
                ("gradients packed against padded", packed_grads, padded_grads),
            ):
                self._check(f"{what}, relative", precision, _relative(got, wanted))

    def shared_prefix(self) -> None:
        """Candidates beside each other after one prefix, against a prompt for each."""
        items_C = np.arange(min(12, self.book.interactions.num_items))
        for precision, model in self.models.items():
            got, wanted = [], []
            for row in range(len(self.prefixes)):
                prefix = take_rows(self.prefixes, np.array([row]))
                got.append(torch.from_numpy(model.score(prefix, items_C)))
                wanted.append(_alone(model, prefix, items_C))
            error = float((torch.cat(got) - torch.cat(wanted)).abs().max())
            self._check("shared prefix against one by one", precision, error)

    def _check(self, what: str, precision: str, error: float) -> None:
        bound = _BOUNDS[precision]
        self.session.say(f"         {what}, {precision}: {error:.2e} (at most {bound:g})")
        self.session.add(
            error,
            task=what,
            split="agreement",
            model="foundation",
            metric=f"error_{precision}",
        )
        if not error <= bound:
            raise ArithmeticError(f"{what} differs by {error:.2e} in {precision}, above {bound:g}")

    def _batch(self, *, packed: bool) -> dict[str, Tensor]:
        prompter = self.book.prompter
        batch = Batch.of(
            self.rows, pad_id=prompter.newline_id, vocab_size=prompter.vocab_size, packed=packed
        )
        read = {
            "ids_RT": batch.ids_RT,
            "position_RT": batch.position_RT,
            "arrow_M": batch.arrow_M,
            "label_M": batch.label_M,
            "task_M": batch.task_M,
            "next_position_K": batch.next_position_K,
            "next_item_K": batch.next_item_K,
            "text_position_N": batch.text_position_N,
            "reread_items": torch.arange(3),
            "negatives": torch.zeros(0, dtype=torch.long),
            "negative_log_expected": torch.zeros(0),
            "hard_negatives": torch.zeros(0, dtype=torch.long),
            **nothing_asked(len(prompter.grade_words)),
        }
        return {name: tensor.to(self.session.device) for name, tensor in read.items()}


def _relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@torch.no_grad()
def _alone(model: Foundation, prefix: Rows, items_C: np.ndarray) -> Tensor:
    """Action log-probabilities by a prompt for each candidate, float32 [C, A]."""
    pieces = model.questions(items_C)
    said = []
    for candidate in range(len(pieces)):
        ids = np.concatenate([prefix.ids, pieces[candidate]]).astype(np.int64)
        hidden_1TD = model.hidden(torch.from_numpy(ids)[None].to(model.device), use_cache=False)
        task_1 = torch.zeros(1, dtype=torch.long, device=model.device)
        said.append(model.action_log_probs(hidden_1TD[:, -1], task_1)[0].cpu())
    labels = torch.from_numpy(model.prompter.task_label_index(0))
    return torch.stack(said)[:, labels]
