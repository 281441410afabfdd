"""Names of perturbations: singles (``"A"``) and combinations (``"A+B"``), in which order does not matter."""

from __future__ import annotations

from collections.abc import Sequence


def parts(name: str, delimiter: str | None = "+") -> tuple[str, ...]:
    """The single perturbations in a name, stripped and sorted.

    A name with an empty part is no combination but a single of that name (``"Ca2+"``), and with ``delimiter=None`` no
    name is a combination.
    """
    name = str(name).strip()
    if delimiter is None:
        return (name,)
    found = sorted(part.strip() for part in name.split(delimiter))
    return tuple(found) if all(found) else (name,)


def canonical(name: str | Sequence[str], delimiter: str | None = "+") -> str:
    """One name for a perturbation in any order: of a name (``"B+A"``) or of a sequence of names (``["B", "A"]``)."""
    names = [name] if isinstance(name, str) else name
    found = sorted(part for one in names for part in parts(one, delimiter))
    if delimiter is None and len(found) != 1:
        raise ValueError(f"{list(names)!r} is a combination, but delimiter=None says that there are none.")
    return (delimiter or "").join(found)


def clean(name: str | Sequence[str], control: str | None, delimiter: str | None) -> str:
    """The canonical name of a perturbation, without a control among its parts (``"A+control"`` is ``"A"``)."""
    if name == control:  # which may hold the delimiter itself
        return control
    found = [part for part in parts(canonical(name, delimiter), delimiter) if part != control]
    return canonical(found, delimiter) if found else control
