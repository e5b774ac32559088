"""The result for people, in Markdown: limits, goals with their ratios, every figure with its spread and share of the limit."""

from typing import Any


def markdown(result: dict[str, Any]) -> str:
    parts = [_head(result), _goals(result["goals"]), _figures(result["rows"])]
    if result["missing"]:
        parts.append(_missing(result["missing"]))
    return "\n\n".join(parts) + "\n"


def _head(result: dict[str, Any]) -> str:
    limits, hardware = result["limits"], result["hardware"]
    units = limits["units"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"# hasten beside its CPU peers: {result['model']}\n\n"
        f"{result['date']}, commit {result['commit']}, {hardware['cpu']}, {result['threads']} threads, {versions}.\n\n"
        f"Limits measured in this run: memory {limits['bytes_per_second'] / 1e9:.1f} GB/s, int8 {limits['int8'] / 1e12:.2f} Top/s "
        f"({units['int8']}), bf16 {limits['bf16'] / 1e12:.2f} TFLOP/s ({units['bf16']}), fp32 {limits['fp32'] / 1e12:.2f} TFLOP/s. "
        f"Tokens/s are medians of {result['repeats']} turns, with the slowest and the fastest. OpenVINO keeps keys and "
        f"values in 8 bits in every row, hasten in those of quantised weights."
        + (" A quick look: the works are shortened and these figures are no result." if result["quick"] else "")
    )


def _goals(goals: list[dict[str, Any]]) -> str:
    table = ["| goal | at least | hasten | best peer | ratio |", "| --- | --- | --- | --- | --- |"]
    for line in goals:
        factor = f"{line['at_least']}×" + (f" (aim {line['aim']}×)" if line["aim"] else "")
        if "void" in line:
            table.append(f"| {line['goal']} | {factor} | void, missing: {', '.join(line['void'])} | | |")
            continue
        ours, peer = line["hasten"], line["peer"]
        table.append(
            f"| {line['goal']} | {factor} | {ours['tokens_per_second']:.1f} "
            f"({ours['weights']}, {ours['share_of_limit']:.0%} of the limit) "
            f"| {peer['tokens_per_second']:.1f} ({peer['engine']} {peer['weights']}) "
            f"| {line['ratio']:.2f}×{'' if line['met'] else ', missed'} |"
        )
    return "\n".join(table)


def _figures(rows: list[dict[str, Any]]) -> str:
    table = [
        "| work | weights | engine | tokens/s | of the limit | first tokens as transformers | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rate, everything = row["tokens_per_second"], row["all_tokens_per_second"]
        shown = f"{rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f})"
        shown += f" out, {everything['median']:.1f} in all" if everything else ""
        shown += ", one turn" if len(row["seconds"]) == 1 else ""
        weights = row["weights"] + (", 8-bit KV" if row["kv"] else "")
        table.append(
            f"| {row['words']} | {weights} | {row['engine']} | {shown} | {row['share_of_limit']:.0%} "
            f"| {row['first_tokens_as_transformers'] or '–'} | {row['peak_memory'] / 1e9:.1f} GB |"
        )
    return "\n".join(table)


def _missing(missing: list[dict[str, Any]]) -> str:
    lines = [
        f"- {m['engine']} {m['weights']}{' 8-bit KV' if m['kv'] else ''}: {m['work'] or 'all'}: {m['reason']}" for m in missing
    ]
    return "Missing from this run:\n\n" + "\n".join(lines)
