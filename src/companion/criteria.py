"""``claims.yml``: what is asked, and by which criteria. Nothing here knows what was found."""

import hashlib
from collections.abc import Iterable
from typing import Any

import yaml

from companion import paths
from companion.errors import RecordError

_TEXT = {"type": "string", "minLength": 1}
_LINKS = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[a-z_/]+#"}}
_PART = {
    "type": "object",
    "required": ["name", "scope", "criterion", "by"],
    "properties": dict.fromkeys(("name", "scope", "criterion", "by"), _TEXT) | {"links": _LINKS},
    "additionalProperties": False,
}
_CLAIM = {
    "type": "object",
    "required": ["id", "paper", "statement", "chapter", "parts"],
    "properties": dict.fromkeys(("id", "paper", "statement", "chapter"), _TEXT)
    | {"parts": {"type": "array", "items": _PART, "minItems": 1}},
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _CLAIM, "minItems": 1}


def entries() -> list[dict[str, Any]]:
    """The claims of claims.yml as they stand there; RecordError where it is missing or not whole.
    """
    path = paths.claims()
    if not path.exists():
        raise RecordError(f"{path} must be a file, got none there; install or check out anew")
    import jsonschema  # only here: most of what is run reads no claims

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        jsonschema.validate(found, SCHEMA)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())  # YAML's errors have a line for each of their parts
        raise RecordError(f"{path} must be a YAML file, got {reason}; mend it") from error
    except jsonschema.ValidationError as error:
        at = error.json_path.removeprefix("$")
        raise RecordError(
            f"{path} must list claims with parts, got {error.message} at {at or 'its top'}; mend it"
        ) from error
    return list(found)


def digests(parts: Iterable[str]) -> dict[str, str]:
    """The digests of the criteria of these parts, named "D4/transplant"; of one that claims.yml
    does not have, none. Blanks do not count."""
    wanted = set(parts)
    if not wanted:
        return {}
    return {
        f"{claim['id']}/{part['name']}": digest(part["criterion"])
        for claim in entries()
        for part in claim["parts"]
        if f"{claim['id']}/{part['name']}" in wanted
    }


def digest(criterion: str) -> str:
    """The digest of a criterion's words."""
    return hashlib.sha256(" ".join(criterion.split()).encode()).hexdigest()[:16]
