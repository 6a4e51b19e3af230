"""The words of the job market as tables: occupations, skills, places, levels, companies."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Specialty:
    """A branch of an occupation: its name in the trade, skills, duty, and laymen's words."""

    area: str
    skills: tuple[str, ...]
    duty: str
    topics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Occupation:
    """An occupation; `pay` in thousands a year, occupations of one `group` are neighbours."""

    name: str
    group: str
    titles: tuple[str, ...]
    pay: float
    industries: tuple[str, ...]
    skills: tuple[str, ...]
    specialties: tuple[Specialty, ...]


def _read_occupations() -> tuple[Occupation, ...]:
    table = tomllib.loads(
        files(__package__).joinpath("occupations.toml").read_text(encoding="utf-8")
    )
    return tuple(
        Occupation(
            name=name,
            group=row["group"],
            titles=tuple(row["titles"]),
            pay=float(row["pay"]),
            industries=tuple(row["industries"]),
            skills=tuple(row["skills"]),
            specialties=tuple(
                Specialty(
                    area=branch["area"],
                    skills=tuple(branch["skills"]),
                    duty=branch["duty"],
                    topics=tuple(branch["topics"]),
                )
                for branch in row["specialties"]
            ),
        )
        for name, row in table.items()
    )


OCCUPATIONS = _read_occupations()
SPECIALTIES = tuple(branch for occupation in OCCUPATIONS for branch in occupation.specialties)
OCCUPATION_OF_SPECIALTY = np.repeat(
    np.arange(len(OCCUPATIONS)), [len(occupation.specialties) for occupation in OCCUPATIONS]
)
SKILLS = tuple(
    dict.fromkeys(
        skill
        for occupation in OCCUPATIONS
        for skill in (
            *occupation.skills,
            *(skill for branch in occupation.specialties for skill in branch.skills),
        )
    )
)
INDUSTRIES = tuple(
    dict.fromkeys(industry for occupation in OCCUPATIONS for industry in occupation.industries)
)


def _membership(rows: list[tuple[str, ...]], words: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.array([[word in row for word in words] for row in rows])


OCCUPATION_SKILLS = _membership([row.skills for row in OCCUPATIONS], SKILLS)
SPECIALTY_SKILLS = _membership([row.skills for row in SPECIALTIES], SKILLS)
OCCUPATION_INDUSTRIES = _membership([row.industries for row in OCCUPATIONS], INDUSTRIES)
_GROUPS = np.array([occupation.group for occupation in OCCUPATIONS])
IS_NEIGHBOUR = (_GROUPS[:, None] == _GROUPS[None, :]) & ~np.eye(len(OCCUPATIONS), dtype=bool)
OCCUPATION_PAY = np.array([occupation.pay for occupation in OCCUPATIONS], dtype=np.float32)

# City, country, how many live there, and what pay is worth there.
_PLACES = (
    ("London", "United Kingdom", 8, 1.18),
    ("Leeds", "United Kingdom", 3, 0.98),
    ("Manchester", "United Kingdom", 4, 1.0),
    ("Dublin", "Ireland", 4, 1.12),
    ("Cork", "Ireland", 2, 1.0),
    ("Paris", "France", 7, 1.1),
    ("Lyon", "France", 3, 0.98),
    ("Berlin", "Germany", 6, 1.04),
    ("Hamburg", "Germany", 4, 1.04),
    ("Munich", "Germany", 4, 1.14),
    ("Amsterdam", "Netherlands", 4, 1.1),
    ("Rotterdam", "Netherlands", 3, 1.02),
    ("Madrid", "Spain", 4, 0.9),
    ("Barcelona", "Spain", 4, 0.9),
    ("Lisbon", "Portugal", 3, 0.82),
    ("Porto", "Portugal", 2, 0.8),
    ("Warsaw", "Poland", 4, 0.84),
    ("Krakow", "Poland", 3, 0.8),
)
CITIES = tuple(city for city, _, _, _ in _PLACES)
COUNTRIES = tuple(country for _, country, _, _ in _PLACES)
CITY_SHARE = np.array([people for _, _, people, _ in _PLACES]) / sum(row[2] for row in _PLACES)
CITY_PAY = np.array([cost for _, _, _, cost in _PLACES], dtype=np.float32)
IS_SAME_COUNTRY = np.array([[one == other for other in COUNTRIES] for one in COUNTRIES])

LEVELS = ("junior", "experienced", "senior", "lead", "head")
LEVEL_TITLES = ("Junior {}", "{}", "Senior {}", "Lead {}", "Head {}")
LEVEL_YEARS = np.array([1, 4, 8, 12, 17])
PAY_PER_LEVEL = 0.2

WORKPLACES = ("on site", "hybrid", "remote")
ON_SITE, HYBRID, REMOTE = range(3)

COMPANY_SIZES = ("2-50 people", "51-500 people", "over 500 people")
SMALL, MEDIUM, LARGE = range(3)

COMPANY_FIRST_WORDS = (
    *("Alder", "Amber", "Anchor", "Beacon", "Birch", "Brook", "Cedar", "Compass", "Copper"),
    *("Coral", "Crane", "Delta", "Ember", "Falcon", "Fern", "Harbour", "Hazel", "Heron"),
    *("Juniper", "Lantern", "Linden", "Maple", "Meridian", "Northern", "Oak", "Osprey"),
    *("Pebble", "Pioneer", "Quarry", "River", "Rowan", "Silver", "Summit", "Willow"),
)
# The last word of a company's name hints at its industry.
COMPANY_LAST_WORDS = {
    "health care": ("Clinic", "Care", "Health"),
    "public sector": ("Council", "Agency", "Service"),
    "education": ("Academy", "School", "Learning"),
    "software": ("Labs", "Systems", "Cloud"),
    "finance": ("Capital", "Bank", "Trust"),
    "media": ("Press", "Studio", "Media"),
    "retail": ("Stores", "Market", "Goods"),
    "logistics": ("Freight", "Lines", "Transport"),
    "energy": ("Power", "Grid", "Energy"),
    "manufacturing": ("Works", "Machines", "Industries"),
    "construction": ("Build", "Structures", "Homes"),
    "hospitality": ("Hotels", "Kitchens", "Resorts"),
}

# Given names and surnames of the countries above, the common ones first; whoever bears two of them
# together bears them by chance.
FIRST_NAMES = (
    *("Anna", "Thomas", "Maria", "Peter", "Sofia", "Martin", "Laura", "David", "Julia", "Daniel"),
    *("Emma", "Lucas", "Clara", "Simon", "Eva", "Adam", "Helena", "Oscar", "Marta", "Hugo"),
    *("Zoë", "José", "Chloé", "Łukasz", "Siân", "Jürgen", "Aoife", "André", "Inês", "Søren"),
    *("Niamh", "Bartosz", "Margarida", "Pieter", "Noor", "Seán", "Małgorzata", "Begoña"),
    *("François", "Anne-Marie", "Jean-Luc", "Karl-Heinz", "María José", "Rhys", "Femke", "Tiago"),
    *("Ewa", "Conor", "Katarzyna", "Matthias", "Élodie", "Gareth", "Lotte", "Joaquín"),
    "Wiesława",
)
LAST_NAMES = (
    *("Smith", "Müller", "Martin", "García", "Silva", "Kowalski", "Jansen", "Murphy", "Jones"),
    *("Schmidt", "Bernard", "Fernández", "Santos", "Nowak", "de Vries", "Kelly", "Taylor"),
    *("Weber", "Dubois", "López", "Pereira", "Wójcik", "Bakker", "Byrne", "Brown", "Fischer"),
    *("Lefèvre", "Sánchez", "Ferreira", "Kamiński", "Visser", "O'Brien", "Davies", "Schäfer"),
    *("Rousseau", "Núñez", "Gonçalves", "Dąbrowski", "van den Berg", "Ó Súilleabháin", "Hughes"),
    *("Groß", "Beauchêne", "Ibáñez", "Magalhães", "Zieliński", "Hoekstra", "McCarthy"),
    *("Ashworth", "Köhler", "Charpentier", "Echeverría", "Figueiredo", "Szymański", "Dijkstra"),
    *("Fitzgerald", "Penrose", "Brandstätter", "Delacroix", "Villanueva", "Quintela"),
    *("Wiśniewska", "Terpstra", "Gallagher"),
)

# Skills whose market changes while the log runs: more, and less, wanted as time goes by.
RISING_SKILLS = ("Python", "transformers", "heat pumps", "photovoltaics", "GDPR", "short video")
FADING_SKILLS = ("Java", "cold calling", "spreadsheets", "print production", "till operation")
SKILL_TREND = np.array(
    [float(skill in RISING_SKILLS) - float(skill in FADING_SKILLS) for skill in SKILLS],
    dtype=np.float32,
)
