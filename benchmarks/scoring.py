"""Pairs of texts scored per second against the two usual ways, in the same run.

    PYTHONPATH=. python benchmarks/scoring.py --pairs 100000 --subset 200

All three count the errors of the same Japanese-like pairs under the four rates (CER and WER of
normalised and of raw texts), and must find the same.

- ours: `distillery.text.error_rates.count_errors`, which keeps the edits of every pair
- jiwer: `process_characters` and `process_words` over the whole corpus, which sum them up
- evaluate: `Metric.compute` for each row, as evaluation scripts often have it. The metric is what
  the Hub's "cer" and "wer" are, jiwer's rates, written here because no Hub is asked. All pairs
  would take too long: it is measured on the first of them and assumed to go on at that rate.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import jiwer

from distillery.text.error_rates import ErrorCounts, Tally, count_errors
from distillery.text.normalizers import normalizer_for

NUM_RUNS = 3
SYLLABLES = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわ"
)

Pairs = Sequence[tuple[str, str]]


class RowRate(evaluate.Metric):
    """A rate of jiwer as a metric of the evaluate library."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        rate = jiwer.cer if self.config_name == "char" else jiwer.wer
        return {"rate": rate(references, predictions)}


def make_pairs(num: int) -> list[tuple[str, str]]:
    """Return seeded pairs of sentences; one in four has no error, the others one to five."""
    draw = random.Random(0)
    pairs = []
    for _ in range(num):
        words = ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 6))) for _ in range(8)]
        reference = " ".join(words[: draw.randint(3, 8)]) + "。"
        characters = list(reference)
        for _ in range(draw.choice((0, 1, 2, 5))):
            place = draw.randrange(len(characters))
            characters[place] = draw.choice(("", draw.choice(SYLLABLES), characters[place] * 2))
        pairs.append((reference, "".join(characters)))
    return pairs


def by_jiwer(normalized: Pairs, raw: Pairs) -> dict[str, ErrorCounts]:
    """Count the errors of the whole corpus with jiwer."""
    counts = {}
    for suffix, pairs in (("norm", normalized), ("raw", raw)):
        references, predictions = map(list, zip(*pairs, strict=True))
        for name, process in (("cer", jiwer.process_characters), ("wer", jiwer.process_words)):
            out = process(references, predictions)
            edits = (out.hits, out.substitutions, out.deletions, out.insertions)
            counts[f"{name}_{suffix}"] = ErrorCounts(*edits)
    return counts


def by_evaluate(normalized: Pairs, raw: Pairs) -> dict[str, list[float]]:
    """Return the rates of each pair, one `compute` for each."""
    rates = {}
    with tempfile.TemporaryDirectory() as cache:
        for unit, name in (("char", "cer"), ("word", "wer")):
            metric = RowRate(config_name=unit, cache_dir=cache)
            for suffix, pairs in (("norm", normalized), ("raw", raw)):
                rates[f"{name}_{suffix}"] = [
                    metric.compute(references=[reference], predictions=[prediction])["rate"]
                    for reference, prediction in pairs
                ]
    return rates


def seconds(task: Callable[..., Any], *inputs: Any) -> tuple[float, Any]:
    """Return how long a task takes, and its result."""
    started = time.perf_counter()
    result = task(*inputs)
    return time.perf_counter() - started, result


def check(tally: Tally, jiwers: dict[str, ErrorCounts], rates: dict[str, list[float]]) -> None:
    """Assert that all three found the same errors."""
    assert tally.edits() == jiwers, "jiwer disagrees"
    for name, wanted in rates.items():
        theirs = [100 * rate for rate in wanted]
        ours = [ErrorCounts(*row).error_rate for row in tally.counts[name][: len(wanted)].tolist()]
        worst = max(abs(a - b) for a, b in zip(theirs, ours, strict=True))
        assert worst < 1e-9, f"evaluate disagrees in {name} by {worst}"


def main() -> None:
    """Check that all agree, then print what each takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=100_000, help="pairs of texts")
    parser.add_argument("--subset", type=int, default=200, help="pairs for evaluate.compute")
    args = parser.parse_args()
    pairs, normalizer = make_pairs(args.pairs), normalizer_for("ja")
    raw = [(reference.strip(), prediction.strip()) for reference, prediction in pairs]

    def normalize() -> list[tuple[str, str]]:
        return [(normalizer(reference), normalizer(text)) for reference, text in pairs]

    normalizing, normalized = seconds(normalize)
    timed = [seconds(count_errors, normalized, raw) for _ in range(NUM_RUNS)]
    counting, tally = statistics.median(taken for taken, _ in timed), timed[0][1]
    jiwer_s, jiwers = seconds(by_jiwer, normalized, raw)
    few = (normalized[: args.subset], raw[: args.subset])
    evaluate_s, rates = seconds(by_evaluate, *few)
    check(tally, jiwers, rates)
    print(f"{args.pairs} pairs, four rates each: the counts of all three are equal")
    per_s = {
        "ours": args.pairs / counting,
        "jiwer": args.pairs / jiwer_s,
        "evaluate": args.subset / evaluate_s,
        "ours, normalising": args.pairs / (counting + normalizing),
        "jiwer, normalising": args.pairs / (jiwer_s + normalizing),
        "evaluate, normalising": 1 / (evaluate_s / args.subset + normalizing / args.pairs),
    }
    for name, rate in per_s.items():
        note = f" (from {args.subset} pairs)" if "evaluate" in name else ""
        print(f"{name:>22}: {rate:10.0f} pairs/s, {args.pairs / rate:8.1f} s for all{note}")
    for other in ("evaluate", "jiwer"):
        plain = per_s["ours"] / per_s[other]
        whole = per_s["ours, normalising"] / per_s[f"{other}, normalising"]
        print(f"against {other}: {plain:.1f} times faster, {whole:.1f} with normalisation")


if __name__ == "__main__":
    main()
