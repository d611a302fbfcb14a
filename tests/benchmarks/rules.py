"""How often rules are found in tables of independent columns, where each is false, and in tables that have one.

    python tests/benchmarks/rules.py [--tables 1000] [--with-rule 100] [--first 0]

- Tables of independent columns: 100 to 5,000 rows, 2 to 25 columns of all kinds (`KINDS`). All rules are printed: they
  are false.
- Tables of 600 rows with one rule among independent columns (`WITH_RULE`): in how many it is found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import RandomState
from pandas import DataFrame

import pvae
from pvae.cli.command import run_command

Draw = Callable[[RandomState, int], Any]


def numbers(draw: RandomState, count: int) -> Any:
    return (draw.normal(draw.choice([0, 5, 100]), draw.choice([1, 3, 20]), count)).round(draw.randint(4))


def positive(draw: RandomState, count: int) -> Any:
    return (draw.gamma(draw.choice([0.5, 1, 3]), draw.choice([1, 20, 500]), count)).round(draw.randint(3))


def whole(draw: RandomState, count: int) -> Any:
    return draw.randint(draw.choice([-50, 0, 1]), draw.choice([2, 5, 30, 1000, 10**6]), count)


def counts(draw: RandomState, count: int) -> Any:
    return draw.poisson(draw.choice([0.05, 0.3, 1, 4, 30]), count)


def zeros(draw: RandomState, count: int) -> Any:
    return np.where(draw.uniform(size=count) < draw.choice([0.3, 0.7, 0.95]), 0, draw.gamma(2, 30, count).round(2))


def texts(draw: RandomState, count: int) -> Any:
    size = draw.randint(2, 61)
    return draw.choice(
        [f"t{one}" for one in range(size)], count, p=draw.dirichlet(np.full(size, draw.choice([0.3, 5])))
    )


def bits(draw: RandomState, count: int) -> Any:
    return draw.binomial(1, draw.choice([0.01, 0.05, 0.3, 0.5]), count)


def days(draw: RandomState, count: int) -> Any:
    start = np.datetime64("2015-01-01") + draw.randint(3000)
    return (start + draw.randint(0, draw.choice([60, 300, 1500, 5000]), count)).astype("datetime64[ns]")


def times(draw: RandomState, count: int) -> Any:
    minutes = draw.randint(0, draw.choice([20, 300, 1500]) * 24 * 60, count)
    return (np.datetime64("2021-01-01T00:00") + minutes).astype("datetime64[ns]")


def heavy(draw: RandomState, count: int) -> Any:
    return (draw.standard_cauchy(count) * draw.choice([1, 100])).round(draw.randint(3))


def shares(draw: RandomState, count: int) -> Any:
    return draw.uniform(-draw.choice([0, 0.3]), 1 + draw.choice([0, 0.3]), count).clip(0, 1).round(draw.randint(2, 4))


def prices(draw: RandomState, count: int) -> Any:
    return draw.choice([4.99, 9.99, 12.5, 20.0, 49.95, 99.0], count)


def steps(draw: RandomState, count: int) -> Any:
    return draw.randint(1, 40, count) * draw.choice([0.25, 5, 12, 500])


def floats(draw: RandomState, count: int) -> Any:
    return draw.lognormal(size=count)


KINDS: tuple[Draw, ...] = (
    numbers, positive, whole, counts, zeros, texts, bits, days, times, heavy, shares, prices, steps, floats,
)  # fmt: skip


def independent(seed: int) -> DataFrame:
    """Return a table of independent columns, of which some have empty fields."""
    draw = RandomState(seed)
    count = int(draw.choice([100, 200, 500, 1000, 2000, 5000], p=[0.2, 0.3, 0.2, 0.15, 0.1, 0.05]))
    columns = {}
    for place in range(draw.randint(2, 26)):
        kind = KINDS[draw.randint(len(KINDS))]
        column = pd.Series(kind(draw, count))
        if draw.uniform() < 0.2:
            column = column.mask(draw.uniform(size=count) < draw.choice([0.01, 0.1, 0.5]))
        columns[f"{kind.__name__} {place}"] = column
    return DataFrame(columns)


def _function(draw: RandomState, count: int) -> dict[str, Any]:
    plan = draw.choice([*"abcd"], count)
    return {"plan": plan, "price": np.select([plan == one for one in "abc"], [5.0, 9.5, 20.0], 50.0)}


def _zero(draw: RandomState, count: int) -> dict[str, Any]:
    state = draw.choice(["open", "paid", "void"], count, p=[0.4, 0.4, 0.2])
    return {"state": state, "paid": np.where(state == "paid", draw.gamma(2, 50, count).round(2), 0)}


def _empty(draw: RandomState, count: int) -> dict[str, Any]:
    sex = draw.choice(["m", "f"], count)
    is_given = (sex == "f") & (draw.uniform(size=count) < 0.7)
    return {"sex": sex, "weeks": np.where(is_given, draw.uniform(1, 40, count).round(), np.nan)}


def _sum(draw: RandomState, count: int) -> dict[str, Any]:
    net, tax, fee = (draw.gamma(2, 40, count).round(2) for _ in range(3))
    return {"net": net, "tax": tax, "fee": fee, "gross": (net + tax - fee).round(2)}


def _product(draw: RandomState, count: int) -> dict[str, Any]:
    pieces, price = draw.randint(1, 30, count), draw.gamma(3, 5, count).round(2)
    return {"pieces": pieces, "price": price, "amount": (pieces * price).round(2)}


def _factor(draw: RandomState, count: int) -> dict[str, Any]:
    net, country = draw.gamma(2, 40, count).round(2), draw.choice(["de", "fr", "us"], count)
    rate = np.select([country == "de", country == "fr"], [1.19, 1.2], 1.0)
    return {"net": net, "country": country, "gross": (net * rate).round(2)}


def _order(draw: RandomState, count: int) -> dict[str, Any]:
    start = np.datetime64("2023-01-01") + draw.randint(0, 300, count)
    end = start + draw.randint(0, 30, count)
    return {"start": start.astype("datetime64[ns]"), "end": end.astype("datetime64[ns]")}


def _flags(draw: RandomState, count: int) -> dict[str, Any]:
    group = draw.choice(4, count, p=[0.4, 0.3, 0.2, 0.1])
    return {f"f{place}": (group == place).astype(int) for place in range(3)}


WITH_RULE: dict[str, tuple[Callable[[RandomState, int], dict[str, Any]], str]] = {
    "function": (_function, "function"),
    "function: 0": (_zero, "function"),
    "function: empty": (_empty, "function"),
    "sum": (_sum, "identity"),
    "product": (_product, "identity"),
    "factor of a class": (_factor, "identity"),
    "order of dates": (_order, "order"),
    "flags": (_flags, "flags"),
}


def with_rule(kind: str, seed: int, count: int = 600) -> DataFrame:
    """Return a table with a rule, among three independent columns."""
    draw = RandomState(seed)
    others = {"x": draw.normal(size=count).round(2), "y": draw.choice([*"uvw"], count), "z": draw.poisson(2, count)}
    return DataFrame({**others, **WITH_RULE[kind][0](draw, count)})


def main() -> None:
    """Print the false rules, and how often each kind is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=1000, help="of independent columns (default: 1000)")
    parser.add_argument("--with-rule", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    arguments = parser.parse_args()
    sys.exit(run_command("rules.py", lambda: _run(arguments)))


def _run(arguments: argparse.Namespace) -> None:
    num_wrong = 0
    for seed in range(arguments.first, arguments.first + arguments.tables):
        rules = pvae.read(independent(seed)).rules
        num_wrong += bool(rules)
        for rule in rules:
            print(f"seed {seed}: {rule}", flush=True)
    print(f"independent columns: {num_wrong} of {arguments.tables:,} tables have a false rule")
    for kind, (_, name) in WITH_RULE.items():
        seeds = range(arguments.first, arguments.first + arguments.with_rule)
        found = sum(name in {rule.rule for rule in pvae.read(with_rule(kind, seed)).rules} for seed in seeds)
        print(f"{kind}: found in {found} of {arguments.with_rule}", flush=True)


if __name__ == "__main__":
    main()
