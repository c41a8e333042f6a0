"""GLUE's official metrics (Wang et al. 2018, arXiv 1804.07461, Table 1), and macro F1.

Each takes predictions p and labels y, both (rows,), and returns {name: value}, values from 0 to
100; pearson returns the value alone.
"""

import numpy as np


def accuracy(p, y):
    return {"accuracy": 100 * float(np.mean(p == y))}


def f1(p, y):
    """F1 of class 1; zero if nothing of it is predicted right."""
    right = np.sum((p == 1) & (y == 1))
    return {"f1": 100 * 2 * float(right) / max(1.0, float(np.sum(p == 1) + np.sum(y == 1)))}


def accuracy_and_f1(p, y):
    return accuracy(p, y) | f1(p, y)


def accuracy_and_macro_f1(p, y):
    """Macro F1: the mean over the classes that occur in either; rare ones count as much."""
    found = [f1(p == c, y == c)["f1"] for c in np.union1d(p, y)]
    return accuracy(p, y) | {"macro_f1": float(np.mean(found))}


def matthews(p, y):
    """Matthews correlation, which for two classes is Pearson's of the class numbers."""
    return {"matthews_correlation": pearson(p, y)}


def pearson(p, y):
    """Zero if either is constant, where the correlation is undefined."""
    if np.ptp(p) == 0 or np.ptp(y) == 0:
        return 0.0
    return 100 * float(np.corrcoef(p, y)[0, 1])


def ranks(x):
    """Ranks from 1; equal values share their mean rank."""
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # (different values,)
    return (last - (counts - 1) / 2)[where]


def pearson_and_spearman(p, y):
    return {"pearson": pearson(p, y), "spearman": pearson(ranks(p), ranks(y))}
