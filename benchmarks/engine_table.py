"""What the sections of benchmarks.engine found, related to each other: floors, ratios, tables."""

import math
import statistics
from collections.abc import Iterator

Row = dict[str, object]

BOUNDS = {"flops", "bytes", "kernels"}

FLOOR = "max(flops / flop_per_second, least_bytes / bytes_per_second, kernels * seconds of a graph node)"

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, by number of pairs


def rows_of(sections: dict[str, Row], name: str) -> list[Row]:
    return sections.get(name, {}).get("rows", [])


def floor_seconds(row: Row, n_kernels: int | None, ceilings: list[Row]) -> dict[str, float]:
    """The bounds of `FLOOR` on a step, from its counts and the ceilings: those for which nothing is missing."""
    ceiling = {(each["what"], each.get("precision")): each for each in ceilings}
    bounds = {}
    if ("matrix product", "tf32") in ceiling:
        bounds["flops"] = row["flops"] / ceiling["matrix product", "tf32"]["flop_per_second"]
    if ("copy", None) in ceiling:
        bounds["bytes"] = row["least_bytes"] / ceiling["copy", None]["bytes_per_second"]
    if n_kernels is not None and ("graph node", None) in ceiling:
        bounds["kernels"] = n_kernels * ceiling["graph node", None]["seconds"]
    return bounds


def table(sections: dict[str, Row]) -> list[Row]:
    """One cell for each batch size, norm and training: every variant beside plain, and the engine beside its floor."""
    n_kernels = {
        (row["batch_size"], row["norm"], row["training"]): row["kernels"]
        for row in rows_of(sections, "kernels")
        if "failed" not in row
    }
    cells: dict[tuple, Row] = {}
    for row in rows_of(sections, "steps"):
        if "failed" in row:
            continue
        key = (row["batch_size"], row["norm"], row["training"])
        cell = cells.setdefault(key, dict(zip(("batch_size", "norm", "training"), key, strict=True)) | {"variants": {}})
        variant = {name: row[name] for name in ("images_per_second", "ms_per_step")}
        cell["variants"][row["variant"]] = variant
        if "plain" in cell["variants"]:  # which comes first
            variant["times_plain"] = cell["variants"]["plain"]["ms_per_step"] / variant["ms_per_step"]
        if row["variant"] == "engine":
            cell |= {"capture_seconds": row["prepare_seconds"], "n_captures": row["n_captures"]}
            bounds = floor_seconds(row, n_kernels.get(key), rows_of(sections, "ceilings"))
            if bounds:
                floor = 1000 * max(bounds.values())
                bound_by = max(bounds, key=bounds.__getitem__)
                times = variant["ms_per_step"] / floor
                cell["floor"] = {"ms_per_step": floor, "by": bound_by, "times": times}
                cell["floor"]["without"] = sorted(BOUNDS - bounds.keys())
    return list(cells.values())


def small_against_large(cells: list[Row]) -> dict[str, float]:
    """Seconds of an engine's epoch at batch 8 over those at batch 128, by norm and training."""
    seconds_per_image = {
        (cell["batch_size"], cell["norm"], cell["training"]): 1 / cell["variants"]["engine"]["images_per_second"]
        for cell in cells
        if "engine" in cell["variants"]
    }
    return {
        f"{norm}, {training}": seconds / seconds_per_image[128, norm, training]
        for (size, norm, training), seconds in seconds_per_image.items()
        if size == 8 and (128, norm, training) in seconds_per_image
    }


def parity_differences(sections: dict[str, Row]) -> list[Row]:
    """Mean difference of each precision's accuracy from fp32's, over seeds that have both; 95 % intervals."""
    found = {(row["seed"], row["precision"]): row for row in rows_of(sections, "parity")}
    differences = []
    for precision in ("tf32", "bf16"):
        seeds = [seed for seed, other in found if other == precision and (seed, "fp32") in found]
        for name in ("clean_accuracy", "robust_accuracy"):
            each = [found[seed, precision][name] - found[seed, "fp32"][name] for seed in seeds]
            if len(each) in T_975:
                mean, half = statistics.mean(each), T_975[len(each)] * statistics.stdev(each) / math.sqrt(len(each))
                interval = [mean - half, mean + half]
                row = {"precision": precision, "of": name, "mean": mean, "interval": interval, "seeds": len(each)}
                differences.append(row)
    return differences


def lines(cells: list[Row], sections: dict[str, Row]) -> Iterator[str]:
    """For people: the table, one line a variant, and the other sections, one line a row."""
    yield f"{'batch':>5} {'norm':10} {'training':8} {'variant':34} {'images/s':>10} {'ms/step':>9} {'x plain':>8}"
    for cell in cells:
        for name, variant in cell["variants"].items():
            yield (
                f"{cell['batch_size']:5} {cell['norm']:10} {cell['training']:8} {name:34} "
                f"{variant['images_per_second']:10.0f} {variant['ms_per_step']:9.3f} "
                f"{variant.get('times_plain', math.nan):8.2f}"
            )
        if "floor" in cell:
            name = ", without ".join([f"floor, by {cell['floor']['by']}", *cell["floor"]["without"]])
            yield f"{'':25} {name:34} {'':10} {cell['floor']['ms_per_step']:9.3f}"
    for name in ("steps", "kernels"):
        for row in rows_of(sections, name):
            if "failed" in row:
                yield f"{name:10} " + ", ".join(f"{key} {value}" for key, value in row.items())
    for name in ("timed", "heuristic", "packing", "streams", "evaluation", "parity"):
        for row in rows_of(sections, name):
            yield f"{name:10} " + ", ".join(f"{key} {short(value)}" for key, value in row.items())
    for row in parity_differences(sections):
        yield "difference from fp32: " + ", ".join(f"{key} {short(value)}" for key, value in row.items())
    for name, ratio in small_against_large(cells).items():
        yield f"epoch at batch 8 over epoch at batch 128, {name}: {ratio:.2f}"
    for name, section in sections.items():
        yield f"{name}: {section['status']}, {section['seconds']:.0f} s"


def short(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(short(each) for each in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
