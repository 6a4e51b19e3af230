"""YAML as people write it: every value written out, so that a file means no more than it holds.

An alias stands for what was written before, aliases of aliases for a thousand million values, and
some hundred bytes of them for more than memory takes.
"""

from typing import Any

import yaml


def load_yaml(text: str, *, as_text: bool = False) -> Any:
    """What a YAML document holds.

    Args:
        text: the document.
        as_text: leave every value the text that it is written as: version 1.10 is not 1.1.

    Raises:
        yaml.YAMLError: it is no YAML, has an alias, or holds what is no value, such as the 31st of
            June; as far as is known with the line.

    Example:
        >>> load_yaml("version: 1.10"), load_yaml("version: 1.10", as_text=True)
        ({'version': 1.1}, {'version': '1.10'})
    """
    loader = (yaml.BaseLoader if as_text else yaml.SafeLoader)(text)
    compose = loader.compose_node

    def compose_written(parent: Any, index: Any) -> Any:
        if loader.check_event(yaml.AliasEvent):
            alias = loader.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{alias.anchor} is an alias; write out what it stands for",
                problem_mark=alias.start_mark,
            )
        return compose(parent, index)

    loader.compose_node = compose_written
    try:
        return loader.get_single_data()
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deeply") from None
    except ValueError as error:
        raise yaml.MarkedYAMLError(problem=str(error)) from None
