"""Train the weights of the router of sections, and measure how often they are right on questions they were not trained on.

``python benchmarks/train_router.py --weights src/hasten/entrypoints/sections/router_weights.json``

Logistic regression with an L2 penalty over ``question_features``. The features with the largest weights are kept, and their weights
are trained again. The same data give the same file.

    cross_validation    ten folds of benchmarks/router/questions.json, each judged by weights trained on the other nine
    independent         questions of another author, judged by weights trained on router/questions.json alone
    older               three sets that no weights are trained on

The weights that are written are trained on router/questions.json and the independent questions. The lexicon was written with all of
these in view, so the figures are a little too good. ``tests/entrypoints/sections/test_router.py`` has the sealed set.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hasten.bench.provenance import provenance
from hasten.entrypoints.sections.question_features import question_features
from hasten.entrypoints.sections.router import RouterWeights

ROOT = Path(__file__).parents[1]
OWN = ROOT / "benchmarks/router/questions.json"
SETS = ROOT / "tests/entrypoints/sections"
INDEPENDENT = SETS / "router_questions_independent.json"
OLDER = ("router_questions.json", "router_questions_development.json", "router_questions_unseen.json")
MIN_QUESTIONS = 3  # in which a feature must stand
MAX_FEATURES = 1500
PENALTY = 2.0
NUM_FOLDS = 10
SEED = 0


class Labelled(NamedTuple):
    text: str
    suits: bool
    features: frozenset[str]


def read(path: Path) -> list[Labelled]:
    """Return the questions of a set, with their features."""
    found = json.loads(path.read_text(encoding="utf-8"))["questions"]
    return [Labelled(each["text"], each["suits"], frozenset(question_features(each["text"]))) for each in found]


def train(questions: Sequence[Labelled], max_features: int = MAX_FEATURES) -> RouterWeights:
    """Return weights for at most so many features."""
    counts = Counter(name for each in questions for name in each.features)
    names = sorted(name for name, count in counts.items() if count >= MIN_QUESTIONS)
    weights, _ = fit(questions, names)
    names = sorted(sorted(names, key=lambda name: -abs(weights[name]))[:max_features])
    weights, bias = fit(questions, names)
    rounded = {name: round(100 * weight) for name, weight in weights.items()}
    return RouterWeights(round(100 * bias), {name: weight for name, weight in rounded.items() if weight})


def fit(questions: Sequence[Labelled], names: Sequence[str]) -> tuple[dict[str, float], float]:
    """Return the weights of named features and the bias that minimise the penalised cross-entropy."""
    column = {name: i for i, name in enumerate(names)}
    inputs = torch.zeros(len(questions), len(names), dtype=torch.float64)
    for row, each in enumerate(questions):
        inputs[row, [column[name] for name in each.features if name in column]] = 1
    targets = torch.tensor([each.suits for each in questions], dtype=torch.float64)
    weights = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = inputs @ weights + bias
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        total = entropy + PENALTY / 2 * weights.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return dict(zip(names, weights.tolist(), strict=True)), bias.item()


def is_right(router: RouterWeights, question: Labelled) -> bool:
    """Return whether the router's decision is the label."""
    total = router.bias + sum(router.weights.get(name, 0) for name in question.features)
    return (total > 0) == question.suits


def tally(questions: Sequence[Labelled], right: Sequence[bool]) -> dict[str, str]:
    """Return "right/all" in English and Chinese."""
    found = {}
    for language in ("en", "zh"):
        chosen = [ok for each, ok in zip(questions, right, strict=True) if is_chinese(each.text) == (language == "zh")]
        found[language] = f"{sum(chosen)}/{len(chosen)}"
    return found


def is_chinese(text: str) -> bool:
    """Return whether a question is in Chinese, as far as its characters say."""
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def cross_validate(questions: Sequence[Labelled]) -> list[bool]:
    """Return for each question whether weights that were trained without it are right."""
    order = list(range(len(questions)))
    random.Random(SEED).shuffle(order)
    right = [False] * len(questions)
    for fold in range(NUM_FOLDS):
        held_out = set(order[fold::NUM_FOLDS])
        router = train([each for i, each in enumerate(questions) if i not in held_out])
        for i in held_out:
            right[i] = is_right(router, questions[i])
    return right


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, help="write the weights here")
    parser.add_argument("--out", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    own, independent = read(OWN), read(INDEPENDENT)
    validated = cross_validate(own)
    without = train(own)
    final = train([*own, *independent])
    figures: dict[str, object] = {
        "cross_validation": tally(own, validated),
        "independent": tally(independent, [is_right(without, each) for each in independent]),
    }
    for name in OLDER:
        older = read(SETS / name)
        figures[f"older {name}"] = tally(older, [is_right(final, each) for each in older])
    figures["features"] = len(final.weights)
    print(json.dumps(figures, indent=1))
    if options.weights:
        text = json.dumps({"bias": final.bias, "weights": final.weights}, ensure_ascii=False, indent=0, separators=(",", ":"))
        options.weights.write_text(text + "\n", encoding="utf-8")
    if options.out:
        result = {**provenance("router", sys.argv), **figures}
        options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
