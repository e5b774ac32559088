"""``write_curves``: the evaluations of a training as ``curves.json``, and drawn as ``curves.png``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JSON, PNG = "curves.json", "curves.png"
INSIDE, OUTSIDE = "inside the set", "outside the set"

Evaluations = Sequence[Mapping[str, Any]]  # step, train_loss and the entries of ``ForgettingScore.as_dict``


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: lines over the steps."""

    title: str
    lines: Mapping[str, Sequence[float]]  # label -> one value per evaluation
    scale: str = "linear"  # or log


def write_curves(folder: Path, evaluations: Evaluations) -> str | None:
    """Write both files and return None, or only the JSON and return why there is no picture.

    Raises ``OSError``.
    """
    (folder / JSON).write_text(json.dumps({"evaluations": list(evaluations)}, indent=1) + "\n", encoding="utf-8")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f'{PNG} is not drawn without matplotlib, and {JSON} has its values; pip install "hasten[plot]" installs it'
    drawn = list(panels(evaluations))
    figure = Figure(figsize=(5 * len(drawn), 4), layout="constrained")
    steps = [entry["step"] for entry in evaluations]
    for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        for label, values in panel.lines.items():
            axes.plot(steps, values, label=label)
        axes.set(title=panel.title, xlabel="step", yscale=panel.scale)
        axes.legend()
    figure.savefig(folder / PNG, dpi=120, format="png")
    return None


def panels(evaluations: Evaluations) -> Iterator[Panel]:
    """Yield the diagrams: the loss, and of what was measured the KL divergence and the perplexity."""
    losses = {"training": [entry["train_loss"] for entry in evaluations], "validation": [entry["loss"] for entry in evaluations]}
    yield Panel("loss", losses)
    coarse = f"KL divergence of {evaluations[0].get('coarse_kl_tokens')} tokens and the rest, nats"
    titles = {"kl": "KL divergence from the teacher, nats", "coarse_kl": coarse}
    titles |= {"perplexity": "perplexity", "top1_agreement": "same top token"}
    outside = [entry.get("outside", {}) for entry in evaluations]
    for name, title in titles.items():
        lines = {
            label: [entry[name] for entry in entries]
            for label, entries in ((INSIDE, evaluations), (OUTSIDE, outside))
            if all(name in entry for entry in entries)
        }
        if lines:
            yield Panel(title, lines, "log" if name == "perplexity" else "linear")
