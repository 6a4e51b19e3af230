"""Members and jobs in words: the tables that a model reads, written from a small grammar."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from promptify.sources.job_market import vocabulary as words
from promptify.sources.job_market.population import (
    SECONDS_PER_DAY,
    START,
    Companies,
    Int64,
    Jobs,
    Members,
    market_premium,
    stream,
)

_HEADLINES = (
    "{title} in {area}",
    "{title}, {area}",
    "{title} with {years} in {area}",
    "{title}: {area} and {skill}",
)
_ABOUT = (
    "I {duty}, now for {years}.",
    "For {years} my work has been to {duty}.",
    "Day by day I {duty}, with {years} of practice.",
    "What I do best: {duty}.",
)
_SECOND = ("I also know {second}.", "Earlier I worked in {second}.", "On the side: {second}.")
_PRIORITY = (
    ("What I look at first is the pay.", "Money matters to me.", "Above all it has to pay well."),
    ("I want to stay close to home.", "A job near {city} comes first.", "I am settled in {city}."),
    ("I want to grow into a bigger role.", "Next step: more responsibility.", "Promotion matters."),
    ("I want to use what I am good at.", "The craft comes first.", "My skills should be needed."),
)
_SIZE = (
    ("Small teams suit me.", "I like start-ups."),
    ("A mid-sized firm would be right.", "Neither tiny nor huge, please."),
    ("I like big companies.", "A large employer feels safe."),
)
_MOVER = ("I would relocate.", "Moving to another city is fine.", "Happy to move abroad.")
_TARGET = (
    "I want to change direction and become {a_target}.",
    "Looking for a way into work as {a_target}.",
    "My plan is to work as {a_target} soon.",
)
# Whether somebody is really changing jobs is hinted at, and the hint is wrong now and then.
_URGENT = ("Available from next month.", "My notice period is four weeks.", "Ready to start soon.")
_IDLE = ("Not in a hurry.", "Just having a look around.", "Happy where I am, but curious.")
_SHARE_HINTED, _SHARE_WRONG_HINTS = 0.7, 0.15
_PAY_WISH = ("modest pay", "the usual market pay", "more than the usual market pay")

_OPENINGS = (
    "{company} is looking for {a_title} in {area} who will {duty}.",
    "As our {title} you will {duty}; {area} is your field.",
    "We need {a_title}: you {duty}, and {area} is what you know and like.",
    "In {area}, this {title} will {duty}, from the first week on and with a free hand.",
    "Your task at {company} is to {duty}, as {a_title} in our {area} team.",
    "Join {company} as {a_title} and {duty}; you will be at home in {area}.",
)
_NEEDS = (
    "You bring {skills}, and {years} of practice.",
    "With {years} of work behind you, you are at ease with {skills}.",
    "We ask for {skills}, and for {years} in a similar role.",
    "What counts: {skills}; {years} in the trade will do.",
    "Day to day you need {skills}, and {years} of experience.",
)
_EMPLOYERS = (
    (
        "We are a small {industry} team where everybody counts.",
        "A young {industry} start-up with short decisions and few rules.",
    ),
    (
        "We are a growing mid-sized firm in {industry}.",
        "A steady {industry} company of a few hundred people awaits you.",
    ),
    (
        "We are a large {industry} employer with training and clear paths.",
        "Behind us stands a big {industry} corporation with offices in many countries.",
    ),
)
_WORKPLACES = (
    ("The work is on site in {city}", "You will be in our {city} office every day"),
    (
        "We work hybrid, some days in {city} and some at home",
        "Our hybrid week is split with {city}",
    ),
    ("The role is fully remote", "You may work from home for good, our base is {city}"),
)
_RELOCATION = ("we pay for your move", "relocation is paid")
_PAY = (
    ("the pay is below the market", "we pay less than others"),
    ("the pay is at the market", "we pay what is usual"),
    ("the pay is above the market", "we pay more than others"),
    ("the pay is far above the market", "we pay better than nearly anyone"),
)
_PAY_STEPS = (-0.08, 0.08, 0.24)

USER_COLUMNS = pa.schema(
    {
        "user_id": pa.string(),
        "headline": pa.string(),
        "summary": pa.string(),
        "skills": pa.list_(pa.string()),
        "years": pa.int64(),
        "seniority": pa.string(),
        "industry": pa.string(),
        "place": pa.string(),
        "workplace": pa.string(),
        "expected_pay": pa.int64(),
    }
)
ITEM_COLUMNS = pa.schema(
    {
        "item_id": pa.string(),
        "kind": pa.string(),
        "title": pa.string(),
        "company": pa.string(),
        "company_size": pa.string(),
        "industry": pa.string(),
        "place": pa.string(),
        "workplace": pa.string(),
        "relocation": pa.string(),
        "pay": pa.int64(),
        "skills": pa.list_(pa.string()),
        "years": pa.int64(),
        "posted": pa.int64(),
        "description": pa.string(),
        "headline": pa.string(),
        "about": pa.string(),
        "name": pa.string(),
    }
)


class _Picks:
    """Picks among phrasings: every row has its own row of draws, used up from the left."""

    def __init__(self, draws: NDArray[np.float64]) -> None:
        self._draws = iter(draws)

    def one(self, phrasings: Sequence[str]) -> str:
        return phrasings[int(next(self._draws) * len(phrasings))]

    def chance(self, share: float) -> bool:
        return bool(next(self._draws) < share)


def place(city: int) -> str:
    """A city with its country."""
    return f"{words.CITIES[city]}, {words.COUNTRIES[city]}"


def _skill_words(has: NDArray[np.bool_]) -> list[str]:
    return [words.SKILLS[skill] for skill in np.flatnonzero(has)]


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOaeio' else 'a'} {noun}"


def _years(years: int) -> str:
    return "some months" if years == 0 else "one year" if years == 1 else f"{years} years"


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def member_table(seed: int, members: Members) -> pa.Table:
    """Profiles: what a member says to the platform, wishes included.

    Returns:
        `USER_COLUMNS`, and `about`, the part of the summary that everybody may read.
    """
    draws = stream(seed, "member.prose").random((len(members), 16))
    premium = market_premium(members.expected_pay, members.occupation, members.level, members.city)
    rows = []
    for row in range(len(members)):
        pick = _Picks(draws[row])
        occupation = words.OCCUPATIONS[members.occupation[row]]
        specialty = words.SPECIALTIES[members.specialty[row]]
        level = int(members.level[row])
        skills = _skill_words(members.skills[row])
        facts = {
            "title": words.LEVEL_TITLES[level].format(pick.one(occupation.titles)),
            "area": specialty.area,
            "duty": specialty.duty,
            "skill": next(skill for skill in specialty.skills if skill in skills),
            "years": _years(int(members.years[row])),
            "city": words.CITIES[members.city[row]],
        }
        headline = pick.one(_HEADLINES).format_map(facts)
        about = [pick.one(_ABOUT).format_map(facts)]
        second = pick.one(_SECOND)
        if members.second_specialty[row] >= 0:
            about.append(
                second.format(second=words.SPECIALTIES[members.second_specialty[row]].area)
            )

        wishes = [pick.one(_PRIORITY[members.stated_priority[row]]).format_map(facts)]
        size = members.wished_size[row]
        size_wish = pick.one(_SIZE[max(size, 0)])
        mover = pick.one(_MOVER)
        target_wish = pick.one(_TARGET)
        wishes += [size_wish] if size >= 0 else []
        wishes += [mover] if members.stated_mover[row] else []
        if members.stated_target[row] >= 0:
            title = words.OCCUPATIONS[members.stated_target[row]].titles[0]
            wishes.append(target_wish.format(a_target=_with_article(title.lower())))
        wishes.append(f"Expects {_PAY_WISH[np.searchsorted((-0.06, 0.1), premium[row])]}.")
        hinted, wrong = pick.chance(_SHARE_HINTED), pick.chance(_SHARE_WRONG_HINTS)
        urgent = members.is_changing[row] != wrong
        hint = pick.one(_URGENT if urgent else _IDLE)
        wishes += [hint] if hinted else []
        rows.append(
            {
                "user_id": f"member-{row:05d}",
                "headline": headline,
                "summary": " ".join(about + wishes),
                "skills": skills,
                "years": int(members.years[row]),
                "seniority": words.LEVELS[level],
                "industry": words.INDUSTRIES[members.industry[row]],
                "place": place(members.city[row]),
                "workplace": words.WORKPLACES[members.wished_workplace[row]],
                "expected_pay": int(members.expected_pay[row]),
                "about": " ".join(about),
            }
        )
    return pa.Table.from_pylist(rows, schema=USER_COLUMNS.append(pa.field("about", pa.string())))


def job_table(seed: int, jobs: Jobs, companies: Companies) -> pa.Table:
    """Jobs as items, with a description of 40 to 90 words that repeats what a reader must know."""
    draws = stream(seed, "job.prose").random((len(jobs), 12))
    premium = market_premium(jobs.pay, jobs.occupation, jobs.level, jobs.city)
    rows = []
    for row in range(len(jobs)):
        pick = _Picks(draws[row])
        specialty = words.SPECIALTIES[jobs.specialty[row]]
        titles = words.OCCUPATIONS[jobs.occupation[row]].titles
        title = words.LEVEL_TITLES[jobs.level[row]].format(pick.one(titles))
        skills = _skill_words(jobs.skills[row])
        years = int(jobs.years[row])
        facts = {
            "company": companies.name[jobs.company[row]],
            "title": title,
            "a_title": _with_article(title),
            "area": specialty.area,
            "duty": specialty.duty,
            "skills": _listed(skills),
            "years": _years(years),
            "industry": words.INDUSTRIES[jobs.industry[row]],
            "city": words.CITIES[jobs.city[row]],
        }
        opening, needs = pick.one(_OPENINGS), pick.one(_NEEDS)
        employer = pick.one(_EMPLOYERS[jobs.company_size[row]])
        terms = [pick.one(_WORKPLACES[jobs.workplace[row]])]
        terms.append(pick.one(_PAY[np.searchsorted(_PAY_STEPS, premium[row])]))
        relocation = pick.one(_RELOCATION)
        terms += [relocation] if jobs.relocation[row] else []
        sentences = [opening, needs, employer] if pick.chance(0.6) else [employer, opening, needs]
        text = " ".join([*sentences, f"{_listed(terms)}."]).format_map(facts)
        rows.append(
            {
                "item_id": f"job-{row:05d}",
                "kind": "job",
                "title": f"{title}, {specialty.area}" if pick.chance(0.5) else title,
                "company": facts["company"],
                "company_size": words.COMPANY_SIZES[jobs.company_size[row]],
                "industry": facts["industry"],
                "place": place(jobs.city[row]),
                "workplace": words.WORKPLACES[jobs.workplace[row]],
                "relocation": "relocation paid" if jobs.relocation[row] else None,
                "pay": int(jobs.pay[row]),
                "skills": skills,
                "years": years,
                "posted": int(START + jobs.posted_day[row] * SECONDS_PER_DAY),
                "description": text[0].upper() + text[1:],
            }
        )
    return pa.Table.from_pylist(rows, schema=ITEM_COLUMNS)


def member_names(seed: int, num_members: int) -> list[str]:
    """What members are called: some share a surname, and a few the whole name."""
    draws = stream(seed, "member.name").random((num_members, 5))
    # Few names are common and many rare, as everywhere.
    first_share = np.cumsum(1 / (np.arange(len(words.FIRST_NAMES)) + 8.0))
    last_share = np.cumsum(1 / (np.arange(len(words.LAST_NAMES)) + 8.0))
    given = words.FIRST_NAMES
    first = np.searchsorted(first_share, draws[:, 0] * first_share[-1], side="right")
    last, other = np.searchsorted(last_share, draws[:, 1:3] * last_share[-1], side="right").T
    names = []
    for row, (_, _, _, middle, doubled) in enumerate(draws):
        initial = f" {given[int(middle * 10 * len(given))][0]}." if middle < 0.1 else ""
        surname = words.LAST_NAMES[last[row]]
        if doubled < 0.08 and other[row] != last[row]:
            surname = f"{surname}-{words.LAST_NAMES[other[row]]}"
        names.append(f"{given[first[row]]}{initial} {surname}")
    return names


def person_table(seed: int, profiles: pa.Table, persons: Int64) -> pa.Table:
    """Members as items: their name, and of their profile what is public: no wishes, no pay."""
    public = profiles.take(pa.array(persons)).select(
        ["headline", "about", "skills", "years", "place", "industry"]
    )
    rows = public.to_pylist()
    names = member_names(seed, len(profiles))
    for number, (row, member) in enumerate(zip(rows, persons.tolist(), strict=True)):
        row |= {"item_id": f"person-{number:05d}", "kind": "person", "name": names[member]}
    return pa.Table.from_pylist(rows, schema=ITEM_COLUMNS)
