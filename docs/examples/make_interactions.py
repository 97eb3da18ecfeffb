"""Write docs/examples/interactions.csv, the users and items of docs/examples/ranking.yaml.

    python docs/examples/make_interactions.py

200 users and 120 items, the same on every machine: a user likes an item by how near their tastes
are, and meets it by how well known it is, which falls as 1 / place. So the table shows what users
like through what they were shown, which is what a popularity bias is made of.
"""

import csv
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent / "interactions.csv"
USERS, ITEMS, TASTES, SEED = 200, 120, 6, 9


def interactions() -> list[tuple[int, int, int]]:
    """(user, item, time) of each interaction, in order of time."""
    make = np.random.default_rng(SEED)
    users, items = (make.standard_normal((n, TASTES)) for n in (USERS, ITEMS))
    known = np.log(1 / (1 + make.permutation(ITEMS)))
    rows = []
    for user in range(USERS):
        liked = 1.5 * users[user] @ items.T / TASTES**0.5 + known
        chance = np.exp(liked - liked.max())
        count = int(make.integers(8, 25))
        chosen = make.choice(ITEMS, count, replace=False, p=chance / chance.sum())
        rows += [(user, int(item)) for item in chosen]
    order = make.permutation(len(rows))
    return [(*rows[place], time) for time, place in enumerate(order)]


def main() -> None:
    """Write the file."""
    with TARGET.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["user", "item", "time"])
        writer.writerows(interactions())


if __name__ == "__main__":
    main()
