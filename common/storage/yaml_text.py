"""YAML as people write it, without the slips that PyYAML passes over."""

from __future__ import annotations

from typing import Any

import yaml


class _Unrepeated(yaml.SafeLoader):
    """The second of two equal keys does not silently take the first one's place."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if twice := next((key for number, key in enumerate(keys) if key in keys[:number]), None):
            raise yaml.constructor.ConstructorError(problem=f"{twice} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a YAML text says. Raises `yaml.YAMLError`, also for a key that is given twice in one place."""
    return yaml.load(text, _Unrepeated)
