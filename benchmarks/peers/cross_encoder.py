"""sentence-transformers' CrossEncoder on a foundation's weights, in a process of its own.

    PYTHON -m benchmarks.peers.cross_encoder FOLDER THREADS

PYTHON is that of `ensure("sentence-transformers")`. FOLDER is written by `export`: the decoder as a
sequence classifier, whose last pooled position gives the logits of the label words, and a tokenizer
under which every token is a word, so that texts stand for exactly the ids that are to be scored.
For each line on stdin (any) the pairs are scored once more and one line of JSON is written: the
seconds it took, and the logits.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.peers.environment import ensure

PEER = "sentence-transformers"
_REPOSITORY = Path(__file__).parents[2]


def export(
    decoder: Any,
    folder: Path,
    *,
    label_ids: list[int],
    prefix_ids: list[int],
    candidate_ids: list[list[int]],
) -> None:
    """Write the classifier, its tokenizer and the pairs.

    Args:
        decoder: a causal LM.
        folder: of the worker.
        label_ids: of the label words, in order: the classes.
        prefix_ids: shared by all pairs.
        candidate_ids: second texts of the pairs.
    """
    config = type(decoder.config)(**decoder.config.to_dict())
    config.num_labels = len(label_ids)
    pad = config.vocab_size - 1
    config.pad_token_id = pad
    classifier = AutoModelForSequenceClassification.from_config(config)
    classifier.model.load_state_dict(decoder.model.state_dict())
    rows = decoder.get_output_embeddings().weight[label_ids].detach().clone()
    classifier.score.weight = torch.nn.Parameter(rows)
    classifier.save_pretrained(folder)
    words = {f"t{number}": number for number in range(config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=f"t{pad}"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=f"t{pad}",
        unk_token=f"t{pad}",
        model_max_length=config.max_position_embeddings,
    ).save_pretrained(folder)
    pairs = [[_text(prefix_ids), _text(ids)] for ids in candidate_ids]
    (folder / "pairs.json").write_text(json.dumps(pairs))


class CrossEncoderWorker:
    """The other process, which scores when it is told to and waits otherwise.

    Args:
        folder: written by `export`.
        threads: of its torch.

    Raises:
        PeerError: its environment could not be built.
    """

    def __init__(self, folder: Path, *, threads: int) -> None:
        self._process = subprocess.Popen(
            [ensure(PEER), "-m", "benchmarks.peers.cross_encoder", str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_REPOSITORY,
        )

    def score(self) -> tuple[float, NDArray[np.float32]]:
        """Seconds of one scoring of all pairs, and the logits of the classes [C, A]."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("again\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ValueError("the CrossEncoder's process ended; its error stands above.")
        said = json.loads(line)
        return said["seconds"], np.array(said["logits"], dtype=np.float32)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def _text(ids: list[int]) -> str:
    return " ".join(f"t{number}" for number in ids)


def _serve(folder: Path, threads: int) -> None:
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(threads)
    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = json.loads((folder / "pairs.json").read_text())

    def score(batch_size: int) -> tuple[float, Any]:
        began = time.perf_counter()
        logits = model.predict(
            pairs,
            batch_size=batch_size,
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return time.perf_counter() - began, logits

    score(8)
    _, fastest = min((score(size)[0], size) for size in (4, 16, 32))
    print(f"CrossEncoder: batches of {fastest}", file=sys.stderr)
    for _ in sys.stdin:
        seconds, logits = score(fastest)
        print(json.dumps({"seconds": seconds, "logits": np.asarray(logits).tolist()}), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
