"""Answers that an endpoint gave, kept in an SQLite file that a killed process leaves whole."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptify.validation import BadInput

_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, cost REAL NOT NULL)",
    # Requests that no answer has come of.
    "CREATE TABLE IF NOT EXISTS sent (request INTEGER PRIMARY KEY, cost REAL NOT NULL)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model wrote, and how much was read and written for it."""

    text: str
    prompt_tokens: int
    answer_tokens: int


class Answers:
    """A file of answers by question; each is there for good once `keep` returns.

    Beside them is what was sent: a request that brought no answer may have cost as much as one.

    Args:
        path: of the file; made where there is none.

    Raises:
        BadInput: it is no SQLite file of answers, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The last row whose cost was added up, and the sum until there: a million take .3 s.
        self._counted = 0, 0.0
        with self._open() as answers:
            for table in _TABLES:
                answers.execute(table)

    @property
    def cost(self) -> float:
        """What all of them cost."""
        return self._total("answers")

    @property
    def cost_of_unanswered(self) -> float:
        """What requests that brought no answer may have cost."""
        return self._total("sent")

    def known(self, questions: Sequence[str]) -> dict[str, str]:
        """The texts of those questions that were answered."""
        found = {}
        with self._open() as answers:
            for one in dict.fromkeys(questions):
                row = answers.execute("SELECT answer FROM answers WHERE question = ?", (one,))
                if (told := row.fetchone()) is not None:
                    found[one] = str(told[0])
        return found

    def begin(self, cost: float, *, ceiling: float | None = None) -> int | None:
        """Write down that a request is about to be sent.

        Args:
            cost: the most that it may cost.
            ceiling: of what all processes that share the file spent and are spending.

        Returns:
            Its number, or None where it could pass the ceiling and may not be sent.
        """
        with self._open() as answers, answers:
            # Nobody else writes between the sum and the row.
            answers.execute("BEGIN IMMEDIATE")
            if ceiling is not None and self._spent(answers) + cost > ceiling:
                return None
            return answers.execute("INSERT INTO sent (cost) VALUES (?)", (cost,)).lastrowid

    def withdraw(self, request: int) -> None:
        """A request was not sent after all."""
        with self._open() as answers, answers:
            answers.execute("DELETE FROM sent WHERE request = ?", (request,))

    def keep(self, question: str, answer: Answer, *, cost: float, request: int) -> None:
        """Write down an answer, and that it is of this request."""
        row = (question, answer.text, answer.prompt_tokens, answer.answer_tokens, cost)
        with self._open() as answers, answers:
            answers.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)
            answers.execute("DELETE FROM sent WHERE request = ?", (request,))

    def _total(self, table: str) -> float:
        with self._open() as answers:
            return float(answers.execute(f"SELECT TOTAL(cost) FROM {table}").fetchone()[0])

    def _spent(self, answers: sqlite3.Connection) -> float:
        """What all requests cost or may cost, within a transaction that nobody writes beside."""
        row, cost = self._counted
        counted = "SELECT TOTAL(cost), COALESCE(MAX(rowid), ?) FROM answers WHERE rowid > ?"
        more, row = answers.execute(counted, (row, row)).fetchone()
        self._counted = row, cost + more
        (sent,) = answers.execute("SELECT TOTAL(cost) FROM sent").fetchone()
        return float(cost + more + sent)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        answers = None
        try:
            answers = sqlite3.connect(self.path, timeout=60)
            answers.execute("PRAGMA journal_mode=WAL")
            yield answers
        except sqlite3.Error as error:
            raise BadInput(
                f"{self.path} is no file of answers, is damaged, or cannot be opened ({error}); "
                "name another."
            ) from error
        finally:
            if answers is not None:
                answers.close()
