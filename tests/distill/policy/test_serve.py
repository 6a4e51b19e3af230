"""A judge behind transformers' own server: a tiny model that learned one answer.

Needs what `pip install 'transformers[serving]'` brings, and is skipped, saying so, without it.
"""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.import_utils import is_serve_available

from distill.policy import Pairs, Policy
from distill.policy.endpoint import Endpoint, EndpointConfig, EndpointStopped
from distill.policy.judges import ReadingJudge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_serve_available(), reason="needs pip install 'transformers[serving]'"
    ),
]

ANSWER = '{"grade": 3, "rules": [1]}'
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says one thing, whatever stands before it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator([ANSWER, "a job for a person"] * 50, trainer)
    end = "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token=end)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=16384,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    draw = random.Random(0)
    start = tokenizer.encode("<|im_start|>assistant\n")
    wanted = [*tokenizer.encode(ANSWER), tokenizer.eos_token_id]
    for _ in range(150):
        before = [draw.randrange(5, len(tokenizer)) for _ in range(draw.choice([60, 200, 600]))]
        ids = torch.tensor([before + start + wanted])
        labels = ids.clone()
        labels[:, : -len(wanted)] = -100
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("judge") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def serve(model: Path, port: int) -> subprocess.Popen[bytes]:
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--dtype", "float32"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        assert process.poll() is None, "the server ended at once"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError("the server does not come up")


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    return number


def test_a_served_model_judges_dies_midway_and_goes_on(
    tiny_judge, port, small_tables, document, tmp_path
):
    policy = Policy.parse(document("value: ramp(item.pay, 20, 30)"))
    config = EndpointConfig(
        url=f"http://127.0.0.1:{port}/v1", model=str(tiny_judge), max_tries=2, concurrency=2
    )
    judge = ReadingJudge(Endpoint(config, tmp_path / "said.db"), policy, small_tables)
    process = serve(tiny_judge, port)
    try:
        judged = judge.judge(Pairs.of([0, 1, 2], [0, 1, 2]))
        assert judged.grade.tolist() == [3, 3, 3]
        assert judged.rules.to_pylist() == [[1], [1], [1]]
    finally:
        process.kill()
        process.wait()
    every = Pairs.of([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3)
    with pytest.raises(EndpointStopped, match="gives no answer after 2 tries"):
        judge.judge(every)
    process = serve(tiny_judge, port)
    try:
        assert judge.judge(every).grade.tolist() == [3] * 9
    finally:
        process.kill()
        process.wait()
