"""Size: an exact polynomial over named dims, the one form every byte and FLOP count has.

A Size is a sum of integer coefficients times products of named dims: 2*b*s*h is {("b", "h", "s"): 2}.
It evaluates to an exact int (`value`), or prints (`str`), so `explain`, the docs and the scalar
estimate come from one object and cannot drift. Awkward parts are dims of their own with a telling
name, e.g. `ceil32(s)`: whoever makes such a dim also puts its value among the dims.

Sizes are interned: equal sizes are one object, compared by identity and used as dictionary keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Monomial = tuple[str, ...]


class Size:
    """An immutable, interned polynomial with integer coefficients. Build with `dim` and `number`."""

    __slots__ = ("_sums", "_products", "terms")
    _pool: Final[dict[tuple[tuple[Monomial, int], ...], Size]] = {}

    terms: tuple[tuple[Monomial, int], ...]
    _products: dict[Size | int, Size]
    _sums: dict[Size | int, Size]

    @classmethod
    def of(cls, terms: Mapping[Monomial, int]) -> Size:
        """The interned Size with these terms; zero coefficients are dropped."""
        key = tuple(sorted((m, c) for m, c in terms.items() if c))
        found = cls._pool.get(key)
        if found is None:
            found = object.__new__(cls)
            found.terms = key
            found._products = {}
            found._sums = {}
            cls._pool[key] = found
        return found

    def __mul__(self, other: Size | int) -> Size:
        known = self._products.get(other)
        if known is not None:
            return known
        right = number(other) if isinstance(other, int) else other
        product: dict[Monomial, int] = {}
        for left_dims, left in self.terms:
            for right_dims, coefficient in right.terms:
                dims = tuple(sorted(left_dims + right_dims))
                product[dims] = product.get(dims, 0) + left * coefficient
        self._products[other] = found = Size.of(product)
        return found

    __rmul__ = __mul__

    def __add__(self, other: Size | int) -> Size:
        known = self._sums.get(other)
        if known is not None:
            return known
        right = number(other) if isinstance(other, int) else other
        total = dict(self.terms)
        for dims, coefficient in right.terms:
            total[dims] = total.get(dims, 0) + coefficient
        self._sums[other] = found = Size.of(total)
        return found

    __radd__ = __add__

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size | int) -> Size:
        return self + (-other)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.terms,)

    def value(self, dims: Mapping[str, int]) -> int:
        """The exact integer for these dim values; KeyError names a dim without a value."""
        total = 0
        for names, product in self.terms:
            for name in names:
                known = dims.get(name)
                product *= _derived(name, dims) if known is None else known
            total += product
        return total

    def over(self, divisor: int) -> Size:
        """This size divided by an integer and rounded up, as a derived dim of its own.

        Its value is found by `Derived`: dims named `ceil(EXPRESSION/N)` are computed on demand.
        """
        known = _OVERS.get((self, divisor))
        if known is None:
            known = _OVERS[self, divisor] = self._over(divisor)
        return known

    def _over(self, divisor: int) -> Size:
        if all(c % divisor == 0 for _, c in self.terms):
            return Size.of({dims: c // divisor for dims, c in self.terms})
        name = f"ceil({self}/{divisor})"
        _DERIVED.setdefault(name, (self, divisor))
        return dim(name)

    @property
    def dims(self) -> frozenset[str]:
        """The names of the dims this size depends on."""
        return frozenset(name for names, _ in self.terms for name in names)

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        parts = []
        for names, coefficient in sorted(self.terms, key=lambda t: (-len(t[0]), t[0])):
            factors = [_power(n, names.count(n)) for n in sorted(set(names), key=_dim_order)]
            if abs(coefficient) != 1 or not factors:
                factors.insert(0, str(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            parts.append(f"{sign} {' '.join(factors)}")
        text = " ".join(parts)
        return text[2:] if text.startswith("+") else text

    __repr__ = __str__


#: Paper order of the usual dims when a product is printed: tokens first, then widths.
_ORDER = ("L", "b", "s", "s_kv", "a", "k", "d", "h", "f", "V")


def _dim_order(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _power(name: str, exponent: int) -> str:
    return name if exponent == 1 else f"{name}^{exponent}"


def _restore(terms: tuple[tuple[Monomial, int], ...]) -> Size:
    return Size.of(dict(terms))


_NUMBERS: Final[dict[int, Size]] = {}


def number(value: int) -> Size:
    """The constant polynomial; memoised, for every factor of a product goes through it."""
    known = _NUMBERS.get(value)
    if known is None:
        known = _NUMBERS[value] = Size.of({(): value})
    return known


def dim(name: str) -> Size:
    """The polynomial that is one named dim; memoised, for every plan names its dims."""
    known = _DIMS.get(name)
    if known is None:
        known = _DIMS[name] = Size.of({(name,): 1})
    return known


_DIMS: Final[dict[str, Size]] = {}


ZERO: Final = number(0)
ONE: Final = number(1)


def product(factors: tuple[Size, ...]) -> Size:
    """The product of several sizes; 1 for none. Memoised: shapes repeat all the time."""
    known = _PRODUCTS.get(factors)
    if known is None:
        known = ONE
        for factor in factors:
            known = known * factor
        _PRODUCTS[factors] = known
    return known


_OVERS: Final[dict[tuple[Size, int], Size]] = {}

#: Derived dims made by `Size.over`: name -> (numerator, divisor).
_DERIVED: Final[dict[str, tuple[Size, int]]] = {}


def _derived(name: str, dims: Mapping[str, int]) -> int:
    """The value of a derived dim, from the dims it is made of; KeyError for a plain unknown one."""
    numerator, divisor = _DERIVED[name]
    return -(-numerator.value(dims) // divisor)


_PRODUCTS: Final[dict[tuple[Size, ...], Size]] = {}
