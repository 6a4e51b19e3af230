"""What people add to a request in words: steering notes on jobs, and queries for people.

A meaning has several paraphrases. Those in `HELD_OUT_*` never appear in the generated log, so that
tests can ask whether a model understood the meaning or memorised the words.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.population import stream

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]

NOTES: dict[str, tuple[str, ...]] = {
    "skills_first": (
        "Skills over seniority.",
        "What I can do matters more than the level of the role.",
        "Match my skills and ignore the rank in the title.",
        "Never mind seniority, look at my skills.",
    ),
    "pay_first": (
        "Pay first.",
        "Show me the best paid offers.",
        "Salary matters most this time.",
        "I want to earn more than now.",
    ),
    "only_remote": (
        "Only remote.",
        "I work from home and nothing else.",
        "No office please, fully remote roles.",
        "It has to be remote work.",
    ),
    "will_relocate": (
        "Open to relocating.",
        "I would move to another city for the right role.",
        "Distance does not matter, I can relocate.",
        "Show jobs abroad too, I am ready to move.",
    ),
    "close_to_home": (
        "Close to home.",
        "Jobs in my own city only.",
        "I need a short commute.",
        "Nothing far away, I stay where I live.",
    ),
    "step_up": (
        "A step up from where I am.",
        "I want more responsibility than today.",
        "Look for a promotion, one level higher.",
        "I am ready for the next rank.",
    ),
    "small_company": (
        "Small companies only.",
        "I prefer a start-up to a corporation.",
        "A small team where everybody counts.",
        "No big employers this time.",
    ),
    "same_industry": (
        "Stay in my industry.",
        "I want to keep working in the same sector.",
        "Other industries do not interest me.",
        "My sector only, please.",
    ),
}
NOTE_MEANINGS = tuple(NOTES)
(
    SKILLS_FIRST,
    PAY_FIRST,
    ONLY_REMOTE,
    WILL_RELOCATE,
    CLOSE_TO_HOME,
    STEP_UP,
    SMALL_COMPANY,
    SAME_INDUSTRY,
) = range(len(NOTES))
NO_NOTE = -1

HELD_OUT_NOTES: dict[str, tuple[str, ...]] = {
    "skills_first": (
        "Judge the skills, not how senior the position is.",
        "Abilities before job level.",
    ),
    "pay_first": ("Sort by money.", "The higher the salary the better."),
    "only_remote": ("Home office or nothing.", "I will not come to an office, remote only."),
    "will_relocate": ("Anywhere is fine, I am happy to relocate.", "Moving house is no problem."),
    "close_to_home": ("Around the corner, please, in my city.", "I do not want to travel far."),
    "step_up": ("Something more senior than my role today.", "Time to climb one level."),
    "small_company": ("Tiny firms rather than giants.", "Only start-ups and small teams."),
    "same_industry": ("Keep me in the sector I know.", "The same industry as now."),
}

QUERY_TEMPLATES = (
    "who knows {}",
    "looking for someone with experience in {}",
    "people who have worked with {}",
    "find an expert on {}",
    "{}",
)
HELD_OUT_QUERY_TEMPLATES = ("is there anybody good at {}", "we need a hand with {}")
ANYWHERE = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Queries:
    """Searches for people, `Q` of them: what was asked and what was meant."""

    text: tuple[str, ...]  # Q texts; equal texts mean the same
    specialty: Int64  # [Q]
    city: Int64  # [Q], or `ANYWHERE`
    wants_senior: Bool  # [Q]

    def __len__(self) -> int:
        return len(self.text)


def note_texts(seed: int, meanings: Int64) -> list[str | None]:
    """A paraphrase for each meaning; None where the meaning is `NO_NOTE`."""
    draw = stream(seed, "note.paraphrase").random(len(meanings))
    phrases = [NOTES[name] for name in NOTE_MEANINGS]
    return [
        None if meaning == NO_NOTE else phrases[meaning][int(u * len(phrases[meaning]))]
        for meaning, u in zip(meanings, draw, strict=True)
    ]


def note_meaning(text: str) -> int:
    """Index in `NOTE_MEANINGS` of a note, also of a held-out one.

    Raises:
        ValueError: no meaning has this paraphrase.
    """
    for index, name in enumerate(NOTE_MEANINGS):
        if text in NOTES[name] or text in HELD_OUT_NOTES[name]:
            return index
    raise ValueError(f"{text!r} is no note of the job market; see NOTES and HELD_OUT_NOTES.")


def draw_queries(seed: int, specialty: Int64, city: Int64, *, held_out: bool = False) -> Queries:
    """Put searches into words: a layman's topic or two trade skills, with or without a place.

    Args:
        seed: of the market.
        specialty: int64 [Q], what is searched.
        city: int64 [Q], the city to name where a place is asked for.
        held_out: use the topic phrases and templates that the log never uses.
    """
    num_queries = len(specialty)
    draw = stream(seed, f"query.{'held_out' if held_out else 'logged'}").random((num_queries, 6))
    templates = HELD_OUT_QUERY_TEMPLATES if held_out else QUERY_TEMPLATES
    asks_place = draw[:, 0] < 0.3
    wants_senior = draw[:, 1] < 0.25
    texts = []
    for row, branch in enumerate(specialty):
        _, _, by_topic, topic, template, skill = draw[row]
        topics, skills = words.SPECIALTIES[branch].topics, words.SPECIALTIES[branch].skills
        if held_out:
            subject = topics[-1]
        elif by_topic < 0.6:
            subject = topics[int(topic * (len(topics) - 1))]
        else:
            start = int(skill * 3)
            subject = f"{skills[start]} and {skills[(start + 1) % 3]}"
        text = templates[int(template * len(templates))].format(subject)
        text += f" in {words.CITIES[city[row]]}" if asks_place[row] else ""
        text += ", with many years behind them" if wants_senior[row] else ""
        texts.append(text)
    return Queries(
        text=tuple(texts),
        specialty=specialty,
        city=np.where(asks_place, city, ANYWHERE),
        wants_senior=wants_senior,
    )
