"""What a good recommendation is, written down: `policy.md`, its grades, and who else may judge."""

from distill.policy.document import Policy
from distill.policy.grading import Grader, Grades
from distill.policy.rules import Rule
from distill.policy.tables import Pairs, PolicyTables

__all__ = ["Grader", "Grades", "Pairs", "Policy", "PolicyTables", "Rule"]
