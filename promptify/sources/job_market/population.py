"""Who lives in the job market: members with what they say and what they do, and jobs.

Every attribute is drawn from its own stream, so that a bigger market keeps the smaller one's
members and jobs, and one new attribute leaves the others as they were.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptify.sources.job_market import vocabulary as words

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

NUM_COMPANIES = 240
NUM_DAYS = 180
SECONDS_PER_DAY = 86_400
START = 1_735_689_600  # 2025-01-01, in seconds
PRIORITIES = ("pay", "place", "growth", "craft")
PAY, PLACE, GROWTH, CRAFT = range(4)


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one named part of the market."""
    return np.random.default_rng((seed, zlib.crc32(name.encode())))


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """Who people are. What stands in a profile comes first; behaviour shows what follows.

    Legend: M members, O occupations, P specialties, S skills, I industries, W workplaces, Z sizes.
    """

    occupation: Int64  # [M]
    specialty: Int64  # [M], an own branch
    second_specialty: Int64  # [M], another branch of the same occupation, or -1
    level: Int64  # [M]
    years: Int64  # [M]
    industry: Int64  # [M]
    city: Int64  # [M]
    expected_pay: Int64  # [M], a year
    skills: Bool  # [M, S]
    wished_workplace: Int64  # [M]
    wished_size: Int64  # [M], or -1
    stated_priority: Int64  # [M]
    stated_mover: Bool  # [M], says they would relocate
    stated_target: Int64  # [M], the occupation they say they want to change to, or -1

    is_changing: Bool  # [M], really changing jobs, not only browsing
    curiosity: Float32  # [M], how readily they look at anything
    target: Int64  # [M], the occupation they really move to, or -1
    is_mover: Bool  # [M]
    priority: Int64  # [M]
    occupation_taste: Float32  # [M, O], 0..1
    specialty_taste: Float32  # [M, P], 0..1
    industry_taste: Float32  # [M, I]
    workplace_taste: Float32  # [M, W]
    size_taste: Float32  # [M, Z]

    def __len__(self) -> int:
        return len(self.occupation)


_FIRST_HIDDEN = "is_changing"


@dataclass(frozen=True, kw_only=True, slots=True)
class Jobs:
    """Legend: J jobs, S skills. `posted_day` may be negative: open before the log starts."""

    occupation: Int64  # [J]
    specialty: Int64  # [J]
    level: Int64  # [J]
    years: Int64  # [J], required
    company: Int64  # [J]
    company_size: Int64  # [J]
    industry: Int64  # [J]
    city: Int64  # [J]
    workplace: Int64  # [J]
    relocation: Bool  # [J], relocation is paid
    pay: Int64  # [J], a year
    skills: Bool  # [J, S], required
    quality: Float32  # [J], what everybody likes about it, standard normal
    posted_day: Float32  # [J]

    def __len__(self) -> int:
        return len(self.occupation)


class _Draws:
    """Draws for one kind of thing: each call names an attribute and gets that one's stream."""

    def __init__(self, seed: int, kind: str, size: int) -> None:
        self._seed, self._kind, self._size = seed, kind, size

    def uniform(self, name: str, *width: int) -> NDArray[np.float64]:
        return stream(self._seed, f"{self._kind}.{name}").random((self._size, *width))

    def normal(self, name: str, *width: int) -> NDArray[np.float64]:
        return stream(self._seed, f"{self._kind}.{name}").standard_normal((self._size, *width))

    def chance(self, name: str, share: float) -> Bool:
        return self.uniform(name) < share

    def choice(self, name: str, shares: NDArray[np.floating] | list[float]) -> Int64:
        """One index per thing from the same shares, or from one row of shares each."""
        cumulative = np.cumsum(np.atleast_2d(shares), axis=1, dtype=np.float64)
        cumulative /= cumulative[:, -1:]
        index: Int64 = (self.uniform(name)[:, None] >= cumulative[:, :-1]).sum(axis=1)
        return index


def _market_pay(occupation: Int64, level: Int64, city: Int64) -> NDArray[np.float64]:
    thousands = words.OCCUPATION_PAY[occupation] * words.CITY_PAY[city]
    market: NDArray[np.float64] = 1000 * thousands * np.exp(words.PAY_PER_LEVEL * (level - 1))
    return market


def _pay(market: NDArray[np.float64], noise: NDArray[np.float64]) -> Int64:
    return np.rint(market * np.exp(noise) / 500).astype(np.int64) * 500


def market_premium(pay: Int64, occupation: Int64, level: Int64, city: Int64) -> NDArray[np.float64]:
    """Log of a pay over what is usual for that occupation, level and city."""
    return np.log(pay / _market_pay(occupation, level, city))


def _other_branch(occupation: Int64, specialty: Int64, draw: NDArray[np.float64]) -> Int64:
    """Another branch of the same occupation; every occupation has three, side by side."""
    first = np.searchsorted(words.OCCUPATION_OF_SPECIALTY, occupation)
    return first + (specialty - first + 1 + (draw < 0.5)) % 3


def _neighbour(occupation: Int64, draw: NDArray[np.float64]) -> Int64:
    shares = words.IS_NEIGHBOUR[occupation] + 0.01 * (
        np.arange(len(words.OCCUPATIONS)) != occupation[:, None]
    )
    cumulative = np.cumsum(shares, axis=1)
    index: Int64 = (draw[:, None] * cumulative[:, -1:] >= cumulative[:, :-1]).sum(axis=1)
    return index


# Of those who say something, this share does otherwise.
SHARE_UNLIKE_STATED = 0.45
# Who means to change occupation: nobody, those who say so, those who do not, those who only say so.
_NO_PLAN, _OPEN, _SILENT, _ONLY_TALK = range(4)
_PLAN_SHARE = [0.82, 0.09, 0.05, 0.04]


def draw_members(seed: int, num_members: int) -> Members:
    """Draw members: attributes, what their profile says, and what their behaviour will show."""
    draws = _Draws(seed, "member", num_members)
    rows = np.arange(num_members)
    rank = np.arange(len(words.OCCUPATIONS))
    occupation = draws.choice("occupation", 1 / (rank + 12.0))
    first = np.searchsorted(words.OCCUPATION_OF_SPECIALTY, occupation)
    specialty = first + draws.choice("specialty", [0.45, 0.33, 0.22])
    level = draws.choice("level", [0.2, 0.32, 0.27, 0.14, 0.07])
    years = np.maximum(words.LEVEL_YEARS[level] + np.rint(draws.normal("years") * 1.5), 0)
    city = draws.choice("city", words.CITY_SHARE)
    other = _other_branch(occupation, specialty, draws.uniform("other specialty"))
    second = np.where(draws.chance("has second", 0.4), other, -1)
    industry = draws.choice("industry", words.OCCUPATION_INDUSTRIES[occupation] + 0.02)

    skill_share = (
        0.9 * words.SPECIALTY_SKILLS[specialty]
        + (0.3 + 0.1 * level[:, None]) * words.OCCUPATION_SKILLS[occupation]
        + 0.6 * words.SPECIALTY_SKILLS[other] * (second >= 0)[:, None]
        + 0.002
    )
    skills = draws.uniform("skills", len(words.SKILLS)) < skill_share
    # Nobody comes without a skill: the first of the own branch is always there.
    skills[rows, words.SPECIALTY_SKILLS[specialty].argmax(axis=1)] = True

    neighbour = _neighbour(occupation, draws.uniform("neighbour"))
    plan = draws.choice("plan", _PLAN_SHARE)
    market = _market_pay(occupation, level, city)
    stated: dict[str, Any] = {
        "occupation": occupation,
        "specialty": specialty,
        "second_specialty": second,
        "level": level,
        "years": years.astype(np.int64),
        "industry": industry,
        "city": city,
        "expected_pay": _pay(market, 0.02 + 0.12 * draws.normal("pay")),
        "skills": skills,
        "wished_workplace": draws.choice("workplace", [0.28, 0.42, 0.3]),
        "wished_size": draws.choice("size", [0.4, 0.22, 0.16, 0.22]) - 1,
        "stated_priority": draws.choice("priority", [0.28, 0.26, 0.22, 0.24]),
        "stated_mover": draws.chance("mover", 0.25),
        "stated_target": np.where((plan == _OPEN) | (plan == _ONLY_TALK), neighbour, -1),
    }
    target = np.where((plan == _OPEN) | (plan == _SILENT), neighbour, -1)
    return Members(**stated, **_hidden(draws, stated, target=target, other=other))


def members_alike(members: Members, row: int, *, count: int, seed: int) -> Members:
    """People who say of themselves what one member says, and may mean something else.

    Args:
        members: who live in the market.
        row: the member whose profile all of them have.
        count: how many.
        seed: of what the profile does not say, drawn anew for each as `draw_members` draws it.
    """
    draws = _Draws(seed, "alike", count)
    names = [field.name for field in fields(Members)]
    of_one = {name: getattr(members, name)[row : row + 1] for name in names}
    stated = {
        name: of_one[name].repeat(count, axis=0) for name in names[: names.index(_FIRST_HIDDEN)]
    }
    # Who says a target meant it or only talked; who says none has none or is silent about it.
    speaks = stated["stated_target"] >= 0
    meant = np.where(
        speaks,
        _PLAN_SHARE[_OPEN] / (_PLAN_SHARE[_OPEN] + _PLAN_SHARE[_ONLY_TALK]),
        _PLAN_SHARE[_SILENT] / (_PLAN_SHARE[_SILENT] + _PLAN_SHARE[_NO_PLAN]),
    )
    neighbour = _neighbour(stated["occupation"], draws.uniform("neighbour"))
    goal = np.where(speaks, stated["stated_target"], neighbour)
    target = np.where(draws.uniform("plan") < meant, goal, -1)
    any_other = _other_branch(
        stated["occupation"], stated["specialty"], draws.uniform("other specialty")
    )
    other = np.where(stated["second_specialty"] >= 0, stated["second_specialty"], any_other)
    return Members(**stated, **_hidden(draws, stated, target=target, other=other))


def _hidden(
    draws: _Draws, stated: Mapping[str, Any], *, target: Int64, other: Int64
) -> dict[str, Any]:
    """What behaviour shows of people: the fields of `Members` that no profile says.

    Args:
        draws: of as many people.
        stated: what their profiles say.
        target: int64 [M], the occupation they really move to, or −1.
        other: int64 [M], a branch of their occupation beside their own.
    """
    occupation, specialty = stated["occupation"], stated["specialty"]
    rows = np.arange(len(occupation))
    industries = np.arange(len(words.INDUSTRIES))

    def revealed(name: str, said: Int64, num_values: int) -> Int64:
        anything = draws.choice(f"real {name}", [1.0] * num_values)
        return np.where(draws.chance(f"unlike {name}", SHARE_UNLIKE_STATED), anything, said)

    real_workplace = revealed("workplace", stated["wished_workplace"], 3)
    real_size = revealed("size", stated["wished_size"] + 1, 4) - 1
    closeness = 1 - np.abs(np.arange(3) - real_workplace[:, None])
    size_taste = np.where((real_size >= 0)[:, None], 1.3 * (np.eye(3)[real_size] - 1 / 3), 0.0)

    main_occupation = np.where(target >= 0, target, occupation)
    occupation_taste = 0.25 * words.IS_NEIGHBOUR[occupation]
    occupation_taste[rows, occupation] = np.where(target >= 0, 0.3, 1.0)
    occupation_taste[rows, main_occupation] = 1.0
    # Within an occupation one branch is liked best: mostly the own one, sometimes another.
    liked_other = draws.chance("likes other", 0.3)
    specialty_taste = np.zeros((len(rows), len(words.SPECIALTIES)))
    specialty_taste[rows, specialty] = np.where(liked_other, 0.4, 1.0)
    specialty_taste[rows, other] = np.where(liked_other, 1.0, 0.1)
    specialty_taste *= np.where(target >= 0, 0.3, 1.0)[:, None]
    target_first = np.searchsorted(words.OCCUPATION_OF_SPECIALTY, main_occupation)
    target_branch = target_first + draws.choice("target branch", [1.0, 1.0, 1.0])
    specialty_taste[rows, target_branch] = np.where(
        target >= 0, 1.0, specialty_taste[rows, target_branch]
    )
    industry_taste = 0.5 * draws.normal("industry taste", len(words.INDUSTRIES))
    industry_taste += 0.5 * (industries == stated["industry"][:, None])

    mover = stated["stated_mover"]
    return {
        "is_changing": draws.chance("changing", 0.45) | (target >= 0),
        "curiosity": draws.normal("curiosity").astype(np.float32),
        "target": target,
        "is_mover": np.where(draws.chance("unlike mover", 0.2), ~mover, mover),
        "priority": revealed("priority", stated["stated_priority"], len(PRIORITIES)),
        "occupation_taste": occupation_taste.astype(np.float32),
        "specialty_taste": specialty_taste.astype(np.float32),
        "industry_taste": industry_taste.astype(np.float32),
        "workplace_taste": (0.7 * closeness).astype(np.float32),
        "size_taste": size_taste.astype(np.float32),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Companies:
    """The employers, the same for any number of jobs."""

    name: tuple[str, ...]
    size: Int64
    industry: Int64


def draw_companies(seed: int) -> Companies:
    """Draw the employers: a name that hints at the industry, a size, an industry."""
    draws = _Draws(seed, "company", NUM_COMPANIES)
    industry = draws.choice("industry", [1.0] * len(words.INDUSTRIES))
    firsts = draws.choice("first word", [1.0] * len(words.COMPANY_FIRST_WORDS))
    lasts = draws.choice("last word", [1.0] * 3)
    names = [
        f"{words.COMPANY_FIRST_WORDS[one]} {words.COMPANY_LAST_WORDS[words.INDUSTRIES[kind]][last]}"
        for one, last, kind in zip(firsts, lasts, industry, strict=True)
    ]
    return Companies(name=tuple(names), size=draws.choice("size", [1, 1, 1]), industry=industry)


def draw_jobs(seed: int, num_jobs: int, companies: Companies) -> Jobs:
    """Draw jobs: companies offer what their industry needs, some before the log, some late."""
    draws = _Draws(seed, "job", num_jobs)
    company = draws.choice("company", 1 / (np.arange(NUM_COMPANIES) + 40.0))
    industry = companies.industry[company]
    rank = np.arange(len(words.OCCUPATIONS))
    need = (words.OCCUPATION_INDUSTRIES.T[industry] + 0.02) / (rank + 12.0)
    # An industry that few occupations name must not make those few as common as all others.
    need = need * words.OCCUPATION_INDUSTRIES.sum(axis=1) ** -0.5
    occupation = draws.choice("occupation", need)
    first = np.searchsorted(words.OCCUPATION_OF_SPECIALTY, occupation)
    specialty = first + draws.choice("specialty", [0.4, 0.33, 0.27])
    level = draws.choice("level", [0.2, 0.33, 0.27, 0.13, 0.07])
    city = draws.choice("city", words.CITY_SHARE)
    years = np.maximum(words.LEVEL_YEARS[level] - 1 + np.rint(draws.normal("years")), 0)
    workplace = draws.choice("workplace", [0.4, 0.34, 0.26])

    # Two skills of the branch and two or three of the occupation: the smallest keys win.
    keys = draws.uniform("skills", len(words.SKILLS))
    of_branch = np.where(words.SPECIALTY_SKILLS[specialty], keys, 2.0)
    general = words.OCCUPATION_SKILLS[occupation] & ~words.SPECIALTY_SKILLS[specialty]
    of_occupation = np.where(general, keys, 2.0)
    num_general = 2 + draws.chance("third skill", 0.5)[:, None]
    skills = (of_branch <= np.sort(of_branch, axis=1)[:, 1:2]) & (of_branch < 2)
    cut = np.take_along_axis(np.sort(of_occupation, axis=1), num_general - 1, axis=1)
    skills |= (of_occupation <= cut) & (of_occupation < 2)

    era = draws.choice("era", [0.5, 0.42, 0.08])
    within = draws.uniform("posted")
    posted_day = np.choose(era, [-30 * within, 150 * within, 150 + 28 * within])
    market = _market_pay(occupation, level, city)
    return Jobs(
        occupation=occupation,
        specialty=specialty,
        level=level,
        years=years.astype(np.int64),
        company=company,
        company_size=companies.size[company],
        industry=industry,
        city=city,
        workplace=workplace,
        relocation=draws.chance("relocation", 0.25) & (workplace != words.REMOTE),
        pay=_pay(market, 0.16 * draws.normal("pay")),
        skills=skills,
        quality=draws.normal("quality").astype(np.float32),
        posted_day=posted_day.astype(np.float32),
    )
