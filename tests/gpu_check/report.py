"""The results as a page of Markdown."""

INTRODUCTION = """# What a card says

Written by `make gpu-check`, which needs this repository and a card; it takes at most ten minutes. `results.json` has the
same numbers.
"""


def page(results):
    lines = [INTRODUCTION, f"{results['date']}, device `{results['device']}`, models of {results['size']} size.", ""]
    lines += table(["what", ""], [[name, cell(value)] for name, value in results["environment"].items()])
    lines += ["", "| check | result | seconds | |", "|---|---|---|---|"]
    for step in results["steps"]:
        remark = step.get("reason", step["what"])
        lines.append(f"| {step['name']} | {step['result']} | {step['seconds']} | {cell(remark)} |")
    for step in results["steps"]:
        if "measured" in step:
            lines += ["", f"## {step['name']}", "", step["what"], "", *measured(step["measured"])]
    return "\n".join(lines) + "\n"


def measured(values):
    rows = [row for row in values.values() if isinstance(row, dict)]
    if len(rows) != len(values) or any(isinstance(cell, dict) for row in rows for cell in row.values()):
        return table(["", ""], list(flattened(values)))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return table(["", *columns], [[name, *(row.get(key, "") for key in columns)] for name, row in values.items()])


def flattened(values, above=()):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flattened(value, (*above, name))
        else:
            yield [", ".join((*above, name)), value]


def table(heads, rows):
    head = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return head + [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]


def cell(value):
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
