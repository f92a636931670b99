"""What the results show: the table of hazards, and what the documentation says of it."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.operators.trial import Outcome
from benchmarks.operators.variants import attribute_of
from converters.hazards import Effect, Hazard, Values, order

__all__ = ["CAMPAIGN", "Figures", "figures", "figures_text", "found_hazards", "hazards_page", "merged", "with_section"]

CAMPAIGN = "campaign"
_MAX_EXAMPLE = 200  # letters

_DTYPES = ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool")

_KINDS: tuple[tuple[str, Values], ...] = (
    (r"ordinary values|one row|many rows|whole numbers from 0 on, of up to 8 bits", Values.ORDINARY),
    (r"equal values", Values.EQUAL),
    (r"halves|floats halves and other simple ones", Values.HALVES),
    (r"floats of hundreds", Values.HUNDREDS),
    (r"floats ±0 or tiny", Values.TINY),
    (r"floats subnormal", Values.SUBNORMAL),
    (r"floats of up to 1e\+0\d|floats of up to the largest float16", Values.LARGE),
    (r"floats of up to .*", Values.HUGE),
    (r"floats nan", Values.NAN),
    (r"floats -?inf", Values.INFINITE),
    (r"whole numbers below 0, of up to 8 bits", Values.NEGATIVE),
    (r"whole numbers .*", Values.LARGE_WHOLE),
    (r"divisors 0", Values.ZERO_DIVISOR),
    (r"the least number by -1", Values.LEAST_BY_MINUS_ONE),
    (r"exponents .*", Values.EXPONENT),
    (r"shifts .*", Values.SHIFT),
    (r"indices .*", Values.INDEX),
    (r"no rows", Values.NO_ROWS),
)
"""What the classes of values of the cases (`benchmarks.operators.values`) are called in the table."""


@dataclass(slots=True)
class Figures:
    """How much was tried. A check is one variant of an operator of one element type, in one form, on one class of
    values."""

    operators: set[str] = field(default_factory=set)
    items: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    checks: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)


def figures(lines: Iterable[Mapping[str, Any]]) -> Figures:
    found = Figures()
    for line in lines:
        if not any(line["forms"].values()):
            continue  # TensorFlow has it for no processor
        found.operators.add(line["op"])
        found.items += 1
        for form, variants in line["forms"].items():
            classes = [of["classes"] for of in variants.values() if "classes" in of]
            found.converted[form] = found.converted.get(form, 0) + bool(classes)
            for outcomes in classes:
                for outcome in outcomes.values():
                    what = _outcome(outcome)[0]
                    found.checks += 1
                    found.outcomes[what] = found.outcomes.get(what, 0) + 1
    return found


def _outcome(found: str | list[str]) -> tuple[str, str]:
    return (found, "") if isinstance(found, str) else (found[0], found[1])


def kind_of(label: str) -> Values:
    return next(kind for pattern, kind in _KINDS if re.fullmatch(pattern, label))


@dataclass(slots=True)
class _Seen:
    """Where one form of one operator went wrong in one way on one kind of values."""

    dtypes: set[str] = field(default_factory=set)
    variants: set[str] = field(default_factory=set)
    examples: dict[str, str] = field(default_factory=dict)


def found_hazards(lines: Iterable[Mapping[str, Any]]) -> list[Hazard]:
    """The hazards in the results."""
    seen: dict[tuple[str, str, Values, Effect], _Seen] = {}
    tried: dict[tuple[str, str, Values], set[str]] = {}
    for line in lines:
        for form, variants in line["forms"].items():
            for variant, found in variants.items():
                for kind, effect, example in _kinds(found.get("classes", {}), tried, (line["op"], form), variant):
                    one = seen.setdefault((line["op"], form, kind, effect), _Seen())
                    one.dtypes.add(line["dtype"])
                    one.variants.add(variant)
                    one.examples.setdefault(line["dtype"], f"{line['dtype']}{variant and f', {variant}'}: {example}")
    hazards = []
    for (op, form, kind, effect), one in seen.items():
        dtypes = tuple(dtype for dtype in _DTYPES if dtype in one.dtypes)
        is_all = one.variants == tried[op, form, kind]
        variants = () if is_all else tuple(sorted(one.variants))
        example = one.examples[dtypes[0]][:_MAX_EXAMPLE]
        hazards.append(Hazard(op, form, kind, effect, attribute_of(op), dtypes, variants, example, CAMPAIGN))  # type: ignore[arg-type]
    return hazards


def _kinds(
    classes: Mapping[str, Any], tried: dict[tuple[str, str, Values], set[str]], key: tuple[str, str], variant: str
) -> Iterator[tuple[Values, Effect, str]]:
    """The kinds of values on which a variant is not equal, each with what happens, and an example. Where that happens
    on ordinary values, it is no news on others."""
    ordinary = {_outcome(found)[0] for label, found in classes.items() if kind_of(label) is Values.ORDINARY}
    told = set()
    for label, found in classes.items():
        kind = kind_of(label)
        tried.setdefault((*key, kind), set()).add(variant)
        what, example = _outcome(found)
        if what == Outcome.EQUAL or (kind, what) in told or (kind is not Values.ORDINARY and what in ordinary):
            continue
        told.add((kind, what))
        yield kind, Effect(what), example


def merged(old: Iterable[Hazard], new: Iterable[Hazard], tried: Container[tuple[str, str]]) -> list[Hazard]:
    """The table with what is new of the operators and element types that were `tried`; what else it has stays."""
    found: dict[tuple, Hazard] = {}
    for one in old:
        left = one.dtypes if one.source != CAMPAIGN else tuple(t for t in one.dtypes if (one.op, t) not in tried)
        if left:
            found[_key(one)] = replace(one, dtypes=left)
    for one in new:
        known = found.get(_key(one))
        dtypes = {*one.dtypes, *(known.dtypes if known is not None else ())}
        found[_key(one)] = replace(one, dtypes=tuple(dtype for dtype in _DTYPES if dtype in dtypes))
    return list(found.values())


def _key(one: Hazard) -> tuple:
    return one.op, one.form, one.values, one.effect, one.source


# -- documentation


def with_section(page: str, name: str, text: str) -> str:
    """The page with `text` between its markers. Raises ValueError where it has none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"the page has no {begin} … {end}: put them where the section is to be")
    head, _, rest = page.partition(begin)
    return f"{head}{begin}\n{text}{end}{rest.partition(end)[2]}"


def figures_text(found: Figures, known: Sequence[Hazard]) -> str:
    """What was tried, and how much of it differs."""
    outcomes = found.outcomes
    rows = [
        "| | |",
        "|---|---|",
        f"| operators | {len(found.operators)} |",
        f"| operators × element types that TensorFlow runs | {found.items:,} |",
        *(f"| ... of which {form} has a form | {count:,} |" for form, count in found.converted.items()),
        f"| checks (one use × form × class of values) | {found.checks:,} |",
        f"| ... equal | {outcomes.get(Outcome.EQUAL, 0):,} |",
        f"| ... the form differs | {outcomes.get(Outcome.DIFFERS, 0):,} |",
        f"| ... the form refuses what TensorFlow answers | {outcomes.get(Outcome.REFUSES, 0):,} |",
        f"| ... the form answers what TensorFlow refuses | {outcomes.get(Outcome.ANSWERS, 0):,} |",
        f"| ... the form's process dies | {outcomes.get(Outcome.DIES, 0):,} |",
        f"| hazards in the table | {len(known):,}, of {len({hazard.op for hazard in known})} operators |",
    ]
    return "\n".join(rows) + "\n"


def hazards_page(found: Iterable[Hazard]) -> str:
    """A table by operator."""
    rows = ["| operator | form | element types | goes wrong on | how, for example |", "|---|---|---|---|---|"]
    for hazard in sorted(found, key=order):
        uses = f" ({'; '.join(variant or 'plain' for variant in hazard.variants)})" if hazard.variants else ""
        example = hazard.example.replace("|", "\\|")
        rows.append(
            f"| {hazard.op} | {hazard.form} | {', '.join(hazard.dtypes)} | {hazard.values}{uses} "
            f"| {hazard.effect}: `{example}` |"
        )
    return "\n".join(rows) + "\n"
