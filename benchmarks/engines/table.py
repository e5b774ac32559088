"""The result in Markdown: the limits, the goals with their ratios, and every figure."""

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
        f"# hasten and other CPU engines: {result['model']}\n\n"
        f"{result['date']}, commit {result['commit']}, {hardware['cpu']}, {result['threads']} threads, {versions}.\n\n"
        f"Limits measured in this run: memory {limits['bytes_per_second'] / 1e9:.1f} GB/s, int8 {limits['int8'] / 1e12:.2f} Top/s "
        f"({units['int8']}), bf16 {limits['bf16'] / 1e12:.2f} TFLOP/s ({units['bf16']}), fp32 {limits['fp32'] / 1e12:.2f} TFLOP/s. "
        f"Tokens/s are medians of {result['repeats']} repeats, with the slowest and the fastest. OpenVINO has an "
        f"8-bit KV cache in every row, hasten with integer weights. Activations are the type in which products take their input; "
        f"float32 is rounded to bf16 where OpenVINO finds bf16 instructions and hasten AMX."
        + (" The workloads are shortened, so these figures are not a result." if result["quick"] else "")
    )


def _goals(goals: list[dict[str, Any]]) -> str:
    table = ["| goal | at least | hasten | best peer | ratio |", "| --- | --- | --- | --- | --- |"]
    for goal in goals:
        factor = f"{goal['at_least']}×" + (f" (aim {goal['aim']}×)" if goal["aim"] else "")
        if "void" in goal:
            table.append(f"| {goal['goal']} | {factor} | void, missing: {', '.join(goal['void'])} | | |")
            continue
        hasten, peer = goal["hasten"], goal["peer"]
        table.append(
            f"| {goal['goal']} | {factor} | {hasten['tokens_per_second']:.1f} "
            f"({hasten['weights']}, {hasten['share_of_limit']:.0%} of the limit) "
            f"| {peer['tokens_per_second']:.1f} ({peer['engine']} {peer['weights']}) "
            f"| {goal['ratio']:.2f}×{'' if goal['met'] else ', missed'} |"
        )
    return "\n".join(table)


def _figures(rows: list[dict[str, Any]]) -> str:
    table = [
        "| work | weights | lm_head | activations | engine | tokens/s | of the limit | first tokens as transformers | memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        rate, total_rate = row["tokens_per_second"], row["all_tokens_per_second"]
        rate_text = f"{rate['median']:.1f} ({rate['min']:.1f} to {rate['max']:.1f})"
        rate_text += f" out, {total_rate['median']:.1f} in total" if total_rate else ""
        rate_text += ", one repeat" if len(row["seconds"]) == 1 else ""
        weights = row["label"] + (", 8-bit KV" if row["kv"] else "")
        table.append(
            f"| {row['words']} | {weights} | {row['lm_head']} | {row['activations']} | {row['engine']} | {rate_text} "
            f"| {row['share_of_limit']:.0%} | {row['first_tokens_as_transformers'] or '–'} | {row['peak_memory'] / 1e9:.1f} GB |"
        )
    return "\n".join(table)


def _missing(missing: list[dict[str, Any]]) -> str:
    lines = [
        f"- {m['engine']} {m['weights']}{' 8-bit KV' if m['kv'] else ''}: {m['work'] or 'all'}: {m['reason']}" for m in missing
    ]
    return "Missing from this run:\n\n" + "\n".join(lines)
