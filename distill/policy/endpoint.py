"""Asking an OpenAI-compatible endpoint, politely, within a budget, and never twice the same.

    config = EndpointConfig(url="http://localhost:8000/v1", model="any")
    endpoint = Endpoint(config, Path("said.db"))
    said = endpoint.ask([(instructions, question), ...])

Whatever happens, an answer that came in is kept: in an SQLite file that a killed process leaves
whole. A question is known by the model, what it was asked and how, so a cache serves many runs.
The key is read from the environment, sent to the endpoint alone and kept nowhere.
"""

import email.utils
import hashlib
import http.client
import json
import logging
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from distill.policy.answers import Answer, Answers
from distill.policy.timed import Clock, TimedHTTP, TimedHTTPS, TimedRequest
from promptify.validation import BadInput, shown
from promptify.words import one_line

logger = logging.getLogger(__name__)

Question = tuple[str, str]
"""Instructions, which are ours, and data, which may be anybody's."""

_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_MOST_ANSWER_BYTES = 4_000_000
_MOST_WAIT_SECONDS = 120.0
_MOST_SHOWN_CHARACTERS = 200
# A count above it is none.
_MOST_TOKENS = 2**31
# Of English, a token is four letters and more; of what is reserved, less is safe.
_LETTERS_PER_TOKEN = 2.5


class EndpointStopped(BadInput):
    """Nothing more can be asked for now; what was answered is kept, and the same call goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """How an endpoint is asked.

    Attributes:
        url: up to and without ``/chat/completions``.
        model: the name that it is asked by.
        key_variable: of the environment, which holds the key; none is sent where it is not set.
        requests_per_minute: at most, tries included.
        concurrency: requests at a time.
        max_tries: of one question.
        timeout_seconds: of one try, to the end of its answer.
        max_answer_tokens: of one answer.
        prompt_price: of a million tokens that are read, in any currency.
        answer_price: of a million tokens that are written.
        max_cost: of all that was sent for the cache's sake, in that currency: an answer by the
            tokens it took, a request that brought none by the most it may have cost. None for no
            ceiling.
    """

    url: str
    model: str
    key_variable: str = "DECANT_JUDGE_KEY"
    requests_per_minute: float = 600.0
    concurrency: int = 4
    max_tries: int = 6
    timeout_seconds: float = 60.0
    max_answer_tokens: int = 200
    prompt_price: float = 0.0
    answer_price: float = 0.0
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if not _is_address(self.url):
            raise BadInput(
                f"url={shown(self.url)} must begin with http:// or https:// and hold no name or "
                "key (no @, ? or #), such as http://localhost:8000/v1."
            )
        if not self.model.strip():
            raise BadInput("model is empty; name the model that the endpoint serves.")
        for name in ("requests_per_minute", "timeout_seconds"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name}={getattr(self, name)} must be above 0.")
        for name in ("concurrency", "max_tries", "max_answer_tokens"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("prompt_price", "answer_price"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"{name}={getattr(self, name)} must be at least 0.")
        if self.max_cost is not None:
            if not self.max_cost > 0:
                raise BadInput(f"max_cost={self.max_cost} must be above 0, or left out.")
            if not self.prompt_price + self.answer_price:
                raise BadInput(
                    f"max_cost={self.max_cost} means nothing without prices; give prompt_price and "
                    "answer_price, of a million tokens each."
                )


class Endpoint:
    """An endpoint and the answers it gave.

    Args:
        config: how it is asked.
        cache: the SQLite file of answers; made where there is none.
        sleep: waits so many seconds; by default a wait that ends when asking is stopped.

    Raises:
        BadInput: the cache is no SQLite file of answers, or the key could not stand in a header.
    """

    def __init__(
        self,
        config: EndpointConfig,
        cache: Path,
        *,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.config = config
        self._stop = threading.Event()
        self._sleep = sleep or self._stop.wait
        self._answers = Answers(cache)
        self._key = _key(config.key_variable)
        self._turn = threading.Lock()
        self._next_at = 0.0
        self._opener = urllib.request.build_opener(_NoRedirects, TimedHTTP, TimedHTTPS)

    @property
    def spent(self) -> float:
        """Cost of the answers that the cache holds, and of what was sent and brought none."""
        return self._answers.cost + self._answers.cost_of_unanswered

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """Answer each question, from the cache where it is known.

        Args:
            questions: n; equal ones are asked once.

        Returns:
            n texts, as the model wrote them.

        Raises:
            EndpointStopped: the endpoint does not answer, refuses, or the ceiling is reached. What
                was answered until then is kept.
        """
        names = [self._name(question) for question in questions]
        known = self._answers.known(names)
        named = zip(names, questions, strict=True)
        if open_ones := {name: question for name, question in named if name not in known}:
            self._stop.clear()
            try:
                known |= self._ask_all(open_ones)
            finally:
                self._stop.set()
        return [known[name] for name in names]

    def _ask_all(self, questions: dict[str, Question]) -> dict[str, str]:
        """Ask a few at a time; whatever ends it, what came in before is in the cache."""
        found: dict[str, str] = {}
        waiting = iter(questions.items())
        flying: dict[Future[str], str] = {}
        stopped: BaseException | None = None
        bar = tqdm(total=len(questions), desc="ask the judge", leave=False)
        with bar, self._pool() as pool:
            while True:
                while stopped is None and len(flying) < self.config.concurrency:
                    if (following := next(waiting, None)) is None:
                        break
                    name, question = following
                    flying[pool.submit(self._tried, name, question)] = name
                if not flying:
                    break
                done, _ = wait(flying, return_when=FIRST_COMPLETED)
                for future in done:
                    name = flying.pop(future)
                    try:
                        found[name] = future.result()
                    except EndpointStopped as error:
                        self._stop.set()
                        stopped = stopped or error
                        continue
                    bar.update()
        if stopped is not None:
            raise stopped
        return found

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        """Workers that try no more once something went wrong, or somebody interrupts."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            try:
                yield pool
            except BaseException:
                self._stop.set()
                raise

    def _cost(self, prompt_tokens: float, answer_tokens: float) -> float:
        return (
            prompt_tokens * self.config.prompt_price + answer_tokens * self.config.answer_price
        ) / 1e6

    def _at_most(self, question: Question) -> float:
        """What an answer may cost, told before it is asked for."""
        return self._cost(sum(map(_tokens, question)), self.config.max_answer_tokens)

    def _begin(self, question: Question) -> int:
        """Write a request down at the most that it may cost, before it is sent."""
        ceiling = self.config.max_cost
        request = self._answers.begin(self._at_most(question), ceiling=ceiling)
        if request is None:
            raise EndpointStopped(
                f"the next request could pass the ceiling of {ceiling:g} ({self.spent:.4g} is "
                f"spent, {self._answers.cost_of_unanswered:.4g} of it for requests that "
                f"brought no answer). What was answered is kept in {self._answers.path}; raise "
                "the ceiling and give the same command again."
            )
        return request

    def _sent(self, name: str, question: Question) -> str:
        """One request and its answer, which is kept.

        Raises:
            EndpointStopped: it could pass the ceiling, and was not sent.
            OSError: there is no answer; what it may have cost is held, if it was sent.
            http.client.HTTPException: the same.
            ValueError: the same.
        """
        request = self._begin(question)
        try:
            answer = self._asked_once(question)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            # Nobody was there, or the line broke before all of it was said.
            self._answers.withdraw(request)
            raise
        cost = self._cost(answer.prompt_tokens, answer.answer_tokens)
        self._answers.keep(name, answer, cost=cost, request=request)
        return answer.text

    def _name(self, question: Question) -> str:
        asked = [self.config.model, self.config.max_answer_tokens, *question]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _tried(self, name: str, question: Question) -> str:
        """An answer, after as many tries as it takes and is allowed."""
        problem, pause = "", 0.0
        for attempt in range(self.config.max_tries):
            if attempt:
                # Half of it at random, so that those who failed together do not return together.
                backoff = 2.0**attempt * (0.5 + random.random() / 2)
                self._sleep(min(max(pause, backoff), _MOST_WAIT_SECONDS))
            self._wait_for_turn()
            if self._stop.is_set():
                raise EndpointStopped("asking was stopped.")
            try:
                return self._sent(name, question)
            except EndpointStopped:
                raise
            except urllib.error.HTTPError as error:
                if error.code not in _TRY_AGAIN:
                    raise EndpointStopped(self._refusal(error.code, error.msg)) from None
                problem, pause = f"status {error.code}", _retry_after(error.headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                said = str(getattr(error, "reason", error)) or repr(error)
                problem, pause = one_line(said)[:_MOST_SHOWN_CHARACTERS], 0.0
            logger.debug("%s: %s", self.config.url, problem)
        raise EndpointStopped(
            f"{self.config.url} gives no answer after {self.config.max_tries} tries ({problem}). "
            f"What was answered is kept in {self._answers.path}; see whether it runs, and give "
            "the same command again."
        )

    def _refusal(self, code: int, said: str) -> str:
        if 300 <= code < 400:
            return f"{self.config.url} sends elsewhere (status {code}); give the final address."
        mend = (
            f"set {self.config.key_variable} to a key that it takes"
            if code in (401, 403)
            else "see whether the address and the model are right"
        )
        said = " ".join(said.split())
        return f"{self.config.url} refuses with status {code} ({shown(said)}); {mend}."

    def _wait_for_turn(self) -> None:
        with self._turn:
            now = time.monotonic()
            at = max(self._next_at, now)
            self._next_at = at + 60 / self.config.requests_per_minute
        if at > now:
            self._sleep(at - now)

    def _asked_once(self, question: Question) -> Answer:
        instructions, data = question
        body = {
            "model": self.config.model,
            "messages": [
                {"role": "system", "content": instructions},
                {"role": "user", "content": data},
            ],
            "temperature": 0,
            "max_tokens": self.config.max_answer_tokens,
            "stream": False,
        }
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        seconds = self.config.timeout_seconds
        with Clock(seconds) as clock:
            request = TimedRequest(
                clock,
                f"{self.config.url.rstrip('/')}/chat/completions",
                data=json.dumps(body).encode(),
                headers=headers,
            )
            try:
                with self._opener.open(request, timeout=seconds) as response:
                    raw = _read_whole(response)
            except urllib.error.HTTPError as error:
                error.msg = _complaint(error)
                raise
        try:
            said = json.loads(raw)
        except RecursionError:
            raise ValueError("an answer of lists within lists without end") from None
        return _read_answer(said, question)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is for the address it was given for."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        # A port that is no number is told only to who asks.
        _ = parts.port
    except ValueError:
        return False
    # Of a line break or a tab the parts know nothing.
    holds_more = "@" in parts.netloc or not url.isprintable() or set(url) & set(" ?#")
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not holds_more


def _key(variable: str) -> str:
    """The key that the environment holds, or nothing.

    Raises:
        BadInput: no header can hold it; it is not shown.
    """
    key = os.environ.get(variable, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise BadInput(
            f"{variable} holds a space, a line break or a letter that no key has; set it to the "
            "key alone."
        )
    return key


def _read_whole(response: http.client.HTTPResponse) -> bytes:
    """All of an answer, which may not be huge.

    Raises:
        OSError: the line broke.
        http.client.HTTPException: it broke off.
        ValueError: it is too long.
    """
    raw = bytearray()
    while part := response.read1(65_536):
        raw += part
        if len(raw) > _MOST_ANSWER_BYTES:
            raise ValueError(f"an answer of more than {_MOST_ANSWER_BYTES:,} bytes")
    return bytes(raw)


def _complaint(error: urllib.error.HTTPError) -> str:
    """The beginning of what came with a status; nothing where that breaks off, too."""
    try:
        with error:
            return error.read(500).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""


def _read_answer(said: Any, question: Question) -> Answer:
    """What stands in a reply of the protocol.

    Raises:
        ValueError: it is no such reply.
    """
    try:
        text = said["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"a reply that is no chat completion: {shown(said)}") from None
    # Half of a letter of two, which JSON can hold and a file cannot.
    text = text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""
    usage = said.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    used = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    guessed = [sum(map(_tokens, question)), _tokens(text)]
    counts = [
        told if type(told) is int and 0 <= told <= _MOST_TOKENS else guess
        for told, guess in zip(used, guessed, strict=True)
    ]
    return Answer(text=text, prompt_tokens=counts[0], answer_tokens=counts[1])


def _tokens(text: str) -> int:
    return int(len(text.encode()) / _LETTERS_PER_TOKEN) + 8


def _retry_after(headers: Any) -> float:
    """Seconds that the endpoint asks for, or 0."""
    said = headers.get("Retry-After") or ""
    try:
        return max(float(said), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0
